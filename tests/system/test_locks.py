"""Locks: between the processes of one machine as on any file system, and of one machine only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.conftest import Pair
from tests.system.harness import COMMAND_SECONDS, wait_until

# Does what it is told, line by line, and answers each with a line: the value, or the errno's name.
PROCESS = """
import errno, os, struct, sys
from fcntl import *
fd = os.open(sys.argv[1], os.O_RDWR)
def ofd(how, start, length):
    fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", how, 0, start, length, 0))
def holder(start, length):
    asked = struct.pack("hhqqi4x", F_WRLCK, 0, start, length, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl(fd, F_GETLK, asked))
    return None if kind == F_UNLCK else (pid, start, length)
for line in sys.stdin:
    try:
        told = eval(line)
    except OSError as error:
        told = errno.errorcode[error.errno]
    print(told, flush=True)
"""
# A lock that another has: flock says EWOULDBLOCK, fcntl may say EACCES or EAGAIN; here all EAGAIN.
TAKEN = "EAGAIN"


class Process:
    """A process of its own with a file open, that does what it is told."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def does(self, what: str) -> str:
        self.begin(what)
        return self.answer()

    def waits(self) -> bool:
        """True if it is asleep in a call for a lock."""
        call = Path(f"/proc/{self.pid}/syscall").read_text().split()[0]
        return call in ("72", "73") or "lock" in Path(f"/proc/{self.pid}/wchan").read_text()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()


Start = Callable[[Path], Process]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def started(path: Path) -> Process:
            process = Process(path)
            stack.callback(process.end)
            return process

        yield started


@pytest.fixture
def path(pair: Pair, request: pytest.FixtureRequest) -> Path:
    path = pair.a.at / str(request.node.originalname)[:60]
    path.write_bytes(bytes(1000))
    return path


def test_one_process_has_an_exclusive_lock_or_many_a_shared_one(path: Path, start: Start) -> None:
    one, other = start(path), start(path)
    assert one.does("flock(fd, LOCK_EX | LOCK_NB)") == "None"
    assert other.does("flock(fd, LOCK_EX | LOCK_NB)") == TAKEN
    assert other.does("flock(fd, LOCK_SH | LOCK_NB)") == TAKEN
    assert one.does("flock(fd, LOCK_SH)") == "None"  # weaker
    assert other.does("flock(fd, LOCK_SH | LOCK_NB)") == "None"
    assert one.does("flock(fd, LOCK_EX | LOCK_NB)") == TAKEN
    assert other.does("flock(fd, LOCK_UN)") == "None"
    assert one.does("flock(fd, LOCK_EX | LOCK_NB)") == "None"


@pytest.mark.parametrize(
    ("take", "release"),
    [
        ("flock(fd, LOCK_EX)", "flock(fd, LOCK_UN)"),
        ("lockf(fd, LOCK_EX, 10, 5)", "lockf(fd, LOCK_UN, 10, 5)"),
    ],
    ids=["flock", "fcntl"],
)
@pytest.mark.parametrize("how", ["released", "closed", "killed"])
def test_who_waits_for_a_lock_gets_it(
    path: Path, start: Start, take: str, release: str, how: str
) -> None:
    one, other = start(path), start(path)
    assert one.does(take) == "None"
    other.begin(take)
    wait_until(other.waits, "it waits for the lock")
    if how == "killed":
        one.kill()
    else:
        assert one.does(release if how == "released" else "os.close(fd)") == "None"
    assert other.answer() == "None"


def test_ranges_are_locked_apart_and_the_holder_is_told(path: Path, start: Start) -> None:
    one, other = start(path), start(path)
    assert one.does("lockf(fd, LOCK_EX | LOCK_NB, 100, 50)") == "None"
    assert other.does("lockf(fd, LOCK_EX | LOCK_NB, 100, 150)") == "None"
    assert other.does("lockf(fd, LOCK_EX | LOCK_NB, 10, 149)") == TAKEN
    assert other.does("lockf(fd, LOCK_SH | LOCK_NB, 10, 50)") == TAKEN
    assert other.does("holder(0, 0)") == f"({one.pid}, 50, 100)"
    assert one.does("lockf(fd, LOCK_UN, 10, 50)") == "None"  # part of it
    assert other.does("lockf(fd, LOCK_EX | LOCK_NB, 10, 50)") == "None"
    assert other.does("holder(60, 0)") == f"({one.pid}, 60, 90)"
    # POSIX: closing any descriptor of the file lets go of all of them.
    assert one.does("os.close(os.open(sys.argv[1], os.O_RDONLY))") == "None"
    assert other.does("holder(0, 0)") == "None"


def test_locks_of_open_file_descriptions_are_apart_and_stay(path: Path, start: Start) -> None:
    one, other = start(path), start(path)
    assert one.does("ofd(F_WRLCK, 0, 10)") == "None"
    assert one.does("os.close(os.open(sys.argv[1], os.O_RDONLY))") == "None"
    assert other.does("ofd(F_WRLCK, 5, 10)") == TAKEN
    assert other.does("lockf(fd, LOCK_EX | LOCK_NB, 10, 5)") == TAKEN
    assert other.does("ofd(F_WRLCK, 10, 10)") == "None"
    assert one.does("os.close(fd)") == "None"
    assert other.does("ofd(F_WRLCK, 0, 10)") == "None"


def test_a_lock_stays_while_its_file_is_sent(pair: Pair, path: Path, start: Start) -> None:
    one, other = start(path), start(path)
    assert one.does("flock(fd, LOCK_EX)") == one.does("lockf(fd, LOCK_EX)") == "None"
    assert one.does("os.pwrite(fd, b'locked', 0)") == "6"
    pair.a.flush()
    assert other.does("flock(fd, LOCK_EX | LOCK_NB)") == TAKEN
    assert other.does("lockf(fd, LOCK_EX | LOCK_NB)") == TAKEN
    late = start(path)
    assert late.does("flock(fd, LOCK_EX | LOCK_NB)") == TAKEN


def test_locks_are_not_seen_by_other_devices(pair: Pair, path: Path, start: Start) -> None:
    """Whoever relies on them does so on one machine only."""
    pair.a.flush()
    here, there = start(path), start(pair.b.sees(path.name))
    for take in ("flock(fd, LOCK_EX | LOCK_NB)", "lockf(fd, LOCK_EX | LOCK_NB)"):
        assert here.does(take) == there.does(take) == "None"


def test_writers_who_lock_lose_no_update(path: Path) -> None:
    """A counter in a file, raised by several processes: the cache of pages is one for all."""
    script = (
        "import os, sys\nfrom fcntl import *\nfd = os.open(sys.argv[1], os.O_RDWR)\n"
        "for _ in range(200):\n"
        "    lockf(fd, LOCK_EX)\n"
        "    os.pwrite(fd, b'%08d' % (int(os.pread(fd, 8, 0)) + 1), 0)\n"
        "    lockf(fd, LOCK_UN)\n"
    )
    path.write_bytes(b"00000000")
    running = [subprocess.Popen([sys.executable, "-c", script, path]) for _ in range(4)]
    assert [item.wait(COMMAND_SECONDS) for item in running] == [0] * 4
    assert path.read_bytes() == b"00000800"
    assert os.path.getsize(path) == 8
