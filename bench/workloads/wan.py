"""Over a long line: what a person feels, in seconds and in round trips.

Knows: files, clocks, programs that people run (cp, find, git), what passed the line. Must not know:
which peer it is. Everything is prepared with the server nearby; cold is a new device each time.

*round trips* is the time in round trips of the line, *trips with requests* those in which the mount
sent something, at most: the rest is processor time and waiting.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench import machine
from bench.data import MIB, PAGE, content
from bench.link.proxy import Counts
from bench.peers.base import Peer
from bench.processes import BenchFailure
from bench.results import Measure, quantile
from bench.workloads.inputs import Inputs
from bench.workloads.large import timed_reads
from bench.workloads.steps import BIG, big, compare, copy, rate, touch

PROGRAM_SECONDS = 900.0
PER_DIRECTORY = 25  # of the small files
LEVELS = (4, 20)  # directories below the top, and below each of these; the rest is one level lower
GIT_COMMITS = 20
GIT_PER_DIRECTORY = 10
GIT_BYTES = 2000  # about a file of source
_GIT_ENV = {
    **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


class _Clock:
    """Measures time, and what passes the line of `peer`, from here on."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._before = self._counts()
        self.began = time.perf_counter()

    def measures(self, of: str) -> Iterator[Measure]:
        """Seconds, and what that was in round trips, of requests too where they can be counted."""
        seconds = time.perf_counter() - self.began
        passed = self._counts().since(self._before)
        yield Measure(of, seconds, "s", "less")
        trip = self._peer.shape.round_trip if self._peer.shape else 0.0
        if trip:
            yield Measure(f"{of}: round trips", seconds / trip, "", "less")
            yield Measure(f"{of}: trips with requests", passed.flights, "", "less")
        if passed.requests:
            yield Measure(f"{of}: requests", passed.requests, "", "less")
        if passed.connections:
            yield Measure(f"{of}: connections", passed.connections, "", "less")

    def moved(self, of: str, size: int) -> Measure:
        passed = self._counts().since(self._before)
        return Measure(f"{of}: bytes moved per byte", passed.both / size, "", "less")

    def _counts(self) -> Counts:
        return self._peer.traffic() or Counts()


# --- small files --------------------------------------------------------------------------------


