#!/bin/sh
# With FUSE's write-back cache, Linux asks the server for a file's attributes, is told a new size, and says
# the old one, also after the server has invalidated the inode, attributes and pages. While the kernel
# keeps an inode, size and mtime of a regular file are what the kernel last had: it may hold bytes that the
# server does not know of, and does not look whether it does. What was read-only and closed all the time is
# treated the same. stat(2) and read(2) end at the old size, for new opens too, however short the timeouts.
#
# So a network file system with the write-back cache cannot tell of a file that has grown elsewhere, and
# invalidate_inode, which is made for that, returns without an error. It must make the kernel forget the
# inode, as it does here when its name is taken away while nobody has it open, or give the new content a
# new inode.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0; timeouts 0; the file grows from 10 to 20 bytes:
#     without      then invalidate_inode: stat 20, read 20   then invalidate_entry: stat 20, read 20
#     write-back   then invalidate_inode: stat 10, read 10   then invalidate_entry: stat 20, read 20
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

import pyfuse3
import trio

ROOT, FILE, BEFORE, AFTER = pyfuse3.ROOT_INODE, 2, 10, 20
CALLER = """
import os, sys
path = sys.argv[1] + "/file"
said = os.stat(path).st_size
with open(path, "rb") as file:
    print(said, len(file.read()))
"""


class Folder(pyfuse3.Operations):
    """One file, which changes on the server."""

    def __init__(self, *, write_back: bool) -> None:
        super().__init__()
        self.enable_writeback_cache = write_back
        self.size, self.asked = BEFORE, 0

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == ROOT else stat.S_IFREG | 0o644
        entry.st_size = self.size if inode == FILE else 0
        entry.st_mtime_ns = self.size
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def getattr(self, inode, ctx=None):
        self.asked += inode == FILE
        return self.attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        if name == b"file":
            return self.attributes(FILE)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, off, size):
        return bytes(max(0, min(self.size - off, size)))


def seen(at: str, *, write_back: bool) -> list[tuple[int, int]]:
    """What stat and read say at first, after the inode was invalidated, and after the name was."""
    folder = Folder(write_back=write_back)

    async def look() -> tuple[int, int]:
        command = [sys.executable, "-c", CALLER, at]
        with trio.fail_after(60):
            done = await trio.run_process(command, capture_stdout=True)
        said, had = done.stdout.split()
        return int(said), int(had)

    async def main() -> list[tuple[int, int]]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            found = [await look()]
            folder.size, folder.asked = AFTER, 0
            await trio.to_thread.run_sync(pyfuse3.invalidate_inode, FILE)
            found.append(await look())
            assert folder.asked, "the kernel did not ask"
            await trio.to_thread.run_sync(pyfuse3.invalidate_entry, ROOT, b"file")
            found.append(await look())
            pyfuse3.terminate()
            return found

    pyfuse3.init(folder, at, {"default_permissions"})
    try:
        found = trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    print(f"{'write-back' if write_back else 'without':10}", end="")
    for what, (said, had) in zip(("invalidate_inode", "invalidate_entry"), found[1:], strict=True):
        print(f"   then {what}: stat {said}, read {had}", end="")
    print()
    return found


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
old, new = (BEFORE, BEFORE), (AFTER, AFTER)
if seen(sys.argv[1], write_back=False) != [old, new, new]:
    raise SystemExit("the file system of this script does not work")
if seen(sys.argv[1], write_back=True) != [old, old, new]:
    raise SystemExit("the behaviour has changed")
PYTHON
