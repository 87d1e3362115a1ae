"""One task does for all who wait what they want, and takes nobody along when it is cancelled."""

from __future__ import annotations

from collections.abc import Sequence

import outcome
import pytest
import trio
import trio.testing

from remote.transfer.together import Answer, Together


class Work:
    """Answers a number with its double; `go` lets it. `most` at a time; `not_yet` once are asked
    for again."""

    def __init__(self, places: int = 1, most: int = 100) -> None:
        self.go, self.batches, self.not_yet = trio.Event(), list[list[int]](), set[int]()
        self.error: Exception | None = None
        turn = trio.Semaphore(places)
        self.together = Together[int, int](
            lambda: turn, lambda queue: range(min(most, len(queue))), self.act
        )

    async def act(self, items: list[int]) -> Sequence[Answer[int] | None]:
        self.batches.append(items)
        await self.go.wait()
        if self.error is not None:
            raise self.error
        answers = [None if item in self.not_yet else self.answer(item) for item in items]
        self.not_yet -= set(items)
        return answers

    def answer(self, item: int) -> Answer[int]:
        return outcome.Error(ValueError(item)) if item < 0 else outcome.Value(2 * item)


async def test_who_comes_alone_goes_at_once_and_the_others_go_together() -> None:
    work, done = Work(), list[int]()

    async def one(item: int) -> None:
        done.append(await work.together.do(item))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert work.batches == [[0]]
        for item in range(1, 6):
            nursery.start_soon(one, item)
            await trio.testing.wait_all_tasks_blocked()
        assert work.batches == [[0]]
        work.go.set()
    assert work.batches == [[0], [1, 2, 3, 4, 5]]
    assert sorted(done) == [0, 2, 4, 6, 8, 10]


async def test_several_act_at_once_and_each_takes_what_it_can() -> None:
    work = Work(places=2, most=3)
    async with trio.open_nursery() as nursery:
        for item in range(8):
            nursery.start_soon(work.together.do, item)
            await trio.testing.wait_all_tasks_blocked()
        assert work.batches == [[0], [1]]
        work.go.set()
    assert sorted(item for batch in work.batches for item in batch) == list(range(8))
    assert [len(batch) for batch in work.batches] == [1, 1, 3, 3]


async def test_each_hears_its_own_answer_and_what_is_not_done_is_done_again() -> None:
    work = Work()
    work.go.set()
    work.not_yet = {2, 3}

    async def bad() -> None:
        with pytest.raises(ValueError, match="-1"):
            await work.together.do(-1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bad)
        for item in (1, 2, 3):
            nursery.start_soon(work.together.do, item)
    assert sorted(map(len, work.batches)) == [2, 4]


@pytest.mark.parametrize("doomed", [0, 1, 2, 3])
async def test_who_is_cancelled_takes_nobody_along(doomed: int) -> None:
    """0 acts alone, 1 leads those who wait, for which the others stand."""
    work, done = Work(), list[int]()
    scopes = [trio.CancelScope() for _ in range(4)]

    async def one(item: int) -> None:
        with scopes[item]:
            done.append(await work.together.do(item))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for item in range(4):
                nursery.start_soon(one, item)
                await trio.testing.wait_all_tasks_blocked()
            scopes[doomed].cancel()
            await trio.testing.wait_all_tasks_blocked()
            work.go.set()
    assert sorted(done) == [2 * item for item in range(4) if item != doomed]


@pytest.mark.parametrize("doomed", [1, 2, 3])
async def test_who_is_cancelled_while_it_acts_for_others_takes_nobody_along(doomed: int) -> None:
    work, done = Work(), list[int]()
    scopes = [trio.CancelScope() for _ in range(4)]

    async def one(item: int) -> None:
        with scopes[item]:
            done.append(await work.together.do(item))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0)
            await trio.testing.wait_all_tasks_blocked()
            for item in range(1, 4):
                nursery.start_soon(one, item)
                await trio.testing.wait_all_tasks_blocked()
            first, work.go = work.go, trio.Event()
            first.set()
            await trio.testing.wait_all_tasks_blocked()
            assert work.batches[1:] == [[1, 2, 3]]
            scopes[doomed].cancel()
            await trio.testing.wait_all_tasks_blocked()
            work.go.set()
    assert sorted(done) == [2 * item for item in range(4) if item != doomed]


async def test_an_unexpected_error_is_of_whose_task_it_is_and_the_others_go_on() -> None:
    work, heard, done = Work(), list[str](), list[int]()
    work.error = RuntimeError("unexpected")
    work.go.set()

    async def one(item: int) -> None:
        try:
            done.append(await work.together.do(item))
        except RuntimeError as error:
            heard.append(str(error))
            work.error = None

    async with trio.open_nursery() as nursery:
        for item in range(3):
            nursery.start_soon(one, item)
    assert heard == ["unexpected"]
    assert len(done) == 2


async def test_who_was_left_behind_goes_at_once_if_there_is_a_place() -> None:
    work = Work(places=3, most=1)
    async with trio.open_nursery() as nursery:
        for item in range(3):
            nursery.start_soon(work.together.do, item)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(work.batches) == [[0], [1], [2]]
        work.go.set()


async def test_nobody_waits_for_one_who_went_away_while_another_one_acted_for_him() -> None:
    work, done = Work(), list[int]()
    scopes = [trio.CancelScope() for _ in range(3)]

    async def one(item: int) -> None:
        with scopes[item]:
            done.append(await work.together.do(item))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for item in range(3):
                nursery.start_soon(one, item)
            await trio.testing.wait_all_tasks_blocked()
            assert [sorted(batch) for batch in work.batches] == [[0, 1, 2]]
            for scope in scopes:  # the one that acts is among them
                scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
            work.go.set()
            assert await work.together.do(7) == 14
    assert work.batches[-1] == [7]
    assert done == []
