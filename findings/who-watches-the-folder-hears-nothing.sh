#!/bin/sh
# A FUSE server can have inotify tell of a deletion that happened elsewhere, but only those who watch the
# file itself; who watches its folder, which is how most programs watch, hears nothing. With the ordinary
# invalidation of a name nobody hears anything, and the watch keeps the inode of the file that is gone: no
# FORGET, for as long as the watcher lives. FUSE_NOTIFY_DELETE (`deleted=` of pyfuse3's invalidate_entry),
# which reads like a faster way to the same, is what makes DELETE_SELF and lets go of the inode; the folder's
# IN_DELETE is made by unlink(2) on this machine alone. So a program hears or does not hear depending on
# what it put its watch on, and the two are usually taken for the same.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0; the file is watched, and the folder:
#     unlink                       file DELETE_SELF, file IGNORED, folder DELETE | inode let go
#     invalidate_entry             nothing | inode kept
#     invalidate_entry, deleted=   file DELETE_SELF, file IGNORED | inode let go
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
from subprocess import PIPE

import pyfuse3
import trio

ROOT, FILE = pyfuse3.ROOT_INODE, 2
SECONDS = 10  # after which what is not let go of is kept
CALLER = """
import ctypes, os, struct, sys
NAMES = {0x200: "DELETE", 0x400: "DELETE_SELF", 0x8000: "IGNORED"}
folder, here = sys.argv[1], sys.argv[2] == "unlink"
libc = ctypes.CDLL(None)
inotify = libc.inotify_init1(os.O_NONBLOCK)
watched = {}
for what, path in (("file", folder + "/file"), ("folder", folder)):
    watched[libc.inotify_add_watch(inotify, path.encode(), 0x600)] = what
if here:
    os.unlink(folder + "/file")
print("watching", flush=True)
input()  # it has happened
try:
    heard = os.read(inotify, 65536)
except BlockingIOError:
    heard = b""
while heard:
    watch, mask, _, length = struct.unpack_from("iIII", heard)
    print(watched[watch], NAMES.get(mask & 0xFFFF, hex(mask)))
    heard = heard[16 + length :]
print("end", flush=True)
input()
"""
CHANGES = {
    "unlink": lambda: None,
    "invalidate_entry": lambda: pyfuse3.invalidate_entry(ROOT, b"file"),
    "invalidate_entry, deleted=": lambda: pyfuse3.invalidate_entry(ROOT, b"file", deleted=FILE),
}


class Folder(pyfuse3.Operations):
    """One file, which goes away while somebody watches it."""

    def __init__(self) -> None:
        super().__init__()
        self.exists, self.forgotten = True, trio.Event()

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == ROOT else stat.S_IFREG | 0o644
        entry.attr_timeout = entry.entry_timeout = 60
        return entry

    async def getattr(self, inode, ctx=None):
        return self.attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        if name == b"file" and self.exists:
            return self.attributes(FILE)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def unlink(self, parent, name, ctx):
        self.exists = False

    async def forget(self, inode_list):
        if FILE in dict(inode_list):
            self.forgotten.set()


async def until(process: trio.Process, word: str) -> list[str]:
    """The lines of the process before that word."""
    said = b""
    while not said.endswith(word.encode() + b"\n"):
        said += await process.stdout.receive_some() or sys.exit("the caller has ended")
    return said.decode().splitlines()[:-1]


def heard(at: str, how: str) -> tuple[list[str], bool]:
    """What is heard, and whether the kernel has let go of the file while it is still watched."""
    folder = Folder()

    async def main() -> tuple[list[str], bool]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            with trio.fail_after(60):
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-c", CALLER, at, how], stdin=PIPE, stdout=PIPE
                )
                await until(process, "watching")
                folder.exists = False
                await trio.to_thread.run_sync(CHANGES[how])
                await process.stdin.send_all(b"\n")
                events = await until(process, "end")
                with trio.move_on_after(SECONDS):
                    await folder.forgotten.wait()
                let_go = folder.forgotten.is_set()
                await process.stdin.send_all(b"\n")
                await process.wait()
            pyfuse3.terminate()
            return events, let_go

    pyfuse3.init(folder, at, {"default_permissions"})
    try:
        events, let_go = trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    print(f"{how:28}", ", ".join(events) or "nothing", "| inode", "let go" if let_go else "kept")
    return events, let_go


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
at = sys.argv[1]
itself = ["file DELETE_SELF", "file IGNORED"]
here, let_go = heard(at, "unlink")
if sorted(here) != [*itself, "folder DELETE"] or not let_go:
    raise SystemExit("the file system of this script does not work")
if heard(at, "invalidate_entry") != ([], False):
    raise SystemExit("the behaviour has changed")
if heard(at, "invalidate_entry, deleted=") != (itself, True):
    raise SystemExit("the behaviour has changed")
PYTHON
