"""Connections: how many there may be, and how slow.

Knows: uvicorn's protocols, what of a connection tells that its peer holds it up, whose a
connection is. Must not know: what is asked over it, how it was accepted (`accept`).

uvicorn parses, buffers and answers; what it does not limit is limited here:
- places: so many connections in all, of one address, and of one account (`slots`). A connection is
  counted from the moment it is accepted, by its address; from this machine, by the user whose it
  is; from a trusted proxy, in all only. One that has shown a good token counts for the account.
  Where there is no place, the connection of a stranger that has waited longest for its peer goes,
  and if none is idle, that whose body has been coming for longest, then that which has asked for
  longest without showing any right.
- heads: a request's must be there in time and be of bounded size and plain target; trailers, which
  nobody sends, are refused.
- requests ahead of their turn: uvicorn takes in what comes while another request of the connection
  is under way. One may wait so, and the bodies of all that do have room of their own (`behind`).
- readers: a connection on which something waits to be sent and nothing of it goes for too long is
  cut, also one that is being closed already: closing waits for the peer to read.
- what is left of a connection: over TLS it has buffers of half a megabyte, which the system is to
  have back when enough have ended (`memory`).

Concurrency: everything on the event loop. `Connections.sweep` looks at every connection once a
second (`main.Server` calls it), instead of a timer for each request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server import memory
from server.addresses import TrustedProxies, is_loopback, limited_as
from server.http import request_target
from server.http.bearer import token_of
from server.http.peer_users import Address, PeerUsers, UserOf
from server.http.rate_limits import SharedBytes
from server.http.recent_tokens import RecentTokens
from server.http.slots import Slots
from server.metrics import Metrics
from server.settings import Tunables

_REASONS = {
    400: b"Bad Request",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}

FAREWELL_SECONDS = 0.25
"""At the end of the server, what is on its way to a client has so long to get there."""

ENDED = 64
"""After so many connections the system is given back what they had,"""
GIVE_BACK_SECONDS = 5.0
"""but no more often than so: nobody is answered meanwhile, for up to a tenth of a second."""

_SIGNED = ("/blobs/", "/chunks/")
_SIGNED_PUTS = "/blobs/"
"""Bodies below it come by a signed URL, so they are of somebody who had a good token."""


class Watched:
    """A connection that can be counted, and say whether its peer holds it up."""

    token: str | None = None
    """What its last request showed to be its right."""

    def held_up(self, now: float, tunables: Tunables) -> str | None:
        """Why to cut it at `now`, in seconds of `time.monotonic`; None: there is no reason to."""
        raise NotImplementedError

    def waits_for_peer(self) -> bool:
        """Whether nothing would be lost that the server does for it."""
        raise NotImplementedError

    def is_sending(self) -> bool:
        """Whether a body comes that would have to be sent again."""
        return False

    def shows_nothing(self) -> bool:
        """Whether what it asks for needs no right, such as a login, which may be held back."""
        return False

    def abort(self) -> None:
        """End it at once, whatever waits to be sent."""
        raise NotImplementedError


class Connections:
    """Every open connection of one server, and the limits on them. `user_of` tells users of this
    machine apart."""

    def __init__(
        self,
        tunables: Tunables,
        metrics: Metrics,
        recent_tokens: RecentTokens,
        user_of: UserOf | None = None,
    ) -> None:
        self.tunables = tunables
        self._metrics, self._recent_tokens = metrics, recent_tokens
        self._user_of = user_of or PeerUsers().of
        self._proxies = TrustedProxies(tunables.trusted_proxies)
        self.behind = SharedBytes(tunables.body_memory_bytes // 8)
        each = tunables.connections_per_address, tunables.connections_per_account
        self._slots: Slots[Watched] = Slots(tunables.connections, *each)
        self._open: set[Watched] = set()
        self._ended, self._given_back = 0, -GIVE_BACK_SECONDS
        metrics.connections.set_function(lambda: self._slots.taken)

    @property
    def taken(self) -> int:
        """How many there are."""
        return self._slots.taken

    def enter(self, connection: Watched, there: Address, here: Address) -> bool:
        """Count a connection between two addresses; False, and it is not counted, if there are too
        many, and every one of them is of use to somebody."""
        holder = self._holder(there, here)
        while (crowd := self._slots.in_the_way(holder)) is not None:
            leaving = _first_to_leave(list(crowd))
            if leaving is None:
                self.cut("too_many")
                return False
            self._end(leaving, "made_room")
        self._slots.take(connection, holder)
        self._open.add(connection)
        return True

    def _holder(self, there: Address, here: Address) -> Hashable | None:
        """Whose places a connection takes. All addresses of this machine are free for all its users
        to come from, so their user alone counts, if that is known."""
        address = there[0]
        if self._proxies.trusts(address):
            return None
        user = self._user_of(there, here) if is_loopback(address) else None
        return limited_as(address) if user is None else user

    def succeed(self, old: Watched, new: Watched) -> bool:
        """`new` takes over the connection and the place of `old`; False if that had none any
        more."""
        if old not in self._open:
            return False
        self._slots.succeed(old, new)
        self._open.discard(old)
        self._open.add(new)
        return True

    def leave(self, connection: Watched) -> None:
        if connection in self._open:
            self._slots.leave(connection)
            self._open.remove(connection)
            self._ended += 1

    def recognise(self, connection: Watched) -> None:
        """Count a connection for its account, as soon as its token has proved to be good."""
        if connection.token is not None and self._slots.is_stranger(connection):
            holder = self._recent_tokens.of(connection.token)
            if holder is not None:
                self._slots.recognise(connection, holder.account)

    def served(self, connection: Watched) -> None:
        """A request of it has been answered."""
        self.recognise(connection)
        self._slots.served(connection)

    def cut(self, why: str) -> None:
        """A connection is refused or ended because of `why`."""
        self._metrics.cut.labels(why).inc()

    def sweep(self, now: float) -> None:
        """Cut the connections whose peers hold them up at `now`, in seconds of
        `time.monotonic`, and let go of what is left of those that ended."""
        if self._ended >= ENDED and now - self._given_back >= GIVE_BACK_SECONDS:
            self._ended, self._given_back = 0, now
            memory.give_back()
        for connection in list(self._open):
            why = connection.held_up(now, self.tunables)
            if why is not None:
                self._end(connection, why)
            else:
                self.recognise(connection)

    def _end(self, connection: Watched, why: str) -> None:
        self.cut(why)
        self.leave(connection)
        connection.abort()


_LEAVING: tuple[Callable[[Watched], bool], ...] = (
    lambda guest: guest.waits_for_peer(),
    lambda guest: guest.is_sending(),
    lambda guest: guest.shows_nothing(),
)
"""Who makes room: the first for whom the first of these holds that holds for anybody."""


def _first_to_leave(guests: Sequence[Watched]) -> Watched | None:
    found = (guest for may_leave in _LEAVING for guest in guests if may_leave(guest))
    return next(found, None)


class Config(uvicorn.Config):
    """uvicorn's, with the protocols of this module and the `connections` they belong to."""

    def __init__(self, app: Any, connections: Connections, **options: Any) -> None:
        tunables = connections.tunables
        self.connections = connections
        super().__init__(
            app,
            http=Http,
            ws=Live,
            timeout_keep_alive=tunables.keep_alive_seconds,
            ws_ping_interval=tunables.socket_ping_seconds,
            ws_ping_timeout=tunables.socket_ping_seconds,
            **options,
        )


