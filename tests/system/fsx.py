"""Random operations on one file against a reference in memory, after fsx of Apple and XFS.

Knows: what a regular file holds after any sequence of calls. Must not know: Nearline itself; it
needs a `Places` to bring the file to the server, to the other device, through a remount. With
`OneFolder` it runs on any file system, which proves that what it expects is what Linux does.

`plan` is pure: the same seed and shape give the same operations for ever. `Run` does them, on the
mount and on a `bytearray`, and compares whatever is read. What is written is mostly stamped with
the number of the operation, so that a wrong byte tells who wrote it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.system.aio import Libaio, using

PAGE = mmap.PAGESIZE
PIECES = 8  # of what is written or read asynchronously
STAMP = 8  # bytes of "1234567|"
TAIL = 40  # operations shown when one finds a wrong byte
NOISE = random.Random(0).randbytes(1 << 20)


@dataclass(frozen=True)
class Shape:
    """A file of at most `limit` bytes, in operations of at most `most` bytes; `rare` is by how
    much the costly operations are rarer than in `COSTLY`, `often` what is otherwise than in
    `WEIGHTS`."""

    name: str
    limit: int
    most: int
    rare: float = 1.0
    often: Mapping[str, float] = field(default_factory=dict)


DIRECTLY = {"direct_write": 15.0, "direct_read": 10.0, "async_write": 30.0, "async_read": 10.0}
SHAPES = (
    Shape("small", 200_000, 40_000),
    Shape("blocks", 3 << 20, 400_000),
    Shape("chunks", 16 << 20, 1 << 20, 3.0),
    Shape("direct", 1 << 20, 200_000, 2.0, DIRECTLY),
)

WEIGHTS = {
    "write": 40.0,
    "read": 40.0,
    "append": 4.0,
    "shrink": 3.0,
    "grow": 3.0,
    "punch": 2.0,
    "far": 1.0,
    "store": 6.0,  # through a mapping
    "load": 5.0,
    "direct_write": 3.0,
    "direct_read": 3.0,
    "async_write": 2.0,  # direct, and read through the page cache meanwhile
    "async_read": 1.0,
    "sendfile": 2.0,
    "splice": 2.0,
    "splice_in": 1.0,
    "copy": 2.0,
    "allocate": 0.5,
    "empty": 0.2,
    "fsync": 1.0,
    "drop_pages": 3.0,
    "reopen": 3.0,
    "compare": 1.0,
}
GROWING = (
    "write",
    "append",
    "far",
    "grow",
    "direct_write",
    "async_write",
    "allocate",
    "splice_in",
)
COSTLY = {"flush": 0.3, "clear": 0.3, "move": 0.15, "remount": 0.01}


class Op(NamedTuple):
    """Operation `number` at [offset, offset+length); `choice` is for what else is to be chosen."""

    number: int
    kind: str
    offset: int
    length: int
    choice: int


def plan(seed: int, shape: Shape, count: int) -> Iterator[Op]:
    """`count` operations that are possible in this order; more begin with the same ones."""
    chance, size = random.Random(f"{shape.name} {seed}"), 0
    costly = {kind: weight / shape.rare for kind, weight in COSTLY.items()}
    weights = WEIGHTS | costly | shape.often
    kinds, each = list(weights), list(weights.values())
    for number in range(count):
        kind = chance.choices(kinds, each)[0]
        offset, length = _range(chance, kind, size, shape)
        size = _size_after(kind, offset, length, size)
        yield Op(number, kind, offset, length, chance.getrandbits(30))


def _range(chance: random.Random, kind: str, size: int, shape: Shape) -> tuple[int, int]:
    length = min(shape.most, 1 + int(chance.lognormvariate(8.5, 2)))
    if chance.random() < 0.3:  # whole pages, as programs like them
        length = min(shape.most, -(-length // PAGE) * PAGE)
    offset = chance.randrange(size + 1)
    if chance.random() < 0.3:
        offset -= offset % PAGE
    if kind in ("append", "grow"):
        offset = size
    elif kind == "far":
        offset = chance.randrange(shape.limit)
    elif kind.startswith(("direct", "async")):
        offset, length = offset - offset % PAGE, -(-length // PAGE) * PAGE
    elif kind == "shrink" and chance.random() < 0.7:
        offset = max(offset, chance.randrange(size + 1))
    if kind in ("read", "sendfile", "splice", "load", "store", "copy", "punch"):
        return offset, min(length, size - offset)
    return offset, max(0, min(length, shape.limit - offset))


def _size_after(kind: str, offset: int, length: int, size: int) -> int:
    if kind in ("shrink", "empty"):
        return offset if kind == "shrink" else 0
    if kind in GROWING:
        return max(size, offset + length) if length else size
    return size


class Places(Protocol):
    """Where the file is. The file is closed when these are called, except at `flush`."""

    def path(self) -> Path: ...

    def flush(self) -> None:
        """Returns when the server has it as it is."""

    def clear(self) -> None:
        """Forget every clean block of it on this device."""

    def remount(self) -> None: ...

    def move(self, content: bytes | bytearray) -> None:
        """Wait until the other device shows `content`, and go on there."""


@dataclass
class OneFolder:
    """A folder without a server."""

    folder: Path

    def path(self) -> Path:
        return self.folder / "fsx"

    def flush(self) -> None: ...

    def clear(self) -> None: ...

    def remount(self) -> None: ...

    def move(self, content: bytes | bytearray) -> None: ...


class Wrong(AssertionError):
    """A byte that is not what was written last."""


class Run:
    """One walk over one file."""

    def __init__(self, places: Places, seed: int, shape: Shape, count: int) -> None:
        self._places, self._seed, self._shape, self._count = places, seed, shape, count
        self._bytes = bytearray()
        self._done: deque[Op] = deque(maxlen=2000)
        self._fds: list[int] = []
        self._mapping: mmap.mmap | None = None
        self._direct = mmap.mmap(-1, shape.most + PAGE)  # aligned
        self._ending = ExitStack()
        self._aio = self._ending.enter_context(using(Libaio))
        self._pipe = os.pipe()
        fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, 1 << 16)

    def go(self) -> None:
        """Do it all. Raises `Wrong`."""
        descriptor = os.open(self._places.path(), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.close(descriptor)
        self._open()
        try:
            for op in plan(self._seed, self._shape, self._count):
                self._done.append(op)
                self._do(op)
            self._compare()
            self._close()
            self._places.flush()
            self._places.move(self._bytes)
        finally:
            self._close()
            self._ending.close()
            for end in self._pipe:
                os.close(end)

    def _do(self, op: Op) -> None:
        step: Callable[[Op], None] = getattr(self, f"_do_{op.kind}")
        try:
            step(op)
        except OSError as error:
            raise self._wrong(op.offset, f"{op.kind} failed: {error}") from error

    # --- the file ---------------------------------------------------------------------------------

    def _open(self) -> None:
        path = self._places.path()
        flags = (os.O_RDWR, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_DIRECT)
        self._fds = [os.open(path, item) for item in flags]
        if self._bytes:
            self._mapping = mmap.mmap(self._fds[0], len(self._bytes))

    def _close(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        while self._fds:
            os.close(self._fds.pop())

    def _fd(self, op: Op) -> int:
        return self._fds[op.choice & 1]

    def _data(self, op: Op) -> bytes:
        """Stamps that lie the same way wherever the operation is; noise now and then, so that
        chunks differ."""
        if op.choice % 5 == 0:
            return (NOISE * 2)[op.choice % len(NOISE) :][: op.length]
        stamps = b"%07d|" % (op.number % 10_000_000) * (op.length // STAMP + 2)
        return stamps[op.offset % STAMP :][: op.length]

    def _put(self, offset: int, data: bytes) -> None:
        self._extend(offset)
        self._bytes[offset : offset + len(data)] = data

    def _extend(self, size: int) -> None:
        if size > len(self._bytes):
            self._bytes.extend(bytes(size - len(self._bytes)))

    def _check(self, offset: int, got: bytes | memoryview, length: int) -> None:
        want = memoryview(self._bytes)[offset : offset + length]
        same = want == got
        want.release()
        if not same:
            raise self._difference(offset, bytes(got), bytes(self._bytes[offset : offset + length]))

    def _difference(self, offset: int, got: bytes, want: bytes) -> Wrong:
        pairs = enumerate(zip(got, want, strict=False))
        at = next((index for index, (a, b) in pairs if a != b), min(len(got), len(want)))
        near = slice(max(0, at - 16), at + 48)
        what = f"{len(got)} bytes of {len(want)}\n  got  {got[near]!r}\n  want {want[near]!r}"
        return self._wrong(offset + at, f"byte {offset + at} is wrong, {what}")

    def _wrong(self, at: int, what: str) -> Wrong:
        """A difference at `at`, with the operations that touched the place or touch every place."""
        op = self._done[-1]
        places = {"flush", "clear", "move", "remount", "reopen", "drop_pages", "fsync", "empty"}
        near = [
            item
            for item in self._done
            if item.kind in places
            or item.offset - PAGE <= at < item.offset + item.length + PAGE
            or (item.kind == "shrink" and item.offset <= at)
        ]
        shown = "\n".join(f"  {item}" for item in near[-TAIL:])
        where = f"seed {self._seed}, shape {self._shape.name}, operation {op.number}"
        return Wrong(f"{what}\n{where}, size {len(self._bytes)}\n{shown}")

    # --- writing ----------------------------------------------------------------------------------

    def _do_write(self, op: Op) -> None:
        self._write(self._fd(op), op)

    _do_far = _do_write

    def _write(self, fd: int, op: Op) -> None:
        data = self._data(op)
        if data:
            self._whole(len(data), os.pwrite(fd, data, op.offset))
            self._put(op.offset, data)

    def _whole(self, length: int, written: int) -> None:
        if written != length:
            op = self._done[-1]
            raise self._wrong(op.offset, f"only {written} of {length} bytes were written")

    def _do_append(self, op: Op) -> None:
        data = self._data(op)
        self._whole(len(data), os.write(self._fds[2], data))
        self._put(op.offset, data)

    def _do_direct_write(self, op: Op) -> None:
        self._write_directly(op, self._at_once)

    def _at_once(self, whole: memoryview, offset: int) -> None:
        self._whole(len(whole), os.pwritev(self._fds[3], [whole], offset))

    def _do_async_write(self, op: Op) -> None:
        """In several pieces, while somebody else reads: no page that they have filled with what was
        there before may stay."""
        with self._read_meanwhile(op):
            self._write_directly(op, self._under_way)
        self._check(op.offset, os.pread(self._fd(op), op.length, op.offset), op.length)

    def _under_way(self, whole: memoryview, offset: int) -> None:
        self._submit(whole, offset, write=True)

    def _submit(self, whole: memoryview, offset: int, *, write: bool) -> None:
        piece = -(-len(whole) // PIECES // PAGE) * PAGE
        for at in range(0, len(whole), piece):
            self._aio.submit(self._fds[3], whole[at : at + piece], offset + at, write=write)
        self._aio.wait()

    def _write_directly(self, op: Op, write: Callable[[memoryview, int], None]) -> None:
        """Whole pages directly, what is left over through the page cache."""
        data = self._data(op)
        whole = len(data) // PAGE * PAGE
        self._direct[:whole] = data[:whole]
        if whole:
            write(memoryview(self._direct)[:whole], op.offset)
        if data[whole:]:
            self._whole(len(data) - whole, os.pwrite(self._fds[0], data[whole:], op.offset + whole))
        if data:
            self._put(op.offset, data)

    @contextmanager
    def _read_meanwhile(self, op: Op) -> Iterator[None]:
        """Through the page cache, page by page, from the end: the last is written last."""
        ended = threading.Event()

        def read() -> None:
            pages = range(op.offset + op.length - PAGE, op.offset - PAGE, -PAGE)
            while not ended.is_set():
                for at in pages:
                    os.pread(self._fds[0], PAGE, max(0, at))

        reading = threading.Thread(target=read)
        reading.start()
        try:
            yield
        finally:
            ended.set()
            reading.join()

    def _do_store(self, op: Op) -> None:
        """Half through a mapping of its own, half through the one that is always there."""
        data = self._data(op)
        if not data:
            return
        standing = self._mapping
        if op.choice & 2 and standing is not None and op.offset + op.length <= len(standing):
            standing[op.offset : op.offset + op.length] = data
            if not op.choice & 28:
                standing.flush()
        else:
            start = op.offset - op.offset % mmap.ALLOCATIONGRANULARITY
            at = op.offset - start
            with mmap.mmap(self._fds[0], at + op.length, offset=start) as view:
                view[at : at + op.length] = data
                if not op.choice & 28:
                    view.flush()
        self._put(op.offset, data)

    def _do_splice_in(self, op: Op) -> None:
        data = self._data(op)
        for at in range(0, len(data), 1 << 15):
            piece = data[at : at + (1 << 15)]
            os.write(self._pipe[1], piece)
            left = len(piece)
            while left:
                where = op.offset + at + len(piece) - left
                left -= os.splice(self._pipe[0], self._fds[0], left, offset_dst=where)
        if data:
            self._put(op.offset, data)

    def _do_copy(self, op: Op) -> None:
        """A range of the file to another place in it."""
        to = op.choice % (len(self._bytes) - op.length + 1)
        if abs(to - op.offset) < op.length or not op.length:
            return  # overlapping: EINVAL
        done = 0
        while done < op.length:
            got = os.copy_file_range(
                self._fds[0], self._fds[1], op.length - done, op.offset + done, to + done
            )
            if not got:
                raise self._wrong(op.offset + done, "copy_file_range copies nothing more")
            done += got
        self._put(to, bytes(self._bytes[op.offset : op.offset + op.length]))

    def _do_allocate(self, op: Op) -> None:
        if op.length:
            os.posix_fallocate(self._fds[0], op.offset, op.length)
            self._extend(op.offset + op.length)

    # --- the size ---------------------------------------------------------------------------------

    def _do_shrink(self, op: Op) -> None:
        self._truncate(op.offset, op)

    def _do_grow(self, op: Op) -> None:
        self._truncate(op.offset + op.length, op)

    def _do_punch(self, op: Op) -> None:
        """Down and up again: what was beyond reads as zeros."""
        size = len(self._bytes)
        self._truncate(op.offset, op)
        self._truncate(size, op)

    def _truncate(self, size: int, op: Op) -> None:
        if op.choice & 2:
            os.ftruncate(self._fd(op), size)
        else:
            os.truncate(self._places.path(), size)
        del self._bytes[size:]
        self._extend(size)

    def _do_empty(self, op: Op) -> None:
        os.close(os.open(self._places.path(), os.O_WRONLY | os.O_TRUNC))
        self._bytes.clear()

    # --- reading ----------------------------------------------------------------------------------

    def _do_read(self, op: Op) -> None:
        self._check(op.offset, os.pread(self._fd(op), op.length, op.offset), op.length)

    def _do_direct_read(self, op: Op) -> None:
        whole = memoryview(self._direct)[: min(op.length, len(self._direct)) // PAGE * PAGE]
        if whole:
            got = os.preadv(self._fds[3], [whole], op.offset)
            self._check(op.offset, whole[:got], len(whole))

    def _do_async_read(self, op: Op) -> None:
        whole = memoryview(self._direct)[: min(op.length, len(self._bytes) - op.offset)]
        whole = whole[: len(whole) // PAGE * PAGE]  # the end is for `direct_read`
        if whole:
            self._submit(whole, op.offset, write=False)
            self._check(op.offset, whole, len(whole))

    def _do_load(self, op: Op) -> None:
        standing = self._mapping
        if op.choice & 2 and standing is not None and op.offset + op.length <= len(standing):
            self._check(op.offset, standing[op.offset : op.offset + op.length], op.length)
        elif op.length:
            start = op.offset - op.offset % mmap.ALLOCATIONGRANULARITY
            at = op.offset - start
            with mmap.mmap(self._fds[0], at + op.length, offset=start, prot=mmap.PROT_READ) as view:
                self._check(op.offset, view[at:], op.length)

    def _do_sendfile(self, op: Op) -> None:
        with tempfile.TemporaryFile() as other:
            done = 0
            while done < op.length:
                got = os.sendfile(other.fileno(), self._fd(op), op.offset + done, op.length - done)
                if not got:
                    break
                done += got
            self._check(op.offset, os.pread(other.fileno(), op.length, 0), op.length)

    def _do_splice(self, op: Op) -> None:
        got = bytearray()
        while len(got) < op.length:
            want = min(op.length - len(got), 1 << 15)
            moved = os.splice(self._fd(op), self._pipe[1], want, offset_src=op.offset + len(got))
            if not moved:
                break
            got += os.read(self._pipe[0], moved)
        self._check(op.offset, bytes(got), op.length)

    def _do_compare(self, op: Op) -> None:
        self._compare()

    def _compare(self) -> None:
        size = os.fstat(self._fds[0]).st_size
        if size != len(self._bytes):
            raise self._wrong(size, f"the size is {size}, not {len(self._bytes)}")
        for start in range(0, size + 1, 1 << 20):
            self._check(start, os.pread(self._fds[0], 1 << 20, start), 1 << 20)

    # --- where the bytes are ----------------------------------------------------------------------

    def _do_fsync(self, op: Op) -> None:
        os.fsync(self._fd(op))

    def _do_drop_pages(self, op: Op) -> None:
        if not op.choice & 6:
            os.fdatasync(self._fds[0])  # dirty pages stay
        os.posix_fadvise(self._fds[0], 0, 0, os.POSIX_FADV_DONTNEED)

    def _do_reopen(self, op: Op) -> None:
        self._close()
        self._open()

    def _do_flush(self, op: Op) -> None:
        if op.choice & 2:
            self._close()
        self._places.flush()
        if op.choice & 2:
            self._open()

    def _do_clear(self, op: Op) -> None:
        """The next read is a cold one."""
        self._do_flush(op)
        self._places.clear()
        self._do_drop_pages(op)
        if op.choice & 8:
            self._compare()

    def _do_move(self, op: Op) -> None:
        self._close()
        self._places.flush()
        self._places.move(self._bytes)
        self._open()

    def _do_remount(self, op: Op) -> None:
        self._close()
        self._places.remount()
        self._open()


def fallocate_answer(path: Path) -> int:
    """The errno of fallocate(2), which glibc hides in posix_fallocate."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDWR)
    try:
        done = libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(1 << 20))
        return 0 if done == 0 else ctypes.get_errno() or errno.EIO
    finally:
        os.close(descriptor)
