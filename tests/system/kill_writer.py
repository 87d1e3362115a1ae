"""The program that writes into a mount until it is told to stop, or the mount dies.

    python -m tests.system.kill_writer MOUNT LEDGERS SEED

Knows: how operations are carried out, and how to write down each call before it is made and after
it has returned. Must not know: when anybody is killed, what is checked.

LEDGERS is a directory outside the mount: `N.world` is where writer N begins, `N.ledger` what it
did: a line with the operation before the call, then `+NUMBER`, or `-NUMBER ERRNO NANOSECONDS`. An
operation without a second line was in progress. The program says "ready" when the writers begin,
and ends when its standard input does, after closing what is open.

Concurrency: a thread a writer; each has its world, ledger and descriptors for itself.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.system.kill_choices import Chooser
from tests.system.kill_model import Op, World, apply, stamp, value_of

PAUSE_SECONDS = 0.001


class Writer:
    """One writer: does what was chosen, and writes it down."""

    def __init__(self, mount: Path, ledgers: Path, number: int, seed: str) -> None:
        self._mount = mount
        self.world = msgspec.json.decode((ledgers / f"{number}.world").read_bytes(), type=World)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._ledger = os.open(ledgers / f"{number}.ledger", flags, 0o600)
        self._random = random.Random(f"{seed} {number}")
        self._open: dict[int, int] = {}
        self._choices = Chooser(self.world, self._random)

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, or a call fails."""
        while not stop.wait(self._random.expovariate(1 / PAUSE_SECONDS)):
            for op in self._choices.choose()():
                if not self._do(op):
                    return
                if stop.is_set():
                    break
        for handle in list(self.world.handles):
            if not self._do(self._choices.op("close", handle=handle)):
                return

    def _do(self, op: Op) -> bool:
        self._note(msgspec.json.encode(op))
        try:
            self._call(op)
        except OSError as error:
            self._note(b"-%d %d %d" % (op.number, error.errno or 0, time.monotonic_ns()))
            if error.errno != errno.ENETUNREACH:
                return False
        else:
            self._note(b"+%d" % op.number)
        apply(self.world, op)
        return True

    def _note(self, line: bytes) -> None:
        os.write(self._ledger, line + b"\n")

    def _call(self, op: Op) -> None:
        path, other = self._mount / op.path, self._mount / op.other
        fd = self._open.get(op.handle, -1)
        match op.kind:
            case "create":
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
                self._open[op.handle] = os.open(path, flags, op.stop)
            case "open":
                self._open[op.handle] = os.open(path, os.O_RDWR | (op.stop and os.O_APPEND))
            case "write":
                _write(fd, stamp(self.world.writer, op.number, op.start, op.stop), op.start)
            case "close":
                os.close(self._open.pop(op.handle))
            case "utimens":
                os.utime(path, ns=(op.stop, op.stop))
            case "setxattr":
                os.setxattr(path, op.other, value_of(op).encode())
            case "removexattr":
                os.removexattr(path, op.other)
            case "fsyncdir":
                _fsync_directory(path)
            case _:
                simple: dict[str, Callable[[], None]] = {
                    "mkdir": lambda: os.mkdir(path, op.stop),
                    "rmdir": lambda: os.rmdir(path),
                    "symlink": lambda: os.symlink(op.other, path),
                    "link": lambda: os.link(path, other),
                    "unlink": lambda: os.unlink(path),
                    "rename": lambda: os.rename(path, other),
                    "truncate": lambda: os.truncate(path, op.stop),
                    "ftruncate": lambda: os.ftruncate(fd, op.stop),
                    "fsync": lambda: os.fsync(fd),
                    "chmod": lambda: os.chmod(path, op.stop),
                }
                simple[op.kind]()


def _write(fd: int, data: bytes, start: int) -> None:
    """Once: the kernel takes all of it. With O_APPEND `start` is the end anyway."""
    if os.pwrite(fd, data, start) != len(data):
        raise OSError(errno.EINVAL, "a short write")


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _await_end(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    stop.set()


def main(mount: str, ledgers: str, seed: str) -> None:
    faulthandler.register(signal.SIGUSR1)  # says where everybody is
    os.umask(0)
    worlds = sorted(Path(ledgers).glob("*.world"))
    writers = [Writer(Path(mount), Path(ledgers), int(path.stem), seed) for path in worlds]
    stop = threading.Event()
    threads = [threading.Thread(target=writer.run, args=[stop]) for writer in writers]
    print("ready", flush=True)
    for thread in threads:
        thread.start()
    threading.Thread(target=_await_end, args=[stop], daemon=True).start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
