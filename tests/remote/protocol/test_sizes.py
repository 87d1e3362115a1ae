"""remote/protocol/sizes.py: both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.protocol.sizes import MIN_RATE, parse_rate, parse_size, rate_text, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("20GiB", 20 << 30),
        ("20G", 20 << 30),
        ("20GB", 20 * 10**9),
        ("1.5 MiB", 3 << 19),
        ("500m", 500 << 20),
        ("7B", 7),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5", "GiB", "20 gigs", "1e9", "0.0001"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_sizes_for_people() -> None:
    sizes = [0, 1, 999, 1000, 1500, 99_949, 99_960, 999_499, 999_500, 5 * 10**9, 1 << 62]
    told = "0 bytes, 1 byte, 999 bytes, 1.0 kB, 1.5 kB, 99.9 kB, 100 kB, 999 kB, 1.0 MB, 5.0 GB"
    assert ", ".join(size_text(size) for size in sizes) == f"{told}, 4.6 EB"


@given(st.integers(1000, 10**17))
def test_what_is_shown_can_be_said(size: int) -> None:
    """To the three digits that are shown, halved at the last."""
    assert abs(parse_size(size_text(size)) - size) <= size * 0.051


def test_rates() -> None:
    assert parse_rate("2M") == 2 << 20
    assert parse_rate("8K") == MIN_RATE
    assert parse_rate(" Off ") is None
    assert (rate_text(2_000_000), rate_text(None)) == ("2.0 MB/s", "off")


@pytest.mark.parametrize("text", ["", "0", "fast", "2Mbit", "1K", "8191"])
def test_what_is_no_limit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"limit.*off"):
        parse_rate(text)
