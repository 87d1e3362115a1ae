"""Ids that were files' once: never free again.

Knows: the table of them. Must not know: how an id gets there (`purge`), who asks for one.

Much is known by an id for longer than its file is there: parts of the change feed, what is in the
trash, what others were given. So whoever makes a file asks here first, whosever drive it is in.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, select

from server.metadata.records import slices
from server.metadata.schema import retired

_RETIRED = select(retired.c.id).where(retired.c.id.in_(bindparam("ids", expanding=True)))


def retired_of(conn: Connection, ids: Iterable[str]) -> set[str]:
    """Those of `ids` that files had which were deleted for good."""
    return {id for some in slices(ids) for id in conn.execute(_RETIRED, {"ids": some}).scalars()}
