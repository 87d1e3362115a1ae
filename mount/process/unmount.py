"""Ending a mount, whoever holds it and whatever became of its process.

Knows: the order in which nothing is lost. Must not know: how it is shown.

A living mount is first flushed (unless told not to), then unmounted by the kernel's ordinary
unmount, which refuses while anything is open: that refusal, and not our look through /proc, decides
whether the mount is busy. Only then is there nobody left who could write, and the process ends by
itself. What was written between the flush and the unmount stays in the journal for the next mount.
A dead mount is detached lazily, because nothing can be flushed through it, and its connection with
the kernel is cut. It is usually cut already, with the process. But a thread that was telling the
kernel to forget a name may outlive a kill: it waits for a directory's lock, which an application
holds that waits for an answer from the process. While it waits, the dead process has its files open
and its locks, and whoever is in the mount hangs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mount import holders, mountinfo
from mount.control import client
from mount.control.messages import FlushRequest, Progress
from mount.failures import Failure
from mount.holders import Holder
from mount.process import detached_mounts, processes, registry

ENDING_SECONDS = 30.0
# Of those who keep a mount busy.
NAMED = 5
# umount2(2); FUSE answers every request that waits with ECONNABORTED.
_MNT_FORCE = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8


class Busy(Failure):
    """The mount is in use by `holders` (none when we cannot see them); `by` says it in words."""

    def __init__(self, mountpoint: Path, holders: Sequence[Holder] = ()) -> None:
        by = ", ".join(map(str, holders[:NAMED]))
        if len(holders) > NAMED:
            by += f", and {len(holders) - NAMED} more"
        hidden = f"by what this user may not see (`sudo fuser -vm {mountpoint}` does)"
        super().__init__(
            f"{mountpoint} is in use: {by or hidden}; close that and try again, or "
            f"`{_lazily(mountpoint)}`, which lets go once it is closed"
        )
        self.by = by


class NotFlushed(Failure):
    """The server does not have everything; the mount stays."""


def unmount(
    mountpoint: Path,
    *,
    timeout: float | None = None,
    now: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> str:
    """End the mount at `mountpoint`; what to tell the person, "" when there is nothing special.

    Raises `NotFlushed` after `timeout` seconds, `Busy`, or `Failure`; then it stays mounted."""
    record, mounted = registry.get(mountpoint), mountinfo.mounted_at(mountpoint)
    if mounted is None and (record is None or not record.alive):
        if record is not None:
            registry.remove(record)
        raise Failure(f"{mountpoint} is not mounted; `nearline status` lists the mounts")
    if record is None:
        return _without_record(mountpoint)
    if not record.alive:
        detach(mountpoint, lazy=True)
        registry.remove(record)
        return f"its process was gone; what was not uploaded is kept in {record.state_dir}"
    if said := detached_mounts.described(record):
        if detached_mounts.holding(record):
            raise Failure(said)
    elif mounted is not None:
        _end_living(record, timeout=timeout, now=now, on_progress=on_progress)
    _await_end(record, mounted)
    return ""


def _without_record(mountpoint: Path) -> str:
    """A mount that no record of ours tells about: another user's, or its record was lost."""
    mounted = mountinfo.mounted_at(mountpoint)
    if mounted is None or not mounted.is_nearline:
        raise Failure(f"{mountpoint} is not a Nearline mount; use umount")
    if not _disconnected(mountpoint):
        raise Failure(f"{mountpoint} is another user's mount; run this command as that user")
    detach(mountpoint, lazy=True)
    return "its process was gone"


def _disconnected(mountpoint: Path) -> bool:
    """True if the kernel says that nobody serves the mount. Asked in a thread that may be left
    behind, because a wedged mount never answers; that counts as no."""
    found: list[int] = []

    def look() -> None:
        try:
            os.statvfs(mountpoint)
        except OSError as error:
            found.append(error.errno or 0)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(5.0)
    return found == [errno.ENOTCONN]


def _end_living(
    record: registry.Record,
    *,
    timeout: float | None,
    now: bool,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    mountpoint = Path(record.mountpoint)
    _refuse_busy(record)
    if not now:
        flush(record, timeout=timeout, on_progress=on_progress)
    try:
        detach(mountpoint, lazy=False)
    except Busy:
        _refuse_busy(record)
        raise


def _refuse_busy(record: registry.Record) -> None:
    mountpoint = Path(record.mountpoint)
    if found := holders.of(mountpoint, besides=frozenset({record.pid})):
        raise Busy(mountpoint, found)


def _lazily(mountpoint: Path) -> str:
    return f"{'umount -l' if os.getuid() == 0 else 'fusermount3 -uz'} {mountpoint}"


def flush(
    record: registry.Record,
    *,
    timeout: float | None,
    on_progress: Callable[[Progress], None] | None,
    unless_offline: bool = False,
) -> None:
    """Return when the server has everything. Raises `NotFlushed` after `timeout` seconds, and
    `Failure` with `unless_offline` when the server cannot be reached."""
    try:
        request = FlushRequest(timeout, unless_offline)
        client.ask(Path(record.control), request, on_progress=on_progress, line_timeout=None)
    except client.MountRefused as error:
        if error.timed_out:
            raise NotFlushed(
                f"the server does not have everything after {timeout:g} s; it stays mounted and "
                f"goes on (`nearline status {record.mountpoint}` says why it waits)"
            ) from error
        raise


def _await_end(record: registry.Record, mounted: mountinfo.Mounted | None = None) -> None:
    if processes.wait_gone(record.pid, ENDING_SECONDS):
        registry.remove(record)
        return
    found = [] if mounted is None else holders.elsewhere(mounted)
    who = f": {', '.join(map(str, found[:NAMED]))}" if found else ""
    raise Failure(
        f"{record.mountpoint} is unmounted but its process {record.pid} has not ended{who}; "
        f"see the log in {record.state_dir}, then `kill {record.pid}`"
    )


def terminate(record: registry.Record) -> None:
    """End the mount even while something is open in it: SIGTERM detaches it lazily. What was not
    sent stays in the journal."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, signal.SIGTERM)
    _await_end(record)


def detach(mountpoint: Path, *, lazy: bool) -> None:
    """Have the kernel unmount; `lazy` is for a dead mount. Raises `Busy`, or `Failure` when it may
    or can not."""
    if os.getuid() == 0:
        _umount2(mountpoint, lazy)
        return
    if lazy:
        _cut(mountpoint)
    _fusermount(mountpoint, lazy)


def _cut(mountpoint: Path) -> None:
    """fusermount3 has no way to cut the connection; who mounted it may, where fusectl is there."""
    mounted = mountinfo.mounted_at(mountpoint)
    if mounted is not None:
        number = mounted.device.rpartition(":")[2]
        with contextlib.suppress(OSError):
            Path(f"/sys/fs/fuse/connections/{number}/abort").write_text("1")


def _umount2(mountpoint: Path, lazy: bool) -> None:
    flags = _UMOUNT_NOFOLLOW | (_MNT_FORCE | _MNT_DETACH if lazy else 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise Busy(mountpoint)
    raise Failure(f"cannot unmount {mountpoint}: {os.strerror(code)}; try `umount {mountpoint}`")


def _fusermount(mountpoint: Path, lazy: bool) -> None:
    program = shutil.which("fusermount3")
    if program is None:
        raise Failure("fusermount3 is missing; run `sudo apt install fuse3`")
    command = [program, "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise Busy(mountpoint)
    raise Failure(f"cannot unmount {mountpoint}: {done.stderr}; try `sudo umount {mountpoint}`")
