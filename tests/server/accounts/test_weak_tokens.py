"""Tokens that are for less: for a single folder, or for reading only. What each reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.sync.client import connect

from remote.protocol import errors, messages
from remote.protocol.account_messages import (
    EmptyTrash,
    Invite,
    MakeLink,
    MakeToken,
    SharedReply,
    ShareRequest,
    SharesReply,
    TokenReply,
)
from remote.protocol.content import fingerprint
from tests.amounts import amount
from tests.server.harness import (
    Chunk,
    Client,
    Failed,
    Running,
    make_chunk,
    manifest_of,
    new_id,
    noise,
)


@dataclass
class Place:
    """Anna's drive: `folder` with `inside` (of `chunk`), and `secret` (of `hidden`) beside it. The
    token of `weak` is for the folder."""

    weak: Client
    folder: str
    inside: str
    version: str
    chunk: Chunk
    secret: str
    secret_version: str
    hidden: Chunk


def token_for(anna: Client, **wanted: Any) -> Client:
    reply = anna.request("POST", "/v1/devices", TokenReply, MakeToken(name="weak", **wanted))
    client = Client(anna.http, reply.token)
    client.refresh()
    return client


@pytest.fixture
def place(anna: Client) -> Place:
    folder = anna.mkdir("folder")
    chunk, hidden = make_chunk(noise(300, anna.token)), make_chunk(noise(300, "s" + anna.token))
    inside, version = anna.store("inside", chunk, parent=folder)
    secret, secret_version = anna.store("secret", hidden)
    weak = token_for(anna, folder=folder)
    return Place(weak, folder, inside, version, chunk, secret, secret_version, hidden)


def refusal(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
    with pytest.raises(Failed) as failed:
        work(*args, **more)
    return failed.value.problem


def test_a_token_is_not_told_what_left_its_folder_before_it_was_made(
    anna: Client, place: Place
) -> None:
    moved = {"file": place.inside, "parent": place.folder, "name": "inside"}
    anna.do(messages.Rename(**moved, new_parent=anna.me.root, new_name="elsewhere"))
    late = token_for(anna, folder=place.folder)
    anna.make("later", place.folder)
    path = f"/v1/files/{place.folder}/changes"
    for token, seen in ((place.weak, {"inside", "later"}), (late, {"later"})):
        page = token.request("GET", path, messages.ChangesPage)
        assert {entry.name for change in page.changes for entry in change.entries} == seen


# --- a single folder: reading -------------------------------------------------------------------


def test_the_folder_is_its_root_and_all_it_sees(anna: Client, place: Place) -> None:
    weak = place.weak
    assert weak.me.root == place.folder
    assert weak.me.scope == "full"
    assert set(weak.children()) == {"inside"}
    assert weak.file(place.inside).role == "editor"
    assert weak.file(place.inside, manifest=True).manifest == manifest_of(place.chunk)
    for file in (anna.me.root, place.secret, new_id()):
        assert isinstance(refusal(weak.file, file), errors.NotFound)
    assert isinstance(refusal(weak.children, anna.me.root), errors.NotFound)


@pytest.mark.parametrize("what", ["versions", "changes", "children", "shares"])
def test_what_hangs_from_a_file_outside_is_not_found(place: Place, what: str) -> None:
    path = f"/v1/files/{place.secret}/{what}"
    assert isinstance(refusal(place.weak.request, "GET", path, object), errors.NotFound)


def test_history_and_content_inside(place: Place) -> None:
    weak = place.weak
    page = weak.request("GET", f"/v1/files/{place.inside}/versions", messages.VersionsPage)
    assert [item.id for item in page.versions] == [place.version]
    weak.request("GET", f"/v1/files/{place.inside}/changes", messages.ChangesPage)
    located = weak.locate(file=place.inside, version=place.version, chunks=[place.chunk.id])
    assert weak.http.get(located.chunks[0].url).content == place.chunk.data


def test_content_outside_is_not_to_be_had(place: Place) -> None:
    weak, wanted = place.weak, {"chunks": [place.hidden.id]}
    for file, version in (
        (place.secret, place.secret_version),
        (place.inside, place.secret_version),
        (place.inside, place.version),
    ):
        got = refusal(weak.locate, file=file, version=version, **wanted)
        assert isinstance(got, errors.NotFound), (file, version)


def test_the_fingerprint_of_what_is_outside_finds_nothing(anna: Client, place: Place) -> None:
    path = f"/v1/files/by-fingerprint/{fingerprint(manifest_of(place.hidden)).hex()}"
    anna.request("GET", path, messages.FingerprintReply)
    assert isinstance(refusal(place.weak.request, "GET", path, object), errors.NotFound)
    path = f"/v1/files/by-fingerprint/{fingerprint(manifest_of(place.chunk)).hex()}"
    assert place.weak.request("GET", path, messages.FingerprintReply).file == place.inside


def test_the_feed_tells_of_the_folder_and_of_nothing_else(anna: Client, place: Place) -> None:
    weak, cursor = place.weak, place.weak.refresh().cursor
    anna.make("private")
    inner = anna.mkdir("inner", place.folder)
    moved = anna.make("moved", place.folder)
    anna.do(
        messages.Rename(
            file=moved,
            parent=place.folder,
            name="moved",
            new_parent=anna.me.root,
            new_name="a secret name",
        )
    )
    anna.do(messages.SetAttr(file=moved, mode=0))
    page = weak.changes(cursor)
    told = {(entry.parent, entry.name, entry.file) for c in page.changes for entry in c.entries}
    assert told == {
        (place.folder, "inner", inner),
        (place.folder, "moved", moved),
        (place.folder, "moved", None),
    }
    records = [item for change in page.changes for item in change.files]
    assert {item.id for item in records} == {place.folder, inner, moved}
    assert [item.links for item in records if item.id == moved] == [1, 0]
    assert "a secret name" not in str(page)
    assert page.shared in (None, [])


def test_a_whole_tokens_cursor_opens_nothing(anna: Client, place: Place) -> None:
    cursor = anna.me.cursor
    page = place.weak.changes(cursor)
    assert place.secret not in str(page)
    path = f"/v1/files/{place.inside}/changes"
    history = place.weak.request("GET", path, messages.ChangesPage, cursor=cursor)
    assert place.secret not in str(history)


def test_the_socket_tells_of_the_folder_only(server: Running, anna: Client, place: Place) -> None:
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    header = {"Authorization": f"Bearer {place.weak.token}"}
    with connect(url, additional_headers=header) as socket:
        frames = [socket.recv(timeout=60)]
        anna.make("private")
        anna.make("told", place.folder)
        frames.append(socket.recv(timeout=60))
    assert b"private" not in b"".join(frames)  # type: ignore[arg-type]


def test_what_others_share_is_not_in_a_folder(anna: Client, ben: Client, place: Place) -> None:
    theirs = ben.mkdir("from ben")
    wanted = ShareRequest(users=[Invite(anna.me.account, "editor")])
    ben.request("POST", f"/v1/files/{theirs}/share", SharesReply, wanted)
    assert len(anna.request("GET", "/v1/shared", SharedReply).shared) == 1
    assert place.weak.request("GET", "/v1/shared", SharedReply).shared == []
    assert isinstance(refusal(place.weak.file, theirs), errors.NotFound)
    assert place.weak.changes(place.weak.me.cursor).shared in (None, [])


# --- a single folder: writing -------------------------------------------------------------------


def test_it_works_in_its_folder(anna: Client, place: Place) -> None:
    weak = place.weak
    inner = weak.mkdir("inner")
    chunk, file, version = make_chunk(noise(50, weak.token)), new_id(), new_id()
    weak.upload(version, file, chunk, parent=inner)
    content = messages.Content(version=version, manifest=manifest_of(chunk))
    weak.make("mine", inner, file=file, content=content)
    weak.do(messages.SetAttr(file=place.inside, mode=0o600))
    weak.do(
        messages.Rename(
            file=place.inside,
            parent=place.folder,
            name="inside",
            new_parent=inner,
            new_name="renamed",
        )
    )
    weak.do(messages.Unlink(file=place.inside, parent=inner, name="renamed"))
    assert set(anna.children(inner)) == {"mine"}


@pytest.mark.slow
def test_nothing_moves_out_or_in_or_changes_outside(anna: Client, place: Place) -> None:
    root, folder, inside, secret = anna.me.root, place.folder, place.inside, place.secret
    content = messages.Content(version=new_id(), manifest=manifest_of())

    def move(file: str, parent: str, name: str, to: str) -> messages.Rename:
        return messages.Rename(file=file, parent=parent, name=name, new_parent=to, new_name="x")

    refused: list[messages.Op] = [
        place.weak.create("x", root),
        move(inside, folder, "inside", root),
        move(secret, root, "secret", folder),
        move(folder, root, "folder", root),
        messages.Link(file=inside, parent=root, name="x"),
        messages.Link(file=secret, parent=folder, name="x"),
        messages.Write(file=secret, content=content, mtime_ns=1),
        messages.SetAttr(file=secret, mode=0),
        messages.SetXattr(file=secret, name="user.x", value=b""),
        messages.Unlink(file=secret, parent=root, name="secret"),
        messages.Unlink(file=folder, parent=root, name="folder"),
        messages.Exchange(
            file=inside,
            parent=folder,
            name="inside",
            other=secret,
            other_parent=root,
            other_name="secret",
        ),
        messages.Replace(
            file=inside,
            parent=folder,
            name="inside",
            new_parent=root,
            new_name="secret",
            target=secret,
        ),
        messages.Replace(
            file=secret,
            parent=root,
            name="secret",
            new_parent=folder,
            new_name="inside",
            target=inside,
        ),
        messages.Retake(file=inside, parent=root, name="inside", new_name="x", backup=new_id()),
        messages.Retake(file=secret, parent=root, name="secret", new_name="x", backup=new_id()),
        messages.Retake(file=folder, parent=root, name="folder", new_name="x", backup=new_id()),
        messages.Revert(file=secret, version=place.secret_version, as_version=new_id(), mtime_ns=1),
    ]
    before = anna.refresh().seq
    for op in refused:
        assert isinstance(place.weak.refused(op), errors.NotFound), op
    assert anna.refresh().seq == before


def test_a_version_of_outside_cannot_be_made_ones_own(anna: Client, place: Place) -> None:
    """Knowing a version's or a chunk's id is worth nothing."""
    adopt = messages.Content(version=place.secret_version, manifest=manifest_of(place.hidden))
    made = place.weak.create("stolen", content=adopt)
    assert not isinstance(place.weak.batch(made)[0], messages.Applied)
    fresh = messages.Content(version=new_id(), manifest=manifest_of(place.hidden))
    made = place.weak.create("stolen", content=fresh)
    assert isinstance(place.weak.refused(made), errors.ChunksMissing)
    revert = messages.Revert(
        file=place.inside, version=place.secret_version, as_version=new_id(), mtime_ns=1
    )
    assert isinstance(place.weak.refused(revert), errors.NotFound)
    assert set(anna.children(place.folder)) == {"inside"}


def test_uploads_are_for_files_in_the_folder(anna: Client, place: Place) -> None:
    weak = place.weak
    refused = (
        weak.start(new_id(), place.secret, place.chunk),
        weak.start(new_id(), new_id(), place.chunk, parent=anna.me.root),
    )
    assert [type(item) for item in refused] == [errors.NotFound] * 2
    assert isinstance(weak.start(new_id(), place.inside), messages.UploadState)


def test_which_chunks_the_drive_has_is_not_told(anna: Client, place: Place) -> None:
    unknown = make_chunk(noise(300, "nowhere" + anna.token))
    for parent in ({"parent": place.folder}, {}):
        begun = place.weak.start(new_id(), new_id(), place.hidden, unknown, **parent)
        if isinstance(begun, messages.UploadState):
            assert [item.state for item in begun.chunks] == ["needed"] * 2, parent


def test_uploads_of_other_devices_are_not_to_be_touched(anna: Client, place: Place) -> None:
    version, chunk = new_id(), make_chunk(noise(70, "u" + anna.token))
    anna.start(version, place.secret, chunk)
    path, more = f"/v1/uploads/{version}", messages.UrlsRequest([chunk.descriptor])
    weak = place.weak
    problems = [
        refusal(weak.request, "GET", path, messages.UploadState),
        refusal(weak.request, "POST", path + "/urls", messages.UploadState, more),
        refusal(weak.request, "DELETE", path, type(None)),
    ]
    assert {type(item) for item in problems} <= {errors.UploadUnknown, errors.NotFound}
    anna.request("GET", path, messages.UploadState)


# --- what a weak token may not at all -----------------------------------------------------------

BEYOND: dict[str, tuple[str, str, object]] = {
    "share": (
        "POST",
        "/v1/files/{folder}/share",
        ShareRequest(users=[Invite("x", "viewer")]),
    ),
    "unshare": ("DELETE", "/v1/files/{folder}/share/x", None),
    "make a link": ("POST", "/v1/files/{inside}/links", MakeLink()),
    "list its links": ("GET", "/v1/files/{inside}/links", None),
    "list links": ("GET", "/v1/links", None),
    "revoke a link": ("DELETE", "/v1/links/" + "1" * 32, None),
    "list the trash": ("GET", "/v1/trash", None),
    "empty the trash": ("POST", "/v1/trash/empty", EmptyTrash()),
    "list devices": ("GET", "/v1/devices", None),
    "make a token": ("POST", "/v1/devices", MakeToken(name="x")),
    "revoke a device": ("DELETE", "/v1/devices/" + "1" * 32, None),
}


@pytest.mark.parametrize("what", list(BEYOND)[:: amount(1, 3)])
def test_a_folder_token_is_forbidden(place: Place, what: str) -> None:
    method, path, message = BEYOND[what]
    path = path.format(folder=place.folder, inside=place.inside)
    got = refusal(place.weak.request, method, path, object, message)
    assert isinstance(got, errors.Forbidden), got


@pytest.mark.parametrize("what", list(BEYOND)[:: amount(1, 3)])
def test_a_read_token_is_forbidden(anna: Client, place: Place, what: str) -> None:
    method, path, message = BEYOND[what]
    path = path.format(folder=place.folder, inside=place.inside)
    got = refusal(token_for(anna, scope="read").request, method, path, object, message)
    assert isinstance(got, errors.Forbidden), got


# --- reading only -------------------------------------------------------------------------------


def test_a_read_token_reads_everything(anna: Client, place: Place) -> None:
    reader = token_for(anna, scope="read")
    assert reader.me.scope == "read"
    assert reader.me.root == anna.me.root
    assert set(reader.children()) == {"folder", "secret"}
    reader.locate(file=place.secret, version=place.secret_version, chunks=[place.hidden.id])
    reader.changes(reader.me.cursor)
    path = f"/v1/files/by-fingerprint/{fingerprint(manifest_of(place.hidden)).hex()}"
    reader.request("GET", path, messages.FingerprintReply)


@pytest.mark.slow
def test_a_read_token_changes_nothing(anna: Client, place: Place) -> None:
    reader, root = token_for(anna, scope="read"), anna.me.root
    gone = anna.make("gone")
    anna.do(messages.Unlink(file=gone, parent=root, name="gone"))
    before = anna.refresh().seq
    content = messages.Content(version=new_id(), manifest=manifest_of())
    inside = {"file": place.inside, "parent": place.folder, "name": "inside"}
    refused: list[messages.Op] = [
        reader.create("x"),
        messages.Write(file=place.secret, content=content, mtime_ns=1),
        messages.Link(file=place.secret, parent=root, name="x"),
        messages.Rename(**inside, new_parent=root, new_name="x"),
        messages.Replace(**inside, new_parent=root, new_name="secret", target=place.secret),
        messages.Exchange(**inside, other=place.secret, other_parent=root, other_name="secret"),
        messages.Unlink(**inside),
        messages.SetAttr(file=place.inside, mode=0),
        messages.SetXattr(file=place.inside, name="user.x", value=b""),
        messages.Revert(file=place.inside, version=place.version, as_version=new_id(), mtime_ns=1),
        messages.Recover(file=gone),
    ]
    for op in refused:
        assert isinstance(reader.refused(op), errors.Forbidden), op
    assert anna.refresh().seq == before


def test_a_read_token_has_nothing_to_do_with_uploads(anna: Client, place: Place) -> None:
    reader = token_for(anna, scope="read")
    version, chunk = new_id(), make_chunk(noise(70, "r" + anna.token))
    anna.start(version, place.secret, chunk)
    for file, more in (
        (place.secret, {}),
        (new_id(), {"parent": place.folder}),
        (new_id(), {}),
    ):
        assert isinstance(reader.start(new_id(), file, chunk, **more), errors.Forbidden)
    path, urls = f"/v1/uploads/{version}", messages.UrlsRequest([chunk.descriptor])
    op = messages.Write(
        file=place.secret,
        content=messages.Content(version=version, manifest=manifest_of(chunk)),
        mtime_ns=1,
    )
    complete = messages.CompleteUpload(key=new_id(), op=op)
    for method, rest, message in (
        ("POST", "/urls", urls),
        ("POST", "/complete", complete),
        ("DELETE", "", None),
    ):
        got = refusal(reader.request, method, path + rest, object, message)
        assert isinstance(got, errors.Forbidden | errors.ChunksMissing), (method, rest, got)
    anna.request("GET", path, messages.UploadState)


def test_both_at_once(anna: Client, place: Place) -> None:
    weak = token_for(anna, scope="read", folder=place.folder)
    assert set(weak.children()) == {"inside"}
    assert isinstance(refusal(weak.file, place.secret), errors.NotFound)
    assert isinstance(weak.refused(weak.create("x")), errors.Forbidden)
    assert isinstance(weak.refused(weak.create("x", anna.me.root)), errors.NotFound)


def test_a_folder_in_the_trash_is_no_place_to_work(anna: Client) -> None:
    folder = anna.mkdir("soon gone")
    weak = token_for(anna, folder=folder)
    anna.do(messages.Unlink(file=folder, parent=anna.me.root, name="soon gone"))
    assert isinstance(weak.refused(weak.create("x")), errors.NotFound)


def test_what_is_used_and_promised_is_not_told(anna: Client, place: Place) -> None:
    """It would tell, without sending a byte, whether a chunk is somewhere in the drive."""
    told = []
    for chunk in (place.hidden, make_chunk(noise(300, "nowhere" + anna.token))):
        place.weak.start(new_id(), new_id(), chunk, parent=place.folder)
        me = place.weak.refresh()
        told.append((me.used_bytes, me.reserved_bytes, me.quota_bytes))
    assert told[0] == told[1]
    assert anna.refresh().used_bytes == 600
