"""The journal: memory is the table."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from cache.metadata.database import Database
from cache.metadata.journal import PIECE, Journal
from cache.metadata.operations import (
    Body,
    entry_key,
    file_key,
)
from cache.recovery.opening import open_database


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
    told: list[tuple[str, str]] = []
    journal = Journal(db, on_rekey=lambda old, new: told.append((old, new)))
    with db.transaction():
        ops = [journal.add("write", n, f"{n:032x}", Body()) for n in range(4)]
    keys = [op.key for op in ops]

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
        nursery.start_soon(journal.wait_for_all)
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
        await journal.wait_for_file(file)
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
            await early.wait_for_file(file)
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
    await journal.wait_for_all()
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
    told: list[tuple[str, str]] = []
    journal = Journal(db, on_rekey=lambda old, new: told.append((old, new)))
    with db.transaction():
        inner = journal.add("create", 3, "1" * 32, Body(parent="6" * 32, name="x", regular=True))
        other = journal.add("create", 4, "2" * 32, Body(parent="8" * 32, name="x", regular=True))
        keys = (inner.key, other.key)
        journal.rename_file("6" * 32, "7" * 32)
    assert inner.body.parent == "7" * 32
    assert told == [(keys[0], inner.key)]
    assert inner.key != keys[0]
    assert inner.origin == keys[0]
    assert other.key == keys[1]
    assert dump(journal) == dump(Journal(db))
