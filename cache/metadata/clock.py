"""The time of a file that is changed now.

Regular files get most of their times from the kernel, which keeps them while its write-back cache
holds the bytes; all other times of this file system are made here. Both must come from one clock:
programs compare them (`make`, `find -newer`), and the time of one file must not go back because two
took turns to set it. `time.time_ns()` is ahead of the kernel's clock for files, which moves in
ticks; and CLOCK_REALTIME_COARSE, which has the same ticks, is behind it on Linux 6.13 and later:
there a precise time that any file of the machine was given is the least that all get from then on.
No clock that can be read has that. A pipe has: it is given the time by the kernel as a file of ours
is, for two system calls.

Knows: which clock that is. Must not know: what is stamped.

Concurrency: any thread. Who sees the pipe stamped by another sees a time that is no earlier.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

# linux/time.h; the time module does not have it.
CLOCK_REALTIME_COARSE = 5


class Moment(NamedTuple):
    """When a change is made: `stamp` by the clock of files, `precise` by the clock of the machine,
    which is ahead of it."""

    stamp: int
    precise: int

    def after(self, last_ns: int) -> int:
        """The time to set where `last_ns` was. It does not go back behind one that has passed,
        which can be later than the stamp: the server's, or one that a program set. One that is in
        the future gives way, as on every file system: the clock was set back, or another one is
        wrong, and a change must still show."""
        return last_ns if self.stamp < last_ns <= self.precise else self.stamp


def moment() -> Moment:
    stamp = _stamp()
    return Moment(stamp, time.time_ns())


def _stamp_of_pipe(end: int) -> Callable[[], int]:
    def stamp() -> int:
        os.utime(end)
        return os.fstat(end).st_mtime_ns

    return stamp


def _coarse() -> int:
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def _clock_of_files() -> Callable[[], int]:
    """A clock that stamps as the kernel does, or comes nearest to it."""
    if sys.platform != "linux":
        return time.time_ns
    end, unused = os.pipe()
    os.close(unused)
    stamp = _stamp_of_pipe(end)
    try:
        if _coarse() <= stamp() <= time.time_ns():
            return stamp
    except OSError:  # a sandbox in which pipes have no times
        pass
    os.close(end)
    return _coarse


_stamp = _clock_of_files()
