"""A failed operation waits by itself, says why, and is sent in the end; all others go on.

As in `test_replayer`: two devices of one drive without HTTP, and time is trio's mock clock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from cache.metadata.tree import ROOT
from cache.sync import uploads
from cache.sync.retries import BAD_AFTER
from cache.sync.schedule import SHARES, UPLOADS
from remote.protocol import messages
from remote.protocol.errors import (
    BadUpload,
    Busy,
    ChunksMissing,
    NearlineError,
    Problem,
    RateLimited,
    Refused,
    Unauthorized,
    Unavailable,
    Unreachable,
    UploadUnknown,
)
from tests.clocks import patient_clock
from tests.model.device import Device
from tests.model.server import Server

HOUR_NS = 3600 * 10**9
Put = Callable[[messages.PresignedPut, bytes | memoryview], object]


@pytest.fixture
def clock() -> Iterator[MockClock]:
    """pytest-trio runs a test under it that asks for it itself."""
    with patient_clock() as clock:
        yield clock


@pytest.fixture
async def one(server: Server, tmp_path: Path, clock: object) -> AsyncIterator[Device]:
    device = Device(server, tmp_path / "one", "one", server.token("one"))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()


async def save(device: Device, name: str, data: bytes) -> int:
    node = device.edits.create(ROOT, name, "file", 0o644, 0, 0)
    await device.contents.write(node.ino, 0, data)
    return node.ino


@asynccontextmanager
async def running(device: Device) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.replayer.run)
        nursery.start_soon(_give_up)
        yield
        nursery.cancel_scope.cancel()


async def _give_up() -> None:
    """In small steps: while a worker thread is busy the mock clock jumps to whatever is next."""
    for _ in range(1000):
        await trio.sleep(60)
    raise AssertionError("it stands still")


async def until(device: Device, condition: Callable[[], bool]) -> None:
    while not condition():
        await device.journal.changed.wait()


async def gone(device: Device, *names: str) -> None:
    """Wait until nothing is left to be sent but what concerns `names`."""
    await until(device, lambda: {op.body.name for op in device.journal} <= set(names))


class Store:
    """Between a device and its blob store: `problem` says what is raised for a body."""

    def __init__(self, device: Device, problem: Callable[[bytes], NearlineError | None]) -> None:
        self.problem, self._plain = problem, device.port.put_chunk
        self.tried: list[tuple[bytes, float]] = []
        self.next_try = trio.Event()
        device.port.put_chunk = self.put  # type: ignore[method-assign]

    async def put(self, put: messages.PresignedPut, body: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.tried.append((bytes(body[:1]), trio.current_time()))
        self.next_try.set()
        self.next_try = trio.Event()
        problem = self.problem(bytes(body))
        if problem is not None:
            raise problem
        await self._plain(put, body)


def errors(device: Device) -> dict[str, str | None]:
    return {item.path: item.error for item in device.uploader.progress.values()}


# --- one is not the others ------------------------------------------------------------------------


@pytest.mark.slow
async def test_uploads_that_fail_for_ever_take_nobodys_place(
    one: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than may be under way at once."""
    monkeypatch.setattr(uploads, "share", lambda size: SHARES)  # as if they were large
    bad = [f"bad {number}" for number in range(UPLOADS + 10)]
    for name in bad:
        await save(one, name, b"!" + name.encode())
    Store(one, lambda body: Busy("the store is full", 507) if body[:1] == b"!" else None)
    for number in range(20):
        await save(one, f"good {number}", f"{number}".encode())
    async with running(one):
        await gone(one, *bad)
        assert one.replayer.waiting_because == "the store is full"
        assert set(errors(one).values()) == {"the store is full"}
        assert set(errors(one)) <= {f"/{name}" for name in bad} | set(bad)
        assert len(one.uploads._running) <= UPLOADS


@pytest.mark.slow
async def test_it_is_sent_when_the_store_takes_it_and_then_no_reason_is_left(
    one: Device, clock: MockClock
) -> None:
    store = Store(one, lambda body: Busy("the store is full", 507))
    await save(one, "a", b"a")
    await save(one, "b", b"b")
    async with running(one):
        await trio.sleep(3600)
        assert one.replayer.waiting_because == "the store is full"
        assert list(errors(one).values()) == ["the store is full"] * 2
        assert 2 * 60 < len(store.tried) < 2 * 60 * 3, "a minute at most, and not hotly"
        store.problem = lambda body: None
        await until(one, lambda: not len(one.journal))
        await trio.testing.wait_all_tasks_blocked()
        assert one.replayer.waiting_because is None
        assert errors(one) == {}


@pytest.mark.slow
async def test_a_dead_line_is_not_tried_by_everybody(one: Device, clock: MockClock) -> None:
    """Hundreds of files wait: each has a short first wait, but one at a time is enough."""
    store = Store(one, lambda body: Unreachable("no route"))
    for number in range(300):
        await save(one, f"f{number}", f"{number}".encode())
    async with running(one):
        await trio.sleep(120)
        assert 20 < len(store.tried) < 200
        await store.next_try.wait()  # or `_give_up` says that there is none
        store.problem = lambda body: None
        await until(one, lambda: not len(one.journal))


