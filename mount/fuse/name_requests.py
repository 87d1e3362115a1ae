"""The kernel's requests about names: looking up, making, removing, renaming.

Knows: names as bytes, and when a directory must be listed first. Must not know: how names are
stored, journalled or merged.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence

import pyfuse3
import trio

from cache.metadata.tree import Node
from mount.fuse.attributes import KINDS, TIMEOUT_SECONDS, missing
from mount.fuse.names import decode
from mount.fuse.requests import Requests, request
from mount.session.version_names import SUFFIX

FORGOTTEN_AT_ONCE = 500  # inodes, some milliseconds


class NameRequests(Requests):
    @request
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._session.subscriber.active()
        text = decode(name)
        node = await self._find(parent_inode, text)
        if node is None:
            # Whether there are versions to show changes without the name's own doing.
            return missing(0.0 if text.endswith(SUFFIX) else TIMEOUT_SECONDS)
        answer = self._answer(node)
        if self._session.in_doubt(parent_inode):
            answer.entry_timeout = 0.0  # ask again: the server may know otherwise
        return answer

    async def _find(self, parent: int, name: str) -> Node | None:
        tree = self._session.tree
        if name == ".":
            return tree.node(parent)
        if name == "..":
            return tree.node(tree.parent(parent))
        node = tree.child(parent, name)
        if node is None:
            directory = tree.node(parent)
            if directory.listed is None and directory.live:
                await self._session.ensure_listed(parent)
                node = tree.child(parent, name)
        return node or await self._session.versions.find(parent, name)

    @request
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel tells of tens of thousands at once (memory is short, a directory was moved
        elsewhere), and waits for no answer: whoever does wait for one comes in between."""
        for first in range(0, len(inode_list), FORGOTTEN_AT_ONCE):
            if first:
                await trio.lowlevel.checkpoint()
            self._forget(inode_list[first : first + FORGOTTEN_AT_ONCE])

    def _forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """One that was looked up since the kernel told is found to be in use."""
        unused = []
        for ino, times in inode_list:
            if self._lookups.forgotten(ino, times):
                self._session.contents.release(ino)
                unused.append(ino)
            elif self._lookups.looks_up(ino):
                self._session.look_up_again(ino)
        self._session.collector.unused(*unused)

    @request
    async def mknod(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return self._answer(await self._create(parent_inode, name, mode, ctx, rdev=rdev))

    @request
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        bits = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._answer(await self._create(parent_inode, name, bits, ctx))

    @request
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            text = target.decode()
        except UnicodeDecodeError:
            raise pyfuse3.FUSEError(errno.EILSEQ) from None
        mode = stat.S_IFLNK | 0o777
        return self._answer(await self._create(parent_inode, name, mode, ctx, target=text))

    async def _create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        ctx: pyfuse3.RequestContext,
        *,
        rdev: int = 0,
        target: str | None = None,
    ) -> Node:
        text = decode(name)
        await self._session.ensure_listed(parent)
        return self._session.edits.create(
            parent,
            text,
            KINDS[stat.S_IFMT(mode) or stat.S_IFREG],  # type: ignore[arg-type]  # keys of Kind
            stat.S_IMODE(mode),
            ctx.uid,
            ctx.gid,
            rdev=rdev,
            target=target,
        )

    @request
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        text = decode(new_name)
        await self._session.ensure_listed(new_parent_inode)
        return self._answer(self._session.edits.link(inode, new_parent_inode, text))

    @request
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._remove(parent_inode, name, directory=False)

    @request
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._remove(parent_inode, name, directory=True)

    async def _remove(self, parent: int, name: bytes, *, directory: bool) -> None:
        text = decode(name)
        await self._session.ensure_listed(parent)
        node = self._session.tree.child(parent, text)
        if directory and node is not None:
            await self._session.ensure_listed(node.ino)
        await self._journal_read(node)
        self._session.edits.unlink(parent, text, directory=directory)
        self._session.collector.collect()

    @request
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        old, new = decode(name_old), decode(name_new)
        if flags & ~(pyfuse3.RENAME_EXCHANGE | pyfuse3.RENAME_NOREPLACE):
            raise pyfuse3.FUSEError(errno.EINVAL)
        session = self._session
        for parent in (parent_inode_old, parent_inode_new):
            await session.ensure_listed(parent)
        if flags & pyfuse3.RENAME_EXCHANGE:
            session.edits.exchange(parent_inode_old, old, parent_inode_new, new)
            return
        over = session.tree.child(parent_inode_new, new)
        await self._journal_read(session.tree.child(parent_inode_old, old), over)
        if over is not None:
            await session.ensure_listed(over.ino)
            await self._sync_before_replacing(parent_inode_old, old)
        replace = not flags & pyfuse3.RENAME_NOREPLACE
        session.edits.rename(parent_inode_old, old, parent_inode_new, new, replace=replace)
        session.collector.collect()

    async def _sync_before_replacing(self, parent: int, name: str) -> None:
        """A file that takes another's place must be on the disk before it does: after power loss
        there is the new one or the old one, whether or not the program called fsync."""
        node = self._session.tree.child(parent, name)
        if node is not None and node.is_regular:
            await self._session.contents.sync_bytes(node.ino)

    @request
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._session.symlinks.target(self._session.tree.node(inode)).encode()
