"""Large files: written, read, read at random, and changed in the middle."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from bench import machine
from bench.data import PAGE
from bench.peers.base import Peer
from bench.processes import BenchFailure
from bench.results import Measure, quantile
from bench.workloads.inputs import Inputs
from bench.workloads.steps import (
    BIG,
    big,
    compare,
    copy,
    moved_when_quiet,
    processor,
    rate,
    read_all,
    touch,
)


def write(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """Sequential write in 1 MiB pieces, close, and then until the server has it."""
    name = f"write-{run}.bin"
    source = inputs.source(name)
    machine.drop_caches()
    touch(source)
    cpu, began = peer.cpu(), time.perf_counter()
    copy(source, peer.mountpoint / name)
    closed = time.perf_counter()
    peer.flush()
    flushed = time.perf_counter()
    yield rate("write and close", inputs.size, closed - began)
    yield rate("until the server has it", inputs.size, flushed - began)
    yield from processor(peer, cpu)
    (peer.mountpoint / name).unlink()
    peer.flush()


def read(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """Sequential read on a device that has nothing, then from its own cache, then from memory."""
    file = big(peer, inputs)
    peer.cold()
    cpu, moved = peer.cpu(), peer.moved()
    yield rate("cold", inputs.size, read_all(file))
    yield from processor(peer, cpu, "cold")
    if peer.wired:
        wire = (moved_when_quiet(peer) - moved) / inputs.size
        yield Measure("bytes moved per byte, cold", wire, "", "less")
    machine.drop_caches()
    cpu = peer.cpu()
    yield rate("our cache warm, page cache dropped", inputs.size, read_all(file))
    yield from processor(peer, cpu, "warm")
    yield rate("page cache", inputs.size, read_all(file))
    compare(inputs.source(BIG), file)


def random_read(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """4 KiB reads at random places, one after the other, on a device that has nothing."""
    file = big(peer, inputs)
    rng = inputs.rng(f"random-{run}")
    offsets = [rng.randrange(inputs.size // PAGE) * PAGE for _ in range(inputs.reads)]
    peer.cold()
    with file.open("rb", buffering=0) as stream:
        moved = peer.moved()
        took, pages = timed_reads(stream.fileno(), offsets)
        if peer.wired:
            per_read = (moved_when_quiet(peer) - moved) / inputs.reads
            yield Measure("moved per read", per_read / 1024, "KiB", "less")
    yield Measure("p50", quantile(took, 0.50) * 1000, "ms", "less")
    yield Measure("p95", quantile(took, 0.95) * 1000, "ms", "less")
    with inputs.source(BIG).open("rb", buffering=0) as source:
        if pages != [os.pread(source.fileno(), PAGE, at) for at in offsets]:
            raise BenchFailure("a random read returned wrong bytes")


def timed_reads(descriptor: int, offsets: list[int]) -> tuple[list[float], list[bytes]]:
    took, pages = [], []
    for at in offsets:
        began = time.perf_counter()
        page = os.pread(descriptor, PAGE, at)
        took.append(time.perf_counter() - began)
        pages.append(page)
    return took, pages


def edit(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """4 KiB changed inside the large file, which this device has read before."""
    file = big(peer, inputs)
    rng = inputs.rng(f"edit-{run}")
    at, page = rng.randrange(inputs.size - PAGE), rng.randbytes(PAGE)
    read_all(file)
    os.sync()
    moved_when_quiet(peer)
    cpu, moved, began = peer.cpu(), peer.moved(), time.perf_counter()
    _change(file, at, page)
    closed = time.perf_counter()
    peer.flush()
    flushed = time.perf_counter()
    yield Measure("change and close", closed - began, "s", "less")
    yield Measure("until the server has it", flushed - began, "s", "less")
    yield from processor(peer, cpu)
    if peer.wired:
        wire = (moved_when_quiet(peer) - moved) / 1024
        yield Measure("moved", wire, "KiB", "less")
    _change(inputs.source(BIG), at, page)
    peer.cold()
    compare(inputs.source(BIG), file)


def _change(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b", buffering=0) as stream:
        os.pwrite(stream.fileno(), data, at)