class _Protocol(asyncio.Protocol, Watched):
    """A connection that speaks already."""

    transport: asyncio.Transport
    _unsent = 0
    _unsent_since = 0.0

    def held_up(self, now: float, tunables: Tunables) -> str | None:
        """While something waits and nothing is taken, its amount stays the same: the application
        stops sending above a certain amount."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
            return None
        return "slow_reader" if now - self._unsent_since > tunables.send_seconds else None

    def abort(self) -> None:
        self.transport.abort()


class Http(HttpToolsProtocol, _Protocol):
    """HTTP/1.1 with limits on heads. It takes over the place of `arrival`."""

    config: Config
    arrival: Watched

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = self.config.connections
        self._status = 400
        self._head_since: float | None = None
        self._head_bytes = 0
        self._in_head = True
        self._behind = 0
        self._ahead: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since = time.monotonic()
        if not self._limits.succeed(self.arrival, self):  # it had to make room a moment ago
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._ahead is not None:  # uvicorn tells only the last request
            self._ahead.disconnected = True
            self._ahead.message_event.set()
        self._its_turn()
        self._limits.leave(self)
        self.cycle = None  # type: ignore[assignment]  # each holds the other, and with it the buffers of the connection
        self.pipeline.clear()

    def shutdown(self) -> None:
        """uvicorn's; but a TLS connection is closed when its peer agrees, and one that waits for
        its next request has a peer that does not listen."""
        super().shutdown()
        if self._is_idle():
            self.loop.call_later(FAREWELL_SECONDS, self.transport.abort)

    def held_up(self, now: float, tunables: Tunables) -> str | None:
        since = self._head_since
        if since is not None and now - since > tunables.head_seconds:
            return "slow_head"
        return super().held_up(now, tunables)

    def waits_for_peer(self) -> bool:
        if self._is_idle():
            return True
        return self.is_sending() and not self.scope["path"].startswith(_SIGNED_PUTS)

    def is_sending(self) -> bool:
        return not self._is_idle() and self.cycle.more_body

    def shows_nothing(self) -> bool:
        return self.token is None and not self.scope["path"].startswith(_SIGNED)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._head_since is None and self._is_idle():
            self._head_since = time.monotonic()
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self._limits.tunables.head_bytes:
            self._refuse(431)

    def _is_idle(self) -> bool:
        """Whether what comes now, if anything, is the head of a request or of none."""
        return self.cycle is None or self.cycle.response_complete

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, Live):
            protocol.token = self.token
            self._limits.succeed(self, protocol)

    # --- told by the parser; what is raised here ends the connection with `_status` ---

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            raise ValueError("trailers are refused")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes, self._head_since = False, 0, None
        self._check_head()
        given = next((value for name, value in self.headers if name == b"authorization"), b"")
        self.token = token_of(given.decode("latin-1"))
        self._limits.recognise(self)
        before = self.cycle
        super().on_headers_complete()
        self._ahead = before if self.pipeline else None

    def _check_head(self) -> None:
        tunables = self._limits.tunables
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > tunables.head_bytes or len(self.headers) > tunables.head_lines:
            self._status = 431
            raise ValueError("the head is too large")
        if not request_target.is_origin_form(self.url):
            raise ValueError("the target is not of visible ASCII")
        if self.pipeline:
            raise ValueError("a request waits already")

    def on_body(self, body: bytes) -> None:
        if self.pipeline:
            if not self._limits.behind.take(self._address(), len(body)):
                self._status = 503
                raise ValueError("there is no room for what comes ahead of its turn")
            self._behind += len(body)
        super().on_body(body)

    def _its_turn(self) -> None:
        """What waits is begun, or given up: its body is counted as any other, or is none."""
        self._limits.behind.give_back(self._address(), self._behind)
        self._behind, self._ahead = 0, None

    def _address(self) -> str:
        return limited_as(self.client[0]) if self.client else ""

    def on_response_complete(self) -> None:
        self._its_turn()
        self._limits.served(self)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for whatever the parser does not take."""
        self._refuse(self._status)

    def _refuse(self, status: int) -> None:
        """Answer `status` and close; only close if an answer is on its way already."""
        if status == 431:
            self._limits.cut("large_head")
        if self.cycle is None or self.cycle.response_complete:
            head = b"HTTP/1.1 %d %s\r\n" % (status, _REASONS[status])
            rest = b"connection: close\r\ncontent-length: 0\r\ncache-control: no-store\r\n\r\n"
            self.transport.write(head + rest)
        self.transport.close()


class Live(WebSocketsSansIOProtocol, _Protocol):
    """A WebSocket. It takes over the connection, and its place, of an `Http`."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cast(Config, self.config).connections.leave(self)

    def waits_for_peer(self) -> bool:
        """Only who has a good token is let in."""
        return False
