"""The one function that decides who may do what, and that every endpoint asks it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, select

from remote.protocol import errors, messages
from server.accounts import tokens
from server.metadata import schema
from server.permissions import access
from tests.server.harness import (
    Client,
    Failed,
    Running,
    make_chunk,
    manifest_of,
    new_id,
    noise,
)

Grant = Callable[[str, Client, str], None]


def account_of(server: Running, client: Client) -> str:
    with server.app.service.db.read() as conn:
        query = select(schema.devices.c.account).where(schema.devices.c.id == client.me.device_id)
        return str(conn.execute(query).scalar_one())


@pytest.fixture
def grant(server: Running, anna: Client) -> Grant:
    """Gives somebody a role on one of Anna's files (sharing's own endpoints come later)."""

    def give(file: str, to: Client, role: str) -> None:
        row = {"file": file, "account": account_of(server, to), "role": role}
        by = {"granted_by": account_of(server, anna), "at_ns": time.time_ns()}
        with server.app.service.db.write() as conn:
            conn.execute(insert(schema.grants), row | by)

    return give


def role(server: Running, client: Client, file: str) -> str | None:
    with server.app.service.db.read() as conn:
        return access.role_of(conn, tokens.authenticate(conn, client.token, time.time_ns()), file)


def test_a_grant_reaches_down_and_not_up(
    server: Running, anna: Client, ben: Client, grant: Grant
) -> None:
    outer = anna.mkdir("outer")
    shared = anna.mkdir("shared", outer)
    below = anna.mkdir("below", shared)
    file, beside = anna.make("file", below), anna.make("beside", outer)
    grant(shared, ben, "viewer")
    found = [role(server, ben, item) for item in (shared, below, file, outer, beside)]
    assert found == ["viewer", "viewer", "viewer", None, None]
    grant(below, ben, "editor")
    found = [role(server, ben, item) for item in (shared, below, file)]
    assert found == ["viewer", "editor", "editor"]
    assert role(server, anna, file) == "owner"
    assert role(server, ben, new_id()) is None


def test_a_grant_reaches_a_file_over_any_of_its_links(
    server: Running, anna: Client, ben: Client, grant: Grant
) -> None:
    shared, private = anna.mkdir("shared"), anna.mkdir("private")
    file = anna.make("file", private)
    grant(shared, ben, "viewer")
    assert role(server, ben, file) is None
    anna.do(messages.Link(file=file, parent=shared, name="also"))
    assert role(server, ben, file) == "viewer"
    anna.do(messages.Unlink(file=file, parent=shared, name="also"))
    assert role(server, ben, file) is None


def test_a_viewer_reads_and_an_editor_writes(
    server: Running, anna: Client, ben: Client, grant: Grant
) -> None:
    chunk = make_chunk(noise(10, "shared"))
    shared = anna.mkdir("shared")
    file, version = anna.store("file", chunk, parent=shared)
    grant(shared, ben, "viewer")
    assert ben.file(file).role == "viewer"
    assert set(ben.children(shared)) == {"file"}
    assert len(ben.locate(file=file, version=version, chunks=[chunk.id]).chunks) == 1
    ben.request("GET", f"/v1/files/{file}/versions", messages.VersionsPage)
    mode = messages.SetAttr(file=file, mode=0o600)
    assert isinstance(ben.refused(mode), errors.Forbidden)
    assert isinstance(ben.refused(ben.create("x", shared)), errors.Forbidden)
    assert isinstance(ben.start(new_id(), file, chunk), errors.Forbidden)
    grant(file, ben, "editor")
    assert ben.do(mode).change.drive == anna.me.drive
    assert isinstance(ben.refused(ben.create("x", shared)), errors.Forbidden)
    gone = messages.Unlink(file=file, parent=shared, name="file")
    assert isinstance(ben.refused(gone), errors.Forbidden)


def test_an_editor_writes_into_the_owners_drive_and_not_out_of_it(
    server: Running, anna: Client, ben: Client, grant: Grant
) -> None:
    shared = anna.mkdir("shared")
    grant(shared, ben, "editor")
    chunk, file, version = make_chunk(noise(10, "by ben")), new_id(), new_id()
    ben.upload(version, file, chunk, parent=shared)
    content = messages.Content(version=version, manifest=manifest_of(chunk))
    ben.make("mine", shared, file=file, content=content)
    assert anna.children(shared)["mine"].size == 10
    assert anna.refresh().used_bytes == 10
    out = messages.Rename(
        file=file, parent=shared, name="mine", new_parent=ben.me.root, new_name="mine"
    )
    assert isinstance(ben.refused(out), errors.BadRequest)
    up = messages.Rename(
        file=file, parent=shared, name="mine", new_parent=anna.me.root, new_name="mine"
    )
    assert isinstance(ben.refused(up), errors.NotFound)


def test_revocation_acts_on_the_next_request(
    server: Running, anna: Client, ben: Client, grant: Grant
) -> None:
    shared = anna.mkdir("shared")
    grant(shared, ben, "editor")
    version, file = new_id(), new_id()
    chunk = make_chunk(noise(10, "revoked"))
    ben.start(version, file, chunk, parent=shared)
    with server.app.service.db.write() as conn:
        conn.execute(delete(schema.grants).where(schema.grants.c.file == shared))
    assert isinstance(ben.refused(ben.create("x", shared)), errors.NotFound)
    for path, kind in (
        (f"/v1/files/{shared}", messages.FileReply),
        (f"/v1/files/{shared}/children", messages.ChildrenPage),
        (f"/v1/files/{shared}/changes", messages.ChangesPage),
    ):
        with pytest.raises(Failed) as failed:
            ben.request("GET", path, kind)
        assert failed.value.status == 404
    more = messages.UrlsRequest([chunk.descriptor])
    with pytest.raises(Failed) as failed:
        ben.request("POST", f"/v1/uploads/{version}/urls", messages.UploadState, more)
    assert failed.value.status in (403, 404)


def topics(server: Running, seq: int, drive: str) -> set[str]:
    with server.app.service.db.read() as conn:
        table = schema.changes
        query = select(table.c.topic).where(table.c.drive == drive, table.c.seq == seq)
        return set(conn.execute(query).scalars())


def test_changes_reach_the_topics_of_the_grants_above_them(
    server: Running, anna: Client, ben: Client, grant: Grant
) -> None:
    shared = anna.mkdir("shared")
    inner = anna.mkdir("inner", shared)
    grant(shared, ben, "viewer")
    drive = f"drive/{anna.me.drive}"

    def heard(op: Any) -> set[str]:
        return topics(server, anna.do(op).change.seq, anna.me.drive)

    both = {drive, f"grant/{anna.me.drive}/{shared}"}
    create = anna.create("x", inner)
    assert heard(create) == both
    assert heard(anna.create("private")) == {drive}
    out = messages.Rename(
        file=create.file, parent=inner, name="x", new_parent=anna.me.root, new_name="x"
    )
    assert heard(out) == both
    assert heard(messages.SetAttr(file=create.file, mode=0)) == {drive}
