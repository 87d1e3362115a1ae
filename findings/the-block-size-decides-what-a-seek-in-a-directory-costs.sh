#!/bin/sh
# st_blksize, "preferred block size for I/O", of a directory decides how many entries a FUSE server must
# describe when a program wants one. glibc's opendir makes its buffer of st_blksize bytes (at least 32 KiB,
# at most 1 MiB), getdents offers all of it, and Linux hands that size on to the server. A file system that
# says 1 MiB, because that is how its files are best read, is asked for 6,242 entries at each seekdir(3), of
# which the program reads one; then the rest is thrown away. Who walks a directory by telldir and seekdir,
# as some file servers do, pays hundreds of times what a listing costs.
#
# The same value makes listings cheaper: 5 requests instead of 104. So: answer seeks with a few entries,
# or say two different block sizes, for files and for directories.
#
# Seen with Linux 6.18.44, glibc 2.36, libfuse 3.14.0, pyfuse3 3.5.0; 20,000 entries:
#     st_blksize     512   listing: 104 requests,  20102 entries   20 seeks:  20 requests,   3920 entries
#     st_blksize  131072   listing:  27 requests,  20025 entries   20 seeks:  20 requests,  15620 entries
#     st_blksize 1048576   listing:   5 requests,  20003 entries   20 seeks:  20 requests, 124840 entries
#     st_blksize 4194304   listing:   5 requests,  20003 entries   20 seeks:  20 requests, 124840 entries
#
# Fails when that is not so any more. Needs /dev/fuse, root, and to build pyfuse3: fuse3 libfuse3-dev
# pkg-config gcc python3-dev.
set -eu
there=$(mktemp -d)
trap 'umount -l "$there/mount" 2>/dev/null || true; rm -rf --one-file-system "$there"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$there/mount"
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check pyfuse3==3.5.0 trio==0.35.0
"$there/venv/bin/python" - "$there/mount" <<'PYTHON'
import os
import platform
import stat
import sys
from collections import Counter

import pyfuse3
import trio

ENTRIES, SEEKS = 20_000, 20
CALLER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
for function in libc.readdir, libc.telldir:
    function.argtypes = (ctypes.c_void_p,)
libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
stream, positions = libc.opendir(sys.argv[1].encode()), []
while libc.readdir(stream):
    positions.append(libc.telldir(stream))
assert len(positions) == int(sys.argv[2]), len(positions)
os.path.exists(sys.argv[1] + "/listed")
for one in range(int(sys.argv[3])):
    libc.seekdir(stream, positions[one * 100])
    assert libc.readdir(stream)
"""


class Folder(pyfuse3.Operations):
    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block
        self.listing: Counter[str] = Counter()
        self.seeks: Counter[str] = Counter()
        self.now = self.listing

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink, entry.st_blksize = inode, 1, self.block
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o644
        entry.attr_timeout = entry.entry_timeout = 60
        return entry

    async def getattr(self, inode, ctx=None):
        return self.attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        if name == b"listed":
            self.now = self.seeks
        entry = pyfuse3.EntryAttributes()  # a name that is not there
        entry.st_ino, entry.entry_timeout = 0, 60
        return entry

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start_id, token):
        self.now["requests"] += 1
        for at in range(start_id, ENTRIES):
            self.now["entries"] += 1
            name = b"name%012d" % at
            if not pyfuse3.readdir_reply(token, name, self.attributes(at + 2), at + 1):
                return


def described(at: str, block: int) -> tuple[Counter[str], Counter[str]]:
    """Requests and entries of a listing, and of the seeks after it."""
    folder = Folder(block)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            with trio.fail_after(120):
                command = [sys.executable, "-c", CALLER, at, str(ENTRIES), str(SEEKS)]
                await trio.run_process(command)
            pyfuse3.terminate()

    pyfuse3.init(folder, at, {"default_permissions"})
    try:
        trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    print(f"st_blksize {block:7}", end="")
    for what, count in ("listing", folder.listing), (f"{SEEKS} seeks", folder.seeks):
        requests, entries = count["requests"], count["entries"]
        print(f"   {what}: {requests:3} requests, {entries:6} entries", end="")
    print()
    return folder.listing, folder.seeks


print(platform.system(), os.uname().release, *platform.libc_ver(), "pyfuse3", pyfuse3.__version__)
at = sys.argv[1]
_, few = described(at, 512)
described(at, 131072)
listing, many = described(at, 1 << 20)
_, most = described(at, 4 << 20)
if few["requests"] != SEEKS or listing["entries"] < ENTRIES:
    raise SystemExit("the file system of this script does not work")
if not many["entries"] == most["entries"] > 20 * few["entries"] or few["entries"] < 100 * SEEKS:
    raise SystemExit("the behaviour has changed")
PYTHON
