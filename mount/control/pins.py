"""Pinned and warmed paths: content that is here before anybody reads it.

Knows: what is pinned (a table of file ids; a pinned directory means all that is in it, also later),
and keeping it fetched as versions change. Must not know: how fetching works
(`cache.blocks.reader`), what eviction does (`cache.blocks.cache` is only told which chunks to
spare).

What could not be fetched is tried again when the server, or the host of content, is there again,
when something changes, and at growing intervals; one file that cannot be had keeps no other away.

Concurrency: one task at a time works on pins (`_working`); requests wait for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
import trio

from cache.metadata.tree import Node
from mount.control.paths import resolve
from mount.session.backpressure import first_of
from mount.session.session import Session
from remote.protocol import backoff
from remote.protocol.content import HOLE
from remote.protocol.errors import NearlineError, Unreachable

log = structlog.get_logger(__name__)

# After a change, so that a burst of them is one look.
BURST_SECONDS = 1.0

OnFetched = Callable[[int, int], Awaitable[None]]  # files done, files known so far


class Pins:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._working = trio.Lock()
        self._lacking = trio.Event()  # set when somebody pinned what could not be fetched

    async def pin(self, path: str, on_fetched: OnFetched) -> None:
        """Keep `path` on this machine; returns when it is here. What cannot be fetched now is
        pinned all the same, and comes later."""
        node = await resolve(self._session, path)
        with self._session.db.transaction():
            self._session.db.run("INSERT OR IGNORE INTO pin VALUES (?)", node.file)
        try:
            await self._fetch(node, on_fetched, keep=True)
        except BaseException:  # also when the asker goes away
            self._lacking.set()
            raise

    async def unpin(self, path: str) -> None:
        node = await resolve(self._session, path)
        with self._session.db.transaction():
            self._session.db.run("DELETE FROM pin WHERE file = ?", node.file)
        async with self._working:
            async for item in self._files(node):
                await self._session.blocks.unpin(item.file)
        if not await self._refresh():  # what lies under another pin stays
            self._lacking.set()

    async def warm(self, path: str, on_fetched: OnFetched) -> None:
        """Fetch `path` once."""
        await self._fetch(await resolve(self._session, path), on_fetched, keep=False)

    async def run(self) -> None:
        """Fetch what is pinned and its new versions, as they come, until cancelled."""
        failures = 0
        while True:
            changed, back = self._session.merge.changed, self._session.back
            self._lacking = trio.Event()
            failures = 0 if await self._refresh() else failures + 1
            pause = backoff.delay(failures - 1, random.random()) if failures else math.inf
            with trio.move_on_after(pause):
                await first_of(changed, back, self._lacking)
            await trio.sleep(BURST_SECONDS)

    async def _refresh(self) -> bool:
        """True if all that is pinned is here now."""
        async with self._working:
            whole = True
            for row in self._session.db.all("SELECT file FROM pin"):
                node = self._session.tree.live(row["file"])
                if node is not None:
                    whole &= await self._fetch_what_can_be(node)
            return whole

    async def _fetch_what_can_be(self, node: Node) -> bool:
        """True if all of it is here now."""
        whole = True
        try:
            async for item in self._files(node):
                try:
                    await self._fetch_one(item, keep=True)
                except Unreachable:
                    raise
                except (NearlineError, OSError) as error:
                    log.info("pinned_file_not_fetched_yet", file=item.file, why=str(error))
                    whole = False
        except (NearlineError, OSError) as error:
            log.info("pinned_content_not_fetched_yet", why=str(error))
            return False
        return whole

    async def _fetch(self, node: Node, on_fetched: OnFetched, *, keep: bool) -> None:
        async with self._working:
            files = [item async for item in self._files(node)]
            for number, item in enumerate(files):
                await on_fetched(number, len(files))
                await self._fetch_one(item, keep=keep)
            await on_fetched(len(files), len(files))

    async def _fetch_one(self, node: Node, *, keep: bool) -> None:
        session = self._session
        if node.version is None or node.base_file is None or node.base_size == 0:
            return
        if session.reader.cached_bytes(node.version) != node.base_size:
            session.require_online()
            await session.reader.warm(node.base_file, node.version)
        if keep:
            manifest = await session.listing.manifest_of(node.base_file, node.version)
            chunks = [piece.id for piece in manifest.pieces if piece.id != HOLE]
            await session.blocks.pin(node.file, chunks)

    async def _files(self, node: Node) -> AsyncIterator[Node]:
        """Every regular file at or under the node."""
        below = [node]
        while below:
            node = below.pop()
            if node.is_regular:
                yield node
            elif node.is_directory:
                await self._session.ensure_listed(node.ino)
                after = 0
                while page := self._session.tree.entries(node.ino, after, 500):
                    below += [entry.node for entry in page]
                    after = page[-1].cookie
