"""Damage of the state database: how it shows, and the mark that says that it was met.

Knows: how SQLite and our own rows show damage, how a database is looked through, the mark beside
it. Must not know: how a damaged database is replaced (`recovery.opening`), what the rows are for.

    STATE/damaged.json         what is wrong with the state; there until it has been salvaged

A marked state is salvaged when it is opened the next time. Until then it is read as far as it goes.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from cache.metadata.durable import sync_directory, write_durably
from cache.metadata.operations import Body

log = structlog.get_logger(__name__)

MARK = "damaged.json"
CURE = "unmount with `nearline umount --now`, and mount again: that salvages it"
# Bytes: about 0.1 s.
CHECKED_AT_ONCE = 8 << 20
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_CUT_SHORT = sqlite3.SQLITE_IOERR_SHORT_READ


class DamagedState(OSError):
    """The state database is damaged where it was read: EIO for who asked."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EIO, f"the state is damaged ({why}); {CURE}")


class Mark(Struct, frozen=True):
    """`quarantine`: the directory that has everything already."""

    why: str
    quarantine: str | None = None


def is_damage(problem: BaseException) -> bool:
    """True if this error says that the file is not what was written."""
    code = getattr(problem, "sqlite_errorcode", None) or 0
    is_text = isinstance(problem, UnicodeDecodeError) or "decode to UTF-8" in str(problem)
    is_row = isinstance(problem, msgspec.DecodeError | DamagedState)
    return code & 0xFF in _DAMAGE or code == _CUT_SHORT or is_text or is_row


def mark(state: Path, why: str, quarantine: str | None = None) -> None:
    """The next one who opens the state salvages it."""
    write_durably(state / MARK, msgspec.json.encode(Mark(why, quarantine)))


def marked(state: Path) -> Mark | None:
    try:
        return msgspec.json.decode((state / MARK).read_bytes(), type=Mark)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        return Mark("it was marked as damaged")


def unmark(state: Path) -> None:
    (state / MARK).unlink(missing_ok=True)
    sync_directory(state)


def note_damage(path: Path, why: str) -> None:
    """Damage was met while the state was in use: it is salvaged when it is opened again."""
    if marked(path.parent) is None:
        log.error("state_damaged", why=why, state=str(path.parent), cure=CURE)
        with contextlib.suppress(OSError):  # a full disk: it will be met again
            mark(path.parent, why)


def is_small(path: Path) -> bool:
    """True if the database is small enough to be looked through whenever it is opened."""
    size = sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())
    return size <= CHECKED_AT_ONCE


def look_through(db: sqlite3.Connection) -> str:
    """The first fault of the database; "" for none. Raises what `is_damage` knows."""
    found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    if found != "ok":
        return " ".join(found.split())
    decode = msgspec.msgpack.Decoder(Body).decode
    for (body,) in db.execute("SELECT body FROM op"):
        decode(body)
    return ""


def examine(path: Path) -> None:
    """Look through a database that was not looked through when it was opened, in a thread; mark it
    if it is damaged."""
    if is_small(path):
        return
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            why = look_through(db)
    except (sqlite3.DatabaseError, ValueError) as error:
        why = str(error) if is_damage(error) else ""
    if why:
        note_damage(path, why)
