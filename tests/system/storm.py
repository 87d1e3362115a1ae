"""Threads of processes that do everything at once in the same few directories of a mount.

    python -m tests.system.storm MOUNTPOINT SEED PROCESSES THREADS OPERATIONS

Knows: system calls, and with which errnos each may fail when others change the same names. Must not
know: the mount. It prints one line for every answer that is not allowed, and at the end how often
each operation was done and how often it failed.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

DIRECTORIES = ("one", "two", "one/in")
NAMES = 12
# What was there a moment ago, or the directory above it. ESTALE is the kernel's own:
# a directory that the other device has moved is found under its new name while a rename is under
# way, and the kernel, which knows it under the old one, cannot lock both (`__d_unalias`).
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
KIND = {errno.EISDIR, errno.EEXIST}  # something else has the name now
# rename and rmdir meet whatever has come in between; a path can lead back into what it moves.
ALLOWED: dict[str, set[int]] = {
    "write": GONE | KIND | {errno.ELOOP},
    "exclusive": GONE | KIND,
    "read": GONE | KIND | {errno.ELOOP},
    "append": GONE | KIND | {errno.ELOOP},
    "rename": GONE | KIND | {errno.ENOTEMPTY, errno.EINVAL, errno.EBUSY},
    "backup": GONE | KIND | {errno.ENOTEMPTY, errno.EINVAL, errno.EBUSY, errno.ELOOP, errno.EPERM},
    "link": GONE | KIND | {errno.EPERM},
    "symlink": GONE | KIND,
    "unlink": GONE | KIND | {errno.EPERM},
    "mkdir": GONE | KIND,
    "rmdir": GONE | {errno.ENOTEMPTY},
    "list": GONE,
    "stat": GONE,
    "truncate": GONE | KIND | {errno.ELOOP, errno.EINVAL},
    "xattr": GONE | {errno.ENODATA, errno.EPERM},  # EPERM: of a symbolic link
    "mapped": GONE,
    "sync": GONE | KIND | {errno.ELOOP},
    "locked": GONE | KIND | {errno.ELOOP, errno.EWOULDBLOCK},
}


class Worker:
    def __init__(self, at: Path, seed: str) -> None:
        self._at, self._random = at, random.Random(seed)
        self.done: Counter[str] = Counter()

    def path(self) -> str:
        name = f"n{self._random.randrange(NAMES)}"
        name += self._random.choice(("", "", "", "", "", "", "", "~"))  # some are backups
        return f"{self._at}/{self._random.choice(DIRECTORIES)}/{name}"

    def open(self, flags: int, path: str | None = None) -> int:
        return os.open(path or self.path(), flags | os.O_NOFOLLOW, 0o644)

    def data(self) -> bytes:
        return bytes([self._random.randrange(256)]) * self._random.choice((1, 100, 5000, 70_000))

    def write(self) -> None:
        self.with_file(os.O_WRONLY | os.O_CREAT | os.O_TRUNC, lambda fd: os.write(fd, self.data()))

    def exclusive(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self.with_file(flags, lambda fd: os.write(fd, self.data()))

    def read(self) -> None:
        self.with_file(os.O_RDONLY, lambda fd: os.read(fd, 100_000))

    def append(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.with_file(flags, lambda fd: os.write(fd, self.data()))

    def rename(self) -> None:
        os.rename(self.path(), self.path())

    def backup(self) -> None:
        """As editors save that keep the old version: see `tests.model.people.save_with_backup`."""
        path, way = self.path(), self._random.choice(("create", "rename", "link"))
        made = path if way == "create" else f"{path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        if way != "create":
            self.with_file(flags, lambda fd: os.write(fd, self.data()), made)
        if way == "link":
            os.link(path, f"{path}~", follow_symlinks=False)
        else:
            os.rename(path, f"{path}~")
        if way == "create":
            self.with_file(flags, lambda fd: os.write(fd, self.data()), made)
        else:
            os.rename(made, path)

    def link(self) -> None:
        os.link(self.path(), self.path(), follow_symlinks=False)

    def symlink(self) -> None:
        os.symlink("n0", self.path())

    def unlink(self) -> None:
        os.unlink(self.path())

    def mkdir(self) -> None:
        os.mkdir(self.path())

    def rmdir(self) -> None:
        os.rmdir(self.path())

    def list(self) -> None:
        os.listdir(f"{self._at}/{self._random.choice(DIRECTORIES)}")

    def stat(self) -> None:
        os.lstat(self.path())

    def truncate(self) -> None:
        size = self._random.choice((0, 10, 6000))
        self.with_file(os.O_WRONLY, lambda fd: os.ftruncate(fd, size))

    def xattr(self) -> None:
        path = self.path()
        os.setxattr(path, "user.storm", self.data()[:100], follow_symlinks=False)
        os.removexattr(path, "user.storm", follow_symlinks=False)

    def mapped(self) -> None:
        """In a file of this thread's own: a page that another one cuts off is a SIGBUS."""
        own = f"{self._at}/one/own-{os.getpid()}-{threading.get_native_id()}"
        fd = os.open(own, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, 8192)
            with mmap.mmap(fd, 8192) as memory:
                memory[5000:5005] = b"bytes"
                memory.flush()
            os.unlink(own)
        finally:
            os.close(fd)

    def sync(self) -> None:
        def both(fd: int) -> None:
            os.write(fd, self.data())
            os.fsync(fd)

        self.with_file(os.O_WRONLY | os.O_CREAT, both)

    def locked(self) -> None:
        def hold(fd: int) -> None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, b"mine")
            fcntl.flock(fd, fcntl.LOCK_UN)

        self.with_file(os.O_WRONLY | os.O_CREAT, hold)

    def with_file(self, flags: int, then: Callable[[int], object], path: str | None = None) -> None:
        fd = self.open(flags, path)
        try:
            then(fd)
        finally:
            os.close(fd)

    def work(self, operations: int) -> None:
        for _ in range(operations):
            name = self._random.choice(list(ALLOWED))
            self.done[name] += 1
            try:
                getattr(self, name)()
            except OSError as error:
                self.done[f"{name}-failed"] += 1
                if error.errno not in ALLOWED[name]:
                    say(f"unexpected: {name}: {error}")


def say(line: str) -> None:
    """In one piece, whoever else is speaking."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def process(at: Path, seed: str, threads: int, operations: int) -> None:
    workers = [Worker(at, f"{seed}-{number}") for number in range(threads)]
    running = [threading.Thread(target=item.work, args=[operations]) for item in workers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    done = sum((item.done for item in workers), Counter())
    say(" ".join(f"{name}={number}" for name, number in sorted(done.items())))


def main(at: str, seed: str, processes: str, threads: str, operations: str) -> None:
    for number in range(int(processes)):
        if not os.fork():
            process(Path(at), f"{seed}-{number}", int(threads), int(operations))
            os._exit(0)
    for _ in range(int(processes)):
        if os.wait()[1]:
            say("unexpected: a process died")


if __name__ == "__main__":
    main(*sys.argv[1:])
