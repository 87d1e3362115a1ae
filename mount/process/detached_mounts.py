"""A mount that is gone from its place and goes on: in bind mounts of it, or for who has it open.

Knows: that the kernel ends a file system when its last mount and its last open file are gone. Must
not know: how a mount is ended (`unmount`). Invariant: as in `mountinfo`, nothing is visited.
"""

from __future__ import annotations

from pathlib import Path

from mount import holders, mountinfo
from mount.holders import Holder
from mount.process.registry import Record


def is_away(record: Record) -> bool:
    """True if the mount's process lives and what it serves is not at its mountpoint any more."""
    if not record.alive or not record.device:
        return False
    mounted = mountinfo.mounted_at(Path(record.mountpoint))
    return mounted is None or mounted.device != record.device


def holding(record: Record) -> list[Holder]:
    """The mounts elsewhere that keep the file system of `record` going."""
    gone = mountinfo.Mounted(0, Path(record.mountpoint), mountinfo.FSTYPE, "", record.device)
    return holders.elsewhere(gone, besides=frozenset({record.pid}))


def described(record: Record) -> str:
    """Why a mount goes on that is not at its mountpoint any more, and how to end it; "" for one
    that is there, or has ended."""
    if not is_away(record):
        return ""
    found = holding(record)
    who = ", ".join(map(str, found)) if found else "a program has a file or folder of it open"
    return (
        f"unmounted from {record.mountpoint}, but process {record.pid} goes on: {who}; it ends "
        f"when that does, or with `kill {record.pid}` (its journal is kept)"
    )
