"""The form of a row in each table of the state database, to tell rows from rubbish. Pure.

Knows: columns, the order they had in older schemas, which values can be. Must not know: how rows
were found (`sqlite_pages`), which belong together (`mending`).

A row of a rowid table has NULL in place of its INTEGER PRIMARY KEY; the rowid comes beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from cache.metadata.operations import Body
from remote.protocol.content import MAX_FILE_SIZE, Manifest
from remote.protocol.messages import EntryRecord, FileRecord, Kind

Row = dict[str, Any]
Check = Callable[[Any], bool]

NS = 1 << 63
OPERATIONS = frozenset(
    [
        "create",
        "write",
        "link",
        "rename",
        "replace",
        "retake",
        "exchange",
        "unlink",
        "setattr",
        "setxattr",
    ]
)
_META = re.compile("[a-z_]{1,40}|seq:[0-9a-f]{32}")


def _int(low: int, high: int) -> Check:
    return lambda value: isinstance(value, int) and low <= value < high


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _packed(kind: Any) -> Check:
    decode = msgspec.msgpack.Decoder(kind).decode

    def fits(value: Any) -> bool:
        try:
            decode(value)
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
            return False
        return isinstance(value, bytes)

    return fits


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 1 << 16


def _name(value: Any) -> bool:
    if not isinstance(value, str) or "/" in value or "\0" in value:
        return False
    return 0 < len(value.encode()) <= 255 and value not in (".", "..")


def _id(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef")


def _blob(value: Any) -> bool:
    return isinstance(value, bytes)


def _null(value: Any) -> bool:
    return value is None


_ino, _size, _flag = _int(1, 1 << 48), _int(0, MAX_FILE_SIZE + 1), _int(0, 2)
_version, _offset = _or_null(_id), _int(0, MAX_FILE_SIZE + 1)
_node: dict[str, Check] = {
    "ino": _null,
    "file": _text,
    "drive": _text,
    "live": _flag,
    "kind": frozenset(get_args(Kind)).__contains__,
    "mode": _int(0, 0o10000),
    "uid": _int(0, 1 << 32),
    "gid": _int(0, 1 << 32),
    "rdev": _int(0, NS),
    "size": _size,
    "mtime_ns": _int(-NS, NS),
    "ctime_ns": _int(-NS, NS),
    "atime_ns": _int(-NS, NS),
    "links": _int(0, 1 << 31),
    "target": _or_null(_text),
    "version": _or_null(_text),
    "base_size": _size,
    "base_file": _or_null(_text),
    "subdirs": _int(-1, 1 << 40),
    "rev": _int(0, NS),
    "listed": _or_null(_int(0, NS)),
    "made_under": _or_null(_blob),
}
_layer: dict[str, Check] = {
    "id": _null,
    "ino": _int(0, 1 << 48),
    "below": _size,
    "size": _size,
    "version": _version,
    "average": _or_null(_int(1, 1 << 32)),
}


def _without(columns: Mapping[str, Check], name: str) -> dict[str, Check]:
    return {column: check for column, check in columns.items() if column != name}


_OLD_NODE = _without(_node, "made_under")


def _is_meta(key: Any) -> bool:
    return isinstance(key, str) and _META.fullmatch(key) is not None


@dataclass(frozen=True)
class Table:
    """`layouts`: its columns in every order in which a database has them. `rowid`: the column that
    is NULL in the record; None for a table without rowids."""

    rowid: str | None
    layouts: Sequence[Mapping[str, Check]]
    whole: Callable[[Row], bool] = lambda row: True

    def fit(self, rowid: int | None, values: Sequence[object]) -> Row | None:
        """The row by column, if it can be one of this table."""
        for columns in self.layouts:
            if len(values) == len(columns) and (rowid is None) == (self.rowid is None):
                pairs = zip(columns.items(), values, strict=True)
                if all(check(value) for (_, check), value in pairs):
                    row = dict(zip(columns, values, strict=True))
                    if self.rowid is not None:
                        row[self.rowid] = rowid
                    return row if self._is_right(row) else None
        return None

    def _is_right(self, row: Row) -> bool:
        return (self.rowid is None or _ino(row[self.rowid])) and self.whole(row)


def _is_range(row: Row) -> bool:
    return bool(row["start"] < row["stop"])


def _is_shadow(row: Row) -> bool:
    kind = {"F": FileRecord, "E": EntryRecord}.get(row["key"][:1])
    return kind is not None and _packed(kind)(row["record"])


TABLES: dict[str, Table] = {
    "meta": Table(None, [{"key": _is_meta, "value": lambda value: not _blob(value)}]),
    "node": Table(
        "ino",
        [
            _node,
            {**_without(_OLD_NODE, "drive"), "drive": _text, "made_under": _or_null(_blob)},
            _OLD_NODE,  # of schema 3; the one before was brought up from schema 1
            {**_without(_OLD_NODE, "drive"), "drive": _text},
            _without(_OLD_NODE, "drive"),
        ],
    ),
    "share": Table(
        None,
        [
            {
                "file": _id,
                "drive": _id,
                "owner": _text,
                "name": _or_null(_text),
                "role": _text,
                "given_ns": _int(0, NS),
            }
        ],
    ),
    "entry": Table(
        "cookie",
        [{"cookie": _null, "parent": _ino, "name": _name, "ino": _ino, "rev": _int(0, NS)}],
    ),
    "xattr": Table(None, [{"ino": _ino, "name": _text, "value": _blob}]),
    "layer": Table(
        "id",
        [{**_layer, "safe": _size, "instead": _or_null(_int(0, 1 << 48))}, _layer],
    ),
    "extent": Table(None, [{"layer": _ino, "start": _offset, "stop": _offset}], _is_range),
    "unsettled": Table(
        None, [{"layer": _ino, "start": _offset, "stop": _offset, "digest": _blob}], _is_range
    ),
    "manifest": Table(None, [{"version": _text, "data": _packed(Manifest)}]),
    "op": Table(
        "seq",
        [
            {
                "seq": _null,
                "key": _text,
                "kind": OPERATIONS.__contains__,
                "ino": _ino,
                "file": _id,
                "body": _packed(Body),
                "version": _version,
                "sent": _flag,
                "refused": _or_null(_text),
                "made_ns": _int(0, NS),
            }
        ],
    ),
    "pin": Table(None, [{"file": _id}]),
    "shadow": Table(None, [{"key": _text, "record": _blob}], _is_shadow),
}

# SQLite's own. Values of `sqlite_sequence` are the largest ids ever given.
SEQUENCE = Table("rowid", [{"name": _text, "seq": _int(0, NS)}])
MASTER = Table(
    "rowid",
    [
        {
            "type": _text,
            "name": _text,
            "tbl_name": _text,
            "rootpage": _int(0, 1 << 31),
            "sql": _or_null(_text),
        }
    ],
)
