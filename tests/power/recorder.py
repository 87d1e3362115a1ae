"""A file system in memory that records what is done to it: the disk below a state directory.

Run as `python -m tests.power.recorder MOUNTPOINT RECORD`; says "ready" when it is mounted and ends
when it is unmounted. The record can be read then.

Knows: what FUSE asks, what the state directory of a mount needs of a file system. Must not know:
what is stored in it, what a power loss takes (`disk`).

The kernel's write-back cache is off: each write of the process above is here, and in the record,
when its system call returns. The one exception is shared writable memory, which SQLite uses for its
`-shm` file only: the kernel writes that back when it likes, and nobody may rely on it after a crash
of the machine. It is served and not recorded. Locks are the kernel's own business.

Concurrency: one thread, no await inside a handler: requests are carried out and recorded
one after the other.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from tests.power.record import (
    ROOT,
    Linked,
    Made,
    Moved,
    Removed,
    Resized,
    Synced,
    Writer,
    Wrote,
)

UNRECORDED = "-shm"
VALID_SECONDS = 3600.0  # every change comes through the kernel
BLOCK = 4096
FREE_BLOCKS = 1 << 30


@dataclass
class Inode:
    number: int
    mode: int
    uid: int
    gid: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, Inode] = field(default_factory=dict)
    links: int = 1
    target: bytes = b""
    recorded: bool = True
    mtime_ns: int = field(default_factory=time.time_ns)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def kind(self) -> str:
        if self.is_directory:
            return "directory"
        return "file" if stat.S_ISREG(self.mode) else "other"

    def resize(self, size: int) -> None:
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))


class Recorder(pyfuse3.Operations):
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._record = writer
        self._inodes = {ROOT: Inode(ROOT, stat.S_IFDIR | 0o755, os.getuid(), os.getgid())}

    def _named(self, parent: int, name: bytes) -> Inode:
        found = self._inodes[parent].names.get(os.fsdecode(name))
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return found

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode.number)
        entry.st_mode = pyfuse3.ModeT(inode.mode)
        entry.st_uid, entry.st_gid = inode.uid, inode.gid
        entry.st_nlink = inode.links
        entry.st_size = len(inode.data)
        entry.st_blksize = BLOCK
        entry.st_blocks = -(-len(inode.data) // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = inode.mtime_ns
        entry.attr_timeout = entry.entry_timeout = VALID_SECONDS
        return entry

    # --- names ------------------------------------------------------------------------------------

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(self._named(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        return None  # everything is kept to the end

    def _make(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext, target: bytes = b""
    ) -> Inode:
        text, directory = os.fsdecode(name), self._inodes[parent]
        if text in directory.names:
            raise pyfuse3.FUSEError(errno.EEXIST)
        inode = Inode(len(self._inodes) + 1, mode, ctx.uid, ctx.gid, target=target)
        inode.recorded = not text.endswith(UNRECORDED)
        self._inodes[inode.number] = directory.names[text] = inode
        self._record.add(Made(inode.number, parent, text, inode.kind))
        return inode

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        inode = self._make(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        return self._opened(inode), self._attributes(inode)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(self._make(parent_inode, name, mode, ctx))

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        directory = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._attributes(self._make(parent_inode, name, directory, ctx))

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return self._attributes(self._make(parent_inode, name, mode, ctx, target))

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._inodes[inode].target

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        text, names = os.fsdecode(new_name), self._inodes[new_parent_inode].names
        if text in names:
            raise pyfuse3.FUSEError(errno.EEXIST)
        names[text] = self._inodes[inode]
        names[text].links += 1
        self._record.add(Linked(inode, new_parent_inode, text))
        return self._attributes(names[text])

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        inode = self._named(parent_inode, name)
        inode.links -= 1
        del self._inodes[parent_inode].names[os.fsdecode(name)]
        self._record.add(Removed(inode.number, parent_inode, os.fsdecode(name)))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if self._named(parent_inode, name).names:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        await self.unlink(parent_inode, name, ctx)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        inode = self._named(parent_inode_old, name_old)
        old, new = os.fsdecode(name_old), os.fsdecode(name_new)
        over = self._inodes[parent_inode_new].names.get(new)
        if over is inode:
            return
        if over is not None:
            over.links -= 1
        del self._inodes[parent_inode_old].names[old]
        self._inodes[parent_inode_new].names[new] = inode
        self._record.add(Moved(inode.number, parent_inode_old, old, parent_inode_new, new))

    # --- attributes -------------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(self._inodes[inode])

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        found = self._inodes[inode]
        if fields.update_size:
            found.resize(attr.st_size)
            if found.recorded:
                self._record.add(Resized(inode, attr.st_size))
        if fields.update_mode:
            found.mode = stat.S_IFMT(found.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            found.uid = attr.st_uid
        if fields.update_gid:
            found.gid = attr.st_gid
        if fields.update_mtime:
            found.mtime_ns = attr.st_mtime_ns
        return self._attributes(found)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK
        answer.f_blocks = answer.f_bfree = answer.f_bavail = FREE_BLOCKS
        answer.f_files = answer.f_ffree = answer.f_favail = FREE_BLOCKS
        answer.f_namemax = 255
        return answer

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    # --- files. A handle is the number of its inode -----------------------------------------------

    def _opened(self, inode: Inode) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode.number), keep_cache=True)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        found = self._inodes[inode]
        if flags & os.O_TRUNC and found.data:
            found.resize(0)
            if found.recorded:
                self._record.add(Resized(inode, 0))
        return self._opened(found)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self._inodes[fh].data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        inode = self._inodes[fh]
        if len(inode.data) < off:
            inode.resize(off)
        inode.data[off : off + len(buf)] = buf
        inode.mtime_ns = time.time_ns()
        if inode.recorded:
            self._record.add(Wrote(fh, off, bytes(buf)))
        return len(buf)

    async def flush(self, fh: int) -> None:
        return None

    async def release(self, fh: int) -> None:
        return None

    async def fsync(self, fh: int, datasync: bool) -> None:
        if self._inodes[fh].recorded:
            self._record.add(Synced(fh))

    # --- directories ------------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """A directory that changes while it is read is read again by who cares."""
        for at, (name, inode) in enumerate(list(self._inodes[fh].names.items())[start_id:]):
            entry = self._attributes(inode)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, start_id + at + 1):
                return

    async def releasedir(self, fh: int) -> None:
        return None

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._record.add(Synced(fh))


def main(mountpoint: str, record: str) -> None:
    os.umask(0)
    writer = Writer(Path(record))
    pyfuse3.init(Recorder(writer), mountpoint, {"fsname=recorder", "default_permissions"})
    try:
        print("ready", flush=True)
        trio.run(pyfuse3.main)
    finally:
        writer.close()
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
