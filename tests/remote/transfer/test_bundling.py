"""The choice of chunks for one bundle, and of ranges for one request."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from remote.protocol.bundle import MAX_PART, MAX_PARTS, MAX_PARTS_LENGTH
from remote.transfer.bundling import (
    LEAST_LENGTH,
    MAX_GAP,
    MAX_MERGED,
    Extent,
    Part,
    fill,
    merge,
    most_length,
)

places = st.tuples(st.integers(1, 3), st.integers(1, 50))
parts = st.builds(Part, st.binary(min_size=1, max_size=1), st.integers(1, MAX_PART), places)


def sized(waiting: list[Part]) -> list[Part]:
    """Chunks with the same id have the same length."""
    lengths: dict[bytes, int] = {}
    return [part._replace(length=lengths.setdefault(part.chunk, part.length)) for part in waiting]


@given(st.lists(parts, min_size=1, max_size=80).map(sized))
def test_a_bundle_is_full_of_those_who_came_first(waiting: list[Part]) -> None:
    taken = fill(waiting)
    assert len(set(taken)) == len(taken)
    assert 0 in taken, "nobody waits for ever"
    length = {waiting[number].chunk: waiting[number].length for number in taken}
    assert sum(length.values()) <= MAX_PARTS_LENGTH
    chunks = set(length)
    for number, part in enumerate(waiting):
        if number in taken:
            continue
        assert part.chunk not in chunks, "it would be sent twice"
        before = {waiting[other].chunk: waiting[other].length for other in taken if other < number}
        assert sum(before.values()) + part.length > MAX_PARTS_LENGTH, "there was room"
    assert [waiting[number].beside for number in taken] == sorted(
        waiting[number].beside for number in taken
    )


def test_a_bundle_has_no_more_parts_than_a_reader_takes() -> None:
    waiting = [Part(b"%d" % number, 1, (1, number)) for number in range(MAX_PARTS + 5)]
    assert fill(waiting) == list(range(MAX_PARTS))
    again = [*waiting[:MAX_PARTS], *waiting[:MAX_PARTS]]
    assert len(fill(again)) == 2 * MAX_PARTS, "the same chunks are no further parts"


@given(st.lists(parts, min_size=1, max_size=80).map(sized), st.integers(1, MAX_PARTS_LENGTH))
def test_a_bundle_is_no_longer_than_it_may_be(waiting: list[Part], most: int) -> None:
    length = {waiting[number].chunk: waiting[number].length for number in fill(waiting, most)}
    assert len(length) == 1 or sum(length.values()) <= most


def test_on_a_slow_line_bundles_are_small() -> None:
    assert most_length(None) == MAX_PARTS_LENGTH
    assert most_length(100_000_000) == MAX_PARTS_LENGTH
    assert most_length(500_000) == 2_000_000
    assert most_length(64_000) == LEAST_LENGTH


@st.composite
def objects(draw: st.DrawFn) -> list[Extent]:
    """Extents that do not overlap, in any order."""
    found = []
    for name in draw(st.lists(st.sampled_from("abc"), max_size=3, unique=True)):
        at = draw(st.integers(0, 100))
        for _ in range(draw(st.integers(0, 12))):
            at += draw(st.sampled_from([0, 0, 1, MAX_GAP, MAX_GAP + 1]))
            end = at + draw(st.sampled_from([1, 4096, MAX_MERGED // 2, MAX_MERGED, 2 * MAX_MERGED]))
            found.append(Extent(name, at, end))
            at = end
    return draw(st.permutations(found))


@given(objects())
def test_what_lies_together_is_fetched_together(extents: list[Extent]) -> None:
    groups = merge(extents)
    assert sorted(number for group in groups for number in group) == list(range(len(extents)))
    sorted_groups = [[extents[number] for number in group] for group in groups]
    for group in sorted_groups:
        for one, other in itertools.pairwise(group):
            assert one.object == other.object
            assert one.end <= other.start <= one.end + MAX_GAP
        assert len(group) == 1 or group[-1].end - group[0].start <= MAX_MERGED
    for before, after in itertools.pairwise(sorted_groups):
        assert (
            before[0].object != after[0].object
            or after[0].start - before[-1].end > MAX_GAP
            or after[0].end - before[0].start > MAX_MERGED
        ), "they might have been one"
