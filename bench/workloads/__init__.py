"""The work that mounts are given, and the figures that it yields: a module a group.

Knows: files, clocks and the `Peer` interface. Must not know: which peer it is.
Invariants: what is read is compared with the source, outside the clock: a figure for wrong bytes is
not a figure. Before each clock starts, what was written earlier is on disk, so that nobody pays for
another's writing.
"""

from __future__ import annotations

from bench.workloads import calls, going_on, large, memory, small, wan
from bench.workloads.inputs import Workload

BESIDE: dict[str, Workload] = {
    "write": large.write,
    "read": large.read,
    "random": large.random_read,
    "small": small.small,
    "edit": large.edit,
    "commit": calls.commit,
    "pieces": calls.pieces,
    "directory": calls.directory,
    "start": going_on.start,
    "resume": going_on.resume,
    "memory": memory.streaming,
}
"""With the server beside the mount, on one machine."""

OVER_A_LINE: dict[str, Workload] = {
    "wan-small": wan.small,
    "wan-large": wan.large,
    "wan-random": wan.random_read,
    "wan-find": wan.find,
    "wan-git": wan.git,
}
"""With a long line between the two."""

WORKLOADS = BESIDE | OVER_A_LINE
