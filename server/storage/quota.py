"""How much may still be promised in a drive.

Knows: an account's quota, what its drive uses and has promised, and the bound on promises. Must not
know: chunks' states beyond that, uploads, who wants the room and what for.

A drive's `used_bytes` + `reserved_bytes` stay within its owner's quota, whoever writes. Bytes are
reserved when a chunk is promised (`Budget`), used when its object has come (`settle`), and free
again when the promise ends without one (`release`). Only new chunks take room: whatever is done
without them is never refused here.

Who does not own the drive may not learn which chunks are in it, so for them a chunk that they have
not shown to possess counts alike whether it is there or not, by its plain length: `Budget` charges
them for what they ask, not for what is new, and counts what all such callers have asked for and
not yet shown. That is never less than what they have reserved. The numbers are not told them.

Concurrency: a `Budget` lives as long as one write transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, or_, select, update

from remote.errors import QuotaExceeded, RateLimited, Refused
from server.metadata.schema import accounts, chunks, devices, drives, upload_chunks, uploads
from server.people import access
from server.people.caller import Caller

OTHERS_SHARE = 4
"""Those who do not own a drive may together have promised this part of the bound on promises."""
RETRY_SECONDS = 30.0

_ROOM = (
    select(accounts.c.quota_bytes, drives.c.used_bytes, drives.c.reserved_bytes)
    .join_from(drives, accounts, drives.c.owner == accounts.c.id)
    .where(drives.c.id == bindparam("drive"))
)
_unproven = (
    select(upload_chunks.c.chunk)
    .join_from(uploads, devices, uploads.c.device == devices.c.id)
    .join(drives, uploads.c.drive == drives.c.id)
    .join(upload_chunks, upload_chunks.c.version == uploads.c.version)
    .where(
        uploads.c.drive == bindparam("drive"),
        or_(devices.c.account != drives.c.owner, devices.c.folder.is_not(None)),
        upload_chunks.c.proven == 0,
    )
)
_proven = (
    select(upload_chunks.c.chunk)
    .where(upload_chunks.c.drive == chunks.c.drive, upload_chunks.c.chunk == chunks.c.id)
    .where(upload_chunks.c.proven != 0)
    .exists()
)
_asked = _unproven.subquery()
_ASKED = select(func.coalesce(func.sum(chunks.c.length), 0)).join_from(
    _asked, chunks, (chunks.c.id == _asked.c.chunk) & (chunks.c.drive == bindparam("drive"))
)
_ONLY_ASKED = select(func.coalesce(func.sum(chunks.c.stored_length), 0)).where(
    chunks.c.drive == bindparam("drive"),
    chunks.c.id.in_(_unproven),
    chunks.c.state == "pending",
    ~_proven,
)


@dataclass
class Room:
    """A drive's numbers as its owner may see them (`asked` 0), or as others may: `promised` without
    what only such callers have promised, and `asked` with all that they ask for."""

    quota: int | None
    used: int
    promised: int
    asked: int = 0


def refusal(
    room: Room, more: int, limit: int, *, owner: bool
) -> QuotaExceeded | RateLimited | None:
    """Why `more` bytes may not be promised; None: they may. `limit` bounds what is promised."""
    promised = room.promised if owner else room.asked
    if more and promised + more > (limit if owner else limit // OTHERS_SHARE):
        message = "too much is promised to uploads under way; finish or abandon some"
        return RateLimited(message=message, retry_after_seconds=RETRY_SECONDS)
    taken = room.used + room.promised + room.asked
    if more and room.quota is not None and taken + more > room.quota:
        return QuotaExceeded(message=_full(room, more) if owner else _FULL)
    return None


_FULL = "the drive of the owner has no room for this; ask them to make some"


def _full(room: Room, more: int) -> str:
    return (
        f"the drive is full: {more} bytes more than the {room.used} used and {room.promised}"
        f" promised to uploads are over the quota of {room.quota}; delete something and empty the"
        " trash, or ask for a larger quota"
    )


class Budget:
    """What may still be promised in each drive, in one write transaction of one caller. `limit` is
    how many bytes of a drive may be promised at one time."""

    def __init__(self, conn: Connection, caller: Caller, limit: int) -> None:
        self._conn, self._caller, self._limit = conn, caller, limit
        self._rooms: dict[str, Room] = {}

    def take(self, drive: str, fresh: int, asked: int) -> None:
        """Reserve `fresh` bytes, the stored length of chunks that are new; `asked` are the plain
        lengths of those that the caller has not shown to possess.

        The last thing that may refuse: what is taken is not given back when a savepoint is undone.
        Raises `Refused` with QuotaExceeded or RateLimited.
        """
        owner = access.owns_drive(self._caller, drive)
        more = fresh if owner else asked
        if more:
            room = self._room(drive, owner)
            problem = refusal(room, more, self._limit, owner=owner)
            if problem is not None:
                raise Refused(problem)
            if owner:
                room.promised += more
            else:
                room.asked += more
        if fresh:
            _add(self._conn, drive, reserved=fresh)

    def _room(self, drive: str, owner: bool) -> Room:
        if drive not in self._rooms:
            here = {"drive": drive}
            row = self._conn.execute(_ROOM, here).one()
            room = Room(row.quota_bytes, row.used_bytes, row.reserved_bytes)
            if not owner:
                room.promised -= self._conn.execute(_ONLY_ASKED, here).scalar_one()
                room.asked = self._conn.execute(_ASKED, here).scalar_one()
            self._rooms[drive] = room
        return self._rooms[drive]


def settle(conn: Connection, drive: str, promised: int, stored: int) -> None:
    """What was promised as `promised` bytes has come, as `stored` bytes."""
    _add(conn, drive, used=stored, reserved=-promised)


def unsettle(conn: Connection, drive: str, stored: int) -> None:
    """What had come is not good, and is promised again."""
    _add(conn, drive, used=-stored, reserved=stored)


def release(conn: Connection, drive: str, promised: int) -> None:
    """Promises of `promised` bytes have ended."""
    _add(conn, drive, reserved=-promised)


def _add(conn: Connection, drive: str, *, used: int = 0, reserved: int = 0) -> None:
    changed = {
        "used_bytes": drives.c.used_bytes + used,
        "reserved_bytes": drives.c.reserved_bytes + reserved,
    }
    conn.execute(update(drives).where(drives.c.id == drive).values(changed))
