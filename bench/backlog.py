"""Makes a journal as long as one likes: a device's state after a long time without its server.

`python -m bench.backlog STATE --operations 100000 --bytes 50GB`

Knows: how the parts of `cache` are put together, and that a spool file may be a hole. Must not
know: a mount, a server. STATE is the state directory of a mount that has ended. The product's own
classes add to it what system calls would have: directories, files, symlinks, and one
file that was written at many places. All of it is in the directory `backlog`.

What was written are zeros, and their spool files are holes: 50 GB take no room.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import trio

from bench.data import PAGE
from cache.blocks.reader import Prefetch
from cache.device import Local
from cache.files.spool import Spool
from cache.files.unsynced import digest
from cache.metadata.manifests import Manifests
from cache.metadata.tree import ROOT, Node
from cache.recovery.opening import open_database
from mount.session.session import boot_id
from remote.protocol.messages import Kind
from remote.protocol.sizes import parse_size

TOP = "backlog"
# The file with many extents.
SCATTERED = "scattered"
PER_DIRECTORY = 500
# From one extent of the scattered file to the next.
STRIDE = 16 * PAGE


@dataclass(frozen=True)
class Plan:
    """`operations` in all; every `apart`-th one is a file of `size` bytes, the others need no
    bytes. One more file has `extents` of one page each."""

    operations: int
    size: int
    apart: int = 2
    extents: int = 0


def plan_of(operations: int, size: int, extents: int) -> Plan:
    """Half of the operations are files, of `size` bytes together."""
    return Plan(operations, max(1, 2 * size // operations), extents=extents)


class _HollowSpool(Spool):
    """Takes the length of what is written, not its bytes."""

    async def write(self, layer: int, offset: int, data: bytes | memoryview) -> bytes:
        fd = os.open(self._path(layer), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, max(os.fstat(fd).st_size, offset + len(data)))
        finally:
            os.close(fd)
        return _digest(bytes(data))


class _Nothing:
    """No kernel to tell, no uploaded version to read."""

    def forget_entry(self, parent: int, name: str, gone: int = 0) -> None: ...

    def forget_attributes(self, ino: int) -> None: ...

    def forget_content(self, ino: int) -> None: ...

    def try_read(
        self, file: str, version: str, offset: int, length: int, window: Prefetch | None
    ) -> NoReturn:
        raise AssertionError("only new files are made")

    async def read(
        self, file: str, version: str, size: int, offset: int, length: int, window: Prefetch | None
    ) -> NoReturn:
        raise AssertionError("only new files are made")


class _State(Local):
    """A state directory, opened for edits."""

    def __init__(self, directory: Path) -> None:
        nothing, spool = _Nothing(), directory / "spool"
        db = open_database(directory / "tree.sqlite", boot=boot_id())
        super().__init__(
            db, _HollowSpool(spool), Manifests(db), nothing, nothing, lambda ino: False
        )

    def close(self) -> None:
        """As a mount that ended well. After so long, everything is on the disk."""
        with self.db.transaction():
            self.db.run("DELETE FROM unsettled")
            self.db.run("UPDATE layer SET safe = size")
        self.spool.close()
        self.db.close(clean=True)

    def make(self, parent: int, name: str, kind: Kind) -> Node:
        target = "elsewhere" if kind == "symlink" else None
        return self.edits.create(parent, name, kind, 0o755, 0, 0, target=target)


async def add(directory: Path, plan: Plan) -> int:
    """Add `plan` to a state directory; how many operations its journal has then."""
    state = _State(directory)
    try:
        top = state.make(ROOT, TOP, "directory")
        await _scatter(state, top, plan.extents)
        left = plan.operations - len(state.journal)
        for first in range(0, left, PER_DIRECTORY):
            # One transaction for many system calls is quicker. It may contain an await here,
            # because nobody else is there.
            with state.db.transaction():
                here = state.make(top.ino, f"{first:07}", "directory")
                count = min(PER_DIRECTORY, left - first)
                for number in range(1, count):
                    await _one(state, here, number, plan)
        return len(state.journal)
    finally:
        state.close()


async def _one(state: _State, here: Node, number: int, plan: Plan) -> None:
    """One operation in the directory `here`, the `number`-th."""
    if number % plan.apart == 0:
        node = state.make(here.ino, f"file{number}", "file")
        await state.contents.write(node.ino, 0, _zeros(plan.size))
    elif number % 5:
        state.make(here.ino, f"symlink{number}", "symlink")
    else:
        state.make(here.ino, f"directory{number}", "directory")


async def _scatter(state: _State, top: Node, extents: int) -> None:
    """A file that was written in no order: a database, the disk of a virtual machine."""
    if extents:
        offsets = [at * STRIDE for at in range(extents)]
        random.Random(extents).shuffle(offsets)
        with state.db.transaction():
            node = state.make(top.ino, SCATTERED, "file")
            for offset in offsets:
                await state.contents.write(node.ino, offset, _zeros(PAGE))


_digest = functools.cache(digest)


@functools.cache
def _zeros(size: int) -> bytes:
    return bytes(size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.backlog", description=__doc__)
    parser.add_argument("state", type=Path, help="the state directory of a mount that has ended")
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--bytes", type=parse_size, default=parse_size("50GB"), help="of the spool")
    parser.add_argument("--extents", type=int, default=20_000, help="of one file")
    given = parser.parse_args()
    plan = plan_of(given.operations, given.bytes, given.extents)
    print(trio.run(add, given.state, plan), "operations in the journal")


if __name__ == "__main__":
    main()
