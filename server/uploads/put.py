"""Presigned uploads: the bytes of one stored object into the blob store.

    PUT /blobs/DRIVE/CHUNK?expires=...&signature=...

Knows: what was signed, streaming a body into the store. Must not know: accounts, files, the
database: a good signature is the whole authorisation; how slow a body may be (`bodies`).

A PUT whose URL says `proof` is to show that the sender has the bytes of a chunk that may or may not
be in the drive already. Nothing may tell them which: the whole body is taken in, written, checked
block by block to be what the chunk's id says, and made durable, and then the answer is the same.
Every other PUT of an object that is there is answered 412, as early as possible.

An object that says that it is a bundle, under its own id, is reported as one, with those parts that
are as it says; also when it was there already: nobody else knows which chunks are in it, and a
process that ended may have been told in vain.

Whatever ends a PUT before its object is there leaves nothing behind. Bodies of at most `WHOLE`
bytes, the usual chunk, cost one hop to a thread; while there is little room for bodies, they go to
the disk in smaller pieces.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

from remote.protocol.content import BadContent, Descriptor
from remote.protocol.errors import RateLimited, Refused
from server.http.bodies import GONE_STATUS, Body, ClientGone, TooSlow, body_of
from server.http.problems import headers_for
from server.metrics import Metrics
from server.storage.blobs import BlobKey, BlobStore, BlobWriter, Head
from server.storage.edge import PIECE, Answer, Send, header_of, send_answer, target_of
from server.storage.signer import UrlSigner
from server.uploads import bundles
from server.uploads.arrivals import Arrival, Proof
from server.uploads.verification import Checker

WHOLE = 4 * 1024 * 1024


class ArrivalSink(Protocol):
    """Is told of stored objects, and knows what an upload promised."""

    def arrived(self, arrival: Arrival) -> None:
        """Told once per object, when it is durable. Must not block."""

    async def promise_of(self, version: str, key: BlobKey) -> Descriptor | None:
        """The form in which the live upload of `version` said it would store the chunk."""


@dataclass(frozen=True)
class Intake:
    """`threads` does what blocks."""

    blobs: BlobStore
    signer: UrlSigner
    reception: ArrivalSink
    metrics: Metrics
    threads: Executor

    async def put(self, scope: MutableMapping[str, Any], send: Send) -> None:
        """Answer one PUT. Raises `edge.Answer` or `signing.BadSignature` for every refusal."""
        head = _promised(scope)
        permit = self.signer.check_put(target_of(scope), head.length, head.sha256, time.time_ns())
        if header_of(scope, b"if-none-match") != b"*":
            raise Answer(400, "If-None-Match: * is required")
        body = _trusted(body_of(scope), permit.key.drive)
        if permit.proof is None:
            arrival = await self._take(body, Arrival(permit.key, head), _Taken())
            if not arrival.made:
                if arrival.bundle is not None:
                    self.reception.arrived(arrival)
                raise Answer(412, "the object is there already")
        else:
            arrival = await self._prove(body, permit.key, head, permit.proof)
        self.metrics.stored_bytes.inc(head.length)
        self.reception.arrived(arrival)
        etag = b'"%s"' % permit.key.chunk.hex().encode()
        await send_answer(send, Answer(200, "", (b"etag", etag)))

    async def _prove(self, body: _Pieces, key: BlobKey, head: Head, version: str) -> Arrival:
        descriptor = await self.reception.promise_of(version, key)
        if descriptor is None or descriptor.sha256 != head.sha256:
            raise Answer(403, "the upload is over, or promised other bytes; ask for another URL")
        arrival = Arrival(key, head, proof=Proof(version, descriptor))
        return await self._take(body, arrival, Checker(descriptor))

    async def _take(self, body: _Pieces, arrival: Arrival, inspector: _Inspector) -> Arrival:
        """Take the body in as the object it should be: the arrival, with all that is known of
        it."""
        loop, threads, expected = asyncio.get_running_loop(), self.threads, arrival.head.length
        await body.gather(min(expected + 1, WHOLE))
        if not body.more:
            return await loop.run_in_executor(threads, self._take_whole, body, arrival, inspector)
        known = await loop.run_in_executor(threads, self._known, arrival)
        if known is not None:
            return known
        with await loop.run_in_executor(threads, self.blobs.create, arrival.key) as writer:
            await loop.run_in_executor(threads, _absorb, body.pieces, writer, inspector)
            while body.more and inspector.head().length <= expected:
                await body.gather(PIECE)
                await loop.run_in_executor(threads, _absorb, body.pieces, writer, inspector)
            return await loop.run_in_executor(threads, self._finish, writer, inspector, arrival)

    def _take_whole(self, body: _Pieces, arrival: Arrival, inspector: _Inspector) -> Arrival:
        known = self._known(arrival)
        if known is not None:
            return known
        with self.blobs.create(arrival.key) as writer:
            _absorb(body.pieces, writer, inspector)
            return self._finish(writer, inspector, arrival)

    def _known(self, arrival: Arrival) -> Arrival | None:
        """That of an object whose body need not be taken in, because it is there."""
        if arrival.proof is not None or not self.blobs.has(arrival.key):
            return None
        return self._looked_at(arrival, made=False)

    def _finish(self, writer: BlobWriter, inspector: _Inspector, arrival: Arrival) -> Arrival:
        _check_whole(inspector, arrival.head)
        return self._looked_at(arrival, made=writer.commit())

    def _looked_at(self, arrival: Arrival, *, made: bool) -> Arrival:
        if arrival.proof is not None:
            return arrival._replace(made=made)
        found = bundles.index_of(self.blobs, arrival.key)
        return arrival._replace(made=made, bundle=found)


class _Inspector(Protocol):
    """Looks at bytes on their way in. May raise `BadContent`."""

    def feed(self, piece: bytes) -> None: ...

    def head(self) -> Head:
        """Length and SHA-256 of what came."""

    def finish(self) -> None:
        """All has come."""


class _Taken:
    """Only measures."""

    def __init__(self) -> None:
        self._length = 0
        self._hasher = hashlib.sha256()

    def feed(self, piece: bytes) -> None:
        self._hasher.update(piece)
        self._length += len(piece)

    def head(self) -> Head:
        return Head(self._length, self._hasher.digest())

    def finish(self) -> None: ...


class _Pieces:
    """A request's body as it arrives. `pieces` are the last ones gathered; they are not joined: new
    large buffers cost page faults. `more` follows."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._taken = 0
        self.pieces: list[bytes] = []
        self.more = True

    async def gather(self, limit: int) -> None:
        """The next bytes, in place of those before: until the body ends, or there are at least
        `limit`, or no room for more.

        Raises `Answer` when it breaks off, or is too slow, or there is no room at all.
        """
        self.pieces, until = [], self._taken + limit
        self._body.let_go()
        while self.more and self._taken < until and (not self.pieces or self._body.has_room()):
            message = await self._next()
            piece: bytes = message.get("body", b"")
            self.pieces.append(piece)
            self._taken += len(piece)
            self.more = message.get("more_body", False)

    async def _next(self) -> MutableMapping[str, Any]:
        try:
            return await self._body()
        except TooSlow:
            raise Answer(408, "the body is too slow; try again") from None
        except ClientGone:
            raise Answer(GONE_STATUS, "the body ended early") from None
        except Refused as error:
            raise _no_room(error) from None


