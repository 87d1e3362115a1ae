"""Asynchronous reads and writes in the kernel, which no library of Python offers.

Knows: the system calls of libaio (linux/aio_abi.h) and io_uring (linux/io_uring.h), on the
architectures that the tests run on. Must not know: which file, and why.

Both classes do the same: `submit` begins one operation and may return before it is done, `wait`
returns when all are, and raises what the first that failed says. Buffers must be writable, aligned
where the file system asks for it, and are left alone until then.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

DEPTH = 64  # operations under way
_libc = ctypes.CDLL(None, use_errno=True)


class Asynchronous(Protocol):
    def submit(self, fd: int, buffer: memoryview, offset: int, *, write: bool) -> None: ...

    def wait(self) -> None: ...


def _call(number: int, *arguments: object) -> int:
    words = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _check(result: int, wanted: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    assert result == wanted, f"{result} of {wanted} bytes"


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


# libaio


class _Iocb(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("operation", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_fd", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("iocb", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


_READ, _WRITE = 0, 1  # IOCB_CMD_PREAD, IOCB_CMD_PWRITE
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = (
    (206, 207, 208, 209) if platform.machine() == "x86_64" else (0, 1, 4, 2)
)


class Libaio:
    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        _call(_SETUP, DEPTH, ctypes.byref(self._context))
        self._under_way: dict[int, _Iocb] = {}

    def close(self) -> None:
        _call(_DESTROY, self._context)

    def submit(self, fd: int, buffer: memoryview, offset: int, *, write: bool) -> None:
        one = _Iocb(
            operation=_WRITE if write else _READ,
            fd=fd,
            address=_address(buffer),
            length=len(buffer),
            offset=offset,
        )
        self._under_way[ctypes.addressof(one)] = one
        assert _call(_SUBMIT, self._context, 1, (ctypes.c_void_p * 1)(ctypes.addressof(one))) == 1

    def wait(self) -> None:
        while self._under_way:
            event = _Event()
            _call(_GETEVENTS, self._context, 1, 1, ctypes.byref(event), None)
            _check(event.result, self._under_way.pop(event.iocb).length)


# io_uring


class _Params(ctypes.Structure):
    _fields_ = (
        ("sq_entries", ctypes.c_uint32),
        ("cq_entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("others", ctypes.c_uint32 * 7),
        # head, tail, ring_mask, ring_entries, flags, dropped, array, reserved
        ("sq", ctypes.c_uint32 * 10),
        # head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved
        ("cq", ctypes.c_uint32 * 10),
    )


class _Entry(ctypes.Structure):
    _fields_ = (
        ("operation", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("priority", ctypes.c_uint16),
        ("fd", ctypes.c_int32),
        ("offset", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("data", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 3),
    )


class _Completion(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint64), ("result", ctypes.c_int32), ("flags", ctypes.c_uint32))


_URING_SETUP, _URING_ENTER = 425, 426
_RING_AT, _COMPLETIONS_AT, _ENTRIES_AT = 0, 0x8000000, 0x10000000
_GET_EVENTS = 1
_RING_READ, _RING_WRITE = 22, 23
_HEAD, _TAIL, _MASK, _COMPLETIONS, _ARRAY = 0, 1, 2, 5, 6


class Uring:
    """Raises PermissionError or ENOSYS where the machine does not allow it."""

    def __init__(self) -> None:
        self._params = _Params()
        self._ring = _call(_URING_SETUP, DEPTH, ctypes.byref(self._params))
        sq, cq = self._params.sq, self._params.cq
        entries = ctypes.sizeof(_Entry) * self._params.sq_entries
        self._sq = mmap.mmap(self._ring, sq[_ARRAY] + 4 * DEPTH, offset=_RING_AT)
        end = cq[_COMPLETIONS] + self._params.cq_entries * ctypes.sizeof(_Completion)
        self._cq = mmap.mmap(self._ring, end, offset=_COMPLETIONS_AT)
        self._entries = mmap.mmap(self._ring, entries, offset=_ENTRIES_AT)
        self._lengths: list[int] = []

    def close(self) -> None:
        os.close(self._ring)

    def submit(self, fd: int, buffer: memoryview, offset: int, *, write: bool) -> None:
        tail = ctypes.c_uint32.from_buffer(self._sq, self._params.sq[_TAIL])
        index = tail.value & (self._params.sq_entries - 1)
        entry = _Entry.from_buffer(self._entries, index * ctypes.sizeof(_Entry))
        ctypes.memset(ctypes.addressof(entry), 0, ctypes.sizeof(_Entry))
        entry.operation, entry.fd, entry.offset = _RING_WRITE if write else _RING_READ, fd, offset
        entry.address, entry.length, entry.data = _address(buffer), len(buffer), len(self._lengths)
        self._lengths.append(len(buffer))
        at = self._params.sq[_ARRAY] + 4 * index
        ctypes.c_uint32.from_buffer(self._sq, at).value = index
        tail.value += 1
        assert _call(_URING_ENTER, self._ring, 1, 0, 0, None, 0) == 1

    def wait(self) -> None:
        _call(_URING_ENTER, self._ring, 0, len(self._lengths), _GET_EVENTS, None, 0)
        head = ctypes.c_uint32.from_buffer(self._cq, self._params.cq[_HEAD])
        lengths, self._lengths = self._lengths, []
        for _ in lengths:
            index = head.value & (self._params.cq_entries - 1)
            at = self._params.cq[_COMPLETIONS] + index * ctypes.sizeof(_Completion)
            done = _Completion.from_buffer(self._cq, at)
            head.value += 1
            _check(done.result, lengths[done.data])


@contextmanager
def using(how: type[Libaio] | type[Uring]) -> Iterator[Asynchronous]:
    one = how()
    try:
        yield one
    finally:
        one.close()
