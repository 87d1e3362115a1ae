"""Interval sets against sets of integers."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.metadata.intervals import IntervalSet
from tests.amounts import amount

bounds = st.integers(0, 40)
ranges = st.tuples(bounds, bounds)
steps = st.lists(st.one_of(ranges, bounds), max_size=12)


def build(steps: list[tuple[int, int] | int]) -> tuple[IntervalSet, set[int]]:
    """A pair is added, a number cuts."""
    found, model = IntervalSet(), set[int]()
    for step in steps:
        if isinstance(step, int):
            gone = any(at >= step for at in model)
            assert found.cut(step) == gone
            model = {at for at in model if at < step}
        else:
            found.add(*step)
            model |= set(range(*step))
    return found, model


@settings(max_examples=amount(300, 60), deadline=None)
@given(steps, ranges)
def test_it_is_a_set_of_integers(
    steps: list[tuple[int, int] | int], asked: tuple[int, int]
) -> None:
    found, model = build(steps)
    start, stop = asked
    assert {at for low, high in found for at in range(low, high)} == model
    assert found.total == len(model)
    if start < stop:
        assert found.covers(start, stop) == (set(range(start, stop)) <= model)
    parts = list(found.split(start, stop))
    assert [at for low, high, _ in parts for at in range(low, high)] == list(range(start, stop))
    assert all(low < high for low, high, _ in parts)
    assert all((at in model) == inside for low, high, inside in parts for at in range(low, high))
    gaps = {at for low, high in found.gaps(start, stop) for at in range(low, high)}
    assert gaps == set(range(start, stop)) - model


@settings(max_examples=amount(200, 40), deadline=None)
@given(steps)
def test_ranges_are_sorted_and_never_touch(steps: list[tuple[int, int] | int]) -> None:
    found, _ = build(steps)
    listed = list(found)
    assert all(start < stop for start, stop in listed)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(listed))


@settings(max_examples=amount(300, 60), deadline=None)
@given(steps, ranges)
def test_add_tells_what_went_and_what_came(
    steps: list[tuple[int, int] | int], added: tuple[int, int]
) -> None:
    """The database rows follow from the answer alone."""
    found, _ = build(steps)
    rows = set(found)
    gone, came = found.add(*added)
    rows -= set(gone)
    if came is not None:
        rows.add(came)
    assert rows == set(found)
    assert (came is None) <= (not gone)
