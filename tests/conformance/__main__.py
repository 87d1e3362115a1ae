"""`make conformance`: pjdfstest on a real mount by root, held against the list of known failures.

    python -m tests.conformance [--suite SOURCE] [--directory DIR] [--jobs N]

Exit 1 when a test fails that is not in `KNOWN`, and when one that is there passes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conformance import suite
from tests.conformance.tap import Counted, unexpected
from tests.system import harness

# FAMILY/FILE: the numbers of its tests that fail on Nearline. Why each does is in
# docs/semantics.md, "POSIX conformance".
KNOWN: dict[str, frozenset[int]] = {}
NEEDED = ("autoreconf", "automake", "gcc", "make", "openssl")


def main() -> int:
    asked = arguments()
    if os.geteuid() != 0:
        raise SystemExit("conformance: run it as root: the suite acts as several users")
    if missing := [tool for tool in NEEDED if shutil.which(tool) is None]:
        raise SystemExit(f"conformance: install {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="nearline-conformance-") as scratch:
        source = asked.suite
        if source is None:
            source = Path(scratch, "source")
            suite.fetch(source)
        built = Path(scratch, "built")
        suite.build(source, built)
        with place(asked.directory) as directory:
            results = dict(suite.run(built, directory, asked.jobs))
    return report(results, {} if asked.directory else KNOWN)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--suite", type=Path, help="source of pjdfstest; else it is fetched")
    parser.add_argument("--directory", type=Path, help="judge the file system there, not Nearline")
    parser.add_argument("--jobs", type=int, default=3, help="test files at a time")
    return parser.parse_args()


@contextlib.contextmanager
def place(given: Path | None) -> Iterator[Path]:
    """An empty directory for the suite: in `given`, or on a mount that is made for it."""
    if given is not None:
        with tempfile.TemporaryDirectory(prefix="conformance-", dir=given) as directory:
            Path(directory).chmod(0o755)  # other users must get through it
            yield Path(directory)
        return
    with harness.running() as site:
        device = site.device("a", "-o", "allow_other,default_permissions")
        device.mount()
        yield device.at


def report(results: dict[str, Counted], known: dict[str, frozenset[int]]) -> int:
    """Print the table and what failed; the exit code."""
    print(f"{'suite':<28}{'tests':>8}{'passed':>8}{'failed':>8}{'todo':>8}")
    families = itertools.groupby(results, key=lambda file: file.partition("/")[0])
    for family, files in families:
        print(row(f"pjdfstest {family}", [results[file] for file in files]))
    print(row("pjdfstest", list(results.values())))
    for file, said in results.items():
        for number, what in sorted(said.failed.items()):
            print(f"failed: {file} {number}: {what}")
    failed = {file: frozenset(said.failed) for file, said in results.items()}
    new, gone = unexpected(failed, known)
    for item in new:
        print(f"NOT KNOWN to fail: {item}")
    for item in gone:
        print(f"KNOWN to fail, and passed: {item}")
    return 1 if new or gone else 0


def row(title: str, counted: list[Counted]) -> str:
    tests = sum(item.planned for item in counted)
    passed = sum(item.passed for item in counted)
    todo = sum(len(item.todo) for item in counted)
    return f"{title:<28}{tests:>8,}{passed:>8,}{tests - passed:>8,}{todo:>8,}"


if __name__ == "__main__":
    sys.exit(main())
