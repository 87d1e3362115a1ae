"""Deep trees, made at once by writing rows, and counting what is asked of a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event, insert, select

from server.drive import depth
from server.drive.depth import Below
from server.metadata.db import Database
from server.metadata.schema import entries, files
from server.permissions.lineage import Lineage
from tests.server.harness import Client, Running, new_id


def chain(
    server: Running, client: Client, names: list[str], parent: str | None = None
) -> list[str]:
    """Directories in each other; returns their ids, the outermost first."""
    with server.app.service.db.write() as conn:
        return chain_in(conn, client.me.drive, names, parent or client.me.root)


def chain_in(conn: Connection, drive: str, names: list[str], parent: str) -> list[str]:
    ids = [new_id() for _ in names]
    below, rows = Below(0, 0), list[dict[str, Any]]()
    common = {"drive": drive, "kind": "directory", "mode": 0o755, "uid": 0, "gid": 0, "size": 0}
    common |= {"mtime_ns": 1, "ctime_ns": 1, "links": 1, "rdev": 0, "rev": 0}
    for id, name in zip(reversed(ids), reversed(names), strict=True):
        reach = {"below_levels": below.levels, "below_bytes": below.size}
        rows.append(common | reach | {"id": id})
        below = below.under(name)
    conn.execute(insert(files), rows)
    places = zip([parent, *ids], names, ids, strict=False)
    conn.execute(
        insert(entries), [{"parent": p, "name": n, "file": f, "rev": 0} for p, n, f in places]
    )
    inner = conn.execute(select(files).where(files.c.id == ids[0])).one()
    depth.deepen(depth.StoredDepths(conn), Lineage(conn), parent, names[0], Below.of(inner))
    return ids


def bounds(server: Running, file: str) -> Below:
    """The stored reach of the directories below `file`."""
    with server.app.service.db.read() as conn:
        return Below.of(conn.execute(select(files).where(files.c.id == file)).one())


@contextmanager
def counted(db: Database) -> Iterator[list[str]]:
    """The statements that are executed meanwhile, by any thread."""
    asked: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        asked.append(statement)

    event.listen(db._engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(db._engine, "before_cursor_execute", note)
