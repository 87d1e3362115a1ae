"""Opens the state database: makes it, brings an older one up to date, salvages a damaged one.

Knows: what is looked at when, in which order a damaged database is replaced. Must not know: how
damage shows (`metadata.damage`), what the rows are for (`salvage` and `mending` do).

Invariant: nothing is ever deleted here. A database that is damaged is put into quarantine whole,
with the dirty bytes that it explains, and a new one is made of every row that can be read. One of a
newer program is refused and left alone: to hide its journal would be worse.

A database that is small enough is looked through before it is believed, a large one in the
background (`damage.examine`). What is found there, or met in use, marks the state, which is
salvaged when it is opened the next time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from cache.metadata import clock, damage
from cache.metadata.database import Database
from cache.metadata.durable import make_private, sync_directory
from cache.metadata.operations import new_id
from cache.metadata.schema import SCHEMA, SCHEMA_VERSION, UPGRADES
from cache.recovery import quarantine, salvage, spool_scan
from cache.recovery.mending import mend
from cache.recovery.sqlite_pages import Image, lost_of_log

log = structlog.get_logger(__name__)

# Kept prepared: there are about two hundred different ones, and Python keeps 128.
STATEMENTS = 512


class NewerState(Exception):
    """The state was written by a newer program. The message says what to do."""


def open_database(path: Path, spool: Path | None = None, boot: str = "") -> Database:
    """Open or make the database. `spool`: the directory that only this database explains, put aside
    with it. `boot` names what a process survives and a machine that loses power does not. Raises
    `NewerState`."""
    return Database(path, _connection(path, spool, boot), boot)


def _connection(path: Path, spool: Path | None, boot: str) -> sqlite3.Connection:
    make_private(path.parent)
    if damage.marked(path.parent) is None:
        db = _open_whole(path, spool, boot)
        if db is not None:
            return db
    _salvage(path, spool)
    db = _open_whole(path, None, boot)
    if db is None:
        raise sqlite3.DatabaseError(f"{path} cannot be replaced")
    return db


def _open_whole(path: Path, spool: Path | None, boot: str) -> sqlite3.Connection | None:
    """A connection; None when there is damage, which is in quarantine and marked then."""
    why = _damage_from_outside(path, spool)
    if why:
        _put_aside(path, spool, why)
        return None
    # Names of files are private; SQLite gives its log the mode of the database.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    has_log = _size(Path(f"{path}-wal")) > 0
    db = sqlite3.connect(
        path, isolation_level=None, check_same_thread=True, cached_statements=STATEMENTS
    )
    try:
        why = _prepare(db, path, spool, boot, has_log=has_log)
    except BaseException as error:
        if not damage.is_damage(error):  # a full disk or a lock: nothing is wrong with the file
            db.close()
            raise
        why = str(error)
    if not why:
        return db
    _put_aside(path, spool, why)  # before the log goes: closing moves it into the database
    db.close()
    return None


def _prepare(
    db: sqlite3.Connection, path: Path, spool: Path | None, boot: str, *, has_log: bool
) -> str:
    """Make the connection usable; what is wrong with the database, "" for nothing."""
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = OFF")  # order of writes within a transaction is free
    db.execute("PRAGMA cache_size = -16384")
    db.execute("PRAGMA wal_autocheckpoint = 0")  # see `Database.tend`
    why = _schema_damage(db, path)
    if not why and has_log and _columns(db):
        why = _log_damage(db, path, spool, boot)
    is_old = db.execute("PRAGMA user_version").fetchone()[0] > 0
    if is_old and not why and damage.is_small(path):
        why = damage.look_through(db)
    if not why:
        _begin(db)
    return why


def _put_aside(path: Path, spool: Path | None, why: str) -> None:
    directory = quarantine.take_in(path, spool)
    damage.mark(path.parent, why, directory.name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _begin(db: sqlite3.Connection) -> None:
    """Make the tables, or bring them up to date."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == 0:
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        # Into the file itself: where power loss leaves no tables, the log had nothing else in it.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    while version and version != SCHEMA_VERSION:
        steps, version = UPGRADES[version], version + 1
        db.executescript(f"BEGIN; {steps} PRAGMA user_version = {version}; COMMIT;")
    # The log must exist before its descriptor is opened for fsync.
    db.execute("INSERT OR REPLACE INTO meta VALUES ('opened_ns', ?)", (time.time_ns(),))


# Damage.


def _damage_from_outside(path: Path, spool: Path | None) -> str:
    """Damage at which SQLite would throw the log away, or begin a new database beside old dirty
    bytes; "" for none."""
    has_log = _size(Path(f"{path}-wal")) > 0
    if _size(path) == 0:
        explains = has_log or (spool is not None and quarantine.layer_files(spool))
        return "the database is gone" if explains else ""
    with path.open("rb") as stream:
        head = stream.read(100)
    is_ours = head.startswith(b"SQLite format 3\0") and len(head) == 100
    return "" if is_ours and (head[18:20] == b"\2\2" or not has_log) else "its head is damaged"


