"""Fair queueing: who waits for whom, counted in time that the jobs themselves say they take."""

from __future__ import annotations

import random
import threading

import pytest

from server.fair_queue import FairQueue
from server.pools import OWN, FairPool


def serve(turns: FairQueue[float], most: int = 1000) -> list[tuple[object, float]]:
    """Do what waits; a job is how long it takes. Returns whose each was, and when it was done."""
    done, now = [], 0.0
    while turns.jobs() and len(done) < most:
        whose, seconds = turns.take()
        now += seconds
        turns.charge(whose, seconds)
        done.append((whose, now))
    return done


def test_one_who_asks_for_much_is_not_waited_for() -> None:
    turns: FairQueue[float] = FairQueue()
    for _ in range(100):
        turns.wait("greedy", 0.25)
    turns.wait("modest", 0.01)
    served = serve(turns, most=2)
    assert served == [("greedy", 0.25), ("modest", 0.26)]


def test_many_who_ask_for_much_get_the_same_and_a_newcomer_is_next() -> None:
    turns: FairQueue[float] = FairQueue()
    for _ in range(10):
        for greedy in "abc":
            turns.wait(greedy, 0.25)
    assert sorted(str(whose) for whose, _ in serve(turns, most=12)) == sorted("abc" * 4)
    turns.wait("modest", 0.01)
    behind = [whose for whose, _ in serve(turns, most=4)]
    assert behind.index("modest") <= 3  # one job of each, at most


def test_budgets_of_write_time_are_shared_whatever_the_jobs_look_like() -> None:
    """Six accounts, each always with something to do, some in large pieces and some in small: in
    any stretch of a minute nobody has had more than the others by more than two of its jobs."""
    chance = random.Random(7)
    turns: FairQueue[float] = FairQueue()
    pieces = {"a": 0.25, "b": 0.25, "c": 0.05, "d": 0.01, "e": 0.1, "f": 1.0}
    for whose, piece in pieces.items():
        turns.wait(whose, piece)
        turns.wait(whose, piece)
    had = dict.fromkeys(pieces, 0.0)
    for _ in range(3000):
        whose, seconds = turns.take()
        took = seconds * chance.uniform(0.5, 1.5)
        turns.charge(whose, took)
        had[str(whose)] += took
        turns.wait(whose, pieces[str(whose)])
    assert max(had.values()) - min(had.values()) < 3 * max(pieces.values())


def test_jobs_of_one_come_in_order_and_nobody_saves_up_turns() -> None:
    turns: FairQueue[float] = FairQueue(each=2)
    for number in (1.0, 2.0, 3.0):
        turns.wait("one", number)
    first, _ = turns.take()
    turns.charge(first, 100.0)
    turns.wait("late", 50.0)  # begins where the others are, not at nothing
    turns.wait("late", 50.0)
    assert [turns.take() for _ in range(2)] == [("late", 50.0), ("late", 50.0)]
    turns.charge("late", 50.0)
    turns.charge("late", 50.0)
    assert turns.take() == ("one", 2.0)


def test_what_takes_no_time_goes_round() -> None:
    turns: FairQueue[float] = FairQueue()
    for whose in "aaabbb":
        turns.wait(whose, 0.0)
    assert [whose for whose, _ in serve(turns)] == list("ababab")


@pytest.mark.slow
def test_all_is_forgotten_when_nobody_waits() -> None:
    turns: FairQueue[float] = FairQueue()
    for number in range(1000):
        turns.wait(number, 1.0)
    serve(turns)
    assert turns._had == {}
    with pytest.raises(IndexError):
        turns.take()


# --- threads ------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_threads_take_turns_by_the_time_that_jobs_took() -> None:
    clock, order, gate = Clock(), list[str](), threading.Event()
    pool = FairPool(1, "test", clock)

    def job(whose: str, seconds: float) -> None:
        clock.pass_by(seconds)
        order.append(whose)

    pool.submit(gate.wait, 20)
    asked = [pool.submit_for("greedy", lambda: job("greedy", 1.0)) for _ in range(5)]
    asked += [pool.submit_for("modest", lambda: job("modest", 0.1)) for _ in range(5)]
    assert pool.waiting == 11
    gate.set()
    for item in asked:
        item.result(20)
    pool.shutdown()
    assert order == ["greedy"] + 5 * ["modest"] + 4 * ["greedy"]
    assert pool.waiting == 0


def test_a_batch_is_over_sooner_while_others_wait() -> None:
    clock, gate = Clock(), threading.Event()
    pool = FairPool(1, "test", clock)
    pool.submit(gate.wait, 20)
    is_over = pool.turn("me", alone=5.0, shared=0.05)
    clock.pass_by(1.0)
    pool.submit_for("me", lambda: None)
    pool.submit(lambda: None)  # the server's own jobs are in no hurry
    assert not is_over()
    pool.submit_for("you", lambda: None)
    assert is_over()
    assert not pool.turn("me", alone=5.0, shared=0.05)()
    gate.set()
    pool.shutdown()
    clock.pass_by(4.5)
    assert is_over()


def test_nobody_has_more_than_half_of_the_threads() -> None:
    """Also when nobody else waits; and all that waits is done in the end."""
    pool, gate, begun = FairPool(4, "test"), threading.Event(), threading.Semaphore(0)

    def job() -> None:
        begun.release()
        gate.wait(60)

    many = [pool.submit_for("many", job) for _ in range(10)]
    assert begun.acquire(timeout=60)
    assert begun.acquire(timeout=60)
    assert pool.submit_for("one", lambda: "at once").result(20) == "at once"
    assert sum(item.running() for item in many) == 2
    gate.set()
    assert [item.result(20) for item in many] == [None] * 10
    pool.shutdown()
    assert pool.waiting == 0


def test_errors_and_cancelled_jobs_stop_nobody() -> None:
    gate = threading.Event()
    pool = FairPool(1, "test")
    pool.submit(gate.wait, 20)
    bad = pool.submit_for("a", lambda: 1 // 0)
    never = pool.submit_for("a", lambda: "done")
    last = pool.submit_for("b", lambda: "done")
    assert never.cancel()
    gate.set()
    assert last.result(20) == "done"
    assert isinstance(bad.exception(20), ZeroDivisionError)
    pool.shutdown()


def test_what_waits_when_the_threads_end_is_done_or_cancelled() -> None:
    for cancelled in (False, True):
        gate = threading.Event()
        pool = FairPool(1, "test")
        pool.submit_for(OWN, lambda gate=gate: gate.wait(60))  # type: ignore[misc]
        waits = pool.submit_for("a", lambda: "done")
        ending = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": cancelled})
        ending.start()
        if cancelled:
            assert waits.cancelled() or waits.cancel()
        gate.set()
        ending.join(60)
        assert waits.cancelled() if cancelled else waits.result(20) == "done"
        with pytest.raises(RuntimeError):
            pool.submit(lambda: None)
