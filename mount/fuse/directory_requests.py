"""The kernel's requests about open directories.

Knows: positions in a directory, and how much is described to whom. Must not know: how a listing is
had from the server.
"""

from __future__ import annotations

import contextlib
import itertools

import pyfuse3

from cache.metadata.tree import ROOT
from mount.fuse.handles import Handle
from mount.fuse.requests import Requests, request
from mount.session.interrupts import CALLER, Caller

# readdir positions: an entry's is its cookie + FIRST.
DOT, DOTDOT, FIRST = 1, 2, 2
# Entries that are described to who comes to a directory's middle, and wants one.
SOUGHT = 16
# And to who reads on, before others have their turn: some milliseconds. The kernel has room for
# ten times as many, and asks again.
AT_ONCE = 500


class DirectoryRequests(Requests):
    @request
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        self._session.subscriber.active()
        await self._session.visit_directory(inode)
        last = self._session.tree.last_cookie(inode)
        return self._handles.opened(Handle(inode, opener=ctx.pid, last=last))

    @request
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Positions are entry cookies: they never change and are never reused, so whatever stays
        in the directory is returned exactly once however it changes meanwhile. What comes after
        opendir or rewinddir is behind the end: else who renames what is read would never end.

        The kernel decides how many entries it takes, so each is described when it is its turn. The
        C library has room for thousands: who reads on gets many, who seeks gets a few."""
        await self.turns.come()
        handle, tree = self._handles[fh], self._session.tree
        ino = handle.ino
        if start_id == 0:
            handle.last = tree.last_cookie(ino)
        most = AT_ONCE if start_id in (0, handle.reached) else SOUGHT
        dots = ((DOT, b".", ino), (DOTDOT, b"..", tree.parent(ino)))
        for position, name, dot in dots[start_id:]:
            entry = self._attributes(tree.node(dot))
            if not pyfuse3.readdir_reply(token, name, entry, position):
                return
            handle.reached = position
        own, may_write = tree.own_drive, self._session.shares.is_writable(tree.node(ROOT))
        with contextlib.closing(tree.listing(ino, start_id - FIRST, handle.last)) as listing:
            for item in itertools.islice(listing, most):
                writable = may_write if item.node.drive == own else None
                entry = self._attributes(item.node, writable)
                name, position = item.name.encode(), item.cookie + FIRST
                if not pyfuse3.readdir_reply(token, name, entry, position):
                    return
                handle.reached = position
                self._lookups.looked_up(item.node.ino)

    @request
    async def releasedir(self, fh: int) -> None:
        self._handles.closed(fh)

    @request
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        handle = self._handles[fh]
        CALLER.set(Caller(handle.opener))
        await self._session.sync_directory(handle.ino)
