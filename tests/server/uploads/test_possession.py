"""A caller who does not own the drive must have the bytes of what he names, and learns nothing by
asking."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import httpx
import msgspec
import pytest

from remote.protocol import errors, messages
from remote.protocol.account_messages import MakeToken, TokenReply
from remote.protocol.codec import encode_chunk
from remote.protocol.content import Piece, fingerprint
from server.storage.blobs import BlobKey
from server.uploads import reception
from tests.server.drive.test_sharing import share, unshare
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
from tests.server.lookups import check_sums, expire, nothing_left, row_of, until_verified


@pytest.fixture
def folder(anna: Client) -> str:
    return anna.mkdir("shared")


def folder_token(anna: Client, folder: str) -> Client:
    reply = anna.request("POST", "/v1/devices", TokenReply, MakeToken(name="weak", folder=folder))
    client = Client(anna.http, reply.token)
    client.refresh()
    return client


@pytest.fixture(params=["editor", "folder token"])
def guest(request: pytest.FixtureRequest, anna: Client, ben: Client, folder: str) -> Client:
    """Somebody who may write in Anna's folder, and sees nothing else of her drive."""
    if request.param == "editor":
        share(anna, folder, ben)
        return ben
    return folder_token(anna, folder)


def content(version: str, *chunks: Chunk) -> messages.Content:
    return messages.Content(version=version, manifest=manifest_of(*chunks))


def create(guest: Client, folder: str, version: str, *chunks: Chunk) -> Any:
    op = guest.create(new_id(), folder, content=content(version, *chunks))
    return guest.batch(op)[0]


def shape(ticket: messages.ChunkTicket, chunk: Chunk) -> object:
    """A ticket without what must differ between any two."""
    assert ticket.put is not None
    hidden = re.sub(r"expires=\d+|signature=\w+|proof=\w+", "", ticket.put.url)
    hidden = hidden.replace(chunk.id.hex(), "CHUNK")
    return ticket.state, hidden, sorted(ticket.put.headers)


def test_a_chunk_that_is_there_looks_as_if_it_were_not(
    server: Running, anna: Client, guest: Client, folder: str
) -> None:
    there, absent = make_chunk(noise(999, "there")), make_chunk(noise(999, "absent"))
    anna.store("private", there)
    version = new_id()
    begun = guest.start(version, new_id(), there, absent, parent=folder)
    one, other = begun.chunks
    assert shape(one, there) == shape(other, absent)
    path = f"/v1/uploads/{version}"
    state = guest.request("GET", path, messages.UploadState)
    assert [ticket.state for ticket in state.chunks] == ["needed", "needed"]
    refused = [create(guest, folder, version, chunk) for chunk in (there, absent)]
    assert [type(item) for item in refused] == [errors.ChunksMissing] * 2
    assert refused[0].message == refused[1].message
    assert [refused[0].chunks, refused[1].chunks] == [[there.id], [absent.id]]
    for chunk in (there, absent):  # and the length of what is there is not told either
        longer = messages.Manifest(size=1000, average=1 << 20, pieces=[Piece(chunk.id, 1000)])
        lie = messages.Content(version=version, manifest=longer)
        assert isinstance(
            guest.refused(guest.create("x", folder, content=lie)), errors.ChunksMissing
        )


def test_having_the_bytes_is_enough_and_the_answer_tells_nothing(
    server: Running, anna: Client, guest: Client, folder: str
) -> None:
    there, absent = make_chunk(noise(999, "both have")), make_chunk(noise(999, "only guest has"))
    anna.store("private", there)
    used = anna.refresh().used_bytes
    version = new_id()
    begun = guest.start(version, new_id(), there, absent, parent=folder)
    answers = [guest.put(t, c) for t, c in zip(begun.chunks, (there, absent), strict=True)]
    assert [item.status_code for item in answers] == [200, 200]
    assert visible(answers[0]) == visible(answers[1])
    again = guest.start(version, new_id(), there, absent, parent=folder)
    assert [ticket.state for ticket in again.chunks] == ["uploaded", "uploaded"]
    assert isinstance(create(guest, folder, version, there, absent), messages.Applied)
    assert anna.refresh().used_bytes == used + 999
    assert anna.me.reserved_bytes == 0
    check_sums(server, anna.me.drive)


def visible(answer: httpx.Response) -> object:
    headers = {k: v for k, v in answer.headers.items() if k not in ("date", "x-request-id", "etag")}
    return answer.status_code, answer.content, headers


def test_a_proof_is_repeated_like_the_first(anna: Client, guest: Client, folder: str) -> None:
    chunk = make_chunk(noise(77, "again"))
    ticket = guest.start(new_id(), new_id(), chunk, parent=folder).chunks[0]
    assert [guest.put(ticket, chunk).status_code for _ in range(3)] == [200, 200, 200]


