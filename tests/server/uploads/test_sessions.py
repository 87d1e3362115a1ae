"""Uploads over HTTP: sessions, presigned PUTs, and the commit that makes a version visible."""

from __future__ import annotations

import hashlib
import socket
import time
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from remote.protocol import errors, messages
from remote.protocol.account_messages import EmptiedReply, EmptyTrash
from remote.protocol.codec import encode_chunk
from remote.protocol.content import Manifest, Piece
from server.drive import versions
from server.metadata import schema
from server.storage.blobs import BlobKey, Head
from tests.server.conftest import Start
from tests.server.deep import counted
from tests.server.drive.test_sharing import share
from tests.server.harness import (
    Chunk,
    Client,
    Failed,
    Running,
    make_chunk,
    manifest_of,
    new_id,
    noise,
    until,
)
from tests.server.lookups import change_row


def content(version: str, *chunks: Chunk) -> messages.Content:
    return messages.Content(version=version, manifest=manifest_of(*chunks))


def test_a_file_goes_up_and_comes_back(anna: Client) -> None:
    chunks = [make_chunk(noise(700_000, "a")), make_chunk(noise(10, "b"))]
    file, version = anna.store("movie", *chunks)
    assert anna.children()["movie"].size == 700_010
    reply = anna.locate(file=file, version=version, chunks=[c.id for c in chunks], manifest=True)
    assert reply.manifest == manifest_of(*chunks)
    for located, chunk in zip(reply.chunks, chunks, strict=True):
        assert located.descriptor == chunk.descriptor
        assert anna.http.get(located.url).content == chunk.data


def test_complete_commits_an_upload(anna: Client) -> None:
    chunk, file, version = make_chunk(b"abc"), new_id(), new_id()
    anna.upload(version, file, chunk)
    op = anna.create("a", file=file, content=content(version, chunk))
    wanted = messages.CompleteUpload(key=new_id(), op=op)
    path = f"/v1/uploads/{version}/complete"
    applied = anna.request("POST", path, messages.Applied, wanted)
    assert anna.request("POST", path, messages.Applied, wanted) == applied
    assert anna.children()["a"].version == version
    with pytest.raises(Failed) as failed:
        anna.request("POST", f"/v1/uploads/{new_id()}/complete", messages.Applied, wanted)
    assert failed.value.status == 400
    taken = messages.CompleteUpload(key=new_id(), op=msgspec.structs.replace(op, file=new_id()))
    with pytest.raises(Failed) as failed:
        anna.request("POST", path, messages.Applied, taken)
    assert (failed.value.status, type(failed.value.problem)) == (409, errors.Exists)


def test_a_version_is_invisible_until_it_is_committed(anna: Client) -> None:
    file, first = anna.store("a", make_chunk(b"one"))
    version, chunk = new_id(), make_chunk(b"two")
    anna.upload(version, file, chunk)
    assert anna.file(file).file.version == first
    page = anna.request("GET", f"/v1/files/{file}/versions", messages.VersionsPage)
    assert [v.id for v in page.versions] == [first]
    for kind in ("span", "chunks"):
        wanted = {"span": messages.Span(0, 1)} if kind == "span" else {"chunks": [chunk.id]}
        with pytest.raises(Failed) as failed:
            anna.locate(file=file, version=version, **wanted)
        assert failed.value.status == 404


def test_an_upload_is_resumed(anna: Client) -> None:
    chunks = [make_chunk(noise(50, f"resume {n}")) for n in range(3)]
    file, version = new_id(), new_id()
    begun = anna.start(version, file, *chunks[:2])
    assert [t.state for t in begun.chunks] == ["needed", "needed"]
    anna.put(begun.chunks[0], chunks[0])
    path = f"/v1/uploads/{version}"
    until(
        lambda: (
            {t.id: t.state for t in anna.request("GET", path, messages.UploadState).chunks}
            == {chunks[0].id: "uploaded", chunks[1].id: "needed"}
        )
    )
    again = anna.start(version, file, *chunks[:2])
    assert [t.state for t in again.chunks] == ["uploaded", "needed"]
    more = messages.UrlsRequest([c.descriptor for c in chunks[1:]])
    tickets = anna.request("POST", f"{path}/urls", messages.UploadState, more).chunks
    assert [t.state for t in tickets] == ["needed", "needed"]
    for ticket, chunk in zip(tickets, chunks[1:], strict=True):
        assert anna.put(ticket, chunk).status_code == 200
    anna.make("a", file=file, content=content(version, *chunks))
    done = anna.start(version, file, *chunks)
    assert (done.status, done.chunks) == ("uploaded", [])
    with pytest.raises(Failed) as failed:
        anna.request("GET", path, messages.UploadState)
    assert isinstance(failed.value.problem, errors.UploadUnknown)


