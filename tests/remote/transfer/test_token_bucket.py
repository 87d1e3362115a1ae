"""remote/transfer/token_bucket.py: never more than the rate, nobody starves, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.transfer.limits import Claim
from remote.transfer.token_bucket import BILLION, TokenBucket, Turn
from tests.amounts import amount

RATES = st.integers(1, 100 * 10**6)
SECOND = BILLION


@dataclass
class Given:
    at: int
    bytes: int


@dataclass
class Rated:
    """The rate since `at`, and what the bucket could hold then."""

    at: int
    rate: int | None
    burst: int


@dataclass
class Line:
    """A bucket, who waits for it, and what it gave out."""

    bucket: TokenBucket
    now: int = 0
    turns: list[Turn] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)

    def ask(self, most: int, *, urgent: bool) -> Turn:
        turn = self.bucket.ask(most, Claim(urgent=urgent))
        self.turns.append(turn)
        return turn

    def look(self) -> int | None:
        """Note what is given now: it must be what was asked for or less."""
        due = self.bucket.advance(self.now)
        for turn in [turn for turn in self.turns if turn.portion]:
            assert 1 <= turn.portion <= turn.most
            self.given.append(Given(self.now, turn.portion))
            self.turns.remove(turn)
        assert (due is None) == (not self.turns)
        assert due is None or due > self.now
        return due


STEPS = st.one_of(
    st.tuples(st.just("pass"), st.integers(0, 3 * SECOND)),
    st.tuples(st.just("due"), st.just(0)),
    st.tuples(st.just("ask"), st.integers(1, 20_000_000)),
    st.tuples(st.just("ahead"), st.integers(1, 20_000_000)),
    st.tuples(st.just("urge"), st.integers(0, 50)),
    st.tuples(st.just("leave"), st.integers(0, 50)),
    st.tuples(st.just("change"), st.one_of(st.just(0), RATES)),
)


@settings(max_examples=amount(300, 60))
@given(RATES, st.integers(1, 50), st.lists(STEPS, max_size=60))
def test_in_no_window_more_is_given_than_rate_and_burst(
    rate: int, per_second: int, steps: list[tuple[str, int]]
) -> None:
    line = Line(TokenBucket(rate, 0, portions_per_second=per_second))
    rates = [Rated(0, rate, line.bucket.burst)]
    for what, number in steps:
        due = line.look()
        match what:
            case "pass":
                line.now += number
            case "due":
                line.now = line.now if due is None else due
            case "ask" | "ahead":
                line.ask(number, urgent=what == "ask")
            case "change":
                line.bucket.change(number or None, line.now)
                burst = line.bucket.burst if number else 0
                rates.append(Rated(line.now, number or None, burst))
            case _ if not line.turns:
                continue
            case "urge":
                line.turns[number % len(line.turns)].claim.urgent = True
            case "leave":
                line.bucket.leave(line.turns.pop(number % len(line.turns)))
        line.look()
    limited = _while_limited(line, rates)
    for first, begin in enumerate(limited):
        total = 0
        for end in limited[first:]:
            total += end.bytes
            assert total * BILLION <= _allowed(rates, begin.at, end.at)


def _while_limited(line: Line, rates: list[Rated]) -> list[Given]:
    """The portions since there was a limit for the last time, if there is one."""
    since = 0
    for number, rated in enumerate(rates):
        if rated.rate is None:
            since = rates[number + 1].at if number + 1 < len(rates) else line.now + 1
    first = next((n for n, rated in enumerate(rates) if rated.rate is None), len(rates))
    if first < len(rates):  # what was given at the very moment of a change may be of before it
        return [item for item in line.given if item.at > since]
    return line.given


def _allowed(rates: list[Rated], begin: int, end: int) -> int:
    """Billionths of bytes that may be given out from `begin` to `end`: by the rates of meanwhile,
    and what the bucket could hold before."""
    held = max(one.burst for one in rates if one.at <= begin and not _replaced(rates, one, begin))
    total = held * BILLION
    for number, one in enumerate(rates):
        until = rates[number + 1].at if number + 1 < len(rates) else end
        total += max(0, min(until, end) - max(one.at, begin)) * (one.rate or 0)
    return total


def _replaced(rates: list[Rated], rated: Rated, at: int) -> bool:
    """True if it was no more the rate just before `at`."""
    after = rates[rates.index(rated) + 1 :]
    return any(item.at < at for item in after)


@settings(max_examples=amount(200, 40))
@given(
    RATES,
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(1, 5_000_000), st.booleans()), min_size=1, max_size=8),
)
def test_who_waits_takes_turns_and_nothing_of_the_rate_is_lost(
    rate: int, per_second: int, transfers: list[tuple[int, bool]]
) -> None:
    """Each asks again when it has moved its portion, behind the others of its kind, until it has
    moved everything: so each has a portion before any other has two."""
    bucket = TokenBucket(rate, 0, portions_per_second=per_second)
    lines: dict[bool, list[Turn]] = {True: [], False: []}
    left: dict[Turn, int] = {}

    def ask(size: int, *, urgent: bool) -> None:
        turn = bucket.ask(size, Claim(urgent=urgent))
        lines[urgent].append(turn)
        left[turn] = size

    for size, urgent in transfers:
        ask(size, urgent=urgent)
    now = moved = 0
    for _step in range(400):
        due = bucket.advance(now)
        assert not any(turn.portion for turn in lines[False]) or all(
            turn.portion for turn in lines[True]
        )
        for urgent, line in lines.items():
            given = [turn for turn in line if turn.portion]
            assert line[: len(given)] == given
            del line[: len(given)]
            for turn in given:
                moved += turn.portion
                if (more := left.pop(turn) - turn.portion) > 0:
                    ask(more, urgent=urgent)
        if not left:
            assert moved == sum(size for size, _ in transfers)
            break
        now = now if due is None else due
    assert moved * BILLION <= (rate * now) + bucket.burst * BILLION
    assert not left or (moved + bucket.portion) * BILLION >= rate * now


def test_portions_are_a_part_of_a_second() -> None:
    bucket = TokenBucket(2_000_000, 0, portions_per_second=20)
    assert (bucket.portion, bucket.burst) == (100_000, 1_000_000)
    assert TokenBucket(8192, 0, portions_per_second=20).portion == 1024
    turn = bucket.ask(10**9, Claim())
    assert bucket.advance(0) is None
    assert turn.portion == 100_000


def test_a_claim_that_becomes_urgent_comes_first() -> None:
    bucket = TokenBucket(1_000_000, 0, portions_per_second=2)
    first = bucket.ask(500_000, Claim(urgent=False))  # what was saved up
    ahead, late = (bucket.ask(100_000, Claim(urgent=False)) for _ in range(2))
    assert bucket.advance(0) == SECOND // 10
    late.claim.urgent = True
    assert bucket.advance(SECOND // 10) == SECOND // 5
    assert (first.portion, ahead.portion, late.portion) == (500_000, 0, 100_000)


def test_a_new_rate_holds_for_who_waits() -> None:
    bucket = TokenBucket(1_000_000, 0, portions_per_second=2)
    bucket.ask(500_000, Claim())
    turn = bucket.ask(500_000, Claim())
    assert bucket.advance(0) == SECOND // 2
    bucket.change(100_000, SECOND // 4)  # there are 250,000, of which it may hold 50,000
    assert bucket.advance(SECOND // 4) is None
    assert turn.portion == 50_000
    waiting = bucket.ask(10**9, Claim())
    bucket.change(None, SECOND // 4)
    assert bucket.advance(SECOND // 4) is None
    assert waiting.portion == 10**9


def test_a_limit_begins_with_an_empty_bucket() -> None:
    bucket = TokenBucket(None, 0, portions_per_second=2)
    bucket.change(1_000_000, 5 * SECOND)
    bucket.ask(1000, Claim())
    assert bucket.advance(5 * SECOND) == 5 * SECOND + SECOND // 1000


def test_who_leaves_is_not_waited_for() -> None:
    bucket = TokenBucket(1_000_000, 0, portions_per_second=2)
    bucket.ask(500_000, Claim())
    large, small = bucket.ask(500_000, Claim()), bucket.ask(1000, Claim())
    assert bucket.advance(0) == SECOND // 2
    bucket.leave(large)
    assert bucket.advance(0) == SECOND // 1000
    assert bucket.advance(SECOND // 1000) is None
    assert (large.portion, small.portion) == (0, 1000)


def test_nothing_is_nothing_to_wait_for() -> None:
    with pytest.raises(ValueError, match="nothing"):
        TokenBucket(1000, 0, portions_per_second=2).ask(0, Claim())
