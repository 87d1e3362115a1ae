"""Workloads on a mount, and what is measured of them.

Knows: files, clocks and the `Peer` interface. Must not know: which peer it is.
Invariants: what is read is compared with the source, outside the clock: a figure for wrong bytes is
not a figure. Before each clock starts, what was written earlier is on disk, so that nobody pays for
another's writing.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import machine
from bench.data import MIB, PAGE, Kind, content, write_source
from bench.directories import Stream
from bench.peers import Peer
from bench.processes import BenchFailure, poll
from bench.results import Measure, quantile

BIG = "big.bin"
SMALL_DIRECTORIES = 20
QUIET_BYTES = 16 * 1024
QUIET_INTERVALS = 60
HALF_SECONDS = 600.0
PIECES_BYTES = 64 * MIB


@dataclass(frozen=True)
class Inputs:
    """`size` of the large file and of each write in bytes, `reads` at random, `files` small ones of
    `small` bytes each; `operations` in a journal with `spool` bytes. `scratch` holds the sources.
    """

    scratch: Path
    kind: Kind
    seed: str
    size: int
    reads: int
    files: int
    small: int
    operations: int
    spool: int

    def source(self, name: str) -> Path:
        """The content of file `name`, made when it is first asked for."""
        file = self.scratch / name
        if not file.exists():
            write_source(file, self.kind, f"{self.seed}/{name}", self.size)
        return file

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")


Workload = Callable[[Peer, Inputs, int], Iterator[Measure]]


# --- sequential write ---------------------------------------------------------------------------


def write(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """Sequential write in 1 MiB pieces, close, and then until the server has it."""
    name = f"write-{run}.bin"
    source = inputs.source(name)
    machine.drop_caches()
    _touch(source)
    cpu, began = peer.cpu(), time.perf_counter()
    _copy(source, peer.mountpoint / name)
    closed = time.perf_counter()
    peer.flush()
    flushed = time.perf_counter()
    yield _rate("write and close", inputs.size, closed - began)
    yield _rate("until the server has it", inputs.size, flushed - began)
    yield from _cpu(peer, cpu)
    (peer.mountpoint / name).unlink()
    peer.flush()


# --- sequential read ----------------------------------------------------------------------------


def read(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """Sequential read on a device that has nothing, then from its own cache, then from memory."""
    file = _big(peer, inputs)
    peer.cold()
    cpu, moved = peer.cpu(), peer.moved()
    yield _rate("cold", inputs.size, _read_all(file))
    yield from _cpu(peer, cpu, "cold")
    if peer.wired:
        wire = (_moved_when_quiet(peer) - moved) / inputs.size
        yield Measure("bytes moved per byte, cold", wire, "", "less")
    machine.drop_caches()
    cpu = peer.cpu()
    yield _rate("our cache warm, page cache dropped", inputs.size, _read_all(file))
    yield from _cpu(peer, cpu, "warm")
    yield _rate("page cache", inputs.size, _read_all(file))
    _compare(inputs.source(BIG), file)


# --- random reads -------------------------------------------------------------------------------


def random_read(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """4 KiB reads at random places, one after the other, on a device that has nothing."""
    file = _big(peer, inputs)
    rng = inputs.rng(f"random-{run}")
    offsets = [rng.randrange(inputs.size // PAGE) * PAGE for _ in range(inputs.reads)]
    peer.cold()
    with file.open("rb", buffering=0) as stream:
        moved = peer.moved()
        took, pages = _timed_reads(stream.fileno(), offsets)
        if peer.wired:
            per_read = (_moved_when_quiet(peer) - moved) / inputs.reads
            yield Measure("moved per read", per_read / 1024, "KiB", "less")
    yield Measure("p50", quantile(took, 0.50) * 1000, "ms", "less")
    yield Measure("p95", quantile(took, 0.95) * 1000, "ms", "less")
    with inputs.source(BIG).open("rb", buffering=0) as source:
        if pages != [os.pread(source.fileno(), PAGE, at) for at in offsets]:
            raise BenchFailure("a random read returned wrong bytes")


def _timed_reads(descriptor: int, offsets: list[int]) -> tuple[list[float], list[bytes]]:
    took, pages = [], []
    for at in offsets:
        began = time.perf_counter()
        page = os.pread(descriptor, PAGE, at)
        took.append(time.perf_counter() - began)
        pages.append(page)
    return took, pages


# --- small files --------------------------------------------------------------------------------


def small(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """Small files, one after the other: create, stat, read from the cache, read cold, delete."""
    top = peer.mountpoint / f"small-{run}"
    files = {
        top / f"{i % SMALL_DIRECTORIES:02}" / f"{i:05}": content(
            inputs.kind, inputs.rng(f"small-{run}-{i}"), inputs.small
        )
        for i in range(inputs.files)
    }
    for directory in sorted({file.parent for file in files}):
        directory.mkdir(parents=True)
    peer.flush()
    machine.drop_caches()
    began = time.perf_counter()
    yield _each("create", inputs.files, lambda: _create_each(files))
    peer.flush()
    yield Measure("create, server has them", time.perf_counter() - began, "s", "less")
    machine.drop_caches()
    yield _each("stat, dentries dropped", inputs.files, lambda: [f.stat() for f in files])
    machine.drop_caches()
    yield _each("read, our cache warm", inputs.files, lambda: _read_each(files))
    peer.cold()
    yield _each("read, cold", inputs.files, lambda: _read_each(files))
    began = time.perf_counter()
    yield _each("delete", inputs.files, lambda: _unlink_each(files))
    peer.flush()
    yield Measure("delete, server has them", time.perf_counter() - began, "s", "less")
    shutil.rmtree(top)
    peer.flush()


def _create_each(files: dict[Path, bytes]) -> None:
    for file, data in files.items():
        with file.open("wb", buffering=0) as stream:
            stream.write(data)


def _unlink_each(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink()


def _read_each(files: dict[Path, bytes]) -> None:
    for file, data in files.items():
        with file.open("rb", buffering=0) as stream:
            if stream.read() != data:  # 4 KiB: the comparison is far below the clock's noise
                raise BenchFailure(f"{file.name} reads back different")


def _each(name: str, count: int, work: Callable[[], object]) -> Measure:
    began = time.perf_counter()
    work()
    return Measure(name, count / (time.perf_counter() - began), "files/s", "more")


# --- a small edit of a large file ---------------------------------------------------------------


def edit(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """4 KiB changed inside the large file, which this device has read before."""
    file = _big(peer, inputs)
    rng = inputs.rng(f"edit-{run}")
    at, page = rng.randrange(inputs.size - PAGE), rng.randbytes(PAGE)
    _read_all(file)
    os.sync()
    _moved_when_quiet(peer)
    cpu, moved, began = peer.cpu(), peer.moved(), time.perf_counter()
    _change(file, at, page)
    closed = time.perf_counter()
    peer.flush()
    flushed = time.perf_counter()
    yield Measure("change and close", closed - began, "s", "less")
    yield Measure("until the server has it", flushed - began, "s", "less")
    yield from _cpu(peer, cpu)
    if peer.wired:
        wire = (_moved_when_quiet(peer) - moved) / 1024
        yield Measure("moved", wire, "KiB", "less")
    _change(inputs.source(BIG), at, page)
    peer.cold()
    _compare(inputs.source(BIG), file)


def _change(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b", buffering=0) as stream:
        os.pwrite(stream.fileno(), data, at)


# --- durability ---------------------------------------------------------------------------------


def commit(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """Small files made one after the other: as programs do, and with an fsync of each."""
    top = peer.mountpoint / f"commit-{run}"
    data = content(inputs.kind, inputs.rng(f"commit-{run}"), inputs.small)
    for name, durable in (("create, write, close", False), ("create, write, fsync, close", True)):
        here = top / ("fsynced" if durable else "closed")
        here.mkdir(parents=True)
        peer.flush()
        machine.drop_caches()
        files = [here / f"{number:05}" for number in range(inputs.files)]
        yield _each(name, inputs.files, partial(_save_each, files, data, durable=durable))
        peer.flush()
    shutil.rmtree(top)
    peer.flush()


def pieces(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """A file written in pieces of 4 KiB, and another in pieces of 1 MiB: what a write(2) costs."""
    size = min(inputs.size, PIECES_BYTES)
    rates = []
    for piece in (PAGE, MIB):
        file = peer.mountpoint / f"pieces-{run}-{piece}"
        peer.flush()
        data = bytes(piece)
        began = time.perf_counter()
        with file.open("wb", buffering=0) as stream:
            for _ in range(size // piece):
                stream.write(data)
        seconds = time.perf_counter() - began
        rates.append(size / seconds)
        yield _rate(f"in {piece >> 10} KiB", size, seconds)
        file.unlink()
    peer.flush()
    yield Measure("4 KiB against 1 MiB", rates[0] / rates[1], "", "more")


def directory(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """One directory listed, and then its entries sought one by one at random, by telldir's word."""
    here = peer.mountpoint / f"directory-{run}"
    here.mkdir()
    names = {f"{number:05}" for number in range(inputs.files)}
    for name in names:
        (here / name).touch()
    peer.flush()
    machine.drop_caches()
    began = time.perf_counter()
    found = os.listdir(here)
    seconds = time.perf_counter() - began
    if set(found) != names:
        raise BenchFailure("a directory lists other names than were made")
    yield Measure("listed", len(found) / seconds, "entries/s", "more")
    with Stream(here) as stream:
        positions = [stream.tell() for _ in iter(stream.read, None)]
        order = inputs.rng(f"directory-{run}").choices(positions[:-1], k=inputs.reads)
        began = time.perf_counter()
        for position in order:
            stream.seek(position)
            if stream.read() is None:
                raise BenchFailure("a position in a directory has no entry")
        seconds = time.perf_counter() - began
    yield Measure("sought", len(order) / seconds, "seeks/s", "more")
    shutil.rmtree(here)
    peer.flush()


