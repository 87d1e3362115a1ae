"""Opens the state database: makes it, brings an older one up to date, puts a damaged one aside.

Knows: what SQLite says about damage, quarantine. Must not know: what the rows are for.

Invariant: nothing is ever deleted here. What cannot be used is renamed, with everything that only
it explains, and a new database is made.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from cache.schema import SCHEMA, SCHEMA_VERSION, UPGRADES

log = structlog.get_logger(__name__)


class _UnknownSchema(sqlite3.DatabaseError):
    """A database of another program version: kept aside like a damaged one."""

    sqlite_errorcode = sqlite3.SQLITE_NOTADB


_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def open_database(path: Path, companions: Sequence[Path]) -> sqlite3.Connection:
    """Open or make the database; one that is damaged or of another schema is put aside, not
    deleted, and a new one made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path)
    except sqlite3.DatabaseError as problem:
        if getattr(problem, "sqlite_errorcode", None) not in _DAMAGE:
            raise  # a full disk or a lock: nothing is wrong with the file
        mark = f".quarantine-{time.time_ns()}"
        log_files = [Path(f"{path}{suffix}") for suffix in ("-wal", "-shm")]
        for one in (path, *log_files, *companions):
            with contextlib.suppress(FileNotFoundError):
                os.rename(one, f"{one}{mark}")
        log.error("state damaged; kept aside", why=str(problem), at=f"{path}{mark}")
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    # Names of files are private; SQLite gives its log the mode of the database.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=True)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = OFF")  # order of writes within a transaction is free
        db.execute("PRAGMA cache_size = -16384")
        db.execute("PRAGMA wal_autocheckpoint = 0")  # see `Database.tend`
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        while version and version != SCHEMA_VERSION:
            if version not in UPGRADES:
                raise _UnknownSchema(f"schema {version}, this program knows {SCHEMA_VERSION}")
            steps, version = UPGRADES[version], version + 1
            db.executescript(f"BEGIN; {steps} PRAGMA user_version = {version}; COMMIT;")
        # The log must exist before its descriptor is opened for fsync.
        db.execute("INSERT OR REPLACE INTO meta VALUES ('opened_ns', ?)", (time.time_ns(),))
    except BaseException:
        db.close()
        raise
    return db
