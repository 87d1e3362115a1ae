"""History: which versions a file had, bringing one back, and bringing a deleted file back."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from remote.protocol import errors, messages
from remote.protocol.account_messages import (
    Invite,
    MakeToken,
    ShareRequest,
    SharesReply,
    TokenReply,
)
from server.metadata import schema
from tests.server.harness import (
    EMPTY,
    Client,
    Failed,
    Running,
    make_chunk,
    manifest_of,
    new_id,
    noise,
)


def history(client: Client, file: str) -> list[messages.VersionInfo]:
    """Newest first."""
    return client.request("GET", f"/v1/files/{file}/versions", messages.VersionsPage).versions


def write(client: Client, file: str, *data: bytes, **more: Any) -> str:
    """A new version of `file`; returns its id."""
    version, chunks = new_id(), [make_chunk(item) for item in data]
    client.upload(version, file, *chunks)
    content = messages.Content(version=version, manifest=manifest_of(*chunks), **more)
    client.do(messages.Write(file=file, content=content, mtime_ns=2))
    return version


def read(client: Client, file: str) -> bytes:
    """The content of the current version, from the edge."""
    record = client.file(file).file
    if record.size == 0:
        return b""
    assert record.version is not None
    span = messages.Span(0, record.size)
    located = client.locate(file=file, version=record.version, span=span, manifest=True)
    urls = {item.descriptor.id: item.url for item in located.chunks}
    assert located.manifest is not None
    return b"".join(client.http.get(urls[p.id]).content for p in located.manifest.pieces)


def revert(file: str, version: str, **changes: Any) -> messages.Revert:
    fields = {"file": file, "version": version, "as_version": new_id(), "mtime_ns": 7} | changes
    return messages.Revert(**fields)


def remove(client: Client, file: str, name: str, parent: str | None = None) -> None:
    client.do(messages.Unlink(file=file, parent=parent or client.me.root, name=name))


def share(by: Client, file: str, to: Client, role: Any) -> None:
    wanted = ShareRequest(users=[Invite(to.me.account, role)])
    by.request("POST", f"/v1/files/{file}/share", SharesReply, wanted)


def superseded(server: Running, file: str) -> dict[str, int | None]:
    table = schema.versions
    with server.app.service.db.read() as conn:
        query = select(table.c.id, table.c.superseded_ns).where(table.c.file == file)
        return {row.id: row.superseded_ns for row in conn.execute(query)}


# --- listing ------------------------------------------------------------------------------------


def test_the_history_says_who_made_what_from_what(
    server: Running, anna: Client, ben: Client
) -> None:
    file, first = anna.store("report", make_chunk(b"one"))
    share(anna, file, ben, "editor")
    second = write(ben, file, b"two", base=first)
    late = write(anna, file, b"three", base=first)
    newest, middle, oldest = history(ben, file)
    assert [newest.id, middle.id, oldest.id] == [late, second, first]
    assert [item.current for item in (newest, middle, oldest)] == [True, False, False]
    assert [item.base for item in (newest, middle, oldest)] == [first, first, None]
    assert (middle.account, middle.device) == (ben.me.account, "laptop")
    assert (oldest.account, oldest.restored_from) == (anna.me.account, None)


def test_a_viewer_reads_history_and_cannot_change_it(anna: Client, ben: Client) -> None:
    file, first = anna.store("report", make_chunk(b"one"))
    write(anna, file, b"two")
    with pytest.raises(Failed) as failed:
        history(ben, file)
    assert isinstance(failed.value.problem, errors.NotFound)
    share(anna, file, ben, "viewer")
    assert len(history(ben, file)) == 2
    assert isinstance(ben.refused(revert(file, first)), errors.Forbidden)


def test_what_is_not_current_any_more_says_since_when(server: Running, anna: Client) -> None:
    file, first = anna.store("a", make_chunk(b"one"))
    assert superseded(server, file) == {first: None}
    change = anna.do(
        messages.Write(
            file=file, content=messages.Content(version=new_id(), manifest=EMPTY), mtime_ns=1
        )
    ).change
    second = anna.file(file).file.version
    assert superseded(server, file) == {first: change.at_ns, second: None}
    back = revert(file, first)
    later = anna.do(back).change
    assert superseded(server, file) == {
        first: change.at_ns,
        second: later.at_ns,
        back.as_version: None,
    }


# --- revert -------------------------------------------------------------------------------------


def test_an_older_version_comes_back_as_a_new_one(server: Running, anna: Client) -> None:
    pieces = [make_chunk(noise(300_000, "a")), make_chunk(b"end")]
    file, first = anna.store("a", *pieces)
    second = write(anna, file, b"other")
    wanted = revert(file, first)
    change = anna.do(wanted).change
    record = anna.file(file).file
    assert change.files == [record]
    assert (record.version, record.size, record.mtime_ns) == (wanted.as_version, 300_003, 7)
    assert read(anna, file) == b"".join(item.data for item in pieces)
    newest, *older = history(anna, file)
    assert [item.id for item in older] == [second, first]
    assert (newest.id, newest.base, newest.restored_from) == (wanted.as_version, second, first)
    assert newest.current
    assert anna.changes(None).seq == change.seq


def test_an_editor_brings_a_version_back(anna: Client, ben: Client) -> None:
    file, first = anna.store("a", make_chunk(b"one"))
    write(anna, file, b"two")
    share(anna, file, ben, "editor")
    ben.do(revert(file, first))
    assert read(anna, file) == b"one"
    assert history(anna, file)[0].account == ben.me.account


def test_what_is_current_is_not_made_again(anna: Client) -> None:
    file, first = anna.store("a", make_chunk(b"one"))
    before = anna.file(file).file
    change = anna.do(revert(file, first)).change
    assert [(f.version, f.mtime_ns) for f in change.files] == [(first, before.mtime_ns)]
    assert [item.id for item in history(anna, file)] == [first]


def test_chunks_about_to_be_collected_are_kept_by_a_revert(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(1000))
    file, first = anna.store("a", chunk)
    write(anna, file, b"two")
    mine = (schema.chunks.c.drive == anna.me.drive) & (schema.chunks.c.id == chunk.id)
    with server.app.service.db.write() as conn:
        conn.execute(update(schema.chunks).where(mine).values(state="doomed", doomed_ns=1))
    anna.do(revert(file, first))
    with server.app.service.db.read() as conn:
        row = conn.execute(select(schema.chunks).where(mine)).one()
    assert (row.state, row.doomed_ns) == ("uploaded", None)


@pytest.mark.slow
def test_what_cannot_be_reverted(anna: Client, ben: Client) -> None:
    file, first = anna.store("a", make_chunk(b"one"))
    second = write(anna, file, b"two")
    other, foreign = anna.store("b", make_chunk(b"three"))
    directory = anna.mkdir("d")
    begun = new_id()
    anna.start(begun, file)
    for op, kind in (
        (revert(file, new_id()), errors.NotFound),
        (revert(file, foreign), errors.NotFound),
        (revert(file, begun), errors.NotFound),
        (revert(new_id(), first), errors.NotFound),
        (revert(directory, first), errors.IsADirectory),
        (revert(file, first, as_version=second), errors.Exists),
        (revert(file, first, as_version=foreign), errors.Exists),
        (revert(file, first, as_version=begun), errors.Exists),
        (revert(file, first, mtime_ns=1 << 63), errors.BadRequest),
    ):
        assert isinstance(anna.refused(op), kind), op
    assert isinstance(ben.refused(revert(file, first)), errors.NotFound)
    remove(anna, file, "a")
    assert isinstance(anna.refused(revert(file, first)), errors.NotFound)
    assert [item.id for item in history(anna, file)] == [second, first]
    assert [item.id for item in history(anna, other)] == [foreign]


# --- saving by rename ---------------------------------------------------------------------------


def save(client: Client, target: str, name: str, *data: bytes) -> tuple[str, str]:
    """Save as many editors do: write `new`, rename it over `name`. Returns (file, version)."""
    file, version = client.store("new", *[make_chunk(item) for item in data])
    root = client.me.root
    op = messages.Replace(
        file=file, parent=root, name="new", new_parent=root, new_name=name, target=target
    )
    client.do(op)
    return file, version


def place_in_trash(server: Running, file: str) -> tuple[bool, str | None, str | None]:
    with server.app.service.db.read() as conn:
        row = conn.execute(select(schema.files).where(schema.files.c.id == file)).one()
    return row.trashed_ns is not None, row.trashed_parent, row.trashed_name


def test_versions_saved_by_rename_are_one_line_of_history(server: Running, anna: Client) -> None:
    file, first = anna.store("a", make_chunk(b"one"))
    temporary, second = save(anna, file, "a", b"two")
    _, third = save(anna, file, "a", b"three")
    found = history(anna, file)
    assert [item.id for item in found] == [third, second, first]
    assert [item.base for item in found] == [second, first, None]
    assert [item.current for item in found] == [True, False, False]
    since = superseded(server, file)
    assert since[third] is None
    assert None not in (since[first], since[second])
    assert place_in_trash(server, temporary) == (True, None, None)


def test_a_version_that_is_adopted_again_is_current_again(server: Running, anna: Client) -> None:
    file, _ = anna.store("a", make_chunk(b"one"))
    temporary, version = anna.store("new", make_chunk(b"two"))
    for name in ("other", "another"):
        anna.do(messages.Link(file=temporary, parent=anna.me.root, name=name))

    def replace(name: str) -> None:
        root = anna.me.root
        op = messages.Replace(
            file=temporary, parent=root, name=name, new_parent=root, new_name="a", target=file
        )
        anna.do(op)

    replace("new")
    write(anna, file, b"three")
    replace("other")
    assert anna.file(file).file.version == version
    assert [item.id for item in history(anna, file) if item.current] == [version]
    assert [v for v, since in superseded(server, file).items() if since is None] == [version]


def test_a_replaced_over_file_with_a_past_of_its_own_is_in_the_trash(
    server: Running, anna: Client
) -> None:
    file, _ = anna.store("a", make_chunk(b"one"))
    draft, first = anna.store("draft", make_chunk(b"early"))
    write(anna, draft, b"late")
    root = anna.me.root
    anna.do(
        messages.Replace(
            file=draft, parent=root, name="draft", new_parent=root, new_name="a", target=file
        )
    )
    assert place_in_trash(server, draft) == (True, root, "draft")
    anna.do(messages.Recover(file=draft))
    anna.do(revert(draft, first))
    assert (read(anna, draft), read(anna, file)) == (b"early", b"late")


def test_what_went_on_as_another_file_comes_back_only_to_a_named_place(anna: Client) -> None:
    file, _ = anna.store("a", make_chunk(b"one"))
    temporary, _ = save(anna, file, "a", b"two")
    for nowhere in (
        messages.Recover(file=temporary),
        messages.Recover(file=temporary, name="b"),
        messages.Recover(file=temporary, parent=anna.me.root),
    ):
        assert isinstance(anna.refused(nowhere), errors.NotFound)
    anna.do(messages.Recover(file=temporary, parent=anna.me.root, name="b"))
    assert read(anna, temporary) == read(anna, file) == b"two"


# --- recover ------------------------------------------------------------------------------------


def test_a_deleted_file_comes_back_where_it_was(server: Running, anna: Client) -> None:
    folder = anna.mkdir("folder")
    file, version = anna.store("a", make_chunk(b"one"), parent=folder)
    anna.do(messages.SetXattr(file=file, name="user.a", value=b"1"))
    remove(anna, file, "a", folder)
    other = server.device(anna.me.account, "phone")
    cursor = other.me.cursor
    change = anna.do(messages.Recover(file=file)).change
    assert {item.id for item in change.files} == {file, folder}
    assert [(e.parent, e.name, e.file) for e in change.entries] == [(folder, "a", file)]
    record = anna.children(folder)["a"]
    assert (record.id, record.version, record.links) == (file, version, 1)
    assert record.xattrs == {"user.a": b"1"}
    assert read(anna, file) == b"one"
    assert other.changes(cursor).changes == [change]
    assert place_in_trash(server, file) == (False, None, None)


def test_a_deleted_file_comes_back_elsewhere(anna: Client) -> None:
    folder = anna.mkdir("folder")
    one, two, three = (anna.make(name) for name in ("one", "two", "three"))
    for file, name in ((one, "one"), (two, "two"), (three, "three")):
        remove(anna, file, name)
    anna.do(messages.Recover(file=one, parent=folder, name="1"))
    anna.do(messages.Recover(file=two, parent=folder))
    anna.do(messages.Recover(file=three, name="3"))
    assert {name: each.id for name, each in anna.children(folder).items()} == {
        "1": one,
        "two": two,
    }
    assert anna.children()["3"].id == three


def test_directories_come_back_from_the_top(anna: Client) -> None:
    outer = anna.mkdir("outer")
    inner = anna.mkdir("inner", outer)
    file = anna.make("a", inner)
    remove(anna, file, "a", inner)
    remove(anna, inner, "inner", outer)
    remove(anna, outer, "outer")
    refused = anna.refused(messages.Recover(file=file))
    assert isinstance(refused, errors.NotFound)
    assert "recover that first" in refused.message
    assert isinstance(anna.refused(messages.Recover(file=inner, parent=inner)), errors.NotFound)
    results = anna.batch(*[messages.Recover(file=item) for item in (outer, inner, file)])
    assert all(isinstance(item, messages.Applied) for item in results)
    assert anna.children(inner)["a"].id == file
    assert anna.children(outer)["inner"].links == 1


@pytest.mark.slow
def test_what_cannot_be_recovered(server: Running, anna: Client, ben: Client) -> None:
    folder, target = anna.mkdir("folder"), anna.make("target")
    file = anna.make("a", folder)
    share(anna, folder, ben, "editor")
    assert isinstance(anna.refused(messages.Recover(file=file)), errors.Stale)
    assert isinstance(ben.refused(messages.Recover(file=file)), errors.Forbidden)
    remove(anna, file, "a", folder)
    other = anna.make("a", folder)
    for op, kind in (
        (messages.Recover(file=file), errors.Exists),
        (messages.Recover(file=new_id()), errors.NotFound),
        (messages.Recover(file=file, parent=new_id()), errors.NotFound),
        (messages.Recover(file=file, parent=target), errors.NotADirectory),
        (messages.Recover(file=file, parent=anna.me.root, name="Shared"), errors.BadName),
        (messages.Recover(file=file, name="a/b"), errors.BadName),
        (messages.Recover(file=file, parent=ben.me.root), errors.NotFound),
        (messages.Recover(file=anna.me.root), errors.Stale),
    ):
        assert isinstance(anna.refused(op), kind), op
    assert isinstance(ben.refused(messages.Recover(file=file)), errors.NotFound)
    wanted = MakeToken(name="script", folder=folder)
    token = anna.request("POST", "/v1/devices", TokenReply, wanted).token
    assert isinstance(
        Client(anna.http, token).refused(messages.Recover(file=file)), errors.NotFound
    )
    wanted = MakeToken(name="reader", scope="read")
    token = anna.request("POST", "/v1/devices", TokenReply, wanted).token
    reader = Client(anna.http, token)
    assert isinstance(reader.refused(messages.Recover(file=file)), errors.Forbidden)
    assert {name: each.id for name, each in anna.children(folder).items()} == {"a": other}


def test_a_recovered_share_is_shared_again(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("folder")
    share(anna, folder, ben, "viewer")
    remove(anna, folder, "folder")
    assert ben.changes(ben.me.cursor).shared in (None, [])
    anna.do(messages.Recover(file=folder))
    page = ben.changes(ben.me.cursor)
    assert page.shared is not None
    assert [(root.file.id, root.role) for root in page.shared] == [(folder, "viewer")]


def test_a_recover_sent_again_has_the_same_answer(anna: Client) -> None:
    file, key = anna.make("a"), new_id()
    remove(anna, file, "a")
    first = anna.batch(messages.Recover(file=file), keys=[key])
    assert anna.batch(messages.Recover(file=file), keys=[key]) == first
    assert list(anna.children()) == ["a"]
