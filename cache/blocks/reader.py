"""Reading a version through the cache: what is here at once, what is not by fetching it once.

Knows: how layout, block cache, runs and read-ahead play together. Must not know: FUSE, inodes,
local changes (the mount layers dirty bytes over this), how anything is fetched or stored.

THE REPLY CONTRACT. `try_read` and `read` answer a memoryview that is valid until the caller's next
checkpoint or next call of this reader, whichever is first: it is a view into LMDB's map (THE VIEW
CONTRACT of `cache.blocks.cache`) or a buffer that the next read will reuse. pyfuse3 copies a
handler's reply before any other task runs, so a handler may return it as it is; anybody else copies
it.

Concurrency: trio thread only. Any number of `read`s may be under way.
- Between looking a block up (table of runs, then cache) and joining or starting its run there is
  no checkpoint; so each block is fetched once however many readers want it.
- Each `read` has its own reply buffer from `_replies` until it returns; it goes back just before,
  which is safe because of the reply contract.
- `_layouts` is a bounded cache over the manifest store; `_looks` holds one event for each version
  whose manifest is being asked for, and who finds one waits for it instead of asking.
- Fetches live in the nursery of `run`, and outlive the readers that started them. A handle's
  `Prefetch` remembers the read-ahead runs it started, and cancels those that nobody waits for.
"""

from __future__ import annotations

import errno
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import trio

from cache.blocks.block_map import Layout, Part, all_blocks
from cache.blocks.cache import Block, BlockCache, Buffer
from cache.blocks.fetches import Reply, Run, Runs
from cache.blocks.readahead import INITIAL_WINDOW, MAX_WINDOW, ReadAhead, Window
from remote.protocol.content import BLOCK_SIZE, HOLE, Manifest
from remote.protocol.errors import NearlineError
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import Span
from remote.transfer.download import Downloader
from remote.transfer.limits import BufferPool

# 4 MiB: what a reader that catches up waits for at most.
MAX_RUN_BLOCKS = 16
MIN_RUN_BLOCKS = 2
# Chunks located in one request when a file is read in sequence: again when fewer than half of them
# are left, so that nobody ever waits for it.
LOCATE_AHEAD = 64
# Located with the manifest when a file is read from its start: what is wanted in the round trip
# that locating more takes.
FIRST_SPAN = 16 * 1024 * 1024
# Bytes to read ahead on a line of which nothing is known.
USUAL_WINDOW = 16 * 1024 * 1024
# For each so many bytes that will be wanted a connection is made while it is asked where they are.
BYTES_A_CONNECTION = 2 * 1024 * 1024
# From this window on, chunks are prefetched whole.
WHOLE_CHUNKS_FROM = 1024 * 1024
# Pieces of all parsed manifests kept in memory.
LAYOUT_PIECES = 500_000
MAX_LAYOUTS = 4096
WARM_RUNS = 12
REPLY_POOL_BYTES = 16 * 1024 * 1024


class ManifestStore(Protocol):
    """Where manifests are kept between mounts. Synchronous, on the trio thread."""

    def manifest(self, version: VersionId) -> Manifest | None: ...

    def keep_manifest(self, version: VersionId, manifest: Manifest) -> None: ...

    def keep_manifests(self, manifests: Mapping[VersionId, Manifest]) -> None: ...


