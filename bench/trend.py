"""Tells from a series of figures if it grows. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line that fits best (least squares), in units of `values` per unit of
    `times`; 0 for fewer than two different times."""
    count = len(times)
    if count < 2:
        return 0.0
    middle, mean = sum(times) / count, sum(values) / count
    across = sum((at - middle) ** 2 for at in times)
    if not across:
        return 0.0
    return sum((at - middle) * (v - mean) for at, v in zip(times, values, strict=True)) / across


def late_slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the second half of the time: what fills at first and then stays does not count."""
    if not times:
        return 0.0
    half = (times[0] + times[-1]) / 2
    late = [(at, v) for at, v in zip(times, values, strict=True) if at >= half]
    return slope([at for at, _ in late], [v for _, v in late])
