"""Bodies of requests: how large one may be, how slowly it may come, how much is held of all.

Knows: what uvicorn holds of a body that nobody takes. Must not know: routes, whose a token is (it
is told), the database.

Three kinds of senders, each with room of its own, so that none can use up another's:
- strangers, without a token: a login, the password of a link. Their bodies are small.
- claimed: there is a token, and nobody has looked yet whether it is good. Nothing large of the body
  is taken before that is done (`Body.trust`), so their room is never held for long.
- trusted: a good token, or a good signature.

Room is counted in bytes: what the application was handed and has not let go of, and what uvicorn
may hold besides, at most `BUFFERED`, as long as so much can still come. Who finds it full is told
to come again.

Concurrency: the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable, MutableMapping
from typing import Any, NamedTuple

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from remote.protocol.errors import RateLimited, Refused, TooLarge
from server.http.problems import Message, header
from server.http.rate_limits import SharedBytes
from server.metrics import Metrics
from server.settings import Tunables

Receive = Callable[[], Awaitable[Message]]

# The largest body of who has shown nothing good yet. A login of the longest name, password and
# device, with every character of them escaped, is a little less.
STRANGER_BYTES = 20 * 1024

# Uvicorn stops reading when more than its mark waits to be taken; what came last is one read of the
# event loop's, at most 256 KiB.
BUFFERED = HIGH_WATER_LIMIT + 256 * 1024

AGAIN_SECONDS = 1.0

# How long, and (`body_limit`) how much of, a body that was answered before it had all come is read
# and thrown away. A client that is still sending when its connection is closed may get a reset
# instead of the answer (RFC 9112, section 9.6): a refused URL would look like a network's fault.
DRAIN_SECONDS = 2.0

_KEY = "nearline.body"


class TooSlow(Exception):
    """The request's body did not come as fast as it must."""


class ClientGone(Exception):
    """The client went away before all of the request's body had come."""


# For the log and the metrics, where nobody is left to answer: nginx's for the same case, and no
# fault of the server's as a 500 would be.
GONE_STATUS = 499


class BodyDeadlines(NamedTuple):
    """Bounds on the wait for a body: never `idle` seconds for nothing; on average at least `floor`
    bytes a second, from `idle` seconds on; and `total` seconds in all."""

    idle: float
    floor: float
    total: float

    def left(self, waited: float, taken: int) -> float:
        """Seconds to wait for the next bytes, after `waited` seconds in all for `taken` bytes."""
        by_rate = self.idle + taken / self.floor - waited
        return max(0.0, min(self.idle, by_rate, self.total - waited))


class Bodies:
    """All bodies of one server, and the room that there is for them."""

    def __init__(self, tunables: Tunables, metrics: Metrics) -> None:
        self.deadlines = BodyDeadlines(
            tunables.body_seconds, tunables.body_floor, tunables.body_total_seconds
        )
        self.limit = tunables.body_limit
        eighth = tunables.body_memory_bytes // 8
        self.strangers, self.claimed = SharedBytes(eighth), SharedBytes(eighth)
        # An eighth more is for what comes ahead of its turn (`protocols`).
        self.trusted = SharedBytes(tunables.body_memory_bytes - 3 * eighth)
        self.metrics = metrics
        metrics.body_bytes.set_function(lambda: self.held)

    @property
    def held(self) -> int:
        """Bytes of room that are taken."""
        return self.strangers.taken + self.claimed.taken + self.trusted.taken


