"""pjdfstest: where it comes from, how it is built, and how its files are run in a directory.

Knows: the suite's layout and its configuration file. Must not know: what is mounted there.

The suite leaves out 29 tests (the ctime of what was renamed) on every file system that it does not
know by name. We ask for them too: the built copy is told that it is on ext4. Nothing else in it
depends on the name on Linux.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conformance.tap import Counted, count

ORIGIN = "https://github.com/pjd/pjdfstest.git"
COMMIT = "85a8aea9e685999ef0540392fd80535f873d7ff7"
FILE_SECONDS = 600.0


def fetch(to: Path) -> None:
    """The pinned commit of the suite from where it is published, into the new directory `to`."""
    subprocess.run(["git", "init", "--quiet", to], check=True)
    subprocess.run(["git", "fetch", "--quiet", "--depth=1", ORIGIN, COMMIT], cwd=to, check=True)
    subprocess.run(["git", "checkout", "--quiet", "FETCH_HEAD"], cwd=to, check=True)


def build(source: Path, to: Path) -> None:
    """A built copy of the suite in the new directory `to`; `source` is left as it is."""
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(".git"))
    for step in (["autoreconf", "-ifs"], ["./configure", "--quiet"], ["make", "-s", "pjdfstest"]):
        done = subprocess.run(step, cwd=to, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(step)}: {done.stdout}{done.stderr}")
    with (to / "tests/conf").open("a") as conf:
        conf.write("\nfs=EXT4\n")


def run(built: Path, directory: Path, jobs: int) -> Iterator[tuple[str, Counted]]:
    """(FAMILY/FILE, what it said) of every test file, run with `directory` as the current one."""
    files = sorted((built / "tests").glob("*/*.t"))
    with ThreadPoolExecutor(jobs) as pool:
        for file, said in zip(
            files, pool.map(lambda one: _say(one, directory), files), strict=True
        ):
            yield f"{file.parent.name}/{file.stem}", said


def _say(file: Path, directory: Path) -> Counted:
    try:
        done = subprocess.run(
            ["sh", file],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=FILE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Counted(1, {1: f"took over {FILE_SECONDS:g} s"}, frozenset())
    return count(done.stdout)
