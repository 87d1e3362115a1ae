"""The machine of the figures, and how busy it was. Reads /proc; changes only page caches."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import msgspec

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`memory` in bytes; `load` is the one-minute load average, at the start and at the end."""

    cpu: str
    cores: int
    memory: int
    kernel: str
    disk: str
    python: str
    versions: dict[str, str]
    load: tuple[float, float]
    caches_dropped: bool
    isolated: bool


def describe(scratch: Path, versions: dict[str, str], load: float, isolated: bool) -> Machine:
    """This machine now; `load` is what the load average was when the run began."""
    return Machine(
        cpu=_field("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory=int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024,
        kernel=platform.release(),
        disk=_disk(scratch),
        python=platform.python_version(),
        versions=versions,
        load=(round(load, 2), round(load_average(), 2)),
        caches_dropped=can_drop_caches(),
        isolated=isolated,
    )


def load_average() -> float:
    return os.getloadavg()[0]


def can_drop_caches() -> bool:
    """True if this user may empty the kernel's caches (only root may)."""
    return os.access(_DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Write everything out, then empty the page, dentry and inode caches (proc(5)). What could not
    be written out would stay cached, and its writing would slow down the next measurement."""
    os.sync()
    if can_drop_caches():
        _DROP_CACHES.write_text("3\n")


def nearline_version() -> str:
    """The version and, in a checkout, the commit."""
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{version('nearline')} {done.stdout.strip()}".strip()


def _field(file: str, name: str) -> str | None:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _disk(scratch: Path) -> str:
    """Device and file system that `scratch` lies on: the longest mountpoint that holds it."""
    best: list[str] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        inside = scratch.resolve().is_relative_to(fields[1])
        if inside and (not best or len(fields[1]) >= len(best[1])):
            best = fields
    return f"{best[0]}, {best[2]}" if best else "unknown"
