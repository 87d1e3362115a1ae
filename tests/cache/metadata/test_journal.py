"""The journal: which operations may leave, and that memory is the table."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.metadata.database import Database
from cache.metadata.journal import PIECE, Journal
from cache.metadata.operations import (
    Body,
    Op,
    entry_key,
    file_key,
    needed,
    reads,
    select,
    stuck,
    writes,
)
from cache.recovery.opening import open_database
from tests.amounts import amount

FILES = ("f1", "f2", "f3", "d1", "d2")
NAMES = ("a", "b")


@st.composite
def operations(draw: st.DrawFn) -> list[Op]:
    made: list[Op] = []
    for seq in range(1, draw(st.integers(1, 9)) + 1):
        kind = draw(st.sampled_from(("create", "write", "rename", "unlink", "setattr")))
        file = draw(st.sampled_from(FILES))
        body = Body(regular=kind == "create" and file.startswith("f"))
        if kind in ("create", "rename", "unlink"):
            body.parent, body.name = (
                draw(st.sampled_from(("d1", "d2"))),
                draw(st.sampled_from(NAMES)),
            )
        if kind == "rename":
            body.new_parent = draw(st.sampled_from(("d1", "d2")))
            body.new_name = draw(st.sampled_from(NAMES))
            body.directory = file.startswith("d")
        refused = "quota" if draw(st.integers(0, 9)) == 0 else None
        ino = draw(st.sampled_from((1, 2, 3)))
        made.append(
            Op(seq=seq, key=str(seq), kind=kind, ino=ino, file=file, body=body, refused=refused)
        )
    return made


def depends(later: Op, earlier: Op) -> bool:
    """They touch a record, and at least one of them changes it."""
    return bool(
        writes(later) & writes(earlier)
        or reads(later) & writes(earlier)
        or writes(later) & reads(earlier)
    )


def must_wait(ops: list[Op], ready: set[int]) -> set[int]:
    """The definition: who is not ready waits, and so does who depends on one that waits."""
    waits: set[int] = set()
    for at, op in enumerate(ops):
        behind = any(depends(op, ops[n]) for n in waits if n < at)
        if op.refused or op.seq not in ready or behind:
            waits.add(at)
    return {ops[at].seq for at in waits}


@settings(max_examples=amount(400, 80), deadline=None)
@given(operations(), st.sets(st.integers(1, 9)))
def test_exactly_those_leave_that_wait_for_nothing(ops: list[Op], ready: set[int]) -> None:
    batch, waiting = select(ops, lambda op: op.seq in ready, limit=100)
    waits = must_wait(ops, ready)
    assert [op.seq for op in batch] == [op.seq for op in ops if op.seq not in waits]
    assert all(op.has_content and op.seq not in ready and not op.refused for op in waiting)


@settings(max_examples=amount(400, 80), deadline=None)
@given(operations(), st.sets(st.integers(1, 9)))
def test_snapshots_are_taken_in_order_and_somebody_always_is_next(
    ops: list[Op], ready: set[int]
) -> None:
    """Of each file, and of each inode, only the first content in the journal may be uploading; when
    nothing can be sent and nothing is refused, something is uploading or not due yet."""
    batch, waiting = select(ops, lambda op: op.seq in ready, limit=100)
    content = [op for op in ops if op.has_content]
    for op in waiting:
        before = [one for one in content if one.seq < op.seq]
        assert not any(one.file == op.file or one.ino == op.ino for one in before)
    if content and not batch and not any(op.refused or op.seq in ready for op in content):
        assert waiting[0] is content[0]


@settings(max_examples=amount(200, 40), deadline=None)
@given(operations(), st.integers(1, 4), st.integers(1, 9))
def test_limit_and_window(ops: list[Op], limit: int, window: int) -> None:
    whole, _ = select(ops, lambda op: True, limit=100)
    batch, _ = select(ops, lambda op: True, limit=limit)
    assert batch == whole[:limit]
    batch, _ = select(ops, lambda op: True, limit=100, window=window)
    seen = [op for op in ops if not op.refused][:window]
    assert batch == [op for op in whole if op in seen]


@settings(max_examples=amount(200, 40), deadline=None)
@given(operations())
def test_stuck_is_what_waits_though_all_is_ready(ops: list[Op]) -> None:
    everything = {op.seq for op in ops}
    assert stuck(ops) == {str(seq) for seq in must_wait(ops, everything)}


@settings(max_examples=amount(200, 40), deadline=None)
@given(operations(), st.integers(1, 9))
def test_what_is_needed_can_be_sent_without_the_rest(ops: list[Op], wanted: int) -> None:
    for op in ops:
        op.origin, op.refused = op.key, None
    first = needed(ops, {str(wanted)})
    rest = [op for op in ops if op.origin not in first]
    batch, _ = select(ops, lambda op: op not in rest, limit=100)
    assert {op.origin for op in batch} == first
    for spared in first - {str(wanted)}:  # nor is anything in it that need not be
        at = next(n for n, op in enumerate(ops) if op.key == spared)
        later = [op for op in ops[at + 1 :] if op.origin in first]
        same_inode = ops[at].has_content and any(
            op.has_content and op.ino == ops[at].ino for op in later
        )
        assert same_inode or any(depends(op, ops[at]) for op in later)


def test_a_small_save_does_not_wait_for_a_large_upload() -> None:
    large = Op(seq=1, key="1", kind="write", ino=1, file="f1", body=Body())
    small = Op(seq=2, key="2", kind="write", ino=2, file="f2", body=Body())
    batch, waiting = select([large, small], lambda op: op is small, limit=9)
    assert (batch, waiting) == ([small], [large])


def test_what_operations_touch() -> None:
    body = Body(parent="d1", name="a", new_parent="d2", new_name="b", other="f2", directory=True)
    op = Op(seq=1, key="k", kind="rename", ino=1, file="f1", body=body)
    files = {file_key("f1"), file_key("f2")}
    assert writes(op) == files | {entry_key("d1", "a"), entry_key("d2", "b"), "D"}
    assert reads(op) == {file_key("d1"), file_key("d2")}


# --- the table ------------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    found = open_database(tmp_path / "tree.sqlite")
    yield found
    found.close()


def dump(journal: Journal) -> list[bytes]:
    """The rows, without what is in memory only."""
    bare = (msgspec.structs.replace(op, origin="", refused_at=0.0) for op in journal)
    return [msgspec.msgpack.encode(op) for op in bare]


def test_a_rollback_brings_memory_back_to_the_table(db: Database) -> None:
    journal = Journal(db)
    with db.transaction():
        first = journal.add("create", 2, "1" * 32, Body(parent="4" * 32, name="a", regular=True))
        journal.add("write", 3, "2" * 32, Body())
    before = dump(journal)

    def work() -> None:
        with db.transaction():
            journal.rewrite(first, version="9" * 32, key="other", sent=True)
            journal.remove(list(journal)[1])
            journal.add("unlink", 4, "3" * 32, Body(parent="4" * 32, name="b"))
            journal.move_to_end(first)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert dump(journal) == before == dump(Journal(db))
    assert journal.is_pending(entry_key("4" * 32, "a"))
    assert not journal.is_pending(entry_key("4" * 32, "b"))
    assert (journal.refers_to(2), journal.refers_to(4)) == (True, False)
    assert journal.get("other") is None


def test_a_rollback_keeps_every_object_and_tells_of_keys(db: Database) -> None:
    """Tasks hold operations across awaits, and know them by identity."""
    journal = Journal(db)
    with db.transaction():
        ops = [journal.add("write", n, f"{n:032x}", Body()) for n in range(4)]
    keys = [op.key for op in ops]
    told: list[tuple[str, str]] = []
    journal.on_rekey = lambda old, new: told.append((old, new))

    def work() -> None:
        with db.transaction():
            journal.refile(ops[0], "f" * 32)
            journal.rewrite(ops[1], key="other", refused="quota")
            journal.move_to_end(ops[2])
            journal.add("write", 9, "9" * 32, Body())
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert [op is found for op, found in zip(ops, journal, strict=True)] == [True] * 4
    assert [op.key for op in ops] == keys
    assert [journal.get(key) for key in keys] == ops
    assert journal.of_file(f"{0:032x}") == [ops[0]]
    assert (journal.of_file("f" * 32), journal.of_file("9" * 32)) == ([], [])
    assert (journal.has_refused, journal.refers_to(9)) == (False, False)
    assert told[2:] == [(new, old) for old, new in told[:2]]
    with db.transaction():
        journal.add("write", 5, f"{0:032x}", Body())
    assert dump(journal) == dump(Journal(db))


def test_a_rollback_takes_nothing_back_of_what_was_committed_before(db: Database) -> None:
    journal = Journal(db)
    with db.transaction():
        op = journal.add("write", 1, "1" * 32, Body())
    with db.transaction():
        journal.rewrite(op, version="9" * 32)

    def work() -> None:
        with db.transaction():
            journal.add("write", 2, "2" * 32, Body())
            raise KeyError

    for _again in range(2):
        with pytest.raises(KeyError):
            work()
    assert op.version == "9" * 32
    assert dump(journal) == dump(Journal(db))


# --- a long one -----------------------------------------------------------------------------------


LONG = 3 * PIECE + 1


@pytest.fixture
def long(db: Database) -> list[bytes]:
    journal = Journal(db)
    with db.transaction():
        for n in range(LONG):
            journal.add("write", n, f"{n % 700:032x}", Body())
    return dump(journal)


async def test_a_long_journal_is_read_beside_everything_else(
    db: Database, long: list[bytes]
) -> None:
    journal, lengths = Journal(db), list[int]()

    async def look() -> None:
        while not journal.is_whole:
            lengths.append(len(journal))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        nursery.start_soon(journal.whole)
        await journal.load()
    assert len(lengths) > 1
    assert set(lengths) == {LONG}
    assert dump(journal) == long


async def test_who_asks_before_it_is_whole_gets_the_whole_answer(
    db: Database, long: list[bytes]
) -> None:
    whole = Journal(db)
    questions: list[Callable[[Journal], object]] = [
        dump,
        len,
        lambda journal: len(journal.of_file(f"{1:032x}")),
        lambda journal: journal.is_pending(file_key(f"{699:032x}")),
        lambda journal: journal.refers_to(LONG - 1),
        lambda journal: next(journal.newest_first()).ino,
        lambda journal: journal.get(list(whole)[-1].key) is not None,
        lambda journal: journal.unsent_file(f"{1:032x}"),
    ]
    for ask in questions:
        assert ask(Journal(db)) == ask(whole)
    early = Journal(db)
    with db.transaction():
        early.add("write", 0, f"{1:032x}", Body())
    await early.load()
    assert dump(early) == [*long, dump(early)[-1]]
    assert len(early) == LONG + 1


async def test_changes_do_not_wait_for_a_long_journal(db: Database, long: list[bytes]) -> None:
    journal, old, new = Journal(db), f"{1:032x}", "f" * 32
    with db.transaction():
        made = journal.add("create", LONG, new, Body(parent="e" * 32, name="a", regular=True))
        assert journal.unsent_create(new) is made
        written = journal.add("write", 1, old, Body())
        assert journal.open_content(old, 1) is written
        journal.rewrite(made, body=Body(parent="e" * 32, name="b", regular=True))
        assert journal.unsent_file(new)
        journal.move_to_end(made)
    for file in (old, new, "9" * 32):
        await journal.known(file)
    assert not journal.is_whole
    first = [op.seq for op in journal.of_file(old)]
    await journal.load()
    assert [op.seq for op in journal.of_file(old)] == first
    assert [op.seq for op in journal] == [*range(1, LONG + 1), LONG + 2, LONG + 3]
    assert dump(journal)[:LONG] == long
    assert dump(journal) == dump(Journal(db))


async def test_what_depends_on_the_rest_of_a_long_journal_waits_for_it(
    db: Database, long: list[bytes]
) -> None:
    made, refused = "a" * 32, "b" * 32
    with db.transaction():
        journal = Journal(db)
        create = journal.add("create", LONG, made, Body(parent="e" * 32, name="a", directory=True))
        journal.add("create", LONG, "c" * 32, Body(parent=made, name="within"))
        journal.rewrite(journal.add("write", LONG, refused, Body()), refused="quota: full")
    for file in (made, refused):
        early = Journal(db)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(early.load)
            await early.known(file)
            assert early.is_whole
    assert Journal(db).unsent_create(create.file) is None  # it has a file in it


async def test_who_waits_for_a_table_that_cannot_be_read_learns_it(
    db: Database, long: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "damaged")

    journal = Journal(db)
    monkeypatch.setattr(db, "all", fails)
    with pytest.raises(OSError, match="damaged"):
        await journal.load()
    await journal.whole()
    with pytest.raises(OSError, match="damaged"):
        journal.get("any")


def test_a_row_that_cannot_be_read_is_kept_and_shown(db: Database) -> None:
    journal = Journal(db)
    with db.transaction():
        op = journal.add("write", 1, "1" * 32, Body())
        db.run("UPDATE op SET body = ? WHERE seq = ?", b"\xc1", op.seq)
    (found,) = Journal(db).refused()
    assert (found.key, found.kind) == (op.key, "write")
    assert str(found.refused).startswith("error: damaged state")


def test_what_depends_on_a_creation_keeps_it_from_being_folded(db: Database) -> None:
    journal = Journal(db)
    with db.transaction():
        create = journal.add("create", 2, "4" * 32, Body(parent="5" * 32, name="d", directory=True))
    assert journal.unsent_create("4" * 32) is create
    with db.transaction():
        inner = journal.add("create", 3, "1" * 32, Body(parent="4" * 32, name="x", regular=True))
    assert journal.unsent_create("4" * 32) is None
    with db.transaction():
        journal.remove(inner)
    assert journal.unsent_create("4" * 32) is create
    with db.transaction():
        journal.rewrite(create, sent=True)
    assert journal.unsent_create("4" * 32) is None


def test_open_content_is_of_its_inode_and_not_frozen(db: Database) -> None:
    journal = Journal(db)
    with db.transaction():
        op = journal.add("write", 2, "1" * 32, Body())
    assert journal.open_content("1" * 32, 2) is op
    assert journal.open_content("1" * 32, 3) is None
    with db.transaction():
        journal.rewrite(op, version="9" * 32)
    assert journal.open_content("1" * 32, 2) is None


def test_children_follow_a_directory_that_became_another(db: Database) -> None:
    journal = Journal(db)
    with db.transaction():
        inner = journal.add("create", 3, "1" * 32, Body(parent="6" * 32, name="x", regular=True))
        other = journal.add("create", 4, "2" * 32, Body(parent="8" * 32, name="x", regular=True))
        keys, told = (inner.key, other.key), list[tuple[str, str]]()
        journal.on_rekey = lambda old, new: told.append((old, new))
        journal.rename_file("6" * 32, "7" * 32)
    assert inner.body.parent == "7" * 32
    assert told == [(keys[0], inner.key)]
    assert inner.key != keys[0]
    assert inner.origin == keys[0]
    assert other.key == keys[1]
    assert dump(journal) == dump(Journal(db))
