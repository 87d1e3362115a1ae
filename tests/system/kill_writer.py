"""The program that writes into a mount until it is told to stop, or the mount dies.

    python -m tests.system.kill_writer MOUNT LEDGERS SEED

Knows: what applications do with files, and how to write down each call before it is made and after
it has returned. Must not know: when anybody is killed, what is checked.

LEDGERS is a directory outside the mount: `N.world` is where writer N begins, `N.ledger` what it
did: a line with the operation before the call, then `+NUMBER`, or `-NUMBER ERRNO NANOSECONDS`. An
operation without a second line was in progress. The program says "ready" when the writers begin,
and ends when its standard input does, after closing what is open.

Concurrency contract: a thread a writer; each has its world, ledger and descriptors for itself.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tests.system.kill_model import Node, Op, World, apply, stamp, value_of

DIED = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO})
PAUSE_SECONDS = 0.001
MOST_NAMES = 40
MOST_BYTES = 10 << 20  # of a writer's files in all
NEW_BYTES = 5 << 20  # that a writer writes in one life, or it would only be uploading
SIZES = [0, 1, 100, 4096, 5000, 70_000, 300_000, 1_500_000, 4_000_000]
MODES = [0o600, 0o640, 0o644, 0o700, 0o755]
LONG_AGO_NS = 1_500_000_000_000_000_000

Steps = Iterator[Op]


class Writer:
    """One writer: chooses what to do, does it, and writes it down."""

    def __init__(self, mount: Path, ledgers: Path, number: int, seed: str) -> None:
        self._mount = mount
        self.world = msgspec.json.decode((ledgers / f"{number}.world").read_bytes(), type=World)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._ledger = os.open(ledgers / f"{number}.ledger", flags, 0o600)
        self._random = random.Random(f"{seed} {number}")
        self._open: dict[int, int] = {}
        self._left = NEW_BYTES

    # Doing.

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, or a call fails."""
        while not stop.wait(self._random.expovariate(1 / PAUSE_SECONDS)):
            for op in self._choose()():
                if not self._do(op):
                    return
                if stop.is_set():
                    break
        for handle in list(self.world.handles):
            if not self._do(self._op("close", handle=handle)):
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

    # Choosing.

    def _choose(self) -> Callable[[], Steps]:
        size = sum(node.reach for node in self.world.nodes.values())
        if len(self.world.names) > MOST_NAMES or size > MOST_BYTES:
            return self._remove
        makers = [self._new_file] * 4 + [self._save] * 3 + [self._change] * 3 + [self._append] * 2
        others = [self._new_directory, self._new_link, self._new_symlink, self._rename_over]
        others += [self._rename] * 3 + [self._attributes] * 4 + [self._truncate] * 2
        others += [self._go_on] * 2 + [self._remove, self._sync_directory]
        return self._random.choice(others + (makers if self._left > 0 else []))

    def _op(self, kind: str, path: str = "", **more: int) -> Op:
        return Op(self.world.number + 1, kind, path, **more)  # type: ignore[arg-type]  # of numbers

    def _named(self, kind: str, path: str, other: str) -> Op:
        return Op(self.world.number + 1, kind, path, other)

    def _files(self) -> list[str]:
        return [path for path in self.world.names if self.world.at(path).kind == "file"]

    def _directories(self) -> list[str]:
        return [path for path in self.world.names if self.world.at(path).kind == "directory"]

    def _movable(self) -> list[str]:
        """Everything but the writer's own top."""
        return [path for path in self.world.names if self.world.names[path] != 0]

    def _free(self) -> str | None:
        """A name that means nothing now; few enough that names come back."""
        directory = self._random.choice([*self._directories(), "common"])
        path = f"{directory}/{self.world.writer}n{self._random.randrange(30)}"
        return None if path in self.world.names else path

    def _new_file(self) -> Steps:
        path = self._free()
        if path is not None:
            yield from self._written(path)

    def _written(self, path: str, sync: bool = False) -> Steps:
        """A new file with its content; perhaps it stays open."""
        op = self._op("create", path, stop=self._random.choice(MODES))
        op = msgspec.structs.replace(op, handle=op.number)
        yield op
        size, at = self._size(), 0
        while at < size:
            stop = min(size, at + self._random.choice([1000, 4096, 65536, 300_000, 1 << 20]))
            yield self._op("write", handle=op.handle, start=at, stop=stop)
            at = stop
        if sync or self._random.random() < 0.3:
            yield self._op("fsync", handle=op.handle)
        if sync or self._random.random() < 0.8:
            yield self._op("close", handle=op.handle)

    def _size(self) -> int:
        size = self._random.randrange(self._random.choice(SIZES) + 1)
        self._left -= size
        return size

    def _save(self) -> Steps:
        """As editors do: a temporary file, synced, renamed over the old one."""
        free, files = self._free(), self._files()
        if free is None or not files:
            return
        old = self._random.choice(files)
        yield from self._written(free, sync=True)
        if self._random.random() < 0.5:
            yield self._op("chmod", free, stop=self.world.at(old).mode)
        yield self._named("rename", free, old)
        if self._random.random() < 0.5:
            yield self._op("fsyncdir", os.path.dirname(old))

    def _change(self) -> Steps:
        """Overwrite some of a file in place."""
        yield from self._opened(0)

    def _append(self) -> Steps:
        yield from self._opened(1)

    def _opened(self, append: int) -> Steps:
        held = set(self.world.handles.values())
        files = [path for path in self._files() if self.world.names[path] not in held]
        if not files:
            return
        op = self._op("open", self._random.choice(files), stop=append)
        op = msgspec.structs.replace(op, handle=op.number)
        yield op
        if self._random.random() < 0.2:
            yield self._op("ftruncate", handle=op.handle)
        for _time in range(self._random.randrange(1, 4)):
            yield self._write_some(op.handle, bool(append))
        if self._random.random() < 0.7:
            yield self._op("close", handle=op.handle)

    def _write_some(self, handle: int, append: bool = False) -> Op:
        reach = self.world.held(handle).reach
        start = reach if append else self._random.randrange(reach + 5000)
        size = 1 + self._random.choice([10, 5000, 200_000])
        self._left -= size
        return self._op("write", handle=handle, start=start, stop=start + size)

    def _go_on(self) -> Steps:
        """With a file that was left open."""
        if not self.world.handles:
            return
        handle = self._random.choice(list(self.world.handles))
        match self._random.randrange(4):
            case 0:
                yield self._op("close", handle=handle)
            case 1:
                yield self._op("fsync", handle=handle)
            case _:
                # At the end: the descriptor may append.
                yield self._write_some(handle, append=True)

    def _truncate(self) -> Steps:
        if files := self._files():
            path = self._random.choice(files)
            size = self._random.choice([0, self.world.at(path).reach, 10_000, 2_000_000])
            yield self._op("truncate", path, stop=self._random.randrange(size + 1))

    def _new_directory(self) -> Steps:
        path = self._free()
        if path is not None and path.count("/") < 6:
            yield self._op("mkdir", path, stop=self._random.choice([0o700, 0o750, 0o755]))

    def _new_symlink(self) -> Steps:
        if (path := self._free()) is not None:
            yield self._named("symlink", path, f"to/{self.world.number}")

    def _new_link(self) -> Steps:
        path, files = self._free(), self._files()
        if path is not None and files:
            yield self._named("link", self._random.choice(files), path)

    def _rename(self) -> Steps:
        path, movable = self._free(), self._movable()
        if path is not None and movable:
            old = self._random.choice(movable)
            if not path.startswith(old + "/"):
                yield self._named("rename", old, path)

    def _rename_over(self) -> Steps:
        others = [path for path in self._movable() if self.world.at(path).kind != "directory"]
        if len(others) > 1:
            yield self._named("rename", *self._random.sample(others, 2))

    def _remove(self) -> Steps:
        if not (movable := self._movable()):
            return
        path = self._random.choice(movable)
        if self.world.at(path).kind != "directory":
            yield self._op("unlink", path)
        elif not self.world.below(path):
            yield self._op("rmdir", path)

    def _attributes(self) -> Steps:
        paths = [path for path in self._movable() if self.world.at(path).kind != "symlink"]
        if not paths:
            return
        path = self._random.choice(paths)
        node, attribute = self.world.at(path), f"user.a{self._random.randrange(3)}"
        kind = self._random.choice(["chmod", "utimens", "setxattr", "removexattr"])
        if kind == "chmod":
            yield self._op("chmod", path, stop=self._random.choice(MODES))
        elif kind == "utimens" and node.kind == "file":
            yield self._op("utimens", path, stop=_time_of(self.world, node))
        elif kind == "setxattr":
            yield self._named("setxattr", path, attribute)
        elif attribute in node.xattrs:
            yield self._named("removexattr", path, attribute)

    def _sync_directory(self) -> Steps:
        yield self._op("fsyncdir", self._random.choice(self._directories()))


def _time_of(world: World, node: Node) -> int:
    """No two are the same."""
    return LONG_AGO_NS + world.number * 1_000_000_007 + node.mode


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
