"""Promises in a drive, and the bounds on what may still be promised.

Knows: an account's quota, what its drive uses and has promised, who has how much under way, and the
bounds on promises. Must not know: which chunks, uploads beyond their number, what the room is for.

A drive's `used_bytes` + `reserved_bytes` stay within its owner's quota, whoever writes. Bytes are
reserved when a chunk is promised (`Budget`), used when its object has come, and free again when the
promise ends without one. Only new chunks take room: whatever is done without them is never refused
here. A promise costs more than its bytes, so each counts as `LEAST` at least where it is asked how
much is promised at one time, and each uploader may have so many sessions and promises.

Who does not own the drive may not learn which chunks are in it, so for them a chunk that they have
not shown to possess counts alike whether it is there or not, by its plain length: `Budget` charges
them for what they ask, not for what is new, and counts what all such callers have asked for and
not yet shown. What they have reserved by that is `unshown_bytes`, and is not counted twice. The
numbers are not told them.

All of this is sums that are kept, in `drives` and `uploaders`, so what one uploader has promised
does not make it slower for another to ask. Whoever changes a chunk's state or a lease changes them
in the same transaction (`change`, `hold`); fsck adds them up anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from remote.protocol.errors import QuotaExceeded, RateLimited, Refused
from server.metadata.schema import accounts, drives, uploaders
from server.permissions import access
from server.permissions.caller import Caller

# Those who do not own a drive may together have promised this part of the bound on promises.
OTHERS_SHARE = 4
# Bytes that a promised chunk counts as at least: the smallest average that a file is cut at.
LEAST = 64 * 1024
RETRY_SECONDS = 30.0


class Limits(NamedTuple):
    """Bounds on promises at one time: `bytes` in a drive, and `promises` to one uploader in a
    drive, which are sessions and chunks."""

    bytes: int
    promises: int


class Amount(NamedTuple):
    """Chunks: how many, and their bytes."""

    chunks: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Amount:
        """Chunks of these lengths."""
        found = list(lengths)
        return cls(len(found), sum(found))


NONE = Amount()


@dataclass(frozen=True)
class Sums:
    """Those of a drive that are over its chunks (see `drives`), or what is added to them."""

    used: int = 0
    reserved: int = 0
    unshown: int = 0
    promised: int = 0

    @classmethod
    def of_pending(cls, rows: Iterable[Any]) -> Sums:
        """The sums of pending chunks, each with its `stored_length` and `unshown`."""
        found = cls()
        for row in rows:
            length, hidden = row.stored_length, bool(row.unshown)
            found += cls(0, length, length if hidden else 0, 0 if hidden else 1)
        return found

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.used + other.used,
            self.reserved + other.reserved,
            self.unshown + other.unshown,
            self.promised + other.promised,
        )

    def __neg__(self) -> Sums:
        return Sums(-self.used, -self.reserved, -self.unshown, -self.promised)

    def __sub__(self, other: Sums) -> Sums:
        return self + -other


@dataclass
class DriveUsage:
    """A drive's numbers as its owner may see them (`asked` 0), or as others may: `promised` without
    what only such callers have promised, and `asked` with all that they ask for. `chunks` are those
    of `promised` for the owner, of `asked` for others; `held` are the caller's own promises."""

    quota: int | None
    used: int
    promised: int
    asked: int = 0
    chunks: int = 0
    held: int = 0


def refusal(
    usage: DriveUsage, more: Amount, limits: Limits, *, owner: bool
) -> QuotaExceeded | RateLimited | None:
    """Why `more` may not be promised; None: it may."""
    if not more.chunks:
        return None
    promised = usage.promised if owner else usage.asked
    weight = max(promised + more.bytes, (usage.chunks + more.chunks) * LEAST)
    most = limits.bytes if owner else limits.bytes // OTHERS_SHARE
    if weight > most or usage.held + more.chunks > limits.promises:
        return _too_much()
    taken = usage.used + usage.promised + usage.asked
    if usage.quota is not None and taken + more.bytes > usage.quota:
        return QuotaExceeded(message=_full(usage, more.bytes) if owner else _FULL)
    return None


def _too_much() -> RateLimited:
    message = "too much is promised to uploads under way; finish or abandon some"
    return RateLimited(message=message, retry_after_seconds=RETRY_SECONDS)


