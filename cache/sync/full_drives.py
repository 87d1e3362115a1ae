"""Which drives have no room for more, and when to try them again. Pure: time is an argument.

Knows: that a drive was full when it was last asked, and how long to wait. Must not know: what is to
be sent (`replayer`), quotas.

While a drive is full one upload at a time tries it, the smallest first: where that does not fit,
nothing does, and what fits does not wait behind what does not.

Concurrency contract: on the trio thread. `changed` is set, and replaced, whenever a drive becomes
full or has room again.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import trio

from remote.protocol.backoff import delay


@dataclass
class _Full:
    attempts: int
    next_try: float


class FullDrives:
    """Times are in seconds, of any clock that only goes forward."""

    def __init__(self) -> None:
        self._full: dict[str, _Full] = {}
        self.changed = trio.Event()

    @property
    def is_short(self) -> bool:
        """Is any drive full?"""
        return bool(self._full)

    def is_full(self, drive: str) -> bool:
        return drive in self._full

    def refused(self, drive: str, now: float, jitter: float) -> None:
        """There was no room; `jitter` in [0, 1)."""
        known = self._full.get(drive)
        attempts = 0 if known is None else known.attempts + 1
        self._full[drive] = _Full(attempts, now + delay(attempts, jitter))
        if known is None:
            self._tell()

    def fitted(self, drive: str) -> None:
        """Something was taken."""
        if self._full.pop(drive, None) is not None:
            self._tell()

    def only(self, drives: Set[str]) -> None:
        """Nothing is to be sent to any other drive: whether there is room shows when there is."""
        for drive in self._full.keys() - drives:
            self.fitted(drive)

    def retry_now(self) -> None:
        for full in self._full.values():
            full.attempts, full.next_try = 0, 0.0

    def may_try(self, drive: str, now: float) -> bool:
        full = self._full.get(drive)
        return full is None or full.next_try <= now

    def next_try(self) -> float | None:
        """When a full drive may be tried next; None: none is full."""
        return min((full.next_try for full in self._full.values()), default=None)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
