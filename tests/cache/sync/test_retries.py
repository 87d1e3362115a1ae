"""Waits are by themselves, longer and longer, never for ever; a bad line is tried by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache.sync.retries import BAD_AFTER, TRIAL_CAP, Line, Waits
from remote.protocol.backoff import CAP_SECONDS


def test_each_waits_by_itself() -> None:
    waits = Waits()
    waits.failed("a", "no route", 100.0, 0.5)
    assert not waits.may_try("a", 100.2)
    assert waits.may_try("b", 100.2)
    assert waits.next_try(100.0) == 100.25
    assert waits.may_try("a", 100.25)
    assert waits.next_try(100.25) is None, "nothing wakes for what may be tried already"


def test_waits_grow_to_a_cap_and_go_on() -> None:
    waits, now, found = Waits(), 0.0, []
    for _ in range(2000):
        waits.failed("a", "down", now, 0.99)
        again = waits.next_try(now)
        assert again is not None
        found.append(round(again - now, 6))
        now = again
    assert found == sorted(found)
    assert found[0] < 1
    assert found[-1] == round(CAP_SECONDS * 0.99, 6)


def test_what_gets_on_does_not_wait_longer_and_longer() -> None:
    waits = Waits()
    for _ in range(100):
        waits.failed("a", "reset", 0.0, 0.99, moved=True)
    assert not waits.may_try("a", 0.49)
    assert waits.may_try("a", 0.5)


def test_who_said_when_is_not_asked_before() -> None:
    waits = Waits()
    waits.failed("a", "busy", 0.0, 0.0, retry_after=7.0)
    assert not waits.may_try("a", 6.9)
    assert waits.may_try("a", 7.0)


def test_the_reason_lasts_until_it_has_succeeded() -> None:
    waits = Waits()
    assert waits.reason is None
    waits.failed("a", "refused", 0.0, 0.5)
    waits.failed("b", "no route", 0.0, 0.5)
    assert waits.reason == "no route"
    waits.failed("a", "refused again", 1.0, 0.5)
    assert waits.reason == "refused again"
    waits.retry_now()
    assert waits.may_try("a", 1.0)
    assert waits.reason == "refused again"
    waits.done("a")
    assert waits.reason == "no route"
    waits.only(lambda key: key != "b")
    assert waits.reason is None
    assert len(waits) == 0


def test_everybody_gets_a_turn() -> None:
    waits = Waits()
    for key in "abca":
        waits.failed(key, "x", 0.0, 0.5)
    assert sorted("abcd", key=waits.turn) == ["d", "b", "c", "a"]


def test_to_hurry_is_not_to_begin_anew() -> None:
    waits = Waits()
    for _ in range(3):
        waits.failed("a", "x", 0.0, 0.99)
    waits.hurry()
    assert waits.may_try("a", 0.0)
    waits.failed("a", "x", 0.0, 0.99)
    assert not waits.may_try("a", 3.9), "the fourth wait"
    waits.retry_now()
    waits.failed("a", "x", 0.0, 0.99)
    assert waits.may_try("a", 0.5), "the first wait"


def test_a_few_failures_are_not_the_line() -> None:
    line = Line()
    for _ in range(BAD_AFTER - 1):
        line.failed(0.0, 0.5)
    assert line.most(0.0, 64) == 64
    line.worked()
    line.failed(0.0, 0.5)
    assert line.most(0.0, 64) == 64


def test_a_bad_line_is_tried_by_one_until_something_gets_through() -> None:
    line, now = Line(), 0.0
    for _ in range(64):
        line.failed(now, 0.99)
    assert line.is_bad
    waits = []
    for _ in range(12):
        assert line.most(now, 64) == 0
        again = line.next_try(now)
        assert again is not None
        waits.append(round(again - now, 6))
        now = again
        assert line.most(now, 64) == 1
        assert line.most(now, 0) == 0, "a burst still goes first"
        line.failed(now, 0.99)
    assert waits == sorted(waits)
    assert waits[0] < 1, "of 64 that fail together one counts"
    assert 4 < waits[-1] <= TRIAL_CAP
    line.worked()
    assert line.most(now, 64) == 64
    assert line.next_try(now) is None


@given(st.lists(st.sampled_from(["fail", "work", "wait"]), max_size=60))
def test_a_line_never_stands_still(events: list[str]) -> None:
    """Whatever happened: something may be tried, within the longest wait."""
    line, now = Line(), 0.0
    for event in events:
        if event == "fail":
            line.failed(now, 0.5)
        elif event == "work":
            line.worked()
        else:
            now += 7.0
    assert line.most(now, 64) > 0 or line.most(now + CAP_SECONDS, 64) > 0
