"""Bytes that were sent, over all the lives of mounts and servers, and those that were sent again.

Knows: both sides' counters, the object store, the server's log. Must not know: who was killed, why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

# What may be under way to the server at one moment: `parallel` of `remote.transfer.upload.Sender`.
IN_FLIGHT = 8
REQUEST_BYTES = 2048  # more than one operation takes up in requests, sent twice


@dataclass
class Sent:
    """Bytes known to have been sent in lives that have ended. The counters are asked right before
    each kill, so what moved between the two is missing: `uploaded` (by the mounts) and `received`
    (by the servers) are lower bounds."""

    uploaded: int = 0
    received: int = 0
    kills: int = 0
    operations: int = 0

    def plus(self, uploaded: int, received: int) -> Sent:
        """With what the present lives have counted."""
        return replace(self, uploaded=self.uploaded + uploaded, received=self.received + received)

    def broken(self, store: Store) -> list[str]:
        """The promise: no finished chunk is sent twice. What is under way when a process is killed
        may be sent once more: at most `IN_FLIGHT` chunks for each kill."""
        allowed = IN_FLIGHT * self.kills
        most = store.stored + allowed * store.largest + REQUEST_BYTES * self.operations
        found = []
        if len(store.again) > allowed:
            found.append(f"finished chunks sent again in {self.kills} kills: {store.again}")
        if self.received > store.stored:
            found.append(f"servers took in {self.received} bytes, and {store.stored} are stored")
        if self.uploaded > most:
            found.append(f"mounts sent {self.uploaded} bytes for {store.stored}: over {most}")
        return found


@dataclass
class Store:
    """The objects that the server has. `again`: PUTs of objects that were there, which it answers
    with 412 and logs: each is a finished chunk that was sent again. No object is ever deleted in
    these tests."""

    stored: int
    largest: int
    chunks: int
    again: list[str]

    @staticmethod
    def read(blobs: Path, log: Path) -> Store:
        sizes = [path.stat().st_size for path in blobs.glob("*/??/*")]
        again = [path for path, status in _puts(log) if status == 412]
        return Store(sum(sizes), max(sizes, default=0), len(sizes), again)


def _puts(log: Path) -> list[tuple[str, int]]:
    """The PUTs that were logged, which are those that were not taken."""
    found = []
    for line in log.read_text().splitlines():
        if '"/blobs/' in line and line.endswith("}"):  # a kill may cut a line off
            said = json.loads(line)
            found.append((said["path"], said["status"]))
    return found
