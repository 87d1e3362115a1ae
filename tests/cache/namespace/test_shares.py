"""Shares of others: where each appears, who may write where, and what is left when it ends."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.metadata.tree import HISTORY, LOCAL, REVOKED, ROOT, Node, Tree, node_from
from cache.recovery.opening import open_database
from remote.protocol.messages import Change, EntryRecord, FileRecord, Role, SharedRoot
from tests.cache.state import State

THEIRS = "f" * 32  # the drive of bob, who shares


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path)
    yield opened
    opened.close()


def folder(state: State, **fields: object) -> FileRecord:
    return state.record(kind="directory", version=None, **fields)


def root(record: FileRecord, name: str | None, role: Role = "editor") -> SharedRoot:
    return SharedRoot(file=record, drive=THEIRS, owner="bob", name=name, role=role)


def share(state: State, *roots: SharedRoot, seq: int = 0) -> None:
    """The feed tells what is shared from now on."""
    state.merge.apply([], f"shares {len(roots)}", seq, list(roots))


def tell(state: State, seq: int, files: list[FileRecord], entries: list[EntryRecord]) -> None:
    """A change in bob's drive."""
    change = Change(drive=THEIRS, seq=seq, at_ns=seq, device="bob's", files=files, entries=entries)
    state.merge.apply([change], f"theirs {seq}", state.merge.seq("e" * 32), None)


def at(state: State, path: str) -> Node:
    node = state.tree.node(ROOT)
    for name in path.split("/"):
        found = state.tree.child(node.ino, name)
        assert found is not None, path
        node = found
    return node


def refusal(work: Callable[..., Any], *args: Any, **more: Any) -> int | None:
    try:
        work(*args, **more)
    except OSError as error:
        return error.errno
    return None


@pytest.fixture
def shared(state: State) -> FileRecord:
    """Shared/bob/proj, listed, with a file `inside` in it."""
    record = folder(state)
    share(state, root(record, "proj"))
    inside = state.record(size=3)
    state.list_directory(at(state, "Shared/bob/proj").ino, [("inside", inside)], 5)
    return record


# --- where it appears ---------------------------------------------------------------------------


def test_a_share_has_a_place_and_the_kernel_is_told(state: State) -> None:
    record = folder(state)
    share(state, root(record, "proj"))
    node = at(state, "Shared/bob/proj")
    assert (node.file, node.drive, node.listed) == (record.id, THEIRS, None)
    assert at(state, "Shared").drive == at(state, "Shared/bob").drive == LOCAL
    assert (ROOT, "Shared") in state.kernel.entries
    assert list(state.journal) == []


async def test_the_place_is_still_there_after_a_restart_and_a_listing_of_the_root(
    state: State, shared: FileRecord
) -> None:
    state.reopen()
    state.list_directory(ROOT, [], 9)
    assert at(state, "Shared/bob/proj/inside").size == 3
    await state.merge.reset("c", 9, None)
    assert at(state, "Shared/bob/proj").listed is None
    state.list_directory(ROOT, [], 9)
    assert at(state, "Shared/bob/proj").file == shared.id


def test_another_name_moves_it_and_keeps_the_inode(state: State, shared: FileRecord) -> None:
    before = at(state, "Shared/bob/proj").ino
    share(state, root(shared, "project"))
    assert at(state, "Shared/bob/project").ino == before
    assert state.listing(at(state, "Shared/bob").ino).keys() == {"project"}
    assert at(state, "Shared/bob/project/inside").size == 3


def test_two_shares_can_swap_names(state: State) -> None:
    one, other = folder(state), folder(state)
    share(state, root(one, "a"), root(other, "b"))
    share(state, root(one, "b"), root(other, "a"))
    assert at(state, "Shared/bob/a").file == other.id
    assert at(state, "Shared/bob/b").file == one.id


