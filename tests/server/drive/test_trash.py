"""The trash: what is shown in it, who may see it, and what emptying it takes away."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from sqlalchemy import Table, func, insert, select, update

from remote.protocol import errors, messages
from remote.protocol.account_messages import (
    EmptiedReply,
    EmptyTrash,
    Invite,
    MakeToken,
    ShareRequest,
    SharesReply,
    TokenReply,
    TrashItem,
    TrashPage,
)
from server.drive.trash import TOGETHER_NS
from server.metadata import schema
from tests.server.harness import Client, Failed, Running, make_chunk, manifest_of, new_id

DAY = 86_400 * 10**9


def trash(client: Client, **query: object) -> list[TrashItem]:
    """The whole listing, over as many pages as it takes."""
    found: list[TrashItem] = []
    cursor = None
    while True:
        page = client.request("GET", "/v1/trash", TrashPage, cursor=cursor, **query)
        found += page.items
        cursor = page.next
        if cursor is None:
            return found


def empty(client: Client, *files: str) -> EmptiedReply:
    wanted = EmptyTrash(files=list(files) or None)
    return client.request("POST", "/v1/trash/empty", EmptiedReply, wanted)


def remove(client: Client, file: str, name: str, parent: str | None = None) -> None:
    client.do(messages.Unlink(file=file, parent=parent or client.me.root, name=name))


def remove_tree(client: Client, directory: str, name: str, parent: str | None = None) -> None:
    """As `rm -r` does it."""
    for inside, record in client.children(directory).items():
        if record.kind == "directory":
            remove_tree(client, record.id, inside, directory)
        else:
            remove(client, record.id, inside, directory)
    remove(client, directory, name, parent)


def backdate(server: Running, file: str, by_ns: int) -> None:
    """Let `file` have been deleted earlier."""
    table = schema.files
    earlier = {"trashed_ns": table.c.trashed_ns - by_ns}
    with server.app.service.db.write() as conn:
        conn.execute(update(table).where(table.c.id == file).values(**earlier))


def rows_of(server: Running, table: Table, **where: object) -> int:
    with server.app.service.db.read() as conn:
        query = select(func.count()).select_from(table)
        for column, value in where.items():
            query = query.where(table.c[column] == value)
        return conn.execute(query).scalar_one()


# --- listing ------------------------------------------------------------------------------------


def test_what_was_deleted_is_listed_newest_first(anna: Client) -> None:
    folder = anna.mkdir("letters")
    before = time.time_ns()
    draft, final = anna.make("draft", folder), anna.make("final")
    remove(anna, draft, "draft", folder)
    remove(anna, final, "final")
    after = time.time_ns()
    second, first = trash(anna)
    assert (first.file.id, first.path, first.parent, first.name) == (
        draft,
        "letters/draft",
        folder,
        "draft",
    )
    assert (second.file.id, second.path, second.file.links) == (final, "final", 0)
    assert before < first.trashed_ns < second.trashed_ns < after
    assert first.expires_ns == first.trashed_ns + 30 * DAY
    assert (first.inside, second.inside) == (0, 0)


def test_a_page_goes_on_where_the_one_before_ended(anna: Client) -> None:
    made = [anna.create(f"{number:03}") for number in range(25)]
    anna.batch(*made)
    anna.batch(*[messages.Unlink(file=op.file, parent=op.parent, name=op.name) for op in made])
    found = [item.file.id for item in trash(anna, limit=10)]
    assert len(found) == 25
    assert set(found) == {op.file for op in made}
    with pytest.raises(Failed) as failed:
        anna.request("GET", "/v1/trash", TrashPage, cursor="nonsense")
    assert isinstance(failed.value.problem, errors.BadRequest)


def test_what_was_deleted_with_its_directory_is_shown_in_it(server: Running, anna: Client) -> None:
    outer = anna.mkdir("outer")
    inner = anna.mkdir("inner", outer)
    deep = anna.make("deep", inner)
    flat, early = anna.make("flat", outer), anna.make("early", outer)
    remove(anna, early, "early", outer)
    backdate(server, early, 2 * TOGETHER_NS)
    remove_tree(anna, outer, "outer")
    top, alone = trash(anna)
    assert (top.file.id, top.inside) == (outer, 3)
    assert (alone.file.id, alone.path) == (early, "outer/early")
    within = trash(anna, parent=outer)
    assert {item.path: item.inside for item in within} == {"outer/flat": 0, "outer/inner": 1}
    assert {item.file.id for item in within} == {flat, inner}
    assert [item.file.id for item in trash(anna, parent=inner)] == [deep]


def test_of_a_directory_in_the_tree_everything_deleted_from_it_is_shown(
    server: Running, anna: Client
) -> None:
    folder = anna.mkdir("folder")
    one, two = anna.make("one", folder), anna.make("two", folder)
    remove(anna, one, "one", folder)
    backdate(server, one, 2 * TOGETHER_NS)
    remove(anna, two, "two", folder)
    remove(anna, folder, "folder")
    assert [item.name for item in trash(anna)] == ["folder", "one"]
    anna.do(messages.Recover(file=folder))
    assert [item.name for item in trash(anna, parent=folder)] == ["two", "one"]
    assert [item.name for item in trash(anna)] == ["two", "one"]


@pytest.mark.slow
def test_the_count_of_what_is_inside_ends_somewhere(
    anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.drive.trash.MAX_INSIDE", 5)
    for name, inside in (("full", 5), ("overfull", 9)):
        folder = anna.mkdir(name)
        for number in range(inside):
            remove(anna, anna.make(f"{number}", folder), f"{number}", folder)
        remove(anna, folder, name)
    assert [item.inside for item in trash(anna)] == [5, 5]


def test_saving_by_rename_leaves_nothing_to_see(anna: Client) -> None:
    target, file, root = anna.make("doc"), anna.make("new"), anna.me.root
    op = messages.Replace(
        file=file, parent=root, name="new", new_parent=root, new_name="doc", target=target
    )
    anna.do(op)
    assert trash(anna) == []


def test_paths_lead_through_what_is_still_known(server: Running, anna: Client) -> None:
    outer = anna.mkdir("outer")
    inner = anna.mkdir("inner", outer)
    file = anna.make("a", inner)
    remove(anna, file, "a", inner)
    backdate(server, file, 2 * TOGETHER_NS)
    root = anna.me.root
    anna.do(
        messages.Rename(file=outer, parent=root, name="outer", new_parent=root, new_name="renamed")
    )
    remove_tree(anna, outer, "renamed")
    assert {item.path for item in trash(anna)} == {"renamed", "renamed/inner/a"}
    empty(anna, outer)
    assert [item.path for item in trash(anna)] == ["…/a"]


def test_an_accounts_own_limit_says_how_long(server: Running, anna: Client) -> None:
    remove(anna, anna.make("a"), "a")
    table = schema.accounts
    for days, kept in ((3, 3), (1_000_000, 36_500)):
        with server.app.service.db.write() as conn:
            own = table.c.name == anna.me.account
            conn.execute(update(table).where(own).values(keep_days=days))
        (item,) = trash(anna)
        assert item.expires_ns == item.trashed_ns + kept * DAY


def test_the_trash_is_its_owners_alone(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("folder")
    wanted = ShareRequest(users=[Invite(ben.me.account, "editor")])
    anna.request("POST", f"/v1/files/{folder}/share", SharesReply, wanted)
    file = anna.make("a", folder)
    remove(ben, file, "a", folder)
    assert [item.file.id for item in trash(anna)] == [file]
    assert trash(ben) == []
    for parent, kind in (
        (folder, errors.Forbidden),
        (file, errors.NotFound),
        (new_id(), errors.NotFound),
        ("x", errors.NotFound),
    ):
        with pytest.raises(Failed) as failed:
            trash(ben, parent=parent)
        assert isinstance(failed.value.problem, kind)
    assert empty(ben, file) == EmptiedReply(files=0, more=False)
    assert empty(ben) == EmptiedReply(files=0, more=False)
    assert [item.file.id for item in trash(anna)] == [file]
    with pytest.raises(Failed) as failed:
        trash(anna, parent=file)
    assert isinstance(failed.value.problem, errors.NotADirectory)


@pytest.mark.parametrize("weak", [{"scope": "read"}, {"folder": "root"}])
def test_a_token_for_less_has_no_trash(anna: Client, weak: dict[str, Any]) -> None:
    file = anna.make("a")
    remove(anna, file, "a")
    weak = {"folder": anna.me.root} if "folder" in weak else weak
    wanted = MakeToken(name="script", **weak)
    token = anna.request("POST", "/v1/devices", TokenReply, wanted).token
    script = Client(anna.http, token)
    for work in (lambda: trash(script), lambda: empty(script), lambda: empty(script, file)):
        with pytest.raises(Failed) as failed:
            work()
        assert isinstance(failed.value.problem, errors.Forbidden)
    assert len(trash(anna)) == 1


# --- emptying -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_emptying_takes_a_file_and_all_that_is_its(server: Running, anna: Client) -> None:
    file, version = anna.store("a", make_chunk(b"one"))
    kept = anna.make("kept")
    anna.do(messages.SetXattr(file=file, name="user.a", value=b"1"))
    for item in (file, kept):
        wanted = ShareRequest(users=[Invite(server.account("ben").me.account, "viewer")])
        anna.request("POST", f"/v1/files/{item}/share", SharesReply, wanted)
    link = {"id": new_id(), "secret_sha256": bytes.fromhex(new_id()), "file": file}
    by = {"drive": anna.me.drive, "created_ns": 1, "downloads": 0}
    with server.app.service.db.write() as conn:
        me = select(schema.drives.c.owner).where(schema.drives.c.id == anna.me.drive)
        row = link | by | {"created_by": conn.execute(me).scalar_one()}
        conn.execute(insert(schema.links), row)
    remove(anna, file, "a")
    remove(anna, kept, "kept")
    changes = rows_of(server, schema.changes, drive=anna.me.drive)
    answers = rows_of(server, schema.idempotency, device=anna.me.device_id)
    assert empty(anna, file) == EmptiedReply(files=1, more=False)
    assert [item.file.id for item in trash(anna)] == [kept]
    for table in (schema.xattrs, schema.grants, schema.links, schema.versions):
        assert rows_of(server, table, file=file) == 0, table.name
    assert rows_of(server, schema.version_chunks, version=version) == 0
    assert rows_of(server, schema.grants, file=kept) == 1
    assert rows_of(server, schema.changes, drive=anna.me.drive) == changes
    assert rows_of(server, schema.idempotency, device=anna.me.device_id) == answers
    assert isinstance(anna.refused(messages.Recover(file=file)), errors.NotFound)
    with pytest.raises(Failed) as failed:
        anna.file(file)
    assert isinstance(failed.value.problem, errors.NotFound)


def test_what_another_file_took_over_stays(server: Running, anna: Client) -> None:
    chunk, root = make_chunk(b"two"), anna.me.root
    target, _ = anna.store("doc", make_chunk(b"one"))
    file, version = anna.store("new", chunk)
    anna.do(
        messages.Replace(
            file=file, parent=root, name="new", new_parent=root, new_name="doc", target=target
        )
    )
    assert empty(anna) == EmptiedReply(files=1, more=False)
    assert rows_of(server, schema.files, id=file) == 0
    located = anna.locate(file=target, version=version, chunks=[chunk.id]).chunks[0]
    assert anna.http.get(located.url).content == b"two"


def test_emptying_a_directory_takes_what_was_deleted_with_it(server: Running, anna: Client) -> None:
    folder, inner = anna.mkdir("folder"), None
    inner = anna.mkdir("inner", folder)
    inside = [anna.make("a", folder), anna.make("b", inner)]
    early = anna.make("early", folder)
    remove(anna, early, "early", folder)
    backdate(server, early, 2 * TOGETHER_NS)
    remove_tree(anna, folder, "folder")
    other = anna.make("other")
    remove(anna, other, "other")
    assert empty(anna, folder, inside[0]) == EmptiedReply(files=4, more=False)
    assert {item.file.id for item in trash(anna)} == {early, other}
    assert [rows_of(server, schema.files, id=item) for item in (folder, inner, *inside)] == [0] * 4


def test_only_what_is_in_the_trash_is_emptied(anna: Client) -> None:
    folder = anna.mkdir("folder")
    file = anna.make("a", folder)
    linked = anna.make("linked")
    anna.do(messages.Link(file=linked, parent=folder, name="also"))
    remove(anna, linked, "linked")
    assert empty(anna, folder, file, linked, new_id()) == EmptiedReply(files=0, more=False)
    assert empty(anna) == EmptiedReply(files=0, more=False)
    assert set(anna.children(folder)) == {"a", "also"}


@pytest.mark.parametrize("everything", [True, False])
def test_much_trash_is_emptied_in_steps(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    monkeypatch.setattr("server.drive.trash.EMPTY_FILES", 10)
    outer = anna.mkdir("outer")
    inner = anna.mkdir("inner", outer)
    made = [anna.create(f"{number}", inner) for number in range(15)]
    anna.batch(*made)
    anna.batch(*[messages.Unlink(file=op.file, parent=inner, name=op.name) for op in made])
    remove(anna, inner, "inner", outer)
    remove(anna, outer, "outer")
    wanted = [] if everything else [outer]
    assert empty(anna, *wanted) == EmptiedReply(files=10, more=True)
    (top,) = trash(anna)
    assert (top.file.id, top.inside) == (outer, 6)  # from below: the rest is still known
    assert empty(anna, *wanted) == EmptiedReply(files=7, more=False)
    assert trash(anna) == []
    assert rows_of(server, schema.files, drive=anna.me.drive) == 1


def test_many_versions_are_let_go_of_in_steps(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.drive.purge.CHUNKS", 2)
    chunks = [make_chunk(bytes([number])) for number in range(5)]
    file, _ = anna.store("a", chunks[0])
    for chunk in chunks[1:]:
        version = new_id()
        anna.upload(version, file, chunk)
        content = messages.Content(version=version, manifest=manifest_of(chunk))
        anna.do(messages.Write(file=file, content=content, mtime_ns=1))
    remove(anna, file, "a")
    assert empty(anna, file) == EmptiedReply(files=0, more=True)
    assert empty(anna, file) == EmptiedReply(files=0, more=True)
    left = anna.request("GET", f"/v1/files/{file}/versions", messages.VersionsPage).versions
    assert [item.id for item in left] == [version]  # half gone, it can still come back
    assert empty(anna, file) == EmptiedReply(files=1, more=False)
    assert rows_of(server, schema.version_chunks, drive=anna.me.drive) == 0


def test_emptying_is_in_the_audit_log(server: Running, anna: Client) -> None:
    file = anna.make("a")
    remove(anna, file, "a")
    empty(anna, file)
    empty(anna, file)  # nothing to say
    table = schema.audit
    with server.app.service.db.read() as conn:
        mine = (table.c.device == anna.me.device_id) & (table.c.action == "trash_empty")
        (row,) = conn.execute(select(table).where(mine)).all()
    assert row.subject == file
    assert msgspec.json.decode(row.detail) == {"files": 1, "of": [file], "more": False}


def test_the_id_of_a_file_deleted_for_good_is_never_free_again(anna: Client, ben: Client) -> None:
    """Refused exactly as one of a file that is there, to its owner too."""
    file, there = anna.make("a"), anna.make("b")
    remove(anna, file, "a")
    empty(anna)
    for client in (anna, ben):
        for id in (file, there):
            problem = client.refused(client.create("again", file=id))
            message = f"there is, or was, a file {id} already; choose another id"
            assert problem == errors.Exists(message=message, taken="file")
        assert "again" not in client.children()


@pytest.mark.slow
def test_pages_are_bounded_by_what_their_files_carry(anna: Client) -> None:
    carried = {f"user.{n}": bytes(65_000) for n in range(15)}
    names = [f"{n:02}" for n in range(9)]
    ops = [anna.create(name, xattrs=carried) for name in names]
    for op in ops:
        anna.do(op)
    path = f"/v1/files/{anna.me.root}/children"
    page = anna.request("GET", path, messages.ChildrenPage)
    assert 0 < len(page.children) < len(names)
    assert list(anna.children()) == names
    for name, op in zip(names, ops, strict=True):
        anna.do(messages.Unlink(file=op.file, parent=anna.me.root, name=name))
    cursor, found = None, []
    while True:
        told = anna.request("GET", "/v1/trash", TrashPage, cursor=cursor)
        assert 0 < len(told.items) < len(names)
        found += [item.name for item in told.items]
        cursor = told.next
        if cursor is None:
            break
    assert found == names[::-1]


# --- one thing out of a deleted directory -------------------------------------------------------


def test_things_are_found_by_name_and_by_the_end_of_their_id(anna: Client, ben: Client) -> None:
    top, other = anna.mkdir("top"), anna.make("a")
    inside = [anna.make(name, top) for name in ("a", "b", "%")]
    remove_tree(anna, top, "top")
    remove(anna, other, "a")
    assert [item.file.id for item in trash(anna, parent=top, name="a")] == [inside[0]]
    assert [item.file.id for item in trash(anna, parent=top, name="%")] == [inside[2]]
    assert [item.file.id for item in trash(anna, name="a")] == [other]
    assert [item.path for item in trash(anna, ending=inside[1][4:])] == ["top/b"]
    assert [item.file.id for item in trash(anna, ending=top)] == [top]
    assert trash(ben, ending=top) == []
    for wrong in ("%" * 8, "12345", "A" * 8):
        with pytest.raises(Failed) as failed:
            trash(anna, ending=wrong)
        assert failed.value.status == 400


def test_what_came_back_out_of_a_directory_stays_when_that_goes_for_good(anna: Client) -> None:
    top = anna.mkdir("top")
    below = anna.mkdir("below", top)
    wanted, rest = anna.make("wanted", below), anna.make("rest", below)
    remove_tree(anna, top, "top")
    there = anna.refused(messages.Recover(file=wanted, parent=below, name="wanted"))
    assert isinstance(there, errors.NotFound)
    again = anna.mkdir("top")
    anna.do(messages.Recover(file=wanted, parent=again, name="wanted"))
    assert [item.file.id for item in trash(anna, parent=below)] == [rest]
    assert [item.inside for item in trash(anna)] == [2]
    assert empty(anna, top).files == 3
    assert anna.file(wanted).file.links == 1
    remove(anna, wanted, "wanted", again)  # and is found where it was last
    assert [item.path for item in trash(anna, ending=wanted)] == ["top/wanted"]
