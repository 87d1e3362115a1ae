"""Metrics over HTTP, and clients that go away."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from mount.control.messages import CacheStatus, JournalStatus, Status
from mount.failures import Failure
from mount.metrics import open_metrics, serve_metrics
from tests.ports import free_port


def status() -> Status:
    return Status(
        state="online",
        mountpoint="/m",
        url="http://127.0.0.1:1",
        account="anna",
        pid=1,
        journal=JournalStatus(operations=3, bytes=17),
        cache=CacheStatus(bytes=5, limit=9),
    )


async def connect(port: int) -> trio.SocketStream:
    with trio.fail_after(60):
        while True:
            try:
                return await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.lowlevel.checkpoint()


async def scrape(port: int) -> str:
    async with await connect(port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"".join([part async for part in stream]).decode()


async def test_the_numbers_of_status() -> None:
    port = free_port()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_metrics, await open_metrics(port), status)
        text = await scrape(port)
        nursery.cancel_scope.cancel()
    assert text.startswith("HTTP/1.1 200 OK\r\n")
    assert "nearline_mount_online 1.0" in text
    assert "nearline_journal_operations 3.0" in text
    assert "nearline_journal_bytes 17.0" in text
    assert "nearline_cache_limit_bytes 9.0" in text


async def test_a_client_that_breaks_off_ends_nothing() -> None:
    port = free_port()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_metrics, await open_metrics(port), status)
        for request in (b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            stream = await connect(port)
            await stream.send_all(request)
            reset = struct.pack("ii", 1, 0)  # close with RST
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            stream.socket.close()
        assert "nearline_mount_online 1.0" in await scrape(port)
        nursery.cancel_scope.cancel()


async def test_a_port_that_somebody_has_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        with pytest.raises(Failure, match="give another metrics-port"):
            await open_metrics(port)
