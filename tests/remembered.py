"""Things that every new server works out anew, worked out once for a process of tests.

A process has one server as long as it runs; tests make hundreds. What stays the same:

- The SQL of a statement. SQLAlchemy remembers it for one engine, so all engines are given one
  memory, and the dialect that is part of its key.
- The schema's CREATE statements, which are those that the first database was made with.

`remember` is called where tests make servers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine

from server.metadata import db

_engine_of, _create = db._sqlite_engine, db._create


@cache
def _first() -> Engine:
    engine = create_engine("sqlite://")
    engine.connect().close()  # the dialect asks the driver what it is
    return engine


@cache
def _statements() -> list[str]:
    with create_engine("sqlite://").begin() as conn:
        _create(conn)
        made = conn.exec_driver_sql("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
        return [str(row[0]) for row in made]


def _engine(path: Path) -> Engine:
    engine = _engine_of(path)
    engine.dialect, engine._compiled_cache = _first().dialect, _first()._compiled_cache
    return engine


def _created(conn: Connection) -> None:
    for statement in _statements():
        conn.exec_driver_sql(statement)
    conn.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (db.HEAD,))


def remember() -> None:
    db._sqlite_engine, db._create = _engine, _created
