"""The files that workloads work on, and the form of a workload."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.data import Kind, write_source
from bench.peers.base import Peer
from bench.results import Measure


@dataclass(frozen=True)
class Inputs:
    """`size` of the large file and of each write in bytes, `reads` at random, `files` small ones of
    `small` bytes each; `operations` in a journal with `spool` bytes; `directories` to look through,
    `git_files` in a repository. `rest`: seconds that a peer is left alone before its memory is
    looked at. `scratch` holds the sources."""

    scratch: Path
    kind: Kind
    seed: str
    size: int
    reads: int
    files: int
    small: int
    operations: int
    spool: int
    directories: int
    git_files: int
    rest: float

    def source(self, name: str) -> Path:
        """The content of file `name`, made when it is first asked for."""
        file = self.scratch / name
        if not file.exists():
            write_source(file, self.kind, f"{self.seed}/{name}", self.size)
        return file

    def rng(self, name: str) -> random.Random:
        return rng_of(self.seed, name)


def rng_of(seed: str, name: str) -> random.Random:
    return random.Random(f"{seed}/{name}")


Workload = Callable[[Peer, Inputs, int], Iterator[Measure]]
