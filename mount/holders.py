"""Processes and mounts that keep a mount busy, found without touching it.

Knows: /proc/PID (proc(5)), loop devices in /sys. Must not know: Nearline's own records.
Invariant: as in `mountinfo`, nothing here visits a path on or below a mountpoint; links are read,
which tells a path and goes nowhere.

Of other users' processes only root learns what they hold. Where there is no /proc (macOS) nothing
is known.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mount import mountinfo
from mount.mountinfo import Mounted


@dataclass(frozen=True)
class Holder:
    """A process, a mount or a loop device, and what it has there, as a person says it.
    `place` is where a mount of the same file system is."""

    who: str
    what: str
    pid: int = 0
    place: Path | None = None

    def __str__(self) -> str:
        return f"{self.who} {self.what}"


def of(mountpoint: Path, *, besides: frozenset[int] = frozenset()) -> list[Holder]:
    """All that keeps the unmounting of `mountpoint` from being done, as far as this user may see
    it."""
    mount = mountinfo.mounted_at(mountpoint)
    if mount is None:
        return []
    return [
        *_mounts_in(mount),
        *elsewhere(mount, besides=besides),
        *_loops_in(mount),
        *_processes(mount, besides),
    ]


def elsewhere(mount: Mounted, *, besides: frozenset[int] = frozenset()) -> list[Holder]:
    """Other mounts of the file system of `mount`, or of a folder of it, that stay when `mount` is
    unmounted: it goes on for as long. Bind mounts in this mount namespace, and one process of each
    other namespace that has such. `mount` may be gone already."""
    here, others = mountinfo.mounts(), _namespaces(besides)
    masters = mountinfo.masters_of([here, *(table for _, table in others)])
    found = []
    for other in mountinfo.staying(mount, here, here, masters):
        what = f"shows it at {other.mountpoint} (`umount {other.mountpoint}`)"
        found.append(Holder("a bind mount", what, place=other.mountpoint))
    for process, table in others:
        if stay := mountinfo.staying(mount, here, table, masters):
            places = " and ".join(str(other.mountpoint) for other in stay)
            what = f"has it mounted at {places} in a namespace of its own (a container, or a "
            inside = Path(f"{process}/root{stay[0].mountpoint}")
            found.append(
                Holder(_name(process), f"{what}service: stop it)", int(process.name), inside)
            )
    return found


def _namespaces(besides: frozenset[int]) -> list[tuple[Path, list[Mounted]]]:
    """A process of each mount namespace but ours, and what is mounted there."""
    seen, found = {_link(Path("/proc/self/ns/mnt")), ""}, []
    for process in _all_processes(besides):
        namespace = _link(process / "ns/mnt")
        if namespace not in seen and (table := mountinfo.parse(_read(process / "mountinfo"))):
            seen.add(namespace)
            found.append((process, table))
    return found


def _mounts_in(mount: Mounted) -> Iterator[Holder]:
    for other in mountinfo.mounts():
        if other.parent == mount.id:
            yield Holder(f"{other.fstype}", f"is mounted at {other.mountpoint}")


def _loops_in(mount: Mounted) -> Iterator[Holder]:
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        file = _read(loop).strip()
        if Path(file).is_relative_to(mount.mountpoint):
            device = f"/dev/{loop.parts[-3]}"
            yield Holder(device, f"is a loop device over {file} (`losetup -d {device}`)")


def _processes(mount: Mounted, besides: frozenset[int]) -> Iterator[Holder]:
    for process in _all_processes(besides):
        if what := next(_held(process, mount), None):
            yield Holder(_name(process), what, int(process.name))


def _all_processes(besides: frozenset[int]) -> Iterator[Path]:
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit() and int(entry) not in besides:
            yield Path("/proc", entry)


def _held(process: Path, mount: Mounted) -> Iterator[str]:
    """The paths that the process has in use in `mount`; of one that is gone, or not ours,
    nothing."""
    for link, what in (("cwd", "works in {}"), ("root", "has its root at {}")):
        if at := _within(process / link, mount):
            yield what.format(at)
    if at := _within(process / "exe", mount):
        yield f"runs {at}"
    for number in _list(process / "fdinfo"):
        if f"mnt_id:\t{mount.id}\n" in _read(process / "fdinfo" / number):
            yield f"has {_link(process / 'fd' / number)} open"
    for line in _read(process / "maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and _same_device(fields[3], mount.device):
            yield f"has {fields[5]} mapped"


def _same_device(hexadecimal: str, device: str) -> bool:
    return [int(part, 16) for part in hexadecimal.split(":")] == [
        int(part) for part in device.split(":")
    ]


def _within(link: Path, mount: Mounted) -> str:
    """The path that `link` tells if that is in the mount, else "". One whose directory is deleted
    ends in " (deleted)"."""
    at = _link(link)
    return at if at and Path(at).is_relative_to(mount.mountpoint) else ""


def _link(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _list(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _name(process: Path) -> str:
    """PROGRAM (PID) of USER"""
    program = _read(process / "comm").strip() or "process"
    try:
        user = process.stat().st_uid
    except OSError:
        return f"{program} ({process.name})"
    try:
        return f"{program} ({process.name}) of {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"{program} ({process.name}) of user {user}"
