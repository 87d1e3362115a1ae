"""Small files, one after the other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench import machine
from bench.data import content
from bench.peers.base import Peer
from bench.processes import BenchFailure
from bench.results import Measure
from bench.workloads.inputs import Inputs
from bench.workloads.steps import each

SMALL_DIRECTORIES = 20


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
    yield each("create", inputs.files, lambda: _create_each(files))
    peer.flush()
    yield Measure("create, server has them", time.perf_counter() - began, "s", "less")
    machine.drop_caches()
    yield each("stat, dentries dropped", inputs.files, lambda: [f.stat() for f in files])
    machine.drop_caches()
    yield each("read, our cache warm", inputs.files, lambda: _read_each(files))
    peer.cold()
    yield each("read, cold", inputs.files, lambda: _read_each(files))
    began = time.perf_counter()
    yield each("delete", inputs.files, lambda: _unlink_each(files))
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
