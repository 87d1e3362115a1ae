"""Decisions of the replayer's loop when time passes between two of its looks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cache.metadata.tree import ROOT
from cache.sync.schedule import BUSY_SECONDS, FEW, LINGER_NS
from remote.protocol import messages
from tests.clocks import patient_clock
from tests.model.device import Device
from tests.model.server import Server


@pytest.fixture
def clock() -> Iterator[MockClock]:
    with patient_clock() as clock:
        yield clock


@pytest.fixture
async def one(server: Server, tmp_path: Path, clock: object) -> AsyncIterator[Device]:
    device = Device(server, tmp_path / "one", "one", server.token("one"))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()


async def all_is_sent(device: Device) -> None:
    """By the loop, which nobody wakes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.replayer.run)
        with trio.fail_after(60):
            while len(device.journal):
                await device.journal.changed.wait()
        nursery.cancel_scope.cancel()


async def test_what_becomes_old_enough_while_it_is_looked_at_is_sent(
    one: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was too young to be sent, and a moment later it was too old to be waited for."""
    one.edits.create(ROOT, "directory", "directory", 0o755, 0, 0)
    (op,) = one.journal
    now, plain = op.made_ns + LINGER_NS - 1, one.uploads.start

    def late(*args: Any) -> None:
        nonlocal now
        plain(*args)
        now += 1

    monkeypatch.setattr(time, "time_ns", lambda: now)
    monkeypatch.setattr(one.uploads, "start", late)
    await all_is_sent(one)


async def test_uploads_that_waited_for_a_pause_begin_though_it_came_while_they_were_looked_at(
    one: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(FEW + 1):
        node = one.edits.create(ROOT, f"f{number}", "file", 0o644, 0, 0)
        await one.contents.write(node.ino, 0, b"0")
    with one.db.transaction():
        for op in one.journal:
            op.made_ns -= 2 * LINGER_NS
    plain = one.uploads.start

    def late(*args: Any) -> None:
        plain(*args)
        clock.jump(BUSY_SECONDS)

    monkeypatch.setattr(one.uploads, "start", late)
    one.replayer.asked()
    await all_is_sent(one)


@pytest.fixture
def slow_server(
    one: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], list[int]]:
    """Every batch takes so long; how many operations each of them had. The time of day goes as the
    clock of the test does."""
    began, plain = time.time_ns(), one.port.apply
    monkeypatch.setattr(time, "time_ns", lambda: began + int(clock.current_time() * 1e9))

    def slow(seconds: float) -> list[int]:
        batches = list[int]()

        async def apply(request: messages.ApplyRequest) -> messages.ApplyReply:
            batches.append(len(request.ops))
            await trio.sleep(seconds)
            return await plain(request)

        one.port.apply = apply  # type: ignore[method-assign]
        return batches

    return slow


async def make_one_by_one(device: Device, count: int) -> None:
    for number in range(count):
        device.edits.create(ROOT, f"d{number}", "directory", 0o755, 0, 0)
        device.replayer.asked()
        await trio.sleep(0.02)


async def test_what_applications_do_one_by_one_goes_together(
    one: Device, clock: MockClock, slow_server: Callable[[float], list[int]]
) -> None:
    batches = slow_server(0.02)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.replayer.run)
        await make_one_by_one(one, 48)
        while len(one.journal):
            await one.journal.changed.wait()
        nursery.cancel_scope.cancel()
    assert sum(batches) == 48
    assert len(batches) <= 12


async def test_who_waits_for_the_server_is_not_kept_waiting_for_more(
    one: Device, clock: MockClock, slow_server: Callable[[float], list[int]]
) -> None:
    batches = slow_server(0.09)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.replayer.run)
        nursery.start_soon(make_one_by_one, one, 12)
        await trio.sleep(0.16)
        assert len(batches) == 1, "it has its answer, and more is gathered"
        began = trio.current_time()
        await one.replayer.flush()
        assert trio.current_time() - began < 0.2
        nursery.cancel_scope.cancel()
