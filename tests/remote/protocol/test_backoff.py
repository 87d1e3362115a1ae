"""Waits grow, stop growing, spread out, and respect what the server asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.protocol.backoff import delay, window


def test_the_window_doubles_up_to_the_cap() -> None:
    assert [window(attempt) for attempt in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert window(10**9) == 60


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_anywhere_in_its_window(attempt: int, random: float) -> None:
    assert 0 <= delay(attempt, random) <= window(attempt)
    assert delay(attempt, 0.0) == 0
    assert delay(attempt, 0.5) == window(attempt) / 2


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True), st.floats(0, 3600))
def test_never_sooner_than_the_server_said(attempt: int, random: float, asked: float) -> None:
    assert asked <= delay(attempt, random, retry_after=asked) <= asked + window(attempt)


def test_nonsense_is_not_obeyed() -> None:
    assert delay(0, 0.0, retry_after=-5.0) == 0
    with pytest.raises(ValueError, match="counted from 0"):
        window(-1)


def test_base_and_cap_are_the_callers() -> None:
    assert delay(3, 0.5, base=1.0, cap=6.0) == 3.0
