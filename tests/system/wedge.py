"""A file system whose process cannot die: killed, it leaves a thread that waits in the kernel.

    python -m tests.system.wedge MOUNTPOINT [guarded]

Knows: pyfuse3; `guarded` is what a real mount has besides (`mount/fuse/fusectl.py`). It says
"ready" when mounted, and the number of the thread when `mkdir` was called in it: the caller holds
the directory's lock until it gets an answer, which never comes, and the thread waits for the lock
to tell the kernel that it should forget a name of the directory.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pyfuse3
import trio

from mount import mountinfo
from mount.fuse import fusectl


class Wedge(pyfuse3.Operations):
    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        answer = pyfuse3.EntryAttributes()
        answer.st_ino, answer.st_mode, answer.st_nlink = inode, stat.S_IFDIR | 0o755, 2
        return answer

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        answer = pyfuse3.EntryAttributes()
        answer.entry_timeout = 0.0
        answer.st_ino = pyfuse3.InodeT(0)  # there is nothing of that name
        return answer

    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        forgetting = threading.Thread(target=pyfuse3.invalidate_entry, args=[parent_inode, name])
        forgetting.start()
        print(forgetting.native_id, flush=True)
        await trio.sleep_forever()
        raise AssertionError


async def serve(mountpoint: str, guarded: bool) -> None:
    pyfuse3.init(Wedge(), mountpoint, {"fsname=wedge", "subtype=nearline"})
    mount = mountinfo.mounted_at(Path(mountpoint))
    assert mount is not None
    with fusectl.guarded(mount) if guarded else nullcontext():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            print("ready", flush=True)


if __name__ == "__main__":
    os.umask(0)
    trio.run(serve, sys.argv[1], sys.argv[2:] == ["guarded"])
