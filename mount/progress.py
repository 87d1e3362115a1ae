"""Showing how far a flush is: files, bytes, rate and time left.

Knows: how to estimate and how to draw, on a terminal (rich) or as plain lines. Must not know: where
progress comes from. `Pace` and `describe` are pure: the time is an argument.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from msgspec.structs import replace

from mount.control.messages import Progress
from remote.protocol.sizes import size_text

if TYPE_CHECKING:
    import rich.progress

WINDOW_SECONDS = 10.0
PLAIN_INTERVAL_SECONDS = 2.0


class Pace:
    """Bytes per second over the last `WINDOW_SECONDS`."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def feed(self, now: float, bytes_done: int) -> float | None:
        """Take in that `bytes_done` bytes are done at `now`; the pace, or None when unknown."""
        if self._samples and bytes_done < self._samples[-1][1]:
            self._samples.clear()  # a new count began
        self._samples.append((now, bytes_done))
        while len(self._samples) > 2 and self._samples[0][0] < now - WINDOW_SECONDS:
            self._samples.popleft()
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else None


def seconds_left(progress: Progress, pace: float | None) -> float | None:
    """The time that the rest takes at `pace` bytes per second; None when that cannot be said."""
    rest = progress.bytes_total - progress.bytes_done
    return rest / pace if pace and rest > 0 else None


def describe(progress: Progress, pace: float | None) -> str:
    """One line: `uploading: 3/10 files, 12.0 MB of 40.0 MB, 3.2 MB/s, 9 s left`."""
    parts = [
        f"{progress.files_done}/{progress.files_total} files",
        f"{size_text(progress.bytes_done)} of {size_text(progress.bytes_total)}",
    ]
    if pace:
        parts.append(f"{size_text(pace)}/s")
    left = seconds_left(progress, pace)
    if left is not None:
        parts.append(f"{human_seconds(left)} left")
    reason = f" ({progress.reason})" if progress.reason else ""
    return f"{progress.state}{reason}: {', '.join(parts)}"


def finished(progress: Progress) -> Progress:
    """`progress` with everything done."""
    return replace(
        progress,
        files_done=progress.files_total,
        bytes_done=progress.bytes_total,
        state="done",
        reason=None,
    )


def human_seconds(seconds: float) -> str:
    """`9 s`, `3 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class View:
    """A context in which calling it with a `Progress` shows it on `stream` (standard error).

    On a terminal one bar that is redrawn; elsewhere a line when something other than the numbers
    changes, and otherwise at most every `PLAIN_INTERVAL_SECONDS`."""

    def __init__(
        self,
        title: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._clock = title, clock
        self._stream = sys.stderr if stream is None else stream
        self._pace = Pace()
        self._bars: rich.progress.Progress | None = None
        self._bar: rich.progress.TaskID | None = None
        self._last: Progress | None = None
        self._shown: tuple[float, str, str | None] | None = None

    def __enter__(self) -> View:
        return self

    def __call__(self, progress: Progress) -> None:
        now, self._last = self._clock(), progress
        pace = self._pace.feed(now, progress.bytes_done)
        if self._stream.isatty():
            self._draw(progress, describe(progress, pace))
        else:
            self._print(now, progress, describe(progress, pace))

    def _print(self, now: float, progress: Progress, line: str) -> None:
        kind, last = (progress.state, progress.reason), self._shown
        if last and last[1:] == kind and now < last[0] + PLAIN_INTERVAL_SECONDS:
            return
        self._shown = (now, *kind)
        print(f"{self._title}: {line}", file=self._stream, flush=True)

    def _draw(self, progress: Progress, line: str) -> None:
        if self._bars is None:
            self._bars = _bars(self._stream)
            self._bar = self._bars.add_task(self._title, line="")
            self._bars.start()
        assert self._bar is not None
        # A bar needs something to be part of; entries without bytes count as one byte each.
        total = progress.bytes_total + progress.files_total
        done = progress.bytes_done + progress.files_done
        self._bars.update(self._bar, total=total or None, completed=done, line=line)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is None or self._bar is None:
            return
        if error is None and self._last is not None:
            self._draw(finished(self._last), describe(finished(self._last), None))
        self._bars.stop()


def _bars(stream: TextIO) -> rich.progress.Progress:
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[line]}"),
    )
    console = rich.console.Console(file=stream)
    return rich.progress.Progress(*columns, console=console, refresh_per_second=8)
