"""A batch of mutations as one transaction.

Knows: idempotency, savepoints, sequence numbers, which topics learn of a change, when the audit log
does. Must not know: what an operation does (`tree`), how news travel (`feed`).

The order inside the transaction: look the key up; check access and apply, so that it can be undone
(`working_set`, which reads and writes what the operations need in sets); give the change the
drive's next sequence number; at the end write what changed, the change rows, the audit rows (one
per applied operation) and the answers, and bump the drive's head row last. On a database with
concurrent writers the head row is locked before anything of a drive is read, so sequence order is
the order in which commits become visible.

A refusal undoes its operation. It is stored as the answer to its key only if it will not change
(retry class NEVER): after `chunks_missing` the same key is sent again once the chunks are there.
Until then, later operations of the batch on the files of such a refusal are put off too
(`unavailable`, not stored): on a file that is yet to come they would be refused for good.

All other writers wait for a batch, and its answers are held in memory. So one whose time is over
(`MAX_SECONDS`, or a fraction of one while others wait) or that has made `MAX_BYTES` ends there:
what is left of it is `unavailable`, to be sent again. At least one operation is done, and in order,
so whoever sends the rest again comes to an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select, func, insert, select, update

from remote.protocol.errors import RULES, AnyProblem, NotFound, Problem, Refused, Retry, Unavailable
from remote.protocol.messages import Applied, Change, Keyed, Op
from server.changes.fanout import News, account_topic, drive_topic, grant_topic
from server.changes.trimming import Touched, trimmed
from server.drive import tree
from server.drive.mutation import Mutation
from server.drive.working_set import AHEAD, AHEAD_FIRST, WorkingSet
from server.metadata import operations
from server.metadata.records import slices
from server.metadata.schema import audit as audit_table
from server.metadata.schema import changes, devices, drives, grants, idempotency
from server.permissions import access, audit
from server.permissions.caller import Caller
from server.permissions.lineage import Lineage

Result = Applied | AnyProblem

LATER = Unavailable(message="this was too much for one batch; send the rest again")
MAX_SECONDS = 5.0
# Of encoded changes and answers. One operation alone may make more.
MAX_BYTES = 16 * 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode_result = msgspec.msgpack.Decoder(Result).decode


def apply(
    conn: Connection,
    caller: Caller,
    ops: Sequence[Keyed],
    now_ns: int,
    is_over: Callable[[], bool] = lambda: False,
    sent_as: Sequence[str] = (),
) -> tuple[list[Result], list[News]]:
    """Apply `ops` in order, each on its own; `conn` is in a write transaction. `is_over` says that
    the time for that is over. `sent_as`: see `ApplyRequest`.

    Returns the answers in order, and the news to publish once the transaction is committed.
    """
    batch = _Batch(conn, caller, now_ns, is_over, _devices(conn, caller, sent_as))
    batch.recall([keyed.key for keyed in ops])
    results: list[Result] = []
    # Few at first: the batch may have to end after one, and is sent again then.
    for part in (ops[:AHEAD_FIRST], *slices(ops[AHEAD_FIRST:], AHEAD)):
        batch.look_ahead(part)
        results += [batch.answer(keyed) for keyed in part]
    return results, batch.finish()


def _devices(conn: Connection, caller: Caller, sent_as: Sequence[str]) -> list[str]:
    """As whom the caller's operations may have been answered."""
    others = set(sent_as) - {caller.device}
    if not others or caller.folder is not None:
        return [caller.device]
    mine = select(devices.c.id).where(devices.c.id.in_(others), devices.c.account == caller.account)
    return [caller.device, *conn.execute(mine).scalars()]


@dataclass
class _Head:
    """A drive's head row while a batch is applied. `moved` is the last change that moved something;
    `parted`: somebody sees only a part of the drive."""

    epoch: str
    before: int
    seq: int
    moved: int
    parted: bool


