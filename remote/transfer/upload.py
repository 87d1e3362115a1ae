"""Sending chunks: announce them, PUT the ones the drive does not have, small ones together.

Knows: that announcements of many uploads travel together, that small chunks become bundles, and
what to do when a presigned URL has died. Must not know: where bytes come from, when to give up
(never: it raises, the caller waits and calls again), the journal.

Announcements wait for the one under way and then leave in one request for all. A small chunk of the
own drive waits until fewer than `BUNDLES` are under way; then everything small that waits leaves as
one. What the server does not take as a bundle is announced again and stands alone.

Concurrency: any number of tasks may call `store`. Whoever comes first acts for everybody
(`together`). PUTs under way are bounded by `places`. How fast they are is up to who sends the bytes
(`port`). A bundle is a copy of its parts, made while all who wait for them lend their memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

import outcome
import structlog
import trio

from remote.protocol.bundle import MAX_PART, MAX_PARTS_LENGTH, bundle_of
from remote.protocol.codec import Encoded
from remote.protocol.content import Descriptor
from remote.protocol.errors import (
    Busy,
    Forbidden,
    NearlineError,
    Problem,
    ProtocolError,
    Refused,
    Retry,
    Unavailable,
    Unreachable,
    UrlRefused,
)
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import (
    MAX_BATCH,
    BundlePart,
    ChunkTicket,
    PresignedPut,
    StartBundle,
    StartBundleReply,
    StartUpload,
    StartUploads,
    StartUploadsReply,
    UploadState,
)
from remote.transfer.bundling import Beside, Part, fill, most_length
from remote.transfer.limits import TRANSFERS, Claim, Places
from remote.transfer.together import Answer, Together

URL_ATTEMPTS = 3
# On their way at once; whoever comes meanwhile waits, and leaves in a larger one.
BUNDLES = 3
MAX_SUSPECTS = 4096

# Bytes of chunks to have under way, from being encoded to being sent: as many as are sent in
# `AHEAD_SECONDS`. A chunk is announced, then sent, and some wait between the two for their turn.
LEAST_WINDOW = 12 * 1024 * 1024
MAX_WINDOW = 32 * 1024 * 1024
AHEAD_SECONDS = 8

log = structlog.get_logger(__name__)


class UploadPort(Protocol):
    """The part of `api.ApiClient` that uploads need."""

    async def start_uploads(self, request: StartUploads) -> StartUploadsReply: ...

    async def start_bundle(self, request: StartBundle) -> StartBundleReply: ...

    async def put_chunk(self, put: PresignedPut, body: bytes | memoryview) -> None: ...


class Upload:
    """The part that every announcement of one upload has. `beside`: where the file is, if it is in
    the account's own drive; None: each of its chunks stands alone."""

    def __init__(
        self,
        version: VersionId,
        file: FileId,
        parent: FileId | None,
        base: VersionId | None,
        beside: Beside | None = None,
    ) -> None:
        self.version, self.file, self.parent, self.base = version, file, parent, base
        self.beside = beside

    def with_chunks(self, descriptors: Iterable[Descriptor]) -> StartUpload:
        return StartUpload(
            version=self.version,
            file=self.file,
            parent=self.parent,
            base=self.base,
            descriptors=list(descriptors),
        )


class _Announced(NamedTuple):
    upload: Upload
    descriptor: Descriptor


class _Small(NamedTuple):
    """A chunk that is needed, and may be part of a bundle."""

    part: Part
    version: VersionId
    chunk: Encoded
    put: PresignedPut


