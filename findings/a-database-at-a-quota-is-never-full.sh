#!/bin/sh
# A database in a btrfs subvolume that has reached its quota is never "full". Where the rollback journal is to be
# made it is "unable to open database file" (errno 2, of a file that is not there: the ENOENT is of a later call);
# where the journal is kept it is "disk I/O error". Only ENOSPC is SQLITE_FULL: every other refusal of a write
# is SQLITE_IOERR_WRITE, the code of a disk that is broken, and CPython's sqlite3 has the errno nowhere. So a
# program that waits for room when the disk is full, and gives up when it is broken, gives up at a quota, for which
# it would have had to wait the same way. write(2) itself says EDQUOT.
#
# Seen with CPython 3.11.7 (SQLite 3.40.1), apsw 3.54.1.0 (SQLite 3.54.1), Linux 6.18.44, btrfs-progs 6.2
#     write                          EDQUOT
#     sqlite3, quota                 SQLITE_CANTOPEN: unable to open database file
#     sqlite3, quota, journal kept   SQLITE_IOERR_WRITE: disk I/O error
#     apsw, quota                    SQLITE_CANTOPEN, errno 2
#     sqlite3, disk full             SQLITE_FULL: database or disk is full
#
# Needs root, loop devices, and Debian's btrfs-progs. Fails when that is not so any more.
set -eu
there=$(mktemp -d)
trap 'umount "$there/disk" 2>/dev/null || :; rm -rf "$there"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check apsw==3.54.1.0
truncate -s 200M "$there/image"
mkfs.btrfs -q "$there/image" >/dev/null 2>&1
mkdir "$there/disk"
mount -o loop "$there/image" "$there/disk"
btrfs quota enable "$there/disk"
for each in write sqlite3 kept apsw full; do
    btrfs subvolume create "$there/disk/$each" >/dev/null
    [ $each = full ] || btrfs qgroup limit 8M "$there/disk/$each"
done
"$there/venv/bin/python" - "$there/disk" <<'PYTHON'
import errno
import os
import platform
import sqlite3
import sys

import apsw

there = sys.argv[1]
PIECE = 65536


def by_write(directory: str) -> str:
    with open(f"{directory}/file", "wb", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(PIECE))
                os.fsync(file)
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def by_sqlite3(directory: str, journal: str = "DELETE") -> str:
    connection = sqlite3.connect(f"{directory}/database", isolation_level=None)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("CREATE TABLE t (x)")
    try:
        while True:
            connection.execute("INSERT INTO t VALUES (?)", (os.urandom(PIECE),))
    except sqlite3.OperationalError as error:
        return f"{error.sqlite_errorname}: {error}"


def by_apsw(directory: str) -> str:
    connection = apsw.Connection(f"{directory}/database")
    connection.execute("CREATE TABLE t (x)")
    try:
        while True:
            connection.execute("INSERT INTO t VALUES (?)", (os.urandom(PIECE),))
    except apsw.Error as error:
        code = apsw.mapping_result_codes[error.result]
        return f"{code}, errno {connection.system_errno}"


print("CPython", platform.python_version(), "SQLite", sqlite3.sqlite_version, end=", ")
print("apsw", apsw.apsw_version(), "SQLite", apsw.sqlite_lib_version(), "Linux", platform.release())
EXPECTED = {
    "write": "EDQUOT",
    "sqlite3, quota": "SQLITE_CANTOPEN: unable to open database file",
    "sqlite3, quota, journal kept": "SQLITE_IOERR_WRITE: disk I/O error",
    "apsw, quota": "SQLITE_CANTOPEN, errno 2",
    "sqlite3, disk full": "SQLITE_FULL: database or disk is full",
}
seen = {
    "write": by_write(f"{there}/write"),
    "sqlite3, quota": by_sqlite3(f"{there}/sqlite3"),
    "sqlite3, quota, journal kept": by_sqlite3(f"{there}/kept", "PERSIST"),
    "apsw, quota": by_apsw(f"{there}/apsw"),
    "sqlite3, disk full": by_sqlite3(f"{there}/full"),
}
for how, told in seen.items():
    print(f"{how:30} {told}")
if seen != EXPECTED:
    raise SystemExit("the behaviour has changed")
PYTHON
