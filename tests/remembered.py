"""Things that every new server works out anew, worked out once for a process of tests.

A process has one server as long as it runs; tests make hundreds. What stays the same:

- The SQL of a statement. SQLAlchemy remembers it for one engine, so all engines are given one
  memory, and the dialect that is part of its key.
- The file of a database that is empty but for its schema: copied, as the first one was made.

`remember` is called where tests make servers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import Engine, create_engine

from server.metadata import db

_engine_of, _migrate_it = db._sqlite_engine, db.Database.migrate


@cache
def _first() -> Engine:
    engine = create_engine("sqlite://")
    engine.connect().close()  # the dialect asks the driver what it is
    return engine


@cache
def _empty() -> bytes:
    with create_engine("sqlite://").connect() as conn:
        db._create(conn)
        conn.commit()
        return bytes(conn.connection.driver_connection.serialize())


def _engine(path: Path) -> Engine:
    engine = _engine_of(path)
    engine.dialect, engine._compiled_cache = _first().dialect, _first()._compiled_cache
    return engine


def _migrate(self: db.Database) -> None:
    """One that nobody has opened yet becomes a copy; then as ever."""
    file = Path(str(self._engine.url.database))
    if not file.stat().st_size:
        file.write_bytes(_empty())
    _migrate_it(self)


def remember() -> None:
    db._sqlite_engine, db.Database.migrate = _engine, _migrate  # type: ignore[method-assign]