class Sender:
    def __init__(self, port: UploadPort, *, parallel: int = TRANSFERS) -> None:
        self._port = port
        self.places = Places(parallel)
        asking, self._bundling = trio.Lock(), trio.Semaphore(BUNDLES)
        self._announcing = Together[_Announced, ChunkTicket](
            lambda: asking, lambda queue: range(min(len(queue), MAX_BATCH)), self._announce
        )
        self._gathering = Together[_Small, bool](self._turn, self._fitting, self._send_together)
        self._suspects: set[bytes] = set()  # parts of bundles for which the store had no place
        self._may_bundle: bool | None = None  # whether the server lets this token, once it has said

    @property
    def window(self) -> int:
        """Bytes of chunks that are best under way in `store`. It is the most until the line is
        known: it must not run empty to find out how long it is."""
        rate = self.uplink
        wanted = MAX_WINDOW if rate is None else rate * AHEAD_SECONDS
        return max(LEAST_WINDOW, min(wanted, MAX_WINDOW))

    @property
    def uplink(self) -> int | None:
        """Bytes a second; None: not known."""
        return self.places.link.rate

    async def store(self, upload: Upload, chunk: Encoded) -> int:
        """Return when the drive has the chunk: the bytes that had to be sent, 0 if it had it.

        Raises Refused (quota, no access, bad upload) and Unreachable."""
        descriptor, size = chunk.descriptor, len(chunk.body)
        is_suspect = descriptor.id in self._suspects
        beside = upload.beside if size <= MAX_PART and not is_suspect else None
        for _attempt in range(URL_ATTEMPTS):
            ticket = await self._announcing.do(_Announced(upload, descriptor))
            if ticket.state == "uploaded" or ticket.put is None:
                return 0
            try:
                if beside is None or self._may_bundle is False:
                    async with self.places.place(size, Claim()):
                        await self._port.put_chunk(ticket.put, chunk.body)
                    self._suspects.discard(descriptor.id)
                    return size
                part = Part(descriptor.id, size, beside)
                if await self._gathering.do(_Small(part, upload.version, chunk, ticket.put)):
                    return size
                beside = None
            except UrlRefused:
                continue  # it expired while we waited for our turn: sign again
        raise Unreachable(f"the blob store refused {URL_ATTEMPTS} fresh URLs for one chunk")

    # --- bundles ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._bundling, self.places.place(MAX_PARTS_LENGTH, Claim()):
            yield

    def _fitting(self, queue: Sequence[_Small]) -> list[int]:
        return fill([small.part for small in queue], most_length(self.uplink))

    async def _send_together(self, taken: list[_Small]) -> list[Answer[bool]]:
        """True for each that was sent. The others are announced again, because another one of the
        same chunk was sent for them, or because they are to stand alone."""
        chunks = {small.part.chunk: small for small in reversed(taken)}
        smalls = [small for small in taken if chunks[small.part.chunk] is small]
        try:
            is_sent = await (self._put_bundle(smalls) if smalls[1:] else self._put_alone(smalls[0]))
        except NearlineError as error:
            if isinstance(error, Busy) and len(smalls) > 1:
                self._suspect(chunks)
            return [outcome.Error(error) for _ in taken]
        return [outcome.Value(is_sent and chunks[small.part.chunk] is small) for small in taken]

    def _suspect(self, chunks: Iterable[bytes]) -> None:
        """It may be because of one of them: each stands alone when it comes again, so that it is
        nobody else's fault for ever."""
        self._suspects.update(chunks)
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.clear()

    async def _put_alone(self, small: _Small) -> bool:
        await self._port.put_chunk(small.put, bytes(small.chunk.body))
        return True

    async def _put_bundle(self, smalls: Sequence[_Small]) -> bool:
        """True when it was taken."""
        bundle = bundle_of([small.chunk.descriptor for small in smalls])
        body = b"".join([*(small.chunk.body for small in smalls), bundle.tail])
        digest = (await trio.to_thread.run_sync(hashlib.sha256, body)).digest()
        parts = [BundlePart(small.version, small.part.chunk) for small in smalls]
        try:
            reply = await self._port.start_bundle(StartBundle(parts=parts, sha256=digest))
            self._may_bundle = True
            if reply.id == bundle.id:  # else one of them was announced with another stored form
                await self._port.put_chunk(reply.put, body)
                return True
        except Refused as error:
            if error.retry is Retry.LATER:
                raise
            if isinstance(error.problem, Forbidden) and self._may_bundle is None:
                self._may_bundle = False
            log.info("bundle_refused", parts=len(parts), why=str(error))
        except ProtocolError as error:  # the store would not have it
            log.info("bundle_refused", parts=len(parts), why=str(error))
        return False

    # --- announcements ----------------------------------------------------------------------------

    async def _announce(self, batch: list[_Announced]) -> list[Answer[ChunkTicket] | None]:
        """One request for all of the batch."""
        uploads: dict[VersionId, list[int]] = {}
        for number, announced in enumerate(batch):
            uploads.setdefault(announced.upload.version, []).append(number)
        answers: list[Answer[ChunkTicket] | None] = [None] * len(batch)
        await self._ask(batch, list(uploads.values()), answers)
        return answers

    async def _ask(
        self,
        batch: list[_Announced],
        groups: list[list[int]],
        answers: list[Answer[ChunkTicket] | None],
    ) -> None:
        """Announce what these groups of numbers, each of one upload, stand for."""
        starts = [
            batch[group[0]].upload.with_chunks(
                {batch[number].descriptor.id: batch[number].descriptor for number in group}.values()
            )
            for group in groups
        ]
        try:
            reply = await self._port.start_uploads(StartUploads(uploads=starts))
        except NearlineError as error:
            if len(groups) > 1 and error.retry is Retry.NEVER:
                # Refused for good as a whole: find whose fault it is. The others have nothing to
                # do with it.
                middle = len(groups) // 2
                await self._ask(batch, groups[:middle], answers)
                await self._ask(batch, groups[middle:], answers)
                return
            for number in [number for group in groups for number in group]:
                answers[number] = outcome.Error(error)
        else:
            # A server that others wait for too answers a part; the rest is asked again, at once.
            is_part = any(not isinstance(state, Unavailable) for state in reply.uploads)
            for group, state in zip(groups, reply.uploads, strict=True):
                if not (is_part and isinstance(state, Unavailable)):
                    ids = [batch[number].descriptor.id for number in group]
                    for number, answer in zip(group, _answers(ids, state), strict=True):
                        answers[number] = answer


def _answers(
    chunks: Sequence[bytes], state: UploadState | Problem
) -> Iterator[Answer[ChunkTicket]]:
    if not isinstance(state, UploadState):
        yield from (outcome.Error(Refused(state)) for _ in chunks)
        return
    tickets = {ticket.id: ticket for ticket in state.chunks}
    if state.status == "uploaded":  # committed, but its answer was lost: everything is there
        tickets = {chunk: ChunkTicket(id=chunk, state="uploaded") for chunk in chunks}
    for chunk in chunks:
        if chunk in tickets:
            yield outcome.Value(tickets[chunk])
        else:
            yield outcome.Error(Unreachable("the server did not answer for an announced chunk"))
