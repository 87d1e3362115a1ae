"""Decisions of the replayer's loop when time passes between two of its looks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cache.metadata.tree import ROOT
from cache.sync.schedule import BUSY_SECONDS, FEW, LINGER_NS
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