def test_a_share_that_comes_to_lie_in_another_has_no_place_of_its_own(state: State) -> None:
    inner, outer = folder(state), folder(state)
    share(state, root(inner, "inner"))
    ino = at(state, "Shared/bob/inner").ino
    share(state, root(outer, "outer"), root(inner, None))
    state.list_directory(at(state, "Shared/bob/outer").ino, [("in it", inner)], 5)
    assert at(state, "Shared/bob/outer/in it").ino == ino
    assert state.listing(at(state, "Shared/bob").ino).keys() == {"outer"}
    share(state, root(inner, "inner"))
    assert at(state, "Shared/bob/inner").ino == ino


def test_changes_in_their_drive_are_counted_apart(state: State, shared: FileRecord) -> None:
    state.born("own", 40)
    new = state.record(rev=7)
    tell(state, 7, [new], [state.entry("new", new.id, 7, shared.id)])
    assert at(state, "Shared/bob/proj/new").file == new.id
    assert (state.merge.seq(THEIRS), state.merge.seq("e" * 32)) == (7, 40)


# --- who may do what ----------------------------------------------------------------------------


def test_a_viewer_is_refused_before_anything_changes(state: State, shared: FileRecord) -> None:
    share(state, root(shared, "proj", "viewer"))
    proj, inside = at(state, "Shared/bob/proj"), at(state, "Shared/bob/proj/inside")
    assert not state.shares.is_writable(inside)
    for work, *args in (
        (state.make, "new", "file", proj.ino),
        (state.unlink, "inside", proj.ino),
        (state.edits.rename, proj.ino, "inside", proj.ino, "other"),
        (state.edits.link, inside.ino, proj.ino, "second"),
        (state.edits.set_attributes, inside.ino, {"mode": 0o600}),
        (state.edits.set_xattr, inside.ino, "user.x", b"1"),
        (state.shares.check_writable, inside),
    ):
        assert refusal(work, *args) == errno.EROFS
    assert list(state.journal) == []
    assert proj.ino in state.kernel.attributes  # so that its mode is asked for again


def test_the_strongest_role_above_counts(state: State) -> None:
    outer, inner = folder(state), folder(state)
    share(state, root(outer, "outer", "viewer"), root(inner, None, "editor"))
    state.list_directory(at(state, "Shared/bob/outer").ino, [("inner", inner)], 5)
    place = at(state, "Shared/bob/outer/inner")
    with state.db.transaction():
        state.tree.update(place.ino, listed=5)
    assert state.make("new", parent=place.ino).drive == THEIRS
    assert refusal(state.make, "new", "file", at(state, "Shared/bob/outer").ino) == errno.EROFS


async def test_an_editor_writes_into_their_drive(state: State, shared: FileRecord) -> None:
    proj = at(state, "Shared/bob/proj")
    node = await state.save("new", parent=proj.ino)
    assert (node.drive, state.ops()) == (THEIRS, ["create new"])


def test_nothing_goes_from_one_drive_to_another(state: State, shared: FileRecord) -> None:
    proj, inside = at(state, "Shared/bob/proj"), at(state, "Shared/bob/proj/inside")
    own = state.make("own")
    assert refusal(state.edits.rename, proj.ino, "inside", ROOT, "mine") == errno.EXDEV
    assert refusal(state.edits.rename, ROOT, "own", proj.ino, "own") == errno.EXDEV
    assert refusal(state.edits.link, inside.ino, ROOT, "mine") == errno.EXDEV
    assert refusal(state.edits.link, own.ino, proj.ino, "own") == errno.EXDEV
    assert refusal(state.edits.exchange, ROOT, "own", proj.ino, "inside") == errno.EXDEV
    assert state.ops() == ["create own"]


