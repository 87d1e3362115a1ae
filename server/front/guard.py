"""What every request passes before it is routed, and what every answer carries.

Knows: targets, proxies, rates, headers that keep browsers and caches from doing harm. Must not
know: routes, accounts' rights.

Rates count requests of the API and of pages, not signed URLs of chunks: those were given out by
requests that were counted. Visits to links, their pages and the URLs of their content, which may be
asked for any part of it any number of times, have rates of their own: by address, so that many
links are not many more visits, and by link, so that many addresses are not. Rates are of one
process, and start full.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, MutableMapping
from typing import Any, NamedTuple

from remote.errors import BadRequest, Problem, RateLimited
from server.front import targets
from server.front.answers import Message, header
from server.front.known import KnownCallers
from server.front.limits import TokenBuckets
from server.front.proxies import TrustedProxies, client_of, limited_as
from server.metrics import Metrics
from server.service import token_of
from server.settings import Settings

Receive = Callable[[], Awaitable[Message]]
Headers = list[tuple[bytes, bytes]]
Turn = tuple[str, TokenBuckets, Hashable]
"""What is counted, where, and for whom."""

PATIENCE_SECONDS = 2.0
"""A request above the rate waits so long for its turn. Most clients, who have few requests under
way at a time, are slowed down that way and never refused."""

UNCOUNTED = ("/blobs/", "/chunks/", "/content/", "/healthz", "/readyz")
VISITED = ("/content/", "/s/")
"""Followed by what names the link: its id, or its secret."""

_ALWAYS: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_WITH_TLS: Headers = [(b"strict-transport-security", b"max-age=31536000")]


class Turned(NamedTuple):
    """A request is not let in: `status` is that of the problem if None. `close`: what else the
    connection brings is not looked at."""

    problem: Problem
    status: int | None = None
    close: bool = False


class TooSlow(Exception):
    """Nothing of the request's body arrived for too long."""


class Guard:
    """The checks of one server. Concurrency: the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, known: KnownCallers) -> None:
        tunables = settings.tunables
        self._proxies = TrustedProxies(tunables.trusted_proxies)
        self._addresses = _paced(tunables.address_rate, tunables.address_burst)
        self._accounts = _paced(tunables.account_rate, tunables.account_burst)
        self._visitors = _paced(tunables.visitor_rate, tunables.visitor_burst)
        self._links = _paced(tunables.link_rate, tunables.link_burst)
        self._metrics, self._known = metrics, known
        self._defaults = _ALWAYS + (_WITH_TLS if settings.public_url.startswith("https:") else [])

    async def admit(self, scope: MutableMapping[str, Any]) -> Turned | None:
        """Let a request in: None, perhaps after a while; or why not. `scope` then says who the
        client is, whatever proxies are in between."""
        self._proxies.place(scope)
        fault = targets.fault(scope["raw_path"], scope["query_string"])
        if fault is not None:
            return Turned(BadRequest(message=fault))
        if header(scope, b"transfer-encoding"):
            problem = BadRequest(message="send a Content-Length, and no Transfer-Encoding")
            return Turned(problem, 411, close=True)
        return await self._paced(scope)

    def _turns(self, scope: MutableMapping[str, Any]) -> Iterator[Turn]:
        """What this request counts for, the narrowest first: whoever has no turn by that takes none
        from others."""
        client = limited_as(client_of(scope))
        if scope["path"].startswith(VISITED):
            link = scope["path"].split("/")[2]
            yield "visitor", self._visitors, client
            yield "link", self._links, hashlib.sha256(link.encode()).digest()
        if not scope["path"].startswith(UNCOUNTED):
            yield "address", self._addresses, client
            known = self._known.of(token_of(header(scope, b"authorization").decode("latin-1")))
            if known is not None:
                yield "account", self._accounts, known.account

    async def _paced(self, scope: MutableMapping[str, Any]) -> Turned | None:
        """Wait for each of this request's turns."""
        for what, buckets, key in self._turns(scope):
            booked, seconds = buckets.book(key, time.monotonic(), PATIENCE_SECONDS)
            if not booked:
                self._metrics.limited.labels(what).inc()
                message = f"too many requests of this {what}; try again in {seconds:.1f} s"
                after = round(seconds + 0.001, 3)
                return Turned(RateLimited(message=message, retry_after_seconds=after))
            if seconds:
                await asyncio.sleep(seconds)
        return None

    def secured(self, headers: Headers) -> Headers:
        """The headers of an answer, with the default of each that its route did not set."""
        given = {name.lower() for name, _ in headers}
        return headers + [each for each in self._defaults if each[0] not in given]


def patient(receive: Receive, seconds: float) -> Receive:
    """`receive`, but raising `TooSlow` when nothing of the body arrives for `seconds`."""
    more = True

    async def wait() -> Message:
        nonlocal more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError:
            raise TooSlow from None
        more = message.get("more_body", False)
        return message

    return wait


def _paced(rate: float, burst: int) -> TokenBuckets:
    return TokenBuckets(burst, 1 / rate)
