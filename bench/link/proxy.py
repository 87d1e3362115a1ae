"""`python -m bench.link.proxy`: carries bytes between clients and servers as a long line would.

Reads a `Setup` as a line of JSON from standard input and answers with the `Ports` it listens on;
after that each line is an `Order`, answered with the `Counts` so far. It ends when its standard
input does, so it never outlives who started it.

Knows: sockets, and what `schedule` says of times. Must not know: what the bytes mean, except where
one HTTP request ends and the next one begins.
Invariants: every byte that is taken is given on, in order, once, and counted once. A client's bytes
set out one round trip after its connection was made, and its server hears of the connection half a
round trip later: the kernel accepts at once, so what a connect costs is paid there.

Concurrency: one trio thread. Each connection has two tasks a direction: one takes and schedules,
one waits and gives on. The lanes, one a direction, are shared by all connections.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import socket
import sys
from functools import partial

import msgspec
import trio

from bench.link.requests import Requests
from bench.link.schedule import Flights, Lane, Shape, Window

HOST = "127.0.0.1"
TICK = 0.0005
"""Half of what a wait is rounded up to: being as often too early as too late, the mean is right."""


class Route(msgspec.Struct, frozen=True):
    """Where a server listens; `http`: its clients speak plain HTTP/1.1. `listen`: the port for the
    clients, 0 for any."""

    port: int
    http: bool = False
    listen: int = 0


class Setup(msgspec.Struct, frozen=True):
    shape: Shape
    routes: list[Route]


class Ports(msgspec.Struct, frozen=True):
    """Where each route of a `Setup` is reached, in their order."""

    ports: list[int]


class Order(msgspec.Struct, frozen=True):
    """With a `shape`, the line changes to it; what is under way keeps its times."""

    shape: Shape | None = None


class Counts(msgspec.Struct, frozen=True):
    """Since the start. `up`, `down`: bytes from client to server and back, without any headers of
    packets. `flights`: round trips in which clients sent something. `late`: by how many seconds
    what arrived was later than it should have been, on the average, because the machine was busy:
    so much longer was the line."""

    up: int = 0
    down: int = 0
    connections: int = 0
    requests: int = 0
    flights: int = 0
    late: float = 0.0

    @property
    def both(self) -> int:
        return self.up + self.down

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.up - before.up,
            self.down - before.down,
            self.connections - before.connections,
            self.requests - before.requests,
            self.flights - before.flights,
            self.late,
        )


class Proxy:
    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._up = Lane(shape.up_rate, shape.up_delay)
        self._down = Lane(shape.down_rate, shape.down_delay)
        self._bytes = {self._up: 0, self._down: 0}
        self._connections = self._requests = 0
        self._flights = Flights()
        self._late, self._given = 0.0, 0

    def reshape(self, shape: Shape) -> None:
        self.shape = shape
        self._up.reshape(shape.up_rate, shape.up_delay)
        self._down.reshape(shape.down_rate, shape.down_delay)

    def counts(self) -> Counts:
        return Counts(
            self._bytes[self._up],
            self._bytes[self._down],
            self._connections,
            self._requests,
            self._flights.count,
            self._late / self._given if self._given else 0.0,
        )

    async def serve(self, route: Route, listener: trio.SocketListener) -> None:
        """Carry the connections of `route`, until cancelled."""
        await trio.serve_listeners(partial(self._connection, route), [listener])

    async def _connection(self, route: Route, client: trio.SocketStream) -> None:
        opened = trio.current_time()
        self._connections += 1
        trip = self.shape.round_trip
        up, down = _Flow(self.shape.window), _Flow(self.shape.window)
        requests = Requests() if route.http else None
        async with client:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._take, up, client, self._up, opened + trip, requests)
                    await trio.sleep_until(opened + trip + self.shape.up_delay)
                    async with await trio.open_tcp_stream(HOST, route.port) as server:
                        await self._joined(client, server, up, down)
            except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass  # a side broke off, or the server is not there: the connection ends

    async def _joined(
        self, client: trio.SocketStream, server: trio.SocketStream, up: _Flow, down: _Flow
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give, up, server, self._down)
            nursery.start_soon(self._take, down, server, self._down, 0.0, None)
            nursery.start_soon(self._give, down, client, self._up)

    async def _take(
        self,
        flow: _Flow,
        source: trio.SocketStream,
        lane: Lane,
        since: float,
        requests: Requests | None,
    ) -> None:
        """Take what comes from `source`, from `since` on."""
        await trio.sleep_until(since)
        with flow.pieces:
            while True:
                await flow.room()
                while (ready := lane.ready_at()) > trio.current_time():  # noqa: ASYNC110
                    await trio.sleep_until(ready)
                piece = await source.receive_some(lane.piece)
                now = trio.current_time()
                if not piece:
                    await flow.pieces.send((now + lane.delay, b""))
                    return
                self._count(lane, piece, now, requests)
                flow.window.sent(len(piece))
                await flow.pieces.send((lane.send(now, len(piece)), bytes(piece)))

    def _count(self, lane: Lane, piece: bytes, now: float, requests: Requests | None) -> None:
        self._bytes[lane] += len(piece)
        if lane is self._up:
            self._flights.sent(now, self.shape.round_trip)
        if requests is not None:
            before = requests.count
            requests.feed(piece)
            self._requests += requests.count - before

    async def _give(self, flow: _Flow, sink: trio.SocketStream, back: Lane) -> None:
        """Give on what arrives in `flow`; word of it goes back by the lane `back`."""
        with flow.arriving:
            async for arrives, piece in flow.arriving:
                await trio.sleep_until(arrives - TICK)
                if not piece:
                    await sink.send_eof()
                    return
                self._late += trio.current_time() - arrives
                self._given += 1
                await sink.send_all(piece)
                flow.delivered(len(piece), back.delay)


class _Flow:
    """Bytes under way in one direction of one connection, with their times of arrival."""

    def __init__(self, window: int) -> None:
        self.window = Window(window)
        self.pieces, self.arriving = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        self._moved = trio.Event()

    def delivered(self, size: int, delay: float) -> None:
        self.window.delivered(trio.current_time(), size, delay)
        self._moved.set()

    async def room(self) -> None:
        """Return when the window is open."""
        while True:
            now = trio.current_time()
            opens = self.window.opens_at(now)
            if opens is None:
                self._moved = trio.Event()
                await self._moved.wait()
            elif opens > now:
                await trio.sleep_until(opens)
            else:
                return


async def _listen(route: Route) -> trio.SocketListener:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    await sock.bind((HOST, route.listen))
    sock.listen(1024)
    return trio.SocketListener(sock)


async def run(setup: Setup, lines: _Lines) -> None:
    proxy = Proxy(setup.shape)
    listeners = [await _listen(route) for route in setup.routes]
    _say(Ports([listener.socket.getsockname()[1] for listener in listeners]))
    async with trio.open_nursery() as nursery:
        for route, listener in zip(setup.routes, listeners, strict=True):
            nursery.start_soon(proxy.serve, route, listener)
        while line := await lines.next():
            order = msgspec.json.decode(line, type=Order)
            if order.shape is not None:
                proxy.reshape(order.shape)
            _say(proxy.counts())
        nursery.cancel_scope.cancel()


class _Lines:
    """Standard input, line by line; empty at its end."""

    def __init__(self) -> None:
        self._stream = trio.lowlevel.FdStream(sys.stdin.fileno())
        self._rest = b""

    async def next(self) -> bytes:
        while b"\n" not in self._rest:
            more = await self._stream.receive_some(4096)
            if not more:
                return b""
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _say(answer: Ports | Counts) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> None:
    # Being late because the machine is busy would be a longer line than was asked for.
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    lines = _Lines()
    await run(msgspec.json.decode(await lines.next(), type=Setup), lines)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bench.link.proxy", description=__doc__).parse_args()
    trio.run(_main)
