"""Open files and directories, by the number that the kernel was given.

Knows: what is remembered of an open one, and who has to be told when it is opened and closed. Must
not know: what is read, written or listed by it.

Concurrency: trio thread only.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache.blocks.reader import Prefetch
from cache.metadata.tree import ROOT
from mount.fuse.invalidator import LookupCounts
from mount.fuse.write_errors import WriteErrors
from mount.session.session import Session


@dataclass
class Handle:
    ino: int
    writable: bool = False
    fresh: bool = False  # was empty when it was opened: made by that, or truncated
    prefetch: Prefetch | None = None
    opener: int = 0  # the thread; pyfuse3 does not say who reads or syncs
    privileged: bool = False  # opened by root
    last: int = 0  # of a directory: the cookie at which this reading of it ends
    reached: int = 0  # of a directory: the position at which the last answer ended
    is_read: bool = False
    given_up: bool = False  # who waited for the server was told to end, and has had EINTR


class Handles:
    def __init__(self, session: Session, lookups: LookupCounts) -> None:
        self._session, self._lookups = session, lookups
        self._open: dict[int, Handle] = {}
        self._next = 1
        self.write_errors = WriteErrors()

    def __getitem__(self, fh: int) -> Handle:
        return self._open[fh]

    def opened(self, handle: Handle) -> int:
        number = self._next
        self._next += 1
        self._open[number] = handle
        self._lookups.opened(handle.ino, writable=handle.writable)
        if handle.writable:
            self.write_errors.opened(handle.ino, number)
        return number

    def closed(self, fh: int) -> None:
        handle = self._open.pop(fh)
        self.write_errors.released(handle.ino, fh)
        if handle.prefetch is not None:
            handle.prefetch.close()
        if handle.writable and self._session.replayer.snapshots.closed(handle.ino):
            self._session.replayer.wake()
        if self._lookups.closed(handle.ino, writable=handle.writable) and handle.ino != ROOT:
            self._session.collector.unused(handle.ino)
