"""Checks that every request passes before it is routed, and headers that every answer carries.

Knows: targets, proxies, rates, who may send how large a body, headers that keep browsers and caches
from doing harm. Must not know: routes beyond what is said here, accounts' rights.

Rates count requests of the API and of pages, not signed URLs of chunks: those were given out by
requests that were counted. Visits to links, their pages and the URLs of their content, which may be
asked for any part of it any number of times, have rates of their own: by address, so that many
links are not many more visits, and by link, so that many addresses are not. What is refused to
strangers is counted whatever it was sent to. Rates are of one process, and start full.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from typing import Any, NamedTuple

from remote.protocol.errors import BadRequest, Problem, RateLimited, Refused
from server.addresses import TrustedProxies, client_of, limited_as, site_of
from server.http import bodies, request_target
from server.http.bearer import token_of
from server.http.bodies import GONE_STATUS, Bodies, Body, Receive
from server.http.password_tries import PasswordTries
from server.http.problems import header
from server.http.rate_limits import TokenBuckets
from server.http.recent_tokens import RecentTokens, TokenHolder
from server.metrics import Metrics
from server.settings import Settings

Headers = list[tuple[bytes, bytes]]
# What is counted, where, and for whom.
Turn = tuple[str, TokenBuckets, Hashable]

# A request above the rate waits so long for its turn. Most clients, who have few requests under way
# at a time, are slowed down that way and never refused.
LONGEST_SECONDS = 2.0

_HEALTH = frozenset({"/healthz", "/readyz"})
_SIGNED = ("/blobs/", "/chunks/", "/content/")
_LOGIN, _LINK = "/v1/login", "/s/"
"""What takes a password: whoever sends one is a stranger, with a token too."""

# Followed by what names the link: its id, or its secret.
_VISITED = ("/content/", _LINK)

# Answers that a stranger has so many of. Not 412 and 416, which follow a good signature.
REFUSALS = frozenset({400, 401, 403, 404, 405, 411, 413, GONE_STATUS})

# An IPv6 site of 48 bits may have so many times what one of its networks of 64 bits may.
_SITE = 4

_ALWAYS: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_WITH_TLS: Headers = [(b"strict-transport-security", b"max-age=31536000")]


class Refusal(NamedTuple):
    """A request is not let in: `status` is that of the problem if None. `close`: what else the
    connection brings is not looked at."""

    problem: Problem
    status: int | None = None
    close: bool = False


def is_free(path: str) -> bool:
    """True if requests for `path` are not counted unless they are refused."""
    return path in _HEALTH or path.startswith(_SIGNED)


class Admission:
    """The checks of one server. Concurrency: the event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        recent_tokens: RecentTokens,
        tries: PasswordTries,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        tunables = settings.tunables
        self._proxies = TrustedProxies(tunables.trusted_proxies)
        self._addresses = _paced(tunables.address_rate, tunables.address_burst)
        self._sites = _paced(_SITE * tunables.address_rate, _SITE * tunables.address_burst)
        self._accounts = _paced(tunables.account_rate, tunables.account_burst)
        self._refusals = _paced(tunables.refusal_rate, tunables.refusal_burst)
        self._visitors = _paced(tunables.visitor_rate, tunables.visitor_burst)
        self._links = _paced(tunables.link_rate, tunables.link_burst)
        self.bodies = Bodies(tunables, metrics)
        self._metrics, self._recent_tokens = metrics, recent_tokens
        self._tries, self._clock = tries, clock
        self._defaults = _ALWAYS + (_WITH_TLS if settings.public_url.startswith("https:") else [])

    async def admit(self, scope: MutableMapping[str, Any], receive: Receive) -> Refusal | None:
        """Let a request in: None, perhaps after a while; or why not. `scope` then says who the
        client is, whatever proxies are in between, and has the request's body."""
        self._proxies.place(scope)
        fault = request_target.fault(scope["raw_path"], scope["query_string"])
        if fault is not None:
            return Refusal(BadRequest(message=fault), close=True)
        if header(scope, b"transfer-encoding"):
            problem = BadRequest(message="send a Content-Length, and no Transfer-Encoding")
            return Refusal(problem, 411, close=True)
        holder = self._recent_tokens.of(_token(scope))
        try:
            self._take_in(scope, receive, holder)
        except Refused as error:
            return Refusal(error.problem, close=True)
        if holder is not None:
            self._tries.is_home(("account", holder.account), client_of(scope))
        return await self._paced(scope, holder)

    def _take_in(
        self, scope: MutableMapping[str, Any], receive: Receive, holder: TokenHolder | None
    ) -> None:
        """Find room for the body before any of it is waited for. Raises `Refused`."""
        if scope["type"] == "http":
            body = bodies.begin(self.bodies, scope, receive)
            if body.length:
                _judge(body, scope, holder)

    def _turns(self, scope: MutableMapping[str, Any], holder: TokenHolder | None) -> Iterator[Turn]:
        """The limits that this request counts for, the narrowest first: whoever has no turn by that
        takes none from others."""
        client, path = client_of(scope), scope["path"]
        address, site = limited_as(client), site_of(client)
        if path.startswith(_VISITED):
            link = path.split("/")[2]
            yield "visitor", self._visitors, address
            yield "link", self._links, hashlib.sha256(link.encode()).digest()
        if is_free(path):
            return
        yield "address", self._addresses, address
        if site != address:
            yield "address", self._sites, site
        if holder is not None:
            yield "account", self._accounts, holder.account

    async def _paced(
        self, scope: MutableMapping[str, Any], holder: TokenHolder | None
    ) -> Refusal | None:
        """Wait for each of this request's turns."""
        for what, buckets, key in self._turns(scope, holder):
            booked, seconds = buckets.book(key, self._clock(), LONGEST_SECONDS)
            if not booked:
                self._metrics.limited.labels(what).inc()
                message = f"too many requests of this {what}; try again in {seconds:.1f} s"
                after = round(seconds + 0.001, 3)
                return Refusal(RateLimited(message=message, retry_after_seconds=after))
            if seconds:
                await asyncio.sleep(seconds)
        return None

    def refusal(self, scope: MutableMapping[str, Any]) -> RateLimited | None:
        """Count that something is refused to the client of `scope`. None: it may be told so; else
        what to answer instead, and not to log."""
        seconds = self._refusals.take(limited_as(client_of(scope)), self._clock())
        if not seconds:
            return None
        self._metrics.limited.labels("refusals").inc()
        message = f"too much of what this address asks is refused; try again in {seconds:.1f} s"
        return RateLimited(message=message, retry_after_seconds=round(seconds + 0.001, 3))

    def secured(self, headers: Headers) -> Headers:
        """The headers of an answer, with the default of each that its route did not set."""
        given = {name.lower() for name, _ in headers}
        return headers + [item for item in self._defaults if item[0] not in given]


def _judge(body: Body, scope: MutableMapping[str, Any], holder: TokenHolder | None) -> None:
    """Say whose `body` is, as far as its head tells. Raises `Refused`."""
    method, path, address = scope["method"], scope["path"], limited_as(client_of(scope))
    if method not in ("POST", "PUT"):
        body.is_unwanted()
    elif method == "PUT" and path.startswith("/blobs/"):
        body.is_signed()
    elif path == _LOGIN or path.startswith(_LINK) or not _token(scope):
        body.is_strangers(address)
    elif holder is None:
        body.is_claimed(address)
    else:
        body.is_identified(holder.account)


def _token(scope: MutableMapping[str, Any]) -> str | None:
    return token_of(header(scope, b"authorization").decode("latin-1"))


def _paced(rate: float, burst: int) -> TokenBuckets:
    return TokenBuckets(burst, 1 / rate)
