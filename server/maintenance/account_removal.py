"""Emptying the drives of accounts that were removed.

Knows: in which order the rows of a drive can go, and how much of them in one transaction. Must not
know: how an account is removed (`accounts.closing`), what becomes of chunks (`gc`).

Nobody can write into such a drive: its tokens are revoked and its grants ended. So it is emptied
from below, name by name, into the trash and out of it (`purge`), as its owner could have done; then
go its part of the change feed and the answers to its devices. What stays are the rows that others
refer to: the account, its devices, and the drive with an empty root.

`steps` is a generator that pauses between transactions; each pause may be the end, and the next run
goes on from what the tables say. `account remove` runs it at once, and every garbage collection
again, which finishes what was interrupted and deletes the chunks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, case, delete, exists, or_, select, text, update

from server.changes.fanout import drive_topic
from server.drive import purge
from server.maintenance.gc_chunks import Clock
from server.metadata.db import Database
from server.metadata.schema import (
    OF_A_PART,
    accounts,
    changes,
    devices,
    drives,
    entries,
    files,
    idempotency,
)

# About how many rows of a kind go in one transaction.
BATCH = 500

_REMOVED = (
    select(drives.c.id, drives.c.root, drives.c.owner)
    .join(accounts, drives.c.owner == accounts.c.id)
    .where(accounts.c.removed_ns.is_not(None))
)
_IN = (
    select(entries.c.parent, entries.c.name, entries.c.file, files.c.kind)
    .join(files, entries.c.file == files.c.id)
    .where(entries.c.parent == bindparam("directory"))
    .limit(bindparam("room"))
)
_DROP_NAME = delete(entries).where(
    entries.c.parent == bindparam("p"), entries.c.name == bindparam("n")
)
_LOSE_NAMES = (
    update(files)
    .where(files.c.id == bindparam("f"))
    .values(
        links=files.c.links - bindparam("names"),
        trashed_ns=case((files.c.links <= bindparam("names"), bindparam("now")), else_=None),
    )
)
_TRASH = (
    select(files.c.id)
    .where(files.c.drive == bindparam("drive"), files.c.trashed_ns.is_not(None))
    .limit(bindparam("room"))
)
_OF_PARTS = (text(OF_A_PART), changes.c.drive == bindparam("drive"))
_ANSWERS = (
    select(idempotency.c.device, idempotency.c.key)
    .where(
        idempotency.c.device.in_(select(devices.c.id).where(devices.c.account == bindparam("a")))
    )
    .limit(bindparam("room"))
)
_DROP_ANSWER = delete(idempotency).where(
    idempotency.c.device == bindparam("d"), idempotency.c.key == bindparam("k")
)


def steps(db: Database, clock: Clock) -> Iterator[None]:
    """Empty the drives of all accounts that were removed, pausing wherever it may end. Hold the
    lock of `lock.collecting`."""
    with db.read() as conn:
        removed = [row for row in conn.execute(_REMOVED).all() if not _is_empty(conn, row)]
    for drive in removed:
        yield from _unname(db, drive, clock)
        for step in (_drop_trash, _drop_changes, _drop_answers):
            more = True
            while more:
                with db.write() as conn:
                    more = step(conn, drive)
                yield


def _is_empty(conn: Connection, drive: Row[Any, Any, Any]) -> bool:
    rest = exists().where(files.c.drive == drive.id, files.c.id != drive.root)
    told = exists().where(changes.c.topic == drive_topic(drive.id))
    parts = exists().where(*_OF_PARTS)
    left = conn.execute(select(or_(rest, told, parts)), {"drive": drive.id}).scalar()
    return not left and not conn.execute(_ANSWERS, {"a": drive.owner, "room": 1}).first()


# --- the tree -----------------------------------------------------------------------------------


class _Name(NamedTuple):
    """A name of `file`; a drive's root has none."""

    parent: str | None
    name: str
    file: str


def _unname(db: Database, drive: Row[Any, Any, Any], clock: Clock) -> Iterator[None]:
    """Put everything below the root into the trash, what is deepest first."""
    above = [_Name(None, "", drive.root)]
    while above:
        with db.write() as conn:
            _unname_some(conn, above, clock())
        yield


def _unname_some(conn: Connection, above: list[_Name], now_ns: int) -> None:
    """`above` leads to where it goes on: the last is a directory, and those before it hold it or
    lie beside it."""
    done = 0
    while above and done < BATCH:
        rows = conn.execute(_IN, {"directory": above[-1].file, "room": BATCH}).all()
        done += len(rows) + 1
        leaves = [_Name(*row[:3]) for row in rows if row.kind != "directory"]
        if not rows:
            empty = above.pop()
            leaves = [empty] if empty.parent is not None else []
        above += [_Name(*row[:3]) for row in rows if row.kind == "directory"]
        _drop_names(conn, leaves, now_ns)


def _drop_names(conn: Connection, names: Sequence[_Name], now_ns: int) -> None:
    if names:
        conn.execute(_DROP_NAME, [{"p": item.parent, "n": item.name} for item in names])
        lost = Counter(item.file for item in names).items()
        conn.execute(_LOSE_NAMES, [{"f": f, "names": n, "now": now_ns} for f, n in lost])


# --- everything else; each says whether there is more -------------------------------------------


def _drop_trash(conn: Connection, drive: Row[Any, Any, Any]) -> bool:
    ids = conn.execute(_TRASH, {"drive": drive.id, "room": BATCH}).scalars().all()
    purge.drop_files(conn, None, ids, time.time_ns())
    return bool(ids)


def _drop_changes(conn: Connection, drive: Row[Any, Any, Any]) -> bool:
    """The oldest first, so that what follows the floor is complete, as `retention` does."""
    this = drives.c.id == drive.id
    floor, head = conn.execute(select(drives.c.floor_seq, drives.c.head_seq).where(this)).one()
    upto = min(floor + BATCH, head)
    old = changes.c.seq <= upto
    conn.execute(delete(changes).where(changes.c.topic == drive_topic(drive.id), old))
    conn.execute(delete(changes).where(*_OF_PARTS, old), {"drive": drive.id})
    conn.execute(update(drives).where(this).values(floor_seq=upto))
    return bool(upto < head)


def _drop_answers(conn: Connection, drive: Row[Any, Any, Any]) -> bool:
    found = conn.execute(_ANSWERS, {"a": drive.owner, "room": BATCH}).all()
    if found:
        conn.execute(_DROP_ANSWER, [{"d": row.device, "k": row.key} for row in found])
    return bool(found)