@dataclass
class _Batch:
    conn: Connection
    caller: Caller
    now_ns: int
    is_over: Callable[[], bool]
    devices: list[str]
    known: dict[str, Result] = field(default_factory=dict)
    heads: dict[str, _Head] = field(default_factory=dict)
    answers: list[dict[str, object]] = field(default_factory=list)
    told: list[dict[str, object]] = field(default_factory=list)
    audited: list[dict[str, object]] = field(default_factory=list)
    topics: dict[str, list[Change]] = field(default_factory=dict)
    put_off: set[str] = field(default_factory=set)
    returned: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    parts: dict[str, bool] = field(default_factory=dict)
    size: int = 0
    attempts: int = 0
    rows: WorkingSet = field(init=False)
    lineage: Lineage = field(init=False)

    def __post_init__(self) -> None:
        self.rows = WorkingSet(self.conn)
        self.lineage = Lineage(self.conn, self.rows.write_out)

    def recall(self, keys: Sequence[str]) -> None:
        """Load the answers that were given before, in the order of `keys`, as far as there is room
        for them; the keys of the others are `unread`."""
        stored = self._stored(keys)
        for key in dict.fromkeys(item for item in keys if item in stored):
            if self.size and self.size + stored[key] > MAX_BYTES:
                self.unread.add(key)
            else:
                self.size += stored[key]
        query = select(idempotency.c.key, idempotency.c.result)
        for some in slices(stored.keys() - self.unread):
            for row in self.conn.execute(query.where(self._mine(some))):
                self.known[row.key] = _decode_result(row.result)

    def _stored(self, keys: Sequence[str]) -> dict[str, int]:
        """Which of these keys were answered before, and how long the answer is."""
        query = select(idempotency.c.key, func.length(idempotency.c.result))
        rows = (self.conn.execute(query.where(self._mine(some))) for some in slices(keys))
        return {key: length for page in rows for key, length in page}

    def _mine(self, keys: Sequence[str]) -> ColumnElement[bool]:
        return idempotency.c.device.in_(self.devices) & idempotency.c.key.in_(keys)

    def look_ahead(self, part: Sequence[Keyed]) -> None:
        """Read what the next operations name, unless they were answered or are not to be done."""
        ops = [keyed.op for keyed in part if keyed.key not in self.known.keys() | self.unread]
        if not ops or self._is_spent():
            return
        drives = self.rows.drives_of(ops)
        for drive in drives:
            self._head(drive)
        there = self.rows.load(ops)
        if any(map(self._is_climbed, drives)):
            self.lineage.learn([row.id for row in there])
        for drive, head in self.heads.items():
            if head.parted:
                self._roots(drive, {row.id for row in there if row.drive == drive})

    def _is_climbed(self, drive: str) -> bool:
        """True if each operation in a drive asks what is above the files that it touches."""
        owner = access.owns_drive(self.caller, drive)
        return not owner or self._head(drive).parted or bool(self.lineage.roots(drive, self.now_ns))

    def _is_spent(self) -> bool:
        is_large = bool(self.known) and self.size > MAX_BYTES
        return is_large or (self.attempts > 0 and self.is_over())

    def answer(self, keyed: Keyed) -> Result:
        if keyed.key in self.known:
            return self.known[keyed.key]
        if keyed.key in self.unread or self._is_spent():
            return LATER
        self.attempts += 1
        result = self._attempt(keyed.op)
        if isinstance(result, Applied) or RULES[type(result)].retry is Retry.NEVER:
            self.known[keyed.key] = result
            encoded = _encode(result)
            self.size += len(encoded)
            row = {"device": self.caller.device, "key": keyed.key, "at_ns": self.now_ns}
            self.answers.append(row | {"result": encoded})
        else:
            self.put_off.add(keyed.op.file)
        return result

    def _attempt(self, op: Op) -> Result:
        if self.put_off and not self.put_off.isdisjoint(operations.named(op)):
            return Unavailable(message="an earlier operation on this file must be repeated first")
        self.rows.begin()
        try:
            applied = self._perform(op)
        except Refused as error:
            self.rows.undo()
            self.lineage.forget()
            return _problem(error.problem)
        self.rows.keep()
        self.lineage.keep()
        return applied

    def _perform(self, op: Op) -> Applied:
        drive = self._drive_of(op)
        head = self._head(drive)
        tx = Mutation(self.rows, self.caller, self.now_ns, drive, head.seq + 1, self.lineage)
        tree.perform(tx, op)
        change = tx.change()
        self._record(head, change, tx)
        self.audited.append(audit.of_operation(self.caller, op, self.now_ns, tx.left))
        return Applied(change=change, overtaken=tx.overtaken)

    def _drive_of(self, op: Op) -> str:
        row = self.rows.file(operations.anchor(op))
        if row is None:
            raise Refused(NotFound(message=f"there is no file {operations.anchor(op)}"))
        return row.drive

    def _head(self, drive: str) -> _Head:
        if drive not in self.heads:
            query = select(drives.c.head_seq, drives.c.epoch, drives.c.moved_seq)
            row = self.conn.execute(query.where(drives.c.id == drive).with_for_update()).one()
            head, parted = row.head_seq, self._parted(drive)
            self.heads[drive] = _Head(row.epoch, head, head, row.moved_seq, parted)
        return self.heads[drive]

    def _parted(self, drive: str) -> bool:
        shared = select(grants.c.file).where(grants.c.granted_by == _owner(drive))
        return any(self.conn.execute(item.limit(1)).first() for item in (shared, _folders(drive)))

    def _record(self, head: _Head, change: Change, tx: Mutation) -> None:
        head.seq = change.seq
        head.moved = change.seq if tx.moved else head.moved
        self.returned |= tx.returned
        self._tell(drive_topic(change.drive), change)
        if not head.parted:
            return
        self.parts |= dict.fromkeys(tx.born, False)  # nobody was given it yet
        touched = Touched.by(change, tx.lost, self.lineage.above)
        for root in self._roots(change.drive, touched.directories):
            self._tell(grant_topic(change.drive, root), trimmed(change, touched, root))

    def _tell(self, topic: str, change: Change) -> None:
        self.topics.setdefault(topic, []).append(change)
        payload = _encode(change)
        self.size += len(payload)
        row = {"topic": topic, "seq": change.seq, "drive": change.drive, "at_ns": self.now_ns}
        self.told.append(row | {"device": self.caller.device, "payload": payload})

    def _roots(self, drive: str, above: set[str]) -> list[str]:
        """Which of these files of `drive` somebody sees without seeing the whole drive. No
        operation changes that, so a batch asks once for each."""
        found: set[str] = set()
        for some in slices(above - self.parts.keys()):
            shared = select(grants.c.file).where(grants.c.file.in_(some))
            scoped = _folders(drive).where(devices.c.folder.in_(some))
            found.update(self.conn.execute(shared.union(scoped)).scalars())
            self.parts |= {file: file in found for file in some}
        return sorted(file for file in above if self.parts[file])

    def finish(self) -> list[News]:
        """Write what the batch collected; the head rows last."""
        self.rows.write_out()
        if self.told:
            self.conn.execute(insert(changes), self.told)
        if self.audited:
            self.conn.execute(insert(audit_table), self.audited)
        if self.answers:
            self.conn.execute(insert(idempotency), self.answers)
        for drive, head in self.heads.items():
            if head.seq > head.before:
                values = {"head_seq": head.seq, "moved_seq": head.moved}
                self.conn.execute(update(drives).where(drives.c.id == drive).values(**values))
        news = [self._news(topic, made) for topic, made in self.topics.items()]
        return news + self._seen_again()

    def _seen_again(self) -> list[News]:
        """For those who are given back a file that was in the trash: they follow no topic of it."""
        found: set[str] = set()
        for some in slices(self.returned):
            to = select(grants.c.account).where(grants.c.file.in_(some))
            found.update(self.conn.execute(to).scalars())
        return [News(account_topic(account)) for account in sorted(found)]

    def _news(self, topic: str, made: list[Change]) -> News:
        head = self.heads[made[0].drive]
        return News(topic, head.epoch, made[0].drive, made[0].seq - 1, made[-1].seq, tuple(made))


def _owner(drive: str) -> ScalarSelect[str]:
    """The owner of a drive, who alone shares its files, and makes tokens for its directories."""
    return select(drives.c.owner).where(drives.c.id == drive).scalar_subquery()


def _folders(drive: str) -> Select[tuple[str]]:
    """The directories that tokens of the drive's owner are for, one each."""
    mine = (devices.c.account == _owner(drive), devices.c.revoked_ns.is_(None))
    return select(devices.c.folder).where(*mine, devices.c.folder.is_not(None))


def _problem(problem: Problem) -> AnyProblem:
    assert isinstance(problem, AnyProblem)
    return problem
