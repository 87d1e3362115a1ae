"""The journal: local operations that the server does not have yet, in the order they happened.

Knows: the rows, and by which records, files and inodes they can be found. Must not know: what they
mean and which may be sent (`operations`), the tree's rules (`tree`), bytes (`contents`).

Concurrency: memory mirrors the `op` table; both change together, inside a transaction and
without an await between; a rollback takes back in memory what its transaction changed, and every
`Op` stays the object it was. `changed` is set after every change; waiters re-check. Who is told of
changes at once (the arguments of `Journal`) is told inside the transaction, and again by a
rollback: it notes what it hears, and asks nothing.

A long journal is not waited for at start: `load` reads it a piece at a time, beside everything
else. Meanwhile `add`, `of_file` and what is asked of one file that was not made here before the
start are answered at once. Whoever may ask more and can wait awaits `wait_for_file` or
`wait_for_all` before; whoever does not has the rest read at once.

Why one class: each question has a short answer while the journal is not whole, which only what
loads it can give; and every change needs the same touch, so that a rollback takes it back.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol, TypeVar

import msgspec
import trio

from cache.metadata.database import Database
from cache.metadata.operations import Body, Op, file_key, new_id, reads, writes
from remote.protocol.ids import FileId

K = TypeVar("K")
COLUMNS = "seq, key, kind, ino, file, body, version, sent, refused, made_ns"
# Rows that `load` reads before others have their turn (about a millisecond), and how long it rests
# then, in seconds, while nobody waits for it: what is done just after the start comes first.
PIECE = 100
REST_SECONDS = 0.001
# `seq` is negative where an operation was added before all others.
BEFORE_ALL = -(1 << 63)


class Watcher(Protocol):
    """Is told what happens to every operation; `cache.sync.schedule`."""

    def came(self, op: Op) -> None:
        """It is in the journal from now on, or says something else now."""

    def went(self, op: Op) -> None:
        """It is not any more, or is about to say something else; it has the `seq` that it had."""


class _Nobody:
    def came(self, op: Op) -> None:
        pass

    def went(self, op: Op) -> None:
        pass


def _nothing(*_: object) -> None:
    pass


class _Memory:
    """The rows, and the records that they touch. Nothing here is an object that the garbage
    collector looks at one by one: it stops everything meanwhile."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.ops: dict[int, Op] = {}  # by `seq`, in order
        self.by_file: dict[FileId, tuple[Op, ...]] = {}  # in order
        self.by_key: dict[str, Op] = {}
        self.pending: Counter[str] = Counter()
        self.needed: Counter[str] = Counter()
        self.inodes: Counter[int] = Counter()
        self.refused: dict[int, Op] = {}

    def remember(self, op: Op) -> None:
        self.ops[op.seq] = op
        same = (*self.by_file.get(op.file, ()), op)
        in_order = len(same) == 1 or same[-2].seq < op.seq
        self.by_file[op.file] = same if in_order else tuple(sorted(same, key=_seq))
        self.count(op)

    def forget(self, op: Op) -> None:
        del self.ops[op.seq]
        left = tuple(item for item in self.by_file[op.file] if item is not op)
        if left:
            self.by_file[op.file] = left
        else:
            del self.by_file[op.file]
        self.uncount(op)

    def count(self, op: Op) -> None:
        self.by_key[op.key] = op
        _add(self.pending, writes(op))
        _add(self.needed, reads(op))
        _add(self.inodes, (op.ino,))
        if op.refused:
            self.refused[op.seq] = op
        self._watcher.came(op)

    def uncount(self, op: Op) -> None:
        del self.by_key[op.key]
        _subtract(self.pending, writes(op))
        _subtract(self.needed, reads(op))
        _subtract(self.inodes, (op.ino,))
        self.refused.pop(op.seq, None)
        self._watcher.went(op)

    def put_in_order(self) -> None:
        self.ops = dict(sorted(self.ops.items()))


