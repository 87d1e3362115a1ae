"""Passwords are hashed and compared in threads of their own, in front of which few may wait.

Knows: how dear a password is, what it may be for. Must not know: whose it is, what it opens.

Each is 64 MiB and tens of milliseconds of work, so there are two threads for all. What passwords
are for (`PLACES`) has places of its own: whoever fills one kind of them is in nobody's way who
needs another, and no holder has all places of a kind. Kinds take turns, and so do those who wait in
one (`round_robin`): between two passwords of one address or account, one of everybody else's is
next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from remote.protocol.errors import RateLimited, Refused
from server.http.rate_limits import Places
from server.http.round_robin import RoundRobin
from server.pools import Pool

THREADS = 2
_AGAIN_SECONDS = 1.0

T = TypeVar("T")


class Allowed(NamedTuple):
    """Passwords at a time: in all, and of one holder."""

    total: int
    each: int


PLACES: Mapping[str, Allowed] = MappingProxyType(
    {
        "login": Allowed(200, 8),  # of an address
        "login at home": Allowed(50, 8),  # of an address that logged in before
        "change": Allowed(20, 2),  # of an account's own
        "link": Allowed(20, 2),  # that is made, of an account
        "visit": Allowed(100, 8),  # of a link, of an address
    }
)


class Desk:
    """Where passwords are hashed. Concurrency: the event loop."""

    def __init__(self, threads: Pool, places: Mapping[str, Allowed] = PLACES) -> None:
        self._threads = threads
        self._places = {kind: Places(*allowed) for kind, allowed in places.items()}
        self._turns: RoundRobin[asyncio.Future[None]] = RoundRobin(places)
        self._free = THREADS

    async def run(self, kind: str, holder: Hashable, work: Callable[..., T], *args: object) -> T:
        """`work(*args)`, which hashes a password, in its turn. Raises `Refused(RateLimited)`."""
        places = self._places[kind]
        if not places.take(holder):
            message = f"too many passwords at once; try again in {_AGAIN_SECONDS:g} s"
            raise Refused(RateLimited(message=message, retry_after_seconds=_AGAIN_SECONDS))
        try:
            await self._turn(kind, holder)
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, work, *args)
            finally:
                self._leave()
        finally:
            places.leave(holder)

    async def _turn(self, kind: str, holder: Hashable) -> None:
        """Wait for a thread; whoever has waited gives it up by `_leave`."""
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.join(kind, holder, called)
        self._call()
        try:
            await called
        except asyncio.CancelledError:
            self._turns.leave(kind, holder, called)
            if called.done() and not called.cancelled():
                self._leave()  # it was called at the same moment
            raise

    def _leave(self) -> None:
        self._free += 1
        self._call()

    def _call(self) -> None:
        while self._free:
            called = self._turns.next()
            if called is None:
                return
            if not called.done():
                self._free -= 1
                called.set_result(None)
