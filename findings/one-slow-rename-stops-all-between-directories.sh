#!/bin/sh
# While one rename between two directories of a FUSE mount waits for its answer, no other rename between
# directories reaches the server, of whatever file in whatever directories. Linux takes one lock per mounted
# file system for those (s_vfs_rename_mutex: who moves directories must not make a ring), and holds it across
# the question to the server. A network file system that asks its server at rename, and takes a hundred
# requests at once, has all such renames of all programs one after the other; when the server is silent,
# they hang, and not even SIGKILL ends one that waits for the lock. Renames within a directory go on.
#
# The same for one directory: while one unlink (create, rename) in it waits, it cannot be listed, and no name
# in it that the kernel does not know can be looked up, though these are reads, and the server would answer.
#
# So: answer what changes names from what is known locally, and never across a network.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0, while
#     a/1 is renamed to b/1:   c/1 to d/1 waits, and after SIGKILL too   c/2 to c/3 done   c/new looked up
#     a/1 is unlinked:         a/new waits   a listed: waits   c/new looked up   c listed
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

SECONDS = 5  # after which something that takes no time waits
DIRECTORIES = {b"a": 10, b"b": 11, b"c": 12, b"d": 13}


class Folder(pyfuse3.Operations):
    """Four directories, in which each digit is a file. What changes `a` takes as long as wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.go_on = trio.Event(), trio.Event()

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o755 if inode < 100 else stat.S_IFREG | 0o644
        entry.attr_timeout = entry.entry_timeout = 60
        return entry

    async def getattr(self, inode, ctx=None):
        return self.attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        if name in DIRECTORIES:
            return self.attributes(DIRECTORIES[name])
        if name.isdigit():
            return self.attributes(parent * 10 + int(name))
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start_id, token):
        pass

    async def slow_in_a(self, parent: int) -> None:
        if parent == DIRECTORIES[b"a"]:
            self.arrived.set()
            await self.go_on.wait()

    async def unlink(self, parent, name, ctx):
        await self.slow_in_a(parent)

    async def rename(self, parent_old, name_old, parent_new, name_new, flags, ctx):
        await self.slow_in_a(parent_old)


class Call:
    """A process that does one thing in the mount."""

    def __init__(self, code: str) -> None:
        self.code, self.ended = code, trio.Event()
        self.process: trio.Process | None = None

    async def run(self, at: str, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        command = [sys.executable, "-c", f"import os; os.chdir({at!r}); {self.code}"]
        self.process = await trio.lowlevel.open_process(command)
        task_status.started()
        await self.process.wait()
        self.ended.set()

    async def ends_in_time(self) -> bool:
        with trio.move_on_after(SECONDS):
            await self.ended.wait()
        print(f"    {self.code:28}", "done" if self.ended.is_set() else "waits")
        return self.ended.is_set()


def while_waiting(at: str, slow: str, *others: str, kill: bool = False) -> list[bool]:
    """Which of the others end while the slow call waits; last, if wanted, whether the first of them
    ends when it is killed."""
    folder = Folder()

    async def main() -> list[bool]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            with trio.fail_after(120):
                first = Call(slow)
                await nursery.start(first.run, at)
                await folder.arrived.wait()
                print(f"while {slow} waits:")
                calls = [Call(code) for code in others]
                ends = []
                for call in calls:
                    await nursery.start(call.run, at)
                    ends.append(await call.ends_in_time())
                if kill:
                    calls[0].process.kill()
                    print("killed:")
                    ends.append(await calls[0].ends_in_time())
                folder.go_on.set()
                for call in (first, *calls):
                    await call.ended.wait()
            pyfuse3.terminate()
            return ends

    pyfuse3.init(folder, at, {"default_permissions"})
    try:
        return trio.run(main)
    finally:
        pyfuse3.close(unmount=True)


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
at = sys.argv[1]
looks = "os.path.exists('c/new')", "os.listdir('c')"
renames = "os.rename('c/1', 'd/1')", "os.rename('c/2', 'c/3')", *looks
renaming = while_waiting(at, "os.rename('a/1', 'b/1')", *renames, kill=True)
unlinking = while_waiting(
    at, "os.unlink('a/1')", "os.path.exists('a/new')", "os.listdir('a')", *looks
)
if renaming != [False, True, True, True, False] or unlinking != [False, False, True, True]:
    raise SystemExit("the behaviour has changed")
PYTHON