class Body:
    """The body of one request; call it for the next ASGI message.

    `length` is what its head announces (nothing else is let in), `more` that not all of it was
    handed over. `end` it when the request is answered.
    """

    def __init__(self, bodies: Bodies, receive: Receive, length: int) -> None:
        self._bodies, self._receive = bodies, receive
        self.length = length
        self.more = length > 0
        self.is_trusted = False
        self._is_drained = False
        self._room: SharedBytes | None = None
        self._holder: Hashable = None
        self._waited = 0.0
        self._came = self._gone = self._counted = 0

    # --- who sends it ---

    def is_strangers(self, address: Hashable) -> None:
        """The sender has no token. Raises `Refused`."""
        self._check_length(STRANGER_BYTES)
        self._move(self._bodies.strangers, address)

    def is_claimed(self, address: Hashable) -> None:
        """The sender has a token that nobody has looked at. Raises `Refused`."""
        self._is_drained = True
        self._check_length(self._bodies.limit)
        self._move(self._bodies.claimed, address)

    def is_identified(self, account: Hashable) -> None:
        """The sender's token was good a moment ago. Raises `Refused`."""
        self._check_length(self._bodies.limit)
        self.trust(account)

    def is_signed(self) -> None:
        """The signature in the target says how long it is. It is checked at once, before anything
        else happens, and the body trusted then."""
        self._is_drained = True

    def is_unwanted(self) -> None:
        """There should be none. Raises `Refused`."""
        self._check_length(0)

    def trust(self, holder: Hashable) -> None:
        """It is as large as `holder`, an account or a drive, may send. Raises `Refused`."""
        if not self.is_trusted:
            self._move(self._bodies.trusted, holder)
            self.is_trusted = self._is_drained = True

    def _check_length(self, limit: int) -> None:
        if self.length > limit:
            allowed = f"at most {limit} bytes" if limit else "none"
            raise Refused(TooLarge(message=f"the body is too large: send {allowed} here"))

    # --- what comes ---

    async def __call__(self) -> Message:
        """The next message. Raises `TooSlow`, `ClientGone` (which an end after the body is not), or
        `Refused` with TooLarge or RateLimited."""
        if not self.more:
            return await self._receive()
        if not self.is_trusted:
            self._check_length(STRANGER_BYTES)
        message = await self._wait()
        if message["type"] == "http.disconnect":
            self.more = False  # nothing can come any more
            raise ClientGone
        self._came += len(message.get("body", b""))
        self.more = message.get("more_body", False)
        self._count()
        return message

    async def _wait(self) -> Message:
        """Only waiting counts against the sender, not what is done with the bytes meanwhile."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self._bodies.deadlines.left(self._waited, self._came)):
                return await self._receive()
        except TimeoutError:
            raise TooSlow from None
        finally:
            self._waited += clock() - began

    def has_room(self) -> bool:
        """True if as much as may come next would find room too."""
        return self._room is None or self._room.has(self._holder, self._missing(2 * BUFFERED))

    # --- what is held ---

    def let_go(self) -> None:
        """Nothing that came so far is held any more."""
        self._gone = self._came
        self._count()

    async def drain(self) -> None:
        """Let the sender get to know the answer, which it was given already: take what still comes,
        and keep none of it. For who has no token or signature nothing is taken."""
        if not self._is_drained:
            return
        taken = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self.more and taken < self._bodies.limit:
                    message = await self._receive()
                    taken += len(message.get("body", b""))
                    self.more = message.get("more_body", False)

    def end(self) -> None:
        """The request is answered."""
        if self._room is not None:
            self._room.give_back(self._holder, self._counted)
        self._room, self._counted = None, 0

    def _move(self, room: SharedBytes, holder: Hashable) -> None:
        self.end()
        self._room, self._holder = room, holder
        self._count()

    def _missing(self, besides: int) -> int:
        """Bytes of room to take, for what is held and as much of the rest as `besides`."""
        left, held = max(0, self.length - self._gone), self._came - self._gone
        return min(left, held + besides) - self._counted

    def _count(self) -> None:
        """Have as much room as is needed now. Raises `Refused(RateLimited)`."""
        if self._room is None:
            return
        more = self._missing(BUFFERED)
        if more > 0 and not self._room.take(self._holder, more):
            self._bodies.metrics.limited.labels("bodies").inc()
            message = f"too much is being sent at once; try again in {AGAIN_SECONDS:g} s"
            raise Refused(RateLimited(message=message, retry_after_seconds=AGAIN_SECONDS))
        if more < 0:
            self._room.give_back(self._holder, -more)
        self._counted += more


def begin(bodies: Bodies, scope: MutableMapping[str, Any], receive: Receive) -> Body:
    """The body of the request of `scope`, to be found there (`body_of`) until it ends."""
    announced = header(scope, b"content-length")
    body = Body(bodies, receive, int(announced) if announced.isdigit() else 0)
    scope[_KEY] = body
    return body


def body_of(scope: MutableMapping[str, Any]) -> Body:
    found = scope[_KEY]
    assert isinstance(found, Body)
    return found


def unread(scope: MutableMapping[str, Any]) -> bool:
    """True if something of the request's body was never taken. Its connection has to end with the
    answer: what still comes is nobody's, and what uvicorn has of it would be kept until the next
    request."""
    return _KEY in scope and body_of(scope).more


def give_back(scope: MutableMapping[str, Any]) -> None:
    """Nothing of the request's body is held any more, and nothing more of it is taken."""
    if _KEY in scope:
        body_of(scope).end()
