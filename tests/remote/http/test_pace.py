"""Bodies under a limit, over sockets to a server in this process. Time is virtual: it passes only
where a transfer waits for its portion, or where a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from remote.http.api import ApiClient, Timeouts
from remote.protocol.codec import encode_chunk
from remote.protocol.content import BLOCK_SIZE, Descriptor
from remote.protocol.messages import Located, LocateReply, LocateRequest, PresignedPut
from remote.transfer.download import Downloader
from remote.transfer.throttle import DOWNLOAD_PORTIONS_PER_SECOND, Throttle
from remote.transfer.token_bucket import BILLION
from tests.fake_edge import noise

RATE = 100_000


@dataclass
class Edge:
    """Takes PUTs and answers GETs of ranges, one after the other on each connection."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    gets: list[int] = field(default_factory=list)
    broken_off: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            while head := await self._head(stream):
                method, path, headers = head
                if method == "PUT":
                    self.objects[path] = await self._read(stream, int(headers["content-length"]))
                    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                else:
                    await stream.send_all(self._range(path, headers["range"]))
        except EOFError:
            self.broken_off += 1

    async def _head(self, stream: trio.SocketStream) -> tuple[str, str, dict[str, str]] | None:
        lines = bytearray()
        while not lines.endswith(b"\r\n\r\n"):
            more = await stream.receive_some(1)
            if not more:
                return None
            lines += more
        first, *rest = lines.decode().split("\r\n")
        method, path, _version = first.split(" ")
        headers = dict(line.split(": ", 1) for line in rest if line)
        return method, path, {name.lower(): value for name, value in headers.items()}

    async def _read(self, stream: trio.SocketStream, length: int) -> bytes:
        body = bytearray()
        while len(body) < length:
            more = await stream.receive_some(length - len(body))
            if not more:
                raise EOFError
            body += more
        return bytes(body)

    def _range(self, path: str, asked: str) -> bytes:
        start, end = map(int, asked.removeprefix("bytes=").split("-"))
        body = self.objects[path][start : end + 1]
        self.gets.append(len(body))
        return (
            f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(body)}\r\n"
            f"Content-Range: bytes {start}-{end}/{len(self.objects[path])}\r\n\r\n"
        ).encode() + body


@pytest.fixture
async def edge(nursery: trio.Nursery) -> AsyncIterator[Edge]:
    made = Edge()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(partial(trio.serve_listeners, made.serve, [listener]))
    made.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    yield made
    nursery.cancel_scope.cancel()


class JumpingThrottle(Throttle):
    """Where it would wait, the time is there at once."""

    def __init__(self, clock: MockClock, rate: int | None, **more: int) -> None:
        super().__init__(rate, **more)
        self._clock = clock

    async def _sleep_until(self, due: int | None) -> None:
        assert due is not None
        await trio.lowlevel.checkpoint()
        self._clock.jump(max(0.0, due / BILLION - trio.current_time()) + 1e-6)


def put_to(edge: Edge, name: str) -> PresignedPut:
    return PresignedPut(url=f"{edge.url}/{name}", headers={}, expires_ns=0)


async def test_puts_together_keep_to_the_limit(edge: Edge, mock_clock: MockClock) -> None:
    bodies = {f"/{number}": noise(150_001 + number, b"%d" % number) for number in range(6)}
    async with ApiClient(edge.url, None, insecure=True) as client:
        client.upload_pace = JumpingThrottle(mock_clock, RATE)
        async with trio.open_nursery() as nursery:
            for name, body in bodies.items():
                nursery.start_soon(client.put_chunk, put_to(edge, name[1:]), body)
    assert edge.objects == bodies
    total = sum(map(len, bodies.values()))
    assert client.transferred.uploaded_bytes == total
    assert trio.current_time() == pytest.approx((total - RATE / 2) / RATE, rel=0.01)