@pytest.mark.slow
async def test_an_operation_that_must_wait_holds_up_no_other(one: Device, clock: MockClock) -> None:
    """The server answers "later" for one of a batch, again and again."""
    plain, one.port.apply = one.port.apply, one.port.apply  # type: ignore[method-assign]
    tries = []

    async def later(request: messages.ApplyRequest) -> messages.ApplyReply:
        is_bad = [getattr(keyed.op, "name", "") == "bad" for keyed in request.ops]
        rest = [keyed for keyed, bad in zip(request.ops, is_bad, strict=True) if not bad]
        done = iter((await plain(messages.ApplyRequest(ops=rest))).results if rest else [])
        tries.extend(trio.current_time() for bad in is_bad if bad)
        return messages.ApplyReply(
            results=[
                ChunksMissing(chunks=[], message="gone") if bad else next(done) for bad in is_bad
            ]
        )

    one.port.apply = later  # type: ignore[method-assign]
    await save(one, "bad", b"bad")
    async with running(one):
        await trio.sleep(3600)
        assert 60 < len(tries) < 600
        now = trio.current_time()
        for number in range(5):
            await save(one, f"good {number}", b"good")
        one.replayer.wake()
        await gone(one, "bad")
        assert trio.current_time() - now < 1, "it does not wait for the other's turn"
        assert one.replayer.waiting_because == "gone"
        assert list(errors(one).values()) == ["gone"]
        one.port.apply = plain  # type: ignore[method-assign]
        await until(one, lambda: not len(one.journal))
        await trio.testing.wait_all_tasks_blocked()
        assert one.replayer.waiting_because is None


@pytest.mark.slow
async def test_bytes_go_on_while_no_batch_is_answered(one: Device, clock: MockClock) -> None:
    """The chunks are there already when the server answers again."""
    plain = one.port.apply

    async def down(request: messages.ApplyRequest) -> messages.ApplyReply:
        raise Busy("502", 502)

    one.port.apply = down  # type: ignore[method-assign]
    store = Store(one, lambda body: None)
    await save(one, "first", b"first")
    async with running(one):
        await trio.sleep(3600)
        await save(one, "second", b"second")
        one.replayer.wake()
        await trio.sleep(1)
        assert len(store.tried) == 2
        assert one.replayer.waiting_because == "502"
        one.port.apply = plain  # type: ignore[method-assign]
        await until(one, lambda: not len(one.journal))
        assert len(store.tried) == 2
    assert one.replayer.waiting_because is None


async def test_what_is_deleted_while_it_waits_leaves_no_reason_behind(
    one: Device, clock: MockClock
) -> None:
    Store(one, lambda body: Unreachable("no route"))
    await save(one, "a", b"a")
    async with running(one):
        await trio.sleep(100)
        assert one.replayer.waiting_because == "no route"
        one.edits.unlink(ROOT, "a", directory=False)
        one.collector.collect()
        await until(one, lambda: not len(one.journal))
        await trio.sleep(100)
        assert one.replayer.waiting_because is None
        assert errors(one) == {}


# --- every kind of trouble ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem",
    [
        BadUpload(message="x"),
        RateLimited(message="x", retry_after_seconds=5.0),
        Unauthorized(message="x"),
        Unavailable(message="x"),
        UploadUnknown(message="x"),
    ],
)
async def test_no_passing_refusal_of_an_announcement_is_for_good(
    one: Device, problem: Problem, clock: MockClock
) -> None:
    plain = one.port.start_uploads
    refusals = 20

    async def refuse(request: messages.StartUploads) -> messages.StartUploadsReply:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise Refused(problem)
        return await plain(request)

    one.port.start_uploads = refuse  # type: ignore[method-assign]
    await save(one, "a", b"a")
    async with running(one):
        await until(one, lambda: not len(one.journal))
    assert refusals < 0
    assert (await one.everything())["/a"][4] == b"a"


@pytest.mark.slow
async def test_an_upload_that_gets_on_is_not_backed_off_from_more_and_more(
    one: Device, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    """Every other chunk breaks, and yet some of it arrives each time."""
    count = 0

    def breaks(body: bytes) -> NearlineError | None:
        nonlocal count
        count += 1
        return Unreachable("reset") if count % 3 == 0 else None

    def note(*args: Any, **more: Any) -> None:
        moved.append(more["moved"])
        plain(*args, **more)

    moved: list[bool] = []
    monkeypatch.setattr("remote.transfer.upload.MAX_PART", 0)  # every chunk by itself
    plain = one.uploads.waits.failed
    monkeypatch.setattr(one.uploads.waits, "failed", note)
    store = Store(one, breaks)
    ino = await save(one, "large", b"")
    for number in range(40):
        await one.contents.write(ino, number << 20, number.to_bytes(1, "big") * (1 << 19))
        await one.contents.write(ino, (number << 20) + (1 << 19), bytes(range(256)) * 2048)
    async with running(one):
        await until(one, lambda: not len(one.journal))
    assert len(store.tried) > 10
    assert len(moved) > 2
    # The first may break off what was sent while the file grew, before more of it has arrived.
    assert all(moved[1:]), "each wait is the first one"


# --- clocks ---------------------------------------------------------------------------------------


async def test_what_was_made_in_the_future_is_sent_now(one: Device, clock: MockClock) -> None:
    """The clock was wrong when it was saved, and has been set back since."""
    await save(one, "a", b"a")
    with one.db.transaction():
        for op in one.journal:
            op.made_ns += 10 * 365 * 24 * HOUR_NS
    async with running(one):
        await until(one, lambda: not len(one.journal))


async def test_a_file_that_is_never_closed_is_sent_though_the_clock_was_set_back(
    one: Device, clock: MockClock
) -> None:
    ino = await save(one, "log", b"a")
    one.replayer.snapshots.opened(ino)
    for op in one.journal:
        op.made_ns += HOUR_NS
    async with running(one):
        await until(one, lambda: not len(one.journal))


def test_there_is_room_for_a_bad_line() -> None:
    assert BAD_AFTER < UPLOADS
