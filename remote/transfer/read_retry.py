"""Questions on an application's path that are asked again when the answer is "not now".

Knows: how long a read waits, and what it waits for (`errors.RULES` says how patient one is with
each problem). Must not know: what is asked, who asks, how the server is found to be gone.

A read must neither fail for what is over in a moment, nor wait for what is not: who is told "not
now" asks again, at growing intervals or when the server said, for as long as the error's
`patience`. While it is known that the server cannot be reached nobody waits: `down` ends all waits.

Concurrency: trio thread only; any number of tasks may wait. A wait ends when it is over,
when it is cancelled, or when `down` is said.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from remote.protocol import backoff
from remote.protocol.errors import NearlineError
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import (
    ChildrenPage,
    FileReply,
    LocateReply,
    LocateRequest,
    LocateSeveral,
    LocateSeveralReply,
    VersionsPage,
)

BASE_SECONDS = 0.25
CAP_SECONDS = 4.0

T = TypeVar("T")


def next_wait(error: NearlineError, attempt: int, waited: float, jitter: float) -> float | None:
    """Seconds until to ask again, after failure number `attempt` (from 0), `waited` seconds after
    the first one; None: not at all. `jitter` in [0, 1). Pure.

    When the server says that it will take longer than patience lasts, there is no sense in waiting
    until then."""
    left = error.patience - waited
    if left <= 0 or (error.retry_after or 0.0) > left:
        return None
    asked = error.retry_after
    wait = backoff.delay(attempt, jitter, base=BASE_SECONDS, cap=CAP_SECONDS, retry_after=asked)
    return min(wait, left)


class ReadRetries:
    """One for all reads of a mount."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._is_down = False
        self._changed = trio.Event()

    def down(self, is_down: bool) -> None:
        """Take note whether the server is known to be out of reach."""
        self._is_down = is_down
        if is_down:
            self._changed.set()
            self._changed = trio.Event()

    def question(self) -> Question:
        """Before it is asked for the first time."""
        return Question(self, self._jitter)

    async def wait(self, seconds: float) -> bool:
        """True if it was waited out."""
        if self._is_down:
            return False
        with trio.move_on_after(seconds) as waiting:
            await self._changed.wait()
        return waiting.cancelled_caught


class Question:
    """One question: how often it was asked in vain, and for how long it was waited with."""

    def __init__(self, retries: ReadRetries, jitter: Callable[[], float]) -> None:
        self._retries, self._jitter = retries, jitter
        self._since: float | None = None
        self._attempt = 0

    async def may_go_on(self, error: NearlineError) -> bool:
        """Wait, and say True to ask again; or say at once that `error` is the answer."""
        now = trio.current_time()
        self._since = now if self._since is None else self._since
        wait = next_wait(error, self._attempt, now - self._since, self._jitter())
        self._attempt += 1
        return wait is not None and await self._retries.wait(wait)


class ReadApi(Protocol):
    """The part of `api.ApiClient` that reads need."""

    async def children(
        self, directory: FileId, cursor: str | None = None, limit: int | None = None
    ) -> ChildrenPage: ...

    async def file(
        self, file: FileId, version: VersionId | None = None, manifest: bool = False
    ) -> FileReply: ...

    async def versions(self, file: FileId, cursor: str | None = None) -> VersionsPage: ...

    async def locate(self, request: LocateRequest) -> LocateReply: ...

    async def locate_several(self, request: LocateSeveral) -> LocateSeveralReply: ...

    async def get_range(
        self, url: str, start: int, end_exclusive: int, into: bytearray | memoryview
    ) -> int: ...

    async def connect_ahead(self, connections: int) -> None: ...


class RetriedReads:
    """The same questions, asked with patience. It raises what `api` does."""

    def __init__(self, api: ReadApi, retries: ReadRetries) -> None:
        self._api, self.retries = api, retries

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        question = self.retries.question()
        while True:
            try:
                return await ask()
            except NearlineError as error:
                if not await question.may_go_on(error):
                    raise

    async def children(
        self, directory: FileId, cursor: str | None = None, limit: int | None = None
    ) -> ChildrenPage:
        return await self._ask(lambda: self._api.children(directory, cursor, limit))

    async def file(
        self, file: FileId, version: VersionId | None = None, manifest: bool = False
    ) -> FileReply:
        return await self._ask(lambda: self._api.file(file, version, manifest))

    async def versions(self, file: FileId, cursor: str | None = None) -> VersionsPage:
        return await self._ask(lambda: self._api.versions(file, cursor))

    async def locate(self, request: LocateRequest) -> LocateReply:
        return await self._ask(lambda: self._api.locate(request))

    async def locate_several(self, request: LocateSeveral) -> LocateSeveralReply:
        """Asked once: nobody waits for it."""
        return await self._api.locate_several(request)

    async def get_range(
        self, url: str, start: int, end_exclusive: int, into: bytearray | memoryview
    ) -> int:
        """Asked once: who fetches knows what has come already, and must not hold a connection
        while it waits (`download`)."""
        return await self._api.get_range(url, start, end_exclusive, into)

    async def connect_ahead(self, connections: int) -> None:
        """Tried once: it is no question."""
        await self._api.connect_ahead(connections)
