"""No line of a log is long."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.protocol.log_lines import CUT, TRACEBACK_BYTES, VALUE_BYTES, bounded, without_its_middle


@given(st.text(max_size=3000), st.integers(8, 3000))
def test_what_is_too_long_keeps_its_ends(text: str, most: int) -> None:
    cut = without_its_middle(text, most)
    if len(text.encode("utf-8", "replace")) <= most:
        assert cut == text
    else:
        begin, _, end = cut.partition(CUT)
        assert text.startswith(begin)
        assert text.endswith(end)
        assert most - 8 <= len((begin + end).encode("utf-8", "replace")) <= most


@pytest.mark.parametrize(
    "value", [None, True, 10**18, 1.5, "x" * VALUE_BYTES, ["a", {"b": 1}], b"some"]
)
def test_what_is_short_stays_what_it_is(value: Any) -> None:
    assert bounded("what", value) is value


@pytest.mark.parametrize("value", ["ü" * 5000, ["x" * 100] * 5000, {"a": b"x" * 5000}])
def test_what_is_long_is_cut(value: Any) -> None:
    cut = bounded("what", value)
    assert cut.endswith(CUT)
    assert len(cut.encode()) <= VALUE_BYTES + len(CUT)


def test_of_a_traceback_the_end_is_kept() -> None:
    text = "Traceback\n" + "  a frame\n" * 10_000 + "ValueError: this"
    cut = bounded("exception", text)
    assert cut.startswith("Traceback")
    assert cut.endswith("ValueError: this")
    assert len(cut) <= TRACEBACK_BYTES + len(CUT)
