"""The database: one engine, two kinds of transaction, and bringing the schema up to date.

Knows: how SQLite must be opened to be durable and consistent. Must not know: any table's meaning.
Everything that only SQLite understands is in this module.

Concurrency: `read` gives a consistent snapshot and may be used from any number of threads. `write`
takes the process-wide lock, then the database's own write lock (BEGIN IMMEDIATE), so at most one
write transaction runs at a time, and none fails half-way because somebody else wrote. Commands
beside the running server (account add) are held off by the database's lock, for up to
`BUSY_SECONDS`.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text

from remote.protocol.errors import BadRequest, Refused
from server import datadir
from server.durable import sync_file
from server.metadata.schema import metadata

# The newest migration. A test compares it with the migrations directory.
HEAD = "0010"

BUSY_SECONDS = 15
_INT64 = 1 << 63


class DataTooNew(RuntimeError):
    """The data was written by a newer Nearline than this one."""


class Database:
    """Transactions on the metadata of one data directory."""

    def __init__(self, path: Path, *, frozen: bool = False) -> None:
        """`frozen`: the file is there and nobody changes it, nor does reading it leave a trace."""
        if not frozen:
            datadir.make(path.parent)
            datadir.make_file(path)
        self._engine = _frozen_engine(path) if frozen else _sqlite_engine(path)
        self._writer = self._engine.execution_options(nearline_write=True)
        self._write_lock = threading.Lock()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment and changes nothing."""
        with self._engine.connect() as conn:
            yield conn

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits when the block ends and rolls back when it raises."""
        with self._write_lock, self._writer.begin() as conn:
            yield conn

    def migrate(self) -> None:
        """Bring the schema to `HEAD`. Raises `DataTooNew`.

        Costs one query when there is nothing to do; alembic is only imported when there is.
        """
        revision = self.revision()
        if revision == HEAD:
            return
        with self.write() as conn:
            if revision is None and not inspect(conn).get_table_names():
                _create(conn)
            else:
                _upgrade(conn)

    def close(self) -> None:
        self._engine.dispose()

    def is_current(self) -> bool:
        """True if the schema is that of this Nearline. Raises `DataTooNew`."""
        return self.revision() == HEAD

    def copy_to(self, path: Path) -> None:
        """Make `path` a database with everything as it is at this moment, beside any writers; one
        file, durable, private, that nothing has to be recovered in."""
        datadir.make_file(path)
        with self._engine.connect() as conn, contextlib.closing(sqlite3.connect(path)) as copy:
            source: Any = conn.connection.driver_connection
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
        sync_file(path)

    def revision(self) -> str | None:
        """Which migration the schema is of; None: there is none yet. Raises `DataTooNew`."""
        with self.read() as conn:
            if not inspect(conn).has_table("alembic_version"):
                return None
            found = conn.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if found is not None and found > HEAD:
            raise DataTooNew(
                f"the data is of schema {found}, this Nearline knows {HEAD}; update it"
            )
        return found


_NULL = re.compile(r"NULL value in (\w+)\.(\w+)")


def damage(conn: Connection) -> list[str]:
    """Faults of the database below any table's meaning: pages, indexes, foreign keys."""
    lines = {row[0] for row in conn.exec_driver_sql("PRAGMA integrity_check(1000000000)")}
    broken = [line for line in sorted(lines - {"ok"}) if not _is_imagined(conn, line)]
    for table, rowid, parent, _ in conn.exec_driver_sql("PRAGMA foreign_key_check"):
        row = f"row {rowid}" if rowid is not None else "a row"
        broken.append(f"{row} of table {table} refers to no row of {parent}")
    return broken


def _is_imagined(conn: Connection, line: str) -> bool:
    """SQLite 3.40 looks for NULL in the wrong column of a table WITHOUT ROWID whose primary key is
    not its first columns, and says so for every row."""
    told = _NULL.fullmatch(line)
    if told is None:
        return False
    table, column = told.groups()
    query = f'SELECT 1 FROM "{table}" WHERE "{column}" IS NULL LIMIT 1'
    return conn.exec_driver_sql(query).first() is None


def _create(conn: Connection) -> None:
    """Make a new database at once; the migrations lead to the same tables (a test compares)."""
    metadata.create_all(conn)
    conn.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
    conn.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def _upgrade(conn: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = conn
    command.upgrade(config, "head")


def _sqlite_engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", pool_size=16, connect_args={"timeout": BUSY_SECONDS}
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "before_cursor_execute", _check)
    return engine


def _frozen_engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///file:{quote(str(path))}?immutable=1&uri=true")
    event.listen(engine, "begin", _begin)
    return engine


def _check(
    _conn: Connection, _cursor: Any, _statement: str, parameters: Any, _context: Any, many: bool
) -> None:
    """Refuse what not every database can hold before any of it is asked: NUL in text, which
    PostgreSQL has not, and numbers beyond 64 bits. Nobody's names have them, but anybody can send
    them, and who is answered 500 would send them for ever. Raises `Refused(BadRequest)`."""
    for row in parameters if many else (parameters,):
        check_values(row)


def check_values(row: Iterable[Any]) -> None:
    """The same of the values of one row, for who writes it later."""
    for value in row:
        kind = type(value)
        if kind is str and "\0" in value:
            raise Refused(BadRequest(message="send text without the character NUL"))
        if kind is int and not -_INT64 <= value < _INT64:
            raise Refused(BadRequest(message="send numbers of at most 64 bits"))


def _configure(connection: Any, _record: Any) -> None:
    """Transactions are begun by `_begin` alone: the driver's implicit BEGIN is deferred even for
    writes, and then two writers can fail on each other (SQLITE_BUSY_SNAPSHOT)."""
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "cache_size=-32768",
        "temp_store=MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(conn: Connection) -> None:
    write = conn.get_execution_options().get("nearline_write", False)
    conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
