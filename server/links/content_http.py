"""GET /content/...: whole files and archives for those who have no client of ours.

Knows: signed content URLs, HTTP's rules for ranges, streaming, the headers that keep content from
acting in a browser. Must not know: pages, passwords, how a link is made.

A plain ASGI application like the edge. The signature is checked on the raw request target; whether
the link still stands is asked at every request, so revoking one does not wait for its URLs to
expire, which takes hours. Who begins a download was counted when its URL was made: a Range that
goes on with it is not counted again, and HEAD never is.

Bodies are made a piece at a time in a thread, and a piece is made when the one before it was taken:
memory is constant, and a client that takes nothing for `stall_seconds`, or is gone, ends its
stream. So does damage: the connection is closed before the first wrong byte, and as the length (or
the end of the chunked body) is missing, no client takes what came for the whole.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection

from remote.protocol.codec import Buffer
from remote.protocol.errors import Refused
from remote.protocol.signing import BadSignature
from server.addresses import client_of, limited_as
from server.links import tree
from server.links.content import PIECE, DamagedContent, Document, Library
from server.links.filenames import disposition
from server.links.signing import ZIP, LinkSigner, Wanted
from server.links.tree import LinkGone, LinkTree
from server.links.zip import archive
from server.metrics import Metrics
from server.storage.edge import Answer, Message, Receive, Send, header_of, parse_range, target_of

log = structlog.get_logger("nearline.content")

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]

# Archives in the making at a time: each keeps its index in memory.
MAX_ARCHIVES = 8
# Of those, for one address: who takes them slowly must leave some to others.
MAX_ARCHIVES_EACH = 3
STALL_SECONDS = 60.0

# On every answer from here: whatever the bytes are, a browser does nothing with them.
HARMLESS: Headers = [
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-robots-tag", b"noindex"),
    (b"cache-control", b"private, no-store"),
]


@dataclass
class ContentServer:
    """`reads` answers questions to the database, `files` makes bodies.

    Concurrency: the event loop, but for what runs in the two.
    """

    library: Library
    signer: LinkSigner
    metrics: Metrics
    reads: Executor
    files: Executor
    stall_seconds: float = STALL_SECONDS
    _archives: Counter[str] = field(default_factory=Counter, init=False)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise Answer(405, "GET content", (b"allow", b"GET, HEAD"))
            wanted = self.signer.check_content(target_of(scope), time.time_ns())
            if wanted.look and scope["method"] != "HEAD":
                raise Answer(405, "this address is for HEAD; open the link", (b"allow", b"HEAD"))
            if wanted.version == ZIP:
                await self._archive(scope, receive, send, wanted)
            else:
                await self._document(scope, receive, send, wanted)
        except BadSignature as error:
            await _answer(send, Answer(403, f"{error}; open the link again"))
        except (LinkGone, Refused):
            await _answer(send, Answer(404, "the link does not show this any more"))
        except Answer as error:
            await _answer(send, error)

    # --- one file ---

    async def _document(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, wanted: Wanted
    ) -> None:
        found, document = await self._ask(lambda conn: self._served(conn, wanted))
        etag = b'"%s"' % wanted.version.encode()
        asked = _range(scope, document, etag)
        start, end = asked or (0, document.size)
        headers = _headers(found.name)
        headers += [
            (b"content-length", str(end - start).encode()),
            (b"accept-ranges", b"bytes"),
            (b"etag", etag),
        ]
        if asked is not None:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, document.size)))
        status = 206 if asked is not None else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body: Iterator[Buffer] = iter(())
        if scope["method"] == "GET":
            body = document.read(start, end)
        await self._stream(body, receive, send, wanted)

    def _served(self, conn: Connection, wanted: Wanted) -> tuple[Any, Document]:
        link, file, version, _ = wanted
        return tree.served(conn, self.library, link, file, version, time.time_ns())

    # --- a directory ---

    async def _archive(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, wanted: Wanted
    ) -> None:
        holder = limited_as(client_of(scope))
        is_many = self._archives[holder] >= MAX_ARCHIVES_EACH
        if is_many or self._archives.total() >= MAX_ARCHIVES:
            raise Answer(503, "too many archives at once; try again", (b"retry-after", b"30"))
        self._archives[holder] += 1
        try:
            top = await self._ask(
                lambda conn: tree.served_directory(
                    conn, self.library, wanted.link, wanted.file, time.time_ns()
                )
            )
            headers = [*_headers(top.name + ".zip"), (b"accept-ranges", b"none")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            body: Iterator[Buffer] = iter(())
            if scope["method"] == "GET":
                body = archive(LinkTree(self.library, wanted.link, time.time_ns), top)
            await self._stream(body, receive, send, wanted)
        finally:
            self._archives[holder] -= 1
            self._archives += Counter()  # forgets those without any

    # --- streaming ---

    async def _ask(self, work: Callable[[Connection], T]) -> T:
        def job() -> T:
            with self.library.read() as conn:
                return work(conn)

        return await asyncio.get_running_loop().run_in_executor(self.reads, job)

    async def _stream(
        self, body: Iterator[Buffer], receive: Receive, send: Send, wanted: Wanted
    ) -> None:
        """Send `body` while there is somebody who takes it. Returns without the end of the body
        when that cannot be sent: the server under us then closes the connection."""
        gone = asyncio.ensure_future(_disconnected(receive))
        about = {"link": wanted.link, "file": wanted.file}
        loop = asyncio.get_running_loop()
        try:
            while not gone.done():
                piece = await loop.run_in_executor(self.files, _take, body)
                await self._send(send, piece)
                if not piece:
                    return
            log.info("download_left", **about)
        except _Stalled:
            log.warning("download_stalled", seconds=self.stall_seconds, **about)
        except (DamagedContent, Refused) as error:
            log.error("download_damaged", error=str(error), **about)
        except LinkGone:
            log.info("download_revoked", **about)
        finally:
            gone.cancel()
            await asyncio.wait([gone])

    async def _send(self, send: Send, piece: bytes) -> None:
        message: Message = {"type": "http.response.body", "body": piece, "more_body": bool(piece)}
        try:
            async with asyncio.timeout(self.stall_seconds):
                await send(message)
        except TimeoutError:
            raise _Stalled from None
        self.metrics.served_bytes.inc(len(piece))


class _Stalled(Exception):
    """The client took nothing for too long."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _take(body: Iterator[Buffer]) -> bytes:
    """The next bytes, about a `PIECE`; empty: the end."""
    taken: list[Buffer] = []
    length = 0
    for item in body:
        taken.append(item)
        length += len(item)
        if length >= PIECE:
            break
    return b"".join(taken)


def _range(
    scope: MutableMapping[str, Any], document: Document, etag: bytes
) -> tuple[int, int] | None:
    """The Range asked for, unless it is to go on with something else than this."""
    condition = header_of(scope, b"if-range")
    if condition is not None and condition != etag:
        return None
    return parse_range(header_of(scope, b"range"), document.size)


def _headers(name: str) -> Headers:
    return [
        (b"content-type", b"application/octet-stream"),
        (b"content-disposition", disposition(name).encode("ascii")),
        *HARMLESS,
    ]


async def _answer(send: Send, answer: Answer) -> None:
    body = answer.text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        *HARMLESS,
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
