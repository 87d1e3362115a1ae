"""Remote changes over a tree that has local ones: what is applied, what is held back, what the
kernel is told."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from cache.metadata.tree import ROOT
from remote.protocol.errors import NotKept
from remote.protocol.messages import Child, FileRecord, Me
from tests.cache.state import ROOT_FILE, State, new_file


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def later(record: object, **fields: object) -> object:
    return msgspec.structs.replace(record, **fields)  # type: ignore[type-var]  # a FileRecord


async def steps_of(work: Callable[[], Awaitable[None]], limit: int | None = None) -> int:
    """In how many steps of its task it is done; or cut short after `limit` of them."""
    seen = 0
    with trio.CancelScope() as life:

        class Watch(trio.abc.Instrument):
            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal seen
                seen += 1
                if seen == limit:
                    life.cancel()

        watch = Watch()
        trio.lowlevel.add_instrument(watch)
        try:
            await work()
        finally:
            trio.lowlevel.remove_instrument(watch)
    return seen


async def steps_of_reset(state: State, limit: int | None = None) -> int:
    return await steps_of(lambda: state.merge.reset("r", 7, None), limit)


# --- first contact --------------------------------------------------------------------------------


def me(account: str, drive: str) -> Me:
    return Me(
        account=account,
        device_id="d" * 32,
        drive=drive,
        root=ROOT_FILE,
        cursor="0",
        seq=0,
        used_bytes=0,
        quota_bytes=None,
        now_ns=0,
    )


def test_the_state_of_another_drive_is_refused(state: State) -> None:
    with pytest.raises(ValueError, match="another drive"):
        state.merge.adopt(me("ben", "f" * 32))


# --- files ----------------------------------------------------------------------------------------


def test_a_new_name_appears_and_the_kernel_forgets_its_absence(state: State) -> None:
    record = state.born("a", 1, xattrs={"user.x": b"1"})
    node = state.tree.child(ROOT, "a")
    assert node is not None
    assert (node.file, node.rev, state.tree.xattrs(node.ino)) == (record.id, 1, {"user.x": b"1"})
    assert (ROOT, "a") in state.kernel.entries
    assert (state.merge.seq("e" * 32), state.merge.cursor()) == (1, "1")


def test_a_new_version_is_a_new_inode(state: State) -> None:
    record = state.born("a", 1, size=5)
    old = state.listing()["a"]
    state.in_use.add(old)
    fresh = later(record, version="9" * 32, size=7, rev=2)
    state.remote(2, [fresh], [])
    state.collector.collect()
    new = state.listing()["a"]
    assert new != old
    assert state.tree.node(new).size == 7
    assert (state.tree.node(old).live, state.tree.node(old).size) == (False, 5)
    assert (ROOT, "a") in state.kernel.entries
    state.in_use.clear()
    state.collector.unused(old)
    assert state.tree.find(old) is None


def test_attributes_alone_change_in_place(state: State) -> None:
    record = state.born("a", 1)
    ino = state.listing()["a"]
    state.remote(2, [later(record, mode=0o600, uid=5, xattrs={"user.y": b"2"}, rev=2)], [])
    assert state.listing()["a"] == ino
    node = state.tree.node(ino)
    assert (node.mode, node.uid, node.rev) == (0o600, 5, 2)
    assert state.tree.xattrs(ino) == {"user.y": b"2"}
    assert state.kernel.attributes == [ino]


def test_a_new_mtime_of_a_regular_file_is_a_new_inode(state: State) -> None:
    record = state.born("a", 1)
    ino = state.listing()["a"]
    state.remote(2, [later(record, mtime_ns=99, rev=2)], [])
    assert state.listing()["a"] != ino


def test_an_older_record_never_undoes_a_newer_one(state: State) -> None:
    record = state.born("a", 5)
    state.remote(6, [later(record, mode=0o600, rev=6)], [])
    state.remote(7, [record], [state.entry("a", None, 4)])
    node = state.tree.node(state.listing()["a"])
    assert (node.mode, node.rev) == (0o600, 6)


def test_a_change_that_comes_twice_changes_nothing(state: State) -> None:
    record = state.born("a", 1)
    entries = [state.entry("b", record.id, 2), state.entry("a", None, 2)]
    state.remote(2, [later(record, rev=2)], entries)
    before = state.listing()
    state.remote(2, [later(record, rev=2)], entries)
    assert state.listing() == before == {"b": before["b"]}


# --- names ----------------------------------------------------------------------------------------


def test_a_rename_keeps_the_inode(state: State) -> None:
    record = state.born("a", 1)
    ino = state.listing()["a"]
    entries = [state.entry("a", None, 2), state.entry("b", record.id, 2)]  # the loss comes first
    state.remote(2, [later(record, rev=2)], entries)
    assert state.listing() == {"b": ino}


def test_a_directory_moves_with_what_is_in_it(state: State) -> None:
    top = state.born("d", 1, kind="directory")
    state.born("e", 2, kind="directory")
    directory = state.listing()["d"]
    state.list_directory(directory, [], 2)
    inner = state.born("x", 3, parent=top.id)
    target = state.tree.node(state.listing()["e"])
    state.list_directory(target.ino, [], 3)
    entries = [state.entry("d", None, 4), state.entry("d2", top.id, 4, target.file)]
    state.remote(4, [later(top, rev=4)], entries)
    assert state.listing(target.ino) == {"d2": directory}
    assert state.listing() == {"e": target.ino}
    assert state.tree.node(state.listing(directory)["x"]).file == inner.id
    assert [state.tree.node(ino).subdirs for ino in (ROOT, target.ino)] == [1, 1]


def test_a_deleted_file_stays_for_its_open_handle(state: State) -> None:
    record = state.born("a", 1)
    ino = state.listing()["a"]
    state.in_use.add(ino)
    state.remote(2, [later(record, links=0, rev=2)], [state.entry("a", None, 2)])
    state.collector.collect()
    assert state.listing() == {}
    assert (state.tree.node(ino).live, state.tree.node(ino).links) == (False, 0)


def test_a_name_in_a_directory_that_is_not_listed_is_left_to_its_listing(state: State) -> None:
    top = state.born("d", 1, kind="directory")
    state.born("x", 2, parent=top.id)
    directory = state.listing()["d"]
    assert state.listing(directory) == {}
    assert state.tree.node(directory).listed is None


def test_a_directory_stays_where_a_listing_has_shown_it_whatever_came_before(state: State) -> None:
    """It moved to "in" (3) and back (4); the listing of the top tells the last, then the feed."""
    holder = state.born("in", 1, kind="directory")
    with state.db.transaction():
        state.tree.update(state.listing()["in"], listed=1)
    moved = state.born("d", 2, kind="directory")
    ino, back = state.listing()["d"], later(moved, rev=4)
    state.list_directory(ROOT, [("in", holder), ("d", back)], 5)
    there, gone = state.entry("d", moved.id, 3, holder.id), state.entry("d", None, 4, holder.id)
    state.remote(3, [later(moved, rev=3)], [state.entry("d", None, 3), there])
    state.remote(4, [back], [gone, state.entry("d", moved.id, 4)])
    assert state.listing()["d"] == ino


# --- held back ------------------------------------------------------------------------------------


def test_a_record_waits_for_the_local_change_of_the_same_file(state: State) -> None:
    record = state.born("a", 1)
    ino = state.listing()["a"]
    state.edits.set_attributes(ino, {"mode": 0o700})
    (op,) = state.journal
    state.remote(2, [later(record, mode=0o600, uid=5, rev=2)], [])
    assert state.tree.node(ino).mode == 0o700
    state.acknowledge(op, 3, [later(record, mode=0o700, uid=5, rev=3)], [])
    node = state.tree.node(ino)
    assert (node.mode, node.uid, node.rev) == (0o700, 5, 3)
    assert state.db.all("SELECT * FROM shadow") == []


def test_what_was_held_back_comes_when_the_operation_is_given_up(state: State) -> None:
    record = state.born("a", 1)
    ino = state.listing()["a"]
    state.edits.set_attributes(ino, {"mode": 0o700})
    (op,) = state.journal
    state.remote(2, [later(record, mode=0o640, rev=2)], [])
    state.remote(3, [later(record, mode=0o600, rev=3)], [])
    with state.db.transaction():
        state.journal.remove(op)
        state.merge.release(op)
    assert state.tree.node(ino).mode == 0o600


def test_a_held_back_name_may_be_older_than_the_listing_that_held_it(state: State) -> None:
    ours = state.make("a", "directory")
    (op,) = state.journal
    theirs = state.record(rev=3)
    state.list_directory(ROOT, [("a", theirs)], 9)
    assert state.listing() == {"a": ours.ino}
    with state.db.transaction():
        state.tree.drop_entry(ROOT, "a", ours)
        state.journal.remove(op)
        state.merge.release(op)
    assert state.tree.node(ROOT).listed is None  # nothing told what it is: the listing will
    state.list_directory(ROOT, [("a", theirs)], 9)
    assert state.tree.node(state.listing()["a"]).file == theirs.id


def test_a_listing_leaves_local_names_and_removals_alone(state: State) -> None:
    record = state.born("mine to delete", 1)
    state.unlink("mine to delete")
    state.make("new here")
    stale = state.born("gone there", 2)
    other = state.record(rev=3)
    state.list_directory(ROOT, [("mine to delete", record), ("other", other)], 4)
    assert set(state.listing()) == {"new here", "other"}
    assert state.tree.live(stale.id) is None


# --- acknowledgements -----------------------------------------------------------------------------


def test_an_acknowledged_removal_is_not_undone_by_an_older_change(state: State) -> None:
    """Acknowledgements overtake the feed: create is 1, unlink is 2, then the feed says 1."""
    node = state.make("a")
    (create,) = state.journal
    state.send(create)
    state.unlink("a")
    record = state.record(id=node.file, rev=1)
    state.acknowledge(create, 1, [record], [state.entry("a", node.file, 1)])
    (unlink,) = state.journal
    state.acknowledge(unlink, 2, [later(record, links=0, rev=2)], [state.entry("a", None, 2)])
    assert state.listing() == {}
    state.remote(1, [record], [state.entry("a", node.file, 1)])
    assert state.listing() == {}
    state.list_directory(ROOT, [("a", record)], 1)
    assert state.listing() == {}
    state.remote(2, [later(record, links=0, rev=2)], [state.entry("a", None, 2)])
    again = state.born("a", 3)
    assert state.tree.node(state.listing()["a"]).file == again.id


async def test_an_acknowledged_removal_is_not_undone_after_a_restart(state: State) -> None:
    """Link is 2, unlink is 3, both acknowledged; the process dies before the feed has said so. The
    file was written meanwhile: that must not hold back the removal of a name long gone."""
    first = state.born("a", 1, links=1)
    node = state.tree.node(state.listing()["a"])
    state.edits.link(node.ino, ROOT, "b")
    state.edits.unlink(ROOT, "b", directory=False)
    await state.contents.write(node.ino, 0, b"written")
    link, unlink, write = state.journal
    assert write.kind == "write"
    linked = later(first, links=2, rev=2)
    unlinked = later(first, links=1, rev=3)
    named, gone = state.entry("b", first.id, 2), state.entry("b", None, 3)
    state.acknowledge(link, 2, [linked], [named])
    state.acknowledge(unlink, 3, [unlinked], [gone])
    state.reopen()
    assert list(state.listing()) == ["a"]
    state.remote(2, [linked], [named])
    assert list(state.listing()) == ["a"]
    state.remote(3, [unlinked], [gone])
    assert list(state.listing()) == ["a"]
    assert state.db.all("SELECT key FROM meta WHERE key GLOB 'gone:*'") == []


def test_our_own_change_of_a_directory_leaves_its_local_times(state: State) -> None:
    node = state.make("a")
    before = state.tree.node(ROOT).mtime_ns
    (op,) = state.journal
    root = state.record(id=ROOT_FILE, kind="directory", mtime_ns=12345, rev=1)
    record = state.record(id=node.file, mtime_ns=node.mtime_ns, version=None, rev=1)
    state.acknowledge(op, 1, [record, root], [state.entry("a", node.file, 1)])
    assert state.tree.node(ROOT).mtime_ns == before
    assert state.tree.node(ROOT).rev == 1


def test_ctime_moves_and_does_not_go_back_when_the_server_has_an_earlier_one(state: State) -> None:
    """Its clock may be behind that of this device."""
    node = state.make("d", "directory")
    state.send(*state.journal)
    (op,) = state.journal
    told = {"id": node.file, "kind": "directory", "mtime_ns": node.mtime_ns, "version": None}
    state.acknowledge(op, 1, [state.record(rev=1, **told)], [state.entry("d", node.file, 1)])
    before = state.tree.node(node.ino).ctime_ns
    state.remote(2, [state.record(rev=2, mode=0o700, ctime_ns=5, **told)], [])
    assert state.tree.node(node.ino).mode == 0o700
    assert state.tree.node(node.ino).ctime_ns == before + 1


def test_the_mtime_of_a_directory_does_not_go_back_when_its_making_is_answered(
    state: State,
) -> None:
    """Its mtime has moved with what was made in it meanwhile; who remembers a listing by it must
    not be told the old one."""
    node = state.make("d", "directory")
    (making,) = state.journal
    state.tick()
    state.make("f", parent=node.ino)
    now = state.tree.node(node.ino).mtime_ns
    assert now > node.mtime_ns
    record = state.record(
        id=node.file, kind="directory", mtime_ns=node.mtime_ns, version=None, rev=1
    )
    state.acknowledge(making, 1, [record], [state.entry("d", node.file, 1)])
    assert state.tree.node(node.ino).mtime_ns == now


def test_the_times_of_a_directory_stay_when_the_feed_tells_of_an_edit_before_its_answer(
    state: State,
) -> None:
    node = state.make("a")
    before = state.tree.node(ROOT)
    (op,) = state.journal
    state.send(op)
    root = state.record(id=ROOT_FILE, kind="directory", mtime_ns=before.mtime_ns + 5, rev=1)
    record = state.record(id=node.file, mtime_ns=node.mtime_ns, version=None, rev=1)
    named = state.entry("a", node.file, 1)
    state.remote(1, [record, root], [named])
    state.acknowledge(op, 1, [record, root], [named])
    after = state.tree.node(ROOT)
    assert (after.mtime_ns, after.ctime_ns) == (before.mtime_ns, before.ctime_ns)
    assert after.rev == 1
    state.remote(2, [later(root, rev=2)], [state.entry("b", new_file(), 2)])
    assert state.tree.node(ROOT).mtime_ns == before.mtime_ns + 5


def test_a_name_goes_only_after_the_bytes_written_under_it_were_taken(state: State) -> None:
    """The edit reached the server before the delete did: then the delete stands, and no nameless
    node stays alive."""
    record = state.born("a", 1)
    ino = state.listing()["a"]
    state.contents.truncate(ino, 3)
    (op,) = state.journal
    gone = later(record, links=0, rev=3)
    state.remote(3, [gone], [state.entry("a", None, 3)])
    assert state.listing() == {"a": ino}
    state.acknowledge(op, 2, [later(record, version="9" * 32, size=3, rev=2)], [])
    state.merge.release_free()
    assert state.listing() == {}
    state.collector.collect()
    assert state.db.all("SELECT ino FROM node WHERE ino != ?", ROOT) == []
    assert state.contents.dirty_bytes == 0


def test_a_file_that_moved_elsewhere_while_it_was_edited_here_ends_under_its_new_name_only(
    state: State,
) -> None:
    record = state.born("a", 1)
    state.contents.truncate(state.listing()["a"], 3)
    (op,) = state.journal
    moved = [state.entry("a", None, 2), state.entry("b", record.id, 2)]
    state.remote(2, [later(record, rev=2)], moved)
    state.acknowledge(op, 3, [later(record, version="9" * 32, size=3, rev=3)], [])
    state.merge.release_free()
    assert set(state.listing()) == {"b"}


def test_a_listing_is_believed_about_a_name_that_an_answer_has_left_as_it_was(
    state: State,
) -> None:
    """As that to a rename over the name, which keeps the file that it means."""
    record = state.born("a", 1)
    state.edits.set_attributes(state.listing()["a"], {"mode": 0o600})
    (op,) = state.journal
    state.acknowledge(op, 5, [later(record, rev=5)], [state.entry("a", record.id, 5)])
    state.edits.rename(ROOT, "a", ROOT, "b")
    (refused,) = state.journal
    with state.db.transaction():
        state.journal.remove(refused)
    state.list_directory(ROOT, [("a", record)], 6)
    assert set(state.listing()) == {"a"}


async def test_a_page_is_taken_in_pieces_and_wherever_it_is_cut_short_it_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, moved, written anew and deleted, by another device; others are answered in between."""
    monkeypatch.setattr("cache.namespace.merge.CHANGES_AT_ONCE", 2)
    limits = [None, 1, 2]
    for limit in limits:
        state = State(tmp_path / f"{limit}")
        a, b = state.record(rev=1), state.record(rev=2)
        page = [
            state.change(1, [a], [state.entry("a", a.id, 1)]),
            state.change(2, [b], [state.entry("b", b.id, 2)]),
            state.change(3, [], [state.entry("a", None, 3), state.entry("c", a.id, 3)]),
            state.change(4, [later(b, rev=4, version="9" * 32)], []),  # type: ignore[list-item]  # see `later`
            state.change(5, [later(a, rev=5, links=0)], [state.entry("c", None, 5)]),  # type: ignore[list-item]  # see `later`
            state.change(6, [], [state.entry("b", None, 6), state.entry("a", b.id, 6)]),
            state.change(7, [], []),
        ]
        take = partial(state.merge.take, page, "7", 7, None)
        steps = await steps_of(take, limit)
        assert limit is not None or steps == 3
        if limit is not None:
            state.reopen()
            assert state.merge.cursor() == "0"
            await state.merge.take(page, "7", 7, None)
        assert (state.merge.cursor(), state.merge.seq("e" * 32)) == ("7", 7)
        assert set(state.listing()) == {"a"}
        assert state.tree.node(state.listing()["a"]).version == "9" * 32
        state.close()


