"""The service's demands on its metadata store: one suite, every backend.

A backend is a function that opens a `Database` over storage of the test's own; calling it again
opens the same storage anew. SQLite is the one there is. PostgreSQL joins by one more line in
`BACKENDS`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import DatabaseError, IntegrityError

from server.metadata.db import Database
from server.metadata.schema import (
    accounts,
    audit,
    chunks,
    drives,
    entries,
    files,
    upload_chunks,
    uploads,
)

Open = Callable[[], Database]


def sqlite(folder: Path) -> Database:
    return Database(folder / "nearline.sqlite")


BACKENDS = {"sqlite": sqlite}


@pytest.fixture(params=sorted(BACKENDS))
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    opened: list[Database] = []

    def begin() -> Database:
        opened.append(BACKENDS[request.param](tmp_path))
        opened[-1].migrate()
        return opened[-1]

    yield begin
    for db in opened:
        db.close()


@pytest.fixture
def db(reopen: Open) -> Database:
    return reopen()


def account(name: str) -> dict[str, object]:
    return {"id": name.rjust(32, "0"), "name": name, "name_key": name, "password": "x"} | {
        "created_ns": 1
    }


def names(db: Database) -> list[str]:
    with db.read() as conn:
        return list(conn.execute(select(accounts.c.name).order_by(accounts.c.name)).scalars())


def put(db: Database, *found: str) -> None:
    with db.write() as conn:
        for name in found:
            conn.execute(insert(accounts), account(name))


def directory(db: Database, *found: str) -> str:
    """A drive whose root has entries of these names."""
    root = "f".rjust(32, "0")
    row = {"id": root, "drive": root, "kind": "directory", "mode": 0, "uid": 0, "gid": 0}
    row |= {"mtime_ns": 0, "ctime_ns": 0, "size": 0, "links": 1, "rdev": 0, "rev": 0}
    put(db, "owner")
    with db.write() as conn:
        drive = {"id": root, "owner": "owner".rjust(32, "0"), "root": root, "epoch": "e"}
        conn.execute(insert(drives), drive | {"head_seq": 0, "used_bytes": 0})
        conn.execute(insert(files), row)
        for name in found:
            conn.execute(insert(entries), {"parent": root, "name": name, "file": root, "rev": 1})
    return root


# --- transactions -------------------------------------------------------------------------------


def test_what_was_committed_is_there_after_a_restart(reopen: Open) -> None:
    put(reopen(), "a")
    assert names(reopen()) == ["a"]


def test_a_write_that_raises_leaves_nothing(db: Database) -> None:
    with pytest.raises(IntegrityError):  # the second of the same name
        put(db, "a", "a")
    assert names(db) == []


def test_a_savepoint_is_undone_alone(db: Database) -> None:
    with db.write() as conn:
        conn.execute(insert(accounts), account("before"))
        conn.exec_driver_sql("SAVEPOINT one")
        conn.execute(insert(accounts), account("undone"))
        conn.exec_driver_sql("ROLLBACK TO SAVEPOINT one")
        conn.exec_driver_sql("RELEASE SAVEPOINT one")
        conn.execute(insert(accounts), account("later"))
    assert names(db) == ["before", "later"]


def test_a_reader_sees_one_moment_and_holds_nobody_up(db: Database) -> None:
    with db.read() as conn:
        count = select(func.count()).select_from(accounts)
        assert conn.execute(count).scalar() == 0
        put(db, "a")  # would wait for ever if the reader were in the way
        assert conn.execute(count).scalar() == 0
    assert names(db) == ["a"]


def test_a_writer_does_not_hide_what_was_there(db: Database) -> None:
    put(db, "a")
    with db.write() as conn:
        conn.execute(insert(accounts), account("b"))
        assert names(db) == ["a"]


@pytest.mark.slow
def test_writers_take_turns_and_no_update_is_lost(reopen: Open) -> None:
    """Through two connections to the same storage, as two processes have them."""
    stores = [reopen(), reopen()]
    directory(stores[0])

    def count(db: Database) -> None:
        for _ in range(50):
            with db.write() as conn:
                seq = conn.execute(select(drives.c.head_seq)).scalar_one()
                conn.execute(update(drives).values(head_seq=seq + 1))

    threads = [threading.Thread(target=count, args=[db]) for db in stores * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with stores[0].read() as conn:
        assert conn.execute(select(drives.c.head_seq)).scalar() == 200


def test_migrating_again_changes_nothing(db: Database) -> None:
    put(db, "a")
    db.migrate()
    assert names(db) == ["a"]


# --- values -------------------------------------------------------------------------------------


def test_names_compare_by_code_point(db: Database) -> None:
    given = ["a", "B", "ä", "A", "a\u0308", "é", "\U0001f600", "\uffee", "_", "zz", "z"]
    root = directory(db, *given)
    with db.read() as conn:
        query = select(entries.c.name).where(entries.c.parent == root).order_by(entries.c.name)
        found = list(conn.execute(query).scalars())
        after = list(conn.execute(query.where(entries.c.name > "a")).scalars())
    assert found == sorted(given)
    assert after == [name for name in sorted(given) if name > "a"]


def test_names_that_differ_by_case_or_form_are_different(db: Database) -> None:
    directory(db, "a", "A", "ä", "a\u0308")


@pytest.mark.parametrize("value", [(1 << 63) - 1, -(1 << 63)])
def test_integers_have_64_bits(db: Database, value: int) -> None:
    directory(db)
    with db.write() as conn:
        conn.execute(update(files).values(mtime_ns=value))
        assert conn.execute(select(files.c.mtime_ns)).scalar() == value


def test_bytes_come_back_as_they_were(db: Database) -> None:
    root = directory(db)
    value = bytes(range(256))
    row = {"drive": root, "id": value[:32], "state": "pending", "length": 1, "stored_length": 1}
    with db.write() as conn:
        conn.execute(
            insert(chunks), row | {"sha256": value[32:64], "descriptor": value, "created_ns": 1}
        )
        found = conn.execute(select(chunks).where(chunks.c.id == value[:32])).one()
    assert (found.descriptor, found.sha256) == (value, value[32:64])


# --- what the schema promises -------------------------------------------------------------------


def test_keys_are_unique_and_references_lead_somewhere(db: Database) -> None:
    root = directory(db, "a")
    entry = {"parent": root, "name": "a", "file": root, "rev": 1}
    for row in (entry, entry | {"name": "b", "file": "0" * 32}):
        with pytest.raises(IntegrityError), db.write() as conn:
            conn.execute(insert(entries), row)


def test_leases_go_with_their_session(db: Database) -> None:
    root, version = directory(db), "5" * 32
    chunk = {"drive": root, "id": b"c" * 32, "state": "pending", "length": 1, "stored_length": 1}
    with db.write() as conn:
        conn.exec_driver_sql(
            "INSERT INTO devices (id, account, name, token_sha256, scope, created_ns)"
            f" VALUES ('d', '{'owner'.rjust(32, '0')}', 'd', x'00', 'full', 1)"
        )
        conn.execute(
            insert(chunks), chunk | {"sha256": b"s" * 32, "descriptor": b"", "created_ns": 1}
        )
        session = {"version": version, "file": root, "drive": root, "device": "d"}
        conn.execute(insert(uploads), session | {"created_ns": 1, "expires_ns": 2})
        conn.execute(insert(upload_chunks), {"version": version, "drive": root, "chunk": b"c" * 32})
        conn.execute(delete(uploads))
        assert conn.execute(select(func.count()).select_from(upload_chunks)).scalar() == 0


def test_the_audit_log_only_grows(db: Database) -> None:
    with db.write() as conn:
        conn.execute(insert(audit), {"at_ns": 1, "action": "login", "detail": "{}"})
    for statement in (update(audit).values(at_ns=2), delete(audit)):
        with pytest.raises(DatabaseError, match="append-only"), db.write() as conn:
            conn.execute(statement)
    with db.read() as conn:
        assert conn.execute(select(audit.c.at_ns)).scalars().all() == [1]
