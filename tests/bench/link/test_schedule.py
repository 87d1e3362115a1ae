"""The line's times, in virtual seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.link.schedule import QUEUE_SECONDS, Flights, Lane, Window, symmetric

GAPS = st.floats(0, 0.1, allow_nan=False)
SIZES = st.integers(1, 100_000)
SENDS = st.lists(st.tuples(GAPS, SIZES), min_size=1, max_size=50)


def arrivals(lane: Lane, sends: list[tuple[float, int]]) -> list[tuple[float, float, int]]:
    """When each was given, when it arrives, and its size."""
    now, found = 0.0, []
    for gap, size in sends:
        now += gap
        found.append((now, lane.send(now, size), size))
    return found


@given(SENDS, st.floats(1e3, 1e9), st.floats(0, 1))
def test_nothing_is_early_overtakes_or_exceeds_the_rate(
    sends: list[tuple[float, int]], rate: float, delay: float
) -> None:
    seen = arrivals(Lane(rate, delay), sends)
    for given_at, arrives, size in seen:
        assert arrives >= (given_at + delay + size / rate) * (1 - 1e-9)
    times = [arrives for _, arrives, _ in seen]
    assert times == sorted(times)
    for first in range(len(seen)):
        for last in range(first, len(seen)):
            carried = sum(size for _, _, size in seen[first + 1 : last + 1])
            assert carried <= (times[last] - times[first]) * rate + 1e-3


@given(st.lists(SIZES, min_size=1, max_size=50), st.floats(0, QUEUE_SECONDS))
def test_who_comes_late_by_no_more_than_the_queue_fills_the_lane(
    sizes: list[int], late: float
) -> None:
    rate = 1e6
    lane, now, arrives = Lane(rate, 0.02), 0.0, 0.0
    for size in sizes:
        now = max(now, lane.ready_at() + late)
        arrives = lane.send(now, size)
    assert arrives == pytest.approx(sum(sizes) / rate + 0.02)


def test_without_a_rate_only_the_delay_counts() -> None:
    lane = Lane(None, 0.02)
    assert lane.send(1.0, 1 << 30) == 1.02
    assert lane.send(1.0, 1 << 30) == 1.02


def test_after_a_pause_nothing_was_saved_up() -> None:
    lane = Lane(1000, 0.0)
    assert lane.send(0.0, 1000) == 1.0
    assert lane.send(100.0, 1000) == 101.0


def test_another_shape_counts_for_what_comes_later() -> None:
    lane = Lane(1000, 0.0)
    lane.send(0.0, 1000)
    lane.reshape(None, 0.5)
    assert lane.send(0.5, 1) == 1.5  # what was queued before is still before it
    with pytest.raises(ValueError, match="positive"):
        lane.reshape(0.0, 0.0)
    with pytest.raises(ValueError, match="negative"):
        lane.reshape(None, -1.0)


def test_half_of_the_round_trip_each_way() -> None:
    shape = symmetric(0.04, 125e6)
    assert (shape.up_delay, shape.down_delay, shape.round_trip) == (0.02, 0.02, 0.04)
    assert shape.up_rate == shape.down_rate == 125e6


def test_a_window_opens_when_word_of_what_was_taken_is_back() -> None:
    window = Window(100)
    window.sent(60)
    assert window.opens_at(1.0) == 1.0
    window.sent(60)
    assert window.opens_at(1.0) is None  # nobody has taken anything
    window.delivered(1.0, 60, 0.5)
    assert window.opens_at(1.0) == 1.5
    assert window.opens_at(1.5) == 1.5


@given(st.lists(st.tuples(SIZES, GAPS), max_size=50), st.integers(1, 200_000))
def test_never_more_than_a_window_and_a_piece_is_open(
    pieces: list[tuple[int, float]], limit: int
) -> None:
    window, now, under_way = Window(limit), 0.0, []
    for size, gap in pieces:
        now += gap
        while (opens := window.opens_at(now)) is None:
            window.delivered(now, under_way.pop(0), 0.01)
        if opens <= now:
            window.sent(size)
            under_way.append(size)
        assert sum(under_way[:-1]) < limit


def test_flights_are_round_trips_in_which_something_was_sent() -> None:
    flights = Flights()
    for now in (0.0, 0.01, 0.039, 0.04, 0.05, 5.0):
        flights.sent(now, 0.04)
    assert flights.count == 3
