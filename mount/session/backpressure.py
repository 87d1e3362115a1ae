"""When a system call waits for the server: `--sync=remote`, and dirty bytes at their limit.

Knows: what such a call waits for, what ends the wait, and with which errno. Must not know: FUSE,
how anything is sent (`replayer`).

Nobody waits for a server that is known not to answer: `--sync=remote` gives ENETUNREACH, a writer
at the limit ENOSPC. Whatever the errno, the bytes and the journal stay, and are sent later.

Dirty bytes are bounded exactly: room for a write is set aside (`incoming`) before its bytes arrive,
so writes that are under way together do not pass the limit together. Only a single write larger
than the limit itself is let through, alone.

Concurrency: on the trio thread. `wait_for_space` returns without an await after its last look, so
`incoming` must follow at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

import trio

from cache.files.contents import Contents
from cache.metadata.journal import Journal
from cache.metadata.operations import Op, stuck
from cache.metadata.tree import Node, Tree
from cache.sync.replayer import Replayer

# Long enough to connect, and to be refused or answered.
TRY_SECONDS = 5.0


class Backpressure:
    """`require_online` raises NearlineError while it is known that the server does not answer;
    whoever learns of a change of that calls `reachability_changed`."""

    def __init__(
        self,
        limit: int,
        tree: Tree,
        journal: Journal,
        contents: Contents,
        replayer: Replayer,
        require_online: Callable[[], None],
        is_offline: Callable[[], bool],
    ) -> None:
        self._limit, self._tree, self._journal = limit, tree, journal
        self._contents, self._replayer = contents, replayer
        self._require_online, self._is_offline = require_online, is_offline
        self._connectivity_changed = trio.Event()
        self._incoming = 0  # bytes of writes that have room, and are not counted as dirty yet
        self._write_over = trio.Event()  # set, and replaced, when such a write is over

    def reachability_changed(self) -> None:
        """The server is to be had, or not any more."""
        self._connectivity_changed.set()
        self._connectivity_changed = trio.Event()

    async def until_given_up(self) -> None:
        """Return when nothing could be sent for `TRY_SECONDS`: a try that might find the server
        again has been made meanwhile, by who flushes."""
        while True:
            while not self._is_offline():
                await self._connectivity_changed.wait()
            with trio.move_on_after(TRY_SECONDS) as trying:
                while self._is_offline():
                    await self._connectivity_changed.wait()
            if trying.cancelled_caught:
                return

    # --- until the server has it ------------------------------------------------------------------

    async def until_sent(self, node: Node) -> None:
        """Return when the server has every change of a file, or of a directory and the names in it.
        Raises OSError (EIO: refused, EDQUOT), Unreachable."""

        def is_of(op: Op) -> bool:
            body = op.body
            return op.ino == node.ino or (
                node.is_directory and node.file in (body.parent, body.new_parent)
            )

        await self._journal.wait_for_all()  # at the start of a mount with a long one
        if not any(is_of(op) for op in self._journal):
            return
        left: list[Op] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_in_vain, is_of, node, nursery.cancel_scope)
            left = await self._replayer.flush(is_of)
            nursery.cancel_scope.cancel()
        if left:
            raise OSError(errno.EIO, f"the server refused: {self._why(left)}")
        if any(is_of(op) for op in self._journal):
            self._check_quota(is_of, node)
            self._require_online()

    def _why(self, left: list[Op]) -> str:
        said = [op.refused for op in left if op.refused]
        return said[0] if said else "another change that must come first"

    async def _cancel_when_in_vain(
        self, which: Callable[[Op], bool], node: Node, waiting: trio.CancelScope
    ) -> None:
        """Whoever waits for the server is not left waiting for room, or for the network."""
        while not (self._is_offline() or self._is_drive_full(which, node)):
            await first_of(self._replayer.full_drives.changed, self._connectivity_changed)
        waiting.cancel()

    def _is_drive_full(self, which: Callable[[Op], bool], node: Node) -> bool:
        return self._replayer.full_drives.is_full(node.drive) and any(
            which(op) and op.has_content and self._contents.stack(op.ino) for op in self._journal
        )

    def _check_quota(self, which: Callable[[Op], bool], node: Node) -> None:
        if self._is_drive_full(which, node):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    # --- until there is room ----------------------------------------------------------------------

    def fits(self, size: int) -> bool:
        """True if `size` more bytes may become dirty now."""
        busy = self._contents.dirty_bytes + self._incoming
        return not busy or busy + size <= self._limit

    @contextlib.contextmanager
    def incoming(self, size: int) -> Iterator[None]:
        """The room is taken until the bytes are counted as dirty, or did not arrive."""
        self._incoming += size
        try:
            yield
        finally:
            self._incoming -= size
            self._write_over.set()
            self._write_over = trio.Event()

    async def wait_for_space(self, ino: int, size: int) -> None:
        """Wait while dirty bytes are being sent. Raises EDQUOT when the inode's drive is full, and
        ENOSPC when nothing that would make room can be sent."""
        while not self.fits(size):
            if self._is_offline():
                raise self._no_space()
            if self._replayer.full_drives.is_full(self._tree.node(ino).drive):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            if not self._incoming and not self._something_leaves():
                raise self._no_space()
            changed = self._journal.changed, self._replayer.full_drives.changed
            with self._replayer.expedited(self._open_and_dirty()):
                await first_of(*changed, self._connectivity_changed, self._write_over)

    def _no_space(self) -> OSError:
        return OSError(errno.ENOSPC, f"{self._limit} bytes wait for the server already")

    def _something_leaves(self) -> bool:
        """Will the server take dirty bytes, as far as is known? (Looking at what is stuck takes a
        look at the whole journal, so first for one that is not even suspected.)"""
        full_drives = self._replayer.full_drives
        kept = stuck(self._journal) if self._journal.has_refused else set[str]()
        for op in self._journal:
            if op.has_content and op.key not in kept and self._contents.stack(op.ino):
                node = self._tree.find(op.ino)
                if node is not None and not full_drives.is_full(node.drive):
                    return True
        return False

    def _open_and_dirty(self) -> set[str]:
        """The operations of files that are being written: their snapshots are taken now, or who
        writes one large file would wait for half a minute."""
        found = set()
        for ino in self._replayer.snapshots.open_inodes():
            node = self._tree.find(ino)
            op = None if node is None else self._journal.open_content(node.file, ino)
            if op is not None and self._contents.stack(ino):
                found.add(op.origin)
        return found


async def first_of(*events: trio.Event) -> None:
    """Return when one of them is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
