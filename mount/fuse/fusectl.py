"""The kernel's side of our connection: how much it may ask at once, and its end if we die badly.

Knows: fusectl (the kernel's filesystems/fuse.rst), setpriv(1). Must not know: what is mounted.

LIMIT. Reads of pages and writing back are "background" requests, of which the kernel sends 12 at
once unless told otherwise. Then a dozen cold reads that wait for the network keep every other
program's written bytes in the kernel, and its close(2) and fsync(2) with them.

GUARD. A thread that tells the kernel to forget a name waits for the lock of the directory. Whoever
holds that may wait for an answer of ours, and if we are killed then, neither can end: the thread
keeps /dev/fuse open, so the kernel does not notice. So a shell of less than 1 MB watches us, asked
for a signal at the death of our first thread, and cuts the connection then: everybody in the mount
gets an error at once, and the thread is set free. It ends with us in every case, because the pipe
that it reads is closed. It holds the connection's `abort` open, which is not in the mount, keeps no
mount busy, and never means another connection that gets the number later.

Where there is no fusectl, or it is not ours to use, neither is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import structlog

from mount import mountinfo

log = structlog.get_logger(__name__)

FUSECTL = "/sys/fs/fuse/connections"
# Requests under way; who is not root may ask for as much as the machine's memory allows.
BACKGROUND = (4096, 1024, 256)
# On a signal `read` ends with a failure, as it does at the end of the pipe. The signals that end
# everything at once (Ctrl-C, systemd) are not for the guard: the mount still has to be let go.
SCRIPT = """
trap '' HUP INT QUIT TERM
trap 'echo 1' USR2
read -r _
"""
# linux/mount.h; these numbers are the same on every architecture that Linux 5.1 or later knows.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1


def open_control(mount: mountinfo.Mounted, name: str) -> int | None:
    """A descriptor for writing to the file `name` of the mount's connection."""
    number = mount.device.rpartition(":")[2]
    with contextlib.suppress(OSError):
        return os.open(f"{FUSECTL}/{number}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        root = _private_fusectl()
        try:
            return os.open(f"{number}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=root)
        finally:
            os.close(root)
    except OSError as error:
        log.info("no_way_to_the_connections_settings", file=name, why=str(error))
        return None


def _private_fusectl() -> int:
    """A mount of it that nobody else sees, and that is gone with its last descriptor. Root only."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    context = _system_call(_FSOPEN, b"fusectl", _CLOEXEC)
    try:
        _system_call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _system_call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def allow_many_requests(mount: mountinfo.Mounted) -> None:
    """Have the kernel send as many background requests at once as it likes."""
    control = open_control(mount, "max_background")
    if control is None:
        return
    try:
        for number in BACKGROUND:
            with contextlib.suppress(OSError):  # EINVAL: more than this user may have
                os.write(control, str(number).encode())
                return
    finally:
        os.close(control)


@contextlib.contextmanager
def guarded(mount: mountinfo.Mounted) -> Iterator[None]:
    """The connection is cut when this thread, the process's first one, is killed meanwhile."""
    guard = _start_guard(mount)
    try:
        yield
    finally:
        if guard is not None:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()


def _start_guard(mount: mountinfo.Mounted) -> subprocess.Popen[bytes] | None:
    abort = open_control(mount, "abort")
    if abort is None:
        return None
    command = ["setpriv", "--pdeathsig", "USR2", "sh", "-c", SCRIPT, "nearline-guard"]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=abort,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
    except OSError as error:
        log.info("nobody_watches_over_the_mount", why=str(error))
        return None
    finally:
        os.close(abort)
