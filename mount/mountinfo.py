"""What the kernel has mounted, and who holds it, learned without touching any mount.

Knows: /proc/self/mountinfo and /proc/PID (proc(5)). Must not know: Nearline's own records
(`registry`). Invariant: nothing here calls stat, open or listdir on or below a mountpoint, because
a mount whose process is dead or wedged answers such calls with an error, or never.

Where there is no /proc (macOS) nothing is known: every function answers empty.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.nearline"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mounted:
    """One line of mountinfo; `id` is the kernel's number for the mount, `device` the MAJOR:MINOR
    that names its backing device in /sys/class/bdi."""

    id: int
    mountpoint: Path
    fstype: str
    source: str
    device: str = ""

    @property
    def is_nearline(self) -> bool:
        return self.fstype == FSTYPE


@dataclass(frozen=True)
class Holder:
    """A process that has something open in a mount, or its working directory there."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def parse(text: str) -> list[Mounted]:
    """The mounts in the text of a mountinfo file, oldest first (proc(5))."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (fstype, source, *_) = left.split(" "), right.split(" ")
        mounted = Path(_unescape(fields[4]))
        found.append(Mounted(int(fields[0]), mounted, fstype, _unescape(source), fields[2]))
    return found


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def mounts() -> list[Mounted]:
    """Everything mounted in this process's namespace."""
    try:
        return parse(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    except FileNotFoundError:
        return []


def mounted_at(mountpoint: Path) -> Mounted | None:
    """The topmost mount at exactly `mountpoint`, if there is one."""
    at = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    return at[-1] if at else None


def containing(path: Path) -> Mounted | None:
    """The mount that the absolute path `path` lies in (no symbolic link is followed)."""
    under = [mount for mount in mounts() if path.is_relative_to(mount.mountpoint)]
    return max(under, key=lambda mount: (len(mount.mountpoint.parts), mount.id), default=None)


def holders(mountpoint: Path, *, besides: frozenset[int] = frozenset()) -> list[Holder]:
    """The processes that keep `mountpoint` busy, as far as this user may see them."""
    mount = mounted_at(mountpoint)
    if mount is None:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in besides:
            process = Path("/proc", entry)
            if any(_holds(process, mount)):
                found.append(Holder(int(entry), _name(process)))
    return found


def _holds(process: Path, mount: Mounted) -> Iterator[bool]:
    """For each thing the process has in use, whether it is in `mount`. Links are read, which tells
    a path without visiting it; a process that is gone or not ours holds nothing we can name."""
    for link in ("cwd", "root"):
        yield _points_into(process / link, mount.mountpoint)
    for number in _list(process / "fdinfo"):
        yield f"mnt_id:\t{mount.id}\n" in _read(process / "fdinfo" / number)
    for mapping in _list(process / "map_files"):
        yield _points_into(process / "map_files" / mapping, mount.mountpoint)


def _points_into(link: Path, mountpoint: Path) -> bool:
    try:
        return Path(os.readlink(link)).is_relative_to(mountpoint)
    except OSError:
        return False


def _list(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _name(process: Path) -> str:
    return _read(process / "comm").strip() or "process"