class Journal:
    """`watcher` is told of every operation, `on_unreferenced` of an inode that no operation has any
    more, `on_rekey` of an operation's old and new key."""

    def __init__(
        self,
        db: Database,
        watcher: Watcher | None = None,
        on_unreferenced: Callable[[int], None] = _nothing,
        on_rekey: Callable[[str, str], None] = _nothing,
    ) -> None:
        self._db = db
        self._on_unreferenced, self._on_rekey = on_unreferenced, on_rekey
        self._rows = _Memory(watcher or _Nobody())
        self._read_upto = BEFORE_ALL  # rows up to this `seq` are in memory
        self._found = self._last()  # rows up to this `seq` were there before us
        self._looked_up = set[FileId]()  # all rows of these files are in memory
        self._whole, self._tried, self._awaited = trio.Event(), trio.Event(), trio.Event()
        self.is_loading = False
        self._touched: dict[int, Op] = {}  # by `seq`: changed since `_touched_after` commits
        self._touched_after = -1
        self.changed = trio.Event()
        db.on_rollback.append(self._take_back)

    # --- reading the table ------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what there is, and let others have their turn now and then."""
        self.is_loading = True
        try:
            while not self._whole.is_set():
                self._read(PIECE)
                with trio.move_on_after(REST_SECONDS):
                    await self._awaited.wait()
        finally:
            self.is_loading = False
            self._tried.set()

    async def wait_for_all(self) -> None:
        """Return when all of it is in memory, or will not be: who asks then learns why."""
        self._awaited.set()
        await self._tried.wait()

    async def wait_for_file(self, file: FileId) -> None:
        """Return when everything can be asked about this file without reading the rest."""
        if not self.is_whole and any(self._is_open(op) for op in self.of_file(file)):
            await self.wait_for_all()

    def _is_open(self, op: Op) -> bool:
        """True if the fate of its file depends on who else, before the start, spoke of that."""
        return op.seq <= self._found and bool(op.refused or (op.kind == "create" and not op.sent))

    def _about(self, op: Op) -> _Memory:
        """All that speaks of the file which `op` makes. Nothing did before that."""
        return self._rows if op.seq > self._found else self._memory

    def read(self) -> None:
        """Have all of it in memory, now."""
        while not self._whole.is_set():
            self._read(-1)

    @property
    def is_whole(self) -> bool:
        return self._whole.is_set()

    @property
    def _memory(self) -> _Memory:
        self.read()
        return self._rows

    def _read(self, most: int) -> None:
        sql = f"SELECT {COLUMNS} FROM op WHERE seq > ? ORDER BY seq LIMIT ?"
        rows = self._db.all(sql, self._read_upto, most)
        self._remember(rows)
        if rows:
            self._read_upto = rows[-1]["seq"]
        if most < 0 or len(rows) < most:
            self._rows.put_in_order()  # what was added or looked up meanwhile came first
            self._looked_up.clear()
            self._whole.set()

    def _look_up(self, file: FileId) -> None:
        """Read the rows of one file that `load` has not come to."""
        sql = f"SELECT {COLUMNS} FROM op WHERE file = ? AND seq > ? AND seq <= ? ORDER BY seq"
        self._remember(self._db.all(sql, file, self._read_upto, self._found))
        self._looked_up.add(file)

    def _remember(self, rows: Iterable[sqlite3.Row]) -> None:
        for row in rows:
            if row["seq"] not in self._rows.ops:
                self._rows.remember(_op(row))

    def _last(self) -> int:
        row = self._db.one("SELECT MAX(seq) FROM op")
        return int(row[0] or 0) if row is not None else 0

    def _take_back(self) -> None:
        """The transaction that is under way has been rolled back: what it changed is as before."""
        touched, self._touched = self._touched, {}
        if self._touched_after != self._db.commits:
            return
        for seq in touched:
            if seq in self._rows.ops:
                self._rows.forget(self._rows.ops[seq])
        for seq, op in touched.items():
            row = self._db.one(f"SELECT {COLUMNS} FROM op WHERE seq = ?", seq)
            if row is not None:
                self._restore(op, _op(row))
        self._rows.put_in_order()

    def _restore(self, op: Op, was: Op) -> None:
        key = op.key
        for name in COLUMNS.split(", "):
            setattr(op, name, getattr(was, name))
        self._rows.remember(op)
        if op.key != key:
            self._on_rekey(key, op.key)

    def _touch(self, op: Op) -> None:
        """It is about to change, or has come: see `_take_back`."""
        if self._touched_after != self._db.commits:
            self._touched, self._touched_after = {}, self._db.commits
        self._touched.setdefault(op.seq, op)

    # --- asking -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        if self.is_whole:
            return len(self._rows.ops)
        row = self._db.one("SELECT COUNT(*) FROM op")
        assert row is not None
        return int(row[0])

    def __iter__(self) -> Iterator[Op]:
        """In order: rows are only ever added at the end, or changed in place."""
        return iter(self._memory.ops.values())

    @property
    def has_refused(self) -> bool:
        return bool(self._memory.refused)

    def refused(self) -> list[Op]:
        """Operations that the server, or a fault here, refused for good; in order."""
        return [op for _, op in sorted(self._memory.refused.items())]

    def after(self, seq: int, most: int) -> list[Op]:
        """At most so many of those that come after this `seq`, in order."""
        sql = "SELECT seq FROM op WHERE seq > ? ORDER BY seq LIMIT ?"
        ops = self._memory.ops
        return [ops[row[0]] for row in self._db.all(sql, seq, most)]

    def newest_first(self) -> Iterator[Op]:
        return reversed(self._memory.ops.values())

    def get(self, key: str) -> Op | None:
        return self._memory.by_key.get(key)

    def of_file(self, file: FileId) -> list[Op]:
        """Operations whose own file is `file`, in order."""
        if not self.is_whole and file not in self._looked_up:
            self._look_up(file)
        return list(self._rows.by_file.get(file, ()))

    def replacing(self, file: FileId) -> list[Op]:
        """Operations of other files that name this one as the `other`, in order."""
        if self._memory.pending[file_key(file)] == len(self.of_file(file)):
            return []
        return [op for op in self if op.body.other == file]

    def is_pending(self, key: str) -> bool:
        """True if there is an unacknowledged local change of this record."""
        return key in self._memory.pending

    def is_needed(self, file: FileId) -> bool:
        """True if an operation names this directory as its place."""
        return file_key(file) in self._memory.needed

    def refers_to(self, ino: int) -> bool:
        """True if an operation takes attributes or bytes from this inode."""
        return ino in self._memory.inodes

    def unsent_create(self, file: FileId) -> Op | None:
        """The file's creation, if the server cannot know of it and nothing else refers to it."""
        ops, key = self.of_file(file), file_key(file)
        if len(ops) != 1 or ops[0].kind != "create" or ops[0].sent:
            return None
        memory = self._about(ops[0])
        return ops[0] if memory.pending[key] == 1 and key not in memory.needed else None

    def unsent_file(self, file: FileId) -> bool:
        """Is all there is of a file in the journal its creation and what was written into it or set
        on it since, none of it sent? Then the server cannot know of it."""
        ops, key = self.of_file(file), file_key(file)
        own = not any(op.sent or op.body.other for op in ops)
        if not ops or not own or ops[0].kind != "create":
            return False
        memory = self._about(ops[0])
        return memory.pending[key] == len(ops) and key not in memory.needed

    def is_of_others(self, key: str, op: Op) -> bool:
        """True if an operation other than `op` changes this record."""
        return self._memory.pending[key] > (key in writes(op))

    def open_content(self, file: FileId, ino: int) -> Op | None:
        """The operation that will carry bytes written into `ino` now: not frozen, not sent."""
        for op in reversed(self.of_file(file)):
            if op.has_content:
                return op if op.ino == ino and op.version is None and not op.sent else None
        return None

    def first_content(self, op: Op) -> Op:
        """The operation whose snapshot is the next of the inode of `op`, which waits for one: that
        of the file which the inode was before it replaced another may still be to be taken."""
        own = sum(item.ino == op.ino for item in self.of_file(op.file))
        if self._memory.inodes[op.ino] == own:
            return op  # all are of its file, where content is added only when the last is frozen
        of_inode = (item for item in self if item.ino == op.ino and item.has_content)
        return next((item for item in of_inode if item.version is None), op)

    # --- changes: inside a transaction of the caller's --------------------------------------------

    def add(self, kind: str, ino: int, file: FileId, body: Body) -> Op:
        op = Op(seq=0, key=new_id(), kind=kind, ino=ino, file=file, body=body)
        op.made_ns = time.time_ns()
        self._insert(op)
        return op

    def add_first(self, kind: str, ino: int, file: FileId, body: Body) -> Op:
        """An operation that all others may depend on; it is as old as the first of them."""
        first = next(iter(self), None)
        seq = min(0, 0 if first is None else first.seq) - 1
        op = Op(seq=seq, key=new_id(), kind=kind, ino=ino, file=file, body=body)
        op.made_ns = time.time_ns() if first is None else first.made_ns
        self._insert(op, seq)
        self._rows.put_in_order()
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
        self._on_rekey(old_key, op.key)

    def readdress(self, op: Op, file: FileId) -> None:
        """Its file is `file` after all; it keeps its place in the order."""
        memory = self._memory
        self._touch(op)
        memory.forget(op)
        op.file = file
        memory.remember(op)
        memory.put_in_order()
        self._db.run("UPDATE op SET file = ? WHERE seq = ?", file, op.seq)
        self.rewrite(op, key=new_id(), sent=False)

    def remove(self, op: Op) -> None:
        self._touch(op)
        self._db.run("DELETE FROM op WHERE seq = ?", op.seq)
        self._rows.forget(op)
        self._let_go(op.ino)
        self._wake()

    def rewrite(self, op: Op, **fields: object) -> None:
        """Change a row in place: `version`, `sent`, `refused`, `key`; or `body`, `ino`. One that
        says something else now is not refused any more."""
        memory, ino, old_key = self._rows, op.ino, op.key
        self._touch(op)
        memory.uncount(op)
        if "body" in fields:
            fields = {"refused": None, **fields}
        if fields.get("refused"):
            op.refused_at = time.monotonic()
        for name, value in fields.items():
            setattr(op, name, value)
        memory.count(op)
        self._let_go(ino)
        if op.key != old_key:
            self._on_rekey(old_key, op.key)
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

    def rename_file(
        self, old: FileId, new: FileId, fields: Collection[str] = ("parent", "new_parent")
    ) -> None:
        """Operations that name `old` in one of these fields, by default directory `old` as their
        place, name `new` instead."""
        for op in list(self):
            changes = {field: new for field in fields if getattr(op.body, field) == old}
            if changes:
                body = msgspec.structs.replace(op.body, **changes)
                self.rewrite(op, body=body, key=new_id(), sent=False)

    def _insert(self, op: Op, seq: int | None = None) -> None:
        """After all others, or at `seq`."""
        values = (op.key, op.kind, op.ino, op.file, msgspec.msgpack.encode(op.body))
        cursor = self._db.run(
            f"INSERT INTO op ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            seq,
            *values,
            op.version,
            op.sent,
            op.refused,
            op.made_ns,
        )
        assert cursor.lastrowid is not None
        op.seq, op.origin = cursor.lastrowid, op.origin or op.key
        self._touch(op)
        self._rows.remember(op)
        self._wake()

    def _let_go(self, ino: int) -> None:
        if ino not in self._rows.inodes:
            self._on_unreferenced(ino)

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def _op(row: sqlite3.Row) -> Op:
    seq, key, kind, ino, file, packed, version, sent, refused, made_ns = row
    try:
        body = _decode(packed)
    except msgspec.DecodeError as error:
        body, refused = Body(), f"error: damaged state: {error}"
    kind = sys.intern(kind)
    return Op(seq, key, kind, ino, file, body, version, bool(sent), refused, made_ns, origin=key)


_decode = msgspec.msgpack.Decoder(Body).decode


def _seq(op: Op) -> int:
    return op.seq


def _add(counter: Counter[K], keys: Collection[K]) -> None:
    for key in keys:
        counter[key] = counter.get(key, 0) + 1


def _subtract(counter: Counter[K], keys: Collection[K]) -> None:
    for key in keys:
        if counter[key] > 1:
            counter[key] -= 1
        else:
            del counter[key]