def test_a_chunk_the_drive_has_is_not_needed(anna: Client, ben: Client) -> None:
    shared, own = make_chunk(noise(9, "dedup")), make_chunk(noise(9, "own"))
    anna.store("a", shared)
    file, version = new_id(), new_id()
    assert anna.upload(version, file, shared, own) == 1
    anna.make("b", file=file, content=content(version, own, shared, own))
    assert anna.children()["b"].size == 27
    assert anna.refresh().used_bytes == 18
    begun = ben.start(new_id(), new_id(), shared)
    assert begun.chunks[0].state == "needed"


def test_a_put_that_is_not_as_signed_leaves_nothing(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(1000, "signed"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    assert ticket.put is not None
    other = noise(1000, "other")
    checksum = msgspec.json.encode(hashlib.sha256(other).digest()).decode().strip('"')
    url = ticket.put.url
    assert anna.put(ticket, chunk, content=other).status_code == 400
    wrong = {"x-amz-checksum-sha256": checksum}
    assert anna.put(ticket, chunk, content=other, **wrong).status_code == 403
    for body in (chunk.data[:-1], chunk.data + b"x"):
        sent = {"Content-Length": str(len(body))}
        assert anna.put(ticket, chunk, content=body, **sent).status_code == 403
    assert anna.put(ticket, chunk, url=url.replace("expires=", "expires=9")).status_code == 403
    assert anna.put(ticket, chunk, url=url[:-1] + "x").status_code == 403
    assert anna.put(ticket, chunk, url=url + "&x=1").status_code == 403
    assert anna.put(ticket, chunk, url=url.replace("/blobs/", "/blobs//")).status_code == 400
    assert anna.put(ticket, chunk, **{"If-None-Match": "x"}).status_code == 400
    assert anna.put(ticket, chunk, **{"x-amz-checksum-sha256": "?"}).status_code == 400
    assert not server.app.service.blobs.has(BlobKey(anna.me.drive, chunk.id))
    assert list((server.data / "blobs" / "incoming").iterdir()) == []
    assert anna.put(ticket, chunk).status_code == 200
    assert anna.put(ticket, chunk).status_code == 412


@pytest.mark.slow
def test_a_long_put_streams_and_a_wrong_one_leaves_nothing(server: Running, anna: Client) -> None:
    data = noise(9_000_000, "long")
    chunk = make_chunk(data)
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    key = BlobKey(anna.me.drive, chunk.id)
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    assert anna.put(ticket, chunk, content=damaged).status_code == 400
    assert not server.app.service.blobs.has(key)
    assert list((server.data / "blobs" / "incoming").iterdir()) == []
    assert anna.put(ticket, chunk).status_code == 200
    assert anna.put(ticket, chunk).status_code == 412
    assert server.app.service.blobs.read(key, 8_999_990, 100) == data[-10:]


def test_a_refused_put_does_not_spoil_the_connection(anna: Client) -> None:
    chunk = make_chunk(noise(6_000_000, "refused"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    assert ticket.put is not None
    for _ in range(3):
        assert anna.put(ticket, chunk, url=ticket.put.url[:-1] + "x").status_code == 403
    assert anna.put(ticket, chunk).status_code == 200
    for _ in range(3):
        assert anna.put(ticket, chunk).status_code == 412


def test_a_put_that_breaks_off_leaves_nothing(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(9_000_000, "broken"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    assert ticket.put is not None
    incoming = server.data / "blobs" / "incoming"
    host, port = server.url.removeprefix("http://").split(":")
    headers = "".join(f"{name}: {value}\r\n" for name, value in ticket.put.headers.items())
    target = ticket.put.url.removeprefix(server.url)
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"PUT {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        raw.sendall(chunk.data[:6_000_000])
        until(lambda: any(path.stat().st_size for path in incoming.iterdir()))
    until(lambda: list(incoming.iterdir()) == [])
    assert anna.put(ticket, chunk).status_code == 200


def test_an_expired_put_url_is_refused(start: Start) -> None:
    server = start(put_url_seconds=30)
    anna = server.account("anna")
    chunk = make_chunk(b"late")
    past = time.time_ns() - 31 * 10**9
    head = Head(chunk.descriptor.stored_length, chunk.descriptor.sha256)
    put = server.app.service.signer.put(BlobKey(anna.me.drive, chunk.id), head, past)
    ticket = messages.ChunkTicket(id=chunk.id, state="needed", put=put)
    assert anna.put(ticket, chunk).status_code == 403


def test_an_object_whose_event_was_lost_is_found_at_commit(server: Running, anna: Client) -> None:
    chunk, file, version = make_chunk(noise(77, "lost")), new_id(), new_id()
    anna.start(version, file, chunk)
    with server.app.service.blobs.create(BlobKey(anna.me.drive, chunk.id)) as writer:
        writer.write(chunk.data)
        writer.commit()
    anna.make("a", file=file, content=content(version, chunk))
    assert anna.refresh().used_bytes == 77


def test_an_object_that_is_not_what_was_promised_is_not_believed(
    server: Running, anna: Client
) -> None:
    chunk, file, version = make_chunk(noise(77, "promise")), new_id(), new_id()
    anna.start(version, file, chunk)
    with server.app.service.blobs.create(BlobKey(anna.me.drive, chunk.id)) as writer:
        writer.write(noise(77, "another"))
        writer.commit()
    op = anna.create("a", file=file, content=content(version, chunk))
    assert isinstance(anna.refused(op), errors.ChunksMissing)


def test_two_devices_may_store_a_chunk_differently(server: Running, anna: Client) -> None:
    """The descriptor of what arrives becomes the chunk's, whoever promised first."""
    chunk = make_chunk(noise(3_000, "codec") * 100)
    other, packed = encode_chunk(chunk.data)
    assert other.codec == "zstd"
    anna.start(new_id(), new_id(), chunk)
    phone = server.device(anna.me.account, "phone")
    file, version = new_id(), new_id()
    phone.upload(version, file, Chunk(bytes(packed), other))
    phone.make("a", file=file, content=content(version, chunk))
    located = phone.locate(file=file, version=version, chunks=[chunk.id]).chunks[0]
    assert located.descriptor == other
    assert phone.http.get(located.url).content == packed
    assert (anna.refresh().used_bytes, anna.me.reserved_bytes) == (len(packed), 0)


def test_descriptors_must_hash_to_their_id(anna: Client) -> None:
    good = make_chunk(noise(10)).descriptor
    lies = [
        msgspec.structs.replace(good, id=bytes(32)),
        msgspec.structs.replace(good, length=11, stored_lengths=[11]),
        msgspec.structs.replace(good, stored_lengths=[10, 1]),
        msgspec.structs.replace(good, codec="zstd", stored_lengths=[11]),
    ]
    for lie in lies:
        answer = anna.start(new_id(), new_id(), Chunk(b"", lie))
        assert isinstance(answer, errors.BadUpload)


def test_manifests_must_add_up(anna: Client) -> None:
    chunk, file, version = make_chunk(noise(10, "sum")), new_id(), new_id()
    anna.upload(version, file, chunk)
    wrong = [
        Manifest(size=11, average=1 << 20, pieces=[Piece(chunk.id, 10)]),
        Manifest(size=11, average=1 << 20, pieces=[Piece(chunk.id, 11)]),
        Manifest(size=5, average=1 << 20, pieces=[Piece(chunk.id[:5], 5)]),
        Manifest(size=2, average=1 << 20, pieces=[Piece(b"", 1), Piece(b"", 1)]),
        Manifest(size=15, average=1 << 20, pieces=[Piece(chunk.id, 10), Piece(chunk.id, 5)]),
    ]
    for manifest in wrong:
        op = anna.create(
            "a", file=file, content=messages.Content(version=version, manifest=manifest)
        )
        assert isinstance(anna.refused(op), errors.BadUpload), manifest
    sparse = Manifest(size=1 << 50, average=1 << 20, pieces=[Piece(b"", 1 << 50)])
    anna.make("hole", content=messages.Content(version=new_id(), manifest=sparse))
    assert anna.children()["hole"].size == 1 << 50


def test_a_manifest_has_no_more_pieces_than_its_size_and_average_explain(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was there before stays as it is: read, and brought back."""
    chunk, file, version = make_chunk(b"x"), new_id(), new_id()
    fine = Manifest(size=3000, average=1 << 20, pieces=[Piece(chunk.id, 1)] * 3000)
    anna.upload(version, file, chunk)
    create = anna.create("a", file=file, content=messages.Content(version=version, manifest=fine))
    answer = anna.refused(create)
    assert isinstance(answer, errors.BadUpload)
    assert "cut the file anew" in answer.message
    with monkeypatch.context() as before:
        before.setattr(versions, "check_cut", lambda _: None)
        anna.do(create)
    assert anna.file(file, version=version, manifest=True).manifest == fine
    second, whole = new_id(), make_chunk(b"x" * 3000)
    anna.upload(second, file, whole)
    anna.do(messages.Write(file=file, content=content(second, whole), mtime_ns=1))
    anna.do(messages.Revert(file=file, version=version, as_version=new_id(), mtime_ns=1))


def test_sessions_belong_to_their_account(anna: Client, ben: Client) -> None:
    chunk, file, version = make_chunk(noise(10, "mine")), new_id(), new_id()
    anna.start(version, file, chunk)
    for method, path, message in (
        ("GET", f"/v1/uploads/{version}", None),
        ("POST", f"/v1/uploads/{version}/urls", messages.UrlsRequest([chunk.descriptor])),
        ("DELETE", f"/v1/uploads/{version}", None),
    ):
        with pytest.raises(Failed) as failed:
            ben.request(method, path, messages.UploadState, message)
        assert isinstance(failed.value.problem, errors.UploadUnknown)
    assert isinstance(ben.start(version, file, chunk), errors.Exists)
    assert isinstance(ben.start(version, new_id(), chunk), errors.Exists)


def test_an_upload_may_end_in_another_file_than_it_began_for(anna: Client) -> None:
    """A temporary file is uploaded, then renamed over the file that it is the new content of."""
    chunk = make_chunk(noise(10, "temporary"))
    target, base = anna.store("doc", make_chunk(b"old"))
    for again in (False, True):
        temporary, version = new_id(), new_id()
        anna.upload(version, temporary, chunk)
        if again:
            assert anna.start(version, target, chunk).status == "uploading"
        anna.do(messages.Write(file=target, content=content(version, chunk), mtime_ns=1))
        assert anna.file(target).file.version == version
        assert isinstance(anna.start(version, temporary, chunk), errors.Exists)
        with pytest.raises(Failed):
            anna.request("GET", f"/v1/uploads/{version}", messages.UploadState)
    page = anna.request("GET", f"/v1/files/{target}/versions", messages.VersionsPage)
    assert len(page.versions) == 3
    assert page.versions[-1].id == base


def test_a_version_id_of_another_accounts_upload_cannot_be_taken(anna: Client, ben: Client) -> None:
    version = new_id()
    anna.start(version, new_id(), make_chunk(b"x"))
    assert isinstance(ben.refused(ben.create("a", content=content(version))), errors.Exists)


def test_an_upload_into_anothers_file_or_directory_is_refused(anna: Client, ben: Client) -> None:
    file = anna.make("a")
    assert isinstance(ben.start(new_id(), file), errors.NotFound)
    assert isinstance(ben.start(new_id(), new_id(), parent=anna.me.root), errors.NotFound)


def test_an_abandoned_session_is_gone(anna: Client) -> None:
    chunk, file, version = make_chunk(noise(10, "gone")), new_id(), new_id()
    anna.start(version, file, chunk)
    path = f"/v1/uploads/{version}"
    anna.request("DELETE", path, object)
    with pytest.raises(Failed) as failed:
        anna.request("DELETE", path, object)
    assert (failed.value.status, type(failed.value.problem)) == (404, errors.UploadUnknown)
    assert anna.start(version, file, chunk).chunks[0].state == "needed"


def test_an_expired_session_is_unknown_and_can_be_begun_again(
    server: Running, anna: Client
) -> None:
    chunk, file, version = make_chunk(noise(10, "old")), new_id(), new_id()
    anna.start(version, file, chunk)
    with server.app.service.db.write() as conn:
        mine = schema.uploads.c.version == version
        conn.execute(update(schema.uploads).where(mine).values(expires_ns=1))
    with pytest.raises(Failed) as failed:
        anna.request("GET", f"/v1/uploads/{version}", messages.UploadState)
    assert isinstance(failed.value.problem, errors.UploadUnknown)
    assert anna.start(version, file, chunk).status == "uploading"
    anna.request("GET", f"/v1/uploads/{version}", messages.UploadState)


def test_a_doomed_chunk_is_revived(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(10, "doomed"))
    anna.store("a", chunk)

    def doom() -> None:
        with server.app.service.db.write() as conn:
            here = (schema.chunks.c.drive == anna.me.drive) & (schema.chunks.c.id == chunk.id)
            conn.execute(update(schema.chunks).where(here).values(state="doomed", doomed_ns=1))

    doom()
    assert anna.start(new_id(), new_id(), chunk).chunks[0].state == "uploaded"
    doom()
    anna.make("b", content=content(new_id(), chunk))
    with server.app.service.db.read() as conn:
        here = (schema.chunks.c.drive == anna.me.drive) & (schema.chunks.c.id == chunk.id)
        row = conn.execute(schema.chunks.select().where(here)).one()
    assert (row.state, row.doomed_ns) == ("uploaded", None)


def test_one_bad_upload_of_a_batch_does_not_spoil_the_rest(anna: Client) -> None:
    good, bad = make_chunk(noise(10, "good")), make_chunk(noise(10, "bad")).descriptor
    bad = msgspec.structs.replace(bad, id=bytes(32))
    wanted = messages.StartUploads(
        uploads=[
            messages.StartUpload(version=new_id(), file=new_id(), descriptors=[bad]),
            messages.StartUpload(version=new_id(), file=new_id(), descriptors=[good.descriptor]),
        ]
    )
    reply = anna.request("POST", "/v1/files", messages.StartUploadsReply, wanted)
    assert [type(item) for item in reply.uploads] == [errors.BadUpload, messages.UploadState]
    path = f"/v1/uploads/{wanted.uploads[0].version}"
    with pytest.raises(Failed):
        anna.request("GET", path, messages.UploadState)


def test_descriptors_of_many_uploads_are_taken_in_parts(anna: Client) -> None:
    """A megabyte of small ones would hold up all other writers for long."""
    chunks = [make_chunk(b"%d %s" % (n, anna.token.encode())) for n in range(1100)]
    parts = [chunks[:600], chunks[600:1000], chunks[1000:1099], chunks[1099:]]
    wanted = [
        messages.StartUpload(
            version=new_id(), file=new_id(), descriptors=[chunk.descriptor for chunk in part]
        )
        for part in parts
    ]

    def begin(*some: messages.StartUpload) -> list[type]:
        asked = messages.StartUploads(uploads=list(some))
        reply = anna.request("POST", "/v1/files", messages.StartUploadsReply, asked)
        return [type(item) for item in reply.uploads]

    late = [errors.Unavailable, errors.Unavailable]
    assert begin(*wanted) == [messages.UploadState, messages.UploadState, *late]
    assert begin(*wanted[2:]) == [messages.UploadState, messages.UploadState]


def test_uploads_and_the_trash_make_way_for_others_too(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if others waited all the time: something is done, and the rest is to be asked again."""
    made = [anna.create(f"{number}", kind="fifo") for number in range(50)]
    anna.batch(*made)
    anna.batch(*[messages.Unlink(file=op.file, parent=op.parent, name=op.name) for op in made])
    monkeypatch.setattr(server.app.service, "turn", lambda _whose: lambda: True)
    wanted = [
        messages.StartUpload(version=new_id(), file=new_id(), descriptors=[]) for _ in range(3)
    ]
    path, request = "/v1/files", messages.StartUploads(uploads=wanted)
    begun = anna.request("POST", path, messages.StartUploadsReply, request).uploads
    late = [errors.Unavailable, errors.Unavailable]
    assert [type(item) for item in begun] == [messages.UploadState, *late]
    gone, more = 0, True
    while more:
        reply = anna.request("POST", "/v1/trash/empty", EmptiedReply, EmptyTrash(files=None))
        assert 0 < reply.files < 50
        gone, more = gone + reply.files, reply.more
    assert gone == 50
    ops = [anna.create(name, kind="fifo") for name in "abc"]
    answers = [type(item) for item in anna.batch(*ops)]
    assert answers == [messages.Applied, *late]


def test_what_a_crash_left_half_made_is_swept_at_start(start: Start, tmp_path: Path) -> None:
    start().stop()
    left = tmp_path / "data" / "blobs" / "incoming" / "half"
    left.write_bytes(b"half")
    start()
    assert not left.exists()


def test_whole_versions_are_located_together_each_refused_by_itself(
    anna: Client, ben: Client
) -> None:
    chunks = [make_chunk(noise(1000, str(number))) for number in range(3)]
    stored = [anna.store(f"f{number}", chunk) for number, chunk in enumerate(chunks)]
    theirs = ben.store("theirs", make_chunk(noise(10, "theirs")))
    empty = anna.make("empty")
    version = anna.file(empty).file.version
    assert version is not None
    wanted = [stored[0], theirs, (stored[1][0], stored[2][1]), stored[1], (empty, version)]
    request = messages.LocateSeveral(versions=[messages.WholeVersion(*one) for one in wanted])
    path = "/v1/chunks/locate-several"
    found = anna.request("POST", path, messages.LocateSeveralReply, request).found
    assert [isinstance(one, messages.LocatedVersion) for one in found] == [
        True, False, False, True, True,
    ]  # fmt: skip
    assert isinstance(found[1], errors.NotFound)
    for one, chunk in zip((found[0], found[3]), chunks, strict=False):
        assert isinstance(one, messages.LocatedVersion)
        assert one.manifest.pieces[0].id == chunk.id
        assert [item.descriptor for item in one.chunks] == [chunk.descriptor]
        assert anna.http.get(one.chunks[0].url).content == chunk.data
    assert isinstance(found[4], messages.LocatedVersion)
    assert found[4].chunks == []


def test_what_is_above_many_versions_is_climbed_once(
    server: Running, anna: Client, ben: Client
) -> None:
    """A tree may be very deep, and who was given it comes to each of its files from the top."""
    top = deep = anna.mkdir("top")
    for number in range(40):
        deep = anna.mkdir(f"{number}", deep)
    share(anna, top, ben)
    wanted = []
    for number in range(30):
        file = anna.make(f"{number}", deep)
        version = anna.file(file).file.version
        assert version is not None
        wanted.append(messages.WholeVersion(file, version))
    path = "/v1/chunks/locate-several"
    request = messages.LocateSeveral(versions=wanted)
    with counted(server.app.service.db) as asked:
        found = ben.request("POST", path, messages.LocateSeveralReply, request).found
    assert {type(one) for one in found} == {messages.LocatedVersion}
    assert len([item for item in asked if "RECURSIVE" in item]) <= 2


def test_a_version_of_very_many_pieces_is_not_located_with_others(anna: Client) -> None:
    """A hundred of the longest manifests would be more than the server has memory for."""
    chunk = make_chunk(noise(1 << 20, "again and again"))
    few, many = ([Piece(chunk.id, chunk.descriptor.length)] * count for count in (10, 3000))
    made = []
    for name, pieces in (("few", few), ("many", many)):
        file, version = new_id(), new_id()
        anna.upload(version, file, chunk)
        manifest = Manifest(sum(item.length for item in pieces), 1 << 20, pieces)
        content = messages.Content(version=version, manifest=manifest)
        anna.do(anna.create(name, file=file, content=content))
        made.append(messages.WholeVersion(file, version))
    request = messages.LocateSeveral(versions=[made[1], made[0], made[1]])
    path = "/v1/chunks/locate-several"
    found = anna.request("POST", path, messages.LocateSeveralReply, request).found
    kinds = [type(item) for item in found]
    assert kinds == [errors.TooLarge, messages.LocatedVersion, errors.TooLarge]


def test_what_is_damaged_keeps_no_other_version_from_being_located(
    server: Running, anna: Client
) -> None:
    chunks = [make_chunk(noise(1000, f"beside {number}")) for number in range(3)]
    stored = [anna.store(f"b{number}", chunk) for number, chunk in enumerate(chunks)]
    server.app.service.blobs.delete(BlobKey(anna.me.drive, chunks[1].id))
    change_row(server, anna.me.drive, chunks[1].id, state="pending", verified_ns=None)
    wanted = [messages.WholeVersion(*item) for item in stored]
    request = messages.LocateSeveral(versions=wanted)
    path = "/v1/chunks/locate-several"
    found = anna.request("POST", path, messages.LocateSeveralReply, request).found
    kinds = [type(each) for each in found]
    assert kinds == [messages.LocatedVersion, errors.Unavailable, messages.LocatedVersion]
