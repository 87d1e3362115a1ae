"""`retake`: a name that a file had comes back to it, and what it holds stays as another file.

Who may is in the table of `test_matrix`; how a mount comes to send it, and what becomes of a
refusal, is in tests/cache.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from remote.protocol import errors, messages
from remote.protocol.account_messages import Invite, ShareRequest, SharesReply
from server.maintenance import fsck, gc
from server.maintenance.fsck_findings import Finding
from server.maintenance.gc import Options
from server.maintenance.gc_chunks import GRACE_NS
from tests.server.conftest import Start
from tests.server.deleting import forget, unlink
from tests.server.harness import Client, Running, make_chunk, manifest_of, new_id, noise
from tests.server.linking import links_of, make_link

OLD, NEW = make_chunk(noise(5000, "old")), make_chunk(noise(3000, "new"))


def retake(by: Client, file: str, parent: str | None = None, **changes: Any) -> messages.Retake:
    fields = {"parent": parent or by.me.root, "name": "doc~", "new_name": "doc"}
    return messages.Retake(**({"file": file, "backup": new_id()} | fields | changes))  # type: ignore[arg-type]


def rename(by: Client, file: str, name: str, new_name: str, parent: str | None = None) -> None:
    parent = parent or by.me.root
    new = {"new_parent": parent, "new_name": new_name}
    by.do(messages.Rename(file=file, parent=parent, name=name, **new))


def kept_aside(by: Client, parent: str | None = None) -> tuple[str, str]:
    """A file `doc` that has become `doc~`; and its version."""
    file, version = by.store("doc", OLD, parent=parent)
    rename(by, file, "doc", "doc~", parent)
    return file, version


def history(by: Client, file: str) -> list[str]:
    page = by.request("GET", f"/v1/files/{file}/versions", messages.VersionsPage)
    return [item.id for item in page.versions]


def save(by: Client, file: str) -> str:
    version = new_id()
    by.upload(version, file, NEW)
    content = messages.Content(version=version, manifest=manifest_of(NEW))
    by.do(messages.Write(file=file, content=content, mtime_ns=2))
    return version


def share(by: Client, file: str, to: Client) -> None:
    wanted = ShareRequest([Invite(to.me.account, "editor")])
    by.request("POST", f"/v1/files/{file}/share", SharesReply, wanted)


def shared_names(by: Client) -> dict[str | None, str]:
    page = by.changes(None)
    return {root.name: root.file.id for root in page.shared or ()}


@pytest.mark.parametrize("way", ["renamed", "linked"])
def test_the_file_has_its_name_and_the_backup_what_it_held(anna: Client, way: str) -> None:
    file, version = anna.store("doc", OLD)
    anna.do(messages.SetAttr(file=file, mode=0o640, uid=3, gid=4, mtime_ns=99))
    anna.do(messages.SetXattr(file=file, name="user.a", value=b"1"))
    if way == "renamed":
        rename(anna, file, "doc", "doc~")
    else:
        anna.do(messages.Link(file=file, parent=anna.me.root, name="doc~"))
    op = retake(anna, file)
    change = anna.do(op).change
    told = {(e.name, e.file) for e in change.entries}
    was_there = {("doc", file)} if way == "linked" else set()
    assert told | was_there == {("doc", file), ("doc~", op.backup)}
    assert {record.id for record in change.files} == {file, op.backup, anna.me.root}
    found = anna.children()
    assert {name: record.id for name, record in found.items()} == {"doc": file, "doc~": op.backup}
    for record in found.values():
        assert (record.version, record.size, record.links) == (version, 5000, 1)
        assert (record.mode, record.uid, record.gid, record.mtime_ns) == (0o640, 3, 4, 99)
        assert record.xattrs == {"user.a": b"1"}
        located = anna.locate(file=record.id, version=version, chunks=[OLD.id]).chunks[0]
        assert anna.http.get(located.url).content == OLD.data
    newer = save(anna, file)
    assert history(anna, file) == [newer, version]
    assert history(anna, op.backup) == [version]


def test_of_its_history_the_backup_has_the_last_version_only(anna: Client) -> None:
    file, first = anna.store("doc", OLD)
    second = save(anna, file)
    rename(anna, file, "doc", "doc~")
    op = retake(anna, file)
    anna.do(op)
    assert history(anna, file) == [second, first]
    assert history(anna, op.backup) == [second]
    back = messages.Revert(file=file, version=first, as_version=new_id(), mtime_ns=3)
    anna.do(back)
    assert anna.children()["doc~"].version == second


def test_links_and_shares_go_back_with_it(anna: Client, ben: Client) -> None:
    file, _ = anna.store("doc", OLD)
    made = make_link(anna, file).link
    share(anna, file, ben)
    rename(anna, file, "doc", "doc~")
    assert shared_names(ben) == {"doc~": file}
    anna.do(retake(anna, file))
    assert shared_names(ben) == {"doc": file}
    assert links_of(anna).links == [made]


@pytest.mark.slow
def test_refusals_change_nothing(anna: Client) -> None:
    root = anna.me.root
    file, _ = kept_aside(anna)
    other, folder, deleted = anna.make("other"), anna.mkdir("folder"), anna.make("deleted")
    symlink = anna.make("symlink", kind="symlink", target="doc")
    forget(anna, "deleted")
    refused: list[tuple[messages.Retake, type[errors.Problem]]] = [
        (retake(anna, file, name="doc"), errors.Stale),
        (retake(anna, file, name="other"), errors.Stale),
        (retake(anna, file, folder), errors.Stale),
        (retake(anna, file, new_name="doc~"), errors.BadRequest),
        (retake(anna, file, new_name=".."), errors.BadName),
        (retake(anna, file, new_name="Shared"), errors.BadName),
        (retake(anna, file, new_name="x" * 256), errors.NameTooLong),
        (retake(anna, file, new_name="other"), errors.Exists),
        (retake(anna, file, backup=other), errors.Exists),
        (retake(anna, file, backup=file), errors.Exists),
        (retake(anna, file, backup=deleted), errors.Exists),
        (retake(anna, folder, name="folder"), errors.IsADirectory),
        (retake(anna, symlink, name="symlink"), errors.BadRequest),
        (retake(anna, file, other), errors.NotADirectory),
        (retake(anna, new_id()), errors.NotFound),
        (retake(anna, file, new_id()), errors.NotFound),
    ]
    before = anna.refresh().seq
    for op, problem in refused:
        got = anna.refused(op)
        assert isinstance(got, problem), (op, got)
    assert anna.refused(retake(anna, file, backup=other)).taken == "file"
    assert anna.refresh().seq == before
    unlink(anna, "doc~")
    assert isinstance(anna.refused(retake(anna, file)), errors.Stale)
    assert set(anna.children(root)) == {"other", "folder", "symlink"}


def test_a_file_of_another_drive_takes_no_name_here(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("folder")
    file, _ = kept_aside(anna, folder)
    theirs, _ = kept_aside(ben)
    share(anna, folder, ben)
    refused: list[tuple[messages.Retake, type[errors.Problem]]] = [
        (retake(ben, theirs, folder), errors.BadRequest),
        (retake(ben, file), errors.BadRequest),
        (retake(ben, file, anna.me.root), errors.NotFound),
        (retake(ben, theirs, anna.me.root), errors.NotFound),
    ]
    for op, problem in refused:
        assert isinstance(ben.refused(op), problem), op
    inside = retake(ben, file, folder, backup=theirs)
    assert isinstance(ben.refused(inside), errors.Exists)
    assert set(ben.children()) == {"doc~"}
    assert set(anna.children(folder)) == {"doc~"}


@pytest.mark.slow
def test_an_editor_of_the_folder_may_and_an_editor_of_the_file_may_not(
    anna: Client, ben: Client
) -> None:
    folder = anna.mkdir("folder")
    file, _ = kept_aside(anna, folder)
    share(anna, file, ben)
    assert isinstance(ben.refused(retake(ben, file, folder)), errors.NotFound)
    share(anna, folder, ben)
    cursor, used = ben.changes(None).cursor, anna.refresh().used_bytes
    op = retake(ben, file, folder)
    ben.do(op)
    assert {n: r.id for n, r in anna.children(folder).items()} == {"doc": file, "doc~": op.backup}
    told = {(e.name, e.file) for change in ben.changes(cursor).changes for e in change.entries}
    assert told == {("doc", file), ("doc~", op.backup)}
    assert (anna.refresh().used_bytes, ben.refresh().used_bytes) == (used, 0)


@pytest.mark.slow
def test_the_server_finds_nothing_wrong_and_bytes_count_once(start: Start) -> None:
    server = start()
    anna = server.account("anna")
    file, _ = kept_aside(anna)
    old, new = len(OLD.data), len(NEW.data)
    assert anna.refresh().used_bytes == old
    anna.do(retake(anna, file))
    assert (anna.refresh().used_bytes, complaints(server)) == (old, [])
    save(anna, file)
    assert (anna.refresh().used_bytes, complaints(server)) == (old + new, [])
    forget(anna, "doc~")
    collected(server)
    assert (anna.refresh().used_bytes, complaints(server)) == (old + new, [])
    file, _ = anna.store("doc~", OLD)
    forget(anna, "doc")
    rename(anna, file, "doc~", "doc")
    rename(anna, file, "doc", "doc~")
    anna.do(retake(anna, file))
    forget(anna, "doc")  # the backup alone has them now
    collected(server)
    located = anna.locate(
        file=anna.children()["doc~"].id, version=anna.children()["doc~"].version, chunks=[OLD.id]
    )
    assert anna.http.get(located.chunks[0].url).content == OLD.data
    assert (anna.refresh().used_bytes, complaints(server)) == (old, [])
    forget(anna, "doc~")
    collected(server)
    assert (anna.refresh().used_bytes, complaints(server)) == (0, [])


def complaints(server: Running) -> list[Finding]:
    service = server.app.service
    return fsck.run(service.db, service.blobs, read_data=True).findings


def collected(server: Running) -> None:
    """Twice: what nothing refers to is doomed, and deleted when its grace is over."""
    service, later = server.app.service, time.time_ns()
    for _ in range(2):
        later += GRACE_NS + 1
        gc.run(service.db, service.blobs, Options(), clock=lambda now=later: now)  # type: ignore[misc]