def test_a_name_is_not_given_where_others_would_reach_the_file(state: State) -> None:
    """Two folders of bob's, one of which has another in it that is shared by itself."""
    one, other, nested = folder(state), folder(state), folder(state)
    share(state, root(one, "one"), root(other, "other"), root(nested, None, "viewer"))
    file, plain = state.record(), folder(state)
    state.list_directory(
        at(state, "Shared/bob/one").ino, [("f", file), ("nested", nested), ("plain", plain)], 5
    )
    state.list_directory(at(state, "Shared/bob/other").ino, [("g", state.record())], 5)
    for place in ("one/nested", "one/plain"):
        state.list_directory(at(state, f"Shared/bob/{place}").ino, [], 5)
    start, edits = at(state, "Shared/bob/one").ino, state.edits
    for place in ("other", "one/nested"):
        there = at(state, f"Shared/bob/{place}").ino
        assert refusal(edits.link, at(state, "Shared/bob/one/f").ino, there, "x") == errno.EXDEV
        assert refusal(edits.rename, start, "f", there, "x") == errno.EXDEV
        assert refusal(edits.rename, start, "plain", there, "x") == errno.EXDEV
    there = at(state, "Shared/bob/other").ino
    assert refusal(edits.rename, start, "f", there, "g") == errno.EXDEV
    assert refusal(edits.exchange, start, "f", there, "g") == errno.EXDEV
    made = state.make("made here", parent=start)
    assert refusal(edits.rename, start, "made here", there, "x") == errno.EXDEV
    assert [op.ino for op in state.journal] == [made.ino]  # nothing else was to be sent
    edits.link(at(state, "Shared/bob/one/f").ino, at(state, "Shared/bob/one/plain").ino, "x")
    edits.rename(start, "f", at(state, "Shared/bob/one/plain").ino, "f")
    edits.rename(start, "plain", start, "renamed")
    state.make("new", parent=there)


def test_a_file_that_is_shared_alone_gets_no_name_in_a_shared_folder(state: State) -> None:
    single, place = state.record(), folder(state)
    share(state, root(single, "single"), root(place, "place"))
    state.list_directory(at(state, "Shared/bob/place").ino, [], 5)
    there = at(state, "Shared/bob/place").ino
    assert refusal(state.edits.link, at(state, "Shared/bob/single").ino, there, "x") == errno.EXDEV


def test_in_ones_own_drive_names_are_given_anywhere(state: State, shared: FileRecord) -> None:
    inner = state.make("d", "directory")
    state.make("f")
    state.edits.rename(ROOT, "f", inner.ino, "f")
    assert state.tree.child(inner.ino, "f") is not None


def test_what_is_arranged_here_is_not_changed_by_hand(state: State, shared: FileRecord) -> None:
    top, bob = at(state, "Shared"), at(state, "Shared/bob")
    assert refusal(state.make, "x", "file", top.ino) == errno.EROFS
    assert refusal(state.make, "x", "file", bob.ino) == errno.EROFS
    assert refusal(state.edits.rename, bob.ino, "proj", bob.ino, "x") == errno.EROFS
    assert refusal(state.edits.rename, ROOT, "Shared", ROOT, "x") == errno.EPERM
    assert refusal(state.edits.unlink, bob.ino, "proj", directory=True) == errno.EROFS
    assert refusal(state.edits.set_attributes, top.ino, {"mode": 0o777}) == errno.EROFS


def test_a_token_that_may_only_read_writes_nowhere(state: State) -> None:
    with state.db.transaction():
        state.shares.take_scope("read")
    assert refusal(state.make, "x") == errno.EROFS


# --- the end of a share -------------------------------------------------------------------------


def test_the_end_takes_everything(state: State, shared: FileRecord) -> None:
    proj, inside = at(state, "Shared/bob/proj"), at(state, "Shared/bob/proj/inside")
    state.in_use |= {proj.ino, inside.ino}  # the kernel has them, and a handle is open
    share(state)
    assert state.listing() == {}
    state.collector.collect()
    for ino in (proj.ino, inside.ino):
        node = state.tree.node(ino)
        assert (node.live, node.drive) == (False, REVOKED)
        assert refusal(state.shares.check_readable, node) == errno.EACCES
        assert ino in state.kernel.contents
    state.in_use.clear()
    state.reopen()
    state.collector.sweep()
    assert state.tree.find(inside.ino) is None


def test_one_of_two_ends(state: State) -> None:
    one, other = folder(state), folder(state)
    share(state, root(one, "a"), root(other, "b"))
    share(state, root(other, "b"))
    assert state.listing(at(state, "Shared/bob").ino).keys() == {"b"}


def test_what_left_a_shared_folder_is_gone_with_all_below(state: State, shared: FileRecord) -> None:
    sub = folder(state, rev=6)
    tell(state, 6, [sub], [state.entry("sub", sub.id, 6, shared.id)])
    place = at(state, "Shared/bob/proj/sub")
    deep = state.record()
    state.list_directory(place.ino, [("deep", deep)], 6)
    below = at(state, "Shared/bob/proj/sub/deep")
    state.in_use.add(below.ino)
    gone = folder(state, id=sub.id, rev=7, links=0)
    tell(state, 7, [gone], [state.entry("sub", None, 7, shared.id)])
    assert state.listing(at(state, "Shared/bob/proj").ino).keys() == {"inside"}
    assert state.tree.node(below.ino).drive == REVOKED
    back = folder(state, id=sub.id, rev=8)
    tell(state, 8, [back], [state.entry("sub", sub.id, 8, shared.id)])
    assert at(state, "Shared/bob/proj/sub").listed is None  # to be asked for anew


def test_the_end_takes_what_shows_older_versions_too(state: State, shared: FileRecord) -> None:
    """An inode that a newer version has replaced, and NAME@@, may be open and in the page cache."""
    inside = at(state, "Shared/bob/proj/inside")
    state.in_use.add(inside.ino)
    newer = state.record(id=inside.file, rev=6, size=4)
    tell(state, 6, [newer], [])
    with state.db.transaction():
        record = folder(state)
        directory = node_from(record, HISTORY)
        directory.base_file = inside.file
        state.tree.insert(directory)
        version = state.tree.insert(node_from(state.record(size=3), HISTORY))
        state.tree.update(version.ino, base_file=inside.file)
        state.tree.add_entry(directory.ino, "then", version)
    share(state)
    for ino in (inside.ino, directory.ino, version.ino):
        assert refusal(state.shares.check_readable, state.tree.node(ino)) == errno.EACCES
        assert ino in state.kernel.contents
    assert state.tree.is_empty(directory.ino)


async def test_a_copy_that_waits_to_be_sent_outlives_the_file_it_was_made_from(
    state: State, shared: FileRecord
) -> None:
    """`--on-conflict=copy`: its bytes are a version of another file, which leaves the share."""
    proj, inside = at(state, "Shared/bob/proj"), at(state, "Shared/bob/proj/inside")
    copy = state.make("inside (conflicted copy)", parent=proj.ino)
    with state.db.transaction():
        state.tree.update(copy.ino, version=inside.version, base_file=inside.file, base_size=3)
        state.db.run("INSERT INTO manifest VALUES (?, ?)", inside.version, b"")
    gone = state.record(id=inside.file, rev=7, links=0)
    tell(state, 7, [gone], [state.entry("inside", None, 7, shared.id)])
    assert at(state, "Shared/bob/proj/inside (conflicted copy)").live
    assert state.db.one("SELECT 1 FROM manifest WHERE version = ?", inside.version) is not None


async def test_a_file_written_through_an_older_handle_alone_is_not_kept(
    state: State, shared: FileRecord
) -> None:
    """The file that shows was not changed here; the bytes come back from the operation."""
    inside = at(state, "Shared/bob/proj/inside")
    state.in_use.add(inside.ino)
    tell(state, 6, [state.record(id=inside.file, rev=6, size=4)], [])
    await state.contents.write(inside.ino, 0, b"new")
    share(state)
    assert state.listing() == {}
    assert state.ops() == ["write"]


