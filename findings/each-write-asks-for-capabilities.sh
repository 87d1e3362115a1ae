#!/bin/sh
# Each write(2) to a FUSE file costs a second request, for an attribute that most file systems do not have
# and most files never had. Linux must take `security.capability` away from a file that is written to; it
# asks the file system whether there is one, at every write, and remembers neither "no such attribute" nor
# "not supported" (EOPNOTSUPP), which local file systems need say only once a file. With the write-back
# cache the writes themselves are gathered to 1 MiB each, and the questions are not: who writes 4 KiB at a
# time waits for 256 round trips to the server per WRITE that there is.
#
# Two ways out: getxattr says ENOSYS once, which is the end of extended attributes on that mount; or
# FUSE_HANDLE_KILLPRIV_V2 is agreed at FUSE_INIT, which libfuse knows from 3.17 and pyfuse3 3.5.0 does not
# offer, and the file system takes setuid and setgid away itself.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0; 1,000 writes of 4 KiB:
#     write-back   getxattr answers ENODATA    security.capability 1000   WRITE    4
#     write-back   getxattr answers ENOTSUP    security.capability 1000   WRITE    4
#     write-back   getxattr answers ENOSYS     security.capability    1   WRITE    4
#     without      getxattr answers ENODATA    security.capability 1000   WRITE 1000
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
import errno
import os
import platform
import stat
import sys
from collections import Counter

import pyfuse3
import trio

ROOT, FILE, WRITES = pyfuse3.ROOT_INODE, 2, 1000
CALLER = """
import os, sys
file = os.open(sys.argv[1] + "/file", os.O_WRONLY)
for _ in range(int(sys.argv[2])):
    os.write(file, bytes(4096))
os.close(file)
"""


def attributes(inode: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.st_nlink = inode, 1
    entry.st_mode = stat.S_IFDIR | 0o755 if inode == ROOT else stat.S_IFREG | 0o644
    entry.attr_timeout = entry.entry_timeout = 60
    return entry


class Folder(pyfuse3.Operations):
    def __init__(self, *, write_back: bool, answer: int) -> None:
        super().__init__()
        self.enable_writeback_cache, self.answer = write_back, answer
        self.asked: Counter[str] = Counter()

    async def getattr(self, inode, ctx=None):
        return attributes(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        return attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        if name == b"file":
            return attributes(FILE)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def getxattr(self, inode, name, ctx):
        self.asked[name.decode()] += 1
        raise pyfuse3.FUSEError(self.answer)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def write(self, fh, off, buf):
        self.asked["WRITE"] += 1
        return len(buf)


def requests(at: str, *, write_back: bool, answer: int) -> tuple[int, int]:
    """How often it was asked for the attribute, and told to write."""
    folder = Folder(write_back=write_back, answer=answer)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            with trio.fail_after(60):
                await trio.run_process([sys.executable, "-c", CALLER, at, str(WRITES)])
            pyfuse3.terminate()

    pyfuse3.init(folder, at, {"default_permissions"})
    try:
        trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    capability, writes = folder.asked["security.capability"], folder.asked["WRITE"]
    name = "write-back" if write_back else "without"
    print(f"{name:10}   getxattr answers {errno.errorcode[answer]:8}", end="")
    print(f"   security.capability {capability:4}   WRITE {writes:4}")
    return capability, writes


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
at = sys.argv[1]
absent = requests(at, write_back=True, answer=pyfuse3.ENOATTR)
unsupported = requests(at, write_back=True, answer=errno.EOPNOTSUPP)
unknown = requests(at, write_back=True, answer=errno.ENOSYS)
through = requests(at, write_back=False, answer=pyfuse3.ENOATTR)
if through[1] != WRITES or absent[1] > WRITES // 10:
    raise SystemExit("the file system of this script does not work")
asked = [absent[0], unsupported[0], through[0]]
if asked != [WRITES] * 3 or unknown[0] > 1:
    raise SystemExit("the behaviour has changed")
PYTHON
