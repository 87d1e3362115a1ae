"""One database as several, to do the same to each in another way; and what was asked of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event, select

from server.metadata import schema
from server.metadata.db import Database

FILE = "db.sqlite"


@contextmanager
def copied(folder: Path) -> Iterator[Database]:
    """A copy of the database in `folder`, which is closed."""
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.glob(f"{FILE}*"):
            shutil.copy(path, copy)
        db = Database(Path(copy) / FILE)
        yield db
        db.close()


def rows_of(db: Database) -> dict[str, list[tuple[object, ...]]]:
    """Everything, but for where the database happened to put it."""
    with db.read() as conn:
        return {
            table.name: sorted((tuple(row) for row in conn.execute(select(table))), key=repr)
            for table in schema.metadata.sorted_tables
        }


@contextmanager
def statements(db: Database) -> Iterator[list[str]]:
    """Every statement from now on; one for many rows counts once."""
    found: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(db._engine, "before_cursor_execute", note)
    yield found
    event.remove(db._engine, "before_cursor_execute", note)
