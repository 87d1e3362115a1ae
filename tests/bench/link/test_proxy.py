"""Every byte arrives once, in order, and is counted; how long it takes is not looked at here."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import trio

from bench.link.line import Line
from bench.link.proxy import HOST, Counts, Proxy, Route, _listen
from bench.link.schedule import Shape, symmetric
from bench.processes import Network

SHAPES = [
    Shape(),
    symmetric(0.004, None),
    symmetric(0.002, 20e6),
    Shape(up_delay=0.001, down_rate=30e6, window=10_000),
]
Server = Callable[[trio.SocketStream], Awaitable[None]]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@contextlib.asynccontextmanager
async def through(
    shape: Shape, server: Server, *, http: bool = False
) -> AsyncIterator[tuple[Proxy, Callable[[], Awaitable[trio.SocketStream]]]]:
    """A proxy before `server`, and how a client connects to it."""
    (behind,) = await trio.open_tcp_listeners(0, host=HOST)
    proxy = Proxy(shape)
    before = await _listen(Route(0))
    route = Route(behind.socket.getsockname()[1], http)
    port = before.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server, [behind])
        nursery.start_soon(proxy.serve, route, before)
        yield proxy, partial(trio.open_tcp_stream, HOST, port)
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


async def mirror(stream: trio.SocketStream) -> None:
    """Says everything back once it has it all: a half-closed connection is still one."""
    data = await read_all(stream)
    await stream.send_all(data[::-1])


@pytest.mark.parametrize("shape", SHAPES)
async def test_many_connections_at_once_lose_and_mix_nothing(shape: Shape) -> None:
    sizes = [0, 1, 65_536, 65_537, 300_000, 1_000_000]

    async def client(connect: Callable[[], Awaitable[trio.SocketStream]], size: int) -> None:
        async with await connect() as stream, trio.open_nursery() as nursery:
            data = noise(size)

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream) == data[::-1]

    async with through(shape, mirror) as (proxy, connect):
        async with trio.open_nursery() as nursery:
            for size in sizes:
                nursery.start_soon(client, connect, size)
        counts = proxy.counts()
    assert (counts.up, counts.down) == (sum(sizes), sum(sizes))
    assert counts.connections == len(sizes)
    assert counts.requests == 0


async def test_requests_are_counted_where_it_is_http() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        async for _ in stream:
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    for http, count in ((True, 2), (False, 0)):
        async with through(Shape(), answer, http=http) as (proxy, connect), await connect() as one:
            for _ in range(2):
                await one.send_all(b"GET / HTTP/1.1\r\n\r\n")
                await one.receive_some()
            assert proxy.counts().requests == count


async def test_a_side_that_breaks_off_takes_the_other_with_it() -> None:
    ended = trio.Event()

    async def endless(stream: trio.SocketStream) -> None:
        try:
            while True:
                await stream.send_all(bytes(65536))
        except trio.BrokenResourceError:
            ended.set()

    async with through(SHAPES[1], endless) as (_, connect):
        stream = await connect()
        await stream.receive_some()
        await stream.aclose()
        with trio.fail_after(30):
            await ended.wait()


async def test_where_nobody_listens_the_connection_is_closed() -> None:
    (gone,) = await trio.open_tcp_listeners(0, host=HOST)
    port = gone.socket.getsockname()[1]
    await gone.aclose()
    before = await _listen(Route(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Proxy(Shape()).serve, Route(port), before)
        async with await trio.open_tcp_stream(HOST, before.socket.getsockname()[1]) as stream:
            assert await read_all(stream) == b""
        nursery.cancel_scope.cancel()


async def test_the_process_is_asked_reshaped_and_ended() -> None:
    network = Network()
    line = Line(network, symmetric(0.002, None), [Route(1), Route(2, http=True)])
    try:
        assert len(set(line.ports)) == 2
        with line.short():
            assert line.shape == Shape()
        assert line.shape == symmetric(0.002, None)
        assert line.counts() == Counts()
    finally:
        line.close()
        network.close()
