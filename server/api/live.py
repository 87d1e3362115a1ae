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
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import WebSocket, websocket
from sqlalchemy import Connection

from remote.errors import RULES, Refused
from remote.wire import Change, Hint
from server import feed
from server.accounts import Caller
from server.api.exchange import MSGPACK, service_of, token_in
from server.feed import News, Position, Subscription
from server.service import Service

INLINE_BYTES = 64 * 1024
GOING_AWAY = 1001
TOKEN_REFUSED = 4401

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
        await _Pusher(socket, service, token, news, position).serve()


def _subscribed(service: Service, drive: str) -> contextlib.AbstractContextManager[Subscription]:
    return service.fanout.subscribe(feed.drive_topic(drive))


@dataclass
class _Pusher:
    """Tells one socket what `news` brings. `position` is where the receiver has been told of."""

    socket: Socket
    service: Service
    token: str | None
    news: Subscription
    position: Position

    async def serve(self) -> None:
        """Push until either side leaves."""
        pushing = asyncio.create_task(self._push())
        leaving = asyncio.create_task(_until_closed(self.socket))
        try:
            await asyncio.wait((pushing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if pushing.done() and not leaving.done():
                code = pushing.result()
                await self.socket.send({"type": "websocket.close", "code": code, "reason": ""})
        finally:
            for task in (pushing, leaving):
                task.cancel()
            await asyncio.gather(pushing, leaving, return_exceptions=True)

    async def _push(self) -> int:
        """Send hints; returns the code to close with. The token is checked before each hint, so a
        revoked device learns nothing more."""
        cursor = self.service.cursors.write(self.position)
        await self._send(Hint(since=cursor, cursor=cursor, seq=self.position.seq))
        while True:
            try:
                latest = await self.news.next()
                await self.service.read(self.token, lambda _conn, _caller: None)
            except feed.Closed:
                return GOING_AWAY
            except Refused:
                return TOKEN_REFUSED
            if latest.epoch != self.position.epoch or latest.seq > self.position.seq:
                await self._tell(latest)

    async def _tell(self, latest: News) -> None:
        reached = Position(latest.epoch, latest.drive, latest.seq)
        before, after = (self.service.cursors.write(each) for each in (self.position, reached))
        changes = self._changes(latest)
        since = before if changes else after
        await self._send(Hint(since=since, cursor=after, seq=latest.seq, changes=changes))
        self.position = reached

    def _changes(self, latest: News) -> list[Change]:
        """What is new to the receiver, if that is known without a gap and small."""
        if latest.since > self.position.seq or latest.epoch != self.position.epoch:
            return []
        fresh = [change for change in latest.changes if change.seq > self.position.seq]
        return fresh if len(_encode(fresh)) <= INLINE_BYTES else []

    async def _send(self, hint: Hint) -> None:
        frame = _encode(hint)
        await self.socket.send({"type": "websocket.send", "bytes": frame, "text": None})


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
