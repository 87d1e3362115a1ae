"""Room on this machine's disk that is taken before it is needed, so that nobody else fills it.

Knows: fallocate(2). Must not know: what is written into the room.

Deleting is what makes room on a full disk, and a deletion is written to the journal first; a mount
that cannot start on a full disk cannot send, and so free, what fills it. Free space that is merely
left alone does not help when it is another program that fills the disk. So the journal's files have
blocks behind their ends (`hold`), and a file that is nothing but room (`Standing`) is there for the
next start.

Where the file system cannot do that (ZFS, or no Linux) nothing is held, and a full disk is an error
of every operation. Where it copies on write (btrfs), it keeps room of its own for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

# Of the log: what some hundreds of deletions take until the log begins anew.
RESERVE_BYTES = 8 << 20
# What a start writes besides: lines of its log, the index of the database's log.
START_BYTES = 1 << 20
_LEAST_BYTES = 1 << 18
# FALLOC_FL_KEEP_SIZE: as SQLite judges its log by its size.
_KEEP_SIZE = 1
_NOT_POSSIBLE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EINTR})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_libc = ctypes.CDLL(None, use_errno=True)


def hold(fd: int, start: int, length: int) -> int:
    """Take blocks for `length` bytes of a file from `start` on without making it longer; as many as
    there is room for. How many bytes were taken, 0 where that is not possible."""
    allocate = getattr(_libc, "fallocate", None)
    taken, piece = 0, length
    while allocate is not None and taken < length and piece >= _LEAST_BYTES:
        more = min(piece, length - taken)
        if allocate(fd, _KEEP_SIZE, ctypes.c_int64(start + taken), ctypes.c_int64(more)) == 0:
            taken += more
            continue
        code = ctypes.get_errno()
        if code in _NOT_POSSIBLE:
            break
        if code not in _NO_ROOM:
            raise OSError(code, os.strerror(code))
        piece //= 2
    return taken


class Standing:
    """A file `reserve` in a directory: empty, with blocks behind its end."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "reserve"

    def keep(self, length: int) -> None:
        """Have `length` bytes, or as many as there are."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        with contextlib.suppress(OSError):  # then there is less room when it is needed
            fd = os.open(self._path, flags, 0o600)
            try:
                hold(fd, 0, length)
            finally:
                os.close(fd)

    def release(self) -> bool:
        """Let whoever comes first have it. False: there was none."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True
