"""`python -m bench`: every workload on every peer, taking turns, then one table.

Knows: the order of things. Must not know: how a peer works, what a workload does. The workloads
beside the server come first, then those over a line, for which every peer starts anew. Within one
the peers take turns, and each run begins with another one, so that a machine that gets slower or
busier is unfair to nobody. Exit code 1 when a peer failed in a workload; being slow never fails.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import httpx
import msgspec

from bench import machine, table
from bench.link.schedule import Shape, symmetric
from bench.peers import DEFAULT, KINDS, complaint, installing, programs
from bench.peers.base import Peer
from bench.processes import BenchFailure
from bench.results import Failed, Given, OverALine, Report, Sample
from bench.workloads import BESIDE, OVER_A_LINE, WORKLOADS
from bench.workloads.inputs import Inputs
from mount.failures import Failure
from remote.protocol.sizes import parse_size

# What a peer that fails can raise: I/O through its mount, its commands, its control connection.
PEER_ERRORS = (BenchFailure, Failure, OSError, subprocess.TimeoutExpired, httpx.HTTPError)


def main() -> int:
    """Run, print, clean up; the exit code."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, _terminated)
    if arguments.install:
        installing.install(programs(arguments.peers))
    if said := complaint(arguments.peers):
        _say(said)
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="nearline-bench-", dir=arguments.scratch))
    try:
        report = _measure(arguments, scratch)
    finally:
        _remove(scratch)
    print(table.render(report))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return 1 if report.failed else 0


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _remove(scratch: Path) -> None:
    """Delete `scratch`, unless a mount that would not go is still in it."""
    mounts = Path("/proc/self/mounts").read_text()
    if str(scratch) in mounts:
        _say(f"something is still mounted in {scratch}; it stays")
        return
    shutil.rmtree(scratch)


def _measure(arguments: argparse.Namespace, scratch: Path) -> Report:
    load = machine.load_average()
    found = _Found()
    beside = [name for name in arguments.workloads if name in BESIDE]
    over = [name for name in arguments.workloads if name in OVER_A_LINE]
    near = _inputs(arguments, scratch / "beside")
    if beside:
        _group(found, beside, arguments.peers, near, None, arguments.runs)
    far, shape = _far(arguments, near, scratch / "over-a-line"), _shape(arguments)
    if over:
        wired = [name for name in arguments.peers if KINDS[name].wired]
        _group(found, over, wired, far, shape, arguments.runs)
    samples = _by_peer(found.samples, arguments.peers)
    described = machine.describe(scratch, found.versions, load, found.isolated)
    given = _given(near, arguments.runs, _line(far, shape) if over else None)
    return Report(described, given, samples, found.failed, found.late)


class _Found:
    """The figures that were measured so far."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.failed: list[Failed] = []
        self.versions: dict[str, str] = {}
        self.late: dict[str, float] = {}
        self.isolated = True


def _group(
    found: _Found,
    names: Sequence[str],
    peers: Sequence[str],
    inputs: Inputs,
    shape: Shape | None,
    runs: int,
) -> None:
    """Start `peers`, run the workloads `names` on them, end them. One that does not start fails in
    the first workload, and the others go on without it."""
    inputs.scratch.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        started = []
        for name in peers:
            try:
                started.append(_started(name, inputs.scratch.parent, shape, stack))
            except PEER_ERRORS as error:
                _say(f"{name} did not start: {error}")
                found.failed.append(Failed(names[0], name, 0, f"did not start: {error}"))
        found.versions |= {peer.name: peer.version for peer in started if peer.version}
        found.isolated &= all(peer.isolated for peer in started)
        _run(started, inputs, names, runs, found)
        for peer in started:
            if (passed := peer.traffic()) is not None:
                found.late[peer.name] = passed.late
    shutil.rmtree(inputs.scratch)


def _started(name: str, scratch: Path, shape: Shape | None, stack: contextlib.ExitStack) -> Peer:
    _say(f"{name}: start" + ("" if shape is None else " behind a line"))
    peer = KINDS[name](scratch / name, shape)
    stack.callback(_stopped, peer)
    peer.start()
    return peer


def _stopped(peer: Peer) -> None:
    """End `peer`; one that ends badly does not take the others' figures with it."""
    try:
        peer.stop()
    except PEER_ERRORS as error:
        _say(f"{peer.name}: did not end well: {error}")


def _inputs(arguments: argparse.Namespace, base: Path) -> Inputs:
    return Inputs(
        scratch=base / "sources",
        kind=arguments.data,
        seed=arguments.seed,
        size=arguments.size,
        reads=arguments.reads,
        files=arguments.files,
        small=arguments.small,
        operations=arguments.operations,
        spool=arguments.spool,
        directories=arguments.wan_directories,
        git_files=arguments.wan_git_files,
        rest=arguments.rest,
    )


