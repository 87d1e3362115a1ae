from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.blocks.eviction import LOW_WATER, Resident, choose, effective_limit, excess
from tests.amounts import amount

residents = st.lists(
    st.builds(
        Resident,
        st.integers(0, 20),
        st.integers(0, 9).flatmap(
            lambda chunk: st.integers(0, 500).map(
                lambda block: bytes([chunk]) * 32 + block.to_bytes(2, "big")
            )
        ),
        st.integers(1, 300_000),
    ),
    max_size=60,
    unique_by=lambda resident: resident.key,
)


def resident(generation: int, chunk: int = 0, charge: int = 100) -> Resident:
    return Resident(generation, bytes([chunk]) * 32 + generation.to_bytes(2, "big"), charge)


def test_oldest_go_first_and_no_more_than_needed() -> None:
    chosen = choose([resident(3), resident(1), resident(2), resident(4)], 150)
    assert [r.generation for r in chosen] == [1, 2]


def test_pinned_chunks_stay_even_when_that_is_not_enough() -> None:
    chosen = choose([resident(1, chunk=7), resident(2, chunk=8)], 10_000, {bytes([7]) * 32})
    assert [r.generation for r in chosen] == [2]


def test_nothing_needed_chooses_nothing() -> None:
    assert choose([resident(1)], 0) == []


@settings(deadline=None, max_examples=amount(150, 30))
@given(residents, st.integers(1, 3_000_000), st.sets(st.integers(0, 9), max_size=3))
def test_choice_is_the_shortest_oldest_prefix(
    everything: list[Resident], needed: int, pins: set[int]
) -> None:
    pinned = {bytes([chunk]) * 32 for chunk in pins}
    chosen = choose(everything, needed, pinned)
    evictable = [r for r in everything if r.key[:32] not in pinned]
    freed = sum(r.charge for r in chosen)
    assert not {r.key[:32] for r in chosen} & pinned
    if sum(r.charge for r in evictable) < needed:
        assert chosen == sorted(evictable)
        return
    assert freed >= needed
    newest = max(r.generation for r in chosen)
    kept = [r for r in evictable if r not in chosen]
    assert all(r.generation >= newest for r in kept)
    last = [r for r in chosen if r.generation == newest]
    assert all(freed - r.charge < needed for r in last if r == min(last, key=lambda r: r.key))


def test_excess_goes_down_to_low_water_only_when_over() -> None:
    assert excess(1000, 1000) == 0
    assert excess(1001, 1000) == 1001 - int(1000 * LOW_WATER)


def test_low_disk_shrinks_the_limit() -> None:
    assert effective_limit(1000, used=400, disk_free=10_000, min_free=500) == 1000
    assert effective_limit(1000, used=400, disk_free=600, min_free=500) == 500
    assert effective_limit(1000, used=400, disk_free=300, min_free=500) == 200
    assert effective_limit(1000, used=100, disk_free=0, min_free=500) == 0
