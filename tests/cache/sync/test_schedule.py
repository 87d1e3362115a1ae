"""The choice, against looking through the whole journal; and who is in a hurry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache.metadata.operations import Body, Op, reads, writes
from cache.sync.schedule import (
    BURST_NS,
    BUSY_SECONDS,
    FEW,
    LINGER_NS,
    STREAM_SECONDS,
    UPLOADS,
    UPLOADS_WHEN_BUSY,
    Pace,
    Schedule,
    next_of_age,
)
from tests.amounts import amount
from tests.cache.metadata.test_operations import must_wait, operations

KINDS = ("create", "write", "rename", "unlink", "setattr", "retake", "replace")
FILES, NAMES, PLACES = ("f1", "f2", "f3", "d1", "d2"), ("a", "b"), ("d1", "d2")
HOUR_NS = 3_600_000_000_000


def looked_through(
    ops: Iterable[Op], ready: Callable[[Op], bool], limit: int
) -> tuple[list[Op], list[Op]]:
    """The reference: which operations may be sent, and which wait for their bytes with no earlier
    content of the same file or inode before them."""
    batch: list[Op] = []
    waiting: list[Op] = []
    held_writes, held_reads = set[str](), set[str]()
    waiting_files, waiting_inodes = set[str](), set[int]()
    for op in ops:
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
        elif len(batch) < limit:
            batch.append(op)
            if op.kind in ("retake", "replace"):
                held_writes |= wrote
    return batch, waiting


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    body = Body(parent=draw(st.sampled_from(PLACES)), name=draw(st.sampled_from(NAMES)))
    if draw(st.booleans()):
        body.new_parent, body.new_name = (
            draw(st.sampled_from(PLACES)),
            draw(st.sampled_from(NAMES)),
        )
    body.other = draw(st.sampled_from(("", "", "f1", "f2")))
    body.directory, body.regular = draw(st.booleans()), draw(st.booleans())
    return body


kinds, files, inodes = st.sampled_from(KINDS), st.sampled_from(FILES), st.integers(1, 4)
some = st.integers(0, 10**6)  # picks one of those that are there


class Looking(RuleBasedStateMachine):
    """Everything that a journal does, in any order, and a schedule that is told of it."""

    @initialize(window=st.sampled_from((2, 5, 4096)))
    def begin(self, window: int) -> None:
        self.ops: dict[int, Op] = {}
        self.bytes: set[str] = set()
        self.number = 0
        self.schedule = Schedule(lambda op: op.key in self.bytes, window)
        self.window, self.appends_only = window, True

    def in_order(self) -> list[Op]:
        return [self.ops[seq] for seq in sorted(self.ops)]

    def after(self, seq: int, most: int) -> list[Op]:
        return list(islice((op for op in self.in_order() if op.seq > seq), most))

    def pick(self, some: int) -> Op | None:
        ops = self.in_order()
        return ops[some % len(ops)] if ops else None

    def _insert(self, op: Op) -> None:
        self.ops[op.seq] = op
        self.schedule.came(op)

    @rule(kind=kinds, file=files, ino=inodes, body=bodies())
    def add(self, kind: str, file: str, ino: int, body: Body) -> None:
        self.number += 1
        seq = max(self.ops, default=0) + 1  # as SQLite does, it may be used again
        self._insert(Op(seq, f"k{self.number}", kind, ino, file, body))

    @rule(kind=kinds, file=files, ino=inodes, body=bodies())
    def add_first(self, kind: str, file: str, ino: int, body: Body) -> None:
        self.number += 1
        self.appends_only = False
        seq = min(0, *self.ops, 0) - 1
        self._insert(Op(seq, f"k{self.number}", kind, ino, file, body))

    @rule(some=some)
    def remove(self, some: int) -> None:
        if op := self.pick(some):
            del self.ops[op.seq]
            self.schedule.went(op)
            self.schedule.touched(op)  # of what has left, this means nothing

    @rule(some=some)
    def move_to_end(self, some: int) -> None:
        if op := self.pick(some):
            del self.ops[op.seq]
            self.schedule.went(op)
            op.seq = max(self.ops, default=0) + 1
            self._insert(op)

    @rule(some=some, kind=kinds, file=files, body=bodies())
    def rewrite(self, some: int, kind: str, file: str, body: Body) -> None:
        if op := self.pick(some):
            self.schedule.went(op)
            op.kind, op.file, op.body = kind, file, body
            self.schedule.came(op)

    @rule(some=some)
    def rekey(self, some: int) -> None:
        if op := self.pick(some):
            self.number += 1
            self.schedule.went(op)
            old, op.key = op.key, f"k{self.number}"
            self.schedule.came(op)
            if old in self.bytes:
                self.bytes.remove(old)
                self.bytes.add(op.key)

    @rule(some=some)
    def refuse(self, some: int) -> None:
        if op := self.pick(some):
            self.appends_only = False
            self.schedule.went(op)
            op.refused = None if op.refused else "quota"
            self.schedule.came(op)

    @rule(some=some)
    def move_bytes(self, some: int) -> None:
        if op := self.pick(some):
            self.bytes ^= {op.key}
            self.schedule.touched(op)

    @rule(barred=st.sets(st.integers(0, 12)), limit=st.integers(1, 4))
    def choose(self, barred: set[int], limit: int) -> None:
        """With some that may not be sent at this moment."""
        self.schedule.admit(self.after)
        seen = [op for op in self.in_order() if op.seq <= self.schedule.upto]
        self.compare(seen, lambda op: op.seq not in barred, limit)

    @rule()
    def look(self) -> None:
        self.schedule.admit(self.after)
        seen = [op for op in self.in_order() if op.seq <= self.schedule.upto]
        self.compare(seen, lambda op: True, 100)
        whole = [op for op in self.in_order() if not op.refused]
        assert len([op for op in seen if not op.refused]) >= min(self.window, len(whole))

    def compare(self, seen: list[Op], may: Callable[[Op], bool], limit: int) -> None:
        def is_ready(op: Op) -> bool:
            return may(op) and (not op.has_content or op.key in self.bytes)

        batch, waiting = looked_through(seen, is_ready, limit)
        assert self.schedule.choose(may, limit) == batch
        assert self.schedule.choose(may, limit) == batch, "it was only looked at"
        wanting = [op for op in waiting if op.key not in self.bytes]
        assert list(self.schedule.wanting()) == wanting

    @invariant()
    def no_more_is_held_than_there_is(self) -> None:
        assert len(self.schedule._held) <= len(self.ops) + len(self.schedule._changed)


Looking.TestCase.settings = settings(
    max_examples=amount(150, 30), stateful_step_count=40, deadline=None
)
TestLooking = Looking.TestCase


def schedule_of(ops: list[Op], has_bytes: Callable[[Op], bool], window: int = 4096) -> Schedule:
    schedule = Schedule(has_bytes, window)
    for op in ops:
        schedule.came(op)
    schedule.admit(lambda seq, most: [op for op in ops if op.seq > seq][:most])
    return schedule


@settings(max_examples=amount(200, 40), deadline=None)
@given(operations(), st.sets(st.integers(1, 9)))
def test_exactly_those_leave_that_wait_for_nothing(ops: list[Op], ready: set[int]) -> None:
    schedule = schedule_of(ops, lambda op: op.seq in ready)
    batch = schedule.choose(lambda op: op.seq in ready, 100)
    waits = must_wait(ops, ready)
    assert [op.seq for op in batch] == [op.seq for op in ops if op.seq not in waits]
    for op in schedule.wanting():
        assert op.has_content
        assert op.seq not in ready
        assert not op.refused


@settings(max_examples=amount(200, 40), deadline=None)
@given(operations(), st.sets(st.integers(1, 9)))
def test_snapshots_are_taken_in_order_and_somebody_always_is_next(
    ops: list[Op], ready: set[int]
) -> None:
    """Of each file, and of each inode, only the first content in the journal may be uploading; when
    nothing can be sent and nothing is refused, something is uploading or not due yet."""
    schedule = schedule_of(ops, lambda op: op.seq in ready)
    batch, wanting = schedule.choose(lambda op: op.seq in ready, 100), list(schedule.wanting())
    content = [op for op in ops if op.has_content]
    for op in wanting:
        before = [item for item in content if item.seq < op.seq]
        assert not any(item.file == op.file or item.ino == op.ino for item in before)
    if content and not batch and not any(op.refused or op.seq in ready for op in content):
        assert wanting[0] is content[0]


@settings(max_examples=amount(200, 40), deadline=None)
@given(operations(), st.integers(1, 4), st.integers(1, 9))
def test_limit_and_window(ops: list[Op], limit: int, window: int) -> None:
    whole = schedule_of(ops, lambda op: True).choose(lambda op: True, 100)
    assert schedule_of(ops, lambda op: True).choose(lambda op: True, limit) == whole[:limit]
    batch = schedule_of(ops, lambda op: True, window).choose(lambda op: True, 100)
    seen = [op for op in ops if not op.refused][:window]
    assert batch == [op for op in whole if op in seen]


def test_a_small_save_does_not_wait_for_a_large_upload() -> None:
    large = Op(seq=1, key="1", kind="write", ino=1, file="f1", body=Body())
    small = Op(seq=2, key="2", kind="write", ino=2, file="f2", body=Body())
    schedule = schedule_of([large, small], lambda op: op is small)
    assert schedule.choose(lambda op: True, 9) == [small]
    assert list(schedule.wanting()) == [large]


def test_what_is_not_chosen_is_not_asked_about() -> None:
    """A batch costs as much as it holds, however much waits."""
    ops = [Op(n, f"{n}", "setattr", n, f"f{n}", Body()) for n in range(1, 1001)]
    asked: list[Op] = []

    def may(op: Op) -> bool:
        asked.append(op)
        return True

    assert schedule_of(ops, lambda op: True).choose(may, 10) == ops[:10] == asked


# --- pace -----------------------------------------------------------------------------------------


def made(now_ns: int, *, ago_ns: int = 0, count: int = 1) -> list[Op]:
    ops = [Op(n, f"k{n}", "write", n, f"f{n}", Body()) for n in range(count)]
    for op in ops:
        op.made_ns, op.origin = now_ns - ago_ns, op.key
    return ops


def test_a_burst_has_the_mount_for_itself_and_a_few_files_never_wait() -> None:
    pace, few, many = Pace(), made(HOUR_NS, count=FEW), made(HOUR_NS, count=FEW + 1)
    assert pace.most_uploads(many, FEW + 1, 0.0, HOUR_NS) == UPLOADS, "nobody asks anything"
    pace.last_request = 7.0
    assert pace.most_uploads(few, FEW, 7.0, HOUR_NS) == UPLOADS_WHEN_BUSY, "they do not wait"
    assert pace.most_uploads(many, FEW + 1, 7.0, HOUR_NS) == 0, "a burst"
    assert pace.most_uploads(many, FEW + 1, 7.0, HOUR_NS + BURST_NS) == UPLOADS_WHEN_BUSY
    assert pace.most_uploads(many, FEW + 1, 7.0 + 2 * BUSY_SECONDS, HOUR_NS) == UPLOADS, "a pause"
    with pace.expedited(None):
        assert pace.most_uploads(many, FEW + 1, 7.0, HOUR_NS) == UPLOADS, "somebody waits"
    many[0].refused = "quota"
    many[1].made_ns -= BURST_NS
    assert pace.most_uploads(many, FEW + 1, 7.0, HOUR_NS) == UPLOADS_WHEN_BUSY, "the oldest to go"


def test_files_that_go_one_by_one_without_end_are_a_burst_too() -> None:
    """A program that waits for the disk at each file never has many waiting."""
    pace, few = Pace(), made(HOUR_NS, count=2)
    pace.last_request = 7.0
    for number in range(FEW):
        assert pace.most_uploads(few, 2, 7.0, HOUR_NS) == UPLOADS_WHEN_BUSY, number
        pace.began(6.5)
    assert pace.most_uploads(few, 2, 7.0, HOUR_NS) == 0
    assert pace.most_uploads(few, 2, 7.0, HOUR_NS + BURST_NS) == UPLOADS_WHEN_BUSY, "old enough"
    later = 6.5 + STREAM_SECONDS
    pace.last_request = later
    assert pace.most_uploads(few, 2, later, HOUR_NS) == UPLOADS_WHEN_BUSY, "that was a while ago"


def test_a_burst_from_the_future_is_no_burst() -> None:
    """The clock was set back since."""
    pace, ops = Pace(), made(2 * HOUR_NS, count=FEW + 1)
    pace.last_request = 0.0
    assert pace.most_uploads(ops, FEW + 1, 0.0, HOUR_NS) == UPLOADS_WHEN_BUSY


def test_what_may_be_folded_away_lingers_unless_somebody_waits_for_it() -> None:
    pace, (op, other) = Pace(), made(HOUR_NS, count=2)
    assert pace.lingers(op, HOUR_NS + LINGER_NS - 1)
    assert not pace.lingers(op, HOUR_NS + LINGER_NS)
    assert not pace.lingers(op, HOUR_NS - 1), "made in the future"
    with pace.expedited({op.origin}):
        assert not pace.lingers(op, HOUR_NS)
        assert pace.lingers(other, HOUR_NS)
        assert pace.is_asked_for(op)
    with pace.expedited(None):
        assert not pace.lingers(other, HOUR_NS)
        assert not pace.is_asked_for(other)
    assert not pace.hurries
    op.sent = True
    assert not pace.lingers(op, HOUR_NS)


def test_who_waits_twice_for_the_same_is_forgotten_once_each() -> None:
    pace, (op,) = Pace(), made(HOUR_NS)
    with pace.expedited({op.origin}):
        with pace.expedited({op.origin}):
            pass
        assert pace.is_hurried(op)


def test_the_next_that_comes_of_age() -> None:
    young = made(HOUR_NS)[0]
    older, old = made(HOUR_NS, ago_ns=LINGER_NS // 2)[0], made(HOUR_NS, ago_ns=LINGER_NS)[0]
    assert next_of_age([young, older, old], HOUR_NS) == HOUR_NS + LINGER_NS // 2
    assert next_of_age([old], HOUR_NS) is None
    assert next_of_age([], HOUR_NS) is None
