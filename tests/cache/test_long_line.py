"""A long line is filled: real readers and uploaders over a line in virtual time.

The line is that of the benchmark (`bench.link.schedule`), the clock jumps, and threads are none: so
these figures are of our own scheduling alone, and the same on every machine. What a processor adds
is measured by `python -m bench --workloads wan-large`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from bench.link.schedule import Lane
from cache.blocks.cache import BlockCache
from cache.blocks.reader import Reader
from cache.metadata.manifests import Manifests
from cache.sync.prepared import Prepared
from cache.sync.uploader import Uploader
from remote.protocol.bundle import bundle_of
from remote.protocol.content import Descriptor
from remote.protocol.ids import VersionId
from remote.protocol.messages import (
    ChunkTicket,
    LocateReply,
    LocateRequest,
    PresignedPut,
    StartBundle,
    StartBundleReply,
    StartUploads,
    StartUploadsReply,
    UploadState,
)
from remote.transfer.download import Downloader
from remote.transfer.upload import Sender
from tests.cache.blocks import test_reader
from tests.cache.state import State
from tests.fake_edge import FakeEdge, noise, version_name

MIB = 1 << 20
TRIP = 0.04
RATE = 125e6
HEAD = 700  # bytes of a request or an answer without a body
SERVER_SECONDS = 0.003  # for an answer

T = TypeVar("T")


class Line:
    """A request takes half a trip each way, its body what the rate says, a connection a trip."""

    def __init__(self, trip: float = TRIP, rate: float = RATE) -> None:
        self.trip = trip
        self._up, self._down = Lane(rate, trip / 2), Lane(rate, trip / 2)
        self._idle = 0

    async def connect_ahead(self, connections: int) -> None:
        missing = max(0, connections - self._idle)
        await trio.sleep(self.trip)
        self._idle += missing

    async def ask(self, up: int, down: int, *, is_warm: bool = False) -> None:
        if self._idle:
            self._idle -= 1
        elif not is_warm:
            await trio.sleep(self.trip)
        await trio.sleep_until(self._up.send(trio.current_time(), HEAD + up))
        await trio.sleep(SERVER_SECONDS)
        await trio.sleep_until(self._down.send(trio.current_time(), HEAD + down))
        self._idle += not is_warm


class Edge(FakeEdge):
    """`FakeEdge` at the end of `line`."""

    line: Line

    async def locate(self, request: LocateRequest) -> LocateReply:
        reply = await super().locate(request)
        await self.line.ask(HEAD, 600 * len(reply.chunks), is_warm=True)
        return reply

    async def get_range(self, url: str, start: int, end: int, into: bytearray | memoryview) -> int:
        await self.line.ask(0, end - start)
        return await super().get_range(url, start, end, into)

    async def connect_ahead(self, connections: int) -> None:
        await self.line.connect_ahead(connections)


class Drive:
    """An `UploadPort` at the end of a line, that has nothing and wants everything."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.bytes = 0
        self._announced: dict[tuple[VersionId, bytes], Descriptor] = {}

    async def start_uploads(self, request: StartUploads) -> StartUploadsReply:
        described = sum(len(item.descriptors) for item in request.uploads)
        await self.line.ask(300 * described, 500 * described, is_warm=True)
        self._announced |= {
            (item.version, d.id): d for item in request.uploads for d in item.descriptors
        }
        put = PresignedPut(url="", headers={}, expires_ns=0)
        states = [
            UploadState(
                version=item.version,
                status="uploading",
                expires_ns=0,
                chunks=[ChunkTicket(id=d.id, state="needed", put=put) for d in item.descriptors],
            )
            for item in request.uploads
        ]
        return StartUploadsReply(uploads=[*states])

    async def start_bundle(self, request: StartBundle) -> StartBundleReply:
        await self.line.ask(100 * len(request.parts), 500, is_warm=True)
        parts = [self._announced[part.version, part.chunk] for part in request.parts]
        put = PresignedPut(url="", headers={}, expires_ns=0)
        return StartBundleReply(id=bundle_of(parts).id, put=put)

    async def put_chunk(self, put: PresignedPut, body: bytes | memoryview) -> None:
        await self.line.ask(len(body), 0)
        self.bytes += len(body)


@pytest.fixture
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock would jump while one works."""

    async def at_once(work: Callable[..., T], *args: object, **how: object) -> T:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


async def read_cold(directory: Path, line: Line, content: bytes) -> tuple[float, float]:
    """Seconds until the first MiB is there, and until all is."""
    edge = Edge()
    edge.line = line
    edge.add(version_name(2), content, [MIB, 1300 * 1024, 700 * 1024])
    blocks = BlockCache(directory / "blocks", 1 << 30, boot_id="boot")
    reader = Reader(blocks, Downloader(edge), test_reader.Manifests())
    async with trio.open_nursery() as nursery:
        await nursery.start(reader.run)
        began, first, size = trio.current_time(), 0.0, len(content)
        window = reader.prefetch()
        for offset in range(0, size, MIB):
            view = reader.try_read(version_name(1), version_name(2), offset, MIB, window)
            if view is None:
                view = await reader.read(
                    version_name(1), version_name(2), size, offset, MIB, window
                )
            assert view == content[offset : offset + MIB]
            first = first or trio.current_time() - began
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    blocks.close()
    return first, took


async def send(directory: Path, line: Line, content: bytes) -> float:
    """Seconds until the drive has all of a file that was written."""
    state, drive, prepared = State(directory), Drive(line), Prepared()
    await state.save("a", content)

    async def nothing(*_: object) -> None:
        pass

    uploader = Uploader(
        state.db,
        state.tree,
        state.journal,
        state.contents,
        Sender(drive),
        _never,
        Manifests(state.db).keep_manifest,
        nothing,
        prepared,
        on_ready=lambda op: None,
        on_arrival=lambda: None,
    )
    (op,) = state.journal
    began = trio.current_time()
    await uploader.prepare(op)
    assert len(content) <= drive.bytes < 1.001 * len(content)  # a bundle has an index
    return trio.current_time() - began


async def _never(file: str, version: str) -> None:
    raise AssertionError("a new file has no version")


def share(size: int, seconds: float, rate: float = RATE) -> float:
    return size / rate / seconds


@pytest.mark.usefixtures("_no_threads")
async def test_a_cold_read_fills_the_line(tmp_path: Path, autojump_clock: MockClock) -> None:
    content = noise(200 * MIB)
    first, took = await read_cold(tmp_path, Line(), content)
    assert first / TRIP < 3
    assert share(len(content), took) > 0.84


@pytest.mark.usefixtures("_no_threads")
async def test_an_upload_fills_the_line(tmp_path: Path, autojump_clock: MockClock) -> None:
    content = noise(200 * MIB)
    assert share(len(content), await send(tmp_path, Line(), content)) > 0.8


@pytest.mark.usefixtures("_no_threads")
async def test_a_slow_uplink_is_not_made_to_wait(tmp_path: Path, autojump_clock: MockClock) -> None:
    """512 kbit/s."""
    content = noise(12 * MIB)
    line = Line(0.05, 64_000)
    assert share(len(content), await send(tmp_path, line, content), 64_000) > 0.95