# --- reset ----------------------------------------------------------------------------------------


def test_a_directory_stays_where_another_device_moved_it_before_its_making_was_answered(
    state: State,
) -> None:
    node = state.make("a", "directory")
    state.send()
    (create,) = state.journal
    record = state.record(id=node.file, kind="directory", rev=1)
    moved = later(record, rev=2)
    state.remote(1, [record], [state.entry("a", node.file, 1)])
    state.remote(2, [moved], [state.entry("a", None, 2), state.entry("b", node.file, 2)])
    state.acknowledge(create, 1, [record], [state.entry("a", node.file, 1)])
    assert state.listing() == {"b": node.ino}


async def test_after_a_reset_listings_are_believed_again_whatever_their_number(
    state: State,
) -> None:
    record = state.born("a", 50)
    state.born("gone", 51)
    local = state.make("local")
    await state.merge.reset("r", 7, None)
    assert state.tree.node(ROOT).listed is None
    assert (state.merge.seq("e" * 32), state.merge.cursor()) == (7, "r")
    state.list_directory(ROOT, [("a", later(record, mode=0o600, rev=3))], 7)
    assert set(state.listing()) == {"a", "local"}
    assert state.listing()["local"] == local.ino
    assert state.tree.node(state.listing()["a"]).mode == 0o600


