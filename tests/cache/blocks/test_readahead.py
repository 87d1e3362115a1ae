from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.blocks.readahead import (
    INITIAL_WINDOW,
    KERNEL_READS,
    MAX_WINDOW,
    TRUST,
    ReadAhead,
    Window,
)
from tests.amounts import amount

KIB = 1024
MIB = 1024 * KIB


def sequential(ahead: ReadAhead, start: int, end: int, step: int = 128 * KIB) -> list[Window]:
    asked = (ahead.on_read(offset, step) for offset in range(start, end, step))
    return [window for window in asked if window is not None]


def test_a_first_read_at_the_start_opens_the_window() -> None:
    assert ReadAhead().on_read(0, 4096) == Window(4096, 4096 + INITIAL_WINDOW)


def test_a_first_read_elsewhere_prefetches_nothing() -> None:
    assert ReadAhead().on_read(512 * MIB, 4096) is None


def test_the_second_read_in_a_row_opens_the_window() -> None:
    ahead = ReadAhead()
    assert ahead.on_read(MIB, 128 * KIB) is None
    window = ahead.on_read(MIB + 128 * KIB, 128 * KIB)
    assert window == Window(MIB + 256 * KIB, MIB + 256 * KIB + INITIAL_WINDOW)


def test_who_looks_at_a_few_bytes_here_and_there_has_little_read_ahead() -> None:
    """The kernel alone reads on by some MiB for that."""
    for start in (0, 64 * MIB):
        ahead = ReadAhead()
        windows = sequential(ahead, start, start + KERNEL_READS, MIB)
        assert max(window.end for window in windows) <= start + KERNEL_READS * 3 // 2
        assert ahead.on_read(start + KERNEL_READS, MIB) is not None
        assert ahead.size >= TRUST * KERNEL_READS, "who reads on is believed"


def test_what_is_fetched_for_nothing_is_little_of_what_was_read() -> None:
    """Whenever somebody stops; and after a few reads the window is large."""
    for step in (4 * KIB, 128 * KIB, MIB):
        ahead, asked = ReadAhead(), 0
        for offset in range(0, 8 * MIB, step):
            window = ahead.on_read(offset, step)
            asked = asked if window is None else window.end
            read = offset + step
            assert asked - read <= max(INITIAL_WINDOW, TRUST * read)
        assert ahead.size == MAX_WINDOW


def test_the_window_grows_up_to_its_maximum_and_asks_for_each_byte_once() -> None:
    ahead = ReadAhead()
    windows = sequential(ahead, 0, 128 * MIB)
    assert ahead.size == MAX_WINDOW
    assert [w.start for w in windows[1:]] == [w.end for w in windows[:-1]]
    assert max(w.end - w.start for w in windows) <= MAX_WINDOW
    assert len(windows) < 50  # large requests, not one for each read


def test_the_limit_caps_the_window() -> None:
    ahead = ReadAhead()
    for offset in range(0, 64 * MIB, 128 * KIB):
        window = ahead.on_read(offset, 128 * KIB, limit=2 * MIB)
        assert window is None or window.end <= offset + 128 * KIB + 2 * MIB
    assert ahead.size == 2 * MIB


def test_random_reads_collapse_the_window() -> None:
    ahead = ReadAhead()
    sequential(ahead, 0, 32 * MIB)
    assert ahead.on_read(700 * MIB, 4096) is None
    assert ahead.size == 0
    assert ahead.on_read(300 * MIB, 4096) is None


@settings(deadline=None, max_examples=amount(60, 12))
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_slightly_shuffled_reads_are_still_a_sequence(seed: int, depth: int) -> None:
    rng = random.Random(seed)
    offsets = list(range(0, 32 * MIB, 128 * KIB))
    for start in range(0, len(offsets), depth):
        group = offsets[start : start + depth]
        rng.shuffle(group)
        offsets[start : start + depth] = group
    ahead, wanted = ReadAhead(), []
    ahead.on_read(0, 4096)
    for offset in offsets:
        window = ahead.on_read(offset, 128 * KIB)
        if window is not None:
            wanted.append(window)
    assert ahead.size >= 8 * MIB
    assert all(a.end <= b.start for a, b in itertools.pairwise(wanted))


@settings(deadline=None, max_examples=amount(60, 12))
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=50, unique=True))
def test_scattered_reads_never_prefetch(places: list[int]) -> None:
    ahead = ReadAhead()
    scattered = [place * 4 * MIB for place in places]
    assert all(ahead.on_read(offset, 4096) is None for offset in scattered)
