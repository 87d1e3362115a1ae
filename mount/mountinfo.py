"""The kernel's table of mounts, read without touching any mount.

Knows: /proc/self/mountinfo (proc(5)). Must not know: Nearline's own records
(`registry`). Invariant: nothing here calls stat, open or listdir on or below a mountpoint, because
a mount whose process is dead or wedged answers such calls with an error, or never.

Where there is no /proc (macOS) nothing is known: every function answers empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.nearline"
TRIGGER = "autofs"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mounted:
    """One line of mountinfo; `id` is the kernel's number for the mount, `device` the MAJOR:MINOR
    that names its backing device in /sys/class/bdi, `parent` the mount that it is mounted in,
    `root` the folder of the file system that shows there ("/" unless a part was bind mounted).
    `shared` and `master` are the numbers of its peer group and of the one it is a slave of, or 0
    (mount_namespaces(7))."""

    id: int
    mountpoint: Path
    fstype: str
    source: str
    device: str = ""
    parent: int = 0
    root: str = "/"
    shared: int = 0
    master: int = 0

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
        groups = dict(field.split(":") for field in fields[6:] if ":" in field)
        found.append(
            Mounted(
                id=int(fields[0]),
                mountpoint=mounted,
                fstype=fstype,
                source=_unescape(source),
                device=fields[2],
                parent=int(fields[1]),
                root=_unescape(fields[3]),
                shared=int(groups.get("shared", 0)),
                master=int(groups.get("master", 0)),
            )
        )
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
    """The topmost mount at exactly `mountpoint`, if there is one. What autofs has there is a place
    for a mount, and none itself: see `is_trigger`."""
    at = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    return at[-1] if at and at[-1].fstype != TRIGGER else None


def is_trigger(mountpoint: Path) -> bool:
    """True if autofs (also `x-systemd.automount`) waits at `mountpoint` for the mount that it has
    asked for. Whoever looks at such a place waits for that mount, so nobody here may."""
    at = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    return bool(at) and at[-1].fstype == TRIGGER


def containing(path: Path) -> Mounted | None:
    """The mount that the absolute path `path` lies in (no symbolic link is followed)."""
    under = [mount for mount in mounts() if path.is_relative_to(mount.mountpoint)]
    return max(under, key=lambda mount: (len(mount.mountpoint.parts), mount.id), default=None)


def staying(
    leaving: Mounted, here: list[Mounted], there: list[Mounted], masters: dict[int, int]
) -> list[Mounted]:
    """Those of `there` that show the same file system as `leaving`, which is one of `here`, and
    still do after its unmounting. The kernel unmounts with it what is mounted at the same place in
    the peers and slaves of the mount that it is mounted in. `masters` are the masters of the peer
    groups that have one. `here` and `there` are tables of mounts: of one namespace or of two."""
    parents = {mount.id: mount for mount in there}
    parent = next((mount for mount in here if mount.id == leaving.parent), None)

    def goes_too(mount: Mounted) -> bool:
        above = parents.get(mount.parent)
        if parent is None or above is None or mount.root != leaving.root or not parent.shared:
            return False
        same_place = _place_in(parent, leaving) == _place_in(above, mount)
        return same_place and parent.shared in _groups(above, masters)

    same = [mount for mount in there if mount.device == leaving.device]
    own = {leaving.id} | {mount.id for mount in there if mount.parent == leaving.id}
    return [mount for mount in same if mount.id not in own and not goes_too(mount)]


def _place_in(parent: Mounted, mount: Mounted) -> Path:
    """Where `mount` is in the file system of `parent`, wherever that shows."""
    return Path(parent.root, mount.mountpoint.relative_to(parent.mountpoint))


def _groups(mount: Mounted, masters: dict[int, int]) -> set[int]:
    """The peer groups from which mounting and unmounting comes to `mount`."""
    found: set[int] = set()
    group = mount.shared or mount.master
    while group and group not in found:
        found.add(group)
        group = mount.master if group == mount.shared else masters.get(group, 0)
    return found


def masters_of(tables: Iterable[list[Mounted]]) -> dict[int, int]:
    """The master of each peer group that has one, from the tables of all namespaces."""
    every = (mount for table in tables for mount in table)
    return {mount.shared: mount.master for mount in every if mount.shared and mount.master}
