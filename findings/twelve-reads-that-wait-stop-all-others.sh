#!/bin/sh
# A FUSE server that takes every request at once, and answers those that it can, is never asked for a file
# while twelve others are waited for. Whatever Linux reads ahead, and that is every buffered read of more
# than a page, is a "background" request, of which one mount has twelve under way; the rest stay in the
# kernel. So a dozen reads of a source that is silent (a network file system's usual bad day) stop all
# reading in the mount, also of what the server has at hand, by everybody. It looks like a server that hangs,
# but its event loop is idle: nothing has arrived. Neither threads nor async help. What is read by the page
# (a file of up to 4 KiB), stat and listings go on, so that a check of health finds nothing.
#
# pyfuse3 has no word for it, nor has its option string: what raises it is max_background of the connection,
# in fusectl (/sys/fs/fuse/connections), once it is mounted.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0:
#     12 reads of 1 MB wait                   a read of another file: never arrives   stat: answered
#     11 reads of 1 MB wait                   a read of another file: answered        stat: answered
#     12 reads of 4 KiB wait                  a read of another file: answered        stat: answered
#     12 reads of 1 MB, max_background 64     a read of another file: answered        stat: answered
#
# Fails when that is not so any more. Needs /dev/fuse, root, and to build pyfuse3: fuse3 libfuse3-dev
# pkg-config gcc python3-dev.
set -eu
there=$(mktemp -d)
trap 'umount -l "$there/mount" "$there/control" 2>/dev/null || true
    rm -rf --one-file-system "$there"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$there/mount" "$there/control"
mount -t fusectl none "$there/control"
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check pyfuse3==3.5.0 trio==0.35.0
"$there/venv/bin/python" - "$there/mount" "$there/control" <<'PYTHON'
import os
import platform
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

ROOT, QUICK, SECONDS = pyfuse3.ROOT_INODE, 1000, 10


class Folder(pyfuse3.Operations):
    """Every number is the name of a file. The bytes of those below 1000 come from far away."""

    def __init__(self, size: int, slow: int) -> None:
        super().__init__()
        self.size, self.slow = size, slow
        self.waiting: set[int] = set()
        self.all_wait, self.come = trio.Event(), trio.Event()

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink, entry.st_size = inode, 1, self.size
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == ROOT else stat.S_IFREG | 0o644
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def getattr(self, inode, ctx=None):
        return self.attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        return self.attributes(int(name))

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, off, size):
        if fh < QUICK:
            self.waiting.add(fh)
            if len(self.waiting) == self.slow:
                self.all_wait.set()
            await self.come.wait()
        return bytes(min(size, self.size - off))


async def ends_in_time(*command: str) -> bool:
    with trio.move_on_after(SECONDS) as time:
        await trio.run_process(command, capture_stdout=True)
    return not time.cancelled_caught


def connection(at: str) -> str:
    """The number of the connection that serves what is mounted there."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    (device,) = [words[2] for words in mounts if words[4] == at]
    return device.partition(":")[2]


def while_others_wait(slow: int, size: int, background: int = 0) -> tuple[bool, bool]:
    """Whether another file can be read, and looked at, while `slow` reads wait."""
    folder = Folder(size, slow)

    async def main() -> tuple[bool, bool]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            for number in range(slow):
                command = ["head", "-c", "1", f"{at}/{QUICK - 1 - number}"]
                nursery.start_soon(lambda c=command: trio.run_process(c, capture_stdout=True))
            with trio.fail_after(60):
                await folder.all_wait.wait()
            read = await ends_in_time("head", "-c", "1", f"{at}/{QUICK}")
            looked = await ends_in_time("stat", f"{at}/{QUICK + 1}")
            folder.come.set()
            with trio.fail_after(60):
                await trio.run_process(["cat", f"{at}/{QUICK + 2}"], capture_stdout=True)
            pyfuse3.terminate()
            return read, looked

    at, control = sys.argv[1:]
    pyfuse3.init(folder, at, {"default_permissions"})
    try:
        if background:
            Path(control, connection(at), "max_background").write_text(str(background))
        read, looked = trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    what = f"{slow} reads of {size} bytes" + (f", max_background {background}" if background else "")
    words = {True: "answered", False: "never arrives"}
    print(f"{what:46} a read of another file: {words[read]:13}   stat: {words[looked]}")
    return read, looked


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
full = while_others_wait(12, 1_000_000)
others = [
    while_others_wait(11, 1_000_000),
    while_others_wait(12, 4096),
    while_others_wait(12, 1_000_000, 64),
]
if others != [(True, True)] * 3:
    raise SystemExit("the file system of this script does not work, or the behaviour has changed")
if full != (False, True):
    raise SystemExit("the behaviour has changed")
PYTHON
