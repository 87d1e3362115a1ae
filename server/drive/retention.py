"""Keeps what was overwritten and deleted for a while, and lets it go after that.

Knows: the limits of each account (else the server's), and what they say of a version, a file in the
trash, a change, a stored answer. Must not know: who calls this and when (`gc`), what becomes
of chunks.

The rules:
- A version goes when it has not been current for `keep_days`, and `keep_versions` newer ones of the
  file are there. The current version of a file never goes.
- A file in the trash goes, with its versions, after `keep_days`.
- A change goes when it is older than the caller says: always the oldest of a drive first, so that
  what follows `drives.floor_seq` is complete. A grant topic keeps the newest of those up to the
  floor: who has seen that has missed nothing, however far the drive has moved on (`feed`).
- The answer to an idempotency key goes after `ANSWERS_NS`.

Each call is part of its caller's write transaction and does a bounded amount of it, so that others
get their turn in between. Each run begins from what the tables say; nothing is remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    select,
    text,
    update,
)

from server.changes.fanout import News, drive_topic
from server.drive import purge
from server.metadata.schema import (
    OF_A_PART,
    accounts,
    changes,
    drives,
    files,
    idempotency,
    versions,
)
from server.permissions import audit

DAY_NS: Final = 86_400 * 10**9
ANSWERS_NS: Final = 90 * DAY_NS
# A hundred years, for arithmetic in 64 bits: who says more gets this.
LONGEST_DAYS: Final = 36_500


class Expired(NamedTuple):
    """Versions and files that went (or would go). `more`: there are others, call again. `news` are
    to be published after the commit."""

    versions: int
    files: int
    more: bool
    news: tuple[News, ...] = ()


def kept_ns(conn: Connection, account: str, default_days: int) -> int:
    """Nanoseconds for which the account's trash and overwritten versions are kept."""
    query = select(accounts.c.keep_days).where(accounts.c.id == account)
    days: int | None = conn.execute(query).scalar_one()
    return min(default_days if days is None else days, LONGEST_DAYS) * DAY_NS


def expire(
    conn: Connection, now_ns: int, default_days: int, default_versions: int, limit: int
) -> Expired:
    """Delete for good what has been kept long enough, at most `limit` versions and files each."""
    gone_versions, more_versions = _expire_versions(
        conn, now_ns, default_days, default_versions, limit
    )
    gone, more_files = _expire_trash(conn, now_ns, default_days, limit)
    return Expired(gone_versions, gone.files, more_versions or more_files, gone.news)


def would_expire(
    conn: Connection, now_ns: int, default_days: int, default_versions: int
) -> Expired:
    """Count what `expire` would delete, called until there is no more."""
    old = _old_versions(conn, now_ns, default_days, default_versions)
    found = [
        conn.execute(select(func.count()).select_from(query.subquery())).scalar_one()
        for query in (old, _old_trash(now_ns, default_days))
    ]
    return Expired(found[0], found[1], False)


def _before(now_ns: int, default_days: int) -> ColumnElement[int]:
    """The moment before which everything has been kept long enough by its account."""
    days = func.coalesce(accounts.c.keep_days, default_days)
    bounded = case((days > LONGEST_DAYS, LONGEST_DAYS), else_=days)
    return literal(now_ns, BigInteger) - cast(bounded, BigInteger) * literal(DAY_NS, BigInteger)


# --- versions -----------------------------------------------------------------------------------


def _expire_versions(
    conn: Connection, now_ns: int, default_days: int, default_versions: int, limit: int
) -> tuple[int, bool]:
    query = _old_versions(conn, now_ns, default_days, default_versions)
    rows = conn.execute(query.limit(limit + 1)).all()
    old = [purge.Old(row.file, row.id, row.size) for row in rows[:limit]]
    gone = purge.drop_versions(conn, old)
    _note(conn, "versions_expire", now_ns, "versions", (row.owner for row in rows[:gone]))
    return gone, gone < len(rows)


def _old_versions(
    conn: Connection, now_ns: int, default_days: int, default_versions: int
) -> Select[Any]:
    """First which files have many versions at all, which an index alone tells; few have."""
    fewest = _fewest_kept(conn, default_versions)
    many = select(versions.c.file).group_by(versions.c.file).having(func.count() > fewest)
    newest_first = (versions.c.created_ns.desc(), versions.c.id.desc())
    number = func.row_number().over(partition_by=versions.c.file, order_by=newest_first)
    numbered = (
        select(
            versions.c.file,
            versions.c.drive,
            versions.c.id,
            versions.c.size,
            versions.c.superseded_ns,
            number.label("number"),
        )
        .where(versions.c.status == "uploaded", versions.c.file.in_(many))
        .subquery("numbered")
    )
    return (
        select(numbered.c.file, numbered.c.id, numbered.c.size, drives.c.owner)
        .join(files, (files.c.id == numbered.c.file) & (files.c.drive == numbered.c.drive))
        .join(drives, drives.c.id == files.c.drive)
        .join(accounts, accounts.c.id == drives.c.owner)
        .where(
            numbered.c.number > func.coalesce(accounts.c.keep_versions, default_versions),
            numbered.c.superseded_ns < _before(now_ns, default_days),
            numbered.c.id.is_distinct_from(files.c.version),
        )
    )


