"""Deletes nodes that nobody can reach any more, with their layers.

Knows: when a node is needed: it is live, the kernel or a handle refers to it, or the journal takes
something from it. Must not know: why a node died.

A directory that another device deleted can have names in it that only this device knows (made or
renamed here, and refused since). It stays while the journal has anything of what is below, or bytes
are there that the server does not have; then those names go, and what has no other name dies too.

Concurrency: synchronous on the trio thread. `Candidates` only notes (it is told inside
transactions, by what is made before a collector can be); `collect` decides, in a transaction of its
own, after them. Another device deletes a hundred thousand files, and whoever calls `collect` next
must not wait for all of them: it decides of `AT_ONCE`, and `run` of the rest, others in between.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import structlog
import trio

from cache.files.contents import Contents
from cache.metadata.damage import DamagedState
from cache.metadata.database import Database
from cache.metadata.journal import Journal
from cache.metadata.tree import Node, Tree

log = structlog.get_logger(__name__)

# Nodes decided of in one transaction: some 10 ms.
AT_ONCE = 200


class Candidates:
    """Nodes that may have become useless, by inode."""

    def __init__(self) -> None:
        self.found: set[int] = set()
        self.waiting: set[int] = set()  # nobody uses them, but an operation refers to them
        self.occupied: set[int] = set()  # directories: an operation refers to what is below
        self.freed: set[int] = set()  # no operation refers to these, which may be below such

    def dropped(self, node: Node) -> None:
        """Its last name is gone, or it was passed by."""
        self.found.add(node.ino)

    def unreferenced(self, ino: int) -> None:
        """No operation refers to it any more."""
        if ino in self.waiting:
            self.waiting.discard(ino)
            self.found.add(ino)
        if self.occupied:
            self.freed.add(ino)

    def left(self, parent: int) -> None:
        """A name has gone from a directory."""
        if parent in self.occupied:
            self.occupied.discard(parent)
            self.found.add(parent)


class _Fate(enum.Enum):
    DECIDED = enum.auto()  # gone, or alive, or its user will tell
    WAITS = enum.auto()
    OCCUPIED = enum.auto()


class Collector:
    """`in_use` says whether the kernel still speaks of an inode."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        contents: Contents,
        candidates: Candidates,
        in_use: Callable[[int], bool],
    ) -> None:
        self._db, self._tree, self._journal, self._contents = db, tree, journal, contents
        self._candidates, self._in_use = candidates, in_use
        self._emptied: set[int] = set()  # dead directories, of which some names have gone already
        self._more = trio.Event()  # set when `collect` has left something

    async def run(self) -> None:
        """Go on with what `collect` leaves, until cancelled. What finds no room on a full disk
        waits until somebody calls that again."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            await trio.lowlevel.checkpoint()
            try:
                self.collect()
            except DamagedState:
                raise
            except OSError as error:
                log.warning("not_collected_yet", why=str(error))

    def unused(self, *inodes: int) -> None:
        """The kernel and every handle have let go of the inodes. The kernel lets go of thousands at
        once, of which next to all live: those need nothing now, and are noted when they die."""
        self._candidates.found.update(self._tree.dead(inodes))
        self.collect()

    def collect(self) -> None:
        """Delete what can be deleted, `AT_ONCE` now, and the spool files of every layer dropped so
        far. What the journal refers to is known when all of it has been read: until then candidates
        wait."""
        candidates = self._candidates
        if (candidates.found or candidates.freed) and not self._journal.is_loading:
            fates: dict[int, _Fate] = {}
            with self._db.transaction():
                todo = candidates.found | self._occupied_above(candidates.freed)
                for _ in range(AT_ONCE):
                    if not todo:
                        break
                    ino = todo.pop()
                    fates[ino] = self._decide(ino, todo)
            candidates.found = todo
            candidates.freed.clear()
            if todo:
                self._more.set()
            candidates.occupied -= fates.keys()
            candidates.waiting |= {ino for ino, fate in fates.items() if fate is _Fate.WAITS}
            candidates.occupied |= {ino for ino, fate in fates.items() if fate is _Fate.OCCUPIED}
        self._contents.sweep()

    def _occupied_above(self, inodes: set[int]) -> set[int]:
        """The dead directories in which the inodes are."""
        found, todo = set[int](), [*inodes]
        while todo:
            for parent, _ in self._tree.names(todo.pop()):
                if parent in self._candidates.occupied:
                    found.add(parent)
                todo.append(parent)
        return found

    def _decide(self, ino: int, more: set[int]) -> _Fate:
        """Looked at once: the journal tells when its last operation on the inode is gone, because
        deleting many files must not ask about all of them at each. What dies with a directory is
        added to `more`."""
        node = self._tree.find(ino)
        if node is None or node.live or self._in_use(ino):
            return _Fate.DECIDED
        if self._journal.refers_to(ino):
            return _Fate.WAITS
        if node.is_directory and not self._tree.is_empty(ino):
            below = () if ino in self._emptied else self._tree.inodes_below(ino)
            if any(map(self._is_unsent, below)):
                return _Fate.OCCUPIED
            self._let_go(ino, more)
            if not self._tree.is_empty(ino):
                self._emptied.add(ino)
                more.add(ino)
                return _Fate.DECIDED
        self._emptied.discard(ino)
        self._contents.discard(ino)
        self._tree.delete(ino)
        return _Fate.DECIDED

    def _is_unsent(self, ino: int) -> bool:
        return self._journal.refers_to(ino) or bool(self._contents.stack(ino))

    def _let_go(self, directory: int, more: set[int]) -> None:
        """Drop some names in a directory that is gone. A directory that the server has not called
        gone is in another place by now, and is found there (`Merge`)."""
        for entry in self._tree.entries(directory, 0, AT_ONCE):
            self._tree.drop_entry(directory, entry.name, entry.node)
            gone = entry.node.links == 0 or not entry.node.is_directory
            if gone and not self._tree.names(entry.node.ino):
                self._tree.update(entry.node.ino, live=False)
                more.add(entry.node.ino)

    def sweep(self) -> None:
        """At start no kernel refers to anything: every dead node is a candidate."""
        rows = self._db.all("SELECT ino FROM node WHERE NOT live")
        self._candidates.found |= {row["ino"] for row in rows}
        self.collect()
