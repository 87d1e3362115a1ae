"""The sender of a request. Knows nothing else: everything that decides or records takes one of
these."""

from __future__ import annotations

from dataclasses import dataclass

from remote.protocol.messages import Scope


@dataclass(frozen=True)
class Caller:
    """An account through one of its devices, and where its drive is. The token may only read
    (`scope` "read"), or reach only `folder` and what is below it."""

    account: str
    account_name: str
    device: str
    scope: Scope
    drive: str
    folder: str | None = None
    is_rotated: bool = False
    """The token came of a rotation, and the one before is still good: this use ends that."""
