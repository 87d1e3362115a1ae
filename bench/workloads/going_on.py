"""Starting with a long journal, and going on after a crash."""

from __future__ import annotations

from collections.abc import Iterator

from bench.peers.base import Peer
from bench.processes import poll
from bench.results import Measure
from bench.workloads.inputs import Inputs
from bench.workloads.steps import compare, copy, moved_when_quiet

HALF_SECONDS = 600.0


def start(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """A mount's start, with nothing in its journal and with a long one; the server out of reach."""
    for operations in (0, inputs.operations):
        took = peer.restart(operations, inputs.spool)
        if took is not None:
            yield Measure(f"mounted, {operations:,} operations in the journal", took, "s", "less")


def resume(peer: Peer, inputs: Inputs, run: int) -> Iterator[Measure]:
    """The mount is killed when half of a large file is sent. What is sent after that, beside what
    was left: 1 says that nothing was sent twice."""
    if peer.sent() is None:
        return
    name = f"resume-{run}.bin"
    file = peer.mountpoint / name
    before = peer.sent() or 0
    copy(inputs.source(name), file)
    half = before + inputs.size // 2
    poll(lambda: (peer.sent() or 0) >= half, "half of it is sent", timeout=HALF_SECONDS)
    sent = (peer.sent() or 0) - before
    moved = peer.moved()
    peer.crash()
    peer.flush()
    left = inputs.size - sent
    yield Measure("sent after the kill, of what was left", (peer.sent() or 0) / left, "", "less")
    wire = (moved_when_quiet(peer) - moved) / left
    yield Measure("moved after the kill, of what was left", wire, "", "less")
    peer.cold()
    compare(inputs.source(name), file)
    file.unlink()
    peer.flush()
