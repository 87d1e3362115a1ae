"""The state database: SQLite, one file, tree and journal in one transaction.

Knows: transactions, durability. Must not know: the tables (`schema`), how a connection is had
(`recovery.opening`), what the rows are for (tree, journal, merge), the network.

Concurrency: one connection, used from the trio thread only, always synchronously; a
transaction never contains an await. So every transaction is atomic for every task. `sync` alone
runs in a worker thread, and touches only a file descriptor of the write-ahead log.

Durability: WAL with synchronous=NORMAL. A commit is in the kernel's page cache when it returns, so
it survives the death of the process. It survives power loss after the next `sync`, which fsyncs
the log: that is what a FULL commit does, without holding SQLite's write lock meanwhile (log frames
carry checksums; a torn tail is dropped by SQLite's recovery, so what survives is every transaction
up to some moment at or after the last `sync`). Moving the log into the database fsyncs both, so a
commit never does that by itself (it would stop every request meanwhile): `tend` does it from a
worker thread with a connection of its own, which SQLite lets run beside a writer.

A full disk: log and database have room behind their ends (`reserve`), so that transactions go on
when others have filled the disk. It is taken again whenever some of it was used. A log that was
moved begins anew, in the room that it has: so while there is no more to be had it is moved often,
and in any case when a transaction found no room, or nothing would ever make some. Invariant, as far
as the disk ever had the room: whatever is in the log fits into the database, which has what it will
grow by before the log takes more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
import trio

from cache.metadata.damage import DamagedState, examine, is_damage, marked, note_damage
from cache.metadata.durable import sync_directory
from cache.metadata.reserve import RESERVE_BYTES, hold

# Transactions between two moves of the log into the database.
CHECKPOINT_EVERY = 2000
# The same while the log is short of room.
CHECKPOINT_WHEN_SHORT = 20
# Bytes.
LONG_LOG = 32 << 20
# The log is short of room when this is all that is ahead of it.
SHORT_BYTES = RESERVE_BYTES // 2
LEAST_AHEAD = SHORT_BYTES // 4
# Of the database, held besides what it will grow by when the log is moved: what is in `SHORT_BYTES`
# more of the log may all be new.
GROWTH_BYTES = SHORT_BYTES
# Of the log's index, held: eight bytes for each of its pages.
INDEX_BYTES = 1 << 18
# Of the log, before its first page, and before each page.
_LOG_HEADER, _FRAME_HEADER = 32, 24
# In the header of the log's index: pages in the log, and pages of the database with these.
_COUNTS, _COUNTS_AT = struct.Struct("=II"), 16

# What SQLite says when bytes could not be written, and what that is called here. The second is told
# when the log's index cannot grow, the third of everything but ENOSPC: at a quota, too.
_UNWRITTEN = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_SHMSIZE: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_WRITE: errno.EIO,
}

log = structlog.get_logger(__name__)


class Database:
    """The connection. `transaction()` is the only way to write. Whoever keeps a copy of rows in
    memory adds a function to `on_rollback` that drops the copy."""

    def __init__(self, path: Path, connection: sqlite3.Connection, boot: str = "") -> None:
        """`connection`: to `path`, as `recovery.opening` makes it; closed with this. `boot` names
        what a process survives and a machine that loses power does not."""
        self.path, self._db, self._boot = path, connection, boot
        self._depth = 0
        self._begun = False  # has SQLite been told of the transaction?
        self.damage: str | None = None  # what is wrong with it, as far as that is known
        self.on_rollback: list[Callable[[], None]] = []
        self._wal = os.open(f"{path}-wal", os.O_RDWR)
        # Kept open to the end: closing them would take SQLite's locks on the files away.
        self._file = os.open(path, os.O_RDWR)
        self._index = os.open(f"{path}-shm", os.O_RDWR)
        self._page_size = int(connection.execute("PRAGMA page_size").fetchone()[0])
        self._held = 0  # where the room ends that the log has
        self.holds_reserve = False  # can it have any here? Not known while the disk is full
        self._hold_reserve()
        hold(self._index, os.fstat(self._index).st_size, INDEX_BYTES)
        for directory in (path.parent, path.parent.parent):  # the names of what was just made
            sync_directory(directory)
        self._synced = trio.Lock()
        self._writes = 1  # what an earlier process committed may not be synced either
        self._writes_synced = 0
        self._checkpointed = 0
        self._moving = trio.Lock()  # the log, into the database
        self._log_is_long = trio.Event()
        self.changed = trio.Event()  # set while there is something to `sync`
        # May the machine have stopped since, without what `close` does? Then nothing may be
        # believed before `power_loss` has looked; it calls `trust`.
        self.lost_power = self.meta("boot") not in (None, boot) and not self.meta("clean")
        if not self.lost_power:
            with self.transaction():
                self.trust()
            self.sync_now()

    @property
    def commits(self) -> int:
        """Grows with every transaction that is committed: tells one from the next."""
        return self._writes

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Nested uses join the outermost one. Never await inside. A disk that is
        full, or takes no more for another reason, raises OSError (ENOSPC, EIO). SQLite begins it
        with the first statement that writes: one that finds nothing to do costs nothing. (What was
        read before that still holds: nobody else writes.)"""
        if self._depth:
            yield
            return
        self._depth += 1
        before = self._db.total_changes
        try:
            yield
            if self._begun:
                self._db.execute("COMMIT")
        except BaseException as error:
            self._roll_back(before, error)
            if (code := _unwritten(error)) is not None:
                self._log_is_long.set()
                raise OSError(code, os.strerror(code)) from error
            self._check(error)
            raise
        finally:
            self._depth -= 1
            begun, self._begun = self._begun, False
        if not begun:
            return
        self._writes += 1
        self._hold_reserve()
        self.changed.set()
        often = CHECKPOINT_WHEN_SHORT if self._is_short() else CHECKPOINT_EVERY
        if self._writes - self._checkpointed >= often:
            self._log_is_long.set()

    def _counts(self) -> tuple[int, int]:
        """Where the log goes on, and how long the database is with all that is in it; in bytes.
        (About 1 µs.)"""
        frames, pages = _COUNTS.unpack(os.pread(self._index, _COUNTS.size, _COUNTS_AT))
        return _LOG_HEADER + frames * (_FRAME_HEADER + self._page_size), pages * self._page_size

    def _is_short(self) -> bool:
        """True if there would be more room ahead of the log if the disk were not full."""
        return self.holds_reserve and self._held - self._counts()[0] < SHORT_BYTES

    def _hold_reserve(self) -> None:
        """Of the log: a little, without which nothing can be written at all; the rest when the
        database has what it will need of it."""
        at, length = self._counts()
        if self._held - at < SHORT_BYTES:
            self._hold_ahead(at, LEAST_AHEAD)
            if self._hold_growth(length):
                self._hold_ahead(at, RESERVE_BYTES)

    def _hold_ahead(self, at: int, ahead: int) -> None:
        start = max(at, self._held)
        taken = hold(self._wal, start, at + ahead - start)
        self._held = start + taken
        self.holds_reserve = self.holds_reserve or taken > 0

    def _hold_growth(self, length: int) -> bool:
        """Of the database, which takes what is in the log, and then is cut to its length. True if
        it is enough."""
        size = os.fstat(self._file).st_size
        needed = max(0, length - size)
        return hold(self._file, size, needed + GROWTH_BYTES) > needed + GROWTH_BYTES // 2

    def _roll_back(self, before: int, problem: BaseException) -> None:
        """A system call that was refused (OSError) before anything was written leaves every copy in
        memory right: objects of the journal must not change identity for each EEXIST."""
        refused = isinstance(problem, OSError) and self._db.total_changes == before
        if self._db.in_transaction:  # on some errors SQLite has rolled back by itself
            self._db.execute("ROLLBACK")
        if not refused:
            for forget in self.on_rollback:
                forget()

    def _check(self, problem: BaseException) -> None:
        """Raise `DamagedState` (EIO) when the file is not what was written: that is noted, and the
        state salvaged when it is opened the next time."""
        if is_damage(problem):
            self.damage = self.damage or str(problem)
            note_damage(self.path, str(problem))
            raise DamagedState(str(problem)) from problem

    def _begin(self) -> None:
        if self._depth and not self._begun:
            self._db.execute("BEGIN IMMEDIATE")
            self._begun = True

    def run(self, sql: str, *values: object) -> sqlite3.Cursor:
        """A statement that writes."""
        try:
            self._begin()
            return self._db.execute(sql, values)
        except sqlite3.DatabaseError as error:
            self._check(error)
            raise

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """The statement once for each row of values."""
        try:
            self._begin()
            self._db.executemany(sql, rows)
        except sqlite3.DatabaseError as error:
            self._check(error)
            raise

    def one(self, sql: str, *values: object) -> sqlite3.Row | None:
        row: sqlite3.Row | None
        try:
            row = self._db.execute(sql, values).fetchone()
        except sqlite3.DatabaseError as error:
            self._check(error)
            raise
        return row

    def all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            self._check(error)
            raise

    def each(self, sql: str, *values: object) -> Generator[tuple[Any, ...], None, None]:
        """Rows as they are asked for. Close it before anything is written, or awaited."""
        try:
            with contextlib.closing(self._db.cursor()) as cursor:
                cursor.row_factory = None  # plain tuples
                yield from cursor.execute(sql, values)
        except sqlite3.DatabaseError as error:
            self._check(error)
            raise

    async def examine(self) -> None:
        """Look through a database that was too large to be looked through when it was opened."""
        await trio.to_thread.run_sync(examine, self.path, abandon_on_cancel=True)
        mark = marked(self.path.parent)
        self.damage = self.damage or (mark.why if mark else None)

    def meta(self, key: str) -> object | None:
        row = self.one("SELECT value FROM meta WHERE key = ?", key)
        return None if row is None else row[0]

    def set_meta(self, key: str, value: object) -> None:
        self.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    def trust(self) -> None:
        """Declare this state right, and in use from now on. In a transaction."""
        self.set_meta("boot", self._boot)
        self.set_meta("clean", 0)
        self.lost_power = False

    async def sync(self) -> None:
        """Return when every transaction committed before the call survives power loss. Calls that
        arrive while one is under way share the next (group commit)."""
        wanted = self._writes
        async with self._synced:
            if self._writes_synced >= wanted:
                return
            upto = self._writes
            self.changed = trio.Event()
            try:
                # The log is written over again and again: then nothing but its bytes is new.
                await trio.to_thread.run_sync(os.fdatasync, self._wal)
            except BaseException:
                self.changed.set()
                raise
            self._writes_synced = upto

    def sync_now(self) -> None:
        """`sync` for the start: an earlier process may have left what is not on the disk, and the
        spool files that nothing names any more are about to be deleted."""
        os.fsync(self._wal)

    async def tend(self) -> None:
        """Keep the write-ahead log short, until cancelled."""
        while True:
            await self._log_is_long.wait()
            await self._move_log()

    async def make_room(self) -> None:
        """For whoever writes much and can wait: return when the log has what room there is."""
        if self._is_short():
            await self._move_log()

    async def _move_log(self) -> None:
        async with self._moving:
            if not self._log_is_long.is_set():
                return  # whoever had the lock has done it
            self._log_is_long = trio.Event()
            self._checkpointed = self._writes
            try:
                await trio.to_thread.run_sync(_checkpoint, self.path)
                self._move_rest()
            except sqlite3.DatabaseError as error:
                self._check(error)
                if _unwritten(error) is None:
                    raise
                log.warning("no_room_to_shorten_the_journals_log_it_is_tried_again_later")
            self._hold_growth(self._counts()[1])
            self._hold_reserve()
            hold(self._index, os.fstat(self._index).st_size, INDEX_BYTES)

    def _move_rest(self) -> None:
        """The log starts over only when all of it has been moved, and under a steady stream of
        writes the thread never gets there: move the few frames that came meanwhile."""
        if os.fstat(self._wal).st_size > LONG_LOG:
            self._held = 0 if self._cut_log() else self._held
        elif self._is_short():  # it keeps its room: others would take what it gives back
            self._hold_growth(self._counts()[1])
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _cut_log(self) -> bool:
        """False: a thread reads (`examine`), and a log that somebody reads cannot be cut. SQLite
        would wait for it, and nothing would be answered meanwhile."""
        (patience,) = self._db.execute("PRAGMA busy_timeout").fetchone()
        self._db.execute("PRAGMA busy_timeout = 0")
        try:
            busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {patience}")
        return not busy

    def close(self, *, clean: bool = False) -> None:
        """`clean`: whatever the rows refer to is on the disk, and after this they are, too. Where
        that cannot be noted, the next one looks whether power was lost."""
        if clean and not self.lost_power:
            try:
                with self.transaction():
                    self.set_meta("clean", 1)
                os.fsync(self._wal)
            except OSError as error:
                log.warning("not_noted_that_all_is_safe", why=str(error))
        os.close(self._wal)
        self._db.close()
        os.close(self._file)
        os.close(self._index)


def _unwritten(problem: BaseException) -> int | None:
    """The errno, if this says that bytes could not be written."""
    return _UNWRITTEN.get(getattr(problem, "sqlite_errorcode", 0))


def _checkpoint(path: Path) -> None:
    """Move what is in the log into the database, as far as that is possible without waiting."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