def _trusted(body: Body, drive: str) -> _Pieces:
    """`body`, that of a good signature for `drive`. Raises `Answer`."""
    try:
        body.trust(drive)
    except Refused as error:
        raise _no_room(error) from None
    return _Pieces(body)


def _no_room(refused: Refused) -> Answer:
    headers = headers_for(refused.problem).items()
    status = 429 if isinstance(refused.problem, RateLimited) else 413
    named = [(name.lower().encode(), value.encode()) for name, value in headers]
    return Answer(status, refused.problem.message, *named)


def _absorb(pieces: list[bytes], writer: BlobWriter, inspector: _Inspector) -> None:
    for piece in pieces:
        try:
            inspector.feed(piece)
        except BadContent as error:
            raise Answer(400, f"the body is not the chunk: {error}") from error
        writer.write(piece)


def _check_whole(inspector: _Inspector, promised: Head) -> None:
    got = inspector.head()
    if got.length != promised.length:
        raise Answer(400, f"the body has {got.length} bytes, not {promised.length}")
    if got.sha256 != promised.sha256:
        raise Answer(400, "the body does not have the SHA-256 that was signed")
    try:
        inspector.finish()
    except BadContent as error:
        raise Answer(400, f"the body is not the chunk: {error}") from error


def _promised(scope: MutableMapping[str, Any]) -> Head:
    """Length and SHA-256 that the request's headers announce."""
    length = header_of(scope, b"content-length")
    checksum = header_of(scope, b"x-amz-checksum-sha256")
    if length is None or not length.isdigit() or len(length) > 18:
        raise Answer(411, "an exact Content-Length is required")
    try:
        sha256 = base64.b64decode(checksum or b"", validate=True)
    except binascii.Error:
        sha256 = b""
    if len(sha256) != 32:
        raise Answer(400, "x-amz-checksum-sha256 must be the base64 of 32 bytes")
    return Head(int(length), sha256)
