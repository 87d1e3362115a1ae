"""Files get the kernel's time: what is stamped before and after by the kernel lies around."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cache.metadata import clock
from cache.metadata.clock import Moment


def test_a_time_that_has_passed_is_not_gone_back_behind() -> None:
    now = Moment(stamp=1000, precise=1004)
    assert now.after(900) == 1000
    assert now.after(1003) == 1003
    assert now.after(1004) == 1004


def test_a_time_in_the_future_gives_way() -> None:
    assert Moment(stamp=1000, precise=1004).after(1005) == 1000


def test_a_moment_is_no_earlier_than_what_the_kernel_has_stamped(tmp_path: Path) -> None:
    """Looking at a file and writing it in one tick has the kernel give it a precise time, where it
    can: others must not be older by that."""
    file = tmp_path / "f"
    file.touch()
    end, other = os.pipe()  # like a FUSE file, of a file system without precise times
    for _ in range(1000):
        file.stat()
        file.write_bytes(b"x")
        written = file.stat().st_mtime_ns
        made = clock.moment()
        os.utime(end)
        assert written <= made.stamp <= os.fstat(end).st_mtime_ns
        assert made.stamp <= made.precise <= time.time_ns()
    os.close(end)
    os.close(other)
