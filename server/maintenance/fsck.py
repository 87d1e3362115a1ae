"""fsck: checks every reference and, if asked, every byte; repairs what follows from the rest.

Knows: the order of the checks, how findings become a report. Must not know: what each check is
about (`fsck_tree`, `fsck_content`, `fsck_sums`, `fsck_objects`), who asks.

Beside a running server: the checks of the database see one snapshot, and hold nobody up. Whoever
calls `run` holds the lock of `lock`, so that no object of the snapshot is collected meanwhile.
Without `repair` nothing is changed. A repair is one write transaction that looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
from sqlalchemy import Column, Connection, func, select

from server.maintenance import fsck_content, fsck_objects, fsck_sums, fsck_tree
from server.maintenance.fsck_findings import Finding, Found, Names
from server.metadata.db import Database
from server.metadata.schema import accounts, files, versions
from server.permissions import audit
from server.storage.blobs import BlobStore

Progress = Callable[[int, int], None]

__all__ = ["Checked", "Finding", "Report", "run"]


class Checked(msgspec.Struct):
    """Numbers of things that were looked at. `bytes` are those that were read back."""

    accounts: int
    files: int
    versions: int
    chunks: int
    bytes: int


class Report(msgspec.Struct):
    """`ok`: nothing is wrong, or all of it was repaired by this run."""

    ok: bool
    checked: Checked
    findings: list[Finding]


def run(
    db: Database,
    blobs: BlobStore,
    *,
    read_data: bool = False,
    repair: bool = False,
    progress: Progress = lambda _objects, _bytes: None,
) -> Report:
    """Check everything. With `read_data`, read every stored object back and compare it with its
    chunk; `progress` gets the objects and bytes so far. With `repair`, set right what can be."""
    objects = fsck_objects.Objects(db, blobs, read_data)
    with db.read() as conn:
        names = Names(conn)
        found = list(_check(conn, names, objects, progress))
        counts = [_count(conn, table) for table in (accounts.c.id, files.c.id, versions.c.id)]
    if repair:
        _repair(db, found)
        found += _sums(db, repair=True)
        _note(db, found)
    else:
        found += _sums(db, repair=False)
    findings = [item.finding for item in found]
    checked = Checked(counts[0], counts[1], counts[2], objects.objects, objects.bytes)
    return Report(all(item.repaired for item in findings), checked, findings)


def _check(
    conn: Connection, names: Names, objects: fsck_objects.Objects, progress: Progress
) -> Iterator[Found]:
    for check in (*fsck_tree.CHECKS, *fsck_content.CHECKS):
        yield from check(conn, names)
    yield from objects.check(conn, names, progress)


def _repair(db: Database, found: list[Found]) -> None:
    for item in found:
        if item.fix is not None:
            with db.write() as conn:
                item.finding.repaired = item.fix(conn)


def _sums(db: Database, *, repair: bool) -> list[Found]:
    """Last, because other repairs move bytes between the sums."""
    with db.read() as conn:
        found = list(fsck_sums.check_sums(conn, Names(conn)))
    if repair:
        _repair(db, found)
    return found


def _count(conn: Connection, column: Column[str]) -> int:
    return conn.execute(select(func.count(column))).scalar_one()


def _note(db: Database, found: list[Found]) -> None:
    repaired = [item.finding.kind for item in found if item.finding.repaired]
    if repaired:
        with db.write() as conn:
            counts = {kind: repaired.count(kind) for kind in sorted(set(repaired))}
            audit.note(conn, None, "fsck", None, time.time_ns(), repaired=counts)
