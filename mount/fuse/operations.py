"""The FUSE adapter: pyfuse3's requests become calls of `Session`'s parts, and back.

Knows: what each request means, names as bytes, handles, lookup counts. Must not know: how anything
is stored, sent or merged. There is no policy here.

Every handler goes through `request`, the one place where exceptions become errnos: pyfuse3 ends
the whole mount on any other. An answer that is a view (`read`) is copied out by pyfuse3 before the
next task runs, so it may lie in a buffer that is used again.

Concurrency contract: `_handles` is changed on the trio thread only. Handlers run interleaved at
every await; edits of the tree themselves contain none.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import structlog
import trio

from cache.blocks.reader import Prefetch
from cache.metadata.tree import ROOT, Node
from mount.fuse import xattrs
from mount.fuse.attributes import (
    KINDS,
    SETID,
    TIMEOUT_SECONDS,
    Ownership,
    attributes,
    changes_asked,
    is_bare,
    kept_time,
    missing,
    takes_setid,
    without_setid,
)
from mount.fuse.invalidator import LookupCounts
from mount.fuse.names import decode
from mount.fuse.write_errors import WriteErrors
from mount.session.interrupts import CALLER, Caller
from mount.session.session import Session
from mount.session.version_names import SUFFIX
from remote.protocol.errors import NearlineError

log = structlog.get_logger(__name__)

O_DIRECT = getattr(os, "O_DIRECT", 0)  # macOS has none
DOT, DOTDOT, FIRST = 1, 2, 2  # readdir positions: an entry's is its cookie + FIRST
SOUGHT = 16  # entries that are described to who comes to a directory's middle, and wants one

P = ParamSpec("P")
T = TypeVar("T")


def request(
    handler: Callable[Concatenate[FileSystem, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[FileSystem, P], Coroutine[Any, Any, T]]:
    """Map every exception of a handler to the errno its system call returns; log the unexpected."""

    @functools.wraps(handler)
    async def wrapped(self: FileSystem, *args: P.args, **kwargs: P.kwargs) -> T:
        self._session.replayer.asked()
        self.requests[handler.__name__] += 1
        if args and isinstance(args[-1], pyfuse3.RequestContext):
            CALLER.set(Caller(args[-1].pid))
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except (OSError, NearlineError) as problem:
            raise pyfuse3.FUSEError(problem.errno or errno.EIO) from problem
        except Exception as bug:
            # The one place that must catch everything: an exception that left here would unmount.
            log.exception("request failed", request=handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from bug

    return wrapped  # type: ignore[return-value]  # mypy sees a _Wrapped object, not a method


@dataclass
class Handle:
    ino: int
    writable: bool = False
    fresh: bool = False  # was empty when it was opened: made by that, or truncated
    prefetch: Prefetch | None = None
    opener: int = 0  # the thread; pyfuse3 does not say who reads or syncs
    privileged: bool = False  # opened by root
    last: int = 0  # of a directory: the cookie at which this reading of it ends
    reached: int = 0  # of a directory: the position at which the last answer ended
    given_up: bool = False  # who waited for the server was told to end, and has had EINTR


class FileSystem(pyfuse3.Operations):
    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = False

    def __init__(self, session: Session, lookups: LookupCounts, owner: Ownership) -> None:
        super().__init__()
        self._session, self._lookups, self._owner = session, lookups, owner
        self._xattrs = xattrs.ExtendedAttributes(session.tree, session.edits)
        self.requests: Counter[str] = Counter()  # of the kernel, by name
        self.greeted = trio.Event()  # the kernel knows what we can do
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1
        self._write_errors = WriteErrors()
        self.direct_writes = False  # does the kernel keep its pages in step with them? `handshake`

    def init(self) -> None:
        """The answer is written before the next task runs."""
        self.greeted.set()

    # Names.

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
        return self._answer(node)

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

    def _answer(self, node: Node) -> pyfuse3.EntryAttributes:
        """Attributes for a reply that raises the kernel's lookup count."""
        self._lookups.looked_up(node.ino)
        return self._attributes(node)

    def _attributes(self, node: Node, writable: bool | None = None) -> pyfuse3.EntryAttributes:
        """`writable`: whether this account may write it, where that is known already."""
        if writable is None:
            writable = self._session.shares.is_writable(node)
        stored = self._stored(node)
        target = self._session.symlinks.target(node) if node.kind == "symlink" else None
        return attributes(node, self._owner, writable=writable, stored=stored, target=target)

    def _stored(self, node: Node) -> int:
        """What `st_blocks` tells. Of a file that is being written the kernel may hold bytes that
        are not here yet, and it will not ask again before a close: nobody may take it for empty
        meanwhile (GNU tar would not even open it)."""
        stored = self._session.stored_bytes(node)
        return max(1, stored) if self._session.replayer.snapshots.is_open(node.ino) else stored

    @request
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
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
        return self._open(node, flags | os.O_TRUNC, ctx), self._answer(node)

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
        await self._known(node)
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
        await self._known(session.tree.child(parent_inode_old, old), over)
        if over is not None:
            await session.ensure_listed(over.ino)
            await self._settle_before(parent_inode_old, old)
        replace = not flags & pyfuse3.RENAME_NOREPLACE
        session.edits.rename(parent_inode_old, old, parent_inode_new, new, replace=replace)
        session.collector.collect()

    async def _known(self, *nodes: Node | None) -> None:
        """Just after the start a long journal is still being read. Return when the part of it that
        changes of these depend on is there."""
        for node in nodes:
            if node is not None:
                await self._session.journal.known(node.file)

    async def _settle_before(self, parent: int, name: str) -> None:
        """A file that takes another's place must be on the disk before it does: after power loss
        there is the new one or the old one, whether or not the program called fsync."""
        node = self._session.tree.child(parent, name)
        if node is not None and node.is_regular:
            await self._session.contents.settle(node.ino)

    @request
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._session.symlinks.target(self._session.tree.node(inode)).encode()

    # Attributes.

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
        await self._known(self._session.tree.node(inode))
        node = self._session.tree.node(inode)
        self._session.shares.check_writable(node)
        changes = changes_asked(node, self._owner, attr, fields)
        if takes_setid(fields, ctx.uid) and not node.is_directory:
            changes |= self._setid_taken(node, self._is_member(node, ctx))
        if fields.update_size:
            self._session.contents.truncate(inode, attr.st_size)
        if changes or is_bare(fields):
            moment = kept_time(attr.st_ctime_ns) if fields.update_ctime else None
            self._session.edits.set_attributes(inode, changes, moment)
        return self._attributes(self._session.tree.node(inode))

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

    # Extended attributes.

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
        await self._known(self._session.tree.node(inode))
        self._xattrs.set(inode, name, value)

    @request
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._check_extended()
        await self._known(self._session.tree.node(inode))
        self._xattrs.remove(inode, name)

    @request
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        self._check_extended()
        return self._xattrs.names(inode)

    def _check_extended(self) -> None:
        """With `noxattr` the kernel is told once that there are none, and does not ask again."""
        if self._session.config.noxattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)

    # Directories.

    @request
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        self._session.subscriber.active()
        await self._session.ensure_listed(inode)
        last = self._session.tree.last_cookie(inode)
        return self._handle(Handle(inode, opener=ctx.pid, last=last))

    @request
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Positions are entry cookies: they never change and are never reused, so whatever stays
        in the directory is returned exactly once however it changes meanwhile. What comes after
        opendir or rewinddir is behind the end: else who renames what is read would never end.

        The kernel decides how many entries it takes, so each is described when it is its turn. The
        C library has room for thousands: who reads on gets them all, who seeks gets a few."""
        handle, tree = self._handles[fh], self._session.tree
        ino = handle.ino
        if start_id == 0:
            handle.last = tree.last_cookie(ino)
        most = None if start_id in (0, handle.reached) else SOUGHT
        dots = ((DOT, b".", ino), (DOTDOT, b"..", tree.parent(ino)))
        for position, name, dot in dots[start_id:]:
            entry = self._attributes(tree.node(dot))
            if not pyfuse3.readdir_reply(token, name, entry, position):
                return
            handle.reached = position
        own, may_write = tree.own_drive, self._session.shares.is_writable(tree.node(ROOT))
        with contextlib.closing(tree.listing(ino, start_id - FIRST, handle.last)) as listing:
            for one in itertools.islice(listing, most):
                writable = may_write if one.node.drive == own else None
                entry = self._attributes(one.node, writable)
                name, position = one.name.encode(), one.cookie + FIRST
                if not pyfuse3.readdir_reply(token, name, entry, position):
                    return
                handle.reached = position
                self._lookups.looked_up(one.node.ino)

    @request
    async def releasedir(self, fh: int) -> None:
        self._close(fh)

    @request
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        handle = self._handles[fh]
        CALLER.set(Caller(handle.opener))
        await self._session.sync_directory(handle.ino)

    # Files.

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
                self._take_setid(node, self._is_member(node, ctx))
        return self._open(node, flags, ctx)

    def _check_direct(self, flags: int) -> None:
        """Refuse O_DIRECT as file systems do that have none, where bytes could be lost by it."""
        if flags & O_DIRECT and not self.direct_writes:
            raise pyfuse3.FUSEError(errno.EINVAL)

    def _take_setid(self, node: Node, member: bool) -> None:
        if changes := self._setid_taken(node, member):
            self._session.edits.set_attributes(node.ino, changes)
            self._session.forget_attributes(node.ino)

    @staticmethod
    def _setid_taken(node: Node, member: bool) -> dict[str, int]:
        mode = without_setid(node.mode, member)
        return {} if mode == node.mode else {"mode": mode}

    def _is_member(self, node: Node, ctx: pyfuse3.RequestContext) -> bool:
        """May the caller leave the file setgid? Looked up only where it matters."""
        group = node.gid if self._owner.gid is None else self._owner.gid
        if ctx.uid == 0 or ctx.gid == group or not node.mode & stat.S_ISGID:
            return True
        try:
            return group in pyfuse3.get_sup_groups(ctx.pid)
        except OSError:  # the caller has ended, or is not to be seen from here
            return False

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
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(self._handle(handle)), keep_cache=True)

    def _handle(self, handle: Handle) -> int:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        self._lookups.opened(handle.ino, writable=handle.writable)
        if handle.writable:
            self._write_errors.opened(handle.ino, number)
        return number

    @request
    async def read(  # type: ignore[override]  # any buffer will do: pyfuse3 asks for no more
        self, fh: int, off: int, size: int
    ) -> bytes | memoryview:
        session, handle = self._session, self._handles[fh]
        session.shares.check_readable(session.tree.node(handle.ino))
        CALLER.set(Caller(handle.opener, handle.ino))
        return await session.contents.read(handle.ino, off, size, handle.prefetch)

    @request
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handles[fh]
        with self._write_errors.watched(handle.ino):
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
            await session.backpressure.for_room(ino, len(buf))
        with session.backpressure.incoming(len(buf)):
            return await session.contents.write(ino, off, buf)

    @request
    async def flush(self, fh: int) -> None:
        handle = self._handles[fh]
        self._write_errors.check(fh)
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
        self._close(fh)

    def _close(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        self._write_errors.released(handle.ino, fh)
        if handle.prefetch is not None:
            handle.prefetch.close()
        if handle.writable and self._session.replayer.snapshots.closed(handle.ino):
            self._session.replayer.wake()
        if self._lookups.closed(handle.ino, writable=handle.writable) and handle.ino != ROOT:
            self._session.collector.unused(handle.ino)
