"""The recording file system: what a state directory needs works on it, and is recorded."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
from pathlib import Path
from random import Random

import pytest

from tests.power.disk import PAGE, Loss, survivors
from tests.power.record import ROOT, Made, Moved, Removed, Resized, Synced, Wrote
from tests.power.recording import recording

pytestmark = pytest.mark.system
ALL = Loss("ordered", PAGE, 1.0)
NOTHING = Loss("ordered", PAGE, 0.0)


def test_every_change_and_sync_is_recorded_in_order(tmp_path: Path) -> None:
    with recording(tmp_path / "disk", tmp_path / "record") as disk:
        (disk.at / "d").mkdir()
        with (disk.at / "d" / "a").open("wb", buffering=0) as file:
            file.write(b"one")
            before = disk.position
            os.fsync(file.fileno())
            assert disk.position == before + 1
            os.ftruncate(file.fileno(), 1)
        os.rename(disk.at / "d" / "a", disk.at / "b")
        directory = os.open(disk.at, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        (disk.at / "b").unlink()
    assert list(disk.events()) == [
        Made(2, ROOT, "d", "directory"),
        Made(3, 2, "a", "file"),
        Wrote(3, 0, b"one"),
        Synced(3),
        Resized(3, 1),
        Moved(3, 2, "a", ROOT, "b"),
        Synced(ROOT),
        Removed(3, ROOT, "b"),
    ]


def test_what_the_disk_held_can_be_made_from_the_record(tmp_path: Path) -> None:
    with recording(tmp_path / "disk", tmp_path / "record") as disk:
        body = Random(1).randbytes(3_000_000)
        (disk.at / "large").write_bytes(body)
        with (disk.at / "large").open("r+b") as file:
            file.seek(2_000_001)
            file.write(b"patch")
        (disk.at / "large").replace(disk.at / "renamed")
        now = (disk.at / "renamed").read_bytes()
        assert now == body[:2_000_001] + b"patch" + body[2_000_006:]
    assert survivors(disk.events(), ALL, Random(1)) == {"renamed": now}
    assert survivors(disk.events(), NOTHING, Random(1)) == {}


def test_a_database_with_a_log_locks_and_a_socket_work_on_it(tmp_path: Path) -> None:
    """The state directory has SQLite in WAL mode with two connections, flock, and a socket."""
    with recording(tmp_path / "d", tmp_path / "record") as disk:
        path = disk.at / "t.sqlite"
        db, other = (sqlite3.connect(path, isolation_level=None) for _ in range(2))
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("CREATE TABLE t (x)")
        db.executemany("INSERT INTO t VALUES (?)", [(item,) for item in range(100)])
        assert other.execute("SELECT COUNT(*) FROM t").fetchone() == (100,)
        other.execute("PRAGMA wal_checkpoint(PASSIVE)")
        db.execute("INSERT INTO t VALUES (100)")
        descriptor = os.open(f"{path}-wal", os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
        synced = disk.position
        db.execute("INSERT INTO t VALUES (101)")
        with (disk.at / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(str(disk.at / "s"))
            server.listen()
            client.connect(str(disk.at / "s"))
        db.close()
        other.close()
    for seed in range(20):
        loss = Loss.any(Random(seed))
        tree = survivors(disk.events()[:synced], loss, Random(seed))
        if "t.sqlite" not in tree or "t.sqlite-wal" not in tree:
            assert loss.names == "harsh"
            continue
        after = tmp_path / f"after-{seed}"
        after.mkdir()
        for name in ("t.sqlite", "t.sqlite-wal"):
            (after / name).write_bytes(tree[name] or b"")
        again = sqlite3.connect(after / "t.sqlite")
        assert again.execute("SELECT COUNT(*) FROM t").fetchone() == (101,)
        assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        again.close()
