#!/bin/sh
# sync(2) and syncfs(2) return while a FUSE server with the write-back cache has not taken the bytes yet,
# and syncfs says 0. The manual has it that Linux waits for the end of I/O, so that both "provide the same
# guarantees as fsync() called on every file"; here they begin the writing and leave. A package manager, a
# snapshot or a shutdown that goes by `sync` has nothing: when the server dies then, all is lost that it had
# not taken. It is not told that somebody has asked, either. fsync(2) waits.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0; the server answers no WRITE until the call has
# returned, or some time has passed; 1 MB was written:
#     fsync(2)  returned when 1000000 of 1000000 bytes were taken
#     syncfs(2) returned when       0 of 1000000 bytes were taken
#     sync(2)   returned when       0 of 1000000 bytes were taken
#
# Fails when that is not so any more. Needs /dev/fuse, root, and to build pyfuse3: fuse3 libfuse3-dev
# pkg-config gcc python3-dev. It calls sync(2): everything else on the machine is synced as well.
set -eu
there=$(mktemp -d)
trap 'umount -l "$there/mount" 2>/dev/null || true; rm -rf --one-file-system "$there"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$there/mount"
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check pyfuse3==3.5.0 trio==0.35.0
"$there/venv/bin/python" - "$there/mount" <<'PYTHON'
import errno
import os
import platform
import stat
import sys

import pyfuse3
import trio

ROOT, FILE, SIZE = pyfuse3.ROOT_INODE, 2, 1_000_000
SECONDS = {"fsync(2)": 1, "syncfs(2)": 120, "sync(2)": 120}  # that a WRITE waits for the call's end
CALLER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
file = os.open(sys.argv[1] + "/file", os.O_RDWR)
assert os.pwrite(file, bytes(int(sys.argv[3])), 0) == int(sys.argv[3])
call = {"syncfs(2)": libc.syncfs, "sync(2)": lambda _: os.sync(), "fsync(2)": os.fsync}
assert not call[sys.argv[2]](file)
os.path.exists(sys.argv[1] + "/returned")
"""


def attributes(inode: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.st_nlink = inode, 1
    entry.st_mode = stat.S_IFDIR | 0o755 if inode == ROOT else stat.S_IFREG | 0o644
    entry.attr_timeout = entry.entry_timeout = 60
    return entry


class Folder(pyfuse3.Operations):
    """One file. What is written to it is not taken until the caller's call has returned, or for long."""

    enable_writeback_cache = True

    def __init__(self, patience: float) -> None:
        super().__init__()
        self.patience = patience
        self.answered, self.when_returned = 0, -1
        self.returned = trio.Event()

    async def getattr(self, inode, ctx=None):
        return attributes(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        return attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        if name == b"file":
            return attributes(FILE)
        if name == b"returned":
            self.when_returned = self.answered
            self.returned.set()
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def write(self, fh, off, buf):
        size = len(buf)
        with trio.move_on_after(self.patience):
            await self.returned.wait()
        self.answered += size
        return size

    async def fsync(self, fh, datasync):
        pass


def taken(at: str, call: str) -> int:
    """How many bytes the server had taken when the call returned."""
    folder = Folder(SECONDS[call])

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            with trio.fail_after(300):
                await trio.run_process([sys.executable, "-c", CALLER, at, call, str(SIZE)])
            pyfuse3.terminate()

    pyfuse3.init(folder, at, {"default_permissions"})
    try:
        trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    print(f"{call:9} returned when {folder.when_returned:7} of {SIZE} bytes were taken")
    return folder.when_returned


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
at = sys.argv[1]
if taken(at, "fsync(2)") != SIZE:
    raise SystemExit("the file system of this script does not work")
if taken(at, "syncfs(2)") or taken(at, "sync(2)"):
    raise SystemExit("the behaviour has changed")
PYTHON
