"""From a snapshot to a manifest: freeze, cut, encode, send what the drive lacks.

Knows: how a file's bytes become chunks that the server has, resuming where it stopped. Must not
know: when an upload is due (`uploads`), what order operations take (`schedule`), HTTP
(`remote.transfer.upload`).

A file that is being written from the start is cut while it grows: chunks whose boundaries are
certain are sent before the file is closed ("early" pieces). At the snapshot they count as an old
version whose later overwrites are dirty, so one algorithm, `chunking.Cutter`, does both.

Concurrency: one task per operation; what is `prepared` and `_early` are changed on the
trio thread without an await between reading and writing an entry. Encoding runs in worker threads
on buffers nobody else holds, small chunks together. A chunk is in memory from reading to sent;
`_in_flight` bounds the bytes of all. The memory is used again (`windows`) when the last chunk in it
was sent.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import msgspec
import outcome
import trio

from cache.files.contents import Contents
from cache.files.layers import Layer, changed_ranges, hole_ranges
from cache.metadata.database import Database
from cache.metadata.intervals import IntervalSet, Range
from cache.metadata.journal import Journal
from cache.metadata.operations import Op, new_id
from cache.metadata.tree import Node, Tree
from cache.sync.prepared import Prepared, Progress
from cache.sync.windows import Window, Windows
from remote.protocol.chunking import (
    Cutter,
    Fresh,
    Hole,
    Keep,
    NeedData,
    average_for,
    cut,
    is_well_cut,
)
from remote.protocol.codec import Encoded, encode_chunk
from remote.protocol.content import EMPTY, HOLE, MAX_FILE_SIZE, Manifest, Piece
from remote.protocol.errors import NearlineError, Refused, Retry, Unreachable
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import Content
from remote.transfer.bundling import Beside
from remote.transfer.limits import SMALL, Claim, PrioritySemaphore
from remote.transfer.together import Answer, Together
from remote.transfer.upload import Sender, Upload

# How much a growing file must have gained before more of it is sent.
EARLY_STEP = 16 << 20
# A chunk counts at least as so many bytes under way: what it costs beside them.
LEAST_SHARE = 4 << 10
# Bytes under way of files that are still being written: the processor is for who writes.
EARLY_WINDOW = 4 << 20
# Threads that encode small chunks, so many at a time: a hop to a thread costs more than one does.
ENCODERS = 2
ENCODED_TOGETHER = 32

ManifestOf = Callable[[FileId, VersionId], Awaitable[Manifest]]
KeepManifest = Callable[[VersionId, Manifest], None]
KeepBlocks = Callable[[bytes, memoryview], Awaitable[None]]


class BaseGone(NearlineError):
    """The version below a local change may not be read any more, and is not cached whole. The
    change is kept, and shown."""

    retry = Retry.NEVER


@dataclass
class Early:
    """The part [0, upto) of a growing file that was cut already; `dirty` are the ranges written
    again since. A piece is a hole until its chunk is known, and in `unsent` until the drive has it;
    all are sent when no task of it is `running`."""

    upload: Upload
    average: int
    upto: int = 0
    pieces: list[Piece] = field(default_factory=list)
    unsent: set[int] = field(default_factory=set)
    dirty: IntervalSet = field(default_factory=IntervalSet)
    running: bool = False
    ended: trio.Event = field(default_factory=trio.Event)  # its last task

    def known(self) -> list[Piece]:
        """The pieces from the start whose chunks are known."""
        return list(takewhile(lambda piece: piece.id != HOLE, self.pieces))

    def cut_back(self) -> None:
        """To what was sent: no more of it is under way."""
        del self.pieces[min(self.unsent, default=len(self.pieces)) :]
        self.unsent.clear()
        self.upto = sum(piece.length for piece in self.pieces)


class Uploader:
    """`manifest_of` gives a version's manifest, `keep_manifest` remembers one that was made here;
    `keep_blocks(chunk id, plain)` puts bytes that were just sent into the block cache. `on_ready`
    is told of an operation whose bytes are there, or are not after all, `on_arrival` that some were
    taken."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        contents: Contents,
        sender: Sender,
        manifest_of: ManifestOf,
        keep_manifest: KeepManifest,
        keep_blocks: KeepBlocks,
        prepared: Prepared,
        on_ready: Callable[[Op], None],
        on_arrival: Callable[[], None],
    ) -> None:
        self._db, self._tree, self._journal, self._contents = db, tree, journal, contents
        self._sender, self._manifest_of = sender, manifest_of
        self._keep_manifest, self._keep_blocks = keep_manifest, keep_blocks
        self._in_flight = PrioritySemaphore(sender.window)  # bytes
        self._early_in_flight = PrioritySemaphore(EARLY_WINDOW)
        encoders = trio.Semaphore(ENCODERS)
        self._encoding = Together[memoryview, Encoded](
            lambda: encoders, lambda queue: range(min(len(queue), ENCODED_TOGETHER)), _encode
        )
        self.windows = Windows()
        self._early: dict[int, Early] = {}
        self._prepared, self._on_ready, self._on_arrival = prepared, on_ready, on_arrival
        self.ready, self.progress = prepared.ready, prepared.progress

    # --- snapshots --------------------------------------------------------------------------------

    async def prepare(self, op: Op) -> None:
        """Bring the operation's bytes to the server; afterwards `ready` has its content, unless the
        operation was folded away meanwhile. Raises NearlineError; calling again goes on where it
        stopped."""
        node = self._tree.node(op.ino)
        await self._freeze(op)
        if op.version is None or self._is_gone(op):
            return
        if op.body.renew:
            self._renew(op, op.version)
        layer = self._contents.frozen(op.ino)
        if op.key in self._prepared.resend and (layer is None or layer.version != op.version):
            layer = _untouched(node)
            manifest = await self._send(op, node, layer)
        elif layer is None or layer.version != op.version:
            manifest = EMPTY if node.version is None else await self._base_manifest(node)
        else:
            manifest = await self._send(op, node, layer)
        if not self._is_gone(op):
            base = op.body.base or node.version
            self._keep_manifest(op.version, manifest)
            self.ready[op.key] = Content(version=op.version, base=base, manifest=manifest)
            self._on_ready(op)
        self.progress.pop(op.key, None)

    async def _base_manifest(self, node: Node) -> Manifest:
        assert node.version is not None
        try:
            return await self._manifest_of(node.base_file or node.file, node.version)
        except Refused as error:
            raise BaseGone(f"what was changed cannot be read any more: {error}") from error

    async def _base_of(self, node: Node, layer: Layer) -> Manifest | None:
        """The version below a snapshot; what was written anew as a whole can do without."""
        try:
            return None if node.version is None else await self._base_manifest(node)
        except BaseGone:
            if layer.below == 0 or layer.extents.covers(0, layer.below):
                return None
            raise

    async def read(self, ino: int, layer: Layer, offset: int, into: memoryview) -> None:
        """Fill `into` from a snapshot."""
        try:
            await self._contents.read_snapshot(ino, layer, offset, into)
        except Refused as error:
            raise BaseGone(f"what was changed cannot be read any more: {error}") from error

    async def _freeze(self, op: Op) -> None:
        while op.version is None and not self._is_gone(op) and not self.snapshot(op):
            await self._contents.wait_idle()

    def _is_gone(self, op: Op) -> bool:
        """After each wait, also that for this task's first turn, its file may have been deleted,
        or renamed over another one."""
        return self._journal.get(op.key) is not op

    def snapshot(self, op: Op) -> bool:
        """The operation's content is what the file holds now; False while a write is under way."""
        early = self._early.get(op.ino)
        goes_on = early is not None and early.upload.file == op.file
        version = early.upload.version if early and goes_on else new_id()
        with self._db.transaction():
            stack = self._contents.stack(op.ino)
            if stack and self._contents.freeze(op.ino, version) is None:
                return False
            self._journal.rewrite(op, version=version)
            return True

    def is_written(self, ino: int) -> bool:
        """True if it holds bytes that are in no snapshot."""
        stack = self._contents.stack(ino)
        return bool(stack) and not stack[0].frozen

    def _renew(self, op: Op, old: VersionId) -> None:
        fresh = new_id()
        with self._db.transaction():
            self._contents.renew(op.ino, old, fresh)
            body = msgspec.structs.replace(op.body, renew=False)
            self._journal.rewrite(op, version=fresh, body=body)

    async def _send(self, op: Op, node: Node, layer: Layer) -> Manifest:
        """Cut the snapshot, sending each chunk that is new; the manifest of all of it."""
        early, known = self._early.get(op.ino), 0
        base = await self._base_of(node, layer)
        if base is not None:
            average, old, dirty = base.average, base.pieces, changed_ranges(layer)
        elif early is not None and node.version is None:
            average, old = early.average, early.known()
            known = len(old)
            dirty = [*early.dirty, (sum(piece.length for piece in old), layer.size)]
        else:
            average = self._contents.average(layer, average_for(layer.size, None))
            old, dirty = [], [(0, layer.size)]
        unwanted = self._prepared.resend.get(op.key, set())
        if base is not None and not is_well_cut(base):  # of another program: cut all of it anew
            unwanted = {piece.id for piece in old if piece.id != HOLE}
        again = ranges_of(old, unwanted, layer.size)
        dirty = list(IntervalSet([*dirty, *again])) if again else dirty
        assert op.version is not None
        parent, since = self.parent_on_server(op), op.body.base or node.version
        upload = Upload(op.version, op.file, parent, since, self._beside(node))
        before = self.progress.get(op.key)  # why it failed is shown until it moves again
        error = before.error if before is not None else None
        progress = Progress(self._tree.path(op.ino), 0, layer.size, error)
        self.progress[op.key] = progress
        cutter = Cutter(average, layer.size, old, dirty, hole_ranges(layer))
        pieces = await _Run(self, op, upload, layer, progress).drive(cutter)
        if known and early is not None:  # what was under way when this began
            if early.running:
                await early.ended.wait()
            if len(early.pieces) < known:
                raise Unreachable("what was sent while the file grew has not arrived")
        return Manifest(size=layer.size, average=average, pieces=pieces)

    def _beside(self, node: Node) -> Beside | None:
        """The place of a file, if its small chunks may be stored together with those of others:
        that is for the owner of the drive."""
        if node.drive != self._tree.own_drive:
            return None
        place = self._tree.place(node.ino)
        return (0, 0) if place is None else place[:2]

    def parent_on_server(self, op: Op) -> FileId | None:
        """The nearest directory above that the server knows: it authorises the upload of a file
        whose own creation is still in the journal. (Where the operation makes it, which is not
        where it is seen here after its share has ended.) None: the server knows the file."""
        made: Op | None = op if op.kind == "create" else None
        parent = None
        while made is not None:
            parent, ops = made.body.parent, self._journal.of_file(made.body.parent)
            made = next((item for item in ops if item.kind == "create"), None)
        return parent

    async def encode(self, chunk: memoryview) -> Encoded:
        if len(chunk) < SMALL:
            return await self._encoding.do(chunk)
        return await trio.to_thread.run_sync(encode_chunk, chunk)

    async def enter(self, chunk: memoryview) -> None:
        """Wait until `chunk` may be under way; `leave` ends it."""
        self._in_flight.change(self._sender.window)
        await self._in_flight.acquire(max(len(chunk), LEAST_SHARE), Claim())

    def leave(self, chunk: memoryview) -> None:
        self._in_flight.release(max(len(chunk), LEAST_SHARE))

    async def store(self, upload: Upload, encoded: Encoded, plain: memoryview, op: Op) -> None:
        """Send one chunk; what was sent is kept in the block cache."""
        sent = await self._sender.store(upload, encoded)
        if sent:
            self._on_arrival()
        progress = self.progress.get(op.key)
        if sent and progress is not None:
            progress.moved, progress.error = True, None
        await self._keep_blocks(encoded.descriptor.id, plain)

    def fail(self, op: Op, why: str) -> bool:
        """Show why the operation waits; whether bytes of it were sent before it failed."""
        if op.key not in self.progress:
            size = self._tree.node(op.ino).size
            self.progress[op.key] = Progress(self._tree.path(op.ino), 0, size)
        progress = self.progress[op.key]
        moved, progress.moved, progress.error = progress.moved, False, why
        return moved

    def resend(self, op: Op, missing: Iterable[bytes]) -> None:
        """The server does not have these chunks of the operation's version, or they are not ours to
        refer to: the next `prepare` sends them, though the version it is made from has them."""
        self.ready.pop(op.key, None)
        self._on_ready(op)
        self._prepared.resend.setdefault(op.key, set()).update(missing)

    def tidy(self, under_way: Collection[str]) -> None:
        """Nothing is shown or kept of what has left the journal (a local edit may have folded it
        away when its bytes were there) and is not `under_way`."""
        self._prepared.tidy(lambda key: self._journal.get(key) is not None or key in under_way)
        for ino in [ino for ino, early in self._early.items() if not early.running]:
            if not self._journal.refers_to(ino):
                del self._early[ino]
        if not under_way and not self._early:
            self.windows.rest()

    # --- growing files ----------------------------------------------------------------------------

    def note_write(self, ino: int, start: int, stop: int) -> None:
        """Bytes [start, stop) of the inode were overwritten or cut off."""
        early = self._early.get(ino)
        if early is not None and start < early.upto:
            early.dirty.add(start, min(stop, MAX_FILE_SIZE))

    def wants_early(self, ino: int) -> bool:
        """True if there is enough of a growing file that nobody has sent."""
        early = self._early.get(ino)
        if early is not None and early.running:
            return False
        stack = self._contents.stack(ino)
        if len(stack) != 1 or stack[0].frozen or stack[0].below:
            return False
        upto = early.upto if early else 0
        return stack[0].extents.covers(upto, upto + EARLY_STEP)

    async def send_early(self, op: Op) -> None:
        """Cut and send what has become certain of a file that is still being written."""
        if self._is_gone(op):
            return
        early = self._early.get(op.ino)
        if early is None:
            beside = self._beside(self._tree.node(op.ino))
            upload = Upload(new_id(), op.file, self.parent_on_server(op), None, beside)
            layer = self._contents.stack(op.ino)[0]
            average = self._contents.average(layer, average_for(EARLY_STEP, None))
            early = self._early[op.ino] = Early(upload, average)
        early.running, early.ended = True, trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                while self._still_growing(op, early):
                    await self._early_step(op, early, nursery)
        finally:
            early.running = False
            early.cut_back()
            early.ended.set()
            if self._is_gone(op):
                self._early.pop(op.ino, None)

    def _still_growing(self, op: Op, early: Early) -> bool:
        stack = self._contents.stack(op.ino)
        return (
            not self._is_gone(op)
            and op.version is None
            and self._early.get(op.ino) is early
            and len(stack) == 1
            and stack[0].extents.covers(early.upto, early.upto + EARLY_STEP)
        )

    async def _early_step(self, op: Op, early: Early, nursery: trio.Nursery) -> None:
        """Cut the next bytes; what is sent of them goes on beside the steps that follow."""
        start, window = early.upto, self.windows.take(EARLY_STEP)
        layer = self._contents.stack(op.ino)[0]
        early.upto = start + EARLY_STEP  # writes from here on into this range are noticed
        try:
            await self._contents.read_snapshot(op.ino, layer, start, window.view)
            cuts = functools.partial(cut, window.view, early.average, final=False)
            at = 0
            for length in await trio.to_thread.run_sync(cuts):
                await self._early_in_flight.acquire(length, Claim())
                if op.version is not None:  # the rest is for the snapshot
                    self._early_in_flight.release(length)
                    break
                window.hold()
                view, index = window.view[at : at + length], len(early.pieces)
                early.pieces.append(Piece(HOLE, length))
                early.unsent.add(index)
                nursery.start_soon(self._store_early, op, early, index, view, window)
                at += length
            early.upto = start + at
        finally:
            window.release()

    async def _store_early(
        self, op: Op, early: Early, index: int, view: memoryview, window: Window
    ) -> None:
        try:
            encoded = await self.encode(view)
            early.pieces[index] = Piece(encoded.descriptor.id, len(view))
            await self.store(early.upload, encoded, view, op)
            early.unsent.discard(index)
        finally:
            self._early_in_flight.release(len(view))
            window.release()

    def forget(self, op: Op) -> None:
        """The operation is done or gone."""
        if op.has_content:
            self._early.pop(op.ino, None)
        self._prepared.forget(op.key)
        self._on_ready(op)