def small(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """Small files: a tree copied in, until the server has it; then out again on a new device."""
    source = _tree(inputs, run)
    size = inputs.files * inputs.small
    top = peer.mountpoint / source.name
    peer.flush()
    machine.drop_caches()
    program("cat", *sorted(map(str, source.rglob("*.bin"))))  # have the page cache hold them
    clock = _Clock(peer)
    program("cp", "-r", str(source), str(top))
    yield Measure("copied in", time.perf_counter() - clock.began, "s", "less")
    peer.flush()
    yield from clock.measures("server has them")
    yield clock.moved("server has them", size)
    peer.cold()
    out = inputs.scratch / f"out-{peer.name}-{run}"
    clock = _Clock(peer)
    program("cp", "-r", str(top), str(out))
    yield from clock.measures("cold cp -r")
    yield clock.moved("cold cp -r", size)
    program("diff", "-r", str(source), str(out))
    shutil.rmtree(out)
    with peer.nearby():
        shutil.rmtree(top)
        peer.flush()


def _tree(inputs: Inputs, run: int) -> Path:
    """The small files, made when they are first asked for."""
    top = inputs.scratch / f"tree-{run}"
    if not top.exists():
        for number in range(inputs.files):
            file = top / f"{number // PER_DIRECTORY:03}" / f"{number:05}.bin"
            file.parent.mkdir(parents=True, exist_ok=True)
            rng = inputs.rng(f"tree-{run}-{number}")
            file.write_bytes(content(inputs.kind, rng, inputs.small))
    return top


# --- a large file -------------------------------------------------------------------------------


def large(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """A large file until the server has it; then read on a new device."""
    name = f"wan-{run}.bin"
    source, file = inputs.source(name), peer.mountpoint / name
    peer.flush()
    machine.drop_caches()
    touch(source)
    clock = _Clock(peer)
    copy(source, file)
    peer.flush()
    seconds = time.perf_counter() - clock.began
    yield rate("server has it", inputs.size, seconds)
    yield from _share(
        "server has it", inputs.size, seconds, peer.shape.up_rate if peer.shape else None
    )
    yield clock.moved("server has it", inputs.size)
    peer.cold()
    clock = _Clock(peer)
    buffer = memoryview(bytearray(MIB))
    with file.open("rb", buffering=0) as stream:
        got = stream.readinto(buffer)
        first = time.perf_counter() - clock.began
        while stream.readinto(buffer):
            pass
    seconds = time.perf_counter() - clock.began
    if not got:
        raise BenchFailure(f"{name} is empty on a new device")
    yield Measure("cold: first byte", first * 1000, "ms", "less")
    if peer.shape and peer.shape.round_trip:
        trips = first / peer.shape.round_trip
        yield Measure("cold: first byte: round trips", trips, "", "less")
    yield rate("cold", inputs.size, seconds)
    yield from _share("cold", inputs.size, seconds, peer.shape.down_rate if peer.shape else None)
    yield clock.moved("cold", inputs.size)
    with peer.nearby():
        compare(source, file)
        file.unlink()
        peer.flush()


def _share(of: str, size: int, seconds: float, rate: float | None) -> Iterator[Measure]:
    if rate:
        yield Measure(f"{of}: share of the link", 100 * size / seconds / rate, "%", "more")


def random_read(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """4 KiB at random places of a large file, one after the other, on a new device."""
    with peer.nearby():
        file = big(peer, inputs)
    rng = inputs.rng(f"wan-random-{run}")
    offsets = [rng.randrange(inputs.size // PAGE) * PAGE for _ in range(inputs.reads)]
    peer.cold()
    with file.open("rb", buffering=0) as stream:
        clock = _Clock(peer)
        took, pages = timed_reads(stream.fileno(), offsets)
    yield Measure("p50", quantile(took, 0.50) * 1000, "ms", "less")
    yield Measure("p95", quantile(took, 0.95) * 1000, "ms", "less")
    yield clock.moved("random", inputs.reads * PAGE)
    with inputs.source(BIG).open("rb", buffering=0) as source:
        if pages != [os.pread(source.fileno(), PAGE, at) for at in offsets]:
            raise BenchFailure("a random read returned wrong bytes")


# --- many directories ---------------------------------------------------------------------------


def find(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """`find` over directories in three levels, on a new device."""
    top = peer.mountpoint / "directories"
    names = directories(inputs.directories)
    with peer.nearby():
        if not top.exists():
            for name in ["", *names]:
                (top / name).mkdir()
            peer.flush()
        peer.cold()
    clock = _Clock(peer)
    found = program("find", str(top))
    yield from clock.measures("cold find")
    if len(found.splitlines()) != len(names) + 1:
        raise BenchFailure("find does not show the directories that were made")


def directories(count: int) -> list[str]:
    """Paths of `count` directories in three levels, each after the one that it is in."""
    first, second = LEVELS
    found: list[str] = []
    for one in range(first):
        found.append(f"{one}")
        found += [f"{one}/{two:02}" for two in range(second)]
    rest = max(0, count - len(found))
    leaves = [f"{n % first}/{n // first % second:02}/{n:05}" for n in range(rest)]
    return (found + leaves)[:count]


# --- git ----------------------------------------------------------------------------------------


def git(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """A bare repository is cloned out of the mount, and a working tree asked for its status, each
    on a new device."""
    bare, tree = _repository(inputs)
    with peer.nearby():
        for source in (bare, tree):
            if not (peer.mountpoint / source.name).exists():
                program("cp", "-r", str(source), str(peer.mountpoint))
        peer.flush()
        peer.cold()
    out = inputs.scratch / f"clone-{peer.name}-{run}"
    clock = _Clock(peer)
    _git("clone", "--quiet", "--no-local", str(peer.mountpoint / bare.name), str(out))
    yield from clock.measures("cold git clone")
    if _git("-C", str(out), "rev-parse", "HEAD") != _git("-C", str(bare), "rev-parse", "HEAD"):
        raise BenchFailure("the clone has another head")
    shutil.rmtree(out)
    with peer.nearby():
        peer.cold()
    clock = _Clock(peer)
    changed = _git("-C", str(peer.mountpoint / tree.name), "status", "--porcelain")
    yield from clock.measures("cold git status")
    if changed:
        raise BenchFailure(f"git status shows changes: {changed[:200]}")


def _repository(inputs: Inputs) -> tuple[Path, Path]:
    """A bare repository of some commits, and a working tree of it; the same every time."""
    bare, tree = inputs.scratch / "repository.git", inputs.scratch / "working-tree"
    if not bare.exists():
        _git("init", "--quiet", "--initial-branch=main", str(tree))
        for key, value in (("core.fileMode", "false"), ("gc.auto", "0")):
            _git("-C", str(tree), "config", key, value)
        for number in range(inputs.git_files):
            file = tree / f"{number // GIT_PER_DIRECTORY:03}" / f"{number:05}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(inputs.rng(f"git-{number}").randbytes(GIT_BYTES // 2).hex())
            if (number + 1) % max(1, inputs.git_files // GIT_COMMITS) == 0:
                _git("-C", str(tree), "add", "--all")
                _git("-C", str(tree), "commit", "--quiet", f"--message=to {number}")
        _git("-C", str(tree), "add", "--all")
        _git("-C", str(tree), "commit", "--quiet", "--allow-empty", "--message=all")
        _git("clone", "--quiet", "--bare", "--no-local", str(tree), str(bare))
    return bare, tree


def _git(*words: str) -> str:
    return program("git", "-c", "safe.directory=*", *words, env=_GIT_ENV)


def program(*command: str, env: dict[str, str] | None = None) -> str:
    """Runs `command` and returns its output. Raises `BenchFailure` when it fails."""
    done = subprocess.run(
        command, env=env, capture_output=True, timeout=PROGRAM_SECONDS, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-300:]
        raise BenchFailure(f"{' '.join(command[:3])}: exit {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")
