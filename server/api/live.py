"""The change feed pushed over a WebSocket.

The first message is a hint with the drive's head; then one follows per commit (several commits may
share one). A hint's `since` is the `cursor` of the one before, and the changes are inside while
they are small; otherwise `since` is the hint's own `cursor`, where nobody is yet, so the receiver
pulls. Frames are binary MessagePack; the client sends nothing.

A refused handshake is answered over HTTP with the Problem and its status.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from litestar import WebSocket, websocket
from sqlalchemy import Connection

from remote.errors import RULES, Refused
from remote.wire import Hint
from server import feed
from server.accounts import Caller
from server.api.exchange import MSGPACK, service_of, token_in
from server.feed import News, Position, Subscription
from server.service import Service

INLINE_BYTES = 64 * 1024
GOING_AWAY = 1001

Socket = WebSocket[Any, Any, Any]

_encode = msgspec.msgpack.Encoder().encode


@websocket("/v1/changes/live")
async def live(socket: Socket) -> None:
    service, token = service_of(socket), token_in(socket)
    try:
        drive = await service.read(token, lambda _, caller: caller.drive)
        cursor = socket.query_params.get("cursor")
        if cursor:
            service.cursors.read(cursor)
    except Refused as refused:
        await _refuse(socket, refused)
        return
    await socket.accept()
    with service.metrics.live.track_inprogress(), _subscribed(service, drive) as news:

        def head(conn: Connection, caller: Caller) -> Position:
            return feed.head(conn, caller.drive)

        position = await service.read(token, head)
        await _serve(socket, service, news, position)


def _subscribed(service: Service, drive: str) -> contextlib.AbstractContextManager[Subscription]:
    return service.fanout.subscribe(feed.drive_topic(drive))


async def _serve(socket: Socket, service: Service, news: Subscription, position: Position) -> None:
    """Push until either side leaves."""
    pushing = asyncio.create_task(_push(socket, service, news, position))
    leaving = asyncio.create_task(_until_closed(socket))
    try:
        await asyncio.wait((pushing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if pushing.done() and not leaving.done():
            pushing.result()
            await socket.send({"type": "websocket.close", "code": GOING_AWAY, "reason": ""})
    finally:
        for task in (pushing, leaving):
            task.cancel()
        await asyncio.gather(pushing, leaving, return_exceptions=True)


async def _push(socket: Socket, service: Service, news: Subscription, position: Position) -> None:
    cursor = service.cursors.write(position)
    await _send(socket, Hint(since=cursor, cursor=cursor, seq=position.seq))
    while True:
        try:
            latest = await news.next()
        except feed.Closed:
            return
        if latest.epoch == position.epoch and latest.seq <= position.seq:
            continue
        cursor, position = await _hint(socket, service, cursor, position, latest)


async def _hint(
    socket: Socket, service: Service, cursor: str, position: Position, latest: News
) -> tuple[str, Position]:
    """Tell of `latest`; returns where the receiver is then."""
    reached = Position(latest.epoch, latest.drive, latest.seq)
    after = service.cursors.write(reached)
    fresh = [change for change in latest.changes if change.seq > position.seq]
    gapless = latest.since <= position.seq and latest.epoch == position.epoch
    changes = fresh if gapless and len(_encode(fresh)) <= INLINE_BYTES else []
    since = cursor if changes else after
    await _send(socket, Hint(since=since, cursor=after, seq=latest.seq, changes=changes))
    return after, reached


async def _send(socket: Socket, hint: Hint) -> None:
    await socket.send({"type": "websocket.send", "bytes": _encode(hint), "text": None})


async def _until_closed(socket: Socket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _refuse(socket: Socket, refused: Refused) -> None:
    body = _encode(refused.problem)
    headers = [(b"content-type", MSGPACK.encode()), (b"content-length", b"%d" % len(body))]
    status = RULES[type(refused.problem)].status
    await socket.send(
        {"type": "websocket.http.response.start", "status": status, "headers": headers}
    )
    await socket.send({"type": "websocket.http.response.body", "body": body, "more_body": False})
