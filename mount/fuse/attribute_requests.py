"""The kernel's requests about attributes, extended ones, and the file system itself.

Knows: which attributes a caller may change. Must not know: how they are stored and sent.
"""

from __future__ import annotations

import errno

import pyfuse3

from cache.metadata.tree import Node
from mount.fuse import xattrs
from mount.fuse.attributes import (
    Ownership,
    changes_asked,
    is_bare,
    is_member,
    kept_time,
    setid_taken,
    takes_setid,
)
from mount.fuse.invalidator import LookupCounts
from mount.fuse.requests import Requests, request
from mount.session.session import Session


class AttributeRequests(Requests):
    def __init__(self, session: Session, lookups: LookupCounts, owner: Ownership) -> None:
        super().__init__(session, lookups, owner)
        self._xattrs = xattrs.ExtendedAttributes(session.tree, session.edits)

    @request
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(self._session.tree.node(inode))

    @request
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        await self._journal_read(self._session.tree.node(inode))
        node = self._session.tree.node(inode)
        self._session.shares.check_writable(node)
        changes = changes_asked(node, self._owner, attr, fields)
        if takes_setid(fields, ctx.uid) and not node.is_directory:
            changes |= setid_taken(node, is_member(node, self._owner, ctx))
        if fields.update_size:
            self._session.contents.truncate(inode, attr.st_size)
        if changes or is_bare(fields):
            moment = kept_time(attr.st_ctime_ns) if fields.update_ctime else None
            if self._is_past(node) and changes.keys() <= {"mtime_ns", "atime_ns"}:
                return self._attributes(node)
            self._session.edits.set_attributes(inode, changes, moment)
        return self._attributes(self._session.tree.node(inode))

    def _is_past(self, node: Node) -> bool:
        """True if nobody can see the node any more. Linux hands over the times of a deleted file
        all the same, when it lets go of it."""
        return not node.live and node.links == 0 and not self._lookups.is_open(node.ino)

    @request
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """The account's quota and use; never waits for the network."""
        used, quota = self._session.usage()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = quota // 4096
        answer.f_bfree = answer.f_bavail = max(0, quota - used) // 4096
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 32
        answer.f_namemax = 255
        return answer

    @request
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # default_permissions: the kernel has checked

    @request
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        self._check_extended()
        text = xattrs.decode(name)
        if text == xattrs.STATUS:
            return self._session.status_of(inode).encode()
        return self._xattrs.get(inode, text)

    @request
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        self._check_extended()
        await self._journal_read(self._session.tree.node(inode))
        self._xattrs.set(inode, name, value)

    @request
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._check_extended()
        await self._journal_read(self._session.tree.node(inode))
        self._xattrs.remove(inode, name)

    @request
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        self._check_extended()
        return self._xattrs.names(inode)

    def _check_extended(self) -> None:
        """With `noxattr` the kernel is told once that there are none, and does not ask again."""
        if self._session.config.noxattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
