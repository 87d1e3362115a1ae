"""Somebody who works: an account that makes, writes, lists, reads, follows its feed and logs in.

`python -m bench.hostile.honest`, started by `__main__`, takes an `Errand` as JSON from standard
input and writes a `Diary` to standard output.

Knows: the client that mounts use. Must not know: whether somebody attacks. A request that is
refused for now, or gets no answer, is sent again until it is answered, as a mount would: its time
is that until the answer.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog
import trio

from cache.metadata.operations import new_id
from remote.http.api import ApiClient
from remote.http.transport import Timeouts
from remote.protocol.codec import encode_chunk
from remote.protocol.content import Descriptor, Manifest, Piece
from remote.protocol.errors import Busy, RateLimited, Refused, Unavailable, Unreachable
from remote.protocol.messages import (
    Applied,
    ApplyRequest,
    CompleteUpload,
    Content,
    Create,
    Keyed,
    LocateRequest,
    LoginRequest,
    StartUpload,
    StartUploads,
    UploadState,
)

FILE_BYTES = 16 * 1024
PER_DIRECTORY = 100
# Of the rounds: a login costs tens of milliseconds of processor.
LOGIN_EVERY = 20

T = TypeVar("T")


class Errand(msgspec.Struct):
    """Work for `seconds`, at most `rate` rounds a second."""

    url: str
    account: str
    password: str
    seconds: float
    rate: float


class Diary(msgspec.Struct):
    """`took`: milliseconds of each call, by its kind. `refused`: how many answers were "not now" or
    none at all. `made`: SHA-256 of each file by its id, of those whose commit was answered."""

    took: dict[str, list[float]]
    refused: int
    made: dict[str, str]


class Worker:
    """One run of one errand."""

    def __init__(self, api: ApiClient, errand: Errand) -> None:
        self._api, self._errand = api, errand
        self.diary = Diary({}, 0, {})
        self._here = self._cursor = ""
        self._last: tuple[str, str, Descriptor] | None = None

    async def run(self) -> None:
        login = LoginRequest(self._errand.account, self._errand.password, "honest")
        reply = await self._timed("login", lambda: self._api.login(login))
        self._api.use_token(reply.token)
        me = await self._timed("me", self._api.me)
        self._cursor = me.cursor
        begin = trio.current_time()
        rounds = 0
        while trio.current_time() < begin + self._errand.seconds:
            if rounds % PER_DIRECTORY == 0:
                self._here = await self._make(me.root, "directory")
            await self._round(login, is_login=rounds % LOGIN_EVERY == 0)
            rounds += 1
            await trio.sleep_until(begin + rounds / self._errand.rate)

    async def _round(self, login: LoginRequest, *, is_login: bool) -> None:
        await self._timed("me", self._api.me)
        await self._make(self._here, "directory")
        await self._write()
        await self._timed("list", lambda: self._api.children(self._here))
        page = await self._timed("pull", lambda: self._api.changes(self._cursor))
        self._cursor = page.cursor
        await self._read()
        if is_login:
            await self._timed("login", lambda: self._api.login(login))

    async def _make(self, parent: str, kind: str) -> str:
        file, name = new_id(), os.urandom(8).hex()
        op = Create(file=file, parent=parent, name=name, kind=kind, mode=0o755, mtime_ns=0)  # type: ignore[arg-type]  # a literal, see _round
        request = ApplyRequest([Keyed(key=new_id(), op=op)])
        reply = await self._timed("make", lambda: self._api.apply(request))
        assert isinstance(reply.results[0], Applied), reply.results
        return file

    async def _write(self) -> None:
        data, file, version = os.urandom(FILE_BYTES), new_id(), new_id()
        descriptor, stored = encode_chunk(data)

        async def write() -> None:
            start = StartUpload(
                version=version, file=file, parent=self._here, descriptors=[descriptor]
            )
            begun = (await self._api.start_uploads(StartUploads(uploads=[start]))).uploads[0]
            assert isinstance(begun, UploadState), begun
            for ticket in begun.chunks:
                if ticket.put is not None:
                    await self._api.put_chunk(ticket.put, stored)
            pieces = [Piece(descriptor.id, len(data))]
            manifest = Manifest(size=len(data), average=1 << 20, pieces=pieces)
            content = Content(version=version, manifest=manifest)
            op = Create(
                file=file,
                parent=self._here,
                name=file,
                kind="file",
                mode=0o644,
                mtime_ns=0,
                content=content,
            )
            await self._api.complete(version, CompleteUpload(key=key, op=op))

        key = new_id()
        await self._timed("write", write)
        self.diary.made[file] = hashlib.sha256(data).hexdigest()
        self._last = file, version, descriptor

    async def _read(self) -> None:
        assert self._last is not None
        file, version, descriptor = self._last
        buffer = bytearray(descriptor.stored_length)

        async def read() -> None:
            asked = LocateRequest(file=file, version=version, chunks=[descriptor.id])
            located = (await self._api.locate(asked)).chunks[0]
            await self._api.get_range(located.url, 0, len(buffer), buffer)

        await self._timed("read", read)

    async def _timed(self, kind: str, call: Callable[[], Awaitable[T]]) -> T:
        """Make `call` until it is answered; note how long that was."""
        began = time.perf_counter()
        while True:
            try:
                answer = await call()
                break
            except (Busy, Unreachable):
                self.diary.refused += 1
                await trio.sleep(0.05)
            except Refused as error:
                if not isinstance(error.problem, RateLimited | Unavailable):
                    raise
                self.diary.refused += 1
                await trio.sleep(0.05)
        took = (time.perf_counter() - began) * 1000
        self.diary.took.setdefault(kind, []).append(took)
        return answer


async def work(errand: Errand) -> Diary:
    async with ApiClient(errand.url, None, insecure=True, timeouts=Timeouts(read=120)) as api:
        worker = Worker(api, errand)
        await worker.run()
        return worker.diary


def main() -> None:
    # What is answered goes to standard output, and what the client logs must not.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    errand = msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)
    sys.stdout.buffer.write(msgspec.json.encode(trio.run(work, errand)))


if __name__ == "__main__":
    main()
