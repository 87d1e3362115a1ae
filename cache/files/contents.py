"""The bytes of regular files: an uploaded version with dirty layers over it.

Knows: which layers a node has, how reads and writes go through them, how a snapshot is frozen for
upload and becomes the version underneath, when dirty bytes become safe from power loss. Must not
know: FUSE, names, how uploads travel, what power loss leaves (`unsynced`, `power_loss`).

Concurrency: `_stacks` mirrors the `layer` and `extent` tables for the nodes in use, as
`_bare` says which have none; both are dropped on rollback. Everything is synchronous on the trio
thread except the awaits named here: `write` awaits the spool (the layer's `writing` count is raised
meanwhile, and `freeze` refuses a layer that is being written), `read` awaits the network only after
it has copied the dirty parts, `sync_bytes` awaits the disk (of a layer that has left `_stacks`
meanwhile nothing is noted: the next time tells), `sync_all` is alone (`_syncing_all`).

Invariants: at most one frozen layer per node, below the open one. Dirty bytes are removed only by
`commit` (the server has them) and `discard` (no name and no handle is left); a spool file only when
the transaction that dropped its layer survives power loss. What a file was before it was truncated
to nothing (`Layer.instead`) stays until what came after is synced.

Why one class: reading, writing, freezing and making safe change the same layers and the rows that
mirror them, and each must find what the others left between two awaits. What needs no rows is in
`layers`, `unsynced` and `snapshots`.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
import trio

from cache.blocks.reader import Prefetch
from cache.files.layers import BASE, ZERO, Layer, Segment, plan_read
from cache.files.spool import THREADED_WRITE, Spool, pread_all
from cache.files.unsynced import Change, UnsyncedRanges
from cache.metadata import clock
from cache.metadata.damage import DamagedState
from cache.metadata.database import Database
from cache.metadata.intervals import IntervalSet
from cache.metadata.tree import Node, Tree
from cache.namespace.edits import Edits, fail
from remote.protocol.content import MAX_FILE_SIZE
from remote.protocol.ids import FileId, VersionId

log = structlog.get_logger(__name__)


class VersionReader(Protocol):
    """Reads uploaded versions; `cache.blocks.reader.Reader` does."""

    def try_read(
        self, file: FileId, version: VersionId, offset: int, length: int, window: Prefetch | None
    ) -> memoryview | None: ...

    async def read(
        self,
        file: FileId,
        version: VersionId,
        size: int,
        offset: int,
        length: int,
        window: Prefetch | None,
    ) -> memoryview: ...


Stack = list[Layer]  # from top to bottom
# How long a change that nobody fsyncs may be lost to power loss: ext4's commit interval.
SYNC_SECONDS = 5.0
SYNC_AT_ONCE = 64  # inodes: half of the descriptors that the spool keeps
TIDY_AT_ONCE = 500
# Inodes of which it is remembered that they have no layer.
MAX_BARE = 4096


class Contents:
    """`edits` journals that a content changed; `on_change(inode, start, stop)` is told which bytes
    were overwritten or cut off."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        spool: Spool,
        reader: VersionReader,
        edits: Edits,
        on_change: Callable[[int, int, int], None],
    ) -> None:
        self._db, self._tree, self._spool, self._reader = db, tree, spool, reader
        self._edits, self._on_change = edits, on_change
        self._stacks: dict[int, Stack] = {}  # none is empty but inside a transaction
        self._bare: dict[int, None] = {}  # inodes known to have no layer. The oldest go first.
        self._writing: Counter[int] = Counter()
        self._idle = trio.Event()  # set, and replaced, when a layer stops being written
        self._dropped: list[int] = []  # layers whose spool files go after the transaction
        self._removable: list[int] = []  # and those that go when the transaction is on the disk
        self._syncing_all = trio.Lock()  # whoever takes from the front of those is alone
        self._buffer = bytearray(1 << 20)
        self.dirty_bytes = self._count_dirty()
        self._unsynced = self._find_unsynced()  # inodes
        db.on_rollback.append(self._forget_all)

    # --- the stack --------------------------------------------------------------------------------

    def stack(self, ino: int) -> Stack:
        """The node's layers, top first."""
        stack = self._stacks.get(ino)
        if stack is not None or ino in self._bare:
            return stack or []
        stack = self._load(ino)
        if stack:
            self._stacks[ino] = stack
        else:
            self._note_bare(ino)
        return stack

    def made(self, ino: int) -> None:
        """A fresh inode: it has none yet."""
        self._note_bare(ino)

    def _note_bare(self, ino: int) -> None:
        """Whoever asks of an inode may do so after it has gone (what was to be synced, uploads),
        and nobody tells when it is asked for the last time: so only so many are remembered."""
        self._stacks.pop(ino, None)
        while len(self._bare) >= MAX_BARE:
            del self._bare[next(iter(self._bare))]
        self._bare[ino] = None

    @property
    def remembered(self) -> int:
        """Of how many inodes the layers are in memory, or that there are none."""
        return len(self._stacks) + len(self._bare)

    def _load(self, ino: int) -> Stack:
        rows = self._db.all(
            "SELECT id, ino, below, size, version, average, safe, instead FROM layer"
            " WHERE ino = ? ORDER BY id DESC",
            ino,
        )
        return [self._load_extents(Layer(*row)) for row in rows]

    def _load_extents(self, layer: Layer) -> Layer:
        rows = self._db.all("SELECT start, stop FROM extent WHERE layer = ?", layer.id)
        layer.extents = IntervalSet((row[0], row[1]) for row in rows)
        parts = self._db.all("SELECT start, stop, digest FROM unsettled WHERE layer = ?", layer.id)
        layer.unsynced = UnsyncedRanges((row[0], row[1], row[2]) for row in parts)
        return layer

    def release(self, ino: int) -> None:
        """The kernel forgot the inode: keep nothing of it in memory."""
        self._stacks.pop(ino, None)
        self._bare.pop(ino, None)

    def _forget_all(self) -> None:
        self._stacks.clear()
        self._bare.clear()
        self._dropped.clear()
        self.dirty_bytes = self._count_dirty()
        self._unsynced |= self._find_unsynced()

    def _find_unsynced(self) -> set[int]:
        rows = self._db.all(
            "SELECT DISTINCT ino FROM layer WHERE instead IS NOT NULL"
            " OR id IN (SELECT DISTINCT layer FROM unsettled)"
        )
        return {row["ino"] for row in rows}

    def _count_dirty(self) -> int:
        row = self._db.one("SELECT COALESCE(SUM(stop - start), 0) FROM extent")
        assert row is not None
        return int(row[0])

    # --- reading ----------------------------------------------------------------------------------

    async def read(
        self, ino: int, offset: int, length: int, window: Prefetch | None
    ) -> bytes | memoryview:
        """Up to `length` bytes at `offset`, fewer only at the end of the file. What is returned is
        valid until the caller next awaits: it may be a buffer that is used again.

        Raises NearlineError when uploaded bytes are needed and cannot be had."""
        node = self._tree.node(ino)
        length = min(length, node.size - offset)
        if length <= 0:
            return b""
        stack = self.stack(ino)
        if not stack and offset + length <= node.base_size:
            return await self._read_base(node, offset, length, window)
        plan = plan_read(stack, node.base_size, offset, length)
        if all(segment.source != BASE for segment in plan):
            return self._assemble_local(plan, offset, length)
        return await self._assemble(node, plan, offset, length, window)

    async def _read_base(
        self, node: Node, offset: int, length: int, window: Prefetch | None
    ) -> bytes | memoryview:
        assert node.version is not None
        assert node.base_file is not None
        file, version = node.base_file, node.version
        here = self._reader.try_read(file, version, offset, length, window)
        if here is not None:
            return here
        return await self._reader.read(file, version, node.base_size, offset, length, window)

    def _assemble_local(self, plan: list[Segment], start: int, length: int) -> memoryview:
        """All from layers and zeros: no await, so one buffer serves every reader in turn."""
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        into = memoryview(self._buffer)[:length]
        self._fill(plan, start, into)
        return into

    def _fill(self, plan: list[Segment], start: int, into: memoryview) -> None:
        for source, offset, length in plan:
            part = into[offset - start : offset - start + length]
            if source == ZERO:
                part[:] = bytes(length)
            elif source != BASE:
                self._spool.read_into(source, offset, part)

    async def _assemble(
        self, node: Node, plan: list[Segment], start: int, length: int, window: Prefetch | None
    ) -> memoryview:
        """The dirty parts are copied first: the layers may be gone after an await."""
        into = memoryview(bytearray(length))
        self._fill(plan, start, into)
        for source, offset, size in plan:
            if source == BASE:
                data = await self._read_base(node, offset, size, window)
                into[offset - start : offset - start + size] = data
        return into

    # --- writing ----------------------------------------------------------------------------------

    async def write(self, ino: int, offset: int, data: bytes | memoryview) -> int:
        """Write all of `data`; the journal knows of it when this returns. Raises OSError."""
        if offset + len(data) > MAX_FILE_SIZE:
            raise fail(errno.EFBIG)
        if len(data) < THREADED_WRITE:
            await self._write_little(ino, offset, data)
            return len(data)
        layer = self._open_layer(ino)
        self._writing[layer.id] += 1
        try:
            whole = await self._write_spool(layer.id, offset, data)
            # It was read anew if a transaction of somebody else was rolled back meanwhile.
            layer = next((item for item in self.stack(ino) if item.id == layer.id), layer)
            self._record_write(ino, layer, offset, data, whole)
        finally:
            self._writing[layer.id] -= 1
            if not self._writing[layer.id]:
                del self._writing[layer.id]
                self._idle.set()
                self._idle = trio.Event()
        return len(data)

    async def _write_spool(self, layer: int, offset: int, data: bytes | memoryview) -> bytes:
        """On a full disk, after the files have gone that only wait for the journal to be safe."""
        try:
            return await self._spool.write(layer, offset, data)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._removable:
                raise
        await self.sync_all()
        return await self._spool.write(layer, offset, data)

    async def _write_little(self, ino: int, offset: int, data: bytes | memoryview) -> None:
        """`write` without an await before it is noted."""
        try:
            self._write_now(ino, offset, data)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._removable:
                raise
        else:
            return
        await self.sync_all()
        self._write_now(ino, offset, data)

    def _write_now(self, ino: int, offset: int, data: bytes | memoryview) -> None:
        """In one transaction, with the layer if it must be made. A layer whose bytes were refused
        stays, empty: what others keep of the inode's layers stays right."""
        refused: OSError | None = None
        with self._db.transaction():
            layer = self._open_layer(ino)
            try:
                whole = self._spool.write_now(layer.id, offset, data)
            except OSError as error:
                refused = error
            else:
                self._note_write(ino, layer, offset, data, whole)
        if refused is not None:
            raise refused
        self._on_change(ino, offset, offset + len(data))

    def _open_layer(self, ino: int) -> Layer:
        """The node's open layer; a new one over what is there if it has none."""
        stack = self.stack(ino)
        if stack and not stack[0].frozen:
            return stack[0]
        with self._db.transaction():
            size = self._tree.node(ino).size
            return self._add_layer(Layer(id=0, ino=ino, below=size, size=size, safe=size))

    def _add_layer(self, layer: Layer) -> Layer:
        cursor = self._db.run(
            "INSERT INTO layer (ino, below, size, safe, instead) VALUES (?, ?, ?, ?, ?)",
            layer.ino,
            layer.below,
            layer.size,
            layer.safe,
            layer.instead,
        )
        assert cursor.lastrowid is not None
        layer.id = cursor.lastrowid
        stack = self._stacks[layer.ino] = self.stack(layer.ino)
        self._bare.pop(layer.ino, None)
        stack.insert(0, layer)
        return layer

    def _record_write(
        self, ino: int, layer: Layer, start: int, data: bytes | memoryview, whole: bytes
    ) -> None:
        with self._db.transaction():
            self._note_write(ino, layer, start, data, whole)
        self._on_change(ino, start, start + len(data))

    def _note_write(
        self, ino: int, layer: Layer, start: int, data: bytes | memoryview, whole: bytes
    ) -> None:
        """In a transaction."""
        stop = start + len(data)
        self._note_unsynced(layer, start, data, whole)
        gone, added = layer.extents.add(start, stop)
        if added is not None:
            if gone[1:] or (gone and gone[0][0] != added[0]):
                self._db.run(
                    "DELETE FROM extent WHERE layer = ? AND start BETWEEN ? AND ?",
                    layer.id,
                    gone[0][0],
                    gone[-1][0],
                )
            self._db.run("INSERT OR REPLACE INTO extent VALUES (?, ?, ?)", layer.id, *added)
            self.dirty_bytes += (added[1] - added[0]) - sum(b - a for a, b in gone)
        node = self._tree.node(ino)
        size = max(node.size, stop)
        if size != layer.size:
            layer.size = size
            self._db.run("UPDATE layer SET size = ? WHERE id = ?", size, layer.id)
        if size != node.size:
            self._tree.update(ino, size=size)
        if self._edits.content_changed(node):
            # Until the kernel says when. It does at the end, unless what was written last was
            # written in the tick of a time that it has said: ours would stay, and differ.
            self._tree.touch(ino, clock.moment())

    def _note_unsynced(
        self, layer: Layer, start: int, data: bytes | memoryview, whole: bytes
    ) -> None:
        """Note what of a write the disk may not have. In its transaction, before its extents."""
        self._unsynced.add(layer.ino)
        new = layer.extents.gaps(start, start + len(data))
        self._note(layer, layer.unsynced.wrote(start, data, new, whole))

    def _note(self, layer: Layer, change: Change) -> None:
        """Bring the table of unsynced parts up to date."""
        for part in change.gone:
            self._db.run(
                "DELETE FROM unsettled WHERE layer = ? AND start = ?", layer.id, part.start
            )
        for part in change.come:
            self._db.run(
                "INSERT OR REPLACE INTO unsettled VALUES (?, ?, ?, ?)",
                layer.id,
                part.start,
                part.stop,
                part.digest,
            )

    def truncate(self, ino: int, size: int) -> None:
        """Cut off or extend with zeros; costs nothing whatever the size. Raises EFBIG."""
        if size > MAX_FILE_SIZE:
            raise fail(errno.EFBIG)
        if size == self._tree.node(ino).size:
            return
        with self._db.transaction():
            layer = self._layer_to_cut(ino, size)
            before = layer.extents.total
            # The spool file keeps its length: power loss may undo the truncation, which is not
            # synced, and then its bytes must be there.
            if layer.extents.cut(size):
                self._rewrite_extents(layer)
            self._note(layer, layer.unsynced.cut(size))
            self.dirty_bytes -= before - layer.extents.total
            layer.safe = size if layer.safe == layer.size else min(layer.safe, size)
            layer.below, layer.size = min(layer.below, size), size
            layer.cuts += 1
            self._db.run(
                "UPDATE layer SET below = ?, size = ?, safe = ? WHERE id = ?",
                layer.below,
                size,
                layer.safe,
                layer.id,
            )
            self._tree.update(ino, size=size)
            self._tree.touch(ino, clock.moment())
            self._edits.content_changed(self._tree.node(ino))
        self._on_change(ino, size, MAX_FILE_SIZE)

    def _layer_to_cut(self, ino: int, size: int) -> Layer:
        """The open layer; a fresh one when nothing of the file is left. A file that is written anew
        (`echo > file`, `cp`) must be there after power loss, the new one or the old one: so the
        old one stays until the new one is synced."""
        stack = self.stack(ino)
        top = stack[0] if stack and not stack[0].frozen else None
        if size or (top and (top.instead is not None or self._writing[top.id])):
            return self._open_layer(ino)
        if top is not None:
            stack.pop(0)
            self._db.run("UPDATE layer SET ino = 0 WHERE id = ?", top.id)
        self._unsynced.add(ino)
        return self._add_layer(Layer(id=0, ino=ino, below=0, size=0, instead=top.id if top else 0))

    def _rewrite_extents(self, layer: Layer) -> None:
        self._db.run("DELETE FROM extent WHERE layer = ?", layer.id)
        for start, stop in layer.extents:
            self._db.run("INSERT INTO extent VALUES (?, ?, ?)", layer.id, start, stop)

    # --- power loss -------------------------------------------------------------------------------

    async def sync(self, ino: int) -> None:
        """Return when the bytes written so far, and the journal that refers to them, survive power
        loss: bytes first, so that no extent ever promises bytes that are not there. That they are
        there is noted in between: who writes over them before that is on the disk would leave
        bytes that no digest proves."""
        await self.sync_bytes(ino)
        await self._db.sync()

    async def sync_bytes(self, ino: int) -> None:
        """Return when the bytes written so far survive power loss, if the journal does."""
        await self._sync_bytes([ino])

    async def _sync_bytes(self, inodes: Sequence[int]) -> None:
        """With one wait for the disk, and one transaction that notes it."""
        layers = [layer for ino in inodes for layer in self.stack(ino)]
        begun = [(layer, layer.unsynced.writes, layer.cuts, layer.size) for layer in layers]
        await self._spool.sync(*(layer.id for layer in layers))
        with self._db.transaction():
            for item in begun:
                self._note_synced(*item)
        for ino in inodes:
            if not self.stack(ino):
                self._unsynced.discard(ino)

    async def sync_in_background(self) -> None:
        """Make every change safe from power loss within seconds, until cancelled; and delete the
        spool files that nobody can need after one."""
        while True:
            if not (self._unsynced or self._removable):
                await self._db.changed.wait()
            await trio.sleep(SYNC_SECONDS)  # many changes are made safe at once
            try:
                await self.sync_all()
            except DamagedState:
                raise
            except OSError as error:  # of the disk; whoever calls fsync is told, too
                log.error("the_journal_is_not_safe_from_power_loss_yet", why=str(error))

    async def sync_all(self) -> None:
        async with self._syncing_all:
            await self._sync_all()

    async def _sync_all(self) -> None:
        unsynced = list(self._unsynced)
        for first in range(0, len(unsynced), SYNC_AT_ONCE):
            await self._sync_some(unsynced[first : first + SYNC_AT_ONCE])
        self.sweep()
        removable = list(self._removable)
        await self._db.sync()
        del self._removable[: len(removable)]
        await self._spool.remove_all(removable)

    async def _sync_some(self, inodes: list[int]) -> None:
        """All at once; one by one when there is one that cannot be."""
        try:
            await self._sync_bytes(inodes)
        except DamagedState:
            raise
        except OSError as error:
            if len(inodes) > 1:
                for ino in inodes:
                    await self._sync_some([ino])
            else:
                log.error("cannot_make_dirty_bytes_safe_yet", inode=inodes[0], why=str(error))

    async def tidy(self) -> None:
        """Delete the spool files that no layer names: a crash left them. Beside everything else, a
        few at a time, because a long journal has as many files."""
        found = sorted(await self._spool.found())
        self._never_use_again(found[-1:])
        for first in range(0, len(found), TIDY_AT_ONCE):
            some = found[first : first + TIDY_AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._db.all(f"SELECT id FROM layer WHERE id IN ({marks})", *some)
            # What was dropped a moment ago goes when that is on the disk.
            needed = {row["id"] for row in rows} | {*self._dropped, *self._removable}
            await self._spool.remove_all(item for item in some if item not in needed)
            await trio.lowlevel.checkpoint()

    def _never_use_again(self, highest: list[int]) -> None:
        """No new layer gets the number of a file that is about to be deleted. (Numbers that power
        loss took back come again; others do not.)"""
        row = self._db.one("SELECT seq FROM sqlite_sequence WHERE name = 'layer'")
        used = 0 if row is None else int(row[0])
        if highest and highest[0] > used:
            with self._db.transaction():
                self._db.run("DELETE FROM sqlite_sequence WHERE name = 'layer'")
                self._db.run("INSERT INTO sqlite_sequence VALUES ('layer', ?)", highest[0])

    def close(self) -> None:
        """The end of the process: what `sync_all` does, without the trio thread's help."""
        for ino in list(self._unsynced):
            for layer in list(self.stack(ino)):
                self._spool.sync_now(layer.id)
                self._note_synced(layer, layer.unsynced.writes, layer.cuts, layer.size)

    def _note_synced(self, layer: Layer, writes: int, cuts: int, size: int) -> None:
        """The layer, as it was after so many writes and cuts, is on the disk. Where it was cut
        since, or is not in use any more, the next time tells."""
        stack = self.stack(layer.ino)
        if not any(item is layer for item in stack) or layer.cuts != cuts:
            return
        if layer.unsynced or layer.instead is not None or layer.safe < size:
            with self._db.transaction():
                self._note(layer, layer.unsynced.synced(writes))
                self._drop_instead(layer)
                layer.safe = max(layer.safe, size)
                self._db.run("UPDATE layer SET safe = ? WHERE id = ?", layer.safe, layer.id)
        if not any(item.unsynced or item.instead is not None for item in stack):
            self._unsynced.discard(layer.ino)

    # --- snapshots --------------------------------------------------------------------------------

    def freeze(self, ino: int, version: VersionId) -> Layer | None:
        """Make the open layer the snapshot `version`; writes from now on go to a fresh layer.
        Returns None, and does nothing, while a write into it is under way."""
        stack = self.stack(ino)
        if not stack or stack[0].frozen:
            raise ValueError(f"inode {ino} has no open layer to freeze")
        if self._writing[stack[0].id]:
            return None
        with self._db.transaction():
            stack[0].version = version
            self._db.run("UPDATE layer SET version = ? WHERE id = ?", version, stack[0].id)
        return stack[0]

    def renew(self, ino: int, old: VersionId, version: VersionId) -> None:
        """The snapshot that was to be `old` becomes `version`: the server binds a version to the
        file it was begun for, and the bytes are another file's now. In a transaction."""
        layer = self.frozen(ino)
        if layer is not None and layer.version == old:
            layer.version = version
            self._db.run("UPDATE layer SET version = ? WHERE id = ?", version, layer.id)

    def frozen(self, ino: int) -> Layer | None:
        """The snapshot being uploaded."""
        stack = self.stack(ino)
        return stack[-1] if stack and stack[-1].frozen else None

    async def read_snapshot(self, ino: int, layer: Layer, offset: int, into: memoryview) -> None:
        """Fill `into` from the frozen layer and the version below, whatever was written since."""
        node = self._tree.node(ino)
        plan = plan_read([layer], node.base_size, offset, len(into))
        sources = {segment.source for segment in plan}
        if sources <= {ZERO}:  # the layer may have no file
            self._fill(plan, offset, into)
        elif BASE not in sources:
            with self._spool.lease(layer.id) as fd:
                await trio.to_thread.run_sync(_fill_from, fd, plan, offset, into)
        else:
            into[:] = await self._assemble(node, plan, offset, len(into), None)

    def average(self, layer: Layer, choice: int) -> int:
        """The chunk size the layer is cut with: `choice`, unless one was chosen before."""
        if layer.average is None:
            with self._db.transaction():
                layer.average = choice
                self._db.run("UPDATE layer SET average = ? WHERE id = ?", choice, layer.id)
        return layer.average

    async def wait_idle(self) -> None:
        """Return when some layer stopped being written."""
        await self._idle.wait()

    def commit(self, ino: int, file: FileId, version: VersionId, size: int) -> None:
        """The server has `version`: it takes the place of the frozen layer. In a transaction."""
        layer = self.frozen(ino)
        if layer is not None and layer.version == version:
            stack = self.stack(ino)
            self._drop_layer(stack.pop())
            if not stack:
                self._note_bare(ino)
        self._tree.update(ino, version=version, base_file=file, base_size=size)

    def discard(self, ino: int) -> None:
        """Drop the node's layers: nobody can read them any more. In a transaction."""
        for layer in self.stack(ino):
            self._drop_layer(layer)
        self._unsynced.discard(ino)
        self.release(ino)

    def _drop_layer(self, layer: Layer) -> None:
        self._drop_instead(layer)
        self._drop_rows(layer.id)

    def _drop_instead(self, layer: Layer) -> None:
        """Let go of the layer that this one replaces: it is not needed any more."""
        if layer.instead:
            self._drop_rows(layer.instead)
        if layer.instead is not None:
            layer.instead = None
            self._db.run("UPDATE layer SET instead = NULL WHERE id = ?", layer.id)

    def _drop_rows(self, layer: int) -> None:
        row = self._db.one("SELECT SUM(stop - start) FROM extent WHERE layer = ?", layer)
        self.dirty_bytes -= 0 if row is None else row[0] or 0
        for table, key in (("extent", "layer"), ("unsettled", "layer"), ("layer", "id")):
            self._db.run(f"DELETE FROM {table} WHERE {key} = ?", layer)
        self._dropped.append(layer)

    def sweep(self) -> None:
        """Note the spool files of dropped layers: they are deleted by `sync_all`. After their
        transaction has committed."""
        self._removable += self._dropped
        self._dropped.clear()


def _fill_from(fd: int, plan: list[Segment], start: int, into: memoryview) -> None:
    """`Contents._fill` for one layer, by descriptor: for worker threads."""
    for source, offset, length in plan:
        part = into[offset - start : offset - start + length]
        if source == ZERO:
            part[:] = bytes(length)
        else:
            pread_all(fd, offset, part)