_FULL = "the drive of the owner has no room for this; ask them to make some"


def _full(usage: DriveUsage, more: int) -> str:
    return (
        f"the drive is full: {more} bytes more than the {usage.used} used and {usage.promised}"
        f" promised to uploads are over the quota of {usage.quota}; delete something and empty the"
        " trash, or ask for a larger quota"
    )


# --- asking -------------------------------------------------------------------------------------

_here = uploaders.c.drive == bindparam("drive")
_mine = _here & (uploaders.c.holder == bindparam("holder"))
_NUMBERS = (
    select(
        accounts.c.quota_bytes,
        drives.c.used_bytes,
        drives.c.reserved_bytes,
        drives.c.unshown_bytes,
        drives.c.promised_chunks,
    )
    .join_from(drives, accounts, drives.c.owner == accounts.c.id)
    .where(drives.c.id == bindparam("drive"))
)
_ASKED = select(
    func.coalesce(func.sum(uploaders.c.asked_chunks), 0).label("chunks"),
    func.coalesce(func.sum(uploaders.c.asked_bytes), 0).label("bytes"),
).where(_here)
_HELD = select(uploaders.c.sessions, uploaders.c.asked_chunks).where(_mine)


class _Held(NamedTuple):
    """Sessions and bytes that one uploader has more of."""

    sessions: int = 0
    asked: Amount = NONE

    def plus(self, more: _Held) -> _Held:
        asked = Amount(self.asked.chunks + more.asked.chunks, self.asked.bytes + more.asked.bytes)
        return _Held(self.sessions + more.sessions, asked)


_Mark = tuple[dict[str, Sums], dict[tuple[str, str], _Held]]


class Budget:
    """Promises that may still be made in each drive, in one write transaction of one caller.

    What is taken is counted here, and is in the sums after `write_out`: the numbers are read once,
    and many uploads are one addition. Whoever changes the sums otherwise writes first,
    and has the numbers read again (`forget`).
    """

    def __init__(self, conn: Connection, caller: Caller, limits: Limits) -> None:
        self._conn, self._caller, self._limits = conn, caller, limits
        self._usages: dict[tuple[str, str], DriveUsage] = {}
        self._added: dict[str, Sums] = {}
        self._held: dict[tuple[str, str], _Held] = {}

    def mark(self) -> _Mark:
        """The state of the count by now, to be given back to `undo`."""
        return dict(self._added), dict(self._held)

    def undo(self, mark: _Mark) -> None:
        """As if nothing had been counted since."""
        self._added, self._held = mark

    def write_out(self) -> None:
        """Write down what was counted."""
        for drive, sums in self._added.items():
            change(self._conn, drive, sums)
        for (drive, holder), more in self._held.items():
            hold(self._conn, drive, holder, more.sessions, more.asked)
        self.forget()

    def forget(self) -> None:
        """The sums were changed by somebody else, after `write_out` or an undone savepoint."""
        self._usages, self._added, self._held = {}, {}, {}

    def begin(self, drive: str, holder: str) -> None:
        """Count one more session of `holder`. Raises `Refused` with RateLimited."""
        if self._usage(drive, holder).held >= self._limits.promises:
            raise Refused(_too_much())
        self._hold(drive, holder, _Held(1))

    def answered(self, drive: str, holder: str, asked: Amount) -> None:
        """Take `asked` off the count: the caller has shown these by now."""
        self._hold(drive, holder, _Held(0, Amount(-asked.chunks, -asked.bytes)))

    def change(self, drive: str, by: Sums) -> None:
        """Chunks of the drive have changed."""
        self._added[drive] = self._added.get(drive, Sums()) + by

    def take(self, drive: str, holder: str, fresh: Amount, asked: Amount) -> None:
        """Reserve `fresh`, the stored lengths of chunks that are new; `asked` are the plain lengths
        of those that the caller has not shown to possess.

        Raises `Refused` with QuotaExceeded or RateLimited.
        """
        owner = access.owns_drive(self._caller, drive)
        more = fresh if owner else asked
        if more.chunks:
            problem = refusal(self._usage(drive, holder), more, self._limits, owner=owner)
            if problem is not None:
                raise Refused(problem)
        if owner:
            self.change(drive, Sums(reserved=fresh.bytes, promised=fresh.chunks))
        else:
            self.change(drive, Sums(reserved=fresh.bytes, unshown=fresh.bytes))
            self._hold(drive, holder, _Held(0, asked))

    def _hold(self, drive: str, holder: str, more: _Held) -> None:
        self._held[drive, holder] = self._held.get((drive, holder), _Held()).plus(more)

    def _usage(self, drive: str, holder: str) -> DriveUsage:
        """By now, with what is not written yet."""
        if (drive, holder) not in self._usages:
            self._usages[drive, holder] = self._read(drive, holder)
        usage, added = self._usages[drive, holder], self._added.get(drive, Sums())
        mine = self._held.get((drive, holder), _Held())
        held = usage.held + mine.sessions + mine.asked.chunks
        used, promised = usage.used + added.used, usage.promised + added.reserved - added.unshown
        if access.owns_drive(self._caller, drive):
            chunks, more = usage.chunks + added.promised, added.promised
            promised += added.unshown
            return DriveUsage(usage.quota, used, promised, chunks=chunks, held=held + more)
        others = [more.asked for (there, _), more in self._held.items() if there == drive]
        asked = usage.asked + sum(item.bytes for item in others)
        chunks = usage.chunks + sum(item.chunks for item in others)
        return DriveUsage(usage.quota, used, promised, asked, chunks, held)

    def _read(self, drive: str, holder: str) -> DriveUsage:
        row = self._conn.execute(_NUMBERS, {"drive": drive}).one()
        numbers = (row.quota_bytes, row.used_bytes)
        mine = self._conn.execute(_HELD, {"drive": drive, "holder": holder}).first()
        held: int = 0 if mine is None else mine.sessions + mine.asked_chunks
        if access.owns_drive(self._caller, drive):
            chunks: int = row.promised_chunks
            return DriveUsage(*numbers, row.reserved_bytes, chunks=chunks, held=held + chunks)
        asked = self._conn.execute(_ASKED, {"drive": drive}).one()
        promised = row.reserved_bytes - row.unshown_bytes
        return DriveUsage(*numbers, promised, asked.bytes, asked.chunks, held)


