"""Memory while a large file streams up and down, and afterwards at rest."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench import memory
from bench.peers.base import Peer
from bench.results import Measure
from bench.workloads.inputs import Inputs
from bench.workloads.steps import copy, read_all


def streaming(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """A large file written until the server has it, a rest; read by a new mount, a rest."""
    if not peer.wired:
        return
    name = f"memory-{run}.bin"
    file = peer.mountpoint / name
    source = inputs.source(name)
    peer.cold()
    with memory.Peak(peer.pids) as peak:
        copy(source, file)
        peer.flush()
    yield from _peaks(peak, "streaming up")
    yield from _at_rest(peer, inputs.rest, "then at rest")
    peer.cold()
    with memory.Peak(peer.pids) as peak:
        read_all(file)
    yield from _peaks(peak, "streaming down")
    yield from _at_rest(peer, inputs.rest, "read, then at rest")
    file.unlink()
    peer.flush()


def _peaks(peak: memory.Peak, when: str) -> Iterator[Measure]:
    for part, most in peak.anonymous.items():
        yield _mib(f"{part}, {when}: anonymous, most", most)


def _at_rest(peer: Peer, seconds: float, when: str) -> Iterator[Measure]:
    time.sleep(seconds)  # what is freed late is to be freed
    for part, found in memory.by_part(peer.pids()).items():
        yield _mib(f"{part}, {when}: anonymous", found.anonymous)
        yield _mib(f"{part}, {when}: files mapped", found.file)


def _mib(name: str, size: int) -> Measure:
    return Measure(name, size / 2**20, "MiB", "less")
