"""The state database's log on a disk that others have filled: a log that was moved goes on in the
room that it has, so nothing that can wait a moment is refused."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cache.metadata import database
from cache.metadata.database import Database
from cache.recovery.opening import open_database
from tests.system.processes import run

PATIENCE_SECONDS = 60.0
PAGES = 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", disk)
    yield disk
    run("umount", disk)


@pytest.fixture
def db(disk: Path) -> Iterator[Database]:
    found = open_database(disk / "tree.sqlite")
    yield found
    found.close()


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def write_until_full(db: Database, pages: int) -> None:
    while is_done(db, pages):
        pass


def is_done(db: Database, pages: int) -> bool:
    try:
        with db.transaction():
            db.set_meta("a", "x" * pages * 4096)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


@pytest.mark.parametrize("gets_there", [True, False])
async def test_who_waits_for_room_has_it(
    db: Database, disk: Path, monkeypatch: pytest.MonkeyPatch, *, gets_there: bool
) -> None:
    """For many times what the disk holds, while the database grows. The thread that moves the log
    may never get to its end, because others write meanwhile: the log begins anew all the same."""
    if not gets_there:
        monkeypatch.setattr(database, "_checkpoint", lambda _path: None)
    fill(disk)
    with db.transaction():
        db.run("CREATE TABLE grows (value TEXT)")
    for value in range(2000):
        with db.transaction():
            db.set_meta("a", f"{value}:".ljust(PAGES * 4096))
            db.run("INSERT INTO grows VALUES (?)", "x" * 1000)
        await db.make_room()
    assert str(db.meta("a")).startswith("1999:")


@pytest.mark.parametrize("pages", [20, 400])
async def test_a_log_that_found_no_room_is_moved(db: Database, disk: Path, pages: int) -> None:
    """Also after a few large transactions, when everything after them is refused: nothing else
    would ever make room."""
    fill(disk)
    write_until_full(db, pages)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.tend)
            while not is_done(db, pages):  # refused once more is asked for once more
                await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()


async def test_all_that_is_in_the_log_has_room_in_the_database(db: Database, disk: Path) -> None:
    """New rows make the database grow when the log is moved; others fill the disk before that."""
    with db.transaction():
        db.run("CREATE TABLE grows (value TEXT)")
    for _ in range(60):  # 5 MB
        with db.transaction():
            db.run("INSERT INTO grows VALUES (?)", "x" * PAGES * 4096)
    fill(disk)
    before = (disk / "tree.sqlite").stat().st_size
    with contextlib.closing(sqlite3.connect(disk / "tree.sqlite")) as other:
        busy, frames, moved = other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    assert (busy, moved) == (0, frames)
    assert (disk / "tree.sqlite").stat().st_size > before + 4_000_000