class Prefetch:
    """The read-ahead of one open handle; made by `Reader.prefetch`, closed with the handle."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.ahead = ReadAhead()
        self.runs: set[Run] = set()

    def close(self) -> None:
        """The handle is gone: what was read ahead for it alone is given up."""
        self._reader.end_prefetch(self)


class Reader:
    """Reads versions through a block cache; see the module header for the contracts."""

    def __init__(
        self, blocks: BlockCache, downloader: Downloader, manifests: ManifestStore
    ) -> None:
        self._blocks = blocks
        self._downloader = downloader
        self._manifests = manifests
        self._runs = Runs(blocks, downloader)
        self._replies = BufferPool(keep=REPLY_POOL_BYTES)
        self._layouts: OrderedDict[VersionId, Layout] = OrderedDict()
        self._layout_pieces = 0
        self._looks: dict[VersionId, _Look] = {}
        self._prefetching: set[Prefetch] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry fetches until cancelled. Start it with `nursery.start` before the first read."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # --- reading ---------------------------------------------------------------------------------

    def try_read(
        self,
        file: FileId,
        version: VersionId,
        offset: int,
        length: int,
        window: Prefetch | None = None,
    ) -> memoryview | None:
        """Up to `length` bytes from `offset`, if all of them are on this machine; else None.

        Clipped at the end of the version. Without a checkpoint; without a copy when the bytes lie
        in one cached block. THE REPLY CONTRACT in the header applies. `window` is told of the read
        only when it is answered.
        """
        layout = self._layout(version)
        if layout is None:
            return None
        view = self._read_here(layout, offset, length)
        if view is not None and window is not None:
            # Starting runs looks at the index only, so it ends no view.
            self._prefetch(window, layout, file, version, self._ask(window, offset, length))
        return view

    async def read(
        self,
        file: FileId,
        version: VersionId,
        size: int,
        offset: int,
        length: int,
        window: Prefetch | None = None,
    ) -> memoryview:
        """Up to `length` bytes of `version` (which has `size` bytes) from `offset`, fetching what
        is not here. THE REPLY CONTRACT in the header applies.

        Cancelling a read stops no fetch. Raises `Unreachable`, `Refused`, `ProtocolError`,
        `CorruptContent`.
        """
        length = min(length, size - offset)
        if length <= 0:
            return memoryview(b"")
        layout = await self._look(file, version, _first_span(size, offset, length, window))
        parts = list(layout.parts(offset, length))
        wanted = None if window is None else self._ask(window, offset, length)
        is_sequence = window is not None and window.ahead.size > 0
        buffer = self._replies.take(length)
        reply = Reply(offset, memoryview(buffer)[:length])
        try:
            missing = self._gather(reply, parts)
            ahead = layout.chunks_after(offset, LOCATE_AHEAD) if is_sequence and missing else ()
            self._fetch(reply, file, version, missing, ahead)
            if window is not None:
                if missing:  # what is waited for sets out first
                    await trio.lowlevel.checkpoint()
                self._prefetch(window, layout, file, version, wanted)
            await reply.wait()
        finally:
            reply.abandon()
            self._replies.give(buffer)
        return memoryview(buffer)[: min(length, layout.size - offset)]

    def _read_here(self, layout: Layout, offset: int, length: int) -> memoryview | None:
        """The bytes if all are here: one slice in place, several copied together."""
        parts = list(layout.parts(offset, length))
        if not parts:
            return memoryview(b"")
        if len(parts) == 1 and parts[0].chunk != HOLE:
            view = self._blocks.get(parts[0].chunk, parts[0].block)
            if view is not None:
                return view[parts[0].start : parts[0].start + parts[0].length]
        total = parts[-1].offset + parts[-1].length - offset
        buffer = self._replies.take(total)
        reply = Reply(offset, memoryview(buffer)[:total])
        missing = self._gather(reply, parts)
        self._replies.give(buffer)
        return None if missing else memoryview(buffer)[:total]

    def _gather(self, reply: Reply, parts: Iterable[Part]) -> list[Part]:
        """Copy every part that is on this machine; the others."""
        missing = []
        for part in parts:
            if part.chunk == HOLE:
                reply.zero(part)
                continue
            run = self._runs.find(part.chunk, part.block)
            if run is not None and run.has_landed:
                run.join(reply, part)
                continue
            plain = self._blocks.get(part.chunk, part.block)
            if plain is None:
                missing.append(part)
            else:
                reply.copy(part, plain)
        return missing

    def _fetch(
        self,
        reply: Reply,
        file: FileId,
        version: VersionId,
        missing: Sequence[Part],
        ahead: Sequence[bytes],
    ) -> None:
        """Have every missing part delivered to `reply` by a run of its own or of others."""
        blocks = [(part.chunk, part.block) for part in missing]
        self._start(file, version, blocks, most=MAX_RUN_BLOCKS, ahead=ahead, urgent=True)
        for part in missing:
            run = self._runs.find(part.chunk, part.block)
            assert run is not None
            run.join(reply, part)

    def _start(
        self,
        file: FileId,
        version: VersionId,
        blocks: Iterable[tuple[bytes, int]],
        *,
        most: int,
        ahead: Sequence[bytes],
        urgent: bool,
    ) -> list[Run]:
        """Start runs for those blocks that are not on their way, neighbours together, at most
        `most` in one. Unless `urgent` (known to be missing) blocks in the cache are left out."""
        if self._nursery is None:
            raise RuntimeError("Reader.run has not been started")
        spawn = self._nursery.start_soon
        runs: list[Run] = []
        for chunk, group in _neighbours(self._not_here(blocks, urgent=urgent), most):
            run = self._runs.start(spawn, file, version, chunk, group, urgent=urgent, ahead=ahead)
            runs.append(run)
        return runs

    def _not_here(
        self, blocks: Iterable[tuple[bytes, int]], *, urgent: bool
    ) -> Iterator[tuple[bytes, int]]:
        for chunk, block in dict.fromkeys(blocks):
            if self._runs.find(chunk, block) is None and (
                urgent or not self._blocks.contains(chunk, block)
            ):
                yield chunk, block

    # --- reading ahead ---------------------------------------------------------------------------

    def prefetch(self) -> Prefetch:
        """The read-ahead state of a newly opened handle."""
        return Prefetch(self)

    def end_prefetch(self, window: Prefetch) -> None:
        """See `Prefetch.close`."""
        self._prefetching.discard(window)
        for run in window.runs:
            self._runs.cancel(run)
        window.runs.clear()

    def _ask(self, window: Prefetch, offset: int, length: int) -> Window | None:
        """Tell the window of a read; what to prefetch: as much as the line carries, and half of the
        memory budget at most, in equal shares for all handles that are read in sequence."""
        sharers = len(self._prefetching | {window})
        most = min(MAX_WINDOW, self._downloader.memory.limit // 2)
        limit = self._downloader.link.window(INITIAL_WINDOW, USUAL_WINDOW, most, trips=2) // sharers
        wanted = window.ahead.on_read(offset, length, limit)
        if window.ahead.size:
            self._prefetching.add(window)
        else:
            self._prefetching.discard(window)
        return wanted

    def _prefetch(
        self,
        window: Prefetch,
        layout: Layout,
        file: FileId,
        version: VersionId,
        wanted: Window | None,
    ) -> None:
        """Start what `wanted` asks for and nobody has. While the cache takes nothing (disk full)
        there is nowhere to put it."""
        if wanted is None or wanted.start >= layout.size or not self._runs.is_storing:
            return
        end = min(wanted.end, layout.size)
        if window.ahead.size >= WHOLE_CHUNKS_FROM:
            end = max(end, min(layout.chunk_end(end - 1), end + MAX_RUN_BLOCKS * BLOCK_SIZE))
        most = window.ahead.size // 4 // BLOCK_SIZE
        blocks = [
            (part.chunk, part.block)
            for part in layout.parts(wanted.start, end - wanted.start)
            if part.chunk != HOLE
        ]
        ahead = layout.chunks_after(wanted.start, LOCATE_AHEAD)
        window.runs = {run for run in window.runs if not run.done.is_set()}
        window.runs.update(
            self._start(
                file,
                version,
                blocks,
                most=max(MIN_RUN_BLOCKS, min(MAX_RUN_BLOCKS, most)),
                ahead=ahead,
                urgent=False,
            )
        )
        if window.ahead.size >= WHOLE_CHUNKS_FROM and self._nursery is not None:
            self._downloader.locate_ahead(self._nursery.start_soon, file, version, ahead)

    # --- whole versions and chunks ---------------------------------------------------------------

    async def warm(self, file: FileId, version: VersionId) -> None:
        """Bring every block of `version` into the cache; returns when they are there. Raises what
        `read` does, and OSError (ENOSPC) when the cache takes no more."""
        layout = await self._look(file, version, None)
        underway: deque[Run] = deque()
        chunks = layout.chunks()
        names = list(chunks)
        for number, chunk in enumerate(names):
            blocks = [(chunk, block) for block in all_blocks(chunks[chunk])]
            ahead = names[number + 1 : number + 1 + LOCATE_AHEAD]
            joined = {run for block in blocks if (run := self._runs.find(*block)) is not None}
            started = self._start(
                file, version, blocks, most=MAX_RUN_BLOCKS, ahead=ahead, urgent=False
            )
            for run in [*joined, *started]:
                run.is_kept = True
                underway.append(run)
            while len(underway) > WARM_RUNS:
                await self._finish(underway.popleft())
        while underway:
            await self._finish(underway.popleft())

    async def _finish(self, run: Run) -> None:
        await run.done.wait()
        if run.error is not None:
            raise run.error
        if not self._runs.is_storing:
            raise OSError(errno.ENOSPC, "the cache has no room for more")

    def cached_bytes(self, version: VersionId) -> int | None:
        """Bytes of `version` that can be read offline, holes included; None without its manifest.
        One index lookup (2 us) for each block."""
        layout = self._layout(version)
        if layout is None:
            return None
        return sum(
            part.length
            for part in layout.parts(0, layout.size)
            if part.chunk == HOLE or self._blocks.contains(part.chunk, part.block)
        )

    async def put_plain(self, chunk: bytes, plain: Buffer) -> None:
        """Put a whole chunk of plain bytes, just made or uploaded here, into the cache. The buffer
        must not change until this returns. The caller vouches for the id."""
        view = memoryview(plain)
        starts = range(0, len(view), BLOCK_SIZE)
        items: list[Block] = [
            (chunk, block, view[start : start + BLOCK_SIZE]) for block, start in enumerate(starts)
        ]
        await self._blocks.put_many(items)

    # --- small files that may be read next -------------------------------------------------------

    def is_here(self, version: VersionId) -> bool:
        """Can all of `version` be read without asking anybody? For small ones: it looks at each
        block's index (2 us)."""
        layout = self._layout(version)
        return layout is not None and not any(self._missing_blocks(layout))

    async def fetch_whole(self, wanted: Sequence[tuple[FileId, VersionId]]) -> None:
        """Start to fetch all of some small versions (at most `MAX_WHOLE`) that nobody waits for:
        where they are is asked in one request, and what lies together comes together. Returns when
        that is known; the blocks come by themselves. Raises what `LocateApi` does; then each is
        asked for by who reads it."""
        unknown = [
            (file, version)
            for file, version in wanted
            if self._layout(version) is None and version not in self._looks
        ]
        looks = {version: _Look() for _, version in unknown}
        self._looks |= looks
        try:
            if unknown:
                manifests = await self._downloader.look_at_several(unknown)
                self._manifests.keep_manifests(manifests)
                for version, manifest in manifests.items():
                    self._remember(version, manifest)
        finally:
            for version, look in looks.items():
                del self._looks[version]
                look.done.set()
        if not self._runs.is_storing:
            return
        layouts = {version: self._layout(version) for _, version in wanted}
        self._start_together(wanted, layouts)
        for file, version in wanted:
            if (layout := layouts[version]) is not None:
                blocks = self._missing_blocks(layout)
                self._start(file, version, blocks, most=MAX_RUN_BLOCKS, ahead=(), urgent=False)

    def _start_together(
        self, wanted: Sequence[tuple[FileId, VersionId]], layouts: Mapping[VersionId, Layout | None]
    ) -> None:
        """Chunks of which nothing is here or on its way, and which lie next to each other."""
        if self._nursery is None:
            raise RuntimeError("Reader.run has not been started")
        of: dict[bytes, tuple[FileId, VersionId]] = {}
        for file, version in wanted:
            layout = layouts[version]
            for chunk, length in ({} if layout is None else layout.chunks()).items():
                blocks = [(chunk, block) for block in all_blocks(length)]
                if len(list(self._not_here(blocks, urgent=False))) == len(blocks):
                    of[chunk] = file, version
        for group in self._downloader.neighbours(list(of)):
            members = [(*of[located.descriptor.id], located) for located in group]
            self._runs.start_together(self._nursery.start_soon, members)

    def _missing_blocks(self, layout: Layout) -> Iterator[tuple[bytes, int]]:
        for part in layout.parts(0, layout.size):
            if part.chunk != HOLE and not self._blocks.contains(part.chunk, part.block):
                yield part.chunk, part.block

    # --- manifests -------------------------------------------------------------------------------

    def keep_manifest(self, version: VersionId, manifest: Manifest) -> None:
        """A manifest learned elsewhere (made here by the uploader): no need to ask for it."""
        self._manifests.keep_manifest(version, manifest)
        self._remember(version, manifest)

    def _layout(self, version: VersionId) -> Layout | None:
        layout = self._layouts.get(version)
        if layout is not None:
            self._layouts.move_to_end(version)
            return layout
        manifest = self._manifests.manifest(version)
        return None if manifest is None else self._remember(version, manifest)

    async def _look(self, file: FileId, version: VersionId, span: Span | None) -> Layout:
        """The layout of `version`; the manifest is asked for once however many want it. The chunks
        under `span` are located in the same round trip."""
        while True:
            layout = self._layout(version)
            if layout is not None:
                return layout
            look = self._looks.get(version)
            if look is None:
                return await self._look_first(file, version, span)
            await look.done.wait()
            if look.error is not None:
                raise look.error

    async def _look_first(self, file: FileId, version: VersionId, span: Span | None) -> Layout:
        look = self._looks[version] = _Look()
        try:
            if span is not None and self._nursery is not None:
                connections = max(1, span.length // BYTES_A_CONNECTION)
                self._nursery.start_soon(self._downloader.connect_ahead, connections)
            manifest = await self._downloader.first_look(file, version, span)
            self._manifests.keep_manifest(version, manifest)
            return self._remember(version, manifest)
        except NearlineError as error:
            look.error = error
            raise
        finally:
            del self._looks[version]
            look.done.set()

    def _remember(self, version: VersionId, manifest: Manifest) -> Layout:
        old = self._layouts.pop(version, None)
        layout = self._layouts[version] = Layout(manifest)
        self._layout_pieces += len(layout) - (0 if old is None else len(old))
        while len(self._layouts) > 1 and (
            self._layout_pieces > LAYOUT_PIECES or len(self._layouts) > MAX_LAYOUTS
        ):
            self._layout_pieces -= len(self._layouts.popitem(last=False)[1])
        return layout


class _Look:
    """A manifest being asked for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: NearlineError | None = None


def _first_span(size: int, offset: int, length: int, window: Prefetch | None) -> Span:
    """The range to locate together with the manifest: the read itself, or more at a file's
    start."""
    if offset == 0 and window is not None:
        length = min(size, max(length, FIRST_SPAN))
    return Span(offset, length)


def _neighbours(blocks: Iterable[tuple[bytes, int]], most: int) -> Iterator[tuple[bytes, range]]:
    """Group successive blocks of one chunk into (chunk, range of at most `most` blocks)."""
    chunk, group = b"", range(0)
    for next_chunk, block in blocks:
        if group and next_chunk == chunk and block == group.stop and len(group) < most:
            group = range(group.start, block + 1)
            continue
        if group:
            yield chunk, group
        chunk, group = next_chunk, range(block, block + 1)
    if group:
        yield chunk, group
