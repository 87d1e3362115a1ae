"""The change feed: cursors, and pages of changes.

Knows: what a cursor says, how changes are read back. Must not know: how changes come about
(`commits`), who may see what (`views`), how news travel (`fanout`).

A cursor says how far its owner has come in every drive in their view, and what was shared with them
then. It carries a MAC: opaque to clients, and made the same way every time, so that equal positions
are equal strings. A cursor of another epoch, of a future that never happened, or from before what
has been pruned, is answered with a `reset` page.

In another account's drive a position is the sequence number of the last change that was in view,
not the drive's head, so that what goes on elsewhere in that drive does not move the cursor.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, bindparam, func, or_, select

from remote.protocol.errors import BadRequest, Refused
from remote.protocol.messages import Change, ChangesPage
from server.changes.fanout import is_of_a_part
from server.changes.views import View, with_attributes
from server.metadata.schema import changes, drives

PAGE_CHANGES = 1000
PAGE_BYTES = 4 * 1024 * 1024
_MAC_BYTES = 12

_decode_change = msgspec.msgpack.Decoder(Change).decode
_of_topics = changes.c.topic.in_(bindparam("topics", expanding=True))
_PAYLOADS = (
    select(changes.c.seq, changes.c.payload).order_by(changes.c.seq).limit(bindparam("count"))
)
_AFTER = _PAYLOADS.where(_of_topics, changes.c.seq > bindparam("seq"))
_LAST = select(func.max(changes.c.seq)).where(_of_topics)


# --- cursors ------------------------------------------------------------------------------------


class Position(NamedTuple):
    """A place in the feed: in the reader's own drive, in others' (by drive), and the state of what
    is shared with them that they know."""

    epoch: str
    drive: str
    seq: int
    others: tuple[tuple[str, str, int], ...] = ()
    shared: bytes = b""


class Cursors:
    """Makes and reads cursors; `secret` is the server's own, `past` are those from before.

    Concurrency: any thread; the secrets change as a whole.
    """

    def __init__(self, secret: bytes, past: Sequence[bytes] = ()) -> None:
        self.use(secret, past)

    def use(self, secret: bytes, past: Sequence[bytes] = ()) -> None:
        """Make with this one and read with all from now on."""
        self._secrets = (secret, *past)

    def write(self, position: Position) -> str:
        body = msgspec.msgpack.encode(_pack(position))
        return base64.urlsafe_b64encode(_mac(self._secrets[0], body) + body).decode().rstrip("=")

    def read(self, cursor: str) -> Position:
        """Raises `Refused(BadRequest)` for anything this server did not write."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _not_ours() from None
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not any(hmac.compare_digest(mac, _mac(secret, body)) for secret in self._secrets):
            raise _not_ours()
        return _unpack(msgspec.msgpack.decode(body, type=_Packed))


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.new(secret, b"cursor v2" + body, hashlib.sha256).digest()[:_MAC_BYTES]


_Packed = tuple[str, bytes, int, tuple[tuple[bytes, str, int], ...], bytes]


def _pack(at: Position) -> _Packed:
    others = tuple((bytes.fromhex(drive), epoch, seq) for drive, epoch, seq in at.others)
    return (at.epoch, bytes.fromhex(at.drive), at.seq, others, at.shared)


def _unpack(packed: _Packed) -> Position:
    epoch, drive, seq, others, shared = packed
    return Position(epoch, drive.hex(), seq, tuple((d.hex(), e, s) for d, e, s in others), shared)


def _not_ours() -> Refused:
    return Refused(BadRequest(message="the cursor is not one of this server; begin with /v1/me"))


# --- pages --------------------------------------------------------------------------------------


class Head(NamedTuple):
    epoch: str
    seq: int
    floor: int


def heads(conn: Connection, wanted: Sequence[str]) -> dict[str, Head]:
    """Where each of these drives is now."""
    query = select(drives.c.id, drives.c.epoch, drives.c.head_seq, drives.c.floor_seq)
    rows = conn.execute(query.where(drives.c.id.in_(wanted)))
    return {row.id: Head(row.epoch, row.head_seq, row.floor_seq) for row in rows}


def head(conn: Connection, drive: str) -> Position:
    """The position after the drive's last change, for somebody who knows nothing of shares."""
    now = heads(conn, [drive])[drive]
    return Position(now.epoch, drive, now.seq)


def here(conn: Connection, view: View) -> Position:
    """The position of somebody who has just seen everything in `view`."""
    now = heads(conn, list(view.topics))
    reached = {drive: _start(conn, view, drive, now[drive]) for drive in view.topics}
    return _position(view, now, reached)


def _start(conn: Connection, view: View, drive: str, now: Head) -> int:
    """Where to begin in a drive that nothing is known of yet."""
    if drive == view.drive:
        return now.seq
    last: int | None = conn.execute(_LAST, {"topics": view.topics[drive]}).scalar()
    return max(last or 0, now.floor)


def _position(view: View, now: Mapping[str, Head], reached: Mapping[str, int]) -> Position:
    foreign = sorted(drive for drive in reached if drive != view.drive)
    others = tuple((drive, now[drive].epoch, reached[drive]) for drive in foreign)
    own = now[view.drive]
    return Position(own.epoch, view.drive, reached[view.drive], others, view.digest)


