"""Deletes nodes that nobody can reach any more, with their layers.

Knows: when a node is needed: it is live, the kernel or a handle refers to it, or the journal takes
something from it. Must not know: why a node died.

Concurrency contract: synchronous on the trio thread. `Candidates` only notes (it is told inside
transactions, by what is made before a collector can be); `collect` decides, in a transaction of its
own, after them.
"""

from __future__ import annotations

from collections.abc import Callable

from cache.files.contents import Contents
from cache.metadata.database import Database
from cache.metadata.journal import Journal
from cache.metadata.tree import Node, Tree


class Candidates:
    """Nodes that may have become useless, by inode."""

    def __init__(self) -> None:
        self.found: set[int] = set()
        self.waiting: set[int] = set()  # nobody uses them, but an operation refers to them

    def dropped(self, node: Node) -> None:
        """Its last name is gone, or it was passed by."""
        self.found.add(node.ino)

    def unreferenced(self, ino: int) -> None:
        """No operation refers to it any more."""
        if ino in self.waiting:
            self.waiting.discard(ino)
            self.found.add(ino)


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

    def unused(self, *inodes: int) -> None:
        """The kernel and every handle have let go of the inodes. The kernel lets go of thousands at
        once, of which next to all live: those need nothing now, and are noted when they die."""
        self._candidates.found.update(self._tree.dead(inodes))
        self.collect()

    def collect(self) -> None:
        """Delete what can be deleted, and the spool files of every layer dropped so far. What the
        journal refers to is known when all of it has been read: until then candidates wait."""
        if self._candidates.found and not self._journal.is_loading:
            with self._db.transaction():
                undecided = {ino for ino in self._candidates.found if not self._decide(ino)}
                self._candidates.waiting |= undecided
                self._candidates.found.clear()
        self._contents.sweep()

    def _decide(self, ino: int) -> bool:
        """True when the node needs no more watching: gone, or alive, or its user will tell. Looked
        at once: the journal tells when its last operation on the inode is gone, because deleting
        many files must not ask about all of them at each."""
        node = self._tree.find(ino)
        if node is None or node.live or self._in_use(ino):
            return True
        if self._journal.refers_to(ino) or not self._tree.is_empty(ino):
            return False
        self._contents.discard(ino)
        self._tree.delete(ino)
        return True

    def sweep(self) -> None:
        """At start no kernel refers to anything: every dead node is a candidate."""
        rows = self._db.all("SELECT ino FROM node WHERE NOT live")
        self._candidates.found |= {row["ino"] for row in rows}
        self.collect()
