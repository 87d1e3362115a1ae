"""Fetches in progress: one per block, however many readers wait for it.

Knows: which blocks are on their way, who waits, when memory may be let go. Must not know: file
offsets and manifests (`block_map`), what to prefetch (`readahead`), LMDB.

A run is a fetch of neighbouring blocks of one chunk. Its life: started (in the table, readers may
join), landed (its bytes are in memory, handed to everybody who waited, being written to the cache;
late readers copy from memory), gone (in the cache, or dropped if the cache is full). A run that
nobody needs any more can be cancelled until it lands. Small chunks that lie next to each other in
one object are runs that are carried together; one that this does not bring is carried by itself.

Concurrency: trio thread only.
- `Runs._table` maps each block on its way to its run; entries appear in `start` and disappear in
  `_forget`, both without checkpoints. A block is in the table, in the cache or nowhere, so a
  reader that checks the table and then the cache without a checkpoint misses nothing.
- Waiters hold no memory: `land` copies into each waiter's own buffer at once, in the run's task.
  So readers waiting for several runs cannot keep the memory budget from each other.
- A run belongs to the nursery given to `Runs`, not to who started it: a cancelled reader only
  stops listening (`Reply.abandon`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
import trio

from cache.blocks.block_map import Part
from cache.blocks.cache import Block, BlockCache, Buffer
from remote.protocol.content import block_count
from remote.protocol.errors import NearlineError, Unreachable
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import Located
from remote.transfer.download import Downloader
from remote.transfer.limits import Claim

log = structlog.get_logger(__name__)


class Reply:
    """A reader's buffer being filled: bytes [offset, offset+len(buffer)) of a file."""

    def __init__(self, offset: int, buffer: memoryview) -> None:
        self._offset = offset
        self._buffer: memoryview | None = buffer
        self._awaited = 0
        self._error: NearlineError | None = None
        self._ended = trio.Event()

    def copy(self, part: Part, plain: Buffer) -> None:
        """Put `part`, out of the plain bytes of its block, into the buffer."""
        if self._buffer is not None:
            at = part.offset - self._offset
            view = memoryview(plain)[part.start : part.start + part.length]
            self._buffer[at : at + part.length] = view

    def zero(self, part: Part) -> None:
        if self._buffer is not None:
            at = part.offset - self._offset
            self._buffer[at : at + part.length] = bytes(part.length)

    def expect(self) -> None:
        """One part more will be delivered or fail."""
        self._awaited += 1

    def deliver(self, part: Part, plain: Buffer) -> None:
        self.copy(part, plain)
        self._awaited -= 1
        if self._awaited == 0:
            self._ended.set()

    def fail(self, error: NearlineError) -> None:
        self._error = error
        self._ended.set()

    async def wait(self) -> None:
        """Wait until every expected part is there; raises what the first failing fetch raised."""
        if self._awaited:
            await self._ended.wait()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """The buffer belongs to somebody else from now on: nothing is written to it any more."""
        self._buffer = None


class Run:
    """Blocks `first` to `last` of `chunk` on their way."""

    def __init__(self, chunk: bytes, blocks: range, claim: Claim) -> None:
        self.chunk = chunk
        self.blocks = blocks
        self.claim = claim
        self.done = trio.Event()
        self.error: NearlineError | None = None
        self.scope = trio.CancelScope()
        self.is_kept = False  # somebody waits for `done`, to have it in the cache
        self._waiting: dict[int, list[tuple[Reply, Part]]] = {}
        self._plain: dict[int, Buffer] | None = None

    @property
    def is_wanted(self) -> bool:
        """True if giving it up would waste bytes in memory or let somebody down."""
        return self.is_kept or bool(self._waiting) or self._plain is not None

    def join(self, reply: Reply, part: Part) -> None:
        """Have `part` copied into `reply`: now if the run has landed, else when it does."""
        if self._plain is not None:
            reply.copy(part, self._plain[part.block])
            return
        self.claim.urgent = True
        reply.expect()
        self._waiting.setdefault(part.block, []).append((reply, part))

    @property
    def has_landed(self) -> bool:
        """True if `join` copies at once."""
        return self._plain is not None

    def land(self, blocks: Iterable[tuple[int, Buffer]]) -> None:
        self._plain = dict(blocks)
        waiting, self._waiting = self._waiting, {}
        for block, waiters in waiting.items():
            for reply, part in waiters:
                reply.deliver(part, self._plain[block])

    def fail(self, error: NearlineError) -> None:
        self.error = error
        waiting, self._waiting = self._waiting, {}
        for waiters in waiting.values():
            for reply, _ in waiters:
                reply.fail(error)

    def finish(self) -> None:
        """Nothing more will come. Who still waits has outlived the nursery: the mount goes down."""
        self._plain = None
        if self._waiting:
            self.fail(Unreachable("reading was stopped"))
        self.done.set()


