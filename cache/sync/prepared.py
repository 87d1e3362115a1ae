"""Contents that were brought to the server and not told of yet, by operation key.

Knows: which operations' bytes are there, how far the others are, which known chunks are to be sent
anyway. Must not know: how bytes travel (`uploader`), when anything is sent (`schedule`).

Concurrency: on the trio thread; changed without an await between reading and writing an entry. It
is made before the journal, which tells it of keys that change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cache.metadata.operations import Op
from remote.protocol.messages import Content

V = TypeVar("V")


@dataclass
class Progress:
    """One upload, for `status`: bytes of the file dealt with, of how many; why it waits."""

    path: str
    bytes_done: int
    bytes_total: int
    error: str | None = None
    moved: bool = False  # were bytes of it sent since it was last begun?


class Prepared:
    def __init__(self) -> None:
        self.ready: dict[str, Content] = {}
        self.progress: dict[str, Progress] = {}
        self.resend: dict[str, set[bytes]] = {}

    def has_bytes(self, op: Op) -> bool:
        return op.key in self.ready

    def forget(self, key: str) -> None:
        for kept in (self.ready, self.progress, self.resend):
            kept.pop(key, None)

    def rekeyed(self, old: str, new: str) -> None:
        """An operation goes on under another key."""
        _move(self.ready, old, new)
        _move(self.progress, old, new)
        _move(self.resend, old, new)

    def tidy(self, is_wanted: Callable[[str], bool]) -> None:
        for kept in (self.ready, self.progress, self.resend):
            for key in [key for key in kept if not is_wanted(key)]:
                del kept[key]


def _move(kept: dict[str, V], old: str, new: str) -> None:
    if old in kept:
        kept[new] = kept.pop(old)
