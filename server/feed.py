"""The change feed: cursors, pages of changes, and telling those who listen.

Knows: what a cursor says, how changes are read back, how news travel inside this process. Must not
know: how changes come about (`commits`), sockets (`api.live`).

A cursor is (epoch, drive, sequence number) with a MAC: opaque to clients, and made the same way
every time, so that equal positions are equal strings. A cursor of another epoch, or of a future
that never happened, is answered with a `reset` page.

News are hints. They are published after the commit and may be merged or lose their changes, but the
last sequence number of a topic always reaches every subscriber.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
from sqlalchemy import Connection, bindparam, select

from remote.errors import BadRequest, Refused
from remote.wire import Change, ChangesPage
from server.schema import changes, drives

PAGE_CHANGES = 1000
PAGE_BYTES = 4 * 1024 * 1024
INLINE_CHANGES = 64
_MAC_BYTES = 12

_decode_change = msgspec.msgpack.Decoder(Change).decode
_AFTER = (
    select(changes.c.seq, changes.c.payload)
    .where(changes.c.topic == bindparam("topic"), changes.c.seq > bindparam("seq"))
    .order_by(changes.c.seq)
    .limit(bindparam("count"))
)


def drive_topic(drive: str) -> str:
    return f"drive/{drive}"


def grant_topic(file: str) -> str:
    return f"grant/{file}"


# --- cursors ------------------------------------------------------------------------------------


class Position(NamedTuple):
    epoch: str
    drive: str
    seq: int


class Cursors:
    """Makes and reads cursors; `secret` is the server's own."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def write(self, position: Position) -> str:
        body = msgspec.msgpack.encode(position)
        return base64.urlsafe_b64encode(self._mac(body) + body).decode().rstrip("=")

    def read(self, cursor: str) -> Position:
        """Raises `Refused(BadRequest)` for anything this server did not write."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _not_ours() from None
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise _not_ours()
        return msgspec.msgpack.decode(body, type=Position)

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self._secret, b"cursor v1" + body, hashlib.sha256).digest()[:_MAC_BYTES]


def _not_ours() -> Refused:
    return Refused(BadRequest(message="the cursor is not one of this server; begin with /v1/me"))


# --- pages --------------------------------------------------------------------------------------


def head(conn: Connection, drive: str) -> Position:
    """The position after the drive's last change."""
    query = select(drives.c.epoch, drives.c.head_seq).where(drives.c.id == drive)
    row = conn.execute(query).one()
    return Position(row.epoch, drive, row.head_seq)


def pull(conn: Connection, cursors: Cursors, drive: str, cursor: str | None) -> ChangesPage:
    """The changes of `drive` after `cursor`, at most `PAGE_CHANGES` or about `PAGE_BYTES`."""
    now = head(conn, drive)
    since = cursors.read(cursor) if cursor is not None else None
    if since is None or since[:2] != now[:2] or since.seq > now.seq:
        return ChangesPage(cursor=cursors.write(now), seq=now.seq, changes=[], reset=True)
    found = read_changes(conn, drive, since.seq)
    last = found[-1].seq if found else since.seq
    position = cursors.write(Position(now.epoch, drive, last))
    return ChangesPage(cursor=position, seq=last, changes=found, more=last < now.seq)


def read_changes(conn: Connection, drive: str, seq: int, limit: int = PAGE_CHANGES) -> list[Change]:
    """Changes of `drive` after `seq`, in order: at most `limit`, or about `PAGE_BYTES`."""
    rows = conn.execute(_AFTER, {"topic": drive_topic(drive), "seq": seq, "count": limit})
    found: list[Change] = []
    total = 0
    for row in rows:
        total += len(row.payload)
        if found and total > PAGE_BYTES:
            break
        found.append(_decode_change(row.payload))
    return found


def history(
    conn: Connection, cursors: Cursors, drive: str, file: str, cursor: str | None
) -> ChangesPage:
    """The changes of `drive` that touched `file` or an entry in it, cut down to those records.

    Reads at most one page of the drive's feed, so a page may be empty and still have `more`. Begins
    with the drive's first change when no cursor is given.
    """
    now = head(conn, drive)
    since = Position(now.epoch, drive, 0) if cursor is None else cursors.read(cursor)
    if since[:2] != now[:2] or since.seq > now.seq:
        return ChangesPage(cursor=cursors.write(now), seq=now.seq, changes=[], reset=True)
    found = read_changes(conn, drive, since.seq)
    last = found[-1].seq if found else since.seq
    position = cursors.write(Position(now.epoch, drive, last))
    about = [change for each in found if (change := _about(each, file)) is not None]
    return ChangesPage(cursor=position, seq=last, changes=about, more=last < now.seq)


def _about(change: Change, file: str) -> Change | None:
    records = [record for record in change.files if record.id == file]
    named = [entry for entry in change.entries if file in (entry.file, entry.parent)]
    if not records and not named:
        return None
    return msgspec.structs.replace(change, files=records, entries=named)


# --- fan-out ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class News:
    """Topic `topic` went from `since` to `seq`. `changes` are all between, or empty: pull."""

    topic: str
    epoch: str
    drive: str
    since: int
    seq: int
    changes: tuple[Change, ...]

    def then(self, later: News) -> News:
        """Both in one."""
        made = self.changes + later.changes
        whole = self.seq == later.since and self.changes and later.changes
        kept = made if whole and len(made) <= INLINE_CHANGES else ()
        return News(self.topic, later.epoch, later.drive, self.since, later.seq, kept)


class Closed(Exception):
    """The fan-out is shutting down."""


class Subscription(Protocol):
    async def next(self) -> News:
        """Wait for news since the last call; several are merged. Raises `Closed`."""


class Fanout(Protocol):
    """Carries news from whoever commits to whoever listens; several processes will share one."""

    def publish(self, news: News) -> None: ...

    def subscribe(self, topic: str) -> AbstractContextManager[Subscription]: ...


class LocalFanout:
    """The fan-out inside one process.

    Concurrency: `publish` may be called from any thread; everything else, and all state, belongs to
    the event loop's thread.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._topics: dict[str, set[_Mailbox]] = {}
        self._closed = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on `loop` from now on."""
        self._loop = loop

    def publish(self, news: News) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, news)

    @contextmanager
    def subscribe(self, topic: str) -> Iterator[_Mailbox]:
        box = _Mailbox()
        if self._closed:
            box.close()
        self._topics.setdefault(topic, set()).add(box)
        try:
            yield box
        finally:
            self._topics[topic].discard(box)
            if not self._topics[topic]:
                del self._topics[topic]

    def close(self) -> None:
        """Wake every subscriber with `Closed`."""
        self._closed = True
        for boxes in self._topics.values():
            for box in boxes:
                box.close()

    def listeners(self) -> int:
        return sum(len(boxes) for boxes in self._topics.values())

    def _deliver(self, news: News) -> None:
        for box in self._topics.get(news.topic, ()):
            box.put(news)


class _Mailbox:
    """At most one merged piece of news is kept, so a slow listener costs nothing."""

    def __init__(self) -> None:
        self._news: News | None = None
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, news: News) -> None:
        self._news = news if self._news is None else self._news.then(news)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def next(self) -> News:
        await self._wake.wait()
        if self._closed:
            raise Closed
        self._wake.clear()
        news, self._news = self._news, None
        assert news is not None
        return news
