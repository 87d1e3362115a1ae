"""fsck of the sums that are kept: of drives over their chunks, of uploaders over their sessions.

Knows: what each sum is made of. Must not know: which chunks there should be (`fsck_content`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from sqlalchemy import Connection, delete, func, or_, select, update

from server.maintenance.fsck_findings import Finding, Found, Names, execute
from server.maintenance.fsck_tree import REPAIR
from server.metadata.schema import chunks, drives, uploaders
from server.uploads import leases, quota

_of_drive = chunks.c.drive == drives.c.id
_is_pending = chunks.c.state == "pending"


def _sum(column: Any, *where: Any) -> Any:
    return select(func.coalesce(func.sum(column), 0)).where(_of_drive, *where).scalar_subquery()


# What each sum of a drive should be.
_RIGHT = {
    "used_bytes": _sum(chunks.c.stored_length, chunks.c.state.in_(("uploaded", "doomed"))),
    "reserved_bytes": _sum(chunks.c.stored_length, _is_pending),
    "unshown_bytes": _sum(chunks.c.stored_length * chunks.c.unshown, _is_pending),
    "promised_chunks": _sum(1 - chunks.c.unshown, _is_pending),
}


def check_sums(conn: Connection, names: Names) -> Iterator[Found]:
    """The sums of a drive, what it uses, what is reserved in it, and what each uploader holds of
    it, are those over its chunks and sessions."""
    right = [query.label(f"right_{column}") for column, query in _RIGHT.items()]
    wrong = or_(*(drives.c[column] != query for column, query in _RIGHT.items()))
    for row in conn.execute(select(drives, *right).where(wrong)).mappings():
        told = ", ".join(f"{column} is {row[column]}" for column in _RIGHT)
        meant = ", ".join(str(row[f"right_{column}"]) for column in _RIGHT)
        what = f"a sum of the drive is wrong: {told}; its chunks make {meant}"
        fix = execute(update(drives).where(drives.c.id == row["id"]).values(**_RIGHT))
        yield Found(Finding("sums", what, REPAIR, account=names.account(row["id"])), fix)
    yield from _check_uploaders(conn, names)


# (sessions, chunks asked for, their bytes) by (drive, holder).
Held = dict[tuple[str, str], tuple[int, int, int]]


def _check_uploaders(conn: Connection, names: Names) -> Iterator[Found]:
    told: Held = {(row[0], row[1]): (row[2], row[3], row[4]) for row in conn.execute(_UPLOADERS)}
    right = _under_way(conn)
    for drive, holder in sorted(told.keys() | right.keys()):
        one, other = told.get((drive, holder)), right.get((drive, holder))
        if one != other:
            what = (
                f"uploader {holder} is said to hold {one or _NOBODY}, and holds {other or _NOBODY}"
            )
            finding = Finding("sums", what, REPAIR, account=names.account(drive))
            yield Found(finding, partial(_fix_uploader, drive=drive, holder=holder))


_UPLOADERS = select(
    uploaders.c.drive,
    uploaders.c.holder,
    uploaders.c.sessions,
    uploaders.c.asked_chunks,
    uploaders.c.asked_bytes,
)
_NOBODY = (0, 0, 0)


def _under_way(conn: Connection) -> Held:
    asked = {(row.drive, row.holder): row for row in conn.execute(leases.ASKED)}
    found: Held = {}
    for row in conn.execute(leases.SESSIONS):
        more = asked.get((row.drive, row.holder))
        amount = (0, 0) if more is None else (more.chunks, more.bytes)
        found[row.drive, row.holder] = (row.sessions, *amount)
    return found


def _fix_uploader(conn: Connection, drive: str, holder: str) -> bool:
    mine = (uploaders.c.drive == drive) & (uploaders.c.holder == holder)
    conn.execute(delete(uploaders).where(mine))
    right = _under_way(conn).get((drive, holder))
    if right is not None:
        sessions, asked_chunks, asked_bytes = right
        quota.hold(conn, drive, holder, sessions, quota.Amount(asked_chunks, asked_bytes))
    return True


def check_unshown(conn: Connection, names: Names) -> Iterator[Found]:
    """Only a promise is unshown. A sum would take another chunk for one."""
    wrong = (chunks.c.unshown != 0) & ~_is_pending
    for row in conn.execute(select(chunks.c.drive, chunks.c.id).where(wrong)).all():
        what = f"chunk {row.id.hex()} is there, and counts as only asked for"
        account = names.account(row.drive)
        mine = wrong & (chunks.c.drive == row.drive) & (chunks.c.id == row.id)
        finding = Finding("state", what, REPAIR, account=account, chunk=row.id.hex())
        yield Found(finding, execute(update(chunks).where(mine).values(unshown=0)))
