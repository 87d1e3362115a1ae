"""Reading the tree: a file, a directory's children, a file's versions, a content's place.

Knows: the queries and their paging. Must not know: HTTP. Every function checks access first and
runs in the caller's snapshot.

Page cursors here are positions in a listing, not secrets: what they lead to is checked again.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, func, or_, select

from remote.protocol.errors import BadRequest, NotADirectory, NotFound, Refused
from remote.protocol.messages import (
    Child,
    ChildrenPage,
    EntryRecord,
    FileReply,
    FingerprintReply,
    Listed,
    ListReply,
    VersionInfo,
    VersionsPage,
)
from server.changes import feed
from server.drive import versions
from server.metadata.records import PAGE_BYTES, attributes, file_record, fitting, slices
from server.metadata.schema import accounts, devices, entries, files, xattrs
from server.metadata.schema import versions as versions_table
from server.permissions import access
from server.permissions.caller import Caller
from server.permissions.lineage import Lineage

MAX_CHILDREN = 1000
MAX_VERSIONS = 200
# Directories of which it is asked at once whether they fit.
_LOOKED_AT = 100
# How many files of one content are looked at for one that a single-folder token reaches.
MAX_SAME = 100
_HEX_32 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")

_CHILDREN = select(entries.c.parent, entries.c.name, entries.c.rev.label("entry_rev"), files).join(
    files, entries.c.file == files.c.id
)
_few = (
    select(entries.c.name)
    .where(entries.c.parent == files.c.id)
    .limit(bindparam("most"))
    .correlate(files)
    .subquery()
)
# How many entries each has, as far as `most`: a directory may have millions.
_COUNTS = select(
    files.c.id, select(func.count()).select_from(_few).correlate(files).scalar_subquery()
).where(files.c.id.in_(bindparam("ids", expanding=True)))
_xattr_bytes = func.sum(func.length(xattrs.c.name) + func.length(xattrs.c.value))
_XATTRS = (
    select(xattrs.c.file, _xattr_bytes)
    .where(xattrs.c.file.in_(bindparam("ids", expanding=True)))
    .group_by(xattrs.c.file)
)
_XATTRS_BELOW = (
    select(entries.c.parent, _xattr_bytes)
    .join(xattrs, xattrs.c.file == entries.c.file)
    .where(entries.c.parent.in_(bindparam("ids", expanding=True)))
    .group_by(entries.c.parent)
)
_VERSIONS = (
    select(
        versions_table,
        devices.c.name.label("device_name"),
        accounts.c.name.label("account_name"),
    )
    .join_from(versions_table, devices, versions_table.c.device == devices.c.id)
    .join(accounts, devices.c.account == accounts.c.id)
)


def file(
    conn: Connection, caller: Caller, id: str, version: str | None, with_manifest: bool
) -> FileReply:
    """A file's record and the caller's role; of `version` (else the current) the manifest."""
    row = access.require(conn, caller, id, "viewer")
    role = access.role_of(conn, caller, row)
    assert role is not None
    manifest = None
    if version is not None or (with_manifest and row.version is not None):
        found = versions.read(conn, id, version or row.version)
        manifest = versions.manifest_of(found) if with_manifest else None
    return FileReply(file=_record(conn, row), role=role, manifest=manifest)


def children(
    conn: Connection, caller: Caller, id: str, cursor: str | None, limit: int
) -> ChildrenPage:
    """The entries of a directory by name, after the page that gave `cursor`."""
    row = access.require(conn, caller, id, "viewer")
    if row.kind != "directory":
        raise Refused(NotADirectory(message=f"{id} is a {row.kind}"))
    limit = max(1, min(limit, MAX_CHILDREN))
    query = _CHILDREN.where(entries.c.parent == id)
    if cursor is not None:
        query = query.where(entries.c.name > read_mark(cursor, str))
    found = conn.execute(query.order_by(entries.c.name).limit(limit + 1)).all()
    shown = found[: fitting(conn, [item.id for item in found[:limit]])]
    more = len(found) > len(shown)
    attrs = attributes(conn, [item.id for item in shown])
    return ChildrenPage(
        directory=_record(conn, row),
        children=[_child(item, attrs.get(item.id, {})) for item in shown],
        as_of=feed.heads(conn, [row.drive])[row.drive].seq,
        next=write_mark(shown[-1].name) if more else None,
    )


def several(
    conn: Connection, caller: Caller, ids: Sequence[str], room: int = MAX_CHILDREN
) -> ListReply:
    """Complete listings of those of `ids` that fit one answer of `room` entries, tried from the
    front. The first must be the caller's to see; of the others those that are not, or are no
    directories, are left out. Raises `Refused` of the first as `children` does."""
    first = access.require(conn, caller, ids[0], "viewer")
    if first.kind != "directory":
        raise Refused(NotADirectory(message=f"{first.id} is a {first.kind}"))
    lineage, found = Lineage(conn), access.find_all(conn, ids)
    lineage.learn([row.id for row in found.values() if not access.owns_drive(caller, row.drive)])
    directories = {
        row.id: row
        for row in found.values()
        if row.kind == "directory" and access.role_of(conn, caller, row, lineage) is not None
    }
    taken = _with_room(conn, [id for id in dict.fromkeys(ids) if id in directories], room)
    below: dict[str, list[Row[Any]]] = {id: [] for id in taken}
    for some in slices(taken):
        query = _CHILDREN.where(entries.c.parent.in_(some))
        for child in conn.execute(query.order_by(entries.c.parent, entries.c.name)):
            below[child.parent].append(child)
    attrs = attributes(conn, [*taken, *(child.id for id in taken for child in below[id])])
    heads = feed.heads(conn, list({directories[id].drive for id in taken}))
    return ListReply(
        listed=[
            Listed(
                directory=file_record(directories[id], attrs.get(id, {})),
                children=[_child(item, attrs.get(item.id, {})) for item in below[id]],
                as_of=heads[directories[id].drive].seq,
            )
            for id in taken
        ]
    )


def _with_room(conn: Connection, ids: Sequence[str], room: int) -> list[str]:
    """Those directories of `ids` whose entries, and attributes, fit one answer together, tried from
    the front. However much is in them, so much is looked at as could fit."""
    taken: list[str] = []
    byte_room = PAGE_BYTES
    for some in slices(ids, _LOOKED_AT):
        rows = conn.execute(_COUNTS, {"ids": some, "most": room + 1})
        counts: dict[str, int] = {id: many for id, many in rows if many <= room}
        few = [id for id in some if id in counts]
        sizes: Counter[str] = Counter()
        for query in (_XATTRS, _XATTRS_BELOW) if few else ():
            sizes.update(dict(map(tuple, conn.execute(query, {"ids": few}))))
        for id in few:
            if counts[id] <= room and sizes[id] <= byte_room:
                taken.append(id)
                room, byte_room = room - counts[id], byte_room - sizes[id]
    return taken


def history(
    conn: Connection, caller: Caller, id: str, cursor: str | None, limit: int
) -> VersionsPage:
    """The uploaded versions of a file, newest first."""
    row = access.require(conn, caller, id, "viewer")
    table = versions_table
    limit = max(1, min(limit, MAX_VERSIONS))
    query = _VERSIONS.where(table.c.file == id, table.c.status == "uploaded")
    if cursor is not None:
        at, last = read_mark(cursor, tuple[int, str])
        same = and_(table.c.created_ns == at, table.c.id < last)
        query = query.where(or_(table.c.created_ns < at, same))
    query = query.order_by(table.c.created_ns.desc(), table.c.id.desc()).limit(limit + 1)
    found = conn.execute(query).all()
    shown, more = found[:limit], len(found) > limit
    mark = write_mark((shown[-1].created_ns, shown[-1].id)) if more else None
    return VersionsPage(versions=[_version(item, row.version) for item in shown], next=mark)


def by_fingerprint(conn: Connection, caller: Caller, fingerprint: str) -> FingerprintReply:
    """A file in the caller's own drive, as far as the token reaches, that has or had this content.

    Raises `Refused` with NotFound or BadRequest.
    """
    if not _HEX_32.fullmatch(fingerprint):
        raise Refused(BadRequest(message="a fingerprint is 64 hex digits"))
    table = versions_table
    query = select(table).where(
        table.c.drive == caller.drive,
        table.c.fingerprint == bytes.fromhex(fingerprint),
        table.c.status == "uploaded",
    )
    query = query.order_by(table.c.created_ns.desc()).limit(MAX_SAME)
    lineage = Lineage(conn)
    for row in conn.execute(query):
        if access.role_of(conn, caller, row.file, lineage) is not None:
            return FingerprintReply(
                file=row.file, version=row.id, manifest=versions.manifest_of(row)
            )
    raise Refused(NotFound(message="your drive has no such content"))


def write_mark(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(value)).decode().rstrip("=")


def read_mark(cursor: str, kind: type[T]) -> T:
    """Read the mark that `write_mark` wrote. Raises `Refused(BadRequest)`."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        value = msgspec.msgpack.decode(raw, type=kind)
        check_bindable(value)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise Refused(BadRequest(message="the page cursor is not one of this server")) from error
    return value


def check_bindable(value: object) -> None:
    """Raise ValueError for integers that no column can hold."""
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, int) and not -(1 << 63) <= item < 1 << 63:
            raise ValueError("an integer of more than 64 bits")


def _record(conn: Connection, row: Row[Any]) -> Any:
    return file_record(row, attributes(conn, [row.id]).get(row.id, {}))


def _child(row: Row[Any], attrs: dict[str, bytes]) -> Child:
    entry = EntryRecord(parent=row.parent, name=row.name, file=row.id, rev=row.entry_rev)
    return Child(entry=entry, file=file_record(row, attrs))


def _version(row: Row[Any], current: str | None) -> VersionInfo:
    return VersionInfo(
        id=row.id,
        file=row.file,
        size=row.size,
        mtime_ns=row.mtime_ns,
        created_ns=row.created_ns,
        device=row.device_name,
        status=row.status,
        account=row.account_name,
        base=row.base,
        restored_from=row.restored_from,
        current=row.id == current,
    )
