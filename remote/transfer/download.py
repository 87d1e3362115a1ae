"""Verified blocks from the edge: fetched by range, resumed, refetched, bounded.

Knows: signed URLs, descriptors, verification, what to do when bytes are late, short or wrong. Must
not know: files' contents beyond one chunk, the cache, who waits for a block.

A fetch is one run of neighbouring blocks of one chunk, wanted as one range of the stored object.
Whole small chunks that lie next to each other in an object are fetched together (`fetch_together`),
by one request that is not repeated: what it does not bring is fetched by itself. What has arrived
is judged by its hash alone: after a transfer that broke off, every block that verifies counts as
received and the rest is asked for again, from there. So:

- refused URL (403, expired): sign again, go on. Persistent refusal ends as `Unreachable`.
- broken transfer: go on while each attempt brings at least one block; `Unreachable` otherwise.
- "not now" (429, 5xx): ask again (`read_retry`), holding no connection meanwhile.
- under a limit (`throttle`) a range is asked for in portions, each a request of its own: so no host
  is kept waiting in the middle of an answer, and what somebody waits for goes first between any
  two. What was asked for whole is cut off when a limit is set, and goes on in portions.
- a complete answer with a wrong block: that block again, at most `REFETCHES` times, from the
  second time on under a new URL (past any cache between); then `CorruptContent`, with a log line.

Concurrency: trio thread only, except that `_decode` may run in a worker thread, on
buffers that belong to its own fetch. `memory` bounds the bytes of all fetches from the first byte
until the caller leaves the fetch's context; `connections` the transfers under way; `throttle` what
they move. All are FIFO with urgent claims first. A fetch holds memory while it waits for a
connection, and both while it waits for a portion, never the reverse, and its caller must not start
another fetch inside the context: so there is no cycle. A portion is taken last, so that it is moved
at once; who is not urgent gives its connection to who is after each, not after all of them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol
from urllib.parse import urlsplit

import structlog
import trio

from remote.protocol.codec import Buffer, decode_block
from remote.protocol.content import BLOCK_SIZE, BadContent, Descriptor, Manifest, block_count
from remote.protocol.errors import CorruptContent, ProtocolError, Unreachable, UrlRefused
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import Located, Span
from remote.transfer.bundling import Extent, merge
from remote.transfer.limits import TRANSFERS, BufferPool, Claim, Places, PrioritySemaphore
from remote.transfer.link import Link
from remote.transfer.locate import LocateApi, Locator
from remote.transfer.read_retry import ReadRetries
from remote.transfer.throttle import Throttle

BUDGET_BYTES = 64 * 1024 * 1024
REFETCHES = 3
# Fresh URLs refused in a row before the edge counts as out of order.
REFUSALS = 3
# Transfers in a row that bring nothing before the edge counts as unreachable.
STALLS = 2
# What verifying a compressed block costs, in raw blocks.
COMPRESSED_WEIGHT = 5
THREAD_WEIGHT = 16

log = structlog.get_logger(__name__)


class EdgeApi(LocateApi, Protocol):
    async def get_range(
        self, url: str, start: int, end: int, into: bytearray | memoryview, /
    ) -> int:
        """Read bytes [start, end) of the object into `into`; how many came. Raises `UrlRefused`,
        and `Unreachable` also when fewer came than asked."""
        ...

    async def connect_ahead(self, connections: int, /) -> None:
        """Have so many connections to the edge that are not in use, if it can be reached."""
        ...


class _Fetch:
    """One run in progress: blocks `first` to `last` of a chunk; `plain` fills up as they verify."""

    def __init__(self, descriptor: Descriptor, first: int, last: int, stored: memoryview) -> None:
        self.descriptor = descriptor
        self.last = last
        self.stored = stored
        self.plain: dict[int, Buffer] = {}
        self.wrong: dict[int, int] = {}
        start = descriptor.stored_offset(first)
        self.base = start
        self.ends: dict[int, tuple[int, int]] = {}
        for block in range(first, last + 1):
            end = start + descriptor.stored_lengths[block]
            self.ends[block] = (start, end)
            start = end

    def missing(self) -> range | None:
        """The first run of neighbouring blocks still to be had."""
        blocks = [block for block in self.ends if block not in self.plain]
        if not blocks:
            return None
        stop = next((b for b in range(blocks[0], self.last + 1) if b in self.plain), self.last + 1)
        return range(blocks[0], stop)

    def span(self, blocks: range) -> tuple[int, int]:
        """The bytes of the stored object that hold `blocks`."""
        return self.ends[blocks[0]][0], self.ends[blocks[-1]][1]

    def buffer_for(self, start: int, end: int) -> memoryview:
        return self.stored[start - self.base : end - self.base]


class Downloader:
    """Fetches runs of blocks; see the module header."""

    def __init__(
        self,
        api: EdgeApi,
        *,
        budget_bytes: int = BUDGET_BYTES,
        connections: int = TRANSFERS,
        throttle: Throttle | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        retries: ReadRetries | None = None,
    ) -> None:
        self._api = api
        self._retries = retries or ReadRetries()
        self._locator = Locator(api, now_ns)
        self._pool = BufferPool(keep=budget_bytes)
        self.memory = PrioritySemaphore(budget_bytes)
        self.connections = Places(connections)
        self.throttle = throttle or Throttle()

    async def first_look(
        self, file: FileId, version: VersionId, span: Span | None = None
    ) -> Manifest:
        """The checked manifest of `version`; in the same round trip the chunks under `span` are
        located, so that the first read costs one request more. Raises `Refused`, `Unreachable`,
        `ProtocolError`."""
        return await self._locator.first_look(file, version, span)

    async def look_at_several(
        self, wanted: Sequence[tuple[FileId, VersionId]]
    ) -> dict[VersionId, Manifest]:
        """The same for whole small versions, by one request: see `Locator.look_at_several`."""
        return await self._locator.look_at_several(wanted)

    def neighbours(self, chunks: Sequence[bytes]) -> list[list[Located]]:
        """Those of the chunks (each once) that are known to lie next to others of them in one
        object, in groups for `fetch_together`."""
        known = [located for chunk in chunks if (located := self._locator.located(chunk))]
        groups = merge([_extent(located) for located in known])
        return [[known[number] for number in group] for group in groups if len(group) > 1]

    @asynccontextmanager
    async def fetch_together(
        self, file: FileId, version: VersionId, group: Sequence[Located], claim: Claim
    ) -> AsyncIterator[dict[bytes, list[tuple[int, Buffer]]]]:
        """Whole chunks, by one request: of each that came and is right, by its id, the blocks as
        `fetch` gives them. What is left out has to be fetched by itself. `file` and `version` are
        of the first one. Raises `Refused`, `ProtocolError`."""
        start, end = group[0].offset, _extent(group[-1]).end
        amount = end - start + sum(_inflated(located.descriptor) for located in group)
        await self.memory.acquire(amount, claim)
        buffer = self._pool.take(end - start)
        stored = memoryview(buffer)[: end - start]
        fetches = [
            _whole(located.descriptor, stored[located.offset - start :]) for located in group
        ]
        try:
            try:
                first = group[0].descriptor.id
                await self._transfer(file, version, first, (0, end - start), stored, claim)
            except (UrlRefused, Unreachable) as error:  # each is more patient by itself
                log.debug("not_fetched_together", chunks=len(group), why=str(error))
            await self._verify_all([(fetch, range(fetch.last + 1)) for fetch in fetches])
            right = [fetch for fetch in fetches if fetch.missing() is None]
            yield {fetch.descriptor.id: sorted(fetch.plain.items()) for fetch in right}
        finally:
            self._pool.give(buffer)
            self.memory.release(amount)

    @property
    def link(self) -> Link:
        """The line down, as it was seen."""
        return self.connections.link

    async def connect_ahead(self, connections: int) -> None:
        """Somebody is about to read: connect while it is asked where what he reads is."""
        await self._api.connect_ahead(connections)

    def locate_ahead(
        self,
        spawn: Callable[..., object],
        file: FileId,
        version: VersionId,
        chunks: Sequence[bytes],
    ) -> None:
        """See `Locator.look_ahead`."""
        self._locator.look_ahead(spawn, file, version, chunks)

    @asynccontextmanager
    async def fetch(
        self,
        file: FileId,
        version: VersionId,
        chunk: bytes,
        first: int,
        last: int,
        *,
        claim: Claim | None = None,
        ahead: Sequence[bytes] = (),
    ) -> AsyncIterator[list[tuple[int, Buffer]]]:
        """Blocks `first` to `last` (inclusive) of `chunk`: (number, verified plain bytes), in
        order. The bytes may be used inside the context only; their memory is reused after it.

        `ahead` names chunks wanted soon, located in the same request if one is made. Raises
        `Refused`, `Unreachable`, `ProtocolError`, `CorruptContent`.
        """
        claim = claim or Claim()
        located = await self._locator.find(file, version, chunk, ahead)
        amount, stored = _sizes(located.descriptor, first, last)
        await self.memory.acquire(amount, claim)
        buffer = self._pool.take(stored)
        fetch = _Fetch(located.descriptor, first, last, memoryview(buffer)[:stored])
        try:
            await self._complete(fetch, file, version, claim)
            yield sorted(fetch.plain.items())
        finally:
            self._pool.give(buffer)
            self.memory.release(amount)

    async def _complete(
        self, fetch: _Fetch, file: FileId, version: VersionId, claim: Claim
    ) -> None:
        chunk, refusals, stalls = fetch.descriptor.id, 0, 0
        question = self._retries.question()
        while (blocks := fetch.missing()) is not None:
            located = await self._locator.find(file, version, chunk)
            try:
                span = fetch.span(blocks)
                into = fetch.buffer_for(*span)
                is_whole = await self._transfer(file, version, chunk, span, into, claim)
            except UrlRefused as error:
                self._locator.forget(chunk)
                refusals = 1 if await self._verify(fetch, blocks) else refusals + 1
                if refusals > REFUSALS:
                    raise Unreachable(f"{_host(located)} refuses fresh URLs: {error}") from error
                continue
            except Unreachable as error:
                if await self._verify(fetch, blocks):
                    stalls, question = 0, self._retries.question()
                elif not await question.may_go_on(error):
                    stalls += 1
                if stalls >= STALLS:
                    raise
                continue
            refusals, stalls, question = 0, 0, self._retries.question()
            await self._verify(fetch, blocks)
            if is_whole:
                self._judge(fetch, blocks, located)

    async def _transfer(
        self,
        file: FileId,
        version: VersionId,
        chunk: bytes,
        span: tuple[int, int],
        into: memoryview,
        claim: Claim,
    ) -> bool:
        """Bytes `span`, counted from the beginning of `chunk` in its object. True when all came;
        False when it was cut off, because a limit was set."""
        base = start = span[0]
        end = span[1]
        while start < end:
            async with self.connections.place(end - start, claim) as transfer:
                while start < end:
                    with self.throttle.cuttable() as scope:
                        stop = start + await self.throttle.take(end - start, claim)
                        # Now, because it may have been waited for longer than a URL lives.
                        located = await self._locator.find(file, version, chunk)
                        await self._get(located, start, stop, into[start - base : stop - base])
                        start = stop
                    if scope.cancelled_caught:
                        transfer.was_cut = True
                        return False
                    if self.connections.is_urgent and not claim.urgent:
                        transfer.was_cut = start < end
                        break
        return True

    async def _get(self, located: Located, start: int, end: int, into: memoryview) -> None:
        try:
            began = located.offset
            came = await self._api.get_range(located.url, began + start, began + end, into)
        except ValueError as error:  # what a client raises for a URL it will not use
            raise ProtocolError(f"the server gave a bad URL: {error}") from error
        if came != end - start:
            raise Unreachable(f"{_host(located)} sent {came} bytes of {end - start}")

    async def _verify(self, fetch: _Fetch, blocks: range) -> bool:
        """Take over every block of `blocks` whose bytes are right; whether there were any.

        Measured on two cores: a hop to a thread and back costs 0.2 ms; verifying a raw block
        0.05 ms, a compressed one 0.25 ms. A thread is worth it from about 0.8 ms on.
        """
        before = len(fetch.plain)
        await self._verify_all([(fetch, blocks)])
        return len(fetch.plain) > before

    async def _verify_all(self, wanted: Sequence[tuple[_Fetch, range]]) -> None:
        weights = [len(blocks) * _weight(fetch.descriptor) for fetch, blocks in wanted]
        if sum(weights) >= THREAD_WEIGHT:
            decoded = await trio.to_thread.run_sync(_decode_all, wanted)
        else:
            decoded = _decode_all(wanted)
        for (fetch, _), plain in zip(wanted, decoded, strict=True):
            fetch.plain.update(plain)

    def _judge(self, fetch: _Fetch, blocks: range, located: Located) -> None:
        """A complete answer came: what is still missing was wrong."""
        for block in blocks:
            if block in fetch.plain:
                continue
            fetch.wrong[block] = times = fetch.wrong.get(block, 0) + 1
            names = {"chunk": fetch.descriptor.id.hex(), "block": block, "host": _host(located)}
            if times > REFETCHES:
                log.error("corrupt_block_given_up", times=times, **names)
                raise CorruptContent(
                    f"chunk {names['chunk']} block {block} from {names['host']} is corrupt"
                )
            log.warning("corrupt_block_refetched", times=times, **names)
            if times > 1:
                self._locator.forget(fetch.descriptor.id)


def _decode(fetch: _Fetch, blocks: range) -> dict[int, Buffer]:
    decoded: dict[int, Buffer] = {}
    for block in blocks:
        try:
            decoded[block] = decode_block(
                fetch.descriptor, block, fetch.buffer_for(*fetch.ends[block])
            )
        except BadContent:
            continue  # its absence says so; `_complete` knows whether it is short or wrong
    return decoded


def _whole(descriptor: Descriptor, stored: memoryview) -> _Fetch:
    return _Fetch(descriptor, 0, block_count(descriptor.length) - 1, stored)


def _decode_all(wanted: Sequence[tuple[_Fetch, range]]) -> list[dict[int, Buffer]]:
    return [_decode(fetch, blocks) for fetch, blocks in wanted]


def _weight(descriptor: Descriptor) -> int:
    """The cost of verifying one of its blocks, in raw ones."""
    return COMPRESSED_WEIGHT if descriptor.codec == "zstd" else 1


def _extent(located: Located) -> Extent:
    return Extent(located.url, located.offset, located.offset + located.descriptor.stored_length)


def _sizes(descriptor: Descriptor, first: int, last: int) -> tuple[int, int]:
    """(memory to claim, bytes of the stored range): inflated blocks need memory of their own."""
    stored = sum(descriptor.stored_lengths[first : last + 1])
    return stored + min(_inflated(descriptor), (last + 1 - first) * BLOCK_SIZE), stored


def _inflated(descriptor: Descriptor) -> int:
    return descriptor.length if descriptor.codec == "zstd" else 0


def _host(located: Located) -> str:
    return urlsplit(located.url).netloc
