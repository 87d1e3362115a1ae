"""Stored objects are read back, and are nobody else's before they are found to be what their ids
say."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from remote.protocol import errors, messages
from remote.protocol.codec import Encoded, encode_chunk
from remote.protocol.content import BLOCK_SIZE, BadContent, Descriptor
from server.metadata.schema import audit
from server.storage.blobs import BlobKey, BlobReader, LocalBlobStore
from server.storage.places import Place
from server.uploads import verification
from server.uploads.verification import Checker, check_object
from tests.amounts import amount
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
)
from tests.server.lookups import change_row, check_sums, row_of, until_verified

NOISE = noise(2 * BLOCK_SIZE + 100, "verification")
TEXT = noise(1000, "text") * 700
MIXED = TEXT[: BLOCK_SIZE + 5] + NOISE


def stored(data: bytes) -> tuple[Descriptor, bytes]:
    encoded: Encoded = encode_chunk(data)
    return encoded.descriptor, bytes(encoded.body)


def check(descriptor: Descriptor, body: bytes, step: int = 1 << 20) -> None:
    checker = Checker(descriptor)
    for at in range(0, len(body), step):
        checker.feed(body[at : at + step])
    checker.finish()


# --- the checker --------------------------------------------------------------------------------


@given(
    st.sampled_from([NOISE, TEXT, MIXED, b"x", NOISE[:BLOCK_SIZE]]),
    st.lists(st.integers(1, 400_000), max_size=8),
)
@settings(deadline=None, max_examples=amount(40, 10))
def test_what_a_chunk_was_stored_as_passes_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    descriptor, body = stored(data)
    checker, at = Checker(descriptor), 0
    for cut in [*cuts, len(body)]:
        checker.feed(body[at : at + cut])
        at += cut
    checker.feed(body[at:])
    checker.finish()
    assert checker.head().sha256 == descriptor.sha256


@pytest.mark.parametrize("data", [NOISE, TEXT, MIXED, b"x"])
def test_no_other_bytes_pass(data: bytes) -> None:
    descriptor, body = stored(data)
    middle = len(body) // 2
    changed = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    for wrong in (body[:-1], body + b"x", b"", changed, body + body):
        with pytest.raises(BadContent):
            check(descriptor, wrong, 100_000)


def test_a_lie_about_the_form_does_not_pass() -> None:
    descriptor, body = stored(MIXED)
    change = msgspec.structs.replace
    lengths = list(descriptor.stored_lengths)
    lengths[0], lengths[1] = lengths[0] + 1, lengths[1] - 1
    for lie in (
        change(descriptor, sha256=bytes(32)),
        change(descriptor, stored_lengths=lengths),
        change(descriptor, id=bytes(32)),
        change(descriptor, block_hashes=descriptor.block_hashes[::-1]),
    ):
        with pytest.raises(BadContent):
            check(lie, body)


def test_a_bomb_is_not_inflated() -> None:
    """A frame of a few bytes that declares, or is, more than its block."""
    descriptor, _ = stored(b"\0" * BLOCK_SIZE)
    for plain in (b"\0" * (64 << 20), b"\0" * (BLOCK_SIZE + 1)):
        frame = zstandard.ZstdCompressor().compress(plain)
        lie = msgspec.structs.replace(
            descriptor, stored_lengths=[len(frame)], sha256=hashlib.sha256(frame).digest()
        )
        with pytest.raises(BadContent, match="declares"):
            check(lie, frame)


def test_an_object_is_checked_from_the_store(tmp_path: Path) -> None:
    store, key = LocalBlobStore(tmp_path), BlobKey("0" * 32, bytes(32))
    descriptor, body = stored(MIXED)
    with store.create(key) as writer:
        writer.write(body)
        writer.commit()
    check_object(store, key, descriptor)
    with pytest.raises(BadContent):
        check_object(store, key, stored(NOISE)[0])


# --- behind everybody's back --------------------------------------------------------------------


def content(version: str, *chunks: Chunk) -> messages.Content:
    return messages.Content(version=version, manifest=manifest_of(*chunks))


def lie_about(chunk: Chunk, data: bytes) -> Chunk:
    """`data` under another chunk's id, of the right length and SHA-256."""
    assert len(data) == len(chunk.data)
    sha256 = hashlib.sha256(data).digest()
    return Chunk(data, msgspec.structs.replace(chunk.descriptor, sha256=sha256))


