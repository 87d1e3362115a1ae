"""SQLite in the mount: with a rollback journal and with a WAL, several processes, and deaths.

One device writes a database at a time: locks are this machine's.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.applications.trees import arrives, entries
from tests.system.conftest import Pair
from tests.system.harness import Device, Site, run

MODES = ["delete", "truncate", "persist", "wal"]

# Adds rows in transactions of ten until it has made the given number of them; says so after each.
WRITER = """
import sqlite3, sys
path, mode, who, transactions = sys.argv[1:]
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute(f"PRAGMA journal_mode={mode}")
db.execute("PRAGMA synchronous=FULL")
for number in range(int(transactions)):
    db.execute("BEGIN IMMEDIATE")
    for row in range(10):
        db.execute("INSERT INTO t (who, number, data) VALUES (?, ?, randomblob(900))",
                   (who, number * 10 + row))
    db.execute("UPDATE total SET rows = rows + 10")
    db.execute("COMMIT")
    print(number, flush=True)
"""


def create(path: Path, mode: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
        db.execute(
            "CREATE TABLE t (who TEXT, number INTEGER, data BLOB, PRIMARY KEY (who, number))"
        )
        db.execute("CREATE TABLE total (rows INTEGER)")
        db.execute("INSERT INTO total VALUES (0)")


def writer(path: Path, mode: str, who: str, transactions: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, mode, who, str(transactions)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows(path: Path) -> int:
    """The number of rows, in a database that is sound and whose every transaction is whole."""
    with closing(sqlite3.connect(path, timeout=60)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = db.execute("SELECT count(*) FROM t").fetchone()
        assert db.execute("SELECT rows FROM total").fetchone() == (count,)
        parts = db.execute("SELECT who, count(*), max(number) FROM t GROUP BY who").fetchall()
    assert all(number == last + 1 and number % 10 == 0 for _, number, last in parts)
    return int(count)


@pytest.mark.parametrize("mode", MODES)
def test_processes_share_a_database(pair: Pair, mode: str) -> None:
    name = f"sqlite-{mode}"
    (pair.a.at / name).mkdir()
    path = pair.a.at / name / "db"
    create(path, mode)
    writers = [writer(path, mode, str(number), 8) for number in range(3)]
    for process in writers:
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 0, said
    assert rows(path) == 240
    theirs = arrives(pair, name) / "db"
    assert rows(theirs) == 240
    with closing(sqlite3.connect(theirs)) as db:
        db.execute("DELETE FROM t WHERE who = '1'")
        db.execute("UPDATE total SET rows = rows - 80")
        db.commit()
        db.execute("VACUUM")
    pair.b.flush()
    pair.a.sees(f"{name}/db", theirs.read_bytes())
    assert rows(path) == 160


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_writer_is_killed_and_the_other_device_finds_a_sound_database(
    pair: Pair, mode: str
) -> None:
    """In the middle of a transaction: what lies beside the database, the journal or the WAL,
    travels with it, and makes it whole there. Then here."""
    name = f"killed-{mode}"
    (pair.a.at / name).mkdir()
    path = pair.a.at / name / "db"
    create(path, mode)
    acknowledged = kill_in_the_middle(path, mode)
    assert len(os.listdir(path.parent)) > 1  # the journal, or the WAL and its index
    theirs = arrives(pair, name) / "db"
    assert rows(theirs) >= acknowledged
    pair.b.flush()  # opening it has written: the database, and away with what lay beside it
    pair.a.shows(lambda: entries(path.parent) == entries(theirs.parent), "what b made of it")
    assert rows(path) >= acknowledged


def kill_in_the_middle(path: Path, mode: str) -> int:
    """Kill a writer inside a transaction that has already begun to write to the file; how many
    rows it was told are there."""
    process = writer(path, mode, "victim", 1000)
    assert process.stdout is not None
    for _ in range(3):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].split()
    leave_a_transaction_open(path)
    return 10 * (int(rest[-1] if rest else last) + 1)


def leave_a_transaction_open(path: Path) -> None:
    """A process dies with a transaction spilled into the database (or the WAL), so that going back
    is needed for sure."""
    script = (
        "import os, signal, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "db.execute('PRAGMA cache_size=5')\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute('UPDATE t SET data = randomblob(901)')\n"
        "for i in range(100):\n"
        "    db.execute(\"INSERT INTO t VALUES ('gone', ?, randomblob(900))\", (i,))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run(sys.executable, "-c", script, path, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def alone(site: Site) -> Device:
    device = site.device("a")
    device.mount()
    return device


def test_the_mount_is_killed_under_writers_and_every_acknowledged_row_is_there(
    site: Site, alone: Device
) -> None:
    """Both kinds of journal at once; on the other device, from what reached the server, and
    here."""
    acknowledged, writers = {}, {}
    for mode in ("delete", "wal"):
        path = alone.at / mode
        create(path, mode)
        writers[mode] = writer(path, mode, "w", 1000)
    for process in writers.values():
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
    alone.kill()
    for mode, process in writers.items():
        said = process.communicate(timeout=100)[0]
        assert process.returncode != 0
        numbers = [int(line) for line in said.splitlines() if line.isdigit()]
        acknowledged[mode] = 10 * (max([2, *numbers]) + 1)
    alone.umount(check=False)
    alone.mount()
    alone.flush()
    other = site.device("b")
    other.mount()
    for mode, least in acknowledged.items():
        assert rows(other.at / mode) >= least, mode
    other.flush()  # opening it may have written: the WAL went into the database
    for mode, least in acknowledged.items():
        alone.sees(mode, (other.at / mode).read_bytes())
        assert rows(alone.at / mode) >= least, mode


def test_the_command_line_dumps_and_restores(pair: Pair) -> None:
    """sqlite3(1), its backup and its dump."""
    (pair.a.at / "dumped").mkdir()
    path = pair.a.at / "dumped" / "db"
    create(path, "delete")
    with closing(sqlite3.connect(path)) as db:
        db.executemany("INSERT INTO t VALUES ('x', ?, ?)", [(n, b"data") for n in range(10)])
        db.execute("UPDATE total SET rows = 10")
        db.commit()
    run("sqlite3", path, f".backup {path.with_name('backup')}")
    dump = run("sqlite3", path, ".dump").stdout
    run("sqlite3", path.with_name("restored"), input=dump)
    theirs = arrives(pair, "dumped")
    assert {rows(theirs / name) for name in ("db", "backup", "restored")} == {10}
