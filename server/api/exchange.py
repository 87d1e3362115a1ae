"""One request and its answer: bodies in and out, in JSON or MessagePack; or one socket.

Knows: content types, who asks of which service. Must not know: what any endpoint does, how it is
found and what is refused in which words (`dispatch`).

The answer comes in what `Accept` prefers of the two, else in the request's own content type, else
in JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, MutableMapping, Sequence, Set
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from sqlalchemy import Connection

from remote.protocol.errors import BadRequest, Refused, TooLarge
from server.addresses import client_of
from server.api.endpoint import Endpoint
from server.changes.fanout import News
from server.http.bearer import check_present, token_of
from server.http.bodies import Receive, body_of
from server.http.problems import JSON, MSGPACK, MSGPACK_NAMES, Message, Send, header, wants_msgpack
from server.permissions.caller import Caller
from server.service import Service

_INLINE_BYTES = 64 * 1024

T = TypeVar("T")
Work = Callable[[Connection, Caller], T]

_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode


class Response(NamedTuple):
    """An answer; without a `media_type` its body is empty."""

    body: bytes = b""
    media_type: str | None = None
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})

    async def send(self, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        if self.media_type is not None:
            headers.append((b"content-type", self.media_type.encode()))
        if self.status != 204:
            headers.append((b"content-length", b"%d" % len(self.body)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


class Request:
    """A request as an endpoint sees it. `token` is the bearer token of the Authorization header,
    the only place it may be in; `endpoints` are all that there are."""

    def __init__(
        self,
        service: Service,
        endpoints: tuple[Endpoint, ...],
        scope: MutableMapping[str, Any],
        receive: Receive,
    ) -> None:
        self.service, self.endpoints = service, endpoints
        self.scope, self._receive = scope, receive
        self.token = token_of(self.header(b"authorization"))

    def header(self, name: bytes) -> str:
        """The first value of a header; empty if there is none."""
        return header(self.scope, name).decode("latin-1")

    @property
    def address(self) -> str:
        return client_of(self.scope)

    # --- transactions on behalf of who asks; all raise `Refused` ---

    async def read(self, work: Work[T]) -> T:
        return await self.service.read(self.token, work)

    async def write(self, work: Work[T], chunks: Set[bytes] = frozenset()) -> T:
        """`work` is to know which of `chunks` have arrived."""
        return await self.service.write(self.token, work, chunks)

    async def publish(self, work: Work[tuple[Sequence[News], T]]) -> T:
        """Commit `work`, then tell those whom it concerns."""
        news, answer = await self.write(work)
        for item in news:
            self.service.fanout.publish(item)
        return answer

    # --- bodies ---

    async def message(self, kind: type[T], *, public: bool = False) -> T:
        """The body as a `kind`. Raises `Refused(BadRequest)`.

        Unless the endpoint is `public`, who has no good token can neither make the server take in a
        body nor learn what is wrong with one: that is answered `Unauthorized`.
        """
        if not public:
            check_present(self.token)
            await self._vouch()
        raw = await self._taken()
        try:
            if len(raw) <= _INLINE_BYTES:
                return cast("T", _decode(raw, self._content_type(), kind))
            decode = partial(_decode, raw, self._content_type(), kind)
            whose = self.service.whose(self.token)
            queued = self.service.reads.submit_for(whose, decode)
            return cast("T", await asyncio.wrap_future(queued))
        except Refused:
            if not public:
                await self._authenticate()
            raise

    async def form(self, limit: int) -> bytes:
        """The body of who needs no token, at most `limit` bytes. Raises `Refused(TooLarge)`."""
        if body_of(self.scope).length > limit:
            raise Refused(TooLarge(message="the request's body is too large"))
        return await self._taken()

    async def _taken(self) -> bytes:
        parts, more = list[bytes](), True
        while more:
            message = await self._receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _vouch(self) -> None:
        """Have the body taken as that of a good token: one that was good a moment ago does for a
        small body, one that is good now for any. Raises `Refused`."""
        arriving = body_of(self.scope)
        if arriving.length and (not arriving.is_trusted or arriving.length > _INLINE_BYTES):
            arriving.trust(await self._authenticate())

    async def _authenticate(self) -> str:
        """The account that asks. Raises `Refused(Unauthorized)`."""
        return await self.read(lambda _conn, caller: caller.account)

    def reply(self, message: object) -> Response:
        if wants_msgpack(self.header(b"accept"), self._content_type()):
            return Response(_to_msgpack(message), MSGPACK)
        return Response(_to_json(message), JSON)

    def _content_type(self) -> str:
        return self.header(b"content-type").partition(";")[0].strip().lower()


class Socket(Request):
    """A WebSocket; before it is accepted it may be refused as a request is."""

    def __init__(
        self,
        service: Service,
        endpoints: tuple[Endpoint, ...],
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        super().__init__(service, endpoints, scope, receive)
        self.send = send

    async def accept(self) -> None:
        await self._receive()  # the client's wish to connect
        await self.send({"type": "websocket.accept", "subprotocol": None, "headers": []})

    async def receive(self) -> Message:
        return await self._receive()


def _decode(raw: bytes, content_type: str, kind: Any) -> Any:
    if content_type not in (JSON, *MSGPACK_NAMES):
        raise Refused(BadRequest(message=f"send {JSON} or {MSGPACK}, not {content_type!r}"))
    try:
        return _decoder(kind, content_type != JSON).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(BadRequest(message=str(error) or type(error).__name__)) from error


@lru_cache(maxsize=64)
def _decoder(kind: Any, msgpack: bool) -> Any:
    return msgspec.msgpack.Decoder(kind) if msgpack else msgspec.json.Decoder(kind)
