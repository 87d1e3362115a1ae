"""The change feed pushed over a WebSocket.

The first message is a hint with the position of this moment; then one follows per commit in the
receiver's view (several commits may share one). A hint's `since` is the `cursor` of the one before,
and the changes are inside while they are small and of the receiver's own drive; otherwise `since`
is the hint's own `cursor`, where nobody is yet, so the receiver pulls. Frames are binary
MessagePack; the client sends nothing, and a socket on which it does is closed.

A refused handshake is answered over HTTP with the Problem and its status. An account has so many
sockets at a time. Codes of closing: 1001 connect again (the server stops, or the socket is old),
1003 the client sent something, 4401 the token is not good any more. A peer that does not answer
pings, or does not read, is cut (`protocols`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection

from remote.protocol.errors import RateLimited, Refused
from remote.protocol.messages import Change, Hint
from server.api.endpoint import websocket
from server.api.exchange import Socket
from server.changes import feed
from server.changes.fanout import Closed, News, Subscription, drive_topic
from server.changes.feed import Position
from server.changes.views import View, view_of
from server.permissions.caller import Caller
from server.service import Service

INLINE_BYTES = 64 * 1024
GOING_AWAY = 1001
NOT_EXPECTED = 1003
TOKEN_REFUSED = 4401

_encode = msgspec.msgpack.Encoder().encode


@websocket("/v1/changes/live")
async def live(socket: Socket, cursor: str | None = None) -> None:
    service = socket.service

    def look(conn: Connection, caller: Caller) -> tuple[str, View]:
        return caller.account, view_of(conn, caller, service.nesting)

    account, view = await socket.read(look)
    if cursor:
        service.cursors.read(cursor)
    with _place(service, account):
        await socket.accept()
        with service.metrics.live.track_inprogress():
            await _Pusher(socket, service, socket.token, view).serve()


@contextmanager
def _place(service: Service, account: str) -> Iterator[None]:
    """One of the account's places. Raises `Refused(RateLimited)`."""
    if not service.sockets.take(account):
        service.metrics.limited.labels("sockets").inc()
        message = "the account has too many open change feeds; poll instead"
        raise Refused(RateLimited(message=message, retry_after_seconds=60.0))
    try:
        yield
    finally:
        service.sockets.leave(account)


# uvicorn (0.54, websockets_sansio_impl) takes nothing but an acceptance when its transport began to
# close, because the client had gone, a moment before the first one.
_UNACCEPTED = "Expected ASGI message 'websocket.accept'"


@dataclass
class _Pusher:
    """Tells one socket what happens in the view of its token. `position` is where the receiver has
    been told of; of a drive that is not its own it is only told to pull."""

    socket: Socket
    service: Service
    token: str | None
    view: View
    position: Position | None = None

    async def serve(self) -> None:
        """Push until either side leaves, or the socket is old."""
        pushing = asyncio.create_task(self._push())
        leaving = asyncio.create_task(_until_heard_of(self.socket))
        age = self.service.settings.tunables.socket_max_age_seconds
        try:
            tasks = (leaving, pushing)
            await asyncio.wait(tasks, timeout=age, return_when=asyncio.FIRST_COMPLETED)
            ended = next((task for task in tasks if task.done()), None)
            code = GOING_AWAY if ended is None else ended.result()
            if code is not None:
                await self.socket.send({"type": "websocket.close", "code": code, "reason": ""})
        finally:
            for task in (pushing, leaving):
                task.cancel()
            await asyncio.gather(pushing, leaving, return_exceptions=True)

    async def _push(self) -> int | None:
        """Send hints; returns the code to close with. Listens anew whenever the view changed."""
        try:
            while True:
                with self.service.fanout.subscribe(self.view.listens_to) as news:
                    await self._follow(news)
        except Closed:
            return GOING_AWAY
        except Refused:
            return TOKEN_REFUSED
        except OSError:  # what ASGI servers raise when the client has gone
            return None
        except RuntimeError as error:
            if _UNACCEPTED not in str(error):
                raise
            return GOING_AWAY

    async def _follow(self, news: Subscription) -> None:
        """Push until the view is another one. The token is checked before each hint, so a revoked
        device learns nothing more."""
        listened = self.view.listens_to
        await self._look_again()
        while self.view.listens_to == listened:
            found = await news.next()
            if [item.topic for item in found] == [drive_topic(self.view.drive)]:
                await self.service.read(self.token, lambda _conn, _caller: None)
                await self._tell(found[0])
            else:
                await self._look_again()

    async def _look_again(self) -> None:
        """Something may have happened anywhere in the view: have it pulled."""

        def work(conn: Connection, caller: Caller) -> tuple[View, Position]:
            view = view_of(conn, caller, self.service.nesting)
            return view, feed.here(conn, view)

        self.view, reached = await self.service.read(self.token, work)
        if reached != self.position:
            self.position = reached
            cursor = self.service.cursors.write(reached)
            await self._send(Hint(since=cursor, cursor=cursor, seq=reached.seq))

    async def _tell(self, latest: News) -> None:
        """Changes of the receiver's own drive, inside the hint while they are small."""
        before = self.position
        assert before is not None
        if latest.epoch == before.epoch and latest.seq <= before.seq:
            return
        reached = before._replace(epoch=latest.epoch, seq=latest.seq)
        old, new = (self.service.cursors.write(item) for item in (before, reached))
        changes = self._changes(before, latest)
        since = old if changes else new
        await self._send(Hint(since=since, cursor=new, seq=latest.seq, changes=changes))
        self.position = reached

    def _changes(self, before: Position, latest: News) -> list[Change]:
        """Changes that are new to the receiver, if they are known without a gap and are small."""
        if latest.since > before.seq or latest.epoch != before.epoch:
            return []
        fresh = [change for change in latest.changes if change.seq > before.seq]
        left = INLINE_BYTES
        for change in fresh:  # one after the other: all of them may be very much
            left -= len(_encode(change))
            if left < 0:
                return []
        return fresh

    async def _send(self, hint: Hint) -> None:
        frame = _encode(hint)
        await self.socket.send({"type": "websocket.send", "bytes": frame, "text": None})


async def _until_heard_of(socket: Socket) -> int | None:
    """Wait for the client to leave, or to say something; returns the code to close with."""
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.receive":
            return NOT_EXPECTED
    return None