async def _encode(chunks: list[memoryview]) -> list[Answer[Encoded]]:
    def encode() -> list[Answer[Encoded]]:
        return [outcome.capture(encode_chunk, chunk) for chunk in chunks]

    return await trio.to_thread.run_sync(encode)


def ranges_of(pieces: Sequence[Piece], ids: set[bytes], size: int) -> list[Range]:
    """Where chunks `ids` are in a file of these pieces, as far as it goes up to `size`."""
    found, offset = [], 0
    for piece in pieces:
        if piece.id in ids and offset < size:
            found.append((offset, min(offset + piece.length, size)))
        offset += piece.length
    return found


def _untouched(node: Node) -> Layer:
    """The snapshot of a node that has no layer: all of it shows through."""
    return Layer(id=0, ino=node.ino, below=node.base_size, size=node.base_size)


class _Run:
    """One pass of a cutter over a snapshot."""

    def __init__(
        self, uploader: Uploader, op: Op, upload: Upload, layer: Layer, progress: Progress
    ) -> None:
        self._uploader, self._op, self._upload, self._layer = uploader, op, upload, layer
        self._progress = progress
        self._pieces: list[Piece] = []

    async def drive(self, cutter: Cutter) -> list[Piece]:
        window = self._uploader.windows.take(0)
        async with trio.open_nursery() as nursery:
            for step in cutter:
                match step:
                    case NeedData(offset, length):
                        window.release()
                        window = self._uploader.windows.take(length)
                        await self._uploader.read(self._op.ino, self._layer, offset, window.view)
                        cutter.feed(window.view)
                    case Keep(piece, _):
                        self._add(piece, piece.length)
                    case Hole(_, length):
                        self._add(Piece(HOLE, length), length)
                    case Fresh(_, length, data):
                        await self._uploader.enter(data)
                        self._pieces.append(Piece(HOLE, length))
                        window.hold()
                        nursery.start_soon(self._store, len(self._pieces) - 1, data, window)
        window.release()
        return self._pieces

    def _add(self, piece: Piece, done: int) -> None:
        self._pieces.append(piece)
        self._progress.bytes_done += done

    async def _store(self, index: int, data: memoryview, window: Window) -> None:
        try:
            encoded = await self._uploader.encode(data)
            await self._uploader.store(self._upload, encoded, data, self._op)
        finally:
            self._uploader.leave(data)
            window.release()
        self._pieces[index] = Piece(encoded.descriptor.id, len(data))
        self._progress.bytes_done += len(data)
