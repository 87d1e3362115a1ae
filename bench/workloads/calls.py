"""The cost of single calls: an fsync, a write(2), an entry of a directory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from bench import machine
from bench.data import MIB, PAGE, content
from bench.directories import Stream
from bench.peers.base import Peer
from bench.processes import BenchFailure
from bench.results import Measure
from bench.workloads.inputs import Inputs
from bench.workloads.steps import each, rate

PIECES_BYTES = 64 * MIB


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
        yield each(name, inputs.files, partial(_save_each, files, data, durable=durable))
        peer.flush()
    shutil.rmtree(top)
    peer.flush()


def _save_each(files: Iterable[Path], data: bytes, *, durable: bool) -> None:
    for number, file in enumerate(files):
        with file.open("wb", buffering=0) as stream:
            stream.write(number.to_bytes(8, "big") + data[8:])  # nothing is deduplicated
            if durable:
                os.fsync(stream.fileno())


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
        yield rate(f"in {piece >> 10} KiB", size, seconds)
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
