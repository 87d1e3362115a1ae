"""Ids that were files' once: never free again.

Knows: the table of them. Must not know: how an id gets there (`purge`), who asks for one.

Much is known by an id for longer than its file is there: parts of the change feed, what is in the
trash, what others were given. So whoever makes a file asks here first, whosever drive it is in.
"""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, literal, select

from server.metadata.schema import retired

_IS_RETIRED = select(literal(1)).where(retired.c.id == bindparam("id"))


def is_retired(conn: Connection, id: str) -> bool:
    """Whether a file that was deleted for good had this id."""
    return conn.execute(_IS_RETIRED, {"id": id}).first() is not None
