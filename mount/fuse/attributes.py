"""Nodes as the kernel wants to see them, and what it asks to change. Pure.

Knows: ownership modes, st_* fields, which times there are. Must not know: requests, storage.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

import pyfuse3

from cache.metadata.tree import HISTORY, Node

# The feed invalidates what changes, so the kernel may believe us for long.
TIMEOUT_SECONDS = 3600.0

# The state, the wire and the server have 64 bits for nanoseconds: 1677 to 2262. As every file
# system does, the nearest time that there is stands for one that there is not.
FIRST_NS, LAST_NS = -(1 << 63), (1 << 63) - 1

SETID = stat.S_ISUID | stat.S_ISGID
# st_blocks, which counts 512 bytes, is a multiple of this.
PAGE = 4096

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
    """The owner that files seem to have: `uid`/`gid` for all, or (None) the one that the drive
    says; `umask` bits are taken from every mode. What is not shown as the drive has it cannot be
    changed either: the drive keeps it."""

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

    def mode(self, node: Node, asked: int) -> int:
        """The mode that `chmod(asked)` leaves in the drive."""
        return (node.mode & self.umask) | (asked & ~self.umask)

    def owners(self, uid: int | None, gid: int | None) -> dict[str, int]:
        """The changes of `chown` in the drive; None is not to be changed. Raises EPERM for another
        owner than the one that everything has, as vfat does."""
        changes = {}
        for name, asked, fixed in (("uid", uid, self.uid), ("gid", gid, self.gid)):
            if asked is None or asked == fixed:
                continue
            if fixed is not None:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            changes[name] = asked
        return changes


def attributes(
    node: Node,
    owner: Ownership,
    *,
    writable: bool = True,
    stored: int | None = None,
    target: str | None = None,
) -> pyfuse3.EntryAttributes:
    """The answer to `stat`. Nobody seems to be able to write what this account may only read.
    `stored` are the bytes that are not holes; None: all."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node.ino)
    entry.generation = 0
    entry.attr_timeout = TIMEOUT_SECONDS
    # The feed says nothing of the directories that show versions: a name may come to mean a file.
    entry.entry_timeout = 0.0 if node.drive == HISTORY else TIMEOUT_SECONDS
    withheld = owner.umask | (0 if writable else 0o222)
    entry.st_mode = pyfuse3.ModeT(TYPE_BITS[node.kind] | (node.mode & ~withheld))
    entry.st_nlink = links(node)
    entry.st_uid = node.uid if owner.uid is None else owner.uid
    entry.st_gid = node.gid if owner.gid is None else owner.gid
    entry.st_rdev = node.rdev
    shown = node.target if target is None else target
    entry.st_size = len((shown or "").encode()) if node.kind == "symlink" else node.size
    entry.st_blksize = 1 << 20
    entry.st_blocks = -(-(node.size if stored is None else stored) // PAGE) * (PAGE // 512)
    entry.st_atime_ns = node.atime_ns
    entry.st_mtime_ns = node.mtime_ns
    entry.st_ctime_ns = node.ctime_ns
    return entry


def links(node: Node) -> int:
    """st_nlink. Nobody has looked yet how many directories are in one that was never listed: 1 says
    that, to `find` for one."""
    if not node.is_directory:
        return max(node.links, 0)
    if not node.live:
        return 0
    return 1 if node.listed is None else node.subdirs + 2


def changes_asked(
    node: Node, owner: Ownership, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields
) -> dict[str, int]:
    """The changes of `chmod`, `chown` and `utimensat` in the drive. Raises EPERM; see
    `Ownership`."""
    changes = owner.owners(
        attr.st_uid if fields.update_uid else None, attr.st_gid if fields.update_gid else None
    )
    if fields.update_mode:
        changes["mode"] = owner.mode(node, stat.S_IMODE(attr.st_mode))
    if fields.update_atime:
        changes["atime_ns"] = kept_time(attr.st_atime_ns)
    if fields.update_mtime:
        changes["mtime_ns"] = kept_time(attr.st_mtime_ns)
    return changes


def is_bare(fields: pyfuse3.SetattrFields) -> bool:
    """Is nothing to be changed but ctime? So it is after `chown(path, -1, -1)`."""
    asked = (fields.update_mode, fields.update_uid, fields.update_gid, fields.update_size)
    return not any((*asked, fields.update_atime, fields.update_mtime))


def takes_setid(fields: pyfuse3.SetattrFields, uid: int) -> bool:
    """Is a file to lose setuid and setgid with this? The kernel leaves that to us (see `handshake`)
    when somebody without privileges truncates, and when the owner is changed, by whomever. Before
    somebody without privileges writes, it asks for a change of nothing. A kernel or libfuse that
    does it itself sends the new mode along."""
    if fields.update_mode:
        return False
    owner = fields.update_uid or fields.update_gid
    return owner or is_bare(fields) or (fields.update_size and uid != 0)


def without_setid(mode: int, member: bool) -> int:
    """The mode that is left. setgid without execution by the group means something else than being
    run as it: somebody who is a `member` of the group leaves it."""
    keeps_group = member and not mode & stat.S_IXGRP
    return mode & ~(stat.S_ISUID | (0 if keeps_group else stat.S_ISGID))


def setid_taken(node: Node, member: bool) -> dict[str, int]:
    """The change of mode by which a file loses setuid and setgid; nothing where it has none."""
    mode = without_setid(node.mode, member)
    return {} if mode == node.mode else {"mode": mode}


def is_member(node: Node, owner: Ownership, ctx: pyfuse3.RequestContext) -> bool:
    """May the caller leave the file setgid? Looked up only where it matters."""
    group = node.gid if owner.gid is None else owner.gid
    if ctx.uid == 0 or ctx.gid == group or not node.mode & stat.S_ISGID:
        return True
    try:
        return group in pyfuse3.get_sup_groups(ctx.pid)
    except OSError:  # the caller has ended, or is not to be seen from here
        return False


def kept_time(asked_ns: int) -> int:
    """The time nearest to `asked_ns` that there is."""
    return min(max(asked_ns, FIRST_NS), LAST_NS)


def missing(name_timeout: float) -> pyfuse3.EntryAttributes:
    """A negative answer that the kernel may remember: the name means nothing."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = name_timeout
    return entry
