"""Refusing a request: a Problem as ASGI messages.

Knows: both encodings, how a WebSocket's handshake is refused over HTTP, Retry-After. Must not know:
why anything is refused.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from remote.protocol.errors import RULES, Problem, RateLimited

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

MSGPACK = "application/msgpack"
JSON = "application/json"
MSGPACK_NAMES = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")


def wants_msgpack(accept: str, content_type: str) -> bool:
    """True if the answer is to be in msgpack: the one of the two that `accept` prefers, else that
    of `content_type`."""
    accept = accept.lower()
    if any(name in accept for name in MSGPACK_NAMES):
        return True
    return JSON not in accept and content_type in MSGPACK_NAMES


def headers_for(problem: Problem) -> dict[str, str]:
    """Headers that `problem` is answered with besides its content type."""
    if isinstance(problem, RateLimited):
        return {"retry-after": str(max(1, math.ceil(problem.retry_after_seconds)))}
    return {}


async def refuse(
    scope: MutableMapping[str, Any],
    send: Send,
    problem: Problem,
    *,
    status: int | None = None,
    close: bool = False,
) -> None:
    """Answer an HTTP request, or a WebSocket's handshake, with `problem`, by default with the
    status of `errors.RULES`. `close`: the connection ends with it."""
    kind = MSGPACK if _wants(scope) else JSON
    encode = msgspec.msgpack.encode if kind == MSGPACK else msgspec.json.encode
    body = encode(problem)
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), v.encode()) for name, v in headers_for(problem).items()]
    if close:
        headers.append((b"connection", b"close"))
    begin = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    chosen = RULES[type(problem)].status if status is None else status
    await send({"type": f"{begin}.start", "status": chosen, "headers": headers})
    await send({"type": f"{begin}.body", "body": body, "more_body": False})


def _wants(scope: MutableMapping[str, Any]) -> bool:
    accept, content_type = header(scope, b"accept"), header(scope, b"content-type")
    if scope["type"] == "websocket":  # whose frames are MessagePack
        content_type = MSGPACK.encode()
    kind = content_type.partition(b";")[0].strip().lower()
    return wants_msgpack(accept.decode("latin-1"), kind.decode("latin-1"))


def header(scope: MutableMapping[str, Any], name: bytes) -> bytes:
    """The first value of a header; empty if there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""
