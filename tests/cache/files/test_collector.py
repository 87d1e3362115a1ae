"""Dead nodes stay as long as a handle, the kernel or the journal needs them, and no longer."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cache.files import collector
from cache.metadata.tree import ASKED_AT_ONCE, ROOT
from tests.cache.state import State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


async def test_an_open_handle_reads_what_was_deleted(state: State) -> None:
    node = await state.save("a", b"bytes")
    state.in_use.add(node.ino)
    state.unlink("a")
    state.collector.collect()
    assert bytes(await state.contents.read(node.ino, 0, 9, None)) == b"bytes"
    state.in_use.clear()
    state.collector.unused(node.ino)
    assert state.tree.find(node.ino) is None
    assert state.contents.dirty_bytes == 0
    await state.contents.sync_all()
    assert state.spool_files() == []


async def test_the_journal_keeps_what_it_will_send(state: State) -> None:
    node = await state.save("a", b"bytes")
    state.send()
    state.unlink("a")
    state.collector.collect()
    create, unlink = state.journal
    assert state.tree.find(node.ino) is not None
    with state.db.transaction():
        state.journal.remove(create)
    state.collector.collect()
    assert state.tree.find(node.ino) is not None
    with state.db.transaction():
        state.journal.remove(unlink)
    state.collector.collect()
    assert state.tree.find(node.ino) is None
    assert state.contents.dirty_bytes == 0


def test_what_lives_is_not_touched(state: State) -> None:
    node = state.make("a")
    state.collector.unused(node.ino)
    assert state.listing() == {"a": node.ino}


def test_to_let_go_of_what_lives_writes_nothing(state: State) -> None:
    """The kernel lets go of thousands at once, and whoever asks for something waits."""
    listed = [state.make(f"f{number}").ino for number in range(ASKED_AT_ONCE + 1)]
    before = state.db.commits
    state.collector.unused(*listed)
    assert state.db.commits == before


def test_of_many_that_are_let_go_at_once_the_dead_are_deleted(state: State) -> None:
    inodes = [state.make(f"f{number}").ino for number in range(ASKED_AT_ONCE + 1)]
    gone = [inodes[0], inodes[-1]]
    state.in_use.update(inodes)
    for name in ("f0", f"f{ASKED_AT_ONCE}"):
        state.unlink(name)
    state.collector.collect()
    assert all(state.tree.find(ino) for ino in inodes)
    state.in_use.clear()
    state.collector.unused(*inodes)
    assert [ino for ino in inodes if state.tree.find(ino) is None] == gone


def test_a_dead_directory_with_local_names_in_it_stays(state: State) -> None:
    """It was believed gone before that was made; or a state of before tells so: what was made in
    it is brought to safety first."""
    record = state.born("d", 1, kind="directory")
    directory = state.listing()["d"]
    state.list_directory(directory, [], 1)
    inner = state.make("x", parent=directory)
    with state.db.transaction():
        state.tree.drop_entry(ROOT, "d", state.tree.node(directory))
        state.tree.update(directory, live=False, links=0)
        state.candidates.dropped(state.tree.node(directory))
    state.collector.collect()
    assert record.id == state.tree.node(directory).file
    assert state.listing(directory) == {"x": inner.ino}


def dead_directory(state: State) -> int:
    """One that another device deleted, in which `x` and `below/y` were made here."""
    state.born("d", 1, kind="directory")
    directory = state.listing()["d"]
    state.list_directory(directory, [], 1)
    state.make("x", parent=directory)
    below = state.make("below", "directory", parent=directory)
    state.make("y", parent=below.ino)
    with state.db.transaction():
        state.tree.drop_entry(ROOT, "d", state.tree.node(directory))
        state.tree.update(directory, live=False, links=0)
        state.candidates.dropped(state.tree.node(directory))
    state.collector.collect()
    return directory


def forget_all(state: State) -> None:
    """Send nothing that was to be sent."""
    for op in list(state.journal):
        assert state.tree.find(op.ino) is not None
        with state.db.transaction():
            state.journal.remove(op)
        state.collector.collect()


def nodes(state: State) -> list[int]:
    return [row[0] for row in state.db.all("SELECT ino FROM node WHERE ino != ?", ROOT)]


def test_a_dead_directory_goes_when_nothing_in_it_is_to_be_sent(state: State) -> None:
    dead_directory(state)
    with state.db.transaction():
        for ino in nodes(state):
            if state.tree.node(ino).is_directory:
                state.tree.update(ino, links=0)  # the feed told of it as well
    forget_all(state)
    assert nodes(state) == []
    assert state.db.all("SELECT * FROM entry") == []


def test_a_dead_directory_goes_when_everything_has_left_it(state: State) -> None:
    directory = dead_directory(state)
    kept = state.listing(directory)
    for name, ino in kept.items():
        with state.db.transaction():
            state.tree.drop_entry(directory, name, state.tree.node(ino))
            state.tree.add_entry(ROOT, name, state.tree.node(ino))
        state.collector.collect()
    assert state.tree.find(directory) is None
    assert state.listing() == kept
    forget_all(state)
    assert state.listing() == kept


def test_what_has_another_name_outlives_its_dead_directory(state: State) -> None:
    directory = dead_directory(state)
    x = state.listing(directory)["x"]
    below = state.listing(directory)["below"]
    with state.db.transaction():
        state.tree.add_entry(ROOT, "other", state.tree.node(x))
    forget_all(state)
    assert state.listing() == {"other": x}
    # The server has not called it gone: it has a name in a directory that is not listed yet.
    assert state.tree.node(below).live
    assert nodes(state) == [x, below, *state.listing(below).values()]


async def test_bytes_that_the_server_does_not_have_stay_with_their_dead_directory(
    state: State,
) -> None:
    directory = dead_directory(state)
    x = state.listing(directory)["x"]
    await state.contents.write(x, 0, b"bytes")
    forget_all(state)
    assert bytes(await state.contents.read(x, 0, 9, None)) == b"bytes"
    with state.db.transaction():
        state.tree.drop_entry(directory, "x", state.tree.node(x))
        state.tree.add_entry(ROOT, "x", state.tree.node(x))
    state.collector.collect()
    assert state.tree.find(directory) is None
    assert state.listing() == {"x": x}


async def test_at_start_nothing_is_in_use(state: State) -> None:
    node = await state.save("a", b"bytes")
    state.in_use.add(node.ino)
    state.unlink("a")
    state.collector.collect()
    state.reopen()
    assert state.tree.find(node.ino) is not None
    state.collector.sweep()
    assert state.tree.find(node.ino) is None
    assert state.listing(ROOT) == {}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "AT_ONCE", 3)


async def test_of_many_some_are_collected_at_once_and_the_rest_by_and_by(
    state: State, few: None
) -> None:
    """Whoever calls waits for a few, and others are answered between the rest."""
    records = [state.born(f"{number}", number + 1) for number in range(10)]
    for number, record in enumerate(records, 11):
        state.remote(number, [], [state.entry(f"{number - 11}", None, number)])
        assert state.tree.live(record.id) is None
    nodes = "SELECT ino FROM node WHERE NOT live"
    assert len(state.db.all(nodes)) == 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.collector.run)
        state.collector.collect()
        assert len(state.db.all(nodes)) == 7
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert state.db.all(nodes) == []
        nursery.cancel_scope.cancel()


async def test_a_large_directory_that_is_gone_is_emptied_in_pieces(state: State, few: None) -> None:
    record = state.born("d", 1, kind="directory")
    node = state.tree.live(record.id)
    assert node is not None
    inside = [(f"{number}", state.record(rev=1)) for number in range(10)]
    state.list_directory(node.ino, inside, 1)
    gone = state.record(id=record.id, kind="directory", rev=2, links=0)
    state.remote(2, [gone], [state.entry("d", None, 2)])
    entries = "SELECT 1 FROM entry WHERE parent = ?"
    left = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.collector.run)
        state.collector.collect()
        while state.db.all("SELECT 1 FROM node WHERE NOT live"):
            left.append(len(state.db.all(entries, node.ino)))
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert any(0 < count < 10 for count in left)
    assert state.tree.find(node.ino) is None
    assert all(state.tree.live(file.id) is None for _, file in inside)


def test_while_the_journal_is_read_nothing_is_tried_again_and_again(
    state: State, few: None
) -> None:
    for number in range(10):
        state.born(f"{number}", number + 1)
        state.remote(number + 1, [], [state.entry(f"{number}", None, number + 2)])
    state.journal.is_loading = True
    state.collector.collect()
    assert not state.collector._more.is_set()
    state.journal.is_loading = False
    state.collector.collect()
    assert state.collector._more.is_set()


async def test_a_full_disk_does_not_end_the_collector(
    state: State, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is collected with what comes next; nothing is tried again and again."""
    for number in range(10):
        state.born(f"{number}", number + 1)
        state.remote(number + 1, [], [state.entry(f"{number}", None, number + 2)])
    tries = 0

    def full(ino: int) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    dead = "SELECT 1 FROM node WHERE NOT live"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.collector.run)
        state.collector.collect()
        left = len(state.db.all(dead))
        with monkeypatch.context() as patched:
            patched.setattr(state.tree, "delete", full)
            await trio.testing.wait_all_tasks_blocked()
        assert (tries, len(state.db.all(dead))) == (1, left)
        state.collector.collect()
        await trio.testing.wait_all_tasks_blocked()
        assert state.db.all(dead) == []
        nursery.cancel_scope.cancel()
