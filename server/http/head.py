"""HEAD, wherever there is GET: the same answer, its body left out.

Knows: how a HEAD becomes a GET for whoever answers, and what of the answer is sent. Must not know:
any endpoint.

Whoever answers does what it does for GET, so status and headers cannot differ. An endpoint whose
GET does more than tell (it counts, it streams for long) asks `is_head` and leaves that out.
"""

from __future__ import annotations

from typing import Any

from server.http.problems import Message, Send

_MARK = "nearline.head"


def is_head(scope: Any) -> bool:
    """True if the GET of `scope` was asked as HEAD."""
    return bool(scope.get(_MARK))


def as_get(scope: Any, send: Send) -> tuple[Any, Send]:
    """The GET that tells what a HEAD of `scope` asks, and where to answer it. Other requests are
    as they were."""
    if scope["type"] != "http" or scope["method"] != "HEAD":
        return scope, send

    async def without_body(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
        elif not message.get("more_body", False):
            await send({"type": "http.response.body", "body": b""})

    return {**scope, "method": "GET", _MARK: True}, without_body
