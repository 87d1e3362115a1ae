"""Invalidating what the kernel knows of our inodes, and counting what it knows.

Knows: pyfuse3's invalidation calls and how they can block. Must not know: why something changed.

Concurrency: `forget_*` only queue, from the trio thread. One task hands the queue to one
worker thread at a time: the kernel may block an invalidation until a request on the same directory
has been answered, so it must never run on the thread that answers. No lock is held meanwhile.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable

import pyfuse3
import structlog
import trio

log = structlog.get_logger(__name__)


class LookupCounts:
    """Counts, for each inode, of the kernel's references to it and of the handles open on it."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._handles: Counter[int] = Counter()
        self._writers: Counter[int] = Counter()

    def looked_up(self, ino: int) -> None:
        self._counts[ino] += 1

    def forgotten(self, ino: int, times: int) -> bool:
        """True when nothing refers to the inode any more."""
        self._counts[ino] -= times
        if self._counts[ino] <= 0:
            del self._counts[ino]
        return not self.in_use(ino)

    def looks_up(self, ino: int) -> bool:
        """After `forgotten`: True if there is still an answer from which the kernel makes it
        anew."""
        return ino in self._counts

    def opened(self, ino: int, *, writable: bool = False) -> None:
        self._handles[ino] += 1
        if writable:
            self._writers[ino] += 1

    def closed(self, ino: int, *, writable: bool = False) -> bool:
        """True when nothing refers to the inode any more."""
        self._handles[ino] -= 1
        if self._handles[ino] <= 0:
            del self._handles[ino]
        if writable:
            self._writers[ino] -= 1
        if self._writers[ino] <= 0:
            del self._writers[ino]
        return not self.in_use(ino)

    def is_written(self, ino: int) -> bool:
        """True if somebody has opened it for writing."""
        return ino in self._writers  # never holds a zero

    def is_open(self, ino: int) -> bool:
        """True if somebody has a handle of it."""
        return ino in self._handles

    def in_use(self, ino: int) -> bool:
        return ino in self._counts or ino in self._handles


class KernelInvalidator:
    """Implements `cache.metadata.invalidation.Invalidator`."""

    def __init__(self, lookups: LookupCounts) -> None:
        self._lookups = lookups
        self._queue: list[Callable[[], None]] = []
        self._wake = trio.Event()

    def forget_entry(self, parent: int, name: str, gone: int = 0) -> None:
        """For what is `gone` the kernel takes the inode's lock as well, while it has the
        directory's. A writer can have that for as long as the network is waited for (fsync), and
        nobody could use the directory meanwhile: who watches a file that is being written is not
        told. What the kernel does not hold as a directory, it knows no name in."""
        if parent != pyfuse3.ROOT_INODE and not self._lookups.in_use(parent):
            return
        where, raw = pyfuse3.InodeT(parent), pyfuse3.FileNameT(name.encode())
        deleted = pyfuse3.InodeT(0 if self._lookups.is_written(gone) else gone)
        self._put(lambda: pyfuse3.invalidate_entry(where, raw, deleted))

    def forget_attributes(self, ino: int) -> None:
        self._put(lambda: pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True))

    def forget_content(self, ino: int) -> None:
        """May block the worker thread while the inode is being read: only for what may not be read
        any more."""
        self._put(lambda: pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=False))

    async def finish_queued(self) -> None:
        """Return when the kernel has been told everything that it was to be told until now."""
        finished = trio.Event()
        self._put(lambda: trio.from_thread.run_sync(finished.set))
        await finished.wait()

    def _put(self, job: Callable[[], None]) -> None:
        self._queue.append(job)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. A thread that the kernel still blocks is left to end by itself: the
        unmount that follows releases it."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            jobs, self._queue = self._queue, []
            await trio.to_thread.run_sync(_run_all, jobs, abandon_on_cancel=True)


def _run_all(jobs: list[Callable[[], None]]) -> None:
    for job in jobs:
        try:
            job()
        except OSError as error:
            # ENOENT: the kernel never knew it, or has forgotten it already.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
                log.warning("the_kernel_would_not_forget", why=str(error))
