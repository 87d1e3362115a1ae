"""Every tree operation over HTTP: what it does, and each way it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from remote.protocol import errors, messages
from tests.server.harness import EMPTY, Client, make_chunk, manifest_of, new_id, noise


def content(version: str | None = None, base: str | None = None) -> messages.Content:
    return messages.Content(version=version or new_id(), base=base, manifest=EMPTY)


# --- create -------------------------------------------------------------------------------------


def test_create_tells_the_whole_state(anna: Client) -> None:
    op = anna.create(
        "a", mode=0o640, uid=7, gid=8, mtime_ns=-5, xattrs={"user.x": b"\0\xff"}, content=content()
    )
    change = anna.do(op).change
    file, parent = (next(f for f in change.files if f.id == id) for id in (op.file, op.parent))
    assert (file.kind, file.mode, file.uid, file.gid) == ("file", 0o640, 7, 8)
    assert (file.mtime_ns, file.size, file.links, file.rev) == (-5, 0, 1, change.seq)
    assert file.xattrs == {"user.x": b"\0\xff"}
    assert op.content is not None
    assert file.version == op.content.version
    assert parent.mtime_ns == parent.ctime_ns == change.at_ns
    assert change.entries == [
        messages.EntryRecord(parent=op.parent, name="a", file=op.file, rev=change.seq)
    ]
    assert (change.drive, change.device) == (anna.me.drive, anna.me.device_id)
    assert anna.children() == {"a": file}
    assert anna.file(op.file).file == file


def test_every_kind_can_be_created(anna: Client) -> None:
    anna.make("s", kind="symlink", target="../é")
    anna.make("d", kind="directory")
    anna.make("c", kind="char", rdev=0x103)
    anna.make("b", kind="block", rdev=0x801)
    anna.make("p", kind="fifo")
    anna.make("k", kind="socket")
    found = anna.children()
    kinds = {name: record.kind for name, record in found.items()}
    assert kinds == {
        "s": "symlink",
        "d": "directory",
        "c": "char",
        "b": "block",
        "p": "fifo",
        "k": "socket",
    }
    assert (found["s"].target, found["s"].size) == ("../é", 5)
    assert found["c"].rdev == 0x103


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "file", "content": None},
        {"kind": "directory", "content": content()},
        {"kind": "symlink"},
        {"kind": "symlink", "target": ""},
        {"kind": "symlink", "target": "a\0b"},
        {"kind": "symlink", "target": "x" * 4096},
        {"kind": "directory", "target": "x"},
        {"kind": "fifo", "rdev": 1},
        {"mode": 0o10000},
        {"mode": -1},
        {"uid": 1 << 32},
        {"gid": -1},
        {"mtime_ns": 1 << 63},
        {"kind": "char", "rdev": -1},
    ],
)
def test_create_refuses_nonsense(anna: Client, wrong: dict[str, Any]) -> None:
    assert isinstance(anna.refused(anna.create("a", **wrong)), errors.BadRequest)
    assert anna.children() == {}


@pytest.mark.parametrize("name", [".", "..", "a/b", "/", "a\0", "Shared"])
def test_names_that_cannot_be(anna: Client, name: str) -> None:
    assert isinstance(anna.refused(anna.create(name)), errors.BadName)
    file = anna.make("ok")
    moved = messages.Rename(
        file=file, parent=anna.me.root, name="ok", new_parent=anna.me.root, new_name=name
    )
    assert isinstance(anna.refused(moved), errors.BadName)
    linked = messages.Link(file=file, parent=anna.me.root, name=name)
    assert isinstance(anna.refused(linked), errors.BadName)


def test_names_are_counted_in_bytes_and_kept_as_given(anna: Client) -> None:
    assert isinstance(anna.refused(anna.create("é" * 128)), errors.NameTooLong)
    composed, decomposed = "\u00e9", "e\u0301"
    names = {"é" * 127 + "x", composed, decomposed, "\n", "\\", "con", "shared", " "}
    for name in names:
        anna.make(name)
    assert set(anna.children()) == names


@pytest.mark.parametrize("name", ["x" * 256, "é" * 200, "/" * 5000])
def test_a_name_that_is_too_long_refuses_its_own_operation_only(anna: Client, name: str) -> None:
    """A mount would send a batch that is refused as a whole again for ever."""
    file, root = anna.make("ok"), anna.me.root
    other = anna.make("other")
    moved = {"parent": root, "name": "ok", "file": file}
    ops = [
        anna.create(name),
        messages.Link(file=file, parent=root, name=name),
        messages.Unlink(file=file, parent=root, name=name),
        messages.Rename(**moved, new_parent=root, new_name=name),
        messages.Replace(**moved, new_parent=root, new_name=name, target=other),
        messages.Exchange(**moved, other=other, other_parent=root, other_name=name),
        messages.SetXattr(file=file, name=name, value=b""),
        anna.create("x", xattrs={name: b""}),
    ]
    *refused, done = anna.batch(*ops, anna.create("done"))
    assert {type(item) for item in refused} == {errors.NameTooLong}
    assert all(name not in item.message for item in refused)
    assert isinstance(done, messages.Applied)


def test_other_nonsense_refuses_its_own_operation_only(anna: Client) -> None:
    file, root = anna.make("ok"), anna.me.root
    huge = anna.create("x", mtime_ns=(1 << 64) - 1)
    results = anna.batch(
        anna.create(""),
        messages.SetXattr(file=file, name="", value=b""),
        messages.SetXattr(file=file, name="user.x", value=bytes(65537)),
        messages.Unlink(file=file, parent=root, name=""),
        huge,
        anna.create("done"),
    )
    assert [type(item) for item in results] == [
        errors.BadName,
        errors.BadName,
        errors.TooLarge,
        errors.Stale,
        errors.BadRequest,
        messages.Applied,
    ]


def test_shared_is_only_reserved_at_the_root(anna: Client) -> None:
    below = anna.mkdir("d")
    anna.make("Shared", below)
    assert set(anna.children(below)) == {"Shared"}


def test_create_over_something_is_refused(anna: Client) -> None:
    file = anna.make("a")
    assert isinstance(anna.refused(anna.create("a")), errors.Exists)
    assert isinstance(anna.refused(anna.create("b", file=file)), errors.Exists)
    assert isinstance(anna.refused(anna.create("b", parent=file)), errors.NotADirectory)
    assert isinstance(anna.refused(anna.create("b", parent=new_id())), errors.NotFound)


def test_a_deleted_directory_takes_no_more_entries(anna: Client) -> None:
    gone = anna.mkdir("d")
    anna.do(messages.Unlink(file=gone, parent=anna.me.root, name="d"))
    assert isinstance(anna.refused(anna.create("a", parent=gone)), errors.NotFound)


def test_attributes_have_limits(anna: Client) -> None:
    assert isinstance(anna.refused(anna.create("a", xattrs={"": b""})), errors.BadName)
    assert isinstance(anna.refused(anna.create("a", xattrs={"é" * 128: b""})), errors.NameTooLong)
    large = {"user.a": bytes(65537)}
    assert isinstance(anna.refused(anna.create("a", xattrs=large)), errors.TooLarge)
    many = {f"user.{n}": bytes(65536) for n in range(17)}
    assert isinstance(anna.refused(anna.create("a", xattrs=many)), errors.TooLarge)


# --- write --------------------------------------------------------------------------------------


def test_write_makes_a_version_current_and_keeps_the_old(anna: Client) -> None:
    chunk = make_chunk(noise(1000))
    file, first = anna.store("a", chunk)
    second = new_id()
    applied = anna.do(messages.Write(file=file, content=content(second, first), mtime_ns=77))
    assert applied.overtaken is None
    record = anna.file(file).file
    assert (record.version, record.size, record.mtime_ns) == (second, 0, 77)
    page = anna.request("GET", f"/v1/files/{file}/versions", messages.VersionsPage)
    assert [v.id for v in page.versions] == [second, first]
    assert [v.size for v in page.versions] == [0, 1000]
    assert {v.device for v in page.versions} == {"laptop"}
    assert anna.file(file, version=first, manifest=True).manifest == manifest_of(chunk)


def test_the_last_writer_wins_and_is_told(anna: Client) -> None:
    file = anna.make("a")
    first = anna.file(file).file.version
    mine, theirs = new_id(), new_id()
    anna.do(messages.Write(file=file, content=content(theirs, first), mtime_ns=1))
    applied = anna.do(messages.Write(file=file, content=content(mine, first), mtime_ns=2))
    assert applied.overtaken == theirs
    assert anna.file(file).file.version == mine
    page = anna.request("GET", f"/v1/files/{file}/versions", messages.VersionsPage)
    assert {v.id for v in page.versions} == {first, mine, theirs}


def test_write_refusals(anna: Client) -> None:
    file, directory = anna.make("a"), anna.mkdir("d")
    link = anna.make("l", kind="symlink", target="a")
    version = anna.file(file).file.version

    def write(file: str, version: str | None = None) -> messages.Write:
        return messages.Write(file=file, content=content(version), mtime_ns=1)

    assert isinstance(anna.refused(write(directory)), errors.IsADirectory)
    assert isinstance(anna.refused(write(link)), errors.BadRequest)
    assert isinstance(anna.refused(write(new_id())), errors.NotFound)
    assert isinstance(anna.refused(write(file, version)), errors.Exists)


def test_a_write_that_crossed_a_delete_is_refused_and_its_sender_can_bring_the_file_back(
    anna: Client,
) -> None:
    file, _ = anna.store("a", make_chunk(b"old"))
    anna.do(messages.Unlink(file=file, parent=anna.me.root, name="a"))
    version = new_id()
    write = messages.Write(file=file, content=content(version), mtime_ns=1)
    assert isinstance(anna.refused(write), errors.NotFound)
    anna.do(messages.Link(file=file, parent=anna.me.root, name="back"))
    anna.do(messages.Write(file=file, content=content(version), mtime_ns=1))
    assert anna.children()["back"].version == version


# --- link, unlink -------------------------------------------------------------------------------


def test_hard_links_are_names_of_one_file(anna: Client) -> None:
    file, below = anna.make("a"), anna.mkdir("d")
    change = anna.do(messages.Link(file=file, parent=below, name="b")).change
    assert {f.id for f in change.files} == {file, below}
    assert anna.children(below)["b"].links == 2
    anna.do(messages.Unlink(file=file, parent=anna.me.root, name="a"))
    assert anna.file(file).file.links == 1
    assert set(anna.children()) == {"d"}


def test_link_refusals(anna: Client) -> None:
    file, directory = anna.make("a"), anna.mkdir("d")
    root = anna.me.root
    assert isinstance(anna.refused(messages.Link(file=file, parent=root, name="d")), errors.Exists)
    linked = messages.Link(file=directory, parent=root, name="e")
    assert isinstance(anna.refused(linked), errors.IsADirectory)
    assert isinstance(
        anna.refused(messages.Link(file=file, parent=file, name="e")), errors.NotADirectory
    )
    assert isinstance(
        anna.refused(messages.Link(file=new_id(), parent=root, name="e")), errors.NotFound
    )


def test_unlinking_the_last_name_puts_a_file_in_the_trash(anna: Client) -> None:
    file = anna.make("a")
    change = anna.do(messages.Unlink(file=file, parent=anna.me.root, name="a")).change
    assert next(f for f in change.files if f.id == file).links == 0
    assert [(e.name, e.file) for e in change.entries] == [("a", None)]
    assert anna.children() == {}
    assert anna.file(file).file.links == 0


def test_unlink_refusals(anna: Client) -> None:
    root, directory = anna.me.root, anna.mkdir("d")
    inside = anna.make("x", directory)
    gone = messages.Unlink(file=directory, parent=root, name="d")
    assert isinstance(anna.refused(gone), errors.NotEmpty)
    other = messages.Unlink(file=inside, parent=root, name="d")
    assert isinstance(anna.refused(other), errors.Stale)
    missing = messages.Unlink(file=inside, parent=root, name="nothing")
    assert isinstance(anna.refused(missing), errors.Stale)
    nowhere = messages.Unlink(file=inside, parent=new_id(), name="x")
    assert isinstance(anna.refused(nowhere), errors.NotFound)
    anna.do(messages.Unlink(file=inside, parent=directory, name="x"))
    anna.do(gone)


# --- rename -------------------------------------------------------------------------------------


def rename(anna: Client, file: str, name: str, new_name: str, **more: Any) -> messages.Rename:
    where = {"parent": anna.me.root, "new_parent": anna.me.root} | more
    return messages.Rename(file=file, name=name, new_name=new_name, **where)


def test_rename_moves_an_entry(anna: Client) -> None:
    file, below = anna.make("a"), anna.mkdir("d")
    change = anna.do(rename(anna, file, "a", "b", new_parent=below)).change
    assert {f.id for f in change.files} == {file, below, anna.me.root}
    assert {(e.parent, e.name): e.file for e in change.entries} == {
        (anna.me.root, "a"): None,
        (below, "b"): file,
    }
    assert set(anna.children()) == {"d"}
    assert set(anna.children(below)) == {"b"}


def test_rename_replaces_only_what_the_sender_saw(anna: Client) -> None:
    file, there, other = anna.make("a"), anna.make("b"), anna.make("c")
    assert isinstance(anna.refused(rename(anna, file, "a", "b")), errors.Exists)
    assert isinstance(anna.refused(rename(anna, file, "a", "b", replaces=other)), errors.Exists)
    change = anna.do(rename(anna, file, "a", "b", replaces=there)).change
    assert next(f for f in change.files if f.id == there).links == 0
    assert {name: f.id for name, f in anna.children().items()} == {"b": file, "c": other}


def test_rename_to_a_name_that_became_free_meanwhile(anna: Client) -> None:
    file, there = anna.make("a"), anna.make("b")
    anna.do(messages.Unlink(file=there, parent=anna.me.root, name="b"))
    anna.do(rename(anna, file, "a", "b", replaces=there))
    assert anna.children()["b"].id == file


def test_rename_of_directories(anna: Client) -> None:
    outer = anna.mkdir("outer")
    inner = anna.mkdir("inner", outer)
    loop = rename(anna, outer, "outer", "x", new_parent=inner)
    assert isinstance(anna.refused(loop), errors.WouldLoop)
    itself = rename(anna, outer, "outer", "x", new_parent=outer)
    assert isinstance(anna.refused(itself), errors.WouldLoop)
    full, empty, file = anna.mkdir("full"), anna.mkdir("empty"), anna.make("file")
    anna.make("x", full)
    over_full = rename(anna, empty, "empty", "full", replaces=full)
    assert isinstance(anna.refused(over_full), errors.NotEmpty)
    over_file = rename(anna, empty, "empty", "file", replaces=file)
    assert isinstance(anna.refused(over_file), errors.NotADirectory)
    over_directory = rename(anna, file, "file", "empty", replaces=empty)
    assert isinstance(anna.refused(over_directory), errors.IsADirectory)
    anna.do(rename(anna, full, "full", "empty", replaces=empty))
    assert anna.children()["empty"].id == full
    assert set(anna.children(full)) == {"x"}


def test_rename_refusals(anna: Client) -> None:
    file = anna.make("a")
    other = anna.make("other")
    assert isinstance(anna.refused(rename(anna, new_id(), "a", "b")), errors.NotFound)
    assert isinstance(anna.refused(rename(anna, other, "a", "b")), errors.Stale)
    assert isinstance(anna.refused(rename(anna, file, "x", "b")), errors.Stale)
    nowhere = rename(anna, file, "a", "b", new_parent=new_id())
    assert isinstance(anna.refused(nowhere), errors.NotFound)
    into_file = rename(anna, file, "a", "b", new_parent=file)
    assert isinstance(anna.refused(into_file), errors.NotADirectory)
    long = rename(anna, file, "a", "é" * 200)
    assert isinstance(anna.refused(long), errors.NameTooLong)


def test_rename_between_names_of_one_file_does_nothing(anna: Client) -> None:
    file = anna.make("a")
    anna.do(messages.Link(file=file, parent=anna.me.root, name="b"))
    change = anna.do(rename(anna, file, "a", "b", replaces=file)).change
    assert {e.name: e.file for e in change.entries} == {"a": file, "b": file}
    anna.do(rename(anna, file, "a", "a"))
    assert set(anna.children()) == {"a", "b"}
    assert anna.file(file).file.links == 2


# --- replace, exchange --------------------------------------------------------------------------


def replace(anna: Client, file: str, target: str) -> messages.Replace:
    root = anna.me.root
    return messages.Replace(
        file=file, parent=root, name="new", new_parent=root, new_name="doc", target=target
    )


def test_replace_keeps_the_identity_and_history_of_the_name(anna: Client) -> None:
    chunk = make_chunk(noise(5000))
    target, old = anna.store("doc", make_chunk(b"old"))
    file, version = anna.store("new", chunk)
    anna.do(messages.SetAttr(file=file, mode=0o600, uid=3, mtime_ns=99))
    anna.do(messages.SetXattr(file=file, name="user.a", value=b"1"))
    anna.do(messages.SetXattr(file=target, name="user.b", value=b"2"))
    change = anna.do(replace(anna, file, target)).change
    assert {(e.name, e.file) for e in change.entries} == {("new", None), ("doc", target)}
    record = anna.children()["doc"]
    assert (record.id, record.version, record.size) == (target, version, 5000)
    assert (record.mode, record.uid, record.mtime_ns) == (0o600, 3, 99)
    assert record.xattrs == {"user.a": b"1"}
    assert set(anna.children()) == {"doc"}
    assert anna.file(file).file.links == 0
    page = anna.request("GET", f"/v1/files/{target}/versions", messages.VersionsPage)
    assert {v.id for v in page.versions} == {old, version}
    located = anna.locate(file=target, version=version, chunks=[chunk.id]).chunks[0]
    assert anna.http.get(located.url).content == chunk.data


def test_replace_refusals(anna: Client) -> None:
    target, file = anna.make("doc"), anna.make("new")
    assert isinstance(anna.refused(replace(anna, target, target)), errors.Stale)
    assert isinstance(anna.refused(replace(anna, file, file)), errors.Stale)
    anna.do(messages.Unlink(file=file, parent=anna.me.root, name="new"))
    directory = anna.mkdir("new")
    assert isinstance(anna.refused(replace(anna, directory, target)), errors.IsADirectory)


def test_exchange_swaps_what_two_names_mean(anna: Client) -> None:
    file, directory, root = anna.make("a"), anna.mkdir("d"), anna.me.root
    inner = anna.make("x", directory)

    def swap(file: str, name: str, other: str, other_name: str, other_parent: str = root) -> Any:
        return messages.Exchange(
            file=file,
            parent=root,
            name=name,
            other=other,
            other_parent=other_parent,
            other_name=other_name,
        )

    anna.do(swap(file, "a", directory, "d"))
    found = anna.children()
    assert (found["a"].id, found["d"].id) == (directory, file)
    loop = swap(directory, "a", inner, "x", directory)
    assert isinstance(anna.refused(loop), errors.WouldLoop)
    assert isinstance(anna.refused(swap(file, "a", directory, "d")), errors.Stale)
    anna.do(swap(file, "d", inner, "x", directory))
    assert anna.children()["d"].id == inner
    assert anna.children(directory)["x"].id == file
    assert anna.file(file).file.links == 1


# --- attributes ---------------------------------------------------------------------------------


def test_setattr_changes_what_it_names(anna: Client) -> None:
    file = anna.make("a", mode=0o644, uid=1, gid=2, mtime_ns=3)
    before = anna.file(file).file
    anna.do(messages.SetAttr(file=file, gid=9))
    after = anna.file(file).file
    assert (after.mode, after.uid, after.gid, after.mtime_ns) == (0o644, 1, 9, 3)
    assert after.ctime_ns > before.ctime_ns
    anna.do(messages.SetAttr(file=anna.me.root, mode=0o700))
    assert anna.file(anna.me.root).file.mode == 0o700
    wrong = messages.SetAttr(file=file, mode=0o200000)
    assert isinstance(anna.refused(wrong), errors.BadRequest)
    assert isinstance(anna.refused(messages.SetAttr(file=new_id(), mode=0)), errors.NotFound)


def test_setxattr_sets_and_removes(anna: Client) -> None:
    file = anna.make("a")
    anna.do(messages.SetXattr(file=file, name="user.a", value=b"1"))
    anna.do(messages.SetXattr(file=file, name="user.b", value=b""))
    anna.do(messages.SetXattr(file=file, name="user.a", value=b"2"))
    assert anna.file(file).file.xattrs == {"user.a": b"2", "user.b": b""}
    anna.do(messages.SetXattr(file=file, name="user.a", value=None))
    anna.do(messages.SetXattr(file=file, name="user.never", value=None))
    assert anna.file(file).file.xattrs == {"user.b": b""}
    for number in range(15):
        anna.do(messages.SetXattr(file=file, name=f"user.{number}", value=bytes(65536)))
    anna.do(messages.SetXattr(file=file, name="user.15", value=bytes(65536)))
    full = messages.SetXattr(file=file, name="user.16", value=b"x")
    assert isinstance(anna.refused(full), errors.TooLarge)


# --- listing ------------------------------------------------------------------------------------


def test_children_come_in_pages_by_name(anna: Client) -> None:
    names = [f"{n:03}" for n in range(25)] + ["Z", "é", "z"]
    anna.batch(*[anna.create(name) for name in reversed(names)])
    path = f"/v1/files/{anna.me.root}/children"
    first = anna.request("GET", path, messages.ChildrenPage, limit=20)
    assert [c.entry.name for c in first.children] == sorted(names)[:20]
    assert first.next is not None
    assert first.as_of == anna.refresh().seq
    second = anna.request("GET", path, messages.ChildrenPage, limit=20, cursor=first.next)
    assert [c.entry.name for c in second.children] == sorted(names)[20:]
    assert second.next is None
    assert second.directory.id == anna.me.root


def test_listing_refusals(anna: Client) -> None:
    file = anna.make("a")
    for path, status in (
        (f"/v1/files/{file}/children", 409),
        (f"/v1/files/{new_id()}/children", 404),
        ("/v1/files/nonsense/children", 404),
        (f"/v1/files/{anna.me.root}/children?cursor=%21", 400),
        (f"/v1/files/{anna.me.root}/children?limit=x", 400),
        (f"/v1/files/{file}?version={new_id()}", 404),
        (f"/v1/files/{file}/versions?cursor=AAAA", 400),
    ):
        got = anna.http.get(path, headers={"Authorization": f"Bearer {anna.token}"})
        assert got.status_code == status, path
        assert got.json()["type"]
