#!/bin/sh
# No clock that a program can read is the one by which Linux stamps files, since 6.13. CLOCK_REALTIME is
# ahead of it, which is old news: files get the time of the last tick, which is CLOCK_REALTIME_COARSE. But
# since "multigrain" timestamps a file that somebody has looked at gets a precise time at its next change,
# and that is the least that *every* file on the machine gets from then on, on every file system. So a file
# may be newer than CLOCK_REALTIME_COARSE read after the file was written.
#
# It matters to whoever stamps files beside the kernel: a FUSE server with the write-back cache, where the
# kernel stamps write(2) and the server stamps the rest. By either clock times go backwards, for `make`,
# `find -newer` and backups: by the precise one from a file's creation to its first write, by the coarse
# one from a write to whatever is made next, as soon as any program anywhere writes and stats some other
# file. What works is to let the kernel stamp something and read that: a pipe (futimens, fstat).
#
# Seen with Linux 6.18.44 (250 ticks a second), ext4 and tmpfs for the other file, pyfuse3 3.5.0; of 300:
#     CLOCK_REALTIME           older after its own write 299   made after it, and older   0
#     CLOCK_REALTIME_COARSE    older after its own write   0   made after it, and older 289
#     mtime of a pipe          older after its own write   0   made after it, and older   0
#     files that are newer than CLOCK_REALTIME_COARSE, read after they were written, without FUSE: 300
#
# Fails when that is not so any more, also on a kernel before 6.13. Needs /dev/fuse, root, and to build
# pyfuse3: fuse3 libfuse3-dev pkg-config gcc python3-dev.
set -eu
there=$(mktemp -d)
trap 'umount -l "$there/mount" 2>/dev/null || true; rm -rf --one-file-system "$there"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$there/mount"
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check pyfuse3==3.5.0 trio==0.35.0
"$there/venv/bin/python" - "$there/mount" "$there/other" <<'PYTHON'
import errno
import os
import platform
import stat
import sys
import time

import pyfuse3
import trio

ROUNDS = 300
COARSE = 5  # linux/time.h
CALLER = """
import os, sys, time
at, elsewhere, rounds = sys.argv[1], os.open(sys.argv[2], os.O_CREAT | os.O_RDWR), int(sys.argv[3])
own = others = 0
for round in range(rounds):
    for _ in range(2):  # somebody writes and looks, on another file system
        os.pwrite(elsewhere, b"x", 0)
        os.fstat(elsewhere)
    first = os.open(f"{at}/first{round}", os.O_CREAT | os.O_WRONLY)
    born = os.fstat(first).st_mtime_ns
    os.write(first, b"x")
    written = os.fstat(first).st_mtime_ns
    second = os.open(f"{at}/second{round}", os.O_CREAT | os.O_WRONLY)
    own += written < born
    others += os.fstat(second).st_mtime_ns < written
    os.close(first)
    os.close(second)
    time.sleep(0.0013)  # not in step with the ticks
print(own, others)
"""
pipe, _ = os.pipe()


def coarse() -> int:
    return time.clock_gettime_ns(COARSE)


def stamp_of_pipe() -> int:
    os.utime(pipe)
    return os.fstat(pipe).st_mtime_ns


class Folder(pyfuse3.Operations):
    """New files are stamped by `clock`; what is written to them, by the kernel."""

    enable_writeback_cache = True

    def __init__(self, clock) -> None:
        super().__init__()
        self.clock = clock
        self.times = {pyfuse3.ROOT_INODE: clock()}

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o777 if inode == 1 else stat.S_IFREG | 0o666
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self.times[inode]
        entry.attr_timeout = entry.entry_timeout = 60
        return entry

    async def getattr(self, inode, ctx=None):
        return self.attributes(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        return self.attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def create(self, parent, name, mode, flags, ctx):
        inode = len(self.times) + 1
        self.times[inode] = self.clock()
        return pyfuse3.FileInfo(fh=inode), self.attributes(inode)

    async def write(self, fh, off, buf):
        return len(buf)


def backwards(at: str, other: str, name: str, clock) -> tuple[int, int]:
    """How often a file was older after it was written, and how often one that was made after that."""

    async def main() -> tuple[int, int]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            command = [sys.executable, "-c", CALLER, at, other, str(ROUNDS)]
            with trio.fail_after(120):
                done = await trio.run_process(command, capture_stdout=True)
            pyfuse3.terminate()
            own, others = done.stdout.split()
            return int(own), int(others)

    pyfuse3.init(Folder(clock), at, {"default_permissions"})
    try:
        own, others = trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    print(f"{name:24} older after its own write {own:3}   made after it, and older {others:3}")
    return own, others


def ahead(other: str) -> int:
    """How often a file that was written is newer than the coarse clock, read later."""
    written, count = os.open(other, os.O_CREAT | os.O_RDWR), 0
    for _ in range(ROUNDS):
        os.pwrite(written, b"x", 0)
        os.fstat(written)
        os.pwrite(written, b"x", 0)
        now = coarse()
        count += os.fstat(written).st_mtime_ns > now
        time.sleep(0.0013)
    os.close(written)
    return count


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
at, other = sys.argv[1:]
precise = backwards(at, other, "CLOCK_REALTIME", time.time_ns)
ticks = backwards(at, other, "CLOCK_REALTIME_COARSE", coarse)
kernels = backwards(at, other, "mtime of a pipe", stamp_of_pipe)
newer = ahead(other)
print("newer than CLOCK_REALTIME_COARSE, read after they were written, without FUSE:", newer)
if kernels != (0, 0) or min(precise[0], ticks[1], newer) < ROUNDS // 10:
    raise SystemExit("the behaviour has changed")
PYTHON