def note_of(server: Running, chunk: bytes) -> list[str]:
    with server.app.service.db.read() as conn:
        query = select(audit.c.action).where(audit.c.subject == chunk.hex())
        return list(conn.execute(query).scalars())


def refusal(client: Client, **wanted: Any) -> Any:
    with pytest.raises(Failed) as failed:
        client.locate(**wanted)
    return failed.value.problem


def test_what_arrives_is_verified_soon(server: Running, anna: Client) -> None:
    chunks = [make_chunk(noise(300_000, "soon")), Chunk(stored(TEXT)[1], stored(TEXT)[0])]
    anna.store("a", *chunks)
    until_verified(server)
    for chunk in chunks:
        row = row_of(server, anna.me.drive, chunk.id)
        assert row is not None
        assert row.verified_ns >= row.uploaded_ns
        assert row.device == anna.me.device_id


def test_a_bad_object_goes_and_its_chunk_is_awaited_again(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(500, "good"))
    liar = lie_about(chunk, noise(500, "bad"))
    file, version = new_id(), new_id()
    anna.upload(version, file, liar)
    anna.make("a", file=file, content=content(version, chunk))
    until_verified(server)
    until_verified(server)
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert (row.state, row.verified_ns) == ("pending", None)
    assert not server.app.service.blobs.has(BlobKey(anna.me.drive, chunk.id))
    assert (anna.refresh().used_bytes, anna.me.reserved_bytes) == (0, 500)
    check_sums(server, anna.me.drive)
    assert note_of(server, chunk.id) == ["chunk_bad"]
    answer = refusal(anna, file=file, version=version, chunks=[chunk.id])
    assert isinstance(answer, errors.Unavailable)
    # Uploading it again, now as it is, mends the version that refers to it.
    assert anna.upload(new_id(), new_id(), chunk) == 1
    until_verified(server)
    located = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0]
    assert anna.http.get(located.url).content == chunk.data
    assert (anna.refresh().used_bytes, anna.me.reserved_bytes) == (500, 0)


