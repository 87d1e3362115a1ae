"""The disk below everything else."""

from __future__ import annotations

import os

from bench import machine
from bench.peers.base import Peer


class Disk(Peer):
    """The scratch disk itself: what the machine gives without any of this."""

    name = "disk"
    wired = False

    @property
    def version(self) -> str:
        return ""

    def start(self) -> None:
        return

    def cold(self) -> None:
        machine.drop_caches()

    def flush(self) -> None:
        os.sync()

    def stop(self) -> None:
        return