def test_a_proof_is_for_one_upload(anna: Client, guest: Client, folder: str) -> None:
    chunk = make_chunk(noise(77, "one upload"))
    one, other = new_id(), new_id()
    guest.upload(one, new_id(), chunk, parent=folder)
    begun = guest.start(other, new_id(), chunk, parent=folder)
    assert begun.chunks[0].state == "needed"
    assert isinstance(create(guest, folder, other, chunk), errors.ChunksMissing)
    assert isinstance(create(guest, folder, one, chunk), messages.Applied)


def test_the_proof_is_the_whole_body(
    server: Running, anna: Client, guest: Client, folder: str
) -> None:
    """Also of a chunk that is there: other bytes, or fewer, prove nothing."""
    chunk = make_chunk(noise(5_000_000, "whole"))
    anna.store("private", chunk)
    version = new_id()
    ticket = guest.start(version, new_id(), chunk, parent=folder).chunks[0]
    damaged = chunk.data[:-1] + bytes([chunk.data[-1] ^ 1])
    assert guest.put(ticket, chunk, content=damaged).status_code == 400
    fewer = {"Content-Length": "10"}
    assert guest.put(ticket, chunk, content=chunk.data[:10], **fewer).status_code == 403
    assert isinstance(create(guest, folder, version, chunk), errors.ChunksMissing)
    assert list((server.data / "blobs" / "incoming").iterdir()) == []
    assert guest.put(ticket, chunk).status_code == 200
    assert isinstance(create(guest, folder, version, chunk), messages.Applied)


def test_what_is_no_chunk_is_never_stored(
    server: Running, anna: Client, guest: Client, folder: str
) -> None:
    """A descriptor may lie about how a chunk is stored; what a guest sends is looked at first."""
    honest, bytes_ = make_chunk(noise(600, "honest")), noise(600, "something else")
    liar = Chunk(bytes_, with_sha256(honest, bytes_))
    ticket = guest.start(new_id(), new_id(), liar, parent=folder).chunks[0]
    assert guest.put(ticket, liar).status_code == 400
    assert nothing_left(server, anna.me.drive, honest.id)
    anna.store("mine", honest)
    assert anna.refresh().used_bytes == 600


def with_sha256(chunk: Chunk, data: bytes) -> Any:
    return msgspec.structs.replace(chunk.descriptor, sha256=hashlib.sha256(data).digest())


def test_another_form_of_a_chunk_that_is_there_is_proof_too(
    server: Running, anna: Client, guest: Client, folder: str
) -> None:
    plain = make_chunk(noise(300, "form") * 1000)
    packed = encode_chunk(plain.data)
    anna.store("private", plain)
    version = new_id()
    form = Chunk(bytes(packed.body), packed.descriptor)
    assert guest.upload(version, new_id(), form, parent=folder) == 1
    assert isinstance(create(guest, folder, version, form), messages.Applied)
    row = row_of(server, anna.me.drive, plain.id)
    assert row is not None
    assert row.sha256 == plain.descriptor.sha256


def test_what_a_guest_can_read_in_a_file_is_not_sent_again(
    anna: Client, guest: Client, folder: str
) -> None:
    old, new = make_chunk(noise(50, "old")), make_chunk(noise(50, "new"))
    file, _ = anna.store("document", old, parent=folder)
    elsewhere = make_chunk(noise(50, "elsewhere"))
    anna.store("private", elsewhere)
    version = new_id()
    begun = guest.start(version, file, old, new, elsewhere)
    assert [t.state for t in begun.chunks] == ["uploaded", "needed", "needed"]
    assert guest.put(begun.chunks[1], new).status_code == 200
    op = messages.Write(file=file, content=content(version, old, new), mtime_ns=1)
    assert guest.do(op).change.files[0].size == 100
    shorter = messages.Write(file=file, content=content(new_id(), old), mtime_ns=1)
    assert guest.do(shorter).change.files[0].size == 50
    other = guest.create("copy", folder, content=content(new_id(), old))
    assert isinstance(guest.refused(other), errors.ChunksMissing)


def test_an_owner_sends_nothing_twice(anna: Client, guest: Client, folder: str) -> None:
    chunk = make_chunk(noise(60, "by the guest"))
    version = new_id()
    guest.upload(version, new_id(), chunk, parent=folder)
    assert isinstance(create(guest, folder, version, chunk), messages.Applied)
    assert anna.start(new_id(), new_id(), chunk).chunks[0].state == "uploaded"


def test_a_proof_for_an_upload_that_is_over_leaves_nothing(
    server: Running, anna: Client, guest: Client, folder: str
) -> None:
    chunk, version = make_chunk(noise(60, "over")), new_id()
    ticket = guest.start(version, new_id(), chunk, parent=folder).chunks[0]
    expire(server, version)
    assert guest.put(ticket, chunk).status_code == 403
    assert nothing_left(server, anna.me.drive, chunk.id)
    assert isinstance(create(guest, folder, version, chunk), errors.ChunksMissing)


