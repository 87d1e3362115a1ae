"""The state database: SQLite, one file, tree and journal in one transaction.

Knows: the tables and what every column means; opening, schema versions, quarantine, durability.
Must not know: what the rows are for (tree, journal, merge), the network.

Concurrency contract: one connection, used from the trio thread only, always synchronously; a
transaction never contains an await. So every transaction is atomic for every task. `sync` alone
runs in a worker thread, and touches only a file descriptor of the write-ahead log.

Durability: WAL with synchronous=NORMAL. A commit is in the kernel's page cache when it returns, so
it survives the death of the process. It survives power loss after the next `sync`, which fsyncs
the log: that is what a FULL commit does, without holding SQLite's write lock meanwhile (log frames
carry checksums; a torn tail is dropped by recovery). Moving the log into the database fsyncs both,
so a commit never does that by itself (it would stop every request meanwhile): `tend` does it from a
worker thread with a connection of its own, which SQLite lets run beside a writer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import structlog
import trio

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 2
CHECKPOINT_EVERY = 2000  # transactions between two moves of the log into the database
LONG_LOG = 32 << 20  # bytes

SCHEMA = """
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,        -- account, drive, root, cursor, seq, device, scope; seq:DRIVE
    value
) WITHOUT ROWID;

-- One row per inode number given to the kernel. A file of the drive (`file`) has at most one live
-- node; a new remote version of a regular file gets a new node, and the old one stays, not live,
-- while a handle or the kernel refers to it.
CREATE TABLE node (
    ino       INTEGER PRIMARY KEY AUTOINCREMENT,  -- st_ino; 1 is the root; never reused
    file      TEXT    NOT NULL,     -- the file's id on the wire
    drive     TEXT    NOT NULL,     -- the drive it is in; or tree.LOCAL, HISTORY, REVOKED
    live      INTEGER NOT NULL,     -- 1: what `file` is now; 0: only open handles see it
    kind      TEXT    NOT NULL,     -- wire.Kind
    mode      INTEGER NOT NULL,     -- permission bits, 07777
    uid       INTEGER NOT NULL,
    gid       INTEGER NOT NULL,
    rdev      INTEGER NOT NULL,     -- device number of char and block nodes
    size      INTEGER NOT NULL,     -- bytes, with every local change
    mtime_ns  INTEGER NOT NULL,
    ctime_ns  INTEGER NOT NULL,
    atime_ns  INTEGER NOT NULL,     -- local only, never sent
    links     INTEGER NOT NULL,     -- names of the file in the whole drive, as far as known
    target    TEXT,                 -- of a symlink
    version   TEXT,                 -- regular: the uploaded version under the layers, if any
    base_size INTEGER NOT NULL,     -- regular: size of `version`, 0 without one
    base_file TEXT,                 -- regular: the file that `version` is of
    subdirs   INTEGER NOT NULL DEFAULT 0,  -- directory: entries that are directories
    rev       INTEGER NOT NULL,     -- drive sequence number of the last remote record merged
    listed    INTEGER               -- directory: seq of its complete listing; NULL: not listed
);
CREATE UNIQUE INDEX node_file ON node (file) WHERE live;
CREATE INDEX node_dead ON node (ino) WHERE NOT live;
CREATE INDEX node_drive ON node (drive);

CREATE TABLE share (                -- what others share with this account: wire.SharedRoot
    file  TEXT PRIMARY KEY,
    drive TEXT NOT NULL,
    owner TEXT NOT NULL,            -- account name
    name  TEXT,                     -- under Shared/OWNER; NULL: it is below another one
    role  TEXT NOT NULL,
    given_ns INTEGER NOT NULL       -- another: given anew, after it had been taken back
) WITHOUT ROWID;

CREATE TABLE entry (
    cookie INTEGER PRIMARY KEY AUTOINCREMENT,  -- readdir position: stable, and never reused
    parent INTEGER NOT NULL REFERENCES node (ino),
    name   TEXT    NOT NULL,
    ino    INTEGER NOT NULL REFERENCES node (ino),
    rev    INTEGER NOT NULL         -- sequence number of the last remote record merged; 0: local
);
CREATE UNIQUE INDEX entry_name ON entry (parent, name);
CREATE INDEX entry_order ON entry (parent, cookie);
CREATE INDEX entry_ino ON entry (ino);

CREATE TABLE xattr (
    ino   INTEGER NOT NULL REFERENCES node (ino) ON DELETE CASCADE,
    name  TEXT    NOT NULL,
    value BLOB    NOT NULL,
    PRIMARY KEY (ino, name)
) WITHOUT ROWID;

-- Dirty bytes: a spool file laid over whatever is below it (an older layer, then `node.version`).
CREATE TABLE layer (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- the spool file's name
    ino     INTEGER NOT NULL REFERENCES node (ino),
    below   INTEGER NOT NULL,       -- bytes of what is below that show through; above: zeros
    size    INTEGER NOT NULL,       -- the file's size as this layer says; final once frozen
    version TEXT,                   -- NULL: open for writing; else frozen as that version
    average INTEGER                 -- chunk size it is cut with: a resumed upload cuts alike
);
CREATE INDEX layer_ino ON layer (ino);

