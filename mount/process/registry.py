"""Which mounts this user has: mountpoint -> state directory, process, control socket.

Knows: one small JSON file per mountpoint, named by its hash, written whole or not at all. Must not
know: what a mount is doing (`client` asks it). Invariant: nothing here touches the
mountpoint itself; whether a mount lives is read from its process and its socket.

A record is written before the mount begins and removed when it has ended. A record whose process
is gone is left over from a crash: it is kept, because it tells where the journal is and lets
`nearline umount` clean up, and the next mount at the same place overwrites it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from msgspec import DecodeError, Struct, json

from cache.metadata.durable import make_private, write_durably
from mount import mountinfo
from mount.config import short_hash
from mount.control import client
from mount.failures import Failure


class Record(Struct, frozen=True, kw_only=True):
    """One mount. `started` is the kernel's start time of process `pid` (clock ticks since boot),
    so that another process that got the same number later is not taken for it. `device` is the
    MAJOR:MINOR of the file system, "" before it is mounted: it finds bind mounts that outlive the
    mount."""

    mountpoint: str
    state_dir: str
    cache_dir: str
    url: str
    account: str
    pid: int
    started: int
    control: str
    device: str = ""

    @property
    def alive(self) -> bool:
        """True if the mount's process is the one that wrote this record and still runs."""
        return started_at(self.pid) == self.started != 0


def started_at(pid: int) -> int:
    """When process `pid` started, in clock ticks since boot (proc(5), stat field 22); 0 when there
    is no such process or it is a zombie; 1 where there is no /proc and the process exists."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0 if Path("/proc/self").exists() else _exists(pid)
    return 0 if fields[0] in "ZX" else int(fields[19])


def _exists(pid: int) -> int:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        return 1
    return 1


def directory() -> Path:
    """Where this user's records are."""
    return platformdirs.user_state_path("nearline") / "registry"


def _file(mountpoint: Path) -> Path:
    return directory() / f"{short_hash(str(mountpoint))}.json"


def put(record: Record) -> None:
    """Write `record`, replacing an older one of the same mountpoint."""
    file = _file(Path(record.mountpoint))
    make_private(file.parent)
    write_durably(file, json.encode(record))


def remove(record: Record) -> None:
    """Forget `record`, unless another mount has taken its place since."""
    if get(Path(record.mountpoint)) == record:
        _file(Path(record.mountpoint)).unlink(missing_ok=True)


def get(mountpoint: Path) -> Record | None:
    """The record of the mount at `mountpoint`."""
    return _read(_file(mountpoint))


def _read(file: Path) -> Record | None:
    """A record; a file that is not one (another version's, a torn disk) counts as absent."""
    try:
        return json.decode(file.read_bytes(), type=Record)
    except (FileNotFoundError, DecodeError):
        return None


def all_records() -> list[Record]:
    """Every record, by mountpoint."""
    found = (_read(file) for file in sorted(directory().glob("*.json")))
    records = [record for record in found if record is not None]
    return sorted(records, key=lambda record: record.mountpoint)


def using(state_dir: Path) -> Record | None:
    """The living mount that has its state in `state_dir`."""
    records = (record for record in all_records() if record.alive)
    return next((record for record in records if record.state_dir == str(state_dir)), None)


def forget_gone() -> Iterator[Record]:
    """Remove, and yield, the records of mounts of which nothing is left, not even a stale mount."""
    for record in all_records():
        if not record.alive and mountinfo.mounted_at(Path(record.mountpoint)) is None:
            remove(record)
            yield record


def find(path: Path) -> tuple[Record, str]:
    """The mount that `path` lies in, and the path below its root ("" is the root).

    The path is taken as written first, so that asking about a dead mount never visits it; only
    when no mount is found that way are symbolic links resolved. Raises `Failure` for none."""
    absolute = Path(os.path.abspath(path.expanduser()))
    for candidate in (absolute, None):
        place = candidate or Path(os.path.realpath(absolute))
        inside = [r for r in all_records() if place.is_relative_to(r.mountpoint)]
        if inside:
            record = max(inside, key=lambda r: len(r.mountpoint))
            below = place.relative_to(record.mountpoint).as_posix()
            return record, "" if below == "." else below
    raise Failure(f"{path} is not in a Nearline mount; `nearline status` lists the mounts")


def live(path: Path) -> tuple[Record, str]:
    """`find`, but raise `Failure` unless the mount's process runs and answers."""
    record, below = find(path)
    if not record.alive or not client.answers(Path(record.control)):
        raise Failure(
            f"the mount at {record.mountpoint} is not running; "
            f"run `nearline umount {record.mountpoint}` and mount it again"
        )
    return record, below
