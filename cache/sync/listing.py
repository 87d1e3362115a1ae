"""Asks the server for directories and manifests that this device has not heard of, when somebody
first looks. And for directories that whoever looks may come to next, many in one request.

Knows: that the tree is lazy, and when an answer is too old to be taken. Must not know: who looks,
for how long they wait, what a listing means for names (`listing_merge` does), which directories are
likely (`frontier` does).

Concurrency: trio thread only. `_underway` holds one event for each directory that is being listed;
who finds one waits for it instead of asking. From the question to the end of the answer `underway`
notes what the feed tells of the directory; that is applied over the answer, which is merged in
pieces, with a checkpoint after each. `run` is the one task that lists what nobody waits for;
`_wanted` and `_doubted` are read by it alone. `_wanted` holds the places that were visited last,
`_doubted` directories from which a name was answered as it was known, though they are not listed
(any more): whoever asks for what is here does not wait for the network.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

import structlog
import trio

from cache.metadata.damage import DamagedState
from cache.metadata.manifests import Manifests
from cache.metadata.tree import HISTORY, LOCAL, Node, Tree
from cache.namespace.listing_merge import ListingMerge
from cache.namespace.merge import Merge
from cache.namespace.underway import Meanwhile
from cache.sync.frontier import Frontier
from remote.protocol.content import Manifest
from remote.protocol.errors import NearlineError, Unreachable
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import Child, ChildrenPage, FileRecord, FileReply, Listed, ListReply

log = structlog.get_logger(__name__)

# Entries merged without a checkpoint: some 10 ms, if nothing is known of them. What has to be
# compared one by one takes many times as long.
PIECE, LEAST = 500, 20
PIECE_SECONDS = 0.01
# Directories asked for in one request.
AHEAD_AT_ONCE = 250
# Entries and directories listed ahead for one visit, about.
AHEAD_ENTRIES = 1000
VISITS_KEPT = 4


class ReadApi(Protocol):
    """The part of `remote.http.api.ApiClient` that this module needs. Raises as that does."""

    async def children(
        self, directory: FileId, cursor: str | None = None, limit: int | None = None
    ) -> ChildrenPage: ...

    async def file(
        self, file: FileId, version: VersionId | None = None, manifest: bool = False
    ) -> FileReply: ...


class AheadApi(Protocol):
    """The same, for what nobody waits for."""

    async def list_several(self, directories: Sequence[FileId]) -> ListReply: ...


class Listing:
    """`api` is asked by those who wait, `ahead` by `run`. `collect` is called after a directory was
    listed. `keep_manifest` keeps what was asked for. `require_online` raises `Unreachable` while it
    is known that nobody answers."""

    def __init__(
        self,
        tree: Tree,
        manifests: Manifests,
        merge: Merge,
        listing_merge: ListingMerge,
        collect: Callable[[], object],
        api: ReadApi,
        ahead: AheadApi,
        keep_manifest: Callable[[VersionId, Manifest], None],
        require_online: Callable[[], None],
    ) -> None:
        self._tree, self._manifests = tree, manifests
        self._merge, self._listing_merge = merge, listing_merge
        self._collect, self._api, self._keep_manifest = collect, api, keep_manifest
        self._ahead, self._require_online = ahead, require_online
        self._underway: dict[int, trio.Event] = {}
        self._frontier = Frontier()
        self._wanted: deque[int] = deque(maxlen=VISITS_KEPT)
        self._doubted: dict[int, None] = {}
        self._visited = trio.Event()

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
        self.visit(ino)

    async def _list(self, ino: int) -> None:
        self._require_online()
        while not await self._ask(ino):
            pass
        self._collect()

    async def _ask(self, ino: int) -> bool:
        node = self._tree.node(ino)
        heard = self._merge.seq(node.drive)
        meanwhile = self._listing_merge.begin_listing(ino)
        try:
            page = await self._api.children(node.file)
            directory, as_of = page.directory, page.as_of
            children: list[Child] = list(page.children)
            while page.next is not None:
                page = await self._api.children(node.file, page.next)
                children += page.children
            # What was heard before the question is not told again.
            if as_of < heard:
                return False
            return await self._take(ino, node.drive, directory, children, as_of, meanwhile)
        finally:
            self._listing_merge.abandon_listing(ino, meanwhile)

    async def _take(
        self,
        ino: int,
        drive: str,
        directory: FileRecord,
        children: Sequence[Child],
        as_of: int,
        meanwhile: Meanwhile,
    ) -> bool:
        """Merge a complete listing; False: ask again, what happened meanwhile is not known.
        `drive` is the one that the directory was in when it was asked for: another counts its
        changes otherwise, and `as_of` would say nothing about them."""
        rest, size = iter(children), PIECE
        # What came before a reset of the feed is not to be compared with what comes after it.
        while not meanwhile.is_incomplete and (piece := list(islice(rest, size))):
            began = time.thread_time()
            self._listing_merge.list_some(ino, piece, as_of)
            size = _next_size(len(piece), time.thread_time() - began)
            if len(children) > len(piece):
                await trio.lowlevel.checkpoint()
        if self._tree.node(ino).drive != drive:
            return False
        if not self._listing_merge.end_listing(ino, directory, children, as_of, meanwhile):
            return False
        self._frontier.listed(ino, self._tree.unlisted_below(ino))
        return True

    # --- ahead of who walks ----------------------------------------------------------------------

    def visit(self, ino: int) -> None:
        """Somebody looks at the directory: `run` lists what they may come to next."""
        if self._frontier.next_after(ino, 1):
            self._wanted.append(ino)
            self._visited.set()
        self._frontier.visit(ino)

    def doubt(self, ino: int) -> None:
        """Somebody was told of a name in the directory, which is not listed: `run` lists it, and
        they hear of what has changed."""
        if ino not in self._underway:
            self._doubted[ino] = None
            self._visited.set()

    async def run(self) -> None:
        """List again what is in doubt, and ahead, until cancelled."""
        while True:
            await self._visited.wait()
            while self._doubted or self._wanted:
                if self._doubted:
                    await self.list_again()
                else:
                    await self.list_ahead(self._wanted.pop())
            self._visited = trio.Event()

    async def list_again(self) -> None:
        """List every directory that is in doubt. Of one that cannot be had now, the next who is
        told a name brings the doubt back."""
        while self._doubted:
            ino = next(iter(self._doubted))
            try:
                if self._tree.find(ino) is not None:
                    await self.ensure_listed(ino)
            except DamagedState:
                raise
            except (NearlineError, OSError) as error:  # OSError: a full disk, or it is gone here
                log.debug("not_listed_again_yet", why=str(error))
            self._doubted.pop(ino, None)

    async def list_ahead(self, ino: int) -> None:
        """List what whoever came to the directory may come to next, about `AHEAD_ENTRIES`."""
        left = AHEAD_ENTRIES
        while left > 0:
            places = self._places(self._frontier.next_after(ino, AHEAD_AT_ONCE))
            if not places:
                return
            taken = await self._list_several(places)
            if not taken:
                return
            left -= taken

    def _places(self, wanted: Sequence[int]) -> dict[FileId, int]:
        """The inodes of those that can be asked for; the others are not likely any more."""
        places = {}
        for ino in wanted:
            if ino in self._underway:
                continue
            node = self._tree.find(ino)
            if node is not None and node.live and node.listed is None and _is_remote(node):
                places[node.file] = ino
            else:
                self._frontier.drop(ino)
        return places

    async def _list_several(self, places: dict[FileId, int]) -> int:
        """The number of entries and directories that came; 0 also when nobody answers."""
        heard = {ino: self._merge.seq(self._tree.node(ino).drive) for ino in places.values()}
        underway = {ino: trio.Event() for ino in heard}
        self._underway |= underway
        meanwhile = {ino: self._listing_merge.begin_listing(ino) for ino in underway}
        taken = 0
        try:
            self._require_online()
            reply = await self._ahead.list_several(list(places))
            if not reply.listed or reply.listed[0].directory.id != next(iter(places)):
                self._frontier.drop(next(iter(underway)))  # too large to be guessed
                taken = 1
            for listed in reply.listed:
                ino = places.get(listed.directory.id)
                if ino not in underway or listed.as_of < heard[ino]:
                    continue
                if await self._take_ahead(ino, listed, meanwhile[ino]):
                    taken += 1 + len(listed.children)
                    del self._underway[ino]
                    underway.pop(ino).set()
            self._collect()
        except DamagedState:
            raise
        except (NearlineError, OSError) as error:  # OSError: a full disk, or it is gone here
            log.debug("not_listed_ahead", why=str(error))
        finally:
            for ino, done in underway.items():
                self._listing_merge.abandon_listing(ino, meanwhile[ino])
                del self._underway[ino]
                done.set()
        return taken

    async def _take_ahead(self, ino: int, listed: Listed, meanwhile: Meanwhile) -> bool:
        node = self._tree.find(ino)
        if node is None or not node.live:
            return False
        directory, children, as_of = listed.directory, listed.children, listed.as_of
        taken = await self._take(ino, node.drive, directory, children, as_of, meanwhile)
        await trio.lowlevel.checkpoint()
        return taken

    # --- manifests -------------------------------------------------------------------------------

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


def _next_size(size: int, seconds: float) -> int:
    """Entries to merge next, so that it takes about `PIECE_SECONDS`, if `size` took `seconds`."""
    fitting = int(size * PIECE_SECONDS / seconds) if seconds else PIECE
    return min(PIECE, max(LEAST, fitting))


def _is_remote(node: Node) -> bool:
    return node.drive not in (LOCAL, HISTORY)
