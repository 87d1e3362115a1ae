"""From rows to the wire's records.

Knows: how a row of `files` reads as a `FileRecord`. Must not know: who may see it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, func, select

from remote.protocol.messages import FileRecord
from server.metadata.schema import files, xattrs

# Values per IN list: far below every database's limit of bound parameters.
IN_LIMIT = 500

_FILES = select(files).where(files.c.id.in_(bindparam("ids", expanding=True)))
_XATTRS = select(xattrs).where(xattrs.c.file.in_(bindparam("ids", expanding=True)))

_XATTR_BYTES = (
    select(xattrs.c.file, func.sum(func.length(xattrs.c.value)))
    .where(xattrs.c.file.in_(bindparam("ids", expanding=True)))
    .group_by(xattrs.c.file)
)
# Of attributes in one page of a listing: a file may have a megabyte of them.
PAGE_BYTES = 4 * 1024 * 1024

T = TypeVar("T")


def slices(items: Iterable[T], size: int = IN_LIMIT) -> Iterator[list[T]]:
    """`items` in lists of at most `size`."""
    rest = iter(items)
    while page := list(islice(rest, size)):
        yield page


def attributes(conn: Connection, ids: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """The extended attributes of each of `ids` that has any."""
    found: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
    for some in slices(ids):
        for row in conn.execute(_XATTRS, {"ids": some}):
            found[row.file][row.name] = row.value
    return found


def lightest(conn: Connection, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that have attributes and fit one answer together, least first."""
    return fitting_of(attribute_sizes(conn, ids))


def attribute_sizes(conn: Connection, ids: Iterable[str]) -> dict[str, int]:
    """The bytes in the attributes of each of `ids` that has any."""
    sizes: dict[str, int] = {}
    for some in slices(ids):
        sizes.update(map(tuple, conn.execute(_XATTR_BYTES, {"ids": some})))
    return sizes


def fitting_of(sizes: dict[str, int]) -> list[str]:
    """Those of these files that fit one answer together, least first."""
    total, taken = 0, list[str]()
    for id, size in sorted(sizes.items(), key=lambda each: (each[1], each[0])):
        total += size
        if total > PAGE_BYTES:
            break
        taken.append(id)
    return taken


def fitting(conn: Connection, ids: Sequence[str]) -> int:
    """The number of `ids`, from the front, with attributes that one answer has room for; at least
    one, if there are any."""
    sizes = attribute_sizes(conn, ids)
    size = taken = 0
    for id in ids:
        size += sizes.get(id, 0)
        if taken and size > PAGE_BYTES:
            break
        taken += 1
    return taken


def file_record(row: Any, attrs: dict[str, bytes]) -> FileRecord:
    """Of a row of `files`."""
    return FileRecord(
        id=row.id,
        kind=row.kind,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        mtime_ns=row.mtime_ns,
        ctime_ns=row.ctime_ns,
        size=row.size,
        links=row.links,
        version=row.version,
        target=row.target,
        rdev=row.rdev,
        xattrs=attrs,
        made_under=row.made_under or b"",
        rev=row.rev,
    )


def file_records(conn: Connection, ids: Sequence[str]) -> list[FileRecord]:
    """The records of `ids`, in that order; each must exist."""
    attrs = attributes(conn, ids)
    rows = {row.id: row for some in slices(ids) for row in conn.execute(_FILES, {"ids": some})}
    return [file_record(rows[file], attrs.get(file, {})) for file in ids]