def _save_each(files: Iterable[Path], data: bytes, *, durable: bool) -> None:
    for number, file in enumerate(files):
        with file.open("wb", buffering=0) as stream:
            stream.write(number.to_bytes(8, "big") + data[8:])  # nothing is deduplicated
            if durable:
                os.fsync(stream.fileno())


# --- starting -----------------------------------------------------------------------------------


def start(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """A mount's start, with nothing in its journal and with a long one; the server out of reach."""
    for operations in (0, inputs.operations):
        took = peer.restart(operations, inputs.spool)
        if took is not None:
            yield Measure(f"mounted, {operations:,} operations in the journal", took, "s", "less")


# --- going on after a crash ---------------------------------------------------------------------


def resume(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """The mount is killed when half of a large file is sent. What is sent after that, beside what
    was left: 1 says that nothing was sent twice."""
    if peer.sent() is None:
        return
    name = f"resume-{run}.bin"
    file = peer.mountpoint / name
    before = peer.sent() or 0
    _copy(inputs.source(name), file)
    half = before + inputs.size // 2
    poll(lambda: (peer.sent() or 0) >= half, "half of it is sent", timeout=HALF_SECONDS)
    sent = (peer.sent() or 0) - before
    moved = peer.moved()
    peer.crash()
    peer.flush()
    left = inputs.size - sent
    yield Measure("sent after the kill, of what was left", (peer.sent() or 0) / left, "", "less")
    wire = (_moved_when_quiet(peer) - moved) / left
    yield Measure("moved after the kill, of what was left", wire, "", "less")
    peer.cold()
    _compare(inputs.source(name), file)
    file.unlink()
    peer.flush()


WORKLOADS: dict[str, Workload] = {
    "write": write,
    "read": read,
    "random": random_read,
    "small": small,
    "edit": edit,
    "commit": commit,
    "pieces": pieces,
    "directory": directory,
    "start": start,
    "resume": resume,
}


# --- shared -------------------------------------------------------------------------------------


def _big(peer: Peer, inputs: Inputs) -> Path:
    """The large file, put there outside the clock if it is not there yet."""
    file = peer.mountpoint / BIG
    if not file.exists():
        _copy(inputs.source(BIG), file)
        peer.flush()
    return file


def _copy(source: Path, target: Path) -> None:
    buffer = memoryview(bytearray(MIB))
    with source.open("rb", buffering=0) as reads, target.open("wb", buffering=0) as writes:
        while got := reads.readinto(buffer):
            if writes.write(buffer[:got]) != got:
                raise BenchFailure(f"short write to {target.name}")


def _read_all(file: Path) -> float:
    """Seconds that open, reading everything in 1 MiB pieces, and close take."""
    buffer = memoryview(bytearray(MIB))
    began = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    return time.perf_counter() - began


def _touch(source: Path) -> None:
    """Have the page cache hold `source`, so that reading it costs every peer the same."""
    _read_all(source)


def _compare(source: Path, file: Path) -> None:
    with source.open("rb", buffering=0) as wanted, file.open("rb", buffering=0) as found:
        at = 0
        while piece := wanted.read(MIB):
            if found.read(len(piece)) != piece:
                raise BenchFailure(f"{file.name} reads back different in the MiB at {at}")
            at += len(piece)
        if found.read(1):
            raise BenchFailure(f"{file.name} is longer than what was written")


def _rate(name: str, size: int, seconds: float) -> Measure:
    return Measure(name, size / seconds / 1e6, "MB/s", "more")


def _cpu(peer: Peer, before: float, of: str = "") -> Iterator[Measure]:
    if peer.wired:
        name = f"processor, mount and server{', ' + of if of else ''}"
        yield Measure(name, peer.cpu() - before, "s", "less")


def _moved_when_quiet(peer: Peer) -> int:
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
