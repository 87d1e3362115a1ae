"""mount/cli/times.py and mount/cli/listing.py: durations, local times, aligned columns."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mount.cli.listing import aligned, printable
from mount.cli.times import duration, local, seconds_meant
from mount.failures import UsageFailure


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604800), ("90s", 90), ("1d 2h 30m", 95400), ("12h30m", 45000), (" 2 w ", 1209600)],
)
def test_durations(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 days", "-1d", "1.5h", "0s", "999999999w", "٣d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageFailure, match=";"):
        duration(text)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_time_is_local_and_read_back(berlin: None) -> None:
    assert local(1_795_359_845 * 10**9 + 999) == "2026-11-22 16:04:05"
    assert seconds_meant("2026-11-22 16:04:05") == [1_795_359_845]
    assert seconds_meant("2026-11-22T16:04:05") == [1_795_359_845]


def test_the_hour_that_comes_twice(berlin: None) -> None:
    """On 2026-10-25 at 3:00 the clock goes back to 2:00."""
    first, second = 1_792_888_200, 1_792_891_800
    assert local(first * 10**9) == local(second * 10**9) == "2026-10-25 02:30:00"
    assert seconds_meant("2026-10-25 02:30:00") == [first, second]


@pytest.mark.parametrize("text", ["1a2b3c4d", "2026-11-22", "yesterday", "2026-13-22 00:00:00"])
def test_what_is_no_time(text: str) -> None:
    assert seconds_meant(text) == []


def test_columns_are_under_each_other() -> None:
    lines = aligned(["A", "EMPTY", "B"], [["日本", "", "x"], ["abcde", "", "y"]])
    assert lines == ["A      B", "日本   x", "abcde  y"]


@given(st.text())
def test_nothing_shown_can_act_on_the_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