def _fewest_kept(conn: Connection, default_versions: int) -> int:
    own: int | None = conn.execute(select(func.min(accounts.c.keep_versions))).scalar()
    return default_versions if own is None else min(own, default_versions)


# --- the trash ----------------------------------------------------------------------------------


def _expire_trash(
    conn: Connection, now_ns: int, default_days: int, limit: int
) -> tuple[purge.Dropped, bool]:
    rows = conn.execute(_old_trash(now_ns, default_days).limit(limit + 1)).all()
    gone = purge.drop_files(conn, None, [row.id for row in rows[:limit]], now_ns)
    _note(conn, "trash_expire", now_ns, "files", (row.owner for row in rows[: gone.files]))
    return gone, gone.files < len(rows)


def _old_trash(now_ns: int, default_days: int) -> Select[Any]:
    return (
        select(files.c.id, drives.c.owner)
        .join(drives, drives.c.id == files.c.drive)
        .join(accounts, accounts.c.id == drives.c.owner)
        .where(files.c.trashed_ns < _before(now_ns, default_days))
        .order_by(files.c.trashed_ns)
    )


def _note(
    conn: Connection, action: audit.Action, now_ns: int, what: str, owners: Iterable[str]
) -> None:
    for owner, count in Counter(owners).items():
        audit.note(conn, None, action, owner, now_ns, **{what: count})


# --- the feed -----------------------------------------------------------------------------------

_BEGUN = (
    select(drives.c.id, drives.c.floor_seq, drives.c.head_seq)
    .join(
        changes,
        (changes.c.topic == literal(drive_topic("")) + drives.c.id)
        & (changes.c.seq == drives.c.floor_seq + 1),
    )
    .where(changes.c.at_ns < bindparam("before"))
    .limit(bindparam("count"))
)
_FIRST_YOUNG = select(func.min(changes.c.seq)).where(
    changes.c.topic == bindparam("topic"),
    changes.c.seq.between(bindparam("low"), bindparam("high")),
    changes.c.at_ns >= bindparam("before"),
)
_DROP = delete(changes).where(
    changes.c.topic == bindparam("t"), changes.c.seq <= bindparam("floor")
)
_later = changes.alias("later")
_DROP_OF_PARTS = delete(changes).where(
    text(OF_A_PART),
    changes.c.drive == bindparam("d"),
    changes.c.seq <= bindparam("floor"),
    changes.c.seq
    < select(func.max(_later.c.seq))
    .where(_later.c.topic == changes.c.topic, _later.c.seq <= bindparam("floor"))
    .scalar_subquery(),
)


def prune_feed(conn: Connection, now_ns: int, keep_ns: int, limit: int) -> int:
    """Delete changes older than `keep_ns`, and answers older than `ANSWERS_NS`, about `limit` of
    each; returns how many rows went: call again until none does.

    Who comes back with a cursor from before that is answered `reset`.
    """
    gone, before = 0, now_ns - keep_ns
    begun = conn.execute(_BEGUN, {"before": before, "count": limit}).all()
    for row in begun:
        if gone >= limit:
            break
        gone += _prune_drive(conn, row, before, limit - gone)
    return gone + _prune_answers(conn, now_ns - ANSWERS_NS, limit)


def _prune_drive(conn: Connection, drive: Any, before: int, limit: int) -> int:
    """Move the floor of a drive whose first change is old; the clock may have been set back since,
    so the first young one ends it."""
    topic, low = drive_topic(drive.id), drive.floor_seq + 1
    high = min(drive.floor_seq + limit, drive.head_seq)
    bounds = {"topic": topic, "low": low, "high": high, "before": before}
    young: int | None = conn.execute(_FIRST_YOUNG, bounds).scalar()
    floor = high if young is None else young - 1
    conn.execute(update(drives).where(drives.c.id == drive.id).values(floor_seq=floor))
    gone = conn.execute(_DROP, {"t": topic, "floor": floor}).rowcount
    return gone + conn.execute(_DROP_OF_PARTS, {"d": drive.id, "floor": floor}).rowcount


def _prune_answers(conn: Connection, before: int, limit: int) -> int:
    """The answers of one batch have one time and go together."""
    old = select(idempotency.c.at_ns).where(idempotency.c.at_ns < before)
    last = conn.execute(old.order_by(idempotency.c.at_ns).offset(limit - 1).limit(1)).scalar()
    upto = idempotency.c.at_ns < before if last is None else idempotency.c.at_ns <= last
    return conn.execute(delete(idempotency).where(upto)).rowcount
