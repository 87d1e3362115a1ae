"""Every file system that can be measured, by name. The order is that of the table's columns."""

from __future__ import annotations

from bench.peers.base import Peer
from bench.peers.disk import Disk
from bench.peers.juicefs import JuiceFS
from bench.peers.nearline import Nearline
from bench.peers.rclone import Rclone
from bench.peers.s3fs import S3fs
from bench.peers.sshfs import Sshfs

_ALL: tuple[type[Peer], ...] = (Nearline, Rclone, JuiceFS, S3fs, Sshfs, Disk)
KINDS: dict[str, type[Peer]] = {kind.name: kind for kind in _ALL}
DEFAULT = ("nearline", "rclone", "disk")