def _schema_damage(db: sqlite3.Connection, path: Path) -> str:
    """The first fault of the tables as such; "" for none. Raises `NewerState`."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    here = _columns(db)
    if version == SCHEMA_VERSION or not here:
        is_fresh = not here and version == 0
        return "" if is_fresh or _is_complete(here) else "tables are missing"
    if version not in UPGRADES and not _is_complete(here):
        raise NewerState(
            f"{path} was written by a newer version of Nearline (schema {version}, this one knows"
            f" {SCHEMA_VERSION}); update Nearline, or give another --state directory"
        )
    return "the version number is wrong" if _is_complete(here) or version < 1 else ""


def _columns(db: sqlite3.Connection) -> dict[str, set[str]]:
    query = (
        "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c"
        " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
    )
    found: dict[str, set[str]] = {}
    for table, column in db.execute(query):
        found.setdefault(table, set()).add(column)
    return found


def _is_complete(here: dict[str, set[str]]) -> bool:
    """True if these are exactly the tables of today."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return _columns(db) == here


def _log_damage(db: sqlite3.Connection, path: Path, spool: Path | None, boot: str) -> str:
    """SQLite drops the log from the first wrong byte on, which is right after power loss: what was
    synced is whole. After the mere death of a process everything must be there."""
    last = db.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone()
    if last is not None and last["value"] != boot:  # also after a clean end: it may have begun anew
        return ""
    (valid,) = struct.unpack_from("=I", Path(f"{path}-shm").read_bytes(), 16)
    with _mapped(Path(f"{path}-wal")) as log_bytes:
        if lost_of_log(log_bytes, valid):
            return "the log is damaged"
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'layer'").fetchone()
    newest = max(quarantine.layer_files(spool), default=0) if spool is not None else 0
    return "the log lacks its end" if newest > (row["seq"] if row else 0) else ""


@contextlib.contextmanager
def _mapped(file: Path) -> Iterator[bytes | memoryview]:
    """The bytes of a file that may be missing."""
    if not file.exists() or file.stat().st_size == 0:
        yield b""
        return
    with file.open("rb") as stream:
        # Not closed here: views of it may still be in a traceback.
        yield memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


# Salvage.


def _salvage(path: Path, spool: Path | None) -> None:
    """Put everything aside, and a database of what can be read in its place."""
    state, mark = path.parent, damage.marked(path.parent)
    if mark is None or mark.quarantine is None or not (state / mark.quarantine).is_dir():
        _put_aside(path, spool, mark.why if mark else "")
        mark = damage.marked(state)
    assert mark is not None
    assert mark.quarantine is not None
    why, directory = mark.why, state / mark.quarantine
    log.error("state_damaged_put_aside", why=why, at=str(directory))
    try:
        report = _replace(path, spool, why, directory)
    except (OSError, sqlite3.DatabaseError):
        raise  # our own disk: tried again at the next start
    except Exception:  # whatever nonsense is in there, the next mount must start
        log.exception("nothing_could_be_salvaged", at=str(directory))
        report = quarantine.Report(why)
        _put_in_place(path, None)
    if spool is not None:
        needed = _layers_of(path) if path.exists() else set()
        kept = quarantine.leave_only(spool, needed, directory)
        report = msgspec.structs.replace(report, kept=kept)
    quarantine.write_report(directory, report)
    damage.unmark(state)
    log.error(
        "state_salvaged",
        at=str(directory),
        rows=report.rows,
        lacking=report.torn,
        recovered=report.recovered,
        lost=report.lost,
    )


def _replace(path: Path, spool: Path | None, why: str, directory: Path) -> quarantine.Report:
    with (
        _mapped(directory / path.name) as data,
        _mapped(directory / f"{path.name}-wal") as log_bytes,
    ):
        found = salvage.read(Image(data, log_bytes))
        counts = {name: len(rows) for name, rows in found.rows.items() if rows}
        torn = sorted(found.torn)
        files = spool_scan.find(spool)
        if max(files, default=0) > found.highest.get("layer", 0):
            found.torn.add("layer")  # the newest
            found.is_cut = True
        mended = mend(found, files, clock.moment().stamp, new_id)
    if mended is None:
        _put_in_place(path, None)
        return quarantine.Report(why, torn=torn)
    for old, new in mended.copies if spool is not None else ():
        files[old].copy(new)
    fresh = path.with_name(f"{path.name}.salvaged")
    salvage.write(fresh, mended.rows, mended.highest)
    _put_in_place(path, fresh)
    return quarantine.Report(why, counts, torn, mended.recovered, mended.lost)


def _put_in_place(path: Path, fresh: Path | None) -> None:
    """The old database has another name already, in the quarantine."""
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    if fresh is None:
        path.unlink(missing_ok=True)
    else:
        fresh.replace(path)
    sync_directory(path.parent)


def _layers_of(path: Path) -> set[int]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        return {row[0] for row in db.execute("SELECT id FROM layer")}
