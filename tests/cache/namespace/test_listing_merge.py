"""A listing that took its time, under what the feed and answers have told meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cache.metadata.tree import ROOT
from cache.namespace.underway import Meanwhile
from remote.protocol.messages import Child, FileRecord
from tests.cache.state import ROOT_FILE, State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def begin(state: State) -> Meanwhile:
    """The top is not believed any more, and asked for."""
    with state.db.transaction():
        state.tree.update(ROOT, listed=None)
    return state.listing_merge.begin_listing(ROOT)


def end(state: State, told: list[Child], as_of: int, meanwhile: Meanwhile) -> bool:
    top = state.record(id=ROOT_FILE, kind="directory", rev=as_of)
    return state.listing_merge.end_listing(ROOT, top, told, as_of, meanwhile)


def child(state: State, name: str, record: FileRecord) -> Child:
    return Child(state.entry(name, record.id, record.rev), record)


def test_what_reaches_the_server_during_a_listing_stays_the_same_one(state: State) -> None:
    """The listing is from before that, and both the answer to it and the feed come first."""
    node = state.make("new", "symlink")
    meanwhile = begin(state)
    [op] = state.journal
    record = state.record(id=node.file, rev=11, kind="symlink", target="t")
    state.acknowledge(op, 11, [record], [state.entry("new", node.file, 11)])
    state.remote(11, [record], [state.entry("new", node.file, 11)])
    assert end(state, [], 10, meanwhile)
    assert state.tree.live(node.file) is not None
    assert state.listing() == {"new": node.ino}


def test_a_name_that_nothing_holds_back_any_more_is_not_lost_by_a_listing(state: State) -> None:
    """It was told while an edit here held it back, and that ends between question and answer."""
    theirs = state.born("a", 1)
    state.unlink("a")
    [op] = state.journal
    meanwhile = begin(state)
    other = state.born("b", 11)
    state.remote(12, [other], [state.entry("a", other.id, 12)])
    with state.db.transaction():
        state.journal.remove(op)
        state.merge.release(op)
    state.merge.after_commit()
    state.listing_merge.list_some(ROOT, told := [child(state, "a", theirs)], 10)
    assert end(state, told, 10, meanwhile)
    node = state.tree.child(ROOT, "a")
    assert node is not None
    assert node.file == other.id


def test_what_a_listing_without_end_has_told_is_not_believed_for_ever(state: State) -> None:
    """Whoever looks a name up is not told what the feed knows better."""
    a, b, c = (state.record(rev=1) for _ in "abc")
    meanwhile = begin(state)
    told = [child(state, name, record) for name, record in (("a", a), ("b", b), ("c", c))]
    state.listing_merge.list_some(ROOT, told, 10)
    state.listing_merge.abandon_listing(ROOT, meanwhile)
    inode = state.listing()["c"]
    state.remote(11, [], [state.entry("a", None, 11)])
    fresh = state.record(rev=12)
    state.remote(12, [fresh], [state.entry("b", fresh.id, 12)])
    moved = [state.entry("d", c.id, 13), state.entry("c", None, 13)]
    state.remote(13, [msgspec.structs.replace(c, rev=13)], moved)
    assert state.listing().keys() == {"b", "d"}
    assert state.listing()["d"] == inode
    node = state.tree.child(ROOT, "b")
    assert node is not None
    assert node.file == fresh.id


def test_a_name_that_is_told_twice_is_no_fault_of_ours(state: State) -> None:
    one, other = state.record(rev=1), state.record(rev=2)
    state.list_directory(ROOT, [("a", one), ("a", other)], 3)
    node = state.tree.child(ROOT, "a")
    assert node is not None
    assert node.file == other.id


def test_a_listing_that_is_given_up_brings_back_nothing_that_the_feed_took_away(
    state: State,
) -> None:
    """The rest of the answer never comes, so what the feed told meanwhile is not applied over it:
    nobody would ever say again that the name is gone."""
    record, stays = state.record(rev=3), state.record(rev=3)
    meanwhile = begin(state)
    gone = msgspec.structs.replace(record, rev=9, links=0)
    state.remote(9, [gone], [state.entry("gone", None, 9)])
    told = [child(state, "gone", record), child(state, "stays", stays)]
    state.listing_merge.list_some(ROOT, told, 5)
    state.listing_merge.abandon_listing(ROOT, meanwhile)
    assert set(state.listing()) == {"stays"}