@pytest.fixture
def blind(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is verified behind anybody's back."""
    monkeypatch.setattr(server.app.service.reception, "_look_at", lambda keys: None)


@pytest.mark.usefixtures("blind")
def test_before_it_is_verified_it_is_its_uploaders_alone(
    server: Running, anna: Client, ben: Client
) -> None:
    chunk = make_chunk(noise(500, "mine first"))
    file, version = anna.store("a", chunk)
    share(anna, file, ben, "viewer")
    wanted: dict[str, Any] = {"file": file, "version": version, "chunks": [chunk.id]}
    assert len(anna.locate(**wanted).chunks) == 1
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert row.verified_ns is None
    located = ben.locate(**wanted).chunks[0]
    assert ben.http.get(located.url).content == chunk.data
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert row.verified_ns is not None


@pytest.mark.usefixtures("blind")
def test_many_are_verified_at_once(server: Running, anna: Client, ben: Client) -> None:
    good = [make_chunk(noise(50, f"good {n}")) for n in range(4)]
    bad = [make_chunk(noise(50, f"bad {n}")) for n in range(2)]
    lies = [lie_about(chunk, noise(50, "garbage")) for chunk in bad]
    file, version = new_id(), new_id()
    anna.upload(version, file, *good, *lies)
    anna.make("a", file=file, content=content(version, *good, *bad))
    share(anna, file, ben, "viewer")
    ids = [chunk.id for chunk in good + bad]
    answer = refusal(ben, file=file, version=version, chunks=ids)
    assert isinstance(answer, errors.Unavailable)
    rows = [row_of(server, anna.me.drive, id) for id in ids]
    assert [row is not None and row.verified_ns is not None for row in rows] == [True] * 4 + [
        False
    ] * 2
    assert len(ben.locate(file=file, version=version, chunks=ids[:4]).chunks) == 4
    check_sums(server, anna.me.drive)


@pytest.mark.usefixtures("blind")
def test_a_bad_object_is_not_given_to_others(server: Running, anna: Client, ben: Client) -> None:
    chunk = make_chunk(noise(500, "others"))
    file, version = new_id(), new_id()
    anna.upload(version, file, lie_about(chunk, noise(500, "garbage")))
    anna.make("a", file=file, content=content(version, chunk))
    share(anna, file, ben, "viewer")
    wanted: dict[str, Any] = {"file": file, "version": version, "chunks": [chunk.id]}
    assert isinstance(refusal(ben, **wanted), errors.Unavailable)
    assert isinstance(refusal(ben, **wanted), errors.Unavailable)
    assert not server.app.service.blobs.has(BlobKey(anna.me.drive, chunk.id))


@pytest.mark.usefixtures("blind")
def test_nobody_builds_on_a_bad_object_of_anothers(server: Running, anna: Client) -> None:
    """A device that was told that the drive has the chunk would let go of its own bytes."""
    phone = server.device(anna.me.account, "phone")
    chunk = make_chunk(noise(500, "build"))
    phone.upload(new_id(), new_id(), lie_about(chunk, noise(500, "garbage")))
    file, version = new_id(), new_id()
    op = anna.create("a", file=file, content=content(version, chunk))
    assert anna.start(version, file, chunk).chunks[0].state == "uploaded"
    assert isinstance(anna.refused(op), errors.ChunksMissing)
    assert anna.upload(version, file, chunk) == 1
    anna.do(op)
    located = phone.locate(file=file, version=version, chunks=[chunk.id]).chunks[0]
    assert phone.http.get(located.url).content == chunk.data
    check_sums(server, anna.me.drive)


@pytest.mark.usefixtures("blind")
def test_a_first_promise_that_lies_does_not_spoil_the_bytes_of_another(
    server: Running, anna: Client
) -> None:
    """It has the SHA-256 of the true object, and divides it wrongly into blocks."""
    phone = server.device(anna.me.account, "phone")
    descriptor, body = stored(MIXED)
    lengths = list(descriptor.stored_lengths)
    lengths[0], lengths[1] = lengths[0] + 1, lengths[1] - 1
    lie = Chunk(body, msgspec.structs.replace(descriptor, stored_lengths=lengths))
    phone.start(new_id(), new_id(), lie)
    chunk = Chunk(body, descriptor)
    file, version = anna.store("a", chunk)
    located = phone.locate(file=file, version=version, chunks=[chunk.id]).chunks[0]
    assert located.descriptor == descriptor


def test_what_the_disk_spoils_is_set_aside(server: Running, anna: Client, ben: Client) -> None:
    chunk = make_chunk(noise(500, "rot"))
    file, version = anna.store("a", chunk)
    until_verified(server)
    share(anna, file, ben, "viewer")
    path = server.app.service.blobs.path(BlobKey(anna.me.drive, chunk.id))
    path.write_bytes(noise(500, "rotten"))
    change_row(server, anna.me.drive, chunk.id, verified_ns=None, device=None)
    answer = refusal(ben, file=file, version=version, chunks=[chunk.id])
    assert isinstance(answer, errors.Unavailable)
    kept = server.data / "blobs" / "quarantine" / f"{anna.me.drive}-{chunk.id.hex()}"
    assert kept.read_bytes() == noise(500, "rotten")


def test_what_was_out_of_reach_for_a_while_is_found_again(
    server: Running, anna: Client, ben: Client
) -> None:
    chunk = make_chunk(noise(500, "unmounted"))
    file, version = anna.store("a", chunk)
    until_verified(server)
    share(anna, file, ben, "viewer")
    path = server.app.service.blobs.path(BlobKey(anna.me.drive, chunk.id))
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    change_row(server, anna.me.drive, chunk.id, verified_ns=None, device=None)
    wanted: dict[str, Any] = {"file": file, "version": version, "chunks": [chunk.id]}
    assert isinstance(refusal(ben, **wanted), errors.Unavailable)
    assert isinstance(refusal(anna, **wanted), errors.Unavailable)
    elsewhere.rename(path)
    assert len(ben.locate(**wanted).chunks) == 1
    assert anna.refresh().used_bytes == 500
    check_sums(server, anna.me.drive)


def test_what_is_older_than_verification_is_verified_when_it_is_asked_for(
    server: Running, anna: Client
) -> None:
    chunk = make_chunk(noise(500, "legacy"))
    file, version = anna.store("a", chunk)
    until_verified(server)
    change_row(server, anna.me.drive, chunk.id, verified_ns=None, device=None)
    assert len(anna.locate(file=file, version=version, chunks=[chunk.id]).chunks) == 1
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert row.verified_ns is not None


class _Faulty(LocalBlobStore):
    """Cannot open what is there: out of file descriptors."""

    def open(self, key: BlobKey) -> BlobReader:
        raise OSError(errno.EMFILE, "too many open files")


def test_what_cannot_be_read_now_is_no_verdict(
    server: Running, anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = make_chunk(noise(500, "faulty"))
    file, version = anna.store("a", chunk)
    until_verified(server)
    share(anna, file, ben, "viewer")
    change_row(server, anna.me.drive, chunk.id, verified_ns=None, device=None)
    wanted: dict[str, Any] = {"file": file, "version": version, "chunks": [chunk.id]}
    with monkeypatch.context() as faulty:
        faulty.setattr(server.app.service.reception, "_blobs", _Faulty(server.data / "blobs"))
        assert isinstance(refusal(ben, **wanted), errors.Unavailable)
    assert len(ben.locate(**wanted).chunks) == 1


def test_a_late_verdict_counts_for_nothing(server: Running, anna: Client) -> None:
    """It was about an object that has gone since, and the one that is there now is another."""
    chunk = make_chunk(noise(500, "late"))
    anna.store("a", chunk)
    until_verified(server)
    change_row(server, anna.me.drive, chunk.id, verified_ns=None)
    service = server.app.service
    key = BlobKey(anna.me.drive, chunk.id)
    with service.db.read() as conn:
        suspect = verification.suspects(conn, [key])[0]
    change_row(server, anna.me.drive, chunk.id, uploaded_ns=suspect.uploaded_ns + 1)
    with service.db.write() as conn:
        assert verification.record(conn, [verification.Verdict(suspect, None, "bad")], 1) == []
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert row.state == "uploaded"


def test_a_bad_object_that_cannot_be_removed_fails_no_batch(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its verdict may share the transaction of a batch, which is committed by then."""
    chunk = make_chunk(noise(90, "cannot be removed"))
    anna.store("f", chunk)
    until_verified(server)
    change_row(server, anna.me.drive, chunk.id, state="pending", verified_ns=None)
    reception, key = server.app.service.reception, BlobKey(anna.me.drive, chunk.id)
    verdict = verification.Verdict(
        verification.Suspect(key, Place(key, 0, 90), 1, ()), None, "it is bad"
    )

    def delete(_key: BlobKey) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(server.app.service.blobs, "delete", delete)

    def batch() -> None:
        with reception.noting() as noting:
            noting.bad.append(verdict)

    server.app.service.writes.submit(batch).result(10)
