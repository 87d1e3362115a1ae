"""Mounting and unmounting by ourselves, as libfuse does, to have the descriptor of the connection.

Knows: mount(2) for root, how fusermount3 hands a descriptor back (libfuse's mount.c), and how the
options of `mount(8)` reach each. Must not know: what is said on the connection (`handshake`).

Invariants: what is mounted looks in /proc/self/mountinfo as if libfuse had mounted it; a call that
raises leaves no mount and no descriptor. Every failure is an `OSError`, because libfuse is tried
next, and it is the one that explains a failure to the person.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Set
from pathlib import Path

DEVICE = "/dev/fuse"
# linux/mount.h
_NOSUID, _NODEV = 2, 4
_FLAGS = {"ro": 1, "nosuid": _NOSUID, "nodev": _NODEV, "noexec": 8, "sync": 16, "dirsync": 128}
_WITHOUT = {"suid": _NOSUID, "dev": _NODEV}
_KERNEL = {"default_permissions": "default_permissions", "allow_other": "allow_other"} | {
    "allow_root": "allow_other"  # libfuse refuses everybody else itself
}
_DETACH, _NOFOLLOW = 2, 8  # umount2(2)


def attach(mountpoint: Path, options: Set[str], source: str, kind: str) -> int:
    """Mount `fuse.KIND` from `source`; the descriptor on which the kernel asks."""
    if sys.platform != "linux" or options - {*_FLAGS, *_WITHOUT, *_KERNEL}:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    if os.geteuid() == 0:
        return _mount(mountpoint, options, source, kind)
    return _fusermount(mountpoint, options, source, kind)


def detach(mountpoint: Path) -> None:
    """Lazily: for a mount of ours whose connection is closed. It may be gone already."""
    if os.geteuid() == 0:
        _libc().umount2(os.fsencode(mountpoint), _DETACH | _NOFOLLOW)
        return
    if program := shutil.which("fusermount3"):
        subprocess.run([program, "-u", "-q", "-z", "--", str(mountpoint)], check=False)


def mount_flags(options: Set[str]) -> int:
    """For mount(2): without set-user-id programs and devices unless they are asked for."""
    flags = _NOSUID | _NODEV
    for name in options & _FLAGS.keys():
        flags |= _FLAGS[name]
    for name in options & _WITHOUT.keys():
        flags &= ~_WITHOUT[name]
    return flags


def kernel_options(options: Set[str]) -> list[str]:
    return sorted({_KERNEL[name] for name in options & _KERNEL.keys()})


def fusermount_options(options: Set[str], source: str, kind: str) -> str:
    """For fusermount3, which wants commas and backslashes escaped."""
    flags = mount_flags(options)
    words = [name for name, bit in _FLAGS.items() if flags & bit]
    words += [name for name, bit in _WITHOUT.items() if not flags & bit]
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    named = [f"fsname={escaped}", f"subtype={kind}"]
    return ",".join([*words, *kernel_options(options), *named])


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(mountpoint: Path, options: Set[str], source: str, kind: str) -> int:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
        who = [f"rootmode={mode:o}", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
        data = ",".join([*kernel_options(options), f"fd={device}", *who]).encode()
        words = (source.encode(), os.fsencode(mountpoint), f"fuse.{kind}".encode())
        if _libc().mount(*words, ctypes.c_ulong(mount_flags(options)), data):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    except BaseException:
        os.close(device)
        raise
    return device


def _fusermount(mountpoint: Path, options: Set[str], source: str, kind: str) -> int:
    program = shutil.which("fusermount3")
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "fusermount3 is missing")
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            done = subprocess.run(
                [program, "-o", fusermount_options(options, source, kind), "--", str(mountpoint)],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        # The answer waits in the socket; without one this is its end.
        _, found, *_ = socket.recv_fds(ours, 1, 1)
    if done.returncode == 0 and found:
        os.set_inheritable(found[0], False)
        return found[0]
    for descriptor in found:
        os.close(descriptor)
        detach(mountpoint)
    raise OSError(errno.EIO, f"fusermount3 gave {done.returncode}")
