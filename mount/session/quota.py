"""Use and quota of the account, for statfs: asked of the server behind the answer, never before.

Knows: when what is known is too old. Must not know: the numbers (`session`), statfs.

`asked` is called by every statfs and only marks that somebody looks. What is known is refreshed at
the start, when somebody looks and it is older than `FRESH_SECONDS`, and when an upload has made
room here: what waited is then in the server's count, and would otherwise be in none.

Concurrency: one `run` task; `asked` may be called by any task of the trio run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from cache.files.contents import Contents
from cache.metadata.journal import Journal

FRESH_SECONDS = 10.0


class AccountWatch:
    """`refresh` asks the server and keeps what it says; it raises nothing that is expected."""

    def __init__(
        self, refresh: Callable[[], Awaitable[None]], journal: Journal, contents: Contents
    ) -> None:
        self._refresh, self._journal, self._contents = refresh, journal, contents
        self._refreshed_at = float("-inf")
        self._wanted = trio.Event()

    def asked(self) -> None:
        """Somebody looks at what is known. Cheap."""
        if trio.current_time() - self._refreshed_at > FRESH_SECONDS:
            self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_uploads)
            while True:
                self._wanted = trio.Event()
                self._refreshed_at = trio.current_time()
                await self._refresh()
                await self._wanted.wait()
                # Many small files are not a question each.
                await trio.sleep_until(self._refreshed_at + FRESH_SECONDS)

    async def _watch_uploads(self) -> None:
        dirty = self._contents.dirty_bytes
        while True:
            await self._journal.changed.wait()
            before, dirty = dirty, self._contents.dirty_bytes
            if dirty < before:
                self._wanted.set()