class HeldPace:
    """The third portion waits for `go`."""

    def __init__(self) -> None:
        self.taken = 0
        self.waiting, self.go = trio.Event(), trio.Event()

    async def take(self, most: int, /) -> int:
        self.taken += 1
        if self.taken == 3:
            self.waiting.set()
            await self.go.wait()
        return min(most, 1000)


async def test_who_waits_for_its_portion_does_not_wait_for_the_host(
    edge: Edge, mock_clock: MockClock
) -> None:
    """No timeout counts meanwhile, and nobody is taken for silent."""
    body, pace = noise(5000), HeldPace()
    async with ApiClient(edge.url, None, insecure=True, timeouts=Timeouts(1, 1, 1)) as client:
        client.upload_pace = pace

        async def an_hour_later() -> None:
            await pace.waiting.wait()
            mock_clock.jump(3600)
            await trio.testing.wait_all_tasks_blocked()
            assert client.connectivity.silence(edge.url) is None
            pace.go.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connectivity.run, lambda _origin: None)
            nursery.start_soon(an_hour_later)
            await client.put_chunk(put_to(edge, "a"), body)
            nursery.cancel_scope.cancel()
    assert edge.objects["/a"] == body


async def test_who_waits_for_its_portion_can_be_cancelled(
    edge: Edge, mock_clock: MockClock
) -> None:
    pace = HeldPace()
    async with ApiClient(edge.url, None, insecure=True) as client:
        client.upload_pace = pace
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.put_chunk, put_to(edge, "a"), noise(5000))
            await pace.waiting.wait()
            nursery.cancel_scope.cancel()
        client.upload_pace = JumpingThrottle(mock_clock, RATE)
        await client.put_chunk(put_to(edge, "b"), b"the next one")
    assert edge.objects == {"/b": b"the next one"}
    assert edge.broken_off == 1


class LocatedEdge:
    """The API of an edge that has `descriptors`."""

    def __init__(self, edge: Edge, client: ApiClient) -> None:
        self.edge, self.get_range = edge, client.get_range
        self.descriptors: dict[bytes, Descriptor] = {}

    async def locate(self, request: LocateRequest) -> LocateReply:
        await trio.lowlevel.checkpoint()
        chunks = [
            Located(
                descriptor=self.descriptors[chunk],
                url=f"{self.edge.url}/{chunk.hex()}",
                expires_ns=2**62,
            )
            for chunk in request.chunks
        ]
        return LocateReply(chunks=chunks, manifest=None)


@pytest.mark.slow
async def test_gets_together_keep_to_the_limit(edge: Edge, mock_clock: MockClock) -> None:
    contents = [noise(2 * BLOCK_SIZE + number, b"%d" % number) for number in range(4)]
    got: dict[bytes, bytes] = {}
    async with ApiClient(edge.url, None, insecure=True) as client:
        api = LocatedEdge(edge, client)
        throttle = JumpingThrottle(
            mock_clock, RATE, portions_per_second=DOWNLOAD_PORTIONS_PER_SECOND
        )
        downloader = Downloader(api, throttle=throttle)

        async def fetch(chunk: bytes, blocks: int) -> None:
            async with downloader.fetch("f" * 32, "e" * 32, chunk, 0, blocks - 1) as found:
                got[chunk] = b"".join(bytes(plain) for _, plain in found)

        async with trio.open_nursery() as nursery:
            for content in contents:
                encoded = encode_chunk(content)
                chunk, blocks = encoded.descriptor.id, len(encoded.descriptor.stored_lengths)
                edge.objects[f"/{chunk.hex()}"] = bytes(encoded.body)
                api.descriptors[chunk] = encoded.descriptor
                nursery.start_soon(fetch, chunk, blocks)
    assert sorted(got.values()) == sorted(contents)
    total = sum(map(len, contents))
    assert sum(edge.gets) == total == client.transferred.downloaded_bytes
    assert max(edge.gets) == RATE // DOWNLOAD_PORTIONS_PER_SECOND
    assert trio.current_time() == pytest.approx((total - RATE / 2) / RATE, rel=0.02)