def three_directories(state: State) -> dict[int, list[tuple[str, FileRecord]]]:
    """With two files in each; all from a later time than what the server knows after a reset."""
    made = {}
    for number in range(3):
        record = state.born(f"d{number}", 50 + number, kind="directory")
        node = state.tree.live(record.id)
        assert node is not None
        inside = [(f"{name}", state.record(rev=60, mode=0o644)) for name in "ab"]
        state.list_directory(node.ino, inside, 60)
        made[node.ino] = inside
    return made


async def test_after_a_reset_a_directory_that_was_made_here_is_asked_for_too(state: State) -> None:
    """Others have made something in it since the server has it."""
    sent, unsent = state.make("sent", "directory"), state.make("unsent", "directory")
    (create, _) = state.journal
    record = state.record(id=sent.file, kind="directory", rev=1)
    state.acknowledge(create, 1, [record], [state.entry("sent", sent.file, 1)])
    assert state.tree.is_listed(sent.ino)
    await state.merge.reset("r", 7, None)
    assert not state.tree.is_listed(sent.ino)
    assert state.tree.is_listed(unsent.ino)  # nobody else knows of it


async def test_others_are_answered_between_the_pieces_of_a_reset(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.namespace.merge.PIECE", 2)
    three_directories(state)
    assert await steps_of_reset(state) > 10
    assert state.merge.cursor() == "r"
    assert state.db.all("SELECT 1 FROM node WHERE listed > 0 OR rev > 0") == []
    assert state.db.all("SELECT 1 FROM entry WHERE rev > 0") == []


async def test_a_reset_that_was_cut_short_anywhere_is_done_when_it_is_told_again(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.namespace.merge.PIECE", 2)
    before = three_directories(state)
    for limit in range(1, 15):
        for ino, inside in before.items():
            told = [(name, later(record, rev=80, mode=0o600)) for name, record in inside]
            state.list_directory(ino, told, 80)  # type: ignore[arg-type]  # see `later`
        await steps_of_reset(state, limit)
        state.reopen()
        assert state.merge.cursor() != "r"
        await steps_of_reset(state)
        assert state.merge.cursor() == "r"
        for ino, inside in before.items():
            assert state.tree.node(ino).listed is None
            state.list_directory(ino, [(name, later(item, rev=3)) for name, item in inside], 7)  # type: ignore[misc]  # see `later`
            assert [state.tree.node(at).mode for at in state.listing(ino).values()] == [0o644] * 2
        with state.db.transaction():
            state.db.set_meta("cursor", "before")


async def test_what_is_listed_while_a_reset_goes_on_ends_as_the_server_has_it(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with what was not yet doubted it is older; so it is asked for once more."""
    monkeypatch.setattr("cache.namespace.merge.PIECE", 2)
    directories = three_directories(state)
    told = {
        ino: [(name, later(record, rev=3, mode=0o600)) for name, record in inside]
        for ino, inside in directories.items()
    }
    with state.db.transaction():
        for ino in told:
            state.tree.update(ino, listed=None)

    async def look(first: int) -> None:
        """At a directory of which nothing was believed anyway, at one moment of the reset."""
        for _ in range(first):
            await trio.lowlevel.checkpoint()
        for ino, children in told.items():
            state.list_directory(ino, children, 7)  # type: ignore[arg-type]  # see `later`

    for moment in range(15):
        for ino, inside in directories.items():
            state.list_directory(ino, inside, 60)
            with state.db.transaction():
                state.tree.update(ino, listed=None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, moment)
            await state.merge.reset("r", 7, None)
        for ino, children in told.items():
            if state.tree.node(ino).listed is None:
                state.list_directory(ino, children, 7)  # type: ignore[arg-type]  # see `later`
            modes = [state.tree.node(at).mode for at in state.listing(ino).values()]
            assert modes == [0o600] * 2, moment
        with state.db.transaction():
            state.db.run("UPDATE node SET rev = 1, mode = 420 WHERE kind = 'file'")
            state.db.run("UPDATE entry SET rev = 1")


@pytest.mark.parametrize("first", range(12))
async def test_a_listing_that_takes_as_long_as_a_reset_ends_as_the_server_has_it(
    state: State, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """It is merged in pieces, too: some before it is the turn of what they are compared with."""
    monkeypatch.setattr("cache.namespace.merge.PIECE", 2)
    (ino, inside), *_ = three_directories(state).items()
    with state.db.transaction():
        state.tree.update(ino, listed=None)
    file = state.tree.node(ino).file
    directory = state.record(id=file, kind="directory", rev=7)
    records: list[FileRecord] = [later(one, rev=3, mode=0o600) for _, one in inside]  # type: ignore[misc]  # see `later`
    names = [name for name, _ in inside]
    told = [
        Child(state.entry(name, one.id, 3, file), one)
        for name, one in zip(names, records, strict=True)
    ]

    async def listing() -> None:
        for _ in range(first):
            await trio.lowlevel.checkpoint()
        meanwhile = state.listing_merge.begin_listing(ino)
        await trio.lowlevel.checkpoint()
        for child in told:
            if not meanwhile.is_incomplete:
                state.listing_merge.list_some(ino, [child], 7)
            await trio.lowlevel.checkpoint()
        await finished.wait()
        if not state.listing_merge.end_listing(ino, directory, told, 7, meanwhile):
            state.list_directory(ino, list(zip(names, records, strict=True)), 7)

    finished = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listing)
        await state.merge.reset("r", 7, None)
        finished.set()
    assert state.tree.is_listed(ino)
    assert [state.tree.node(at).mode for at in state.listing(ino).values()] == [0o600] * 2


async def test_the_kernel_forgets_names_when_their_directory_is_not_believed_any_more(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer before that is one that is believed, and the kernel keeps it for an hour."""
    monkeypatch.setattr("cache.namespace.merge.PIECE", 2)
    directories = three_directories(state)
    told: dict[tuple[int, str], bool] = {}

    def forget(parent: int, name: str, gone: int = 0) -> None:
        told[parent, name] = state.tree.is_listed(parent)

    monkeypatch.setattr(state.kernel, "forget_entry", forget)
    await state.merge.reset("r", 7, None)
    names = {(ROOT, f"d{number}") for number in range(3)}
    names |= {(ino, name) for ino, inside in directories.items() for name, _ in inside}
    assert told == dict.fromkeys(names, False)


async def test_who_keeps_what_is_on_the_server_hears_of_a_reset(state: State) -> None:
    """Pinned files are to be there offline: their directories have to be listed again before."""
    changed = state.merge.changed
    await state.merge.reset("r", 7, None)
    assert changed.is_set()
    assert not state.merge.changed.is_set()


async def test_what_is_answered_while_a_reset_goes_on_is_ahead_of_its_cursor(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that was deleted here, which a listing from before that would bring back."""
    monkeypatch.setattr("cache.namespace.merge.PIECE", 1)
    record = state.born("a", 1)
    state.unlink("a")
    state.send()
    (unlink,) = state.journal

    async def answer() -> None:
        state.acknowledge(unlink, 9, [later(record, rev=9, links=0)], [state.entry("a", None, 9)])  # type: ignore[list-item]  # see `later`

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await state.merge.reset("r", 7, None)
    state.list_directory(ROOT, [("a", later(record, rev=1))], 8)  # type: ignore[list-item]  # see `later`
    assert state.listing() == {}


def test_what_was_held_back_comes_when_the_operation_is_folded_away(state: State) -> None:
    """Created here and there; deleted here before it was sent: theirs appears."""
    state.make("a")
    theirs = state.born("a", 1)
    state.unlink("a")
    assert state.listing() == {}
    state.merge.release_free()
    state.list_directory(ROOT, [("a", theirs)], 1)
    assert state.tree.node(state.listing()["a"]).file == theirs.id
    assert state.db.all("SELECT * FROM shadow") == []


def test_what_was_held_back_and_is_free_does_not_undo_what_is_newer(state: State) -> None:
    state.make("a")
    theirs = state.record(rev=1)
    state.remote(1, [theirs], [state.entry("a", theirs.id, 1)])
    state.unlink("a")
    moved = [state.entry("a", None, 2), state.entry("b", theirs.id, 2)]
    state.remote(2, [later(theirs, rev=2)], moved)
    state.merge.release_free()
    assert set(state.listing()) == {"b"}


def test_a_change_that_cannot_be_stored_is_asked_for_again(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk under the state database is a reason to wait, not the end of the mount."""
    record = state.born("a", 1)

    def full(key: str, value: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(state.db, "set_meta", full)
        with pytest.raises(NotKept):
            state.merge.apply(
                [state.change(2, [later(record, mode=0o600, rev=2)], [])], "c", 2, None
            )
        with pytest.raises(NotKept):  # the account is looked at by itself, too
            state.merge.adopt(me("anna", "e" * 32))
    assert state.tree.node(state.listing()["a"]).mode == record.mode
    assert state.merge.seq("e" * 32) != 2
