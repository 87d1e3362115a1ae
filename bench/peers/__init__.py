"""Every file system that can be measured, by name. The order is that of the table's columns."""

from __future__ import annotations

from collections.abc import Iterable

from bench.peers import installing
from bench.peers.base import Peer
from bench.peers.disk import Disk
from bench.peers.installing import Program
from bench.peers.juicefs import JuiceFS
from bench.peers.nearline import Nearline
from bench.peers.rclone import Rclone
from bench.peers.s3fs import S3fs
from bench.peers.sshfs import Sshfs

_ALL: tuple[type[Peer], ...] = (Nearline, Rclone, JuiceFS, S3fs, Sshfs, Disk)
KINDS: dict[str, type[Peer]] = {kind.name: kind for kind in _ALL}


def programs(names: Iterable[str]) -> list[Program]:
    """The programs that the peers `names` need beyond the benchmark's environment."""
    return [program for name in names for program in KINDS[name].needs]


def complaint(names: Iterable[str]) -> str:
    """Names the programs that are missing, and how to get them; empty when none is."""
    missing = dict.fromkeys(map(str, installing.missing(programs(names))))
    if not missing:
        return ""
    return f"missing: {', '.join(missing)}; `python -m bench --install` gets it for the peers named"


DEFAULT = ("nearline", "rclone", "disk")
