"""uvicorn's protocols, with the limits that it does not have.

Knows: what of a connection tells that its peer holds it up. Must not know: how many connections
there may be (`connections`), what is asked over one.

uvicorn parses, buffers and answers; what it does not limit is limited here:
- heads: a request's must be there in time and be of bounded size and plain target; trailers, which
  nobody sends, are refused.
- requests ahead of their turn: uvicorn takes in what comes while another request of the connection
  is under way. One may wait so, and the bodies of all that do have room of their own
  (`Connections.behind`).
- readers: a connection on which something waits to be sent and nothing of it goes for too long is
  cut, also one that is being closed already: closing waits for the peer to read.

Concurrency: everything on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server.addresses import limited_as
from server.http import request_target
from server.http.bearer import token_of
from server.http.connections import Connections, Watched
from server.settings import Tunables

_REASONS = {
    400: b"Bad Request",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}

# At the end of the server, what is on its way to a client has so long to get there.
FAREWELL_SECONDS = 0.25

_SIGNED = ("/blobs/", "/chunks/")
# Bodies below it come by a signed URL, so they are of somebody who had a good token.
_SIGNED_PUTS = "/blobs/"


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
        """True if what comes now, if anything, is the head of a request or of none."""
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
        """Begin the request that waits, or give it up: its body is counted as any other, or is
        none."""
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
