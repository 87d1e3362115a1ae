"""Somebody who works in a folder, at random, and writes down what they did.

Knows: what programs do with files, in the system calls they do it with. Must not know: what is
below the folder, what may be lost (`ledger`).

Every call is written down before it is made, with the position of the record then, and again when
it has returned. A file is closed after each change, which makes the kernel hand over what was
written; one is kept open, as a log is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.power.ledger import Act, Ledger, Names, stamped

DIRECTORIES = ("", "d", "d/e", "f")
LETTERS = "abcxyz"
SIZES = (1, 100, 4096, 5000, 12_288, 40_000, 300_000)
MODES = (0o600, 0o640, 0o644, 0o755)


class Person:
    """Works in `at`. `position` tells how far the record is."""

    def __init__(self, at: Path, position: Callable[[], int], random: Random) -> None:
        self.at, self._position, self._random = at, position, random
        self.ledger = Ledger()
        self._files = 0
        self._writes = 0
        self._log = -1

    @property
    def _now(self) -> Names:
        return self.ledger.now

    def work(self, times: int) -> None:
        for _ in range(times):
            habits = self._random.choices(tuple(HABITS), tuple(HABITS.values()))
            habits[0](self)

    def rest(self) -> None:
        """Nothing is open any more: the folder can be unmounted."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _do(self, act: Act, call: Callable[[], object]) -> None:
        done = self.ledger.begin(act, self._position())
        call()
        done.end = self._position()

    # --- what is there ----------------------------------------------------------------------------

    def _pick(self, *, directory: bool = False) -> str | None:
        """Anything but the log: what is written into an open file stays in the kernel for a while,
        which truncates and renames without it."""
        found = [
            path
            for path, one in sorted(self._now.items())
            if (one.file == 0) is directory and path != "log"
        ]
        return self._random.choice(found) if found else None

    def _free(self) -> str | None:
        """A name that nothing has, in a directory that is there."""
        above = [path for path in DIRECTORIES if not path or path in self._now]
        directory = self._random.choice(above)
        name = f"{directory}/{self._random.choice(LETTERS)}".lstrip("/")
        return None if name in self._now else name

    def _opened(self, path: str, flags: int) -> int:
        return os.open(self.at / path, flags | os.O_CLOEXEC)

    # --- system calls -----------------------------------------------------------------------------

    def _create(self, path: str) -> int:
        """A new empty file; its number."""
        self._files += 1
        mode = self._random.choice(MODES)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL

        def call() -> None:
            os.close(os.open(self.at / path, flags, mode))

        self._do(Act("create", path, self._files, mode=mode), call)
        return self._files

    def _write(self, path: str, offset: int, length: int, descriptor: int = -1) -> None:
        self._writes += 1
        file = self._now[path].file
        data = stamped(file, self._writes, offset, length)

        def call() -> None:
            opened = self._opened(path, os.O_WRONLY) if descriptor < 0 else descriptor
            assert os.pwrite(opened, data, offset) == length
            if descriptor < 0:
                os.close(opened)

        self._do(Act("write", path, file, offset=offset, data=data), call)

    def _fsync(self, path: str) -> None:
        def call() -> None:
            opened = self._opened(path, os.O_RDONLY)
            os.fsync(opened)
            os.close(opened)

        self._do(Act("fsync", path, self._now[path].file), call)

    def _fsync_directory(self, path: str) -> None:
        def call() -> None:
            opened = self._opened(path, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(opened)
            os.close(opened)

        self._do(Act("fsyncdir", path), call)

    def _truncate(self, path: str, size: int) -> None:
        act = Act("truncate", path, self._now[path].file, size=size)
        self._do(act, lambda: os.truncate(self.at / path, size))

    def _rename(self, old: str, new: str) -> None:
        act = Act("rename", old, self._now[old].file, to=new)
        self._do(act, lambda: os.rename(self.at / old, self.at / new))

    def _mkdir(self, path: str, mode: int) -> None:
        self._do(Act("mkdir", path, mode=mode), lambda: os.mkdir(self.at / path, mode))

    # --- what programs do -------------------------------------------------------------------------

    def save_new(self) -> None:
        path = self._free()
        if path is not None:
            self._create(path)
            self._write(path, 0, self._random.choice(SIZES))
            self._maybe_sync(path)

    def _maybe_sync(self, path: str) -> None:
        chance = self._random.random()
        if chance < 0.3:
            self._fsync(path)
        elif chance < 0.4:
            self._fsync_directory(path.rpartition("/")[0])

    def overwrite(self) -> None:
        path = self._pick()
        if path is not None:
            offset = self._random.randrange((self.at / path).stat().st_size + 1)
            self._write(path, offset, self._random.choice(SIZES))
            self._maybe_sync(path)

    def append(self) -> None:
        path = self._pick()
        if path is not None:
            self._write(path, (self.at / path).stat().st_size, self._random.choice(SIZES))
            self._maybe_sync(path)

    def write_beyond_the_end(self) -> None:
        path = self._pick()
        if path is not None:
            size = (self.at / path).stat().st_size
            self._write(path, size + self._random.choice((1, 4096, 9000)), 5000)
            self._maybe_sync(path)

    def rewrite(self) -> None:
        """`echo > file`."""
        path = self._pick()
        if path is None:
            return
        file, size = self._now[path].file, self._random.choice(SIZES)
        opened = -1

        def call() -> None:
            nonlocal opened
            opened = self._opened(path, os.O_WRONLY | os.O_TRUNC)

        self._do(Act("truncate", path, file, size=0), call)
        self._write(path, 0, size, opened)
        os.close(opened)
        self._maybe_sync(path)

    def truncate(self) -> None:
        path = self._pick()
        if path is not None:
            size = (self.at / path).stat().st_size
            self._truncate(path, self._random.choice((0, size // 2, size + 5000)))
            self._maybe_sync(path)

    def log(self) -> None:
        """A file that stays open, and grows."""
        if "log" not in self._now:
            self._create("log")
        if self._log < 0:
            self._log = self._opened("log", os.O_WRONLY)
        for _ in range(self._random.randint(1, 5)):
            self._write("log", os.fstat(self._log).st_size, 700, self._log)
        if self._random.random() < 0.5:
            act = Act("fsync", "log", self._now["log"].file)
            self._do(act, lambda: os.fsync(self._log))

    def sync(self) -> None:
        path = self._pick()
        if path is not None:
            self._fsync(path)

    def sync_directory(self) -> None:
        self._fsync_directory(self._pick(directory=True) or "")

    def edit(self) -> None:
        """As editors save: a temporary beside the file, renamed over it."""
        path = self._pick()
        if path is None:
            return
        temporary = f"{path}~"
        if temporary in self._now:
            return
        self._create(temporary)
        self._write(temporary, 0, self._random.choice(SIZES))
        if self._random.random() < 0.5:
            self._fsync(temporary)
        self._rename(temporary, path)
        if self._random.random() < 0.3:
            self._fsync_directory(path.rpartition("/")[0])

    def move(self) -> None:
        path, free = self._pick(), self._free()
        if path is not None and free is not None:
            self._rename(path, free)

    def move_over(self) -> None:
        path, other = self._pick(), self._pick()
        if path and other and path != other:
            self._rename(path, other)

    def remove(self) -> None:
        path = self._pick()
        if path is not None:
            act = Act("unlink", path, self._now[path].file)
            self._do(act, lambda: os.unlink(self.at / path))

    def make_directory(self) -> None:
        for path in DIRECTORIES[1:]:
            above = path.rpartition("/")[0]
            if path not in self._now and (not above or above in self._now):
                self._mkdir(path, self._random.choice((0o700, 0o755)))
                return

    def move_directory(self) -> None:
        old, new = self._pick(directory=True), self._random.choice(DIRECTORIES[1:])
        above = new.rpartition("/")[0]
        is_possible = new not in self._now and (not above or above in self._now)
        if old is not None and is_possible and not f"{new}/".startswith(f"{old}/"):
            self._rename(old, new)

    def remove_directory(self) -> None:
        path = self._pick(directory=True)
        if path is not None and not any(item.startswith(f"{path}/") for item in self._now):
            self._do(Act("rmdir", path), lambda: os.rmdir(self.at / path))

    def change_mode(self) -> None:
        path = self._pick(directory=self._random.random() < 0.2)
        if path is not None:
            mode = self._random.choice(MODES)
            act = Act("chmod", path, self._now[path].file, mode=mode)
            self._do(act, lambda: os.chmod(self.at / path, mode))

    def set_attribute(self) -> None:
        path = self._pick(directory=self._random.random() < 0.2)
        if path is not None:
            name, value = self._random.choice(("user.a", "user.b")), self._random.randbytes(4)
            act = Act("setxattr", path, self._now[path].file, name=name, data=value)
            self._do(act, lambda: os.setxattr(self.at / path, name, value))


HABITS: dict[Callable[[Person], None], int] = {
    Person.save_new: 6,
    Person.overwrite: 4,
    Person.append: 3,
    Person.write_beyond_the_end: 1,
    Person.rewrite: 4,
    Person.truncate: 2,
    Person.log: 3,
    Person.sync: 2,
    Person.sync_directory: 1,
    Person.edit: 5,
    Person.move: 2,
    Person.move_over: 1,
    Person.remove: 2,
    Person.make_directory: 2,
    Person.move_directory: 1,
    Person.remove_directory: 1,
    Person.change_mode: 1,
    Person.set_attribute: 1,
}
