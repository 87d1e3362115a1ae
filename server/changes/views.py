"""The view of a caller: their own drive, or a folder of it, and the files that others share with
them.

Knows: which topics of the change feed tell of that, and under which names shared files appear. Must
not know: what is in the feed (`feed`), whether one operation is allowed (`access`).

Of the files that one account shares with another, those below another shared one have no name of
their own: they are reached through it. Two with the same name are told apart by a number, in the
order in which they were shared, so every device of the grantee shows the same.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import structs
from sqlalchemy import Connection, Row, bindparam, select

from remote.protocol.messages import SharedRoot
from server.changes.fanout import account_topic, drive_topic, grant_topic
from server.changes.nesting import Nesting
from server.metadata.records import attributes, file_record, lightest
from server.metadata.schema import accounts, devices, drives, files, grants
from server.permissions.caller import Caller

# What follows a name's last dot and is longer is no suffix to be kept.
_LONGEST_SUFFIX = 16
_SHARED = (
    select(
        files,
        grants.c.role,
        grants.c.at_ns,
        grants.c.name.label("told"),
        accounts.c.name.label("owner_name"),
        drives.c.moved_seq,
    )
    .join_from(grants, files, grants.c.file == files.c.id)
    .join(drives, files.c.drive == drives.c.id)
    .join(accounts, drives.c.owner == accounts.c.id)
    .where(grants.c.account == bindparam("account"), files.c.links > 0)
    .order_by(accounts.c.name_key, grants.c.at_ns, grants.c.file)
)
_GRANTS_BEGIN = (
    select(grants.c.file, files.c.drive, grants.c.since_seq)
    .join(files, grants.c.file == files.c.id)
    .where(grants.c.account == bindparam("account"))
)
_TOKEN_BEGINS = select(devices.c.since_seq).where(devices.c.id == bindparam("device"))


@dataclass(frozen=True)
class View:
    """`topics` says for each drive in view which topics tell of it; `watch` is a topic on which a
    change of `shared` is announced. `digest` names this state of `shared`: roles, names, and when
    each was given. (What happens while something is shared with nobody is told to nobody: who was
    away when it was taken back and given anew would miss that.) Up to the sequence number in
    `begins` a topic tells the caller nothing: what had left before is not theirs to know."""

    drive: str
    topics: Mapping[str, tuple[str, ...]]
    watch: str
    shared: tuple[SharedRoot, ...]
    digest: bytes
    begins: Mapping[str, int] = field(default_factory=dict)

    @property
    def listens_to(self) -> frozenset[str]:
        return frozenset({self.watch}.union(*self.topics.values()))


def view_of(conn: Connection, caller: Caller, nesting: Nesting | None = None) -> View:
    """The caller's view at the moment of `conn`'s snapshot. `nesting` is what is remembered of
    views before; None: nothing."""
    watch = account_topic(caller.account)
    if caller.folder is not None:
        topic = grant_topic(caller.drive, caller.folder)
        begin = conn.execute(_TOKEN_BEGINS, {"device": caller.device}).scalar_one()
        only = {caller.drive: (topic,)}
        return View(caller.drive, only, watch, (), _digest(()), {topic: begin})
    shared = shared_with(conn, caller.account, nesting)
    topics: dict[str, tuple[str, ...]] = {caller.drive: (drive_topic(caller.drive),)}
    for root in shared:
        if root.name is not None:
            topic = grant_topic(root.drive, root.file.id)
            topics[root.drive] = (*topics.get(root.drive, ()), topic)
    begins = {grant_topic(row.drive, row.file): row.since_seq for row in _begins(conn, caller)}
    return View(caller.drive, topics, watch, shared, _digest(shared), begins)


def _begins(conn: Connection, caller: Caller) -> Iterable[Row[Any]]:
    return conn.execute(_GRANTS_BEGIN, {"account": caller.account})


def shared_with(
    conn: Connection, account: str, nesting: Nesting | None = None
) -> tuple[SharedRoot, ...]:
    """Files that others share with `account`, in the order of their names' choice. Without
    attributes: this is asked with every request, and others decide how many there are."""
    rows = conn.execute(_SHARED, {"account": account}).all()
    if not rows:
        return ()
    nested = (nesting or Nesting()).of(conn, account, rows)
    taken: defaultdict[str, set[str]] = defaultdict(set)
    found = []
    for row in rows:
        name = None
        if row.id not in nested:
            # A drive's root, and what nobody knows a name of, is called after its owner.
            name = _free(taken[row.owner_name], row.told or row.owner_name)
        found.append(
            SharedRoot(
                file=file_record(row, {}),
                drive=row.drive,
                owner=row.owner_name,
                name=name,
                role=row.role,
                given_ns=row.at_ns,
            )
        )
    return tuple(found)


def with_attributes(conn: Connection, shared: Sequence[SharedRoot]) -> list[SharedRoot]:
    """`shared` as it is told. It is one answer, and others decide what is in it: when all that it
    carries is too much for one, the files with the most attributes are told without."""
    attrs = attributes(conn, lightest(conn, [root.file.id for root in shared]))
    return [
        structs.replace(root, file=structs.replace(root.file, xattrs=attrs.get(root.file.id, {})))
        for root in shared
    ]


def _free(taken: set[str], name: str) -> str:
    """`name`, or with the first number that makes it differ from `taken`, which it joins."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > _LONGEST_SUFFIX:
        stem, dot, suffix = name, "", ""
    fresh, number = name, 2
    while fresh in taken:
        mark = f" ({number}){dot}{suffix}"
        fresh = stem.encode()[: 255 - len(mark.encode())].decode(errors="ignore") + mark
        number += 1
    taken.add(fresh)
    return fresh


def _digest(shared: tuple[SharedRoot, ...]) -> bytes:
    if not shared:
        return b""
    told = [
        (root.file.id, root.drive, root.owner, root.name, root.role, root.given_ns)
        for root in shared
    ]
    return hashlib.sha256(msgspec.msgpack.encode(told)).digest()[:8]
