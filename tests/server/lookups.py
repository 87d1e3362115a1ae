"""Lookups of tests in a server's tables and stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Row, event, func, select, update

from server.maintenance import fsck_sums
from server.maintenance.fsck_findings import Names
from server.metadata import schema
from server.metadata.schema import chunks, drives
from server.storage.blobs import BlobKey
from tests.server.harness import Client, Running, until


def row_of(server: Running, drive: str, chunk: bytes) -> Row[Any] | None:
    with server.app.service.db.read() as conn:
        query = select(chunks).where(chunks.c.drive == drive, chunks.c.id == chunk)
        return conn.execute(query).first()


def change_row(server: Running, drive: str, chunk: bytes, **values: Any) -> None:
    with server.app.service.db.write() as conn:
        mine = (chunks.c.drive == drive) & (chunks.c.id == chunk)
        conn.execute(update(chunks).where(mine).values(**values))


def expire(server: Running, version: str) -> None:
    """End the life of an upload session."""
    with server.app.service.db.write() as conn:
        mine = schema.uploads.c.version == version
        conn.execute(update(schema.uploads).where(mine).values(expires_ns=1))


def set_quota(server: Running, client: Client, quota: int | None) -> None:
    with server.app.service.db.write() as conn:
        mine = select(drives.c.owner).where(drives.c.id == client.me.drive)
        account = conn.execute(mine).scalar_one()
        here = schema.accounts.c.id == account
        conn.execute(update(schema.accounts).where(here).values(quota_bytes=quota))


def until_verified(server: Running) -> None:
    """Wait until everything that arrived is noted and verified."""
    reception = server.app.service.reception
    reception._hurry.set()
    for _ in range(2):  # what is noted is queued to be looked at only then
        until(
            lambda: (
                reception.waiting_arrivals == 0
                and not reception._looking
                and not reception._flush_queued
            )
        )
        server.app.service.writes.submit(reception.flush).result(10)
    reception._hurry.clear()


def check_sums(server: Running, drive: str) -> None:
    """The drive's sums are those of its chunks, and every sum is what fsck makes it."""
    with server.app.service.db.read() as conn:
        pending = chunks.c.state == "pending"
        row = conn.execute(
            select(
                func.coalesce(func.sum(chunks.c.stored_length).filter(~pending), 0),
                func.coalesce(func.sum(chunks.c.stored_length).filter(pending), 0),
            ).where(chunks.c.drive == drive, chunks.c.state != "deleting")
        ).one()
        sums = select(drives.c.used_bytes, drives.c.reserved_bytes).where(drives.c.id == drive)
        assert tuple(conn.execute(sums).one()) == tuple(row)
        names = Names(conn)
        wrong = [item.finding for item in fsck_sums.check_sums(conn, names)]
        found = [item.what for item in wrong if item.account == names.account(drive)]
        assert found == []


def steps_of(conn: Connection, work: Callable[[], object]) -> int:
    """The database's work for `work`: statements, and hundreds of the steps of SQLite's machine."""
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    driver: Any = conn.connection.driver_connection
    driver.set_progress_handler(count, 100)
    event.listen(conn, "before_cursor_execute", count)
    try:
        work()
    finally:
        driver.set_progress_handler(None, 0)
        event.remove(conn, "before_cursor_execute", count)
    return counted


def nothing_left(server: Running, drive: str, chunk: bytes) -> bool:
    """No object, and nothing half made."""
    incoming = server.data / "blobs" / "incoming"
    there = server.app.service.blobs.has(BlobKey(drive, chunk))
    return not there and list(incoming.iterdir()) == []
