"""The locks of a data directory: DATA/gc.lock of those who delete objects, DATA/lock of the server.

Knows: flock(2). Must not know: what its holders do.

A collector holds the lock alone; whoever must find every object that the database speaks of (a
backup, fsck) shares it with others of that kind. The lock goes with the process that held it. It is
advisory and for one machine, as SQLite is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Collecting(RuntimeError):
    """Somebody else collects garbage, or a backup or fsck keeps it from being collected."""


class Served(RuntimeError):
    """A server runs on this data."""


@contextlib.contextmanager
def collecting(data_dir: Path) -> Iterator[None]:
    """Be the only one that deletes objects. Raises `Collecting` when that cannot be had at once."""
    with _opened(data_dir) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Collecting(
                "a garbage collection, a backup or fsck is at work on this data;"
                " try again when it has ended"
            ) from None
        yield


@contextlib.contextmanager
def keeping(data_dir: Path) -> Iterator[None]:
    """Nothing is collected meanwhile. Waits for a collection that is at work."""
    with _opened(data_dir) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def unserved(data_dir: Path) -> Iterator[None]:
    """No server can start on this data meanwhile (`main` takes the same lock). Raises `Served` if
    one runs."""
    with _opened(data_dir, "lock") as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Served(f"a server is running on {data_dir}; stop it first") from None
        yield


@contextlib.contextmanager
def _opened(data_dir: Path, name: str = "gc.lock") -> Iterator[int]:
    fd = _open(data_dir, name)
    try:
        yield fd
    finally:
        os.close(fd)


def _open(data_dir: Path, name: str) -> int:
    """Root's command may make the file, and the server must be able to open it. What is there may
    have been put there by the user that the server runs as: root follows no link of theirs, and
    gives them nothing but what it has made."""
    path, flags = data_dir / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == 0:
        owner = data_dir.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd
