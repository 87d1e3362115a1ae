"""Every rule by which local edits fold: what need not be sent is not sent, what may have reached
the server is not touched, and a refused call leaves nothing."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cache.metadata.operations import Op
from cache.metadata.tree import ROOT, Node
from cache.namespace.vacancies import WINDOW
from remote.protocol.messages import MAX_NAMES
from tests.cache.state import ROOT_FILE, State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def on_server(state: State, name: str, **fields: object) -> Node:
    """A file that the server has, clean here."""
    state.born(name, state.merge.seq("e" * 32) + 1, **fields)
    return state.tree.node(state.listing()[name])


def fails(code: int, work: Callable[[], object]) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011  # the errno is what is asserted
        work()
    assert refused.value.errno == code


# --- what is never sent ---------------------------------------------------------------------------


async def test_created_and_deleted_before_its_turn(state: State) -> None:
    await state.save("a", b"bytes")
    state.unlink("a")
    state.collector.collect()
    assert state.ops() == []
    assert (state.listing(), state.contents.dirty_bytes) == ({}, 0)
    await state.contents.sync_all()
    assert state.spool_files() == []


async def test_an_editors_temporary_file_never_travels(state: State) -> None:
    """Create, write, rename over a file that is new too: one create is left."""
    await state.save("a", b"old")
    await state.save("a.tmp", b"new")
    state.edits.rename(ROOT, "a.tmp", ROOT, "a")
    assert state.ops() == ["create a"]
    (op,) = state.journal
    assert op.ino == state.listing()["a"]
    assert op.has_content


def test_created_and_renamed_is_created_under_the_last_name(state: State) -> None:
    node = state.make("a")
    directory = state.make("d", "directory")
    state.edits.rename(ROOT, "a", directory.ino, "b")
    assert state.ops() == ["create d", "create b"]  # after the directory it is in now
    assert list(state.journal)[1].body.parent == directory.file
    assert state.listing(directory.ino) == {"b": node.ino}


def test_a_directory_with_something_in_it_is_renamed_as_such(state: State) -> None:
    directory = state.make("d", "directory")
    state.make("x", parent=directory.ino)
    state.edits.rename(ROOT, "d", ROOT, "e")
    assert state.ops() == ["create d", "create x", "rename d e"]


def test_a_linked_file_is_not_folded_away(state: State) -> None:
    node = state.make("a")
    state.edits.link(node.ino, ROOT, "b")
    state.unlink("a")
    assert state.ops() == ["create a", "link b", "unlink a"]
    assert (state.tree.node(node.ino).links, state.tree.node(node.ino).live) == (1, True)


async def test_deleting_a_file_drops_what_was_to_be_sent_of_it(state: State) -> None:
    node = on_server(state, "a")
    await state.contents.write(node.ino, 0, b"x")
    state.edits.set_attributes(node.ino, {"mode": 0o600})
    state.edits.set_xattr(node.ino, "user.x", b"1")
    assert state.ops() == ["write", "setattr", "setxattr"]
    state.unlink("a")
    assert state.ops() == ["unlink a"]


async def test_deleting_one_of_two_names_drops_nothing(state: State) -> None:
    node = on_server(state, "a", links=2)
    await state.contents.write(node.ino, 0, b"x")
    state.unlink("a")
    assert state.ops() == ["write", "unlink a"]


# --- rename over: whose identity stays ------------------------------------------------------------


async def test_new_over_old_is_a_version_of_the_old(state: State) -> None:
    old = on_server(state, "a", mode=0o600, xattrs={"user.old": b"1"})
    new = await state.save("tmp", b"new")
    state.edits.set_xattr(new.ino, "user.new", b"2")
    state.edits.rename(ROOT, "tmp", ROOT, "a")
    node = state.tree.node(state.listing()["a"])
    assert (node.ino, node.file, node.links) == (new.ino, old.file, 1)
    assert state.ops() == ["write", "setattr", "setxattr", "setxattr"]
    write, attributes, *xattrs = state.journal
    assert (write.file, write.ino, write.body.base) == (old.file, new.ino, old.version)
    assert attributes.body.attrs == ["mode", "uid", "gid"]
    assert [op.body.xattr for op in xattrs] == ["user.new", "user.old"]
    assert not state.tree.node(old.ino).live


async def test_new_over_old_sends_the_attributes_that_the_old_had_here_only(state: State) -> None:
    """The new file has them too, so they do not differ here: the server has others."""
    old = on_server(state, "a", mode=0o600, xattrs={"user.old": b"1"})
    new = await state.save("tmp", b"new")
    state.edits.set_attributes(old.ino, {"mode": 0o644, "uid": new.uid, "gid": new.gid})
    state.edits.set_xattr(old.ino, "user.old", None)
    state.edits.set_attributes(new.ino, {"mode": 0o644})
    state.edits.rename(ROOT, "tmp", ROOT, "a")
    assert state.ops() == ["write", "setattr", "setxattr"]
    _write, attributes, xattr = state.journal
    assert attributes.body.attrs == ["mode", "uid", "gid"]
    assert xattr.body.xattr == "user.old"


def test_old_over_old_is_a_replace(state: State) -> None:
    over, node = on_server(state, "a"), on_server(state, "b")
    state.edits.rename(ROOT, "b", ROOT, "a")
    assert state.ops() == ["replace b a"]
    (op,) = state.journal
    assert (op.file, op.body.other) == (node.file, over.file)
    assert state.tree.node(node.ino).file == over.file


async def test_new_over_a_linked_file_leaves_the_other_name_its_file(state: State) -> None:
    over = on_server(state, "a", links=2)
    node = await state.save("tmp", b"new")
    state.edits.rename(ROOT, "tmp", ROOT, "a")
    assert state.ops() == ["create tmp", "rename tmp a"]
    assert list(state.journal)[1].body.other == over.file
    assert state.tree.node(state.listing()["a"]).file == node.file
    assert (state.tree.node(over.ino).links, state.tree.node(over.ino).live) == (1, True)


def test_a_symlink_over_a_file_takes_its_place(state: State) -> None:
    over = on_server(state, "a")
    state.make("s", "symlink")
    state.edits.rename(ROOT, "s", ROOT, "a")
    assert state.ops() == ["create s", "rename s a"]
    assert list(state.journal)[1].body.other == over.file


def test_a_directory_over_an_empty_one(state: State) -> None:
    state.make("d", "directory")
    state.make("e", "directory")
    state.send()
    state.edits.rename(ROOT, "d", ROOT, "e")
    assert state.ops() == ["create d", "create e", "rename d e"]
    assert state.tree.node(ROOT).subdirs == 1


async def test_bytes_on_their_way_go_on_under_the_old_identity(state: State) -> None:
    """The snapshot is frozen and being uploaded when the rename comes."""
    on_server(state, "a")
    new = await state.save("tmp", b"new")
    (create,) = state.journal
    with state.db.transaction():
        state.contents.freeze(new.ino, "9" * 32)
        state.journal.rewrite(create, version="9" * 32)
    state.edits.rename(ROOT, "tmp", ROOT, "a")
    write = next(iter(state.journal))
    assert (write.kind, write.version, write.body.renew) == ("write", "9" * 32, True)


# --- what was sent is not changed -----------------------------------------------------------------


SENT: list[tuple[str, Callable[[State, Node], object], list[str]]] = [
    ("unlink", lambda s, n: s.unlink("a"), ["create a", "unlink a"]),
    ("rename", lambda s, n: s.edits.rename(ROOT, "a", ROOT, "b"), ["create a", "rename a b"]),
    ("mode", lambda s, n: s.edits.set_attributes(n.ino, {"mode": 0}), ["create a", "setattr"]),
    ("mtime", lambda s, n: s.edits.set_attributes(n.ino, {"mtime_ns": 1}), ["create a", "setattr"]),
    ("xattr", lambda s, n: s.edits.set_xattr(n.ino, "user.x", b"1"), ["create a", "setxattr"]),
    ("truncate", lambda s, n: s.contents.truncate(n.ino, 9), ["create a", "write"]),
]


@pytest.mark.parametrize(("name", "work", "expected"), SENT, ids=[one[0] for one in SENT])
def test_after_sending(
    state: State, name: str, work: Callable[[State, Node], object], expected: list[str]
) -> None:
    node = state.make("a")
    state.send()
    (create,) = state.journal
    before = msgspec.msgpack.encode(create)
    work(state, node)
    assert state.ops() == expected
    assert msgspec.msgpack.encode(next(iter(state.journal))) == before


def test_a_sent_setattr_is_followed_by_another(state: State) -> None:
    node = on_server(state, "a")
    state.edits.set_attributes(node.ino, {"mode": 0o600})
    state.send()
    state.edits.set_attributes(node.ino, {"mode": 0o640})
    state.edits.set_xattr(node.ino, "user.x", b"1")
    state.send()
    state.edits.set_xattr(node.ino, "user.x", None)
    assert state.ops() == ["setattr", "setattr", "setxattr", "setxattr"]


# --- attributes -----------------------------------------------------------------------------------


def test_attributes_fold_into_one_operation(state: State) -> None:
    node = on_server(state, "a")
    state.edits.set_attributes(node.ino, {"mode": 0o600})
    state.edits.set_attributes(node.ino, {"uid": 7, "atime_ns": 5})
    state.edits.set_attributes(node.ino, {"mode": 0o640})
    (op,) = state.journal
    assert (op.kind, op.body.attrs) == ("setattr", ["mode", "uid"])
    assert (state.tree.node(node.ino).mode, state.tree.node(node.ino).uid) == (0o640, 7)


def test_a_directorys_time_is_set_after_what_was_done_in_it(state: State) -> None:
    """The server moves a directory's mtime with every entry; rsync and tar set it last."""
    directory = state.make("d", "directory")
    for name in ("x", "y"):
        state.make(name, parent=directory.ino)
        state.edits.set_attributes(directory.ino, {"mode": 0o700, "mtime_ns": 5})
    assert state.ops() == ["create d", "create x", "create y", "setattr"]


def test_an_access_time_is_nobodys_business(state: State) -> None:
    node = on_server(state, "a")
    state.edits.set_attributes(node.ino, {"atime_ns": 5})
    assert (state.ops(), state.tree.node(node.ino).atime_ns) == ([], 5)


def test_a_creation_takes_attributes_along(state: State) -> None:
    node = state.make("a")
    state.edits.set_attributes(node.ino, {"mode": 0o600, "mtime_ns": 5})
    state.edits.set_xattr(node.ino, "user.x", b"1")
    assert state.ops() == ["create a"]


async def test_a_write_takes_its_mtime_along_and_nothing_else(state: State) -> None:
    node = on_server(state, "a")
    await state.contents.write(node.ino, 0, b"x")
    state.edits.set_attributes(node.ino, {"mtime_ns": 5})
    assert state.ops() == ["write"]
    state.edits.set_attributes(node.ino, {"mode": 0o600})
    assert state.ops() == ["write", "setattr"]


async def test_a_time_that_the_kernel_has_said_stays_when_more_is_written(state: State) -> None:
    """It does not say it again of what it writes in the same tick of its clock."""
    node = on_server(state, "a")
    state.tick()
    await state.contents.write(node.ino, 0, b"some bytes")
    assert state.tree.node(node.ino).mtime_ns > node.mtime_ns
    state.edits.set_attributes(node.ino, {"mtime_ns": 5})
    await state.contents.write(node.ino, 0, b"others")
    assert (state.tree.node(node.ino).mtime_ns, state.ops()) == (5, ["write"])


def test_one_operation_for_each_extended_attribute(state: State) -> None:
    node = on_server(state, "a")
    for value in (b"1", b"2", None):
        state.edits.set_xattr(node.ino, "user.x", value)
    state.edits.set_xattr(node.ino, "user.y", b"1")
    assert [op.body.xattr for op in state.journal] == ["user.x", "user.y"]
    assert state.tree.xattrs(node.ino) == {"user.y": b"1"}


# --- content --------------------------------------------------------------------------------------


async def test_writes_are_one_operation_until_its_snapshot(state: State) -> None:
    node = on_server(state, "a")
    await state.contents.write(node.ino, 0, b"x")
    await state.contents.write(node.ino, 1, b"y")
    assert state.ops() == ["write"]
    with state.db.transaction():
        state.contents.freeze(node.ino, "9" * 32)
        state.journal.rewrite(next(iter(state.journal)), version="9" * 32)
    await state.contents.write(node.ino, 2, b"z")
    assert state.ops() == ["write", "write"]


async def test_a_handle_whose_file_was_replaced_elsewhere_writes_a_version(state: State) -> None:
    record = state.born("a", 1)
    old = state.listing()["a"]
    state.in_use.add(old)
    state.remote(2, [msgspec.structs.replace(record, version="8" * 32, rev=2)], [])
    await state.contents.write(old, 0, b"still open")
    (op,) = state.journal
    assert (op.kind, op.file, op.ino) == ("write", record.id, old)
    await state.contents.write(state.listing()["a"], 0, b"the new one")
    assert [op.ino for op in state.journal] == [old, state.listing()["a"]]
    state.in_use.clear()
    state.collector.unused(old)
    assert state.tree.find(old) is not None  # the journal needs its bytes


async def test_a_file_deleted_here_takes_bytes_to_its_grave(state: State) -> None:
    node = on_server(state, "a")
    state.in_use.add(node.ino)
    state.unlink("a")
    await state.contents.write(node.ino, 0, b"x")
    assert state.ops() == ["unlink a"]
    assert bytes(await state.contents.read(node.ino, 0, 9, None)) == b"x"


# --- refusals -------------------------------------------------------------------------------------


def test_refusals_leave_nothing(state: State) -> None:
    directory, file = state.make("d", "directory"), state.make("f")
    inner = state.make("x", "directory", parent=directory.ino)
    before = (state.ops(), state.listing(), list(state.journal))
    edits = state.edits
    fails(errno.EEXIST, lambda: state.make("f"))
    fails(errno.EPERM, lambda: state.make("Shared", "directory"))
    fails(errno.ENOENT, lambda: edits.unlink(ROOT, "nothing", directory=False))
    fails(errno.EISDIR, lambda: edits.unlink(ROOT, "d", directory=False))
    fails(errno.ENOTDIR, lambda: edits.unlink(ROOT, "f", directory=True))
    fails(errno.ENOTEMPTY, lambda: edits.unlink(ROOT, "d", directory=True))
    fails(errno.EPERM, lambda: edits.link(directory.ino, ROOT, "l"))
    fails(errno.EEXIST, lambda: edits.link(file.ino, ROOT, "d"))
    fails(errno.EINVAL, lambda: edits.rename(ROOT, "d", inner.ino, "d"))
    fails(errno.EISDIR, lambda: edits.rename(ROOT, "f", ROOT, "d"))
    fails(errno.ENOTDIR, lambda: edits.rename(ROOT, "d", ROOT, "f"))
    fails(errno.EEXIST, lambda: edits.rename(ROOT, "d", ROOT, "f", replace=False))
    fails(errno.EPERM, lambda: edits.rename(ROOT, "d", ROOT, "Shared"))
    fails(errno.ENOTDIR, lambda: state.make("y", parent=file.ino))
    fails(errno.ESTALE, lambda: state.make("y", parent=999))
    assert (state.ops(), state.listing()) == before[:2]
    assert all(one is two for one, two in zip(state.journal, before[2], strict=True))


def test_nothing_is_made_in_a_directory_that_was_removed(state: State) -> None:
    directory = state.make("d", "directory")
    state.in_use.add(directory.ino)
    state.unlink("d")
    fails(errno.ENOENT, lambda: state.make("x", parent=directory.ino))


def test_two_names_of_one_file_renamed_onto_each_other_stay(state: State) -> None:
    node = state.make("a")
    state.edits.link(node.ino, ROOT, "b")
    state.edits.rename(ROOT, "a", ROOT, "b")
    assert set(state.listing()) == {"a", "b"}
    assert state.ops() == ["create a", "link b"]


def test_a_file_has_at_least_as_many_links_as_names(state: State) -> None:
    """A remote and a local rename of one file cross: for a while it has two names here."""
    record = state.born("a", 1)
    state.edits.rename(ROOT, "a", ROOT, "mine")
    entries = [state.entry("theirs", record.id, 2), state.entry("a", None, 2)]
    state.remote(2, [msgspec.structs.replace(record, rev=2)], entries)
    assert set(state.listing()) == {"mine", "theirs"}
    state.unlink("theirs")
    assert state.tree.node(state.listing()["mine"]).live


@pytest.mark.parametrize("way", ["new over old", "old over old", "old over new", "to a free name"])
async def test_after_a_rename_the_name_has_the_inode_of_the_file_that_moved(
    state: State, way: str
) -> None:
    """Whichever file's identity the name keeps."""
    if way == "new over old":
        moved = await state.save("tmp", b"new")
    else:
        moved = on_server(state, "tmp")
    if way.endswith("over old"):
        on_server(state, "a")
    elif way == "old over new":
        await state.save("a")
    state.edits.rename(ROOT, "tmp", ROOT, "a")
    assert state.listing() == {"a": moved.ino}


def test_names_are_given_to_no_directory_and_ten_thousand_of_a_file(state: State) -> None:
    directory, file = state.make("d", "directory"), state.make("f")
    fails(errno.EPERM, lambda: state.edits.link(directory.ino, ROOT, "e"))
    with state.db.transaction():
        state.tree.update(file.ino, links=MAX_NAMES - 1)
    state.edits.link(file.ino, ROOT, "last")
    fails(errno.EMLINK, lambda: state.edits.link(file.ino, ROOT, "one more"))
    gone = state.make("gone")
    state.unlink("gone")
    fails(errno.ENOENT, lambda: state.edits.link(gone.ino, ROOT, "again"))


def test_exchange_swaps_and_counts_directories(state: State) -> None:
    directory, holder = state.make("d", "directory"), state.make("h", "directory")
    file = state.make("f", parent=holder.ino)
    state.edits.exchange(ROOT, "d", holder.ino, "f")
    assert state.listing() == {"d": file.ino, "h": holder.ino}
    assert state.listing(holder.ino) == {"f": directory.ino}
    assert [state.tree.node(ino).subdirs for ino in (ROOT, holder.ino)] == [1, 1]
    op: Op = list(state.journal)[-1]
    assert (op.kind, op.file, op.body.other) == ("exchange", directory.file, file.file)
    fails(errno.EINVAL, lambda: state.edits.exchange(ROOT, "h", holder.ino, "f"))


def test_a_new_file_in_a_setgid_directory_takes_its_group(state: State) -> None:
    directory = state.edits.create(ROOT, "d", "directory", 0o2755, 1, 42)
    file = state.edits.create(directory.ino, "f", "file", 0o644, 1, 1)
    below = state.edits.create(directory.ino, "e", "directory", 0o755, 1, 1)
    assert (file.gid, file.mode, below.gid, below.mode) == (42, 0o644, 42, 0o2755)


def test_the_journal_survives_the_process(state: State) -> None:
    node = state.make("a")
    state.edits.link(node.ino, ROOT, "b")
    before = [msgspec.structs.replace(op, origin="") for op in state.journal]
    state.reopen()
    assert [msgspec.structs.replace(op, origin="") for op in state.journal] == before
    assert state.journal.is_pending(f"E{ROOT_FILE}/b")


def test_a_directory_that_the_server_has_no_more_is_collected_when_it_is_removed_here(
    state: State,
) -> None:
    """The answer to another change of it told so, before the feed took its name."""
    record = state.born("d", 1, kind="directory")
    ino = state.listing()["d"]
    with state.db.transaction():
        state.tree.update(ino, listed=1)
    state.remote(2, [msgspec.structs.replace(record, links=0, rev=2)], [])
    state.unlink("d")
    with state.db.transaction():
        state.journal.remove(*state.journal)
    state.collector.collect()
    assert state.tree.find(ino) is None


def test_of_two_that_are_exchanged_and_kept_each_keeps_its_identity_and_moves(state: State) -> None:
    one, other = on_server(state, "one"), on_server(state, "other")
    state.edits.exchange(ROOT, "one", ROOT, "other")
    assert state.ops() == ["exchange one other"]
    assert state.listing() == {"one": other.ino, "other": one.ino}
    assert [state.tree.node(node.ino).file for node in (one, other)] == [one.file, other.file]


# --- one of two that were exchanged goes a moment later -------------------------------------------


@pytest.mark.parametrize("known", ["nothing", "the new file", "the exchange", "all of it"])
@pytest.mark.parametrize("first", ["a", "tmp"])
async def test_an_exchange_and_a_deletion_are_a_rename_over(
    state: State, first: str, known: str
) -> None:
    """The name keeps its file, whatever the server knows by then."""
    old = on_server(state, "a")
    new = on_server(state, "tmp") if known == "all of it" else await state.save("tmp", b"new")
    if known == "the new file":
        state.send()
    state.edits.exchange(ROOT, first, ROOT, "tmp" if first == "a" else "a")
    if known == "the exchange":
        state.send()
    elif known == "all of it":
        with state.db.transaction():
            state.journal.remove(*state.journal)
    sent = state.ops() if known == "the exchange" else []
    state.unlink("tmp")
    assert state.listing() == {"a": new.ino}
    assert state.tree.node(new.ino).file == old.file
    assert not state.tree.node(old.ino).live
    if known == "nothing":
        assert state.ops() == ["write", "setattr"]
        return
    back = ["exchange tmp a"] if known != "the new file" else []
    made = ["create tmp"] if known == "the new file" else sent
    assert state.ops() == [*made, *back, "replace tmp a"]
    *_, replace = state.journal
    assert (replace.file, replace.body.other) == (new.file, old.file)


def test_of_two_that_were_exchanged_either_may_go(state: State) -> None:
    """The one that stays is the file of the name that it has."""
    one, other = on_server(state, "one"), on_server(state, "other")
    state.edits.exchange(ROOT, "one", ROOT, "other")
    state.unlink("one")
    assert state.ops() == ["replace one other"]
    assert state.listing() == {"other": one.ino}
    assert state.tree.node(one.ino).file == other.file


async def test_an_exchange_stays_where_others_have_spoken_of_its_names(state: State) -> None:
    old, new = on_server(state, "a"), await state.save("tmp", b"new")
    state.edits.exchange(ROOT, "a", ROOT, "tmp")
    state.edits.rename(ROOT, "tmp", ROOT, "x")
    state.edits.rename(ROOT, "x", ROOT, "tmp")
    made = state.ops()
    state.unlink("tmp")
    assert state.ops() == [*made, "exchange tmp a", "replace tmp a"]
    assert state.tree.node(new.ino).file == old.file


WAYS = ["moved", "back", "late", "linked", "directory", "replaced", "new"]


@pytest.mark.parametrize("way", WAYS)
def test_an_exchange_and_a_deletion_that_do_not_belong_together(
    state: State, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = state.make("a") if way == "new" else on_server(state, "a")
    kind = "directory" if way == "directory" else "file"
    other = on_server(state, "tmp", kind=kind)
    state.edits.exchange(ROOT, "a", ROOT, "tmp")
    keeps, goes = other.file, "tmp"
    if way == "moved":
        state.edits.rename(ROOT, "tmp", ROOT, "b")
        goes = "b"
    elif way == "back":
        state.edits.exchange(ROOT, "a", ROOT, "tmp")
        keeps = old.file
    elif way == "late":
        later = time.monotonic() + WINDOW + 1
        monkeypatch.setattr(time, "monotonic", lambda: later)
    elif way == "linked":
        state.edits.link(old.ino, ROOT, "b")
    elif way == "replaced":
        state.unlink("a")
        keeps = state.make("a").file
    state.unlink(goes)
    assert state.tree.node(state.listing()["a"]).file == keeps
    if way != "new":
        assert state.ops()[-1] == f"unlink {goes}"


# --- names that were left a moment ago ------------------------------------------------------------


@pytest.mark.parametrize("way", ["create", "rename", "link"])
async def test_a_name_that_was_left_is_filled_by_its_file(state: State, way: str) -> None:
    """The inodes stay with the bytes; the ids stay with the names."""
    old = on_server(state, "a", xattrs={"user.old": b"1"})
    if way == "create":
        state.edits.rename(ROOT, "a", ROOT, "a~")
        new = await state.save("a", b"new")
    else:
        new = await state.save("tmp", b"new")
        if way == "rename":
            state.edits.rename(ROOT, "a", ROOT, "a~")
        else:
            state.edits.link(old.ino, ROOT, "a~")
        state.edits.rename(ROOT, "tmp", ROOT, "a")
    first = "link a~" if way == "link" else "rename a a~"
    assert state.ops() == [first, "retake a~ a", "write", "setattr", "setxattr"]
    _, retake, write, *_ = state.journal
    assert state.listing() == {"a": new.ino, "a~": old.ino}
    assert (state.tree.node(new.ino).file, write.file, write.ino) == (old.file, old.file, new.ino)
    assert write.body.base == old.version
    assert state.tree.node(old.ino).file == retake.body.other not in (old.file, new.file)
    assert [state.tree.node(ino).links for ino in (old.ino, new.ino)] == [1, 1]


def test_a_hard_link_into_a_name_that_was_left_is_no_save(state: State) -> None:
    """Also when its first name goes at once: it may be one that others know."""
    document, other = on_server(state, "a"), on_server(state, "other")
    state.edits.rename(ROOT, "a", ROOT, "a~")
    state.edits.link(other.ino, ROOT, "a")
    state.unlink("other")
    assert state.ops() == ["rename a a~", "link a", "unlink other"]
    assert state.listing() == {"a": other.ino, "a~": document.ino}
    assert state.tree.node(other.ino).file == other.file


@pytest.mark.parametrize(
    "way", ["undone", "old", "late", "elsewhere", "deleted", "unsent", "linked"]
)
async def test_a_name_that_is_not_filled_by_what_is_new_stays_left(
    state: State, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = (state.make("a") if way == "unsent" else on_server(state, "a")).file
    other = on_server(state, "other") if way == "old" else None
    if way == "elsewhere":
        state.edits.rename(ROOT, "a", state.make("d", "directory").ino, "a")
    else:
        state.edits.rename(ROOT, "a", ROOT, "b")
    if way == "undone":
        state.edits.rename(ROOT, "b", ROOT, "a")
        state.make("b")
    elif other is not None:
        state.edits.rename(ROOT, "other", ROOT, "a")
    elif way == "late":
        later = time.monotonic() + WINDOW + 1
        monkeypatch.setattr(time, "monotonic", lambda: later)
    elif way == "deleted":
        state.unlink("b")
    elif way == "linked":  # and then renamed, by way of a second name
        new = await state.save("tmp", b"new")
        state.edits.link(new.ino, ROOT, "a")
        state.unlink("tmp")
        assert state.listing() == {"a": new.ino, "b": state.listing()["b"]}
        assert state.tree.node(new.ino).file == new.file
    if "a" not in state.listing():
        state.make("a")
    assert not any(op.kind == "retake" for op in state.journal)
    assert (state.tree.node(state.listing()["a"]).file == file) is (way == "undone")
