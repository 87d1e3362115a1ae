"""Spool files: the dirty bytes, one sparse file per layer.

Knows: where a layer's bytes are, and how to keep them through power loss. Must not know: what the
ranges mean (`layers`), which are valid (`contents`).

Concurrency contract: descriptors are kept open in a bounded cache. A descriptor in use by a worker
thread is counted by `lease` and closed only when the last lease ends; every other use is
synchronous on the trio thread, so the cache cannot change under it.

Invariant: a spool file is deleted only by `remove`, after the transaction that forgot its layer has
committed, or by `sweep` at start, which deletes files that no layer names (left by a crash between
the two); foreign files are left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Set
from pathlib import Path

import trio

OPEN_FILES = 128
# A pwrite this large is done in a worker thread: the hop costs about 60 µs, and a write that the
# kernel throttles must not hold up every other request.
THREADED_WRITE = 256 * 1024
# Left to the state database beside the spool: were the disk filled to the last byte with content,
# nothing could be deleted any more, because a deletion is written to the journal first.
RESERVE_BYTES = 8 << 20


class Spool:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._open: OrderedDict[int, int] = OrderedDict()
        self._leases: Counter[int] = Counter()
        self._written: Counter[int] = Counter()  # by layer: writes done, and how many of them
        self._synced: Counter[int] = Counter()  # survive power loss

    def _path(self, layer: int) -> Path:
        return self._directory / f"{layer}.layer"

    def _fd(self, layer: int) -> int:
        fd = self._open.get(layer)
        if fd is not None:
            self._open.move_to_end(layer)
            return fd
        fd = os.open(self._path(layer), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._open[layer] = fd
        self._close_excess()
        return fd

    def _close_excess(self) -> None:
        excess = len(self._open) - OPEN_FILES
        for layer in [one for one in self._open if not self._leases[one]][: max(0, excess)]:
            os.close(self._open.pop(layer))

    @contextlib.contextmanager
    def lease(self, layer: int) -> Iterator[int]:
        """The descriptor, safe to use across an await or in a worker thread."""
        fd = self._fd(layer)
        self._leases[layer] += 1
        try:
            yield fd
        finally:
            self._leases[layer] -= 1
            if not self._leases[layer]:
                del self._leases[layer]
                if layer not in self._open:  # removed meanwhile
                    os.close(fd)

    async def write(self, layer: int, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`. Raises OSError (ENOSPC, EDQUOT) with nothing believed written."""
        _check_room(self._fd(layer), len(data))
        if len(data) < THREADED_WRITE:
            _pwrite_all(self._fd(layer), data, offset)
        else:
            with self.lease(layer) as fd:
                await trio.to_thread.run_sync(_pwrite_all, fd, data, offset)
        self._written[layer] += 1  # only now: a sync that began before it may have missed it

    def read_into(self, layer: int, offset: int, into: memoryview) -> None:
        """Fill `into`; bytes beyond the end of the spool file are zeros."""
        pread_all(self._fd(layer), offset, into)

    async def sync(self, layer: int) -> None:
        """Return when the layer's bytes survive power loss."""
        upto = self._written[layer]
        if self._synced[layer] >= upto:
            return
        with self.lease(layer) as fd:
            await trio.to_thread.run_sync(_sync_file, fd, self._directory)
        if layer in self._written:
            self._synced[layer] = max(self._synced[layer], upto)

    def remove(self, layer: int) -> None:
        fd = self._open.pop(layer, None)
        if fd is not None and not self._leases[layer]:
            os.close(fd)
        del self._written[layer], self._synced[layer]
        with contextlib.suppress(FileNotFoundError):  # a layer that was never written has none
            os.unlink(self._path(layer))

    def sweep(self, known: Set[int]) -> None:
        """At start: delete files that no layer names, and take nothing of the others for synced."""
        self._written.update(known)
        for path in self._directory.glob("*.layer"):
            if path.stem.isdigit() and int(path.stem) not in known:
                path.unlink()

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def pread_all(fd: int, offset: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        got = os.preadv(fd, [into[done:]], offset + done)
        if got == 0:
            into[done:] = bytes(len(into) - done)
            return
        done += got


def _check_room(fd: int, length: int) -> None:
    disk = os.fstatvfs(fd)  # about 1 µs
    if disk.f_bavail * disk.f_frsize < length + RESERVE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        wrote = os.pwrite(fd, view, offset)
        view, offset = view[wrote:], offset + wrote


def _sync_file(fd: int, directory: Path) -> None:
    os.fdatasync(fd)
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)  # the file's own name
    finally:
        os.close(parent)
