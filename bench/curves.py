"""`python -m bench.curves`: what things cost as they grow: entries, size, latency, readers.

Points as JSON, plots by `bench.plots`. Knows: the `Peer` interface, clocks. Must not know: which
peer it is. Within a curve the peers take turns at every point.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

from bench import machine
from bench.data import MIB, content, write_source
from bench.link.schedule import Shape, symmetric
from bench.peers import KINDS, complaint
from bench.peers.base import Peer, Served
from bench.processes import BenchFailure
from bench.results import Curve, Curves, Point
from bench.workloads.inputs import rng_of
from bench.workloads.steps import copy, read_all
from bench.workloads.wan import directories, program

WAN_RATE = 125e6
LATENCY_FILES, LATENCY_DIRECTORIES = 40, 60
READER_BYTES = 4 * MIB


@dataclass(frozen=True)
class Work:
    """One curve: `xs` and, with `--full`, `more`; `measure` yields name, value and unit at x."""

    title: str
    unit: str
    xs: tuple[float, ...]
    more: tuple[float, ...]
    measure: Callable[[Peer, Path, float], Iterator[tuple[str, float, str]]]
    shape: Shape | None = None


def entries(peer: Peer, scratch: Path, x: float) -> Iterator[tuple[str, float, str]]:
    """A directory of x empty files is listed with their attributes: on a new device, and again."""
    here = peer.mountpoint / f"entries-{x:g}"
    here.mkdir()
    for number in range(int(x)):
        (here / f"{number:06}").touch()
    peer.cold()
    for when in ("new device", "again"):
        cpu, began = peer.cpu(), time.perf_counter()
        found = len([entry.stat() for entry in os.scandir(here)])
        seconds = time.perf_counter() - began
        if found != x:
            raise BenchFailure(f"{found} of {x:g} entries are listed")
        yield f"listed, {when}", seconds, "s"
        if peer.wired:
            yield f"processor, {when}", peer.cpu() - cpu, "s"


def sizes(peer: Peer, scratch: Path, x: float) -> Iterator[tuple[str, float, str]]:
    """A file of x MiB until the server has it; read on a new device."""
    size = int(x * MIB)
    source, file = scratch / f"size-{x:g}", peer.mountpoint / f"size-{x:g}"
    if not source.exists():
        write_source(source, "random", f"curves/{x:g}", size)
    read_all(source)
    cpu, began = peer.cpu(), time.perf_counter()
    copy(source, file)
    peer.flush()
    yield "until the server has it", size / 1e6 / (time.perf_counter() - began), "MB/s"
    if peer.wired:
        yield "processor, up", (peer.cpu() - cpu) / size * 2**30, "s a GiB"
    peer.cold()
    cpu = peer.cpu()
    yield "cold read", size / 1e6 / read_all(file), "MB/s"
    if peer.wired:
        yield "processor, down", (peer.cpu() - cpu) / size * 2**30, "s a GiB"
    file.unlink()
    peer.flush()


def latency(peer: Peer, scratch: Path, x: float) -> Iterator[tuple[str, float, str]]:
    """Small files and directories over a line of x ms."""
    assert isinstance(peer, Served)
    assert peer.line is not None
    line = peer.line
    source = scratch / "files"
    if not source.exists():
        source.mkdir()
        for number in range(LATENCY_FILES):
            data = content("random", rng_of("curves", f"{number}"), 4096)
            (source / f"{number:03}").write_bytes(data)
    tree, files = peer.mountpoint / "tree", peer.mountpoint / f"files-{x:g}"
    with peer.nearby():
        if not tree.exists():
            for name in ["", *directories(LATENCY_DIRECTORIES)]:
                (tree / name).mkdir()
            peer.flush()
    line.reshape(symmetric(x / 1000, WAN_RATE))
    # New bytes for each point: what the server has already would not be sent again.
    for number, file in enumerate(sorted(source.iterdir())):
        file.write_bytes(content("random", rng_of("curves", f"{x:g}/{peer.name}/{number}"), 4096))
    began = time.perf_counter()
    program("cp", "-r", str(source), str(files))
    peer.flush()
    yield f"{LATENCY_FILES} files: server has them", time.perf_counter() - began, "s"
    peer.cold()
    out = scratch / "out"
    began = time.perf_counter()
    program("cp", "-r", str(files), str(out))
    yield f"{LATENCY_FILES} files: cold cp -r", time.perf_counter() - began, "s"
    program("diff", "-r", str(source), str(out))
    shutil.rmtree(out)
    began = time.perf_counter()
    program("find", str(tree))
    yield f"{LATENCY_DIRECTORIES} directories: cold find", time.perf_counter() - began, "s"


def readers(peer: Peer, scratch: Path, x: float) -> Iterator[tuple[str, float, str]]:
    """x files of 4 MiB are read side by side on a new device."""
    count = int(x)
    files = [peer.mountpoint / f"reader-{x:g}-{number}" for number in range(count)]
    for file in files:
        write_source(file, "random", f"curves/{file.name}", READER_BYTES)
    peer.cold()
    cpu, began = peer.cpu(), time.perf_counter()
    threads = [threading.Thread(target=read_all, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    size = count * READER_BYTES
    yield "cold", size / 1e6 / seconds, "MB/s"
    if peer.wired:
        yield "processor", (peer.cpu() - cpu) / size * 2**30, "s a GiB"


CURVES = {
    "entries": Work("Entries of a directory", "entries", (10, 100, 1000, 10_000), (1e5,), entries),
    "size": Work("Size of a file", "MiB", (1, 4, 16, 64, 256), (1024, 10_240), sizes),
    "latency": Work("Latency", "ms a round trip", (0, 10, 20, 40, 100, 200), (), latency, Shape()),
    "readers": Work("Readers side by side", "readers", (1, 2, 4, 8, 16, 32), (), readers),
}  # fmt: skip


def draw(name: str, peers: Sequence[str], base: Path, *, full: bool, most: float | None) -> Curve:
    """All points of a curve, on mounts of its own."""
    work, points = CURVES[name], []
    scratch = base / name / "sources"
    scratch.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        started = []
        for each in peers:
            peer = KINDS[each](base / name / each, work.shape)
            stack.callback(peer.stop)
            peer.start()
            started.append(peer)
        for x in (*work.xs, *(work.more if full else ())):
            if most is not None and x > most:
                break
            for peer in started:
                for measure, value, unit in work.measure(peer, scratch, x):
                    points.append(Point(peer.name, x, measure, value, unit))
                    _say(f"{name} {x:g} {work.unit}: {peer.name}: {measure}: {value:.4g} {unit}")
    shutil.rmtree(scratch)
    return Curve(name, work.title, work.unit, points)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.curves", description=__doc__)
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--peers", nargs="+", choices=KINDS, default=["nearline", "rclone"])
    parser.add_argument("--full", action="store_true", help="the largest too: long, and much disk")
    parser.add_argument("--most", type=float, help="no points above this one: a first look")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="on the disk to use")
    parser.add_argument("--json", type=Path, required=True, help="write every point to this file")
    parser.add_argument("--plots", type=Path, help="and a PNG a curve into this directory")
    arguments = parser.parse_args()
    if said := complaint(arguments.peers):
        parser.error(said)
    signal.signal(signal.SIGTERM, _terminated)
    base = Path(tempfile.mkdtemp(prefix="nearline-curves-", dir=arguments.scratch))
    load = machine.load_average()
    try:
        curves: list[Curve] = []
        versions = {"nearline": machine.nearline_version()}
        for name in arguments.curves:
            points = draw(name, arguments.peers, base, full=arguments.full, most=arguments.most)
            curves.append(points)
            found = Curves(machine.describe(base, versions, load, isolated=True), curves)
            arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    finally:
        if str(base) not in Path("/proc/self/mounts").read_text():
            shutil.rmtree(base)
    if arguments.plots:
        plot = [sys.executable, "-m", "bench.plots", "curves", arguments.json, arguments.plots]
        subprocess.run(plot, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
