"""`python -m bench`: every workload on every peer, taking turns, then one table.

Knows: the order of things. Must not know: how a peer works, what a workload does. Within a workload
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
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import httpx
import msgspec

from bench import machine, table
from bench.peers import KINDS, Peer
from bench.processes import BenchFailure
from bench.results import Failed, Given, Report, Sample
from bench.workloads import WORKLOADS, Inputs
from mount.failures import Failure
from remote.protocol.sizes import parse_size

# What a peer that fails can raise: I/O through its mount, its commands, its control connection.
PEER_ERRORS = (BenchFailure, Failure, OSError, subprocess.TimeoutExpired, httpx.HTTPError)


def main() -> int:
    """Run, print, clean up; the exit code."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, _terminated)
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
    with contextlib.ExitStack() as stack:
        peers = [_started(name, scratch, stack) for name in arguments.peers]
        inputs = _inputs(arguments, scratch)
        versions = {peer.name: peer.version for peer in peers if peer.version}
        samples, failed = _run(peers, inputs, arguments.workloads, arguments.runs)
        isolated = all(peer.isolated for peer in peers)
        described = machine.describe(scratch, versions, load, isolated)
    return Report(described, _given(inputs, arguments.runs), samples, failed)


def _started(name: str, scratch: Path, stack: contextlib.ExitStack) -> Peer:
    _say(f"{name}: start")
    peer = KINDS[name](scratch / name)
    stack.callback(_stopped, peer)
    peer.start()
    return peer


def _stopped(peer: Peer) -> None:
    """End `peer`; one that ends badly does not take the others' figures with it."""
    try:
        peer.stop()
    except PEER_ERRORS as error:
        _say(f"{peer.name}: did not end well: {error}")


def _inputs(arguments: argparse.Namespace, scratch: Path) -> Inputs:
    sources = scratch / "sources"
    sources.mkdir()
    return Inputs(
        scratch=sources,
        kind=arguments.data,
        seed=arguments.seed,
        size=arguments.size,
        reads=arguments.reads,
        files=arguments.files,
        small=arguments.small,
        operations=arguments.operations,
        spool=arguments.spool,
    )


def _given(inputs: Inputs, runs: int) -> Given:
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
    )


def _run(
    peers: Sequence[Peer], inputs: Inputs, names: Sequence[str], runs: int
) -> tuple[list[Sample], list[Failed]]:
    samples: list[Sample] = []
    failed: list[Failed] = []
    for name in names:
        for run in range(runs):
            out = {f.peer for f in failed if f.workload == name}
            for i in range(len(peers)):
                peer = peers[(i + run) % len(peers)]
                if peer.name not in out:
                    _one(name, peer, inputs, run, samples, failed)
            (inputs.scratch / f"{name}-{run}.bin").unlink(missing_ok=True)
    order = [peer.name for peer in peers]
    samples.sort(key=lambda sample: order.index(sample.peer))  # stable: for the columns' order
    return samples, failed


def _one(
    name: str, peer: Peer, inputs: Inputs, run: int, samples: list[Sample], failed: list[Failed]
) -> None:
    """One run of one workload on one peer. What was measured before a failure stays."""
    _say(f"{name}, run {run + 1}: {peer.name}")
    try:
        for measure in WORKLOADS[name](peer, inputs, run):
            samples.append(Sample(name, peer.name, run, measure))
            _say(f"    {measure.name}: {table.number(measure.value)} {measure.unit}")
    except PEER_ERRORS as error:
        _say(f"    failed: {error}")
        failed.append(Failed(name, peer.name, run, str(error)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=parse_size, default=parse_size("1GiB"), help="large file")
    parser.add_argument("--runs", type=int, default=3, help="of every workload")
    parser.add_argument("--reads", type=int, default=256, help="at random")
    parser.add_argument("--files", type=int, default=2000, help="small ones")
    parser.add_argument("--small", type=parse_size, default=4096, help="size of a small file")
    parser.add_argument("--operations", type=int, default=100_000, help="in a journal at start")
    parser.add_argument("--spool", type=parse_size, default=parse_size("50GB"), help="with them")
    parser.add_argument("--data", choices=("random", "half"), default="random")
    parser.add_argument("--seed", default="nearline")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--peers", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="on the disk to use")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
