"""Acts out scripts of system calls as any user, and says where a file system does otherwise.

A process of its own (`Actor`): becoming another user is for all threads of a process. A line of a
script is

    [u:UID[:GID[,GROUP...]]] CALL ARGUMENT... [= EXPECTED]

where EXPECTED is the name of an errno (or several, with `-or-`), or `FIELD=VALUE` pairs of `lstat`
and `stat`, or the one value that the call returns. Nothing expected means success. `@NAME` is the
descriptor that `open ... as NAME` gave. `%N` in an argument is a name of N bytes; `%%N` a path of N
bytes to the file `p`. `remember PATH` notes the times of a file; a later `moved PATH TIME,...` says
that these times, and no others, have changed since.

Knows: system calls. Must not know: whose file system it is.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, NOFOLLOW = -100, 0x100
CLOCK_REALTIME_COARSE = 5
SPECIAL = {"now": (1 << 30) - 1, "omit": (1 << 30) - 2}
KINDS = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
NODES = {"regular": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK} | {
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}
TIMES = ("atime", "mtime", "ctime")


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _libc(function: str, *arguments: Any) -> None:
    if getattr(LIBC, function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _timespec(word: str) -> Timespec:
    if word in SPECIAL:
        return Timespec(0, SPECIAL[word])
    return Timespec(*divmod(int(word), 10**9))


class Script:
    """The state of one script: descriptors by name, remembered times."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._times: dict[str, dict[str, int]] = {}

    def play(self, text: str) -> Iterator[str]:
        """Every line that did not do what it says, as "LINE: what it did"."""
        for line in filter(None, map(str.strip, text.splitlines())):
            if line.startswith("#"):
                continue
            did, expected = line.partition(" = ")[::2]
            found = self._line(did.split())
            if not _agrees(found, expected.strip()):
                yield f"{line}: {found or 'succeeded'}"

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def _line(self, words: list[str]) -> str:
        who = words.pop(0) if words[0].startswith("u:") else "u:0:0"
        call: Callable[..., object] = getattr(self, f"do_{words[0]}")
        arguments = [_long(word) for word in words[1:]]
        _become(who)
        try:
            found = call(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            _become("u:0:0")
        return "" if found is None else str(found)

    def _where(self, word: str) -> Any:
        return self._open[word[1:]] if word.startswith("@") else word

    # --- files and directories --------------------------------------------------------------------

    def do_create(self, path: str, mode: str = "0644") -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(mode, 8)))

    def do_open(self, path: str, flags: str, *more: str) -> None:
        bits = 0
        for flag in flags.split("|"):
            bits |= getattr(os, flag)
        mode = 0o644 if not more or more[0] == "as" else int(more[0], 8)
        descriptor = os.open(path, bits, mode)
        if "as" in more:
            self._open[more[-1]] = descriptor
        else:
            os.close(descriptor)

    def do_close(self, name: str) -> None:
        os.close(self._open.pop(name[1:]))

    def do_write(self, where: str, text: str) -> int:
        return os.write(self._where(where), text.encode())

    def do_fsync(self, name: str) -> None:
        os.fsync(self._open[name[1:]])

    def do_pread(self, where: str, size: str, offset: str) -> str:
        return os.pread(self._where(where), int(size), int(offset)).decode().replace("\0", "0")

    def do_mkdir(self, path: str, mode: str = "0755") -> None:
        os.mkdir(path, int(mode, 8))

    def do_mkfifo(self, path: str, mode: str = "0644") -> None:
        os.mkfifo(path, int(mode, 8))

    def do_mknod(self, path: str, kind: str, mode: str = "0644", device: str = "1,2") -> None:
        major, minor = map(int, device.split(","))
        os.mknod(path, NODES[kind] | int(mode, 8), os.makedev(major, minor))

    def do_make(self, kind: str, path: str) -> None:
        """A file of any kind, as the tests of every kind need it."""
        if kind == "dir":
            os.mkdir(path, 0o755)
        elif kind == "symlink":
            os.symlink("target", path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(path)
        else:
            os.mknod(path, NODES[kind] | 0o644, os.makedev(1, 2))

    def do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def do_readlink(self, path: str) -> str:
        return os.readlink(path)

    def do_link(self, path: str, to: str) -> None:
        os.link(path, to, follow_symlinks=False)

    def do_unlink(self, path: str) -> None:
        os.unlink(path)

    def do_rmdir(self, path: str) -> None:
        os.rmdir(path)

    def do_remove(self, path: str) -> None:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rmdir(path)
        else:
            os.unlink(path)

    def do_rename(self, path: str, to: str, how: str = "") -> None:
        flags = {"": 0, "noreplace": 1, "exchange": 2, "whiteout": 4}[how]
        one, other = os.fsencode(path), os.fsencode(to)
        _libc("renameat2", AT_FDCWD, one, AT_FDCWD, other, flags)

    def do_list(self, path: str) -> str:
        return ",".join(sorted(os.listdir(path))) or "nothing"

    # --- attributes -------------------------------------------------------------------------------

    def do_chmod(self, where: str, mode: str) -> None:
        os.chmod(self._where(where), int(mode, 8))

    def do_chown(self, where: str, uid: str, gid: str) -> None:
        os.chown(self._where(where), int(uid), int(gid))

    def do_lchown(self, path: str, uid: str, gid: str) -> None:
        os.lchown(path, int(uid), int(gid))

    def do_truncate(self, where: str, size: str) -> None:
        os.truncate(self._where(where), int(size))

    def do_utimensat(self, where: str, atime: str, mtime: str, *how: str) -> None:
        times = (Timespec * 2)(_timespec(atime), _timespec(mtime))
        place = self._where(where)
        if isinstance(place, int):
            _libc("futimens", place, times)
        else:
            flags = NOFOLLOW if how else 0
            _libc("utimensat", AT_FDCWD, os.fsencode(place), times, flags)

    def do_access(self, path: str, mode: str) -> bool:
        bits = sum({"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}[letter] for letter in mode)
        return os.access(path, bits, effective_ids=True)

    def do_lstat(self, path: str) -> str:
        return _describe(os.lstat(path))

    def do_stat(self, where: str) -> str:
        return _describe(os.stat(self._where(where)))

    def do_umask(self, mask: str) -> None:
        os.umask(int(mask, 8))

    # --- times. The kernel stamps files from a clock that moves in steps --------------------------

    def do_remember(self, where: str) -> None:
        self._times[where] = self._now(where)
        # What is stamped next is later than both: a file can have a time that this clock, whose
        # ticks come late on a busy machine, has not reached.
        begun = max(time.clock_gettime_ns(CLOCK_REALTIME_COARSE), self._times[where]["ctime"])
        while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= begun:
            os.sched_yield()

    def do_moved(self, where: str, names: str = "") -> str | None:
        before, now = self._times[where], self._now(where)
        moved = ",".join(name for name in TIMES if now[name] != before[name])
        back = [name for name in TIMES if now[name] < before[name] and name == "ctime"]
        return f"moved {moved}, back {back}" if moved != names or back else None

    def _now(self, where: str) -> dict[str, int]:
        place = self._where(where)
        found = os.stat(place) if isinstance(place, int) else os.lstat(place)
        return {name: getattr(found, f"st_{name}_ns") for name in TIMES}


def _agrees(found: str, expected: str) -> bool:
    if "=" in expected:
        return set(expected.split()) <= set(found.split())
    return found in expected.split("-or-")


def _describe(found: os.stat_result) -> str:
    device = f"{os.major(found.st_rdev)},{os.minor(found.st_rdev)}"
    return (
        f"type={KINDS[stat.S_IFMT(found.st_mode)]} mode={stat.S_IMODE(found.st_mode):04o}"
        f" uid={found.st_uid} gid={found.st_gid} nlink={found.st_nlink} size={found.st_size}"
        f" atime={found.st_atime_ns} mtime={found.st_mtime_ns} device={device}"
    )


def _long(word: str) -> str:
    """Replace %N by a name of N bytes, and %%N by a path of N bytes."""
    word = re.sub(r"%%(\d+)", lambda found: ("./" * int(found[1]))[: int(found[1]) - 1] + "p", word)
    return re.sub(r"%(\d+)", lambda found: "n" * int(found[1]), word)


def _become(who: str) -> None:
    uid, gid, *groups = re.split(r"[:,]", who)[1:]
    if os.geteuid() != 0:
        os.seteuid(0)
    os.setgroups([int(group) for group in groups])
    os.setegid(int(gid))
    if uid != "0":
        os.seteuid(int(uid))


def main() -> None:
    """Play what comes in, a line with a JSON list [directory, script]; answer the complaints."""
    os.umask(0)
    for line in sys.stdin:
        directory, text = json.loads(line)
        os.chdir(directory)
        script = Script()
        try:
            answer = list(script.play(text))
        finally:
            script.close()
            os.umask(0)
            os.chdir("/")
        print(json.dumps(answer), flush=True)


class Actor:
    """The process, from outside."""

    def __enter__(self) -> Actor:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.posix_actor"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def play(self, directory: Path, text: str) -> list[str]:
        """Lines of the script that did not go as it says, in the empty `directory`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(directory), text]) + "\n")
        self._process.stdin.flush()
        found: list[str] = json.loads(self._process.stdout.readline())
        return found


if __name__ == "__main__":
    main()
