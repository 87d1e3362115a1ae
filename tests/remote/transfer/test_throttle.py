"""remote/transfer/throttle.py, in virtual time: limits hold for all transfers together."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from remote.transfer.limits import SMALL, SMALL_ONES, TRANSFERS, Claim, Places, at_once
from remote.transfer.throttle import Throttle

RATE = 1_000_000


class Mover:
    """Transfers without a peer: what was moved, when and by whom."""

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self.moved: list[tuple[float, str, int]] = []

    async def move(self, name: str, size: int, claim: Claim | None = None) -> None:
        while size:
            portion = await self.throttle.take(size, claim)
            self.moved.append((trio.current_time(), name, portion))
            size -= portion

    def bytes(self, name: str = "", since: float = 0.0) -> int:
        return sum(
            size for at, who, size in self.moved if at >= since and (not name or who == name)
        )


@pytest.mark.slow
async def test_transfers_share_the_rate_to_the_byte(autojump_clock: MockClock) -> None:
    mover = Mover(Throttle(RATE))
    await mover.move("before", RATE // 2)  # what was saved up is whose who comes first
    with trio.move_on_after(100):
        async with trio.open_nursery() as nursery:
            for name in "abcde":
                nursery.start_soon(mover.move, name, 10**9)
    assert mover.bytes() == pytest.approx(RATE * 100 + RATE // 2, abs=RATE // 20)
    assert mover.bytes() <= RATE * 100 + RATE // 2
    portion = RATE // 20
    amounts = [mover.bytes(name) for name in "abcde"]
    assert max(amounts) - min(amounts) <= portion
    for begin, _, _ in mover.moved[::50]:
        within = sum(size for at, _, size in mover.moved if begin <= at <= begin + 1)
        assert within <= RATE * 1.5 + 1


async def test_a_new_limit_holds_at_once_for_what_is_under_way(autojump_clock: MockClock) -> None:
    throttle = Throttle(RATE)
    mover = Mover(throttle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mover.move, "a", 3 * RATE)
        nursery.start_soon(mover.move, "b", 3 * RATE)
        await trio.sleep(1)
        throttle.change(RATE // 10)
        before = mover.bytes()
        await trio.sleep(10)
        assert mover.bytes() - before <= RATE + RATE // 20
        assert mover.bytes() - before >= RATE - RATE // 20
        began = trio.current_time()
        throttle.change(None)
        await trio.testing.wait_all_tasks_blocked()
    assert mover.bytes() == 6 * RATE
    assert trio.current_time() == began


async def test_a_first_limit_finds_nothing_saved_up(autojump_clock: MockClock) -> None:
    throttle = Throttle()
    mover = Mover(throttle)
    await mover.move("a", 10**9)
    assert trio.current_time() == 0
    throttle.change(RATE)
    await mover.move("a", RATE)
    assert trio.current_time() == pytest.approx(1, abs=1e-4)


async def test_who_is_cancelled_goes_at_once_and_holds_nobody_up(
    autojump_clock: MockClock,
) -> None:
    throttle = Throttle(RATE)
    mover = Mover(throttle)
    await mover.move("a", RATE // 2)
    async with trio.open_nursery() as nursery:
        gone = await nursery.start(_scoped, mover)
        await trio.testing.wait_all_tasks_blocked()
        gone.cancel()
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await mover.move("b", 1000)
        assert trio.current_time() - began == pytest.approx(0.001, abs=1e-5)
    assert mover.bytes("gone") == 0


async def _scoped(
    mover: Mover, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await mover.move("gone", RATE)


async def test_what_somebody_waits_for_goes_first(autojump_clock: MockClock) -> None:
    """Also what becomes so while it waits."""
    throttle = Throttle(RATE)
    mover, late = Mover(throttle), Claim(urgent=False)
    async with trio.open_nursery() as nursery:
        await mover.move("before", RATE // 2)
        nursery.start_soon(mover.move, "ahead", RATE, Claim(urgent=False))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(mover.move, "late", RATE, late)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(mover.move, "urgent", RATE, Claim())
        await trio.sleep(1.01)
        assert (mover.bytes("urgent"), mover.bytes("ahead"), mover.bytes("late")) == (RATE, 0, 0)
        late.urgent = True
        await trio.sleep(1.01)
        assert mover.bytes("late") == RATE
    assert mover.bytes("ahead") == RATE


async def test_only_the_first_limit_cuts(autojump_clock: MockClock) -> None:
    throttle = Throttle()
    with throttle.cuttable() as scope:
        throttle.change(RATE)
        await trio.sleep_forever()
    assert scope.cancelled_caught
    with throttle.cuttable() as scope:
        throttle.change(2 * RATE)
        throttle.change(None)
        await trio.lowlevel.checkpoint()
    assert not scope.cancelled_caught


@pytest.mark.parametrize("transfers", [1, 3, 8])
async def test_small_transfers_count_less(autojump_clock: MockClock, transfers: int) -> None:
    for size, most in ((SMALL, transfers), (SMALL - 1, transfers * SMALL_ONES)):
        places = Places(TRANSFERS)
        places.change(transfers)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(_occupy, places, size)
        assert (places.peak, places.used) == (most, 0)


async def test_fewer_places_hold_from_the_next_on(autojump_clock: MockClock) -> None:
    places = Places(3)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(_occupy, places, SMALL)
        await trio.testing.wait_all_tasks_blocked()
        places.change(1)
        assert places.used == 3
        places.peak = 0
        for _ in range(3):
            nursery.start_soon(_occupy, places, SMALL)
    assert places.peak == 1


async def _occupy(places: Places, size: int) -> None:
    async with places.place(size, Claim()):
        await trio.sleep(1)


def test_uploads_are_not_begun_to_be_starved() -> None:
    """A server gives up a body that comes too slowly."""
    assert at_once(8, None) == 8
    assert at_once(8, 8 * 1024) == 1
    assert at_once(8, 50_000) == 3
    assert at_once(2, 10**6) == 2
