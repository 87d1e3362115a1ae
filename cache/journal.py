"""The journal: local operations that the server does not have yet, in the order they happened.

Knows: the operations' rows, which records each one touches, which may be sent now. Must not know:
the tree's rules (`tree`), bytes (`contents`), the network (`replayer`).

An operation stores names and ids; attributes are taken from the node when it is sent, so ten chmods
in a row are one operation. Once `sent` is set (in a transaction before the request leaves) the row
is not changed any more, because the server may have it: its key then always gets that answer.

Order: operations are sent in order, except that one which waits for its bytes, or was refused,
holds back only those that depend on it (touch the same file, name or directory). A small save does
not wait behind a large upload. docs/decisions/0003-journal-order.md has the argument.

Concurrency contract: memory mirrors the `op` table; both change together, inside a transaction and
without an await between; a rollback reloads. `changed` is set after every change; waiters re-check.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec
import trio
from msgspec import Struct

from cache.database import Database
from remote.ids import FileId, VersionId, uuid7

K = TypeVar("K")
DIRECTORY_MOVES = "D"  # renames of directories keep their order: the server checks for cycles


def new_id() -> str:
    return uuid7(time.time_ns(), os.urandom(10))


class Body(Struct, omit_defaults=True):
    """What an operation says beyond its file; which fields are set depends on its kind."""

    parent: FileId = ""
    name: str = ""
    new_parent: FileId = ""
    new_name: str = ""
    other: FileId = ""  # rename: replaces; replace: target; exchange: other
    attrs: list[str] = []  # setattr: which of mode, uid, gid, mtime_ns
    xattr: str = ""
    directory: bool = False  # the file is a directory
    regular: bool = False  # the file is a regular one: the operation comes with content
    base: VersionId = ""  # write: the version overwritten, when it is not the node's own
    renew: bool = False  # `version` was begun for another file: the snapshot needs a new one
    torn: bool = False  # power loss took bytes of it: see `recovery`


class Op(Struct):
    """A row of the journal."""

    seq: int
    key: str
    kind: str
    ino: int
    file: FileId
    body: Body
    version: VersionId | None = None
    sent: bool = False
    refused: str | None = None
    made_ns: int = 0
    origin: str = ""  # in memory: the key it had first, for who waits for it
    refused_at: float = float("-inf")  # in memory: when, on the monotonic clock

    @property
    def has_content(self) -> bool:
        return self.kind == "write" or (self.kind == "create" and self.body.regular)


def file_key(file: FileId) -> str:
    return f"F{file}"


def entry_key(parent: FileId, name: str) -> str:
    return f"E{parent}/{name}"


def writes(op: Op) -> set[str]:
    """The records that `op` changes."""
    body, keys = op.body, {file_key(op.file)}
    if body.name:
        keys.add(entry_key(body.parent, body.name))
    if body.new_name:
        keys.add(entry_key(body.new_parent, body.new_name))
        if body.directory:
            keys.add(DIRECTORY_MOVES)
    if body.other:
        keys.add(file_key(body.other))
    return keys


def reads(op: Op) -> set[str]:
    """The records that must be there before `op`: the directories it names."""
    return {file_key(one) for one in (op.body.parent, op.body.new_parent) if one}


def select(
    ops: Iterable[Op], ready: Callable[[Op], bool], limit: int, window: int = 4096
) -> tuple[list[Op], list[Op]]:
    """Which operations may be sent now, in order, at most `limit`; and which wait for their bytes
    with no earlier content of the same file, or from the same inode, before them. Pure. Looks at no
    more than `window` operations that are not refused, so that a long journal costs no more than a
    short one."""
    batch: list[Op] = []
    waiting: list[Op] = []
    held_writes: set[str] = set()
    held_reads: set[str] = set()
    waiting_files: set[FileId] = set()
    waiting_inodes: set[int] = set()  # their snapshots must be taken in order
    for op in ops:
        if len(batch) >= limit or window <= 0:
            break
        window -= 0 if op.refused else 1
        wrote, read = writes(op), reads(op)
        is_ready = ready(op)
        if op.has_content:
            behind = op.file in waiting_files or op.ino in waiting_inodes
            if not (is_ready or op.refused or behind):
                waiting.append(op)
            waiting_files.add(op.file)
            waiting_inodes.add(op.ino)
        blocked = wrote & held_writes or read & held_writes or wrote & held_reads
        if blocked or not is_ready or op.refused:
            held_writes |= wrote
            held_reads |= read
        else:
            batch.append(op)
    return batch, waiting


def stuck(ops: Iterable[Op]) -> set[str]:
    """Keys of the operations that cannot be sent until a person does something: refused for good,
    or behind one that is. Pure."""
    keys: set[str] = set()
    held_writes: set[str] = set()
    held_reads: set[str] = set()
    for op in ops:
        wrote, read = writes(op), reads(op)
        behind = wrote & held_writes or read & held_writes or wrote & held_reads
        if op.refused or behind:
            keys.add(op.key)
            held_writes |= wrote
            held_reads |= read
    return keys


def waiting_behind(ops: Iterable[Op]) -> Counter[str]:
    """How many operations wait behind each refused one, by its key. Pure."""
    counts: Counter[str] = Counter()
    held_writes: dict[str, set[str]] = {}  # by record: the refused operations that hold it back
    held_reads: dict[str, set[str]] = {}
    for op in ops:
        wrote, read = writes(op), reads(op)
        before = [held_writes[key] for key in (wrote | read) & held_writes.keys()]
        before += [held_reads[key] for key in wrote & held_reads.keys()]
        causes = set[str]().union(*before)
        counts.update(causes)
        if op.refused:
            counts[op.key] += 0
            causes = causes | {op.key}
        if causes:
            for held, keys in ((held_writes, wrote), (held_reads, read)):
                for key in keys:
                    held[key] = held.get(key, set()) | causes
    return counts


class Journal:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._ops: dict[int, Op] = {}
        self._by_file: dict[FileId, dict[int, Op]] = {}
        self._by_key: dict[str, Op] = {}
        self._pending: Counter[str] = Counter()
        self._needed: Counter[str] = Counter()
        self._inodes: Counter[int] = Counter()
        self._refused: dict[int, Op] = {}
        self.changed = trio.Event()
        self.on_unreferenced: Callable[[int], None] = lambda ino: None  # no operation has it now
        self.on_rekey: Callable[[str, str], None] = lambda old, new: None
        db.on_rollback.append(self._load)
        self._load()

    def _load(self) -> None:
        known = self._ops
        self._ops, self._by_file, self._by_key = {}, {}, {}
        self._pending, self._needed, self._inodes = Counter(), Counter(), Counter()
        self._refused = {}
        decode = msgspec.msgpack.Decoder(Body).decode
        for row in self._db.all("SELECT * FROM op ORDER BY seq"):
            self._remember(
                Op(
                    seq=row["seq"],
                    key=row["key"],
                    kind=row["kind"],
                    ino=row["ino"],
                    file=row["file"],
                    body=decode(row["body"]),
                    version=row["version"],
                    sent=bool(row["sent"]),
                    refused=row["refused"],
                    made_ns=row["made_ns"],
                    origin=known[row["seq"]].origin if row["seq"] in known else "",
                )
            )

    def __len__(self) -> int:
        return len(self._ops)

    def __iter__(self) -> Iterator[Op]:
        """In order: rows are only ever added at the end, or changed in place."""
        return iter(self._ops.values())

    @property
    def has_refused(self) -> bool:
        return bool(self._refused)

    def refused(self) -> list[Op]:
        """What the server, or a fault here, refused for good; in order."""
        return [self._refused[seq] for seq in sorted(self._refused)]

    def newest_first(self) -> Iterator[Op]:
        return reversed(self._ops.values())

    def get(self, key: str) -> Op | None:
        return self._by_key.get(key)

    def of_file(self, file: FileId) -> list[Op]:
        """Operations whose own file is `file`, in order."""
        return list(self._by_file.get(file, {}).values())

    def is_pending(self, key: str) -> bool:
        """Is there an unacknowledged local change of this record?"""
        return key in self._pending

    def refers_to(self, ino: int) -> bool:
        """Does an operation take attributes or bytes from this inode?"""
        return ino in self._inodes

    def unsent_create(self, file: FileId) -> Op | None:
        """The file's creation, if the server cannot know of it and nothing else refers to it."""
        ops, key = self.of_file(file), file_key(file)
        alone = len(ops) == 1 and self._pending[key] == 1 and key not in self._needed
        return ops[0] if alone and ops[0].kind == "create" and not ops[0].sent else None

    def unsent_file(self, file: FileId) -> bool:
        """Is all there is of a file in the journal its creation and what was written into it or set
        on it since, none of it sent? Then the server cannot know of it."""
        ops, key = self.of_file(file), file_key(file)
        alone = self._pending[key] == len(ops) and key not in self._needed
        own = not any(op.sent or op.body.other for op in ops)
        return bool(ops) and alone and own and ops[0].kind == "create"

    def is_of_others(self, key: str, op: Op) -> bool:
        """Does an operation other than `op` change this record?"""
        return self._pending[key] > (key in writes(op))

    def open_content(self, file: FileId, ino: int) -> Op | None:
        """The operation that will carry bytes written into `ino` now: not frozen, not sent."""
        for op in reversed(self.of_file(file)):
            if op.has_content:
                return op if op.ino == ino and op.version is None and not op.sent else None
        return None

    # Changes: inside a transaction of the caller's.

    def add(self, kind: str, ino: int, file: FileId, body: Body) -> Op:
        op = Op(seq=0, key=new_id(), kind=kind, ino=ino, file=file, body=body)
        op.made_ns = time.time_ns()
        self._insert(op)
        return op

    def move_to_end(self, op: Op) -> None:
        """After everything it may now depend on."""
        self.remove(op)
        op.made_ns = time.time_ns()  # so that the order is that of `made_ns` too
        self._insert(op)

    def refile(self, op: Op, file: FileId) -> None:
        """Its file goes on as `file`, whose operations so far come before it."""
        self.remove(op)
        old_key, op.key, op.file, op.sent = op.key, new_id(), file, False
        op.made_ns = time.time_ns()
        self._insert(op)
        self.on_rekey(old_key, op.key)

    def remove(self, op: Op) -> None:
        self._db.run("DELETE FROM op WHERE seq = ?", op.seq)
        self._forget(op)
        self._wake()

    def rewrite(self, op: Op, **fields: object) -> None:
        """Change a row in place: `version`, `sent`, `refused`, `key`; or `body`, `ino`. One that
        says something else now is not refused any more."""
        self._uncount(op)
        old_key = op.key
        if "body" in fields:
            fields = {"refused": None, **fields}
        if fields.get("refused"):
            op.refused_at = time.monotonic()
        for name, value in fields.items():
            setattr(op, name, value)
        self._count(op)
        if op.key != old_key:
            self.on_rekey(old_key, op.key)
        self._db.run(
            "UPDATE op SET key=?, kind=?, ino=?, body=?, version=?, sent=?, refused=? WHERE seq=?",
            op.key,
            op.kind,
            op.ino,
            msgspec.msgpack.encode(op.body),
            op.version,
            op.sent,
            op.refused,
            op.seq,
        )
        self._wake()

    def try_again(self, ops: Iterable[Op], rest: float = 0.0) -> None:
        """They are not refused any more, unless they were less than `rest` seconds ago."""
        for op in ops:
            if op.refused and time.monotonic() - op.refused_at >= rest:
                self.rewrite(op, refused=None)

    def rename_file(self, old: FileId, new: FileId) -> None:
        """Operations that name directory `old` as their place name `new` instead."""
        for op in list(self):
            changes = {
                field: new for field in ("parent", "new_parent") if getattr(op.body, field) == old
            }
            if changes:
                self.rewrite(op, body=msgspec.structs.replace(op.body, **changes), key=new_id())

    def _insert(self, op: Op) -> None:
        values = (op.key, op.kind, op.ino, op.file, msgspec.msgpack.encode(op.body))
        cursor = self._db.run(
            "INSERT INTO op (key, kind, ino, file, body, version, sent, refused, made_ns)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *values,
            op.version,
            op.sent,
            op.refused,
            op.made_ns,
        )
        assert cursor.lastrowid is not None
        op.seq = cursor.lastrowid
        self._remember(op)
        self._wake()

    def _remember(self, op: Op) -> None:
        op.origin = op.origin or op.key
        self._ops[op.seq] = op
        self._by_file.setdefault(op.file, {})[op.seq] = op
        self._count(op)

    def _forget(self, op: Op) -> None:
        del self._ops[op.seq]
        del self._by_file[op.file][op.seq]
        if not self._by_file[op.file]:
            del self._by_file[op.file]
        self._uncount(op)

    def _count(self, op: Op) -> None:
        self._by_key[op.key] = op
        self._pending.update(writes(op))
        self._needed.update(reads(op))
        self._inodes.update((op.ino,))
        if op.refused:
            self._refused[op.seq] = op

    def _uncount(self, op: Op) -> None:
        del self._by_key[op.key]
        self._refused.pop(op.seq, None)
        _subtract(self._pending, writes(op))
        _subtract(self._needed, reads(op))
        _subtract(self._inodes, {op.ino})
        if op.ino not in self._inodes:
            self.on_unreferenced(op.ino)

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def _subtract(counter: Counter[K], keys: set[K]) -> None:
    for key in keys:
        if counter[key] > 1:
            counter[key] -= 1
        else:
            del counter[key]