class Runs:
    """The table of runs; see the module header."""

    def __init__(self, blocks: BlockCache, downloader: Downloader) -> None:
        self._blocks = blocks
        self._downloader = downloader
        self._table: dict[tuple[bytes, int], Run] = {}
        self.is_storing = True  # whether the cache took the last run: prefetching needs that

    def find(self, chunk: bytes, block: int) -> Run | None:
        return self._table.get((chunk, block))

    def start(
        self,
        spawn: Callable[..., object],
        file: FileId,
        version: VersionId,
        chunk: bytes,
        blocks: range,
        *,
        urgent: bool,
        ahead: Sequence[bytes] = (),
    ) -> Run:
        """Begin to fetch blocks that are neither cached nor on their way. `spawn` is
        `nursery.start_soon` of the nursery that outlives every reader."""
        run = self._enter(Run(chunk, blocks, Claim(urgent=urgent)))
        spawn(self._carry, run, file, version, ahead)
        return run

    def start_together(
        self, spawn: Callable[..., object], group: Sequence[tuple[FileId, VersionId, Located]]
    ) -> None:
        """The same for whole chunks that `Downloader.neighbours` found, and nobody waits for."""
        claim, runs = Claim(urgent=False), []
        for file, version, located in group:
            chunk = located.descriptor
            run = self._enter(Run(chunk.id, range(block_count(chunk.length)), claim))
            runs.append((run, file, version))
        spawn(self._carry_together, runs, [located for _, _, located in group], claim)

    def _enter(self, run: Run) -> Run:
        for block in run.blocks:
            self._table[(run.chunk, block)] = run
        return run

    def cancel(self, run: Run) -> None:
        """Give up a run unless somebody waits for it or it has landed."""
        if not run.is_wanted and not run.done.is_set():
            self._forget(run)  # at once: nobody may join a run that will not land
            run.scope.cancel()

    async def _carry(
        self, run: Run, file: FileId, version: VersionId, ahead: Sequence[bytes]
    ) -> None:
        fetch = self._downloader.fetch(
            file,
            version,
            run.chunk,
            run.blocks[0],
            run.blocks[-1],
            claim=run.claim,
            ahead=ahead,
        )
        try:
            with run.scope:
                async with fetch as blocks:
                    run.land(blocks)
                    await self._keep({run.chunk: blocks})
                    self._forget(run)  # before its memory goes, with no checkpoint between
        except NearlineError as error:
            run.fail(error)
        finally:
            self._forget(run)
            run.finish()

    async def _carry_together(
        self,
        runs: Sequence[tuple[Run, FileId, VersionId]],
        group: Sequence[Located],
        claim: Claim,
    ) -> None:
        _, file, version = runs[0]
        fetch = self._downloader.fetch_together(file, version, group, claim)
        landed: list[Run] = []
        try:
            async with fetch as found:
                landed = [run for run, _, _ in runs if run.chunk in found]
                for run in landed:
                    run.land(found[run.chunk])
                await self._keep(found)
                for run in landed:
                    self._forget(run)
        except NearlineError as error:  # whoever waits hears of it if it does not come by itself
            log.debug("not_fetched_together", chunks=len(group), why=str(error))
        except BaseException:
            landed = [run for run, _, _ in runs]
            raise
        finally:
            for run in landed:
                self._forget(run)
                run.finish()
        async with trio.open_nursery() as nursery:
            for run, file, version in runs:
                if run not in landed:
                    nursery.start_soon(self._carry, run, file, version, ())

    async def _keep(self, found: Mapping[bytes, Iterable[tuple[int, Buffer]]]) -> None:
        items: list[Block] = [
            (chunk, block, plain) for chunk, blocks in found.items() for block, plain in blocks
        ]
        if items:
            self.is_storing = await self._blocks.put_many(items)

    def _forget(self, run: Run) -> None:
        for block in run.blocks:
            if self._table.get((run.chunk, block)) is run:
                del self._table[(run.chunk, block)]