def _far(arguments: argparse.Namespace, near: Inputs, base: Path) -> Inputs:
    return replace(
        near,
        scratch=base / "sources",
        size=arguments.wan_size,
        reads=arguments.wan_reads,
        files=arguments.wan_files,
    )


def _shape(arguments: argparse.Namespace) -> Shape:
    return symmetric(arguments.delay / 1000, arguments.rate * 1e6 / 8 if arguments.rate else None)


def _line(inputs: Inputs, shape: Shape) -> OverALine:
    return OverALine(
        shape=shape,
        size=inputs.size,
        reads=inputs.reads,
        files=inputs.files,
        directories=inputs.directories,
        git_files=inputs.git_files,
    )


def _given(inputs: Inputs, runs: int, line: OverALine | None) -> Given:
    return Given(
        data={"random": "pseudo-random", "half": "half-compressible"}[inputs.kind],
        seed=inputs.seed,
        size=inputs.size,
        reads=inputs.reads,
        files=inputs.files,
        small=inputs.small,
        operations=inputs.operations,
        spool=inputs.spool,
        runs=runs,
        line=line,
    )


def _run(
    peers: Sequence[Peer], inputs: Inputs, names: Sequence[str], runs: int, found: _Found
) -> None:
    for name in names:
        for run in range(runs):
            out = {f.peer for f in found.failed if f.workload == name}
            for i in range(len(peers)):
                peer = peers[(i + run) % len(peers)]
                if peer.name not in out:
                    _one(name, peer, inputs, run, found)
            for source in inputs.scratch.glob(f"*-{run}.bin"):
                source.unlink()


def _by_peer(samples: Iterable[Sample], order: Sequence[str]) -> list[Sample]:
    """For the columns' order; within a peer it stays."""
    return sorted(samples, key=lambda sample: order.index(sample.peer))


def _one(name: str, peer: Peer, inputs: Inputs, run: int, found: _Found) -> None:
    """One run of one workload on one peer. What was measured before a failure stays."""
    _say(f"{name}, run {run + 1}: {peer.name}")
    try:
        for measure in WORKLOADS[name](peer, inputs, run):
            found.samples.append(Sample(name, peer.name, run, measure))
            _say(f"    {measure.name}: {table.number(measure.value)} {measure.unit}")
    except PEER_ERRORS as error:
        _say(f"    failed: {error}")
        found.failed.append(Failed(name, peer.name, run, str(error)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


QUICK = {
    "size": 32 << 20, "reads": 64, "files": 200, "runs": 1, "rest": 5.0,
    "wan_size": 32 << 20, "wan_reads": 16, "wan_files": 50, "wan_directories": 120,
    "wan_git_files": 40,
    "workloads": ["write", "read", "random", "small", "edit", *OVER_A_LINE],
    "peers": ["nearline", "rclone"],
}  # fmt: skip
"""What `--quick` puts in the place of the defaults: two minutes, and the ratios that matter."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small inputs, once: two minutes")
    parser.add_argument("--size", type=parse_size, default=parse_size("1GiB"), help="large file")
    parser.add_argument("--runs", type=int, default=3, help="of every workload")
    parser.add_argument("--reads", type=int, default=256, help="at random")
    parser.add_argument("--files", type=int, default=2000, help="small ones")
    parser.add_argument("--small", type=parse_size, default=4096, help="size of a small file")
    parser.add_argument("--operations", type=int, default=100_000, help="in a journal at start")
    parser.add_argument("--spool", type=parse_size, default=parse_size("50GB"), help="with them")
    parser.add_argument("--rest", type=float, default=15.0, help="seconds before memory at rest")
    parser.add_argument("--data", choices=("random", "half"), default="random")
    parser.add_argument("--seed", default="nearline")
    line = parser.add_argument_group("over a line (wan-...)")
    line.add_argument("--delay", type=float, default=40.0, help="a round trip, milliseconds")
    line.add_argument("--rate", type=float, default=1000.0, help="Mbit/s each way; 0: no limit")
    line.add_argument("--wan-size", type=parse_size, default=parse_size("300MiB"))
    line.add_argument("--wan-reads", type=int, default=64)
    line.add_argument("--wan-files", type=int, default=500)
    line.add_argument("--wan-directories", type=int, default=2000)
    line.add_argument("--wan-git-files", type=int, default=500)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--peers", nargs="+", choices=KINDS, default=list(DEFAULT))
    parser.add_argument("--install", action="store_true", help="what peers need and is missing")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="on the disk to use")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
