"""Directories that were removed elsewhere while something was put into them here: made anew.

Knows: which directories above an operation are gone, and how tree and journal go on with new ones
of the same names. Must not know: what becomes of what cannot have its place back (`resolver`).

What was removed stays in the trash, in one piece, with its grants and links: nobody means to share
again what is made anew. It is a directory like any that is made here, so should another device
have made one of that name meanwhile, or make the same one anew, they become one (`adopt`). It is
made once, before all that waits for it: its creation goes to the front of the journal.

Until that is answered it shows what it held: what of that is gone tells the listing that follows
(`Resolver.look_again`).

Concurrency: as `resolver`. Between asking the server and the one transaction somebody may
move or remove things, so the way up is walked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from cache.metadata.database import Database
from cache.metadata.journal import Journal
from cache.metadata.operations import Body, Op, new_id
from cache.metadata.tree import HISTORY, LOCAL, REVOKED, ROOT, Node, Tree
from cache.namespace.merge import Merge
from remote.protocol import messages
from remote.protocol.errors import NotFound, Refused
from remote.protocol.ids import FileId, VersionId


class FilePort(Protocol):
    """The part of `remote.http.api.ApiClient` that resolving needs."""

    async def file(
        self, file: FileId, version: VersionId | None = None, *, manifest: bool = False
    ) -> messages.FileReply: ...


class Rebuilder:
    """`reidentify(old, new)` gives a file another id in tree, journal and pins."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        merge: Merge,
        port: FilePort,
        reidentify: Callable[[FileId, FileId], None],
    ) -> None:
        self._db, self._tree, self._journal, self._merge = db, tree, journal, merge
        self._port, self._reidentify = port, reidentify

    async def rebuild(self, op: Op) -> bool:
        """See to it that the directory in which `op` makes an entry will be there: True; `op` is to
        be sent again. False: its place is not to be had, or not what it lacks. Raises NearlineError
        when the server could not be asked."""
        place, gone = op.body.new_parent or op.body.parent, set[FileId]()
        if op.kind != "create" and await self._is_gone(op.file):
            return False
        for node in self._upwards(place):
            if not await self._is_gone(node.file):
                break
            gone.add(node.file)
        if self._journal.get(op.key) is not op:  # nobody wants it any more
            return True
        if self._is_to_be_made(place):  # what came before has seen to it
            with self._db.transaction():
                self._again(op)
            return True
        found = [node for node in self._upwards(place) if node.file in gone]
        if not found or not self._has_place(found[-1]):
            return False
        with self._db.transaction():
            for node in found:
                self._make_anew(node)
            self._again(op)
        self._merge.after_commit()
        return True

    def _upwards(self, file: FileId) -> Iterator[Node]:
        """The directory `file`, and those above it that the server had."""
        node = self._tree.live(file)
        while node is not None and node.ino != ROOT and node.drive not in (LOCAL, REVOKED, HISTORY):
            if self._is_to_be_made(node.file):
                return
            yield node
            names = self._tree.names(node.ino)
            node = self._tree.find(names[0][0]) if names else None

    def _has_place(self, node: Node) -> bool:
        """Is it in a directory of its own drive? What is nowhere, or was shared by itself, is
        not."""
        names = self._tree.names(node.ino)
        return bool(names) and self._tree.node(names[0][0]).drive == node.drive

    def _is_to_be_made(self, file: FileId) -> bool:
        return any(item.kind == "create" for item in self._journal.of_file(file))

    async def _is_gone(self, file: FileId) -> bool:
        try:
            return (await self._port.file(file)).file.links == 0
        except Refused as error:
            if isinstance(error.problem, NotFound):
                return True
            raise

    def _again(self, op: Op) -> None:
        """Its answer is that of its key for ever."""
        self._journal.rewrite(op, key=new_id(), sent=False)

    def _make_anew(self, node: Node) -> None:
        """The directory above it is made before: it comes later, and to the front."""
        old, fresh = node.file, new_id()
        for moved in self._journal.of_file(old):
            if moved.body.new_name:  # it is made where it was to be moved
                self._journal.remove(moved)
                self._merge.release(moved)
        self._reidentify(old, fresh)
        self._tree.update(node.ino, links=1)
        parent, name = self._tree.names(node.ino)[0]
        body = Body(parent=self._tree.node(parent).file, name=name, directory=True, anew=True)
        self._journal.add_first("create", node.ino, fresh, body)
