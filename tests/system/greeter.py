"""A file system with nothing in it, mounted as a mount is; a process of its own.

    greeter.py UID DIR ours|libfuse|silent OPTION...

It becomes UID once everything is loaded: the interpreter may be where only root may read.
With `libfuse` mounting by ourselves fails; with `silent` the kernel seems to ask nothing. It prints
what mountinfo says of the mount and whether it answered, unmounts, and ends. Knows: `handshake`.
Must not know: sessions, servers.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import sys
from pathlib import Path
from unittest import mock

import pyfuse3
import trio

from mount import attach, handshake

PR_SET_DUMPABLE = 4  # linux/prctl.h
SOURCE = "http://host:1/a,b"


class Nothing(pyfuse3.Operations):
    enable_writeback_cache = True

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
        entry.st_size = 4711
        return entry


def _fails(*_arguments: object) -> int:
    raise OSError(errno.EPERM, "it may not")


def line(at: Path) -> list[str]:
    """What mountinfo says of `at`, without the numbers that no two mounts share."""
    for text in Path("/proc/self/mountinfo").read_text().splitlines():
        words = text.split(" ")
        if words[4] == str(at):
            return words[5:]
    return []


async def main(at: Path, how: str, options: set[str]) -> None:
    attached = _fails if how == "libfuse" else attach.attach
    patience = 0.0 if how == "silent" else 10.0
    with (
        mock.patch.object(attach, "attach", attached),
        mock.patch.object(handshake, "PATIENCE_SECONDS", patience),
    ):
        connection = await handshake.connect(Nothing(), at, options, SOURCE)
    said = {"attached": connection.attached, "line": line(at)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        # The first process that looks must be another one: a daemon never touches its own mount.
        shown = await trio.run_process(["stat", "-c", "%s", at], capture_stdout=True, check=False)
        nursery.cancel_scope.cancel()
    said["answered"] = shown.stdout == b"4711\n"
    connection.close(unmount=True)
    said["left"] = line(at)
    said["descriptors"] = [
        target
        for entry in os.scandir("/proc/self/fd")
        if (target := os.readlink(entry.path)) == attach.DEVICE
    ]
    print(json.dumps(said))


def become(uid: int) -> None:
    if uid != os.getuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # Else /proc/self is not ours to read.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


if __name__ == "__main__":
    become(int(sys.argv[1]))
    trio.run(main, Path(sys.argv[2]), sys.argv[3], set(sys.argv[4:]))
