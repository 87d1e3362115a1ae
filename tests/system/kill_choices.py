"""The next step of a writer: the ways of applications with files, one as likely as another.

Pure: everything random comes from the generator that is given. Knows: which operations make sense
in a world. Must not know: how they are carried out (`kill_writer`), what they promise
(`kill_model`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import msgspec

from tests.system.kill_model import Node, Op, World

MOST_NAMES = 40
MOST_BYTES = 10 << 20  # of a writer's files in all
NEW_BYTES = 5 << 20  # that a writer writes in one life, or it would only be uploading
SIZES = [0, 1, 100, 4096, 5000, 70_000, 300_000, 1_500_000, 4_000_000]
MODES = [0o600, 0o640, 0o644, 0o700, 0o755]
LONG_AGO_NS = 1_500_000_000_000_000_000

Steps = Iterator[Op]


class Chooser:
    """For one writer, in one life. The operations of a choice follow each other: each must have
    been applied to `world` before the next is asked for."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self._random = world, rng
        self._left = NEW_BYTES

    def choose(self) -> Callable[[], Steps]:
        size = sum(node.reach for node in self.world.nodes.values())
        if len(self.world.names) > MOST_NAMES or size > MOST_BYTES:
            return self._remove
        makers = [self._new_file] * 4 + [self._save] * 3 + [self._change] * 3 + [self._append] * 2
        others = [self._new_directory, self._new_link, self._new_symlink, self._rename_over]
        others += [self._rename] * 3 + [self._attributes] * 4 + [self._truncate] * 2
        others += [self._go_on] * 2 + [self._remove, self._sync_directory]
        return self._random.choice(others + (makers if self._left > 0 else []))

    def op(self, kind: str, path: str = "", **more: int) -> Op:
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
        op = self.op("create", path, stop=self._random.choice(MODES))
        op = msgspec.structs.replace(op, handle=op.number)
        yield op
        size, at = self._size(), 0
        while at < size:
            stop = min(size, at + self._random.choice([1000, 4096, 65536, 300_000, 1 << 20]))
            yield self.op("write", handle=op.handle, start=at, stop=stop)
            at = stop
        if sync or self._random.random() < 0.3:
            yield self.op("fsync", handle=op.handle)
        if sync or self._random.random() < 0.8:
            yield self.op("close", handle=op.handle)

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
            yield self.op("chmod", free, stop=self.world.at(old).mode)
        yield self._named("rename", free, old)
        if self._random.random() < 0.5:
            yield self.op("fsyncdir", os.path.dirname(old))

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
        op = self.op("open", self._random.choice(files), stop=append)
        op = msgspec.structs.replace(op, handle=op.number)
        yield op
        if self._random.random() < 0.2:
            yield self.op("ftruncate", handle=op.handle)
        for _time in range(self._random.randrange(1, 4)):
            yield self._write_some(op.handle, bool(append))
        if self._random.random() < 0.7:
            yield self.op("close", handle=op.handle)

    def _write_some(self, handle: int, append: bool = False) -> Op:
        reach = self.world.held(handle).reach
        start = reach if append else self._random.randrange(reach + 5000)
        size = 1 + self._random.choice([10, 5000, 200_000])
        self._left -= size
        return self.op("write", handle=handle, start=start, stop=start + size)

    def _go_on(self) -> Steps:
        """With a file that was left open."""
        if not self.world.handles:
            return
        handle = self._random.choice(list(self.world.handles))
        match self._random.randrange(4):
            case 0:
                yield self.op("close", handle=handle)
            case 1:
                yield self.op("fsync", handle=handle)
            case _:
                # At the end: the descriptor may append.
                yield self._write_some(handle, append=True)

    def _truncate(self) -> Steps:
        if files := self._files():
            path = self._random.choice(files)
            size = self._random.choice([0, self.world.at(path).reach, 10_000, 2_000_000])
            yield self.op("truncate", path, stop=self._random.randrange(size + 1))

    def _new_directory(self) -> Steps:
        path = self._free()
        if path is not None and path.count("/") < 6:
            yield self.op("mkdir", path, stop=self._random.choice([0o700, 0o750, 0o755]))

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
            yield self.op("unlink", path)
        elif not self.world.below(path):
            yield self.op("rmdir", path)

    def _attributes(self) -> Steps:
        paths = [path for path in self._movable() if self.world.at(path).kind != "symlink"]
        if not paths:
            return
        path = self._random.choice(paths)
        node, attribute = self.world.at(path), f"user.a{self._random.randrange(3)}"
        kind = self._random.choice(["chmod", "utimens", "setxattr", "removexattr"])
        if kind == "chmod":
            yield self.op("chmod", path, stop=self._random.choice(MODES))
        elif kind == "utimens" and node.kind == "file":
            yield self.op("utimens", path, stop=_time_of(self.world, node))
        elif kind == "setxattr":
            yield self._named("setxattr", path, attribute)
        elif attribute in node.xattrs:
            yield self._named("removexattr", path, attribute)

    def _sync_directory(self) -> Steps:
        yield self.op("fsyncdir", self._random.choice(self._directories()))


def _time_of(world: World, node: Node) -> int:
    """No two are the same."""
    return LONG_AGO_NS + world.number * 1_000_000_007 + node.mode
