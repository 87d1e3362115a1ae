"""The ids of files that were deleted for good: never free again, and of no use to who knows one.

`as_before` puts a server's data into the state that an older version could leave behind, in which
such an id is free: also then nothing of one drive is found under a file of another.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, event, select, update
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from remote.protocol import errors, messages
from remote.protocol.account_messages import (
    EmptiedReply,
    EmptyTrash,
    Invite,
    LinkMade,
    MakeLink,
    MakeToken,
    ShareRequest,
    SharesReply,
    TokenReply,
    TrashPage,
)
from server.drive.trash import TOGETHER_NS
from server.metadata import schema
from tests.server.harness import Client, Failed, Running, make_chunk, new_id


def share(by: Client, file: str, to: Client, role: Any = "viewer") -> None:
    wanted = ShareRequest(users=[Invite(to.me.account, role)])
    by.request("POST", f"/v1/files/{file}/share", SharesReply, wanted)


def unshare(by: Client, file: str, of: Client) -> None:
    by.request("DELETE", f"/v1/files/{file}/share/{of.me.account}", type(None))


def folder_token(by: Client, folder: str) -> Client:
    wanted = MakeToken(name="script", folder=folder)
    client = Client(by.http, by.request("POST", "/v1/devices", TokenReply, wanted).token)
    client.refresh()
    return client


def delete_for_good(client: Client, file: str, name: str) -> None:
    """A file in the root; what was deleted out of it long before stays in the trash."""
    client.do(messages.Unlink(file=file, parent=client.me.root, name=name))
    emptied = client.request("POST", "/v1/trash/empty", EmptiedReply, EmptyTrash(files=[file]))
    assert emptied == EmptiedReply(files=1, more=False)


def as_before(server: Running, *files: str) -> None:
    """Their ids are free again, and the tokens for them good, as nobody had told them."""
    table = schema.devices
    with server.app.service.db.write() as conn:
        conn.execute(delete(schema.retired).where(schema.retired.c.id.in_(files)))
        conn.execute(update(table).where(table.c.folder.in_(files)).values(revoked_ns=None))


def long_ago(server: Running, file: str) -> None:
    """Let `file` have been deleted some time before its directory."""
    earlier = {"trashed_ns": schema.files.c.trashed_ns - 2 * TOGETHER_NS}
    with server.app.service.db.write() as conn:
        conn.execute(update(schema.files).where(schema.files.c.id == file).values(**earlier))


def told_until_closed(socket: ClientConnection) -> int:
    """Why it was closed, whatever it was told before."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            socket.recv(timeout=60)
    return socket.close_code or 0


def audited(server: Running, action: str, subject: str) -> int:
    with server.app.service.db.read() as conn:
        rows = select(schema.audit).where(schema.audit.c.action == action)
        return len(conn.execute(rows.where(schema.audit.c.subject == subject)).all())


# --- taken by another account -------------------------------------------------------------------


@pytest.fixture
def cleo(server: Running) -> Client:
    return server.account("cleo")


def worked_in(server: Running, owner: Client, member: Client) -> tuple[str, Client]:
    """A folder that was shared, taken back, worked in, and deleted for good; and a token for it."""
    folder = owner.mkdir("plans")
    share(owner, folder, member)
    unshare(owner, folder, member)
    token = folder_token(owner, folder)
    gone = owner.make("deleted secret", folder)
    owner.make("later secret", folder)
    owner.do(messages.Unlink(file=gone, parent=folder, name="deleted secret"))
    long_ago(server, gone)
    left = owner.children(folder)["later secret"].id
    owner.do(messages.Unlink(file=left, parent=folder, name="later secret"))
    long_ago(server, left)
    delete_for_good(owner, folder, "plans")
    return folder, token


def test_the_id_of_a_deleted_folder_is_nobodys_again(
    server: Running, anna: Client, ben: Client
) -> None:
    folder, token = worked_in(server, anna, ben)
    for client in (anna, ben):
        for name, kind in (("again", "directory"), ("a file", "file")):
            mode: dict[str, Any] = {"kind": kind, "file": folder}
            assert isinstance(client.refused(client.create(name, **mode)), errors.Exists)
    with pytest.raises(Failed) as failed:
        token.refresh()
    assert isinstance(failed.value.problem, errors.Unauthorized)


def test_who_takes_the_id_of_anothers_folder_learns_nothing_of_it(
    server: Running, anna: Client, ben: Client, cleo: Client
) -> None:
    """Ben makes it his, shares it with cleo, and looks at what is told of it."""
    folder, token = worked_in(server, anna, ben)
    as_before(server, folder)
    cursor = cleo.changes(None).cursor
    ben.make("mine", file=folder, kind="directory", mode=0o755)
    share(ben, folder, cleo)
    ben.make("of ben", folder)
    told = cleo.changes(cursor)
    page = cleo.request("GET", f"/v1/files/{folder}/changes", messages.ChangesPage)
    assert {change.drive for change in (*told.changes, *page.changes)} == {ben.me.drive}
    assert b"secret" not in msgspec.msgpack.encode((told, page))
    trash = ben.request("GET", "/v1/trash", TrashPage, parent=folder)
    assert trash.items == []
    ben.do(messages.Unlink(file=ben.children(folder)["of ben"].id, parent=folder, name="of ben"))
    trash = ben.request("GET", "/v1/trash", TrashPage, parent=folder)
    assert [item.name for item in trash.items] == ["of ben"]
    # The other way round: what is ben's by now is not told to the token that was for anna's.
    before = token.refresh().cursor
    ben.make("secret of ben", folder)
    assert token.changes(before).changes == []
    with pytest.raises(Failed) as failed:
        token.children(folder)
    assert isinstance(failed.value.problem, errors.NotFound)


