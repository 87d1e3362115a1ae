"""What the kernel has mounted, learned without touching any mount.

Knows: /proc/self/mountinfo (proc(5)). Must not know: Nearline's own records
(`registry`). Invariant: nothing here calls stat, open or listdir on or below a mountpoint, because
a mount whose process is dead or wedged answers such calls with an error, or never.

Where there is no /proc (macOS) nothing is known: every function answers empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.nearline"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mounted:
    """One line of mountinfo; `id` is the kernel's number for the mount, `device` the MAJOR:MINOR
    that names its backing device in /sys/class/bdi, `parent` the mount that it is mounted in."""

    id: int
    mountpoint: Path
    fstype: str
    source: str
    device: str = ""
    parent: int = 0

    @property
    def is_nearline(self) -> bool:
        return self.fstype == FSTYPE


def parse(text: str) -> list[Mounted]:
    """The mounts in the text of a mountinfo file, oldest first (proc(5))."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (fstype, source, *_) = left.split(" "), right.split(" ")
        mounted = Path(_unescape(fields[4]))
        number, parent = int(fields[0]), int(fields[1])
        found.append(Mounted(number, mounted, fstype, _unescape(source), fields[2], parent))
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
