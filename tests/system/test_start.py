"""A start with a long journal: the mount is in use at once, and everything arrives afterwards.

`NEARLINE_START_OPERATIONS` makes the journal longer. What the time to start is, `bench` says.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import trio

from bench import backlog
from bench.data import PAGE
from tests.system.harness import Site

OPERATIONS = int(os.environ.get("NEARLINE_START_OPERATIONS", "2000"))
SENDING_SECONDS = 120.0 + OPERATIONS / 100
PLAN = backlog.Plan(OPERATIONS, PAGE, apart=100, extents=200)


def tree(top: Path) -> dict[str, int]:
    """Every path below, with the size of a file and -1 for everything else."""
    found = {}

    def fail(problem: OSError) -> NoReturn:
        raise problem

    for directory, directories, files in os.walk(top, onerror=fail):
        for name in (*directories, *files):
            path = Path(directory, name)
            is_file = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(top))] = path.stat().st_size if is_file else -1
        # Nothing is in these, and each would be asked for on the other device.
        directories[:] = [name for name in directories if not name.startswith("directory")]
    return found


def test_a_mount_with_a_long_journal_is_in_use_at_once_and_sends_it_later(site: Site) -> None:
    device = site.device("a")
    device.mount()
    device.umount()
    site.server.kill()
    assert trio.run(backlog.add, device.state, PLAN) == OPERATIONS

    device.mount()
    top = device.at / backlog.TOP
    directories = sorted(path for path in top.iterdir() if path.is_dir())
    assert (top / backlog.SCATTERED).read_bytes()[:PAGE] == bytes(PAGE)
    (top / "new").write_text("written at once")
    (directories[0] / "new").mkdir()
    directories[-1].rename(device.at / "moved")
    assert device.status()["journal"]["operations"] > OPERATIONS
    here = tree(device.at)
    assert len(here) == OPERATIONS + 2

    device.kill()  # all of it is there again, what was done just now included
    device.umount()
    device.mount()
    assert tree(device.at) == here

    site.server.start()
    device.comes_online()
    device.flush(SENDING_SECONDS)
    assert device.status()["journal"]["operations"] == 0
    assert device.status()["refused"] == []
    other = site.device("other")
    other.mount()
    assert tree(other.at) == here
    assert (other.at / backlog.TOP / "new").read_text() == "written at once"
