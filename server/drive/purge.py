"""Deleting for good: files out of the trash, and old versions.

Knows: which rows go with a file and with a version, and what stays of them. Must not know: which
ones go, and who decides that (`trash`, `retention`).

Invariants:
- The id of a file that is gone is never free again (`retired`): what still names it, here or with
  somebody, must never mean another file. So its grants and links go, and tokens for that directory
  alone are revoked, in the same transaction; the uploads of those who had them end, as with any
  share that is taken back.
- What two files share after a Replace goes with the second: a version's chunks are let go of when
  it is in no file's history any more. The chunks themselves are left to garbage collection.
- Of a file that is left half done, the current version is still there.
- Changes and stored answers are not touched: they tell what happened.

A transaction here stops all others, so each call does a bounded amount of work and says how far it
came: what it was given is done from the front, and at least one of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from sqlalchemy import (
    BindParameter,
    Connection,
    bindparam,
    delete,
    exists,
    insert,
    select,
    update,
)

from server.changes.fanout import News, account_topic
from server.metadata.records import slices
from server.metadata.schema import (
    devices,
    files,
    grants,
    links,
    retired,
    version_chunks,
    versions,
    xattrs,
)
from server.permissions import audit
from server.permissions.caller import Caller
from server.uploads import sessions

# About how many references to chunks one call lets go of.
CHUNKS = 10_000

_CHUNK_BYTES = 1 << 20
_ids: BindParameter[list[str]] = bindparam("ids", expanding=True)

_VERSIONS = (
    select(versions.c.file, versions.c.id, versions.c.size)
    .join(files, (files.c.id == versions.c.file) & (files.c.drive == versions.c.drive))
    .where(versions.c.file.in_(_ids), versions.c.status == "uploaded")
    .order_by(versions.c.file, versions.c.id == files.c.version, versions.c.created_ns)
)
_DROP_VERSION = delete(versions).where(
    versions.c.file == bindparam("f"), versions.c.id == bindparam("v")
)
_DROP_REFERENCES = delete(version_chunks).where(
    version_chunks.c.version.in_(_ids),
    ~exists().where(versions.c.id == version_chunks.c.version),
)
_of_these = (files.c.id.in_(_ids), files.c.trashed_ns.is_not(None))
_REVOKE = (
    update(devices)
    .where(devices.c.folder.in_(_ids), devices.c.revoked_ns.is_(None))
    .values(revoked_ns=bindparam("now"))
    .returning(devices.c.id, devices.c.account, devices.c.folder)
)
_GRANTED = (
    select(files.c.drive, grants.c.account)
    .join_from(grants, files, grants.c.file == files.c.id)
    .where(files.c.id.in_(_ids))
    .distinct()
)
_DROP_FILE = (
    insert(retired).from_select(["id"], select(files.c.id).where(*_of_these)),
    delete(xattrs).where(xattrs.c.file.in_(_ids)),
    delete(grants).where(grants.c.file.in_(_ids)),
    delete(links).where(links.c.file.in_(_ids)),
    delete(files).where(*_of_these),
)


class Old(NamedTuple):
    """A version in the history of `file`; `size` in bytes."""

    file: str
    id: str
    size: int


def drop_versions(conn: Connection, old: Sequence[Old]) -> int:
    """Take these out of the histories of their files; returns how many were, from the front."""
    done = old[: _fitting(old)]
    if done:
        conn.execute(_DROP_VERSION, [{"f": item.file, "v": item.id} for item in done])
    for some in slices(item.id for item in done):
        conn.execute(_DROP_REFERENCES, {"ids": some})
    return len(done)


class Dropped(NamedTuple):
    """The number of files that went, and `news` of tokens that went with them, to be published
    after the commit."""

    files: int
    news: tuple[News, ...] = ()


def drop_files(conn: Connection, by: Caller | None, ids: Sequence[str], now_ns: int) -> Dropped:
    """Delete files that are in the trash, as far as one call comes, from the front. Of the one
    after those, some versions may be gone. `by`: who has it done; None: the server by itself."""
    found: dict[str, list[Old]] = {id: [] for id in ids}
    for some in slices(ids):
        for row in conn.execute(_VERSIONS, {"ids": some}):
            found[row.file].append(Old(*row))
    old = [item for file in ids for item in found[file]]
    kept = {item.file for item in old[drop_versions(conn, old) :]}
    done = list(takewhile(lambda id: id not in kept, ids))
    told: dict[str, None] = {}
    for some in slices(done):
        for device in conn.execute(_REVOKE, {"ids": some, "now": now_ns}).all():
            audit.note(conn, by, "device_revoke", device.id, now_ns, folder=device.folder)
            sessions.end_of_device(conn, device.id)
            told[device.account] = None
        for grant in conn.execute(_GRANTED, {"ids": some}).all():
            sessions.end_of_account(conn, grant.drive, grant.account)
        for statement in _DROP_FILE:
            conn.execute(statement, {"ids": some})
    return Dropped(len(done), tuple(News(account_topic(account)) for account in told))


def _fitting(old: Iterable[Old]) -> int:
    """The number of `old` that one call takes; at least one, if there are any."""
    taken = weight = 0
    for item in old:
        weight += item.size // _CHUNK_BYTES + 1
        if taken and weight > CHUNKS:
            break
        taken += 1
    return taken
