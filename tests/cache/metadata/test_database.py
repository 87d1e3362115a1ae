"""The state database: all or nothing, in memory too; quarantine; what `sync` waits for."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cache.metadata import database
from cache.metadata.database import Database
from cache.recovery.opening import open_database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    found = open_database(tmp_path / "tree.sqlite")
    yield found
    found.close()


def write_and_fail(db: Database, error: type[Exception]) -> None:
    with db.transaction():
        db.set_meta("a", 1)
        raise error


def test_nested_writes_stay(db: Database) -> None:
    with db.transaction(), db.transaction():
        db.set_meta("a", 1)
    assert db.meta("a") == 1


def test_a_transaction_is_all_or_nothing(db: Database) -> None:
    forgotten: list[str] = []
    db.on_rollback.append(lambda: forgotten.append("a copy"))
    with pytest.raises(KeyError):
        write_and_fail(db, KeyError)
    assert db.meta("a") is None
    assert forgotten == ["a copy"]
    with db.transaction():
        db.set_meta("a", 2)
    assert db.meta("a") == 2


def test_nested_transactions_are_one(db: Database) -> None:
    with pytest.raises(KeyError), db.transaction():
        write_and_fail(db, KeyError)
    assert db.meta("a") is None


def test_a_refused_call_that_wrote_nothing_costs_no_copy(db: Database) -> None:
    """Identity of the journal's objects matters to uploads under way."""
    forgotten: list[str] = []
    db.on_rollback.append(lambda: forgotten.append("a copy"))
    with pytest.raises(FileExistsError), db.transaction():
        raise FileExistsError
    assert not forgotten
    with pytest.raises(FileExistsError):
        write_and_fail(db, FileExistsError)
    assert forgotten == ["a copy"]


def test_a_transaction_that_writes_nothing_is_none(db: Database) -> None:
    before = db.commits
    with db.transaction():
        db.meta("a")
    with db.transaction(), db.transaction():
        pass
    assert db.commits == before
    with db.transaction():
        db.set_meta("a", 1)
    assert db.commits == before + 1


def test_many_rows_are_rolled_back_with_what_follows_them(db: Database) -> None:
    def write() -> None:
        with db.transaction():
            db.many("INSERT INTO meta VALUES (?, ?)", [("a", 1), ("b", 2)])
            write_and_fail(db, KeyError)

    with pytest.raises(KeyError):
        write()
    assert (db.meta("a"), db.meta("b")) == (None, None)


def test_a_full_disk_is_enospc_and_the_database_goes_on(db: Database) -> None:
    (pages,) = db.run("PRAGMA page_count").fetchone()
    db.run(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(OSError, match="No space") as full, db.transaction():
        db.set_meta("a", "x" * 100_000)
    assert full.value.errno == errno.ENOSPC
    with db.transaction():
        db.set_meta("b", 1)
    assert (db.meta("a"), db.meta("b")) == (None, 1)


def test_a_disk_that_takes_no_more_is_an_error_of_a_system_call(db: Database) -> None:
    """At a quota SQLite says what it says of a broken disk: either is waited out, and ends
    nothing."""
    with db.transaction():
        db.set_meta("a", 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match="error") as refused, db.transaction():
            db.set_meta("a", "x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.errno == errno.EIO
    assert db._log_is_long.is_set()
    with db.transaction():
        db.set_meta("b", 1)
    assert (db.meta("a"), db.meta("b")) == (1, 1)


def test_a_full_disk_does_not_keep_it_from_being_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not noted as clean, so it is looked at when it is opened after power loss."""
    found = open_database(tmp_path / "tree.sqlite", boot="1")
    before = len(os.listdir("/proc/self/fd"))

    def full(key: str, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(found, "set_meta", full)
    found.close(clean=True)
    assert len(os.listdir("/proc/self/fd")) < before
    again = open_database(tmp_path / "tree.sqlite", boot="2")
    assert again.lost_power
    again.close()


def test_what_was_committed_is_there_after_the_process_dies(tmp_path: Path) -> None:
    """A copy of the files at that moment is what the next process finds."""
    first = open_database(tmp_path / "tree.sqlite")
    with first.transaction():
        first.set_meta("a", 1)
    after = tmp_path / "after"
    after.mkdir()
    for file in tmp_path.glob("tree.sqlite*"):
        (after / file.name).write_bytes(file.read_bytes())
    first.close()
    second = open_database(after / "tree.sqlite")
    assert second.meta("a") == 1
    second.close()


def test_a_damaged_database_is_put_aside_not_deleted(tmp_path: Path) -> None:
    path, damage = tmp_path / "tree.sqlite", b"not a database at all" * 300
    open_database(path).close()
    path.write_bytes(damage + path.read_bytes()[len(damage) :])
    open_database(path).close()
    (aside,) = tmp_path.glob("quarantine-*/tree.sqlite")
    assert aside.read_bytes().startswith(damage)


async def test_sync_waits_for_the_disk_and_is_shared(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go, calls = trio.Event(), threading.Event(), []
    token = trio.lowlevel.current_trio_token()

    def fsync(fd: int) -> None:
        calls.append(fd)
        trio.from_thread.run_sync(started.set, trio_token=token)
        go.wait()

    monkeypatch.setattr(database.os, "fdatasync", fsync)
    with db.transaction():
        db.set_meta("a", 1)
    done: list[int] = []

    async def wait(number: int) -> None:
        await db.sync()
        done.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 1)
        await started.wait()
        with db.transaction():
            db.set_meta("a", 2)
        for number in (2, 3):  # of a later commit: the one under way is not enough, one more is
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        assert not done
        go.set()
    assert sorted(done) == [1, 2, 3]
    assert len(calls) == 2


async def test_the_first_sync_covers_what_an_earlier_process_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    found = open_database(tmp_path / "tree.sqlite")
    monkeypatch.setattr(database.os, "fdatasync", calls.append)
    await found.sync()
    await found.sync()
    assert len(calls) == 1
    found.close()


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    open_database(tmp_path / "tree.sqlite").close()
    assert os.stat(tmp_path / "tree.sqlite").st_mode & 0o077 == 0


async def test_a_long_log_is_cut_without_waiting_for_who_reads_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread looks through the whole database, and nothing would be answered until it has."""
    monkeypatch.setattr(database, "LONG_LOG", 0)
    log = Path(f"{db.path}-wal")
    with contextlib.closing(sqlite3.connect(db.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        with db.transaction():
            db.set_meta("a", "x" * 100_000)
        said: list[str] = []
        db._db.set_trace_callback(said.append)
        db._log_is_long.set()
        await db._move_log()
        db._db.set_trace_callback(None)
        assert log.stat().st_size > 100_000
        cut = said.index("PRAGMA wal_checkpoint(TRUNCATE)")
        assert "PRAGMA busy_timeout = 0" in said[:cut]
        assert db.run("PRAGMA busy_timeout").fetchone()[0] > 0
    db._log_is_long.set()
    await db._move_log()
    assert log.stat().st_size == 0
    assert db.meta("a") == "x" * 100_000
