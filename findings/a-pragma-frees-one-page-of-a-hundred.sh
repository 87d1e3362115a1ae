#!/bin/sh
# `connection.execute("PRAGMA incremental_vacuum(100)")` gives one page back, not a hundred, and nothing
# says so; fetchall() after it changes nothing. For SQLite each page that is freed is a row without columns,
# and the statement has to be stepped to its end. CPython's sqlite3 takes a statement without columns for one
# that has no rows: it steps it once, and fetchall() returns [] without stepping at all. executescript()
# steps to the end. apsw has the rows, which are empty tuples, so there it is enough to fetch them.
# A database that is to shrink a piece at a time, so that no transaction is long, never does.
#
# Seen with CPython 3.11.7 (SQLite 3.40.1) and apsw 3.54.1.0 (SQLite 3.54.1); free pages before: 500
#     sqlite3 execute            499 pages left
#     sqlite3 execute, fetchall  499 pages left
#     sqlite3 executescript      400 pages left
#     apsw execute               499 pages left
#     apsw execute, fetchall     400 pages left
#
# Fails when that is not so any more.
set -eu
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check apsw==3.54.1.0
"$there/venv/bin/python" - "$there/database" <<'PYTHON'
import os
import platform
import sqlite3
import sys

import apsw

PRAGMA = "PRAGMA incremental_vacuum(100)"
FREE = 500
sqlite = lambda path: sqlite3.connect(path, isolation_level=None)  # noqa: E731


def left(path: str, connect, how) -> int:
    """How many of 500 free pages are left when `how` has been done."""
    made = sqlite(path)
    made.execute("PRAGMA auto_vacuum = incremental")
    made.execute("CREATE TABLE t (x)")
    made.execute("BEGIN")
    made.executemany("INSERT INTO t VALUES (?)", [(bytes(4000),)] * FREE)
    made.execute("DELETE FROM t")
    made.execute("COMMIT")
    made.close()
    connection = connect(path)
    before = connection.execute("PRAGMA freelist_count").fetchone()[0]
    how(connection)
    after = connection.execute("PRAGMA freelist_count").fetchone()[0]
    connection.close()
    os.unlink(path)
    assert before == FREE
    return after


print("CPython", platform.python_version(), "SQLite", sqlite3.sqlite_version, end=", ")
print("apsw", apsw.apsw_version(), "SQLite", apsw.sqlite_lib_version())
path = sys.argv[1]
free = {
    "sqlite3 execute": left(path, sqlite, lambda c: c.execute(PRAGMA)),
    "sqlite3 execute, fetchall": left(path, sqlite, lambda c: c.execute(PRAGMA).fetchall()),
    "sqlite3 executescript": left(path, sqlite, lambda c: c.executescript(PRAGMA)),
    "apsw execute": left(path, apsw.Connection, lambda c: c.execute(PRAGMA)),
    "apsw execute, fetchall": left(path, apsw.Connection, lambda c: c.execute(PRAGMA).fetchall()),
}
for how, pages in free.items():
    print(f"{how:26} {pages:3} pages left")
if list(free.values()) != [FREE - 1, FREE - 1, FREE - 100, FREE - 1, FREE - 100]:
    raise SystemExit("the behaviour has changed")
PYTHON