def test_the_trash_of_a_folder_is_not_emptied_through_anothers(
    server: Running, anna: Client, ben: Client
) -> None:
    """Nor is anything told of where it was: that is gone, whosever the id is now."""
    folder, _ = worked_in(server, anna, ben)
    as_before(server, folder)
    ben.make("mine", file=folder, kind="directory", mode=0o755)
    items = anna.request("GET", "/v1/trash", TrashPage).items
    assert {item.path for item in items} == {"…/deleted secret", "…/later secret"}
    refused = anna.refused(messages.Recover(file=items[0].file.id))
    assert refused == errors.NotFound(message="the directory it was in is gone; name another place")
    delete_for_good(ben, folder, "mine")
    assert len(anna.request("GET", "/v1/trash", TrashPage).items) == len(items)


def test_an_upload_does_not_go_on_in_a_drive_through_a_file_of_another(
    server: Running, anna: Client, ben: Client, cleo: Client
) -> None:
    """Cleo began to write a file of anna's; it is gone, and ben makes one of that id for her."""
    file, chunk = anna.make("file"), make_chunk(b"more")
    share(anna, file, cleo, "editor")
    version = new_id()
    cleo.start(version, file)
    delete_for_good(anna, file, "file")
    as_before(server, file)
    ben.make("file", file=file)
    share(ben, file, cleo, "editor")
    more = messages.UrlsRequest([chunk.descriptor])
    with pytest.raises(Failed) as failed:
        cleo.request("POST", f"/v1/uploads/{version}/urls", messages.UploadState, more)
    assert isinstance(failed.value.problem, errors.UploadUnknown)


# --- what ends with a file ----------------------------------------------------------------------


def test_the_token_of_a_folder_ends_with_it_and_its_sockets_are_told(
    server: Running, anna: Client
) -> None:
    folder, kept = anna.mkdir("folder"), folder_token(anna, anna.mkdir("kept"))
    token = folder_token(anna, folder)
    headers = {"Authorization": f"Bearer {token.token}"}
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    with connect(url, additional_headers=headers) as socket:
        socket.recv(timeout=60)
        delete_for_good(anna, folder, "folder")
        assert told_until_closed(socket) == 4401
    kept.refresh()
    assert audited(server, "device_revoke", token.me.device_id) == 1


@pytest.mark.slow
def test_also_when_its_time_in_the_trash_has_come(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own collection tells the sockets, too."""
    folder = anna.mkdir("folder")
    token = folder_token(anna, folder)
    anna.do(messages.Unlink(file=folder, parent=anna.me.root, name="folder"))
    token.refresh()
    of_anna = schema.drives.c.id == anna.me.drive
    with server.app.service.db.write() as conn:
        owner = conn.execute(select(schema.drives.c.owner).where(of_anna)).scalar_one()
        mine = schema.accounts.c.id == owner
        conn.execute(update(schema.accounts).where(mine).values(keep_days=0))
    told = []
    monkeypatch.setattr(server.app.service.janitor, "_tell", lambda news: told.append(news.topic))
    assert server.app.service.janitor.collect() is not None
    assert told == [f"account/{owner}"]
    with pytest.raises(Failed) as failed:
        token.refresh()
    assert isinstance(failed.value.problem, errors.Unauthorized)


def test_links_and_grants_end_with_their_file(server: Running, anna: Client, ben: Client) -> None:
    file = anna.make("file")
    share(anna, file, ben)
    made = anna.request("POST", f"/v1/files/{file}/links", LinkMade, MakeLink())
    delete_for_good(anna, file, "file")
    as_before(server, file)
    anna.make("again", file=file)
    with pytest.raises(Failed) as failed:
        ben.file(file)
    assert isinstance(failed.value.problem, errors.NotFound)
    assert ben.http.get(made.url).status_code == 404


# --- the database -------------------------------------------------------------------------------


def test_nothing_of_the_trash_or_of_tokens_is_scanned(server: Running, anna: Client) -> None:
    """A condition that binds a query to its drive makes none look at every file, device or
    change."""
    folder = anna.mkdir("folder")
    inner = anna.mkdir("inner", folder)
    token = folder_token(anna, folder)
    plans: list[str] = []
    engine = server.app.service.db._engine

    def explain(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith(("SELECT", "WITH", "UPDATE", "DELETE", "INSERT INTO retired")):
            return
        driver = conn.connection.driver_connection
        rows = driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        plans.extend(row[3] for row in rows)

    event.listen(engine, "before_cursor_execute", explain)
    try:
        token.changes(token.me.cursor)
        file = anna.make("file", inner)
        anna.do(messages.Unlink(file=file, parent=inner, name="file"))
        anna.do(messages.Unlink(file=inner, parent=folder, name="inner"))
        for parent in (None, folder, inner):
            if parent is not None:
                anna.request("GET", "/v1/trash", TrashPage, parent=parent)
        anna.do(messages.Unlink(file=folder, parent=anna.me.root, name="folder"))
        anna.request("GET", "/v1/trash", TrashPage)
        anna.request("POST", "/v1/trash/empty", EmptiedReply, EmptyTrash(files=[folder]))
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    tables = ("files", "devices", "changes", "entries", "versions", "retired", "grants", "links")
    assert [item for item in plans if item in [f"SCAN {table}" for table in tables]] == []
    assert any("ix_files_trashed_place" in item for item in plans)
