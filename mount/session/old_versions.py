"""Old versions of a file as files: NAME@@ beside NAME is a read-only directory of them.

Knows: what the name means, and how versions become nodes that are read like any file. Must not
know: how bytes are read, names of versions (`mount.session.version_names`).

NAME@@ is found by looking it up, never listed, and only where nothing is really called so. Its
nodes are in the tree under `tree.HISTORY`: nothing of them is ever sent, and they are dropped at
the next start. Each look into the directory asks the server what there is; without it, what was
seen last is shown.

Concurrency: on the trio thread; the tree is changed in one transaction after the answers.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Awaitable, Callable

import structlog

from cache.metadata.database import Database
from cache.metadata.tree import HISTORY, LOCAL, REVOKED, Node, Tree, node_from
from mount.session.version_names import SUFFIX, version_names
from remote.protocol.errors import NearlineError
from remote.protocol.ids import FileId
from remote.protocol.messages import FileRecord, VersionInfo, VersionsPage

log = structlog.get_logger(__name__)

VersionsPort = Callable[[FileId, str | None], Awaitable[VersionsPage]]


class Versions:
    """`pages(file, cursor)` asks the server for the versions of a file, newest first."""

    def __init__(self, db: Database, tree: Tree, api: VersionsPort) -> None:
        self._db, self._tree, self._api = db, tree, api

    def sweep(self) -> None:
        """At start no kernel knows of them."""
        with self._db.transaction():
            self._tree.delete_drive(HISTORY)

    async def find(self, parent: int, name: str) -> Node | None:
        """The directory that `name` in `parent` means, if it means the versions of a file. Raises
        NearlineError when nothing is known of them and the server cannot be asked."""
        stem = name.removesuffix(SUFFIX)
        node = self._tree.child(parent, stem) if stem and stem != name else None
        if node is None or not node.is_regular or node.drive in (LOCAL, HISTORY, REVOKED):
            return None
        known = self._tree.live(_directory_id(node.file))
        if known is None:
            return self._show(node, stem, await self._ask(node.file))
        await self._refresh(known, node, stem)
        return self._tree.find(known.ino)

    async def look_again(self, directory: Node) -> None:
        """Somebody opens a directory that was found before: show what has come since."""
        node = None if directory.base_file is None else self._tree.live(directory.base_file)
        names = self._tree.names(node.ino) if node is not None else []
        if node is not None and names:
            await self._refresh(directory, node, names[0][1])

    async def _refresh(self, directory: Node, node: Node, name: str) -> None:
        try:
            self._show(node, name, await self._ask(node.file))
        except NearlineError as error:
            log.info("versions_not_refreshed", path=self._tree.path(node.ino), why=str(error))

    async def _ask(self, file: FileId) -> list[VersionInfo]:
        page = await self._api(file, None)
        found = list(page.versions)
        while page.next is not None:
            page = await self._api(file, page.next)
            found += page.versions
        return found

    def _show(self, node: Node, name: str, versions: list[VersionInfo]) -> Node:
        with self._db.transaction():
            now = self._tree.live(node.file)  # a new version since we asked is a new inode
            if now is None or now.drive == REVOKED:  # deleted, or not shared any more
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            directory = self._tree.live(_directory_id(now.file)) or self._directory(now)
            wanted = version_names(name, versions)
            for entry in self._tree.entries(directory.ino, 0, 1_000_000):
                if entry.name not in wanted:
                    self._tree.drop_entry(directory.ino, entry.name, entry.node)
            for shown, version in wanted.items():
                if self._tree.child(directory.ino, shown) is None:
                    one = self._version(now, version)
                    self._tree.add_entry(directory.ino, shown, one)
            return directory

    def _directory(self, node: Node) -> Node:
        fresh = self._node(_directory_id(node.file), node, "directory", 0o555)
        fresh.listed, fresh.base_file = 0, node.file
        return self._tree.insert(fresh)

    def _version(self, node: Node, version: VersionInfo) -> Node:
        id = _id("version", node.file, version.id)
        known = self._tree.live(id)
        if known is not None:
            return known
        fresh = self._node(id, node, "file", node.mode & 0o444)
        fresh.size = fresh.base_size = version.size
        fresh.version, fresh.base_file = version.id, node.file
        fresh.mtime_ns, fresh.ctime_ns = version.mtime_ns, version.created_ns
        return self._tree.insert(fresh)

    def _node(self, id: str, node: Node, kind: str, mode: int) -> Node:
        record = FileRecord(
            id=id,
            kind=kind,  # type: ignore[arg-type]  # one of two literals
            mode=mode,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            ctime_ns=node.ctime_ns,
            rev=0,
        )
        return node_from(record, HISTORY)


def _directory_id(file: FileId) -> str:
    return _id("versions of", file)


def _id(*parts: str) -> str:
    """An id that no file of a drive has, the same each time."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]
