"""Spool files: the dirty bytes, one sparse file per layer.

Knows: where a layer's bytes are, and how to keep them through power loss. Must not know: what the
ranges mean (`layers`), which are valid (`contents`), when they must be safe (`unsynced`).

Concurrency: descriptors are kept open in a bounded cache. A descriptor in use by a worker
thread is counted by `lease` and closed only when the last lease ends; every other use is
synchronous on the trio thread, so the cache cannot change under it.

Invariants: a spool file is deleted only by `remove_all`, after the transaction that forgot its
layer is on the disk, or when no layer names it (a crash came between the two: `Contents.tidy`);
foreign files are left alone. Whoever reads asks for bytes that were written: a file that is missing
or too short is damage (`DamagedSpool`), never zeros.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import trio

from cache.files.unsynced import digest
from cache.metadata.durable import make_private, sync_directory
from cache.metadata.reserve import RESERVE_BYTES

OPEN_FILES = 128
# A pwrite this large is done in a worker thread: the hop costs about 60 µs, and a write that the
# kernel throttles must not hold up every other request.
THREADED_WRITE = 256 * 1024
_NUMBER = re.compile(r"[1-9][0-9]{0,14}")


class DamagedSpool(OSError):
    """Dirty bytes are not where they were put: somebody removed or cut a spool file."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, f"damaged state: {what}")


class Spool:
    def __init__(self, directory: Path, spare_bytes: int = RESERVE_BYTES) -> None:
        """Content leaves `spare_bytes` of the disk to the state database: were it filled to the
        last byte, nothing could be deleted, because a deletion is written to the journal first."""
        make_private(directory)
        self._spare = spare_bytes
        sync_directory(directory.parent)  # its name, without which none of its files is there
        self._directory, self._prefix = directory, f"{directory}{os.sep}"
        self._open: OrderedDict[int, int] = OrderedDict()
        self._leases: Counter[int] = Counter()
        self._written: Counter[int] = Counter()  # by layer: writes done, and how many of them
        self._synced: Counter[int] = Counter()  # survive power loss
        self._named: set[int] = set()  # files whose names do

    def _path(self, layer: int) -> str:
        return f"{self._prefix}{layer}.layer"

    def _fd(self, layer: int, *, make: bool = False) -> int:
        fd = self._open.get(layer)
        if fd is not None:
            self._open.move_to_end(layer)
            return fd
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        try:
            fd = os.open(self._path(layer), flags, 0o600)
        except FileNotFoundError as error:
            raise DamagedSpool(f"{self._path(layer)} is gone") from error
        self._close_excess()  # before: it must not be the one that goes if all others are leased
        self._open[layer] = fd
        return fd

    def _close_excess(self) -> None:
        """Make room for one more."""
        while len(self._open) >= OPEN_FILES:
            oldest = next((layer for layer in self._open if layer not in self._leases), None)
            if oldest is None:
                return
            os.close(self._open.pop(oldest))

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

    async def write(self, layer: int, offset: int, data: bytes | memoryview) -> bytes:
        """Write all of `data`; its digest. Raises OSError (ENOSPC, EDQUOT) with nothing believed
        written."""
        if len(data) < THREADED_WRITE:
            return self.write_now(layer, offset, data)
        _check_room(self._fd(layer, make=True), len(data) + self._spare)
        with self.lease(layer) as fd:
            told = await trio.to_thread.run_sync(_pwrite_all, fd, data, offset)
        self._written[layer] += 1  # only now: a sync that began before it may have missed it
        return told

    def write_now(self, layer: int, offset: int, data: bytes | memoryview) -> bytes:
        """`write` for little."""
        fd = self._fd(layer, make=True)
        _check_room(fd, len(data) + self._spare)
        told = _pwrite_all(fd, data, offset)
        self._written[layer] += 1
        return told

    def read_into(self, layer: int, offset: int, into: memoryview) -> None:
        """Fill `into` with bytes that were written. Raises `DamagedSpool`."""
        pread_all(self._fd(layer), offset, into)

    async def sync(self, *layers: int) -> None:
        """Return when the layers' bytes survive power loss."""
        written = {layer: self._count_written(layer) for layer in layers}
        written = {layer: upto for layer, upto in written.items() if self._synced[layer] < upto}
        if not written:
            return
        with contextlib.ExitStack() as leases:
            files = [(layer, leases.enter_context(self.lease(layer))) for layer in written]
            await trio.to_thread.run_sync(self._sync_files, files)
        for layer, upto in written.items():
            self._note_synced(layer, upto)

    def sync_now(self, layer: int) -> None:
        """`sync` for the end of the process, when nobody waits for the trio thread."""
        if self._synced[layer] < self._count_written(layer):
            self._sync_files([(layer, self._fd(layer))])
            self._note_synced(layer, self._written[layer])

    def _count_written(self, layer: int) -> int:
        """Take no bytes of an earlier process for synced."""
        if layer not in self._written and os.path.exists(self._path(layer)):
            self._written[layer] = 1
        return self._written[layer]

    def _note_synced(self, layer: int, upto: int) -> None:
        if layer in self._written:  # not removed meanwhile
            self._synced[layer] = max(self._synced[layer], upto)
            self._named.add(layer)

    def _sync_files(self, files: list[tuple[int, int]]) -> None:
        """Layers and their descriptors. The directory has the names of all of them."""
        for _, fd in files:
            os.fdatasync(fd)
        if not self._named.issuperset(layer for layer, _ in files):
            sync_directory(self._directory)

    async def remove_all(self, layers: Iterable[int]) -> None:
        """Delete the files of layers that nobody will ask for again."""
        paths = [self._forget(layer) for layer in layers]
        if paths:
            await trio.to_thread.run_sync(_unlink_all, paths)

    def _forget(self, layer: int) -> str:
        fd = self._open.pop(layer, None)
        if fd is not None and layer not in self._leases:
            os.close(fd)
        del self._written[layer], self._synced[layer]
        self._named.discard(layer)
        return self._path(layer)

    async def found(self) -> list[int]:
        """The layers that have a file here."""
        names = await trio.to_thread.run_sync(os.listdir, self._directory)
        parts = (name.partition(".") for name in names)
        return [int(stem) for stem, _, kind in parts if kind == "layer" and _NUMBER.fullmatch(stem)]

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def pread_all(fd: int, offset: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        got = os.preadv(fd, [into[done:]], offset + done)
        if got == 0:
            raise DamagedSpool(f"a spool file ends at {offset + done}")
        done += got


def _check_room(fd: int, wanted: int) -> None:
    disk = os.fstatvfs(fd)  # about 1 µs
    if disk.f_bavail * disk.f_frsize < wanted:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> bytes:
    view = memoryview(data)
    while view:
        wrote = os.pwrite(fd, view, offset)
        view, offset = view[wrote:], offset + wrote
    return digest(data)


def _unlink_all(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a layer that was never written has none
            os.unlink(path)
