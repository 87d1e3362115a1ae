"""Steps that several workloads share, and the figures that they give.

Knows: files, clocks and the `Peer` interface. Must not know: which peer it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.data import MIB
from bench.peers.base import Peer
from bench.processes import BenchFailure
from bench.results import Measure
from bench.workloads.inputs import Inputs

BIG = "big.bin"
QUIET_BYTES = 16 * 1024
QUIET_INTERVALS = 60


def big(peer: Peer, inputs: Inputs) -> Path:
    """The large file, put there outside the clock if it is not there yet."""
    file = peer.mountpoint / BIG
    if not file.exists():
        copy(inputs.source(BIG), file)
        peer.flush()
    return file


def copy(source: Path, target: Path) -> None:
    buffer = memoryview(bytearray(MIB))
    with source.open("rb", buffering=0) as reads, target.open("wb", buffering=0) as writes:
        while got := reads.readinto(buffer):
            if writes.write(buffer[:got]) != got:
                raise BenchFailure(f"short write to {target.name}")


def read_all(file: Path) -> float:
    """Seconds that open, reading everything in 1 MiB pieces, and close take."""
    buffer = memoryview(bytearray(MIB))
    began = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    return time.perf_counter() - began


def touch(source: Path) -> None:
    """Have the page cache hold `source`, so that reading it costs every peer the same."""
    read_all(source)


def compare(source: Path, file: Path) -> None:
    with source.open("rb", buffering=0) as wanted, file.open("rb", buffering=0) as found:
        at = 0
        while piece := wanted.read(MIB):
            if found.read(len(piece)) != piece:
                raise BenchFailure(f"{file.name} reads back different in the MiB at {at}")
            at += len(piece)
        if found.read(1):
            raise BenchFailure(f"{file.name} is longer than what was written")


def rate(name: str, size: int, seconds: float) -> Measure:
    return Measure(name, size / seconds / 1e6, "MB/s", "more")


def processor(peer: Peer, before: float, of: str = "") -> Iterator[Measure]:
    if peer.wired:
        name = f"processor, mount and server{', ' + of if of else ''}"
        yield Measure(name, peer.cpu() - before, "s", "less")


def moved_when_quiet(peer: Peer) -> int:
    """Bytes moved, once the wire has been all but silent for half a second: what was fetched ahead
    and not used counts as well. A wire that never falls silent is read after half a minute."""
    before = peer.moved()
    for _ in range(QUIET_INTERVALS):
        time.sleep(0.5)
        now = peer.moved()
        if now - before < QUIET_BYTES:
            return now
        before = now
    return before


def each(name: str, count: int, work: Callable[[], object]) -> Measure:
    """Files a second, of `count`, that `work` gets through."""
    began = time.perf_counter()
    work()
    return Measure(name, count / (time.perf_counter() - began), "files/s", "more")
