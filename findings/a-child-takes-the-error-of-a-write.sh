#!/bin/sh
# close(2) says 0 for a file whose bytes the FUSE server has refused, because the program has started some
# child process in between. With the write-back cache a write is refused (disk full, say) after write(2)
# has returned, and close is where those who do not fsync are told. But *each* close of the file writes all
# that is dirty, and takes the error with it: the closing of an inherited descriptor, by a child's exit or by
# close-on-exec, where nobody looks; and the close of a program that has only read the file, which is told
# that there is no space. The one who wrote is told nothing. `subprocess.run("true")` is enough.
#
# fsync(2) tells whoever had the file open, each once: who closes without it has no promise, however often
# "close reports the error on network file systems" is said. A server can mend it: it is asked (FLUSH) at the
# close that would say 0, and can answer then with the error that it gave before.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0, CPython 3.11.7; every WRITE is answered ENOSPC:
#     nothing                      close: No space left on device
#     fork and exit                close: ok
#     subprocess.run true          close: ok
#         the reader's close: No space left on device
#     a reader of another process  close: ok
#     subprocess.run true          fsync: No space left on device
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
cat >"$there/caller.py" <<'PYTHON'
"""Writes, has something happen, and closes. Argument: the mount."""

import os
import subprocess
import sys

READER = """
import os, sys
for path in sys.stdin:
    file = os.open(path.strip(), os.O_RDONLY)
    try:
        os.close(file)
        print("ok", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""
# started before anything is open here
reader = subprocess.Popen([sys.executable, "-c", READER], stdin=-1, stdout=-1, text=True)


def nothing(_: str) -> None:
    pass


def fork_and_exit(_: str) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def run_true(_: str) -> None:
    subprocess.run(["true"], check=True)


def read_elsewhere(path: str) -> None:
    print(path, file=reader.stdin, flush=True)
    print("    the reader's close:", reader.stdout.readline().strip())


number = 10
for name, happens, end in (
    ("nothing", nothing, os.close),
    ("fork and exit", fork_and_exit, os.close),
    ("subprocess.run true", run_true, os.close),
    ("a reader of another process", read_elsewhere, os.close),
    ("subprocess.run true", run_true, os.fsync),
):
    number += 1
    path = f"{sys.argv[1]}/{number}"
    file = os.open(path, os.O_WRONLY)
    os.write(file, b"the only copy")
    happens(path)
    try:
        end(file)
        print(f"{name:28} {end.__name__}: ok")
    except OSError as error:
        print(f"{name:28} {end.__name__}: {error.strerror}")
reader.stdin.close()
reader.wait()
PYTHON
"$there/venv/bin/python" - "$there/mount" "$there/caller.py" <<'PYTHON'
import errno
import os
import platform
import stat
import sys

import pyfuse3
import trio


class Folder(pyfuse3.Operations):
    """Every number is the name of a file, and there is no space."""

    enable_writeback_cache = True

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o644
        entry.attr_timeout = entry.entry_timeout = 60
        return entry

    async def setattr(self, inode, attr, fields, fh, ctx):
        return await self.getattr(inode)

    async def lookup(self, parent, name, ctx=None):
        return await self.getattr(int(name))

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def write(self, fh, off, buf):
        self.refused += 1
        raise pyfuse3.FUSEError(errno.ENOSPC)


folder = Folder()
pyfuse3.init(folder, sys.argv[1], {"default_permissions"})


async def main() -> list[str]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        command = [sys.executable, sys.argv[2], sys.argv[1]]
        with trio.fail_after(60):
            done = await trio.run_process(command, capture_stdout=True)
        pyfuse3.terminate()
        return done.stdout.decode().splitlines()


try:
    lines = trio.run(main)
finally:
    pyfuse3.close(unmount=True)
print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
print(*lines, sep="\n")
told = [line.rpartition(": ")[2] for line in lines]
full = os.strerror(errno.ENOSPC)
if told[0] != full or folder.refused != 5:
    raise SystemExit("the file system of this script does not work")
if told[1:] != ["ok", "ok", full, "ok", full]:
    raise SystemExit("the behaviour has changed")
PYTHON
