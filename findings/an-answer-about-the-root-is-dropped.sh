#!/bin/sh
# A FUSE file system answers Linux correctly, and the kernel refuses the call as if it had not. When an
# inode is invalidated while GETATTR for it is under way, the kernel throws the answer's attributes away
# (it cannot know which is newer) and decides with those that it had, without asking again. At the root
# it had none: mount(2) gives it mode 0. With `default_permissions` the first thing that somebody who is
# not root does in a new mount is then EACCES, though the one answer that was given says 0777.
#
# It takes nothing unusual: a file system that tells the kernel of changes elsewhere, one of which comes
# in with the first call. It looks like a mount that is not ready yet, and retrying "helps". Way out:
# look at the root once (stat) before saying that the mount is there, or invalidate nothing until then.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0, every time:
#     root not invalidated    first: made                second: made
#     root invalidated        first: Permission denied   second: made
#
# Fails when that is not so any more. Needs /dev/fuse, root, and to build pyfuse3: fuse3 libfuse3-dev
# pkg-config gcc python3-dev.
set -eu
there=$(mktemp -d)
trap 'umount -l "$there/mount" 2>/dev/null || true; rm -rf --one-file-system "$there"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$there"
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

ROOT, FILE = pyfuse3.ROOT_INODE, 2
CALLER = """
import os, sys
os.setgid(65534)
os.setuid(65534)
for name in "first", "second":
    try:
        os.close(os.open(sys.argv[1] + "/" + name, os.O_CREAT | os.O_WRONLY))
        print(name + ": made")
    except OSError as error:
        print(name + ": " + error.strerror)
"""


def attributes(inode: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.st_nlink = inode, 1
    entry.st_mode = stat.S_IFDIR | 0o777 if inode == ROOT else stat.S_IFREG | 0o666
    entry.attr_timeout = entry.entry_timeout = 60
    return entry


class Folder(pyfuse3.Operations):
    def __init__(self, *, changes: bool) -> None:
        super().__init__()
        self.changes = changes

    async def getattr(self, inode, ctx=None):
        answer = attributes(inode)
        if inode == ROOT and self.changes:
            self.changes = False  # once: what somebody else changed comes in at this moment
            await trio.to_thread.run_sync(lambda: pyfuse3.invalidate_inode(ROOT, attr_only=True))
        return answer

    async def lookup(self, parent, name, ctx=None):
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def create(self, parent, name, mode, flags, ctx):
        return pyfuse3.FileInfo(fh=FILE), attributes(FILE)


def first_calls(at: str, *, changes: bool) -> list[str]:
    """What somebody who is not root is told, in a mount that was just made."""

    async def main() -> list[str]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            command = [sys.executable, "-c", CALLER, at]
            with trio.fail_after(60):
                done = await trio.run_process(command, capture_stdout=True)
            pyfuse3.terminate()
            return done.stdout.decode().splitlines()

    pyfuse3.init(Folder(changes=changes), at, {"default_permissions", "allow_other"})
    try:
        said = trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    print(f"{'root invalidated' if changes else 'root not invalidated':24}", *said, sep="  ")
    return said


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
calm = first_calls(sys.argv[1], changes=False)
told = first_calls(sys.argv[1], changes=True)
if calm != ["first: made", "second: made"]:
    raise SystemExit("the file system of this script does not work")
if told != ["first: Permission denied", "second: made"]:
    raise SystemExit("the behaviour has changed")
PYTHON
