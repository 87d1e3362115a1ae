"""Growth is told from filling up and staying."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.trend import late_slope, slope


@given(
    st.lists(st.integers(0, 10_000), min_size=2, max_size=50, unique=True),
    st.integers(-100, 100),
    st.integers(-1000, 1000),
)
def test_a_line_has_its_slope(times: list[int], rate: int, start: int) -> None:
    at = [float(item) for item in sorted(times)]
    assert slope(at, [start + rate * item for item in at]) == pytest.approx(rate, abs=1e-6)


def test_what_fills_at_first_and_then_stays_does_not_grow() -> None:
    times = [float(item) for item in range(100)]
    assert late_slope(times, [min(item, 40.0) for item in times]) == 0
    assert late_slope(times, times) == pytest.approx(1)


def test_too_few_figures_have_no_slope() -> None:
    assert (
        slope([], []) == late_slope([], []) == slope([1.0], [5.0]) == slope([1.0, 1.0], [1, 2]) == 0
    )