CREATE TABLE extent (               -- the byte ranges [start, stop) that a layer's spool file holds
    layer INTEGER NOT NULL REFERENCES layer (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    stop  INTEGER NOT NULL,
    PRIMARY KEY (layer, start)
) WITHOUT ROWID;

CREATE TABLE manifest (             -- manifests of versions that were read or written here
    version TEXT PRIMARY KEY,
    data    BLOB NOT NULL           -- MessagePack of content.Manifest
) WITHOUT ROWID;

-- The journal: what the server does not have yet, in the order it happened.
CREATE TABLE op (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    key     TEXT    NOT NULL,       -- idempotency key
    kind    TEXT    NOT NULL,       -- tag of wire.Op
    ino     INTEGER NOT NULL,       -- node the attributes and bytes are taken from when sent
    file    TEXT    NOT NULL,       -- wire.Op.file
    body    BLOB    NOT NULL,       -- MessagePack of journal.Body: names, attribute mask
    version TEXT,                   -- content is frozen under this version id (see layer.version)
    sent    INTEGER NOT NULL DEFAULT 0,  -- 1: may have reached the server: must not be changed now
    refused TEXT,                   -- the server's final refusal, "problem: message"; NULL: none
    made_ns INTEGER NOT NULL        -- when it happened
);
CREATE INDEX op_file ON op (file);

CREATE TABLE pin (                  -- files and directories to keep on this machine
    file TEXT PRIMARY KEY
) WITHOUT ROWID;

-- Remote records that arrived while a local operation on the same thing was not acknowledged yet.
CREATE TABLE shadow (
    key    TEXT PRIMARY KEY,        -- journal.file_key or journal.entry_key
    record BLOB NOT NULL            -- MessagePack of FileRecord or EntryRecord
) WITHOUT ROWID;
"""


# What brings a database of an older schema to the next one.
_UPGRADES = {
    1: """
ALTER TABLE node ADD COLUMN drive TEXT NOT NULL DEFAULT '';
UPDATE node SET drive = (SELECT value FROM meta WHERE key = 'drive');
CREATE INDEX node_drive ON node (drive);
CREATE TABLE share (file TEXT PRIMARY KEY, drive TEXT NOT NULL, owner TEXT NOT NULL, name TEXT,
    role TEXT NOT NULL, given_ns INTEGER NOT NULL) WITHOUT ROWID;
""",
}


class _UnknownSchema(sqlite3.DatabaseError):
    """A database of another program version: kept aside like a damaged one."""

    sqlite_errorcode = sqlite3.SQLITE_NOTADB


_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Database:
    """The connection. `transaction()` is the only way to write. Whoever keeps a copy of rows in
    memory adds a function to `on_rollback` that drops the copy."""

    def __init__(self, path: Path, companions: Sequence[Path] = ()) -> None:
        """`companions` are directories that only this database explains: put aside with it."""
        self.path = path
        self._db = _open(path, companions)
        self._depth = 0
        self.on_rollback: list[Callable[[], None]] = []
        self._wal = os.open(f"{path}-wal", os.O_RDWR)
        self._synced = trio.Lock()
        self._writes = 1  # what an earlier process committed may not be synced either
        self._writes_synced = 0
        self._checkpointed = 0
        self._log_is_long = trio.Event()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Nested uses join the outermost one. Never await inside. A disk that is
        full raises OSError (ENOSPC)."""
        if self._depth:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._depth += 1
        before = self._db.total_changes
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException as problem:
            self._roll_back(before, problem)
            if isinstance(problem, sqlite3.Error) and _is_full(problem):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from problem
            raise
        finally:
            self._depth -= 1
        self._writes += 1
        if self._writes - self._checkpointed >= CHECKPOINT_EVERY:
            self._log_is_long.set()

    def _roll_back(self, before: int, problem: BaseException) -> None:
        """A system call that was refused (OSError) before anything was written leaves every copy in
        memory right: objects of the journal must not change identity for each EEXIST."""
        refused = isinstance(problem, OSError) and self._db.total_changes == before
        if self._db.in_transaction:  # on some errors SQLite has rolled back by itself
            self._db.execute("ROLLBACK")
        if not refused:
            for forget in self.on_rollback:
                forget()

    def run(self, sql: str, *values: object) -> sqlite3.Cursor:
        return self._db.execute(sql, values)

    def one(self, sql: str, *values: object) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        return row

    def all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        return self._db.execute(sql, values).fetchall()

    def meta(self, key: str) -> object | None:
        row = self.one("SELECT value FROM meta WHERE key = ?", key)
        return None if row is None else row[0]

    def set_meta(self, key: str, value: object) -> None:
        self.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    async def sync(self) -> None:
        """Return when every transaction committed before the call survives power loss. Calls that
        arrive while one is under way share the next (group commit)."""
        wanted = self._writes
        async with self._synced:
            if self._writes_synced >= wanted:
                return
            upto = self._writes
            await trio.to_thread.run_sync(os.fsync, self._wal)
            self._writes_synced = upto

    async def tend(self) -> None:
        """Keep the write-ahead log short, until cancelled."""
        while True:
            await self._log_is_long.wait()
            self._log_is_long = trio.Event()
            self._checkpointed = self._writes
            await trio.to_thread.run_sync(_checkpoint, self.path)
            if os.fstat(self._wal).st_size > LONG_LOG:
                # The log starts over only when all of it has been moved, and under a steady stream
                # of writes the thread never gets there: move the few frames that came meanwhile.
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        os.close(self._wal)
        self._db.close()


def _open(path: Path, companions: Sequence[Path]) -> sqlite3.Connection:
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


def _is_full(problem: sqlite3.Error) -> bool:
    return getattr(problem, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


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
            if version not in _UPGRADES:
                raise _UnknownSchema(f"schema {version}, this program knows {SCHEMA_VERSION}")
            steps, version = _UPGRADES[version], version + 1
            db.executescript(f"BEGIN; {steps} PRAGMA user_version = {version}; COMMIT;")
        # The log must exist before its descriptor is opened for fsync.
        db.execute("INSERT OR REPLACE INTO meta VALUES ('opened_ns', ?)", (time.time_ns(),))
    except BaseException:
        db.close()
        raise
    return db


def _checkpoint(path: Path) -> None:
    """Move what is in the log into the database, as far as that is possible without waiting."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
