"""Which drives have no room for more, and when to try them again. Pure: time is an argument.

Knows: that a drive was full when it was last asked. Must not know: what is to be sent (`uploads`),
quotas, how waits grow (`retries`).

While a drive is full one upload at a time tries it, the smallest first: where that does not fit,
nothing does, and what fits does not wait behind what does not.

Concurrency: on the trio thread. `changed` is set, and replaced, whenever a drive becomes
full or has room again.
"""

from __future__ import annotations

from collections.abc import Set

import trio

from cache.sync.retries import Waits


class FullDrives:
    """Times are in seconds, of any clock that only goes forward."""

    def __init__(self) -> None:
        self._full = Waits()
        self.changed = trio.Event()

    @property
    def is_short(self) -> bool:
        """True if any drive is full."""
        return bool(len(self._full))

    @property
    def reason(self) -> str | None:
        """The server's words when there was no room; None while there is."""
        return self._full.reason

    def is_full(self, drive: str) -> bool:
        return drive in self._full

    def refused(self, drive: str, now: float, jitter: float, why: str = "") -> None:
        """There was no room; `jitter` in [0, 1)."""
        is_new = not self.is_full(drive)
        self._full.failed(drive, why, now, jitter)
        if is_new:
            self._tell()

    def fitted(self, drive: str) -> None:
        """Something was taken."""
        if self.is_full(drive):
            self._full.done(drive)
            self._tell()

    def only(self, drives: Set[str]) -> None:
        """Nothing is to be sent to any other drive: whether there is room shows when there is."""
        before = len(self._full)
        self._full.only(drives.__contains__)
        if len(self._full) < before:
            self._tell()

    def retry_now(self) -> None:
        self._full.retry_now()

    def may_try(self, drive: str, now: float) -> bool:
        return self._full.may_try(drive, now)

    def next_try(self, now: float) -> float | None:
        """When a full drive that may not be tried now may be."""
        return self._full.next_try(now)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
