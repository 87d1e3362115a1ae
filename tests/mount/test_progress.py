"""mount/progress.py: what a person sees while waiting."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mount.control.messages import Progress
from mount.progress import Pace, View, describe, human_seconds, seconds_left


def test_the_pace_is_that_of_the_last_seconds() -> None:
    pace = Pace()
    assert pace.feed(0, 0) is None
    assert pace.feed(1, 100) == 100
    for second in range(2, 40):
        steady = pace.feed(second, 100 + 10 * second)
    assert steady == pytest.approx(10)


def test_a_new_count_starts_a_new_pace() -> None:
    pace = Pace()
    pace.feed(0, 0)
    pace.feed(1, 1000)
    assert pace.feed(2, 5) is None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**12)), max_size=30))
@settings(deadline=None, max_examples=100)
def test_the_pace_is_never_negative(steps: list[tuple[float, int]]) -> None:
    pace, now = Pace(), 0.0
    for later, done in steps:
        now += later
        found = pace.feed(now, done)
        assert found is None or found >= 0


def test_one_line_says_it_all() -> None:
    progress = Progress(
        files_done=3, files_total=10, bytes_done=12_000_000, bytes_total=40_000_000, state="sending"
    )
    assert describe(progress, 2_800_000) == (
        "sending: 3/10 files, 12.0 MB of 40.0 MB, 2.8 MB/s, 10 s left"
    )
    assert seconds_left(progress, None) is None
    waiting = Progress(state="offline", reason="connection refused")
    assert describe(waiting, None) == "offline (connection refused): 0/0 files, 0 bytes of 0 bytes"


def test_times() -> None:
    assert [human_seconds(s) for s in (9, 180, 7800)] == ["9 s", "3 min", "2 h 10 min"]


def test_lines_when_it_is_no_terminal() -> None:
    now, stream = [0.0], io.StringIO()
    with View("flush", stream, clock=lambda: now[0]) as view:
        for second in range(5):
            now[0] = float(second)
            view(Progress(bytes_done=second, bytes_total=9, state="sending"))
        view(Progress(bytes_done=5, bytes_total=9, state="offline", reason="no route"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4  # at 0, 2 and 4 seconds, and at once when something changed
    assert lines[-1].startswith("flush: offline (no route)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with View("flush", stream) as view:
        view(Progress(files_done=1, files_total=2, bytes_done=50, bytes_total=100))
        view(Progress(files_done=2, files_total=2, bytes_done=100, bytes_total=100))
    assert "2/2 files" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()
