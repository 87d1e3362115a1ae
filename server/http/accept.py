"""Accepting: every connection is counted before it has said a word, and its first byte tells
whether it is to be TLS.

Knows: one listening socket, and connections from accept(2) until a protocol has them. Must not
know: HTTP, who may come (`connections` decides), what is in a certificate.

A server without a certificate of its operator's speaks both on its one port: TLS, which programs on
this machine use to make sure whom they speak to (docs/decisions/0019), and plain HTTP for browsers
and proxies. A TLS connection begins with a record of type 22 (RFC 8446, 5.1), no HTTP request does.

The event loop would do all this by itself but for the counting: it tells nobody of a connection
that never begins its handshake.

Concurrency: everything on the event loop. An `Arrival` is in `connections` from accept(2) until its
protocol takes its place; whoever takes it out there before ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable

import structlog

from server.http.connections import Connections, Watched
from server.http.protocols import Http
from server.http.tls import Tls
from server.settings import Tunables

log = structlog.get_logger("nearline.server")

TLS_HANDSHAKE = b"\x16"
# Then whatever else waits has its turn.
ACCEPTED_AT_ONCE = 100
# Between tries when the system gives no more descriptors.
PAUSE_SECONDS = 1.0


class Acceptor:
    """One listening socket. Without `tls` plain HTTP alone is spoken. Closed and waited for like an
    `asyncio.Server`."""

    def __init__(
        self,
        sock: socket.socket,
        connections: Connections,
        make_protocol: Callable[[], Http],
        tls: Tls | None,
    ) -> None:
        self.connections, self.make_protocol = connections, make_protocol
        self._sock, self._tls = sock, tls
        self._here = sock.getsockname()[:2]
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._arrivals: set[Arrival] = set()

    def open(self, backlog: int) -> None:
        """Accept from now on."""
        self._sock.setblocking(False)
        self._sock.listen(backlog)
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Accept no more, and let go of who has said nothing yet."""
        self._loop.remove_reader(self._sock)
        if self._paused is not None:
            self._paused.cancel()
        for arrival in list(self._arrivals):
            arrival.abort()

    async def wait_closed(self) -> None:
        tasks = [arrival.task for arrival in self._arrivals if arrival.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def chosen(self, first: bytes) -> ssl.SSLContext | None:
        """The TLS of a connection that begins with the byte `first`; None: it is plain HTTP."""
        if self._tls is not None and (self._tls.only or first == TLS_HANDSHAKE):
            return self._tls.context
        return None

    def forget(self, arrival: Arrival) -> None:
        self._arrivals.discard(arrival)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, there = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._admit(sock, there[:2])

    def _pause(self, error: OSError) -> None:
        """Accept nothing for a while: connections that wait keep the socket readable, and we would
        spin."""
        log.error("cannot_accept", error=error.strerror)
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._loop.add_reader(self._sock, self._accept)

    def _admit(self, sock: socket.socket, there: tuple[str, int]) -> None:
        arrival = Arrival(self, sock)
        here = self._here
        with contextlib.suppress(OSError):  # gone again
            here = sock.getsockname()[:2]
        if not self.connections.enter(arrival, there, here):
            sock.close()
            return
        self._arrivals.add(arrival)
        arrival.wait()


class Arrival(Watched):
    """A connection that is not yet a protocol's: it waits for the first byte, then for the end of
    the TLS handshake, if there is one."""

    def __init__(self, acceptor: Acceptor, sock: socket.socket) -> None:
        self._acceptor, self._sock = acceptor, sock
        self._loop = asyncio.get_running_loop()
        self._since = time.monotonic()
        self.task: asyncio.Task[None] | None = None

    def wait(self) -> None:
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._begin)

    def held_up(self, now: float, tunables: Tunables) -> str | None:
        return "slow_head" if now - self._since > tunables.head_seconds else None

    def waits_for_peer(self) -> bool:
        return True

    def abort(self) -> None:
        if self.task is not None:
            self.task.cancel()
        else:
            self._gone()

    def _gone(self) -> None:
        self._acceptor.connections.leave(self)
        self._acceptor.forget(self)
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _begin(self) -> None:
        try:
            first = self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        if not first:
            self._gone()
            return
        self._loop.remove_reader(self._sock)
        self.task = self._loop.create_task(self._hand_over(self._acceptor.chosen(first)))

    async def _hand_over(self, context: ssl.SSLContext | None) -> None:
        seconds = self._acceptor.connections.tunables.head_seconds if context is not None else None
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, self._sock, ssl=context, ssl_handshake_timeout=seconds
            )
        except OSError as error:  # of TLS too: whoever is there speaks something else, or has left
            log.debug("no_handshake", error=str(error))
        finally:
            self._acceptor.connections.leave(self)
            self._acceptor.forget(self)

    def _protocol(self) -> Http:
        protocol = self._acceptor.make_protocol()
        protocol.arrival = self
        return protocol