def test_a_share_within_another_ends_with_its_last_place(state: State) -> None:
    """Without a name of its own, and in a folder that nobody has looked into since."""
    outer, file = folder(state), state.record()
    share(state, root(file, "file"))
    node = at(state, "Shared/bob/file")
    share(state, root(outer, "outer"), root(file, None))
    share(state, root(outer, "outer"))
    assert state.tree.live(node.file) is None


def test_a_change_from_before_it_was_shared_does_not_hide_it(
    state: State, shared: FileRecord
) -> None:
    """It left a shared folder and was then shared itself: one page tells both."""
    sub = folder(state, rev=6)
    tell(state, 6, [sub], [state.entry("sub", sub.id, 6, shared.id)])
    moved = folder(state, id=sub.id, rev=7, mode=0o755)
    gone = folder(state, id=sub.id, rev=7, mode=0, links=0)
    change = Change(
        drive=THEIRS,
        seq=7,
        at_ns=7,
        device="bob's",
        files=[gone],
        entries=[state.entry("sub", None, 7, shared.id)],
    )
    state.merge.apply([change], "both", 0, [root(shared, "proj"), root(moved, "sub")])
    node = at(state, "Shared/bob/sub")
    assert (node.mode, node.links, node.live) == (0o755, 1, True)


async def test_what_was_changed_and_not_sent_is_kept_at_the_top(
    state: State, shared: FileRecord
) -> None:
    proj, inside = at(state, "Shared/bob/proj"), at(state, "Shared/bob/proj/inside")
    state.versions.bytes[inside.version or ""] = b"old"
    await state.contents.write(inside.ino, 0, b"new")
    created = await state.save("notes.txt", b"mine", parent=proj.ino)
    directory = state.make("made", "directory", proj.ino)
    await state.save("in it", b"mine too", parent=directory.ino)
    share(state)
    assert state.listing().keys() == {
        "inside (no longer shared)",
        "notes (no longer shared).txt",
        "made (no longer shared)",
    }
    kept = at(state, "notes (no longer shared).txt")
    assert (kept.ino, kept.drive, kept.live) == (created.ino, "e" * 32, True)
    assert at(state, "made (no longer shared)/in it").drive == "e" * 32
    assert bytes(await state.contents.read(inside.ino, 0, 3, None)) == b"new"
    assert len(state.journal) == 4  # the server will refuse them, and the resolver bring them home


def test_a_file_that_was_moved_into_a_folder_made_here_is_not_taken_along(
    state: State, shared: FileRecord
) -> None:
    proj = at(state, "Shared/bob/proj")
    made = state.make("made", "directory", proj.ino)
    state.edits.rename(proj.ino, "inside", made.ino, "inside")
    share(state)
    assert state.listing().keys() == {"made (no longer shared)"}
    assert state.listing(at(state, "made (no longer shared)").ino) == {}


# --- the state of an older program --------------------------------------------------------------


def test_a_database_from_before_shares_is_brought_up_to_date(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.make("kept")
    state.make("symlink", "symlink")
    state.close()
    db = sqlite3.connect(tmp_path / "tree.sqlite", isolation_level=None)
    db.executescript(
        "DROP INDEX node_drive; ALTER TABLE node DROP COLUMN drive; DROP TABLE share;"
        "ALTER TABLE layer DROP COLUMN safe; ALTER TABLE layer DROP COLUMN instead;"
        "DROP TABLE unsettled; ALTER TABLE node DROP COLUMN made_under;"
        "PRAGMA user_version = 1;"
    )
    db.close()
    opened = open_database(tmp_path / "tree.sqlite")
    node = Tree(opened).child(ROOT, "kept")
    assert node is not None
    assert (node.drive, node.kind) == ("e" * 32, "file")
    symlink = Tree(opened).child(ROOT, "symlink")
    assert symlink is not None
    assert symlink.made_under == b""  # nobody knows any more whether it was made here
    assert opened.all("SELECT * FROM share") == []
    opened.close()
    assert list(tmp_path.glob("*quarantine*")) == []
