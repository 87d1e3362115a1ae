"""What a device has not heard of yet, asked of the server when somebody first looks: directories
and manifests.

Knows: that the tree is lazy, and when an answer is too old to be taken. Must not know: who looks,
for how long they wait, what a listing means for names (`merge` does).

Concurrency: trio thread only. `_underway` holds one event for each directory that is being listed;
who finds one waits for it instead of asking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from cache.metadata.manifests import Manifests
from cache.metadata.tree import Tree
from cache.namespace.merge import Merge
from remote.protocol.content import Manifest
from remote.protocol.errors import Unreachable
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import Child, ChildrenPage, FileReply


class ReadApi(Protocol):
    """The part of `remote.http.api.ApiClient` that this module needs. Raises as that does."""

    async def children(
        self, directory: FileId, cursor: str | None = None, limit: int | None = None
    ) -> ChildrenPage: ...

    async def file(
        self, file: FileId, version: VersionId | None = None, manifest: bool = False
    ) -> FileReply: ...


class Listing:
    """`collect` is called after a directory was listed. `keep_manifest` keeps what was asked for.
    `require_online` raises `Unreachable` while it is known that nobody answers."""

    def __init__(
        self,
        tree: Tree,
        manifests: Manifests,
        merge: Merge,
        collect: Callable[[], object],
        api: ReadApi,
        keep_manifest: Callable[[VersionId, Manifest], None],
        require_online: Callable[[], None],
    ) -> None:
        self._tree, self._manifests, self._merge = tree, manifests, merge
        self._collect, self._api, self._keep_manifest = collect, api, keep_manifest
        self._require_online = require_online
        self._underway: dict[int, trio.Event] = {}

    async def ensure_listed(self, ino: int) -> None:
        """Return when every entry of the directory is in the tree. Raises NearlineError."""
        node = self._tree.node(ino)
        if node.is_directory and node.listed is None and node.live:
            await self.list_directory(ino)

    async def list_directory(self, ino: int) -> None:
        """Ask the server for the directory, once however many callers wait."""
        while (underway := self._underway.get(ino)) is not None:
            await underway.wait()
            node = self._tree.find(ino)
            if node is None or node.listed is not None:
                return
        self._underway[ino] = done = trio.Event()
        try:
            await self._list(ino)
        finally:
            del self._underway[ino]
            done.set()

    async def _list(self, ino: int) -> None:
        self._require_online()
        while True:
            node = self._tree.node(ino)
            file, drive = node.file, node.drive
            page = await self._api.children(file)
            directory, as_of = page.directory, page.as_of
            children: list[Child] = list(page.children)
            while page.next is not None:
                page = await self._api.children(file, page.next)
                children += page.children
            # The feed may have run ahead of this answer, and what it said of a directory that was
            # not listed was dropped: then the answer is too old, and a newer one is there.
            if as_of >= self._merge.seq(drive):
                self._merge.list_directory(ino, directory, children, as_of)
                self._collect()
                return

    async def manifest_of(self, file: FileId, version: VersionId) -> Manifest:
        """The manifest, from here or from the server."""
        known = self._manifests.manifest(version)
        if known is not None:
            return known
        reply = await self._api.file(file, version, manifest=True)
        if reply.manifest is None:
            raise Unreachable(f"the server has no manifest of version {version}")
        self._keep_manifest(version, reply.manifest)
        return reply.manifest
