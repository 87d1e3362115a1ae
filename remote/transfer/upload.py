"""Sending chunks: announce them, PUT the ones the drive does not have.

Knows: that announcements of many uploads travel together, and what to do when a presigned URL has
died. Must not know: where bytes come from, when to give up (never: it raises, the caller waits and
calls again), the journal.

Concurrency: any number of tasks may call `store`. Announcements wait for the one under way
and then leave in one request for all (whoever gets the lock first asks for everybody). PUTs under
way are bounded by `places`. How fast they are is up to who sends the bytes (`port`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import outcome
import trio

from remote.protocol.codec import Encoded
from remote.protocol.content import Descriptor
from remote.protocol.errors import (
    NearlineError,
    Problem,
    Refused,
    Retry,
    Unavailable,
    Unreachable,
    UrlRefused,
)
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import (
    MAX_BATCH,
    ChunkTicket,
    PresignedPut,
    StartUpload,
    StartUploads,
    StartUploadsReply,
    UploadState,
)
from remote.transfer.limits import TRANSFERS, Claim, Places

URL_ATTEMPTS = 3
# Bytes of chunks to have under way, from being encoded to being sent: as many as are sent in
# `AHEAD_SECONDS`. A chunk is announced, then sent, and some wait between the two for their turn.
LEAST_WINDOW = 12 * 1024 * 1024
MAX_WINDOW = 32 * 1024 * 1024
AHEAD_SECONDS = 8


class UploadPort(Protocol):
    """The part of `api.ApiClient` that uploads need."""

    async def start_uploads(self, request: StartUploads) -> StartUploadsReply: ...

    async def put_chunk(self, put: PresignedPut, body: bytes | memoryview) -> None: ...


class Upload:
    """The part that every announcement of one upload has."""

    def __init__(
        self, version: VersionId, file: FileId, parent: FileId | None, base: VersionId | None
    ) -> None:
        self.version, self.file, self.parent, self.base = version, file, parent, base

    def with_chunks(self, descriptors: Iterable[Descriptor]) -> StartUpload:
        return StartUpload(
            version=self.version,
            file=self.file,
            parent=self.parent,
            base=self.base,
            descriptors=list(descriptors),
        )


class _Waiting:
    def __init__(self, upload: Upload, descriptor: Descriptor) -> None:
        self.upload, self.descriptor = upload, descriptor
        self.answer: outcome.Outcome[ChunkTicket] | None = None


class Sender:
    def __init__(self, port: UploadPort, *, parallel: int = TRANSFERS) -> None:
        self._port = port
        self.places = Places(parallel)
        self._asking = trio.Lock()
        self._queue: list[_Waiting] = []

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
        for _attempt in range(URL_ATTEMPTS):
            ticket = await self._announce(upload, chunk.descriptor)
            if ticket.state == "uploaded" or ticket.put is None:
                return 0
            try:
                async with self.places.place(len(chunk.body), Claim()):
                    await self._port.put_chunk(ticket.put, chunk.body)
            except UrlRefused:
                continue  # it expired while we waited for our turn: sign again
            return len(chunk.body)
        raise Unreachable(f"the blob store refused {URL_ATTEMPTS} fresh URLs for one chunk")

    async def _announce(self, upload: Upload, descriptor: Descriptor) -> ChunkTicket:
        waiting = _Waiting(upload, descriptor)
        self._queue.append(waiting)
        try:
            async with self._asking:
                while waiting.answer is None:
                    await self._ask(self._queue[:MAX_BATCH])
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)
        assert waiting.answer is not None
        return waiting.answer.unwrap()

    async def _ask(self, batch: list[_Waiting]) -> None:
        """One request for the whole batch. If it is cancelled the others ask again."""
        uploads: dict[VersionId, list[_Waiting]] = {}
        for waiting in batch:
            uploads.setdefault(waiting.upload.version, []).append(waiting)
        starts = [
            group[0].upload.with_chunks(
                {item.descriptor.id: item.descriptor for item in group}.values()
            )
            for group in uploads.values()
        ]
        try:
            reply = await self._port.start_uploads(StartUploads(uploads=starts))
        except NearlineError as error:
            if len(uploads) > 1 and error.retry is Retry.NEVER:
                await self._ask_halves(list(uploads.values()))
                return
            for waiting in batch:
                waiting.answer = outcome.Error(error)
        else:
            # A server that others wait for too answers a part; the rest is asked again, at once.
            is_part = any(not isinstance(state, Unavailable) for state in reply.uploads)
            for group, state in zip(uploads.values(), reply.uploads, strict=True):
                if not (is_part and isinstance(state, Unavailable)):
                    _hand_out(group, state)
        self._queue = [waiting for waiting in self._queue if waiting.answer is None]

    async def _ask_halves(self, groups: list[list[_Waiting]]) -> None:
        """The request was refused for good as a whole: find whose fault it is. The others have
        nothing to do with it."""
        middle = len(groups) // 2
        for half in (groups[:middle], groups[middle:]):
            await self._ask([waiting for group in half for waiting in group])


def _hand_out(group: list[_Waiting], state: UploadState | Problem) -> None:
    if not isinstance(state, UploadState):
        for waiting in group:
            waiting.answer = outcome.Error(Refused(state))
        return
    if state.status == "uploaded":  # committed, but its answer was lost: everything is there
        for waiting in group:
            there = ChunkTicket(id=waiting.descriptor.id, state="uploaded")
            waiting.answer = outcome.Value(there)
        return
    tickets = {ticket.id: ticket for ticket in state.chunks}
    for waiting in group:
        ticket = tickets.get(waiting.descriptor.id)
        waiting.answer = (
            outcome.Error(Unreachable("the server did not answer for an announced chunk"))
            if ticket is None
            else outcome.Value(ticket)
        )