# --- keeping the sums ---------------------------------------------------------------------------

_ADD = (
    update(drives)
    .where(drives.c.id == bindparam("drive"))
    .values(
        used_bytes=drives.c.used_bytes + bindparam("used"),
        reserved_bytes=drives.c.reserved_bytes + bindparam("reserved"),
        unshown_bytes=drives.c.unshown_bytes + bindparam("unshown"),
        promised_chunks=drives.c.promised_chunks + bindparam("promised"),
    )
)
_HOLD = (
    update(uploaders)
    .where(uploaders.c.drive == bindparam("d"), uploaders.c.holder == bindparam("h"))
    .values(
        sessions=uploaders.c.sessions + bindparam("more_sessions"),
        asked_chunks=uploaders.c.asked_chunks + bindparam("more_asked_chunks"),
        asked_bytes=uploaders.c.asked_bytes + bindparam("more_asked_bytes"),
    )
)
_FORGET = delete(uploaders).where(_mine, uploaders.c.sessions == 0)


def change(conn: Connection, drive: str, by: Sums) -> None:
    """Chunks of the drive have changed: add to its sums."""
    if by != Sums():
        conn.execute(_ADD, dataclasses.asdict(by) | {"drive": drive})


def hold(
    conn: Connection, drive: str, holder: str, sessions: int = 0, asked: Amount = NONE
) -> None:
    """Sessions of `holder` have begun, or leases that are not proven were made."""
    if sessions == 0 and asked == NONE:
        return
    more = {"sessions": sessions, "asked_chunks": asked.chunks, "asked_bytes": asked.bytes}
    added = {f"more_{column}": value for column, value in more.items()}
    if conn.execute(_HOLD, added | {"d": drive, "h": holder}).rowcount == 0:
        conn.execute(insert(uploaders), more | {"drive": drive, "holder": holder})


def release(
    conn: Connection, drive: str, holder: str, sessions: int = 0, asked: Amount = NONE
) -> None:
    """Sessions of `holder` have ended, or leases were proven or let go of."""
    hold(conn, drive, holder, -sessions, Amount(-asked.chunks, -asked.bytes))
    if sessions:
        conn.execute(_FORGET, {"drive": drive, "holder": holder})