def test_an_upload_whose_grant_is_gone_is_over(anna: Client, ben: Client, folder: str) -> None:
    share(anna, folder, ben)
    chunk, file, version = make_chunk(noise(60, "revoked")), new_id(), new_id()
    ben.start(version, file, chunk, parent=folder)
    more = messages.UrlsRequest([chunk.descriptor])
    path = f"/v1/uploads/{version}/urls"
    assert ben.request("POST", path, messages.UploadState, more).chunks[0].state == "needed"
    unshare(anna, folder, ben.me.account)
    with pytest.raises(Failed) as failed:
        ben.request("POST", path, messages.UploadState, more)
    assert isinstance(failed.value.problem, errors.UploadUnknown)
    assert isinstance(ben.start(version, file, chunk, parent=folder), errors.NotFound)


def test_who_may_only_read_by_now_does_not_go_on(anna: Client, ben: Client, folder: str) -> None:
    """The file is yet to be born, so it has no role; what is shared with Ben for reading is no
    place for it, and must not let him fill Anna's drive."""
    other = anna.mkdir("other")
    share(anna, folder, ben, "editor")
    share(anna, other, ben, "viewer")
    version, file = new_id(), new_id()
    ben.start(version, file, parent=folder)
    more = messages.UrlsRequest([make_chunk(noise(70, "more")).descriptor])
    path = f"/v1/uploads/{version}/urls"
    assert ben.request("POST", path, messages.UploadState, more).chunks[0].state == "needed"
    share(anna, folder, ben, "viewer")
    with pytest.raises(Failed) as failed:
        ben.request("POST", path, messages.UploadState, more)
    assert isinstance(failed.value.problem, errors.UploadUnknown)


def test_a_folder_token_does_not_go_on_with_what_its_owner_began(anna: Client, folder: str) -> None:
    """The owner's leases count as shown: they are not the token's to use."""
    chunk, version = make_chunk(noise(60, "private")), new_id()
    anna.store("private", chunk)
    anna.start(version, new_id(), chunk)
    weak = folder_token(anna, folder)
    with pytest.raises(Failed) as failed:
        weak.request("GET", f"/v1/uploads/{version}", messages.UploadState)
    assert isinstance(failed.value.problem, errors.UploadUnknown)
    assert isinstance(weak.start(version, new_id(), chunk, parent=folder), errors.Exists)
    assert isinstance(create(weak, folder, version, chunk), errors.ChunksMissing)


def test_a_lost_event_proves_nothing(
    server: Running, anna: Client, guest: Client, folder: str
) -> None:
    """That an object is there, also one that nobody noted, is not to the guest's credit."""
    chunk, version = make_chunk(noise(60, "unnoted")), new_id()
    guest.start(version, new_id(), chunk, parent=folder)
    with server.app.service.blobs.create(BlobKey(anna.me.drive, chunk.id)) as writer:
        writer.write(chunk.data)
        writer.commit()
    assert isinstance(create(guest, folder, version, chunk), errors.ChunksMissing)
    assert guest.upload(version, new_id(), chunk, parent=folder) == 1
    assert isinstance(create(guest, folder, version, chunk), messages.Applied)
    until_verified(server)
    check_sums(server, anna.me.drive)


def test_fingerprints_speak_of_what_the_token_reaches(
    anna: Client, ben: Client, folder: str
) -> None:
    chunk = make_chunk(noise(60, "found by fingerprint"))
    anna.store("private", chunk)
    hashed = fingerprint(manifest_of(chunk)).hex()
    path = f"/v1/files/by-fingerprint/{hashed}"
    assert anna.request("GET", path, messages.FingerprintReply).manifest == manifest_of(chunk)
    share(anna, folder, ben)
    for other in (ben, folder_token(anna, folder)):
        with pytest.raises(Failed) as failed:
            other.request("GET", path, messages.FingerprintReply)
        assert failed.value.status == 404


def test_each_upload_of_one_chunk_has_shown_it(
    anna: Client, guest: Client, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before what has arrived is noted by itself."""
    monkeypatch.setattr(reception, "GATHER_SECONDS", 60.0)
    chunk, uploads = make_chunk(noise(88, "copies")), [new_id() for _ in range(3)]
    begun = [guest.start(item, new_id(), chunk, parent=folder) for item in uploads]
    for item in begun:
        assert guest.put(item.chunks[0], chunk).status_code == 200
    ops = [guest.create(new_id(), folder, content=content(item, chunk)) for item in uploads]
    assert [type(item) for item in guest.batch(*ops)] == [messages.Applied] * 3
