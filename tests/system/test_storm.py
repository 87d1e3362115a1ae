"""Everything at once in the same directories, on two devices that hear of each other meanwhile.

    NEARLINE_STORM_PROCESSES=150 NEARLINE_STORM_OPERATIONS=50 .venv/bin/pytest ...

runs it for long: so many processes on each device.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.system import harness
from tests.system.conftest import Pair
from tests.system.harness import wait_until
from tests.system.killing import ROOT
from tests.system.storm import ALLOWED, DIRECTORIES

PROCESSES = int(os.environ.get("NEARLINE_STORM_PROCESSES", "12"))
THREADS = 5
OPERATIONS = int(os.environ.get("NEARLINE_STORM_OPERATIONS", "12"))
SEED = os.environ.get("NEARLINE_STORM_SEED", "1")
# Of a storm that stands still; whoever waits in the mounts is let go.
STILL_SECONDS = harness.TEST_SECONDS + PROCESSES * OPERATIONS / 10


@pytest.fixture(autouse=True)
def watchdog() -> object:
    """With time for so many operations."""
    timer = threading.Timer(
        STILL_SECONDS, lambda: [site.kill_daemons() for site in harness.RUNNING]
    )
    timer.start()
    yield timer
    timer.cancel()


def test_a_storm_ends_and_leaves_both_devices_with_the_same(pair: Pair) -> None:
    for name in DIRECTORIES:
        (pair.a.at / name).mkdir()
    pair.a.flush()
    for name in DIRECTORIES:
        pair.b.sees(name)
    storms = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.system.storm", device.at, f"{SEED}-{device.name}"]
            + [str(number) for number in (PROCESSES, THREADS, OPERATIONS)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for device in (pair.a, pair.b)
    ]
    said = "".join(storm.communicate()[0] for storm in storms)
    assert [line for line in said.splitlines() if line.startswith("unexpected")] == []
    counts = [word.split("=") for word in said.split()]
    done = sum(int(number) for name, number in counts if name in ALLOWED)
    assert done == 2 * PROCESSES * THREADS * OPERATIONS
    pair.flush()
    wait_until(lambda: tree(pair.a.at) == tree(pair.b.at), "both have the same")
    for device in (pair.a, pair.b):
        assert [line for line in device.log.splitlines() if '"level": "error"' in line] == []


def tree(at: Path) -> dict[str, object]:
    """Kind and content of everything that is there; another device may still be at work on it."""
    found: dict[str, object] = {}
    for directory, directories, files in os.walk(at):
        for name in directories + files:
            path = Path(directory, name)
            try:
                what: object = "directory"
                if path.is_symlink():
                    what = os.readlink(path)
                elif path.is_file():
                    what = path.read_bytes()
            except FileNotFoundError:
                what = None
            found[str(path.relative_to(at))] = what
    return found
