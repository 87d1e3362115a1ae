"""The kernel's requests about the content of files: opening, reading, writing, closing.

Knows: which thread opened a file, what a write takes from its mode, and when `close` and `fsync`
wait. Must not know: where bytes are kept, how they are sent.

An answer that is a view (`read`) is copied out by pyfuse3 before the next task runs, so it may lie
in a buffer that is used again.
"""

from __future__ import annotations

import errno
import os
import stat

import pyfuse3

from cache.metadata.tree import Node
from mount.fuse.attributes import SETID, is_member, setid_taken
from mount.fuse.handles import Handle
from mount.fuse.name_requests import NameRequests
from mount.fuse.requests import request
from mount.session.interrupts import CALLER, Caller

# macOS has none.
O_DIRECT = getattr(os, "O_DIRECT", 0)


class FileRequests(NameRequests):
    """With those about names, because `create` makes a name and opens it."""

    # Does the kernel keep its pages in step with direct writes? See `handshake`.
    direct_writes = False

    @request
    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._check_direct(flags)
        node = await self._create(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        self._session.contents.made(node.ino)
        return self._open(node, flags | os.O_TRUNC, ctx), self._answer(node)

    @request
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self._session.subscriber.active()
        node = self._session.tree.node(inode)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._session.shares.check_writable(node)
            self._check_direct(flags)
        else:
            self._session.shares.check_readable(node)
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
            self._session.contents.truncate(inode, 0)
            if ctx.uid != 0:
                self._take_setid(node, is_member(node, self._owner, ctx))
        return self._open(node, flags, ctx)

    def _check_direct(self, flags: int) -> None:
        """Refuse O_DIRECT as file systems do that have none, where bytes could be lost by it."""
        if flags & O_DIRECT and not self.direct_writes:
            raise pyfuse3.FUSEError(errno.EINVAL)

    def _take_setid(self, node: Node, member: bool) -> None:
        if changes := setid_taken(node, member):
            self._session.edits.set_attributes(node.ino, changes)
            self._session.forget_attributes(node.ino)

    def _open(self, node: Node, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        writable, fresh = flags & os.O_ACCMODE != os.O_RDONLY, bool(flags & os.O_TRUNC)
        prefetch = self._session.reader.prefetch()
        if writable:
            self._session.replayer.snapshots.opened(node.ino)
            if not (fresh or self._session.stored_bytes(node)):
                self._session.forget_attributes(node.ino)  # see `_stored`
        handle = Handle(
            node.ino, writable, fresh, prefetch, CALLER.get().thread, privileged=ctx.uid == 0
        )
        # An inode's bytes change only through this mount (a remote version gets a new inode), so
        # what the kernel has cached stays right.
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(self._handles.opened(handle)), keep_cache=True
        )

    @request
    async def read(  # type: ignore[override]  # any buffer will do: pyfuse3 asks for no more
        self, fh: int, off: int, size: int
    ) -> bytes | memoryview:
        await self.turns.come()
        session, handle = self._session, self._handles[fh]
        session.shares.check_readable(session.tree.node(handle.ino))
        CALLER.set(Caller(handle.opener, handle.ino))
        if not handle.is_read:
            handle.is_read = True
            session.next_files.begun(handle.ino)
        return await session.contents.read(handle.ino, off, size, handle.prefetch)

    @request
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handles[fh]
        with self._handles.write_errors.watched(handle.ino):
            return await self._write(handle, off, buf)

    async def _write(self, handle: Handle, off: int, buf: bytes) -> int:
        session, ino = self._session, handle.ino
        node = session.tree.node(ino)
        session.shares.check_readable(node)
        if node.mode & SETID and not handle.privileged:
            # Before a write through its cache the kernel asks for it (`takes_setid`). Past the
            # cache it only marks the write, where pyfuse3 does not show it.
            self._take_setid(node, member=True)
        if not session.backpressure.fits(len(buf)):
            await session.backpressure.wait_for_space(ino, len(buf))
        with session.backpressure.incoming(len(buf)):
            return await session.contents.write(ino, off, buf)

    @request
    async def flush(self, fh: int) -> None:
        handle = self._handles[fh]
        self._handles.write_errors.check(fh)
        CALLER.set(Caller(handle.opener))
        remote = self._session.config.sync == "remote"
        if handle.writable and remote and not (handle.given_up or self._is_unused(handle)):
            await self._sync(handle)
        if handle.writable:
            self._session.check_quota(handle.ino)

    def _is_unused(self, handle: Handle) -> bool:
        """Is the file as empty as opening it has left it? Then this close need not be the last: a
        shell closes what it opened once before anything is written. Nobody shall see such a
        version, so it is sent when no handle is left that could write."""
        return handle.fresh and self._session.tree.node(handle.ino).size == 0

    @request
    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self._handles[fh]
        CALLER.set(Caller(handle.opener))
        session, ino = self._session, handle.ino
        session.replayer.snapshots.at_rest(ino, now=session.config.sync == "remote")
        await self._sync(handle)
        session.check_quota(ino)

    async def _sync(self, handle: Handle) -> None:
        try:
            await self._session.sync_file(handle.ino)
        except InterruptedError:
            handle.given_up = True  # the close that follows, at the program's end, waits no more
            raise

    @request
    async def release(self, fh: int) -> None:
        self._handles.closed(fh)