def pull(conn: Connection, cursors: Cursors, view: View, cursor: str | None) -> ChangesPage:
    """The changes in `view` after `cursor`, at most `PAGE_CHANGES` or about `PAGE_BYTES`."""
    since = cursors.read(cursor) if cursor is not None else None
    now = heads(conn, list(view.topics))
    if since is None or not _is_known(conn, since, view, now):
        at = here(conn, view)
        shared = with_attributes(conn, view.shared)
        return ChangesPage(
            cursor=cursors.write(at), seq=at.seq, changes=[], reset=True, shared=shared
        )
    page = _Page()
    before = {since.drive: since.seq} | {drive: seq for drive, _, seq in since.others}
    reached = {}
    for drive in sorted(view.topics, key=lambda each: each != view.drive):
        seq = before[drive] if drive in before else _start(conn, view, drive, now[drive])
        reached[drive] = page.read(conn, view, drive, seq)
    at = _position(view, now, reached)
    return ChangesPage(
        cursor=cursors.write(at),
        seq=at.seq,
        changes=page.found,
        more=page.is_full,
        shared=with_attributes(conn, view.shared) if since.shared != view.digest else None,
    )


def _is_known(conn: Connection, since: Position, view: View, now: Mapping[str, Head]) -> bool:
    """True if the feed can tell what happened since that position."""
    if since.drive != view.drive:
        return False
    reached = [(since.drive, since.epoch, since.seq), *since.others]
    return all(
        now[drive].epoch == epoch
        and seq <= now[drive].seq
        and (now[drive].floor <= seq or _missed_nothing(conn, view.topics[drive], seq, now[drive]))
        for drive, epoch, seq in reached
        if drive in now
    )


def _missed_nothing(conn: Connection, topics: Sequence[str], seq: int, now: Head) -> bool:
    """True if nothing happened in these parts of a drive between `seq` and its floor: of each part
    the newest change up to the floor is kept, to tell that (`retention`)."""
    if not all(map(is_of_a_part, topics)):
        return False
    pruned = _LAST.where(changes.c.seq <= now.floor)
    last: int | None = conn.execute(pruned, {"topics": topics}).scalar()
    return last is None or last <= seq


@dataclass
class _Page:
    """Changes of several drives until there are enough."""

    found: list[Change] = field(default_factory=list)
    size: int = 0
    is_full: bool = False

    def read(self, conn: Connection, view: View, drive: str, seq: int) -> int:
        """Take what follows `seq` in a drive; returns the sequence number reached."""
        left = PAGE_CHANGES - len(self.found)
        if left <= 0 or self.is_full:
            self.is_full = True
            return seq
        by_seq: dict[int, Change] = {}
        for row in _after(conn, view, drive, seq, left + 1):
            known = by_seq.get(row.seq)
            if known is None and self.found_enough(len(by_seq), len(row.payload)):
                self.is_full = True
                break
            self.size += len(row.payload)
            change = _decode_change(row.payload)
            by_seq[row.seq] = change if known is None else _union(known, change)
        self.found += by_seq.values()
        return max(by_seq, default=seq)

    def found_enough(self, taken: int, more_bytes: int) -> bool:
        count = len(self.found) + taken
        return count >= PAGE_CHANGES or (count > 0 and self.size + more_bytes > PAGE_BYTES)


def _after(
    conn: Connection, view: View, drive: str, seq: int, count: int
) -> Iterable[Row[tuple[int, bytes]]]:
    """Rows after `seq` in a drive, of each topic those after its beginning for this view too;
    enough rows for `count` changes."""
    topics = view.topics.get(drive, ())
    late = {each: view.begins[each] for each in topics if view.begins.get(each, 0) > seq}
    there = [each for each in topics if each not in late]
    query = {"topics": there, "seq": seq, "count": count * len(topics)}
    if not late:
        return conn.execute(_AFTER, query)
    parts = [(changes.c.topic == each) & (changes.c.seq > begin) for each, begin in late.items()]
    known = _of_topics & (changes.c.seq > bindparam("seq"))
    return conn.execute(_PAYLOADS.where(or_(known, *parts)), query)


def _union(one: Change, other: Change) -> Change:
    """One change as two topics tell it: a file that left the one may have come into the other."""
    records = {record.id: record for record in one.files}
    for record in other.files:
        if record.id not in records or record.links:
            records[record.id] = record
    named = {(entry.parent, entry.name): entry for entry in (*one.entries, *other.entries)}
    return msgspec.structs.replace(one, files=list(records.values()), entries=list(named.values()))


def history(
    conn: Connection, cursors: Cursors, view: View, drive: str, file: str, since: Any
) -> ChangesPage:
    """The changes in `view` of `drive` that touched `file` or an entry in it, cut down to those
    records. `since` is a cursor; None: from the first change that is still known.

    Reads at most one page of the feed, so a page may be empty and still have `more`.
    """
    now = heads(conn, [drive])[drive]
    at = Position(now.epoch, drive, now.floor) if since is None else cursors.read(since)
    if at[:2] != (now.epoch, drive) or not now.floor <= at.seq <= now.seq:
        start = cursors.write(Position(now.epoch, drive, now.floor))
        return ChangesPage(cursor=start, seq=now.floor, changes=[], reset=True)
    page = _Page()
    last = page.read(conn, view, drive, at.seq)
    about = [change for item in page.found if (change := _about(item, file)) is not None]
    position = cursors.write(Position(now.epoch, drive, last))
    return ChangesPage(cursor=position, seq=last, changes=about, more=page.is_full)


def _about(change: Change, file: str) -> Change | None:
    records = [record for record in change.files if record.id == file]
    named = [entry for entry in change.entries if file in (entry.file, entry.parent)]
    if not records and not named:
        return None
    return msgspec.structs.replace(change, files=records, entries=named)
