"""Nodes as the kernel wants to see them, and what it asks to change. Pure.

Knows: ownership modes, st_* fields, xattr namespaces. Must not know: requests, storage.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

import pyfuse3

from cache.tree import HISTORY, Node

# The feed invalidates what changes, so the kernel may believe us for long.
TIMEOUT_SECONDS = 3600.0

TYPE_BITS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}
KINDS = {bits: kind for kind, bits in TYPE_BITS.items()}


@dataclass(frozen=True)
class Ownership:
    """Whose the files seem to be: `uid`/`gid` for all of them, or (None) whose the drive says;
    `umask` bits are taken from every mode."""

    uid: int | None
    gid: int | None
    umask: int

    @classmethod
    def of(
        cls, uid: int | None, gid: int | None, umask: int | None, me: int, group: int
    ) -> Ownership:
        """A mount by root stores real owners; anybody else's belongs to them."""
        if me != 0:
            uid, gid = (me if uid is None else uid), (group if gid is None else gid)
        return cls(uid, gid, umask or 0)


def attributes(node: Node, owner: Ownership, *, writable: bool = True) -> pyfuse3.EntryAttributes:
    """What `stat` shows. Nobody seems to be able to write what this account may only read."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node.ino)
    entry.generation = 0
    entry.attr_timeout = TIMEOUT_SECONDS
    # The feed says nothing of the directories that show versions: a name may come to mean a file.
    entry.entry_timeout = 0.0 if node.drive == HISTORY else TIMEOUT_SECONDS
    withheld = owner.umask | (0 if writable else 0o222)
    entry.st_mode = pyfuse3.ModeT(TYPE_BITS[node.kind] | (node.mode & ~withheld))
    entry.st_nlink = node.subdirs + 2 if node.is_directory else max(node.links, 0)
    if node.is_directory and not node.live:
        entry.st_nlink = 0
    entry.st_uid = node.uid if owner.uid is None else owner.uid
    entry.st_gid = node.gid if owner.gid is None else owner.gid
    entry.st_rdev = node.rdev
    entry.st_size = len((node.target or "").encode()) if node.kind == "symlink" else node.size
    entry.st_blksize = 1 << 20
    entry.st_blocks = -(-node.size // 512)
    entry.st_atime_ns = node.atime_ns
    entry.st_mtime_ns = node.mtime_ns
    entry.st_ctime_ns = node.ctime_ns
    return entry


def missing(name_timeout: float) -> pyfuse3.EntryAttributes:
    """A negative answer that the kernel may remember: the name means nothing."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = name_timeout
    return entry
