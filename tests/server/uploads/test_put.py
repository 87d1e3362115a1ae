"""Bodies that are refused on their way into the store leave nothing behind."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import NoReturn

import pytest
from sqlalchemy.exc import OperationalError

from remote.protocol import errors, messages
from server.storage.blobs import BlobKey, Head
from server.uploads import reception
from server.uploads.arrivals import Arrival
from tests.server.conftest import Start
from tests.server.deep import counted
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
from tests.server.lookups import (
    change_row,
    check_sums,
    expire,
    nothing_left,
    row_of,
    until_verified,
)


def content(version: str, *chunks: Chunk) -> messages.Content:
    return messages.Content(version=version, manifest=manifest_of(*chunks))


def key_of(client: Client, chunk: Chunk) -> BlobKey:
    return BlobKey(client.me.drive, chunk.id)


def put_object(server: Running, key: BlobKey, data: bytes) -> None:
    with server.app.service.blobs.create(key) as writer:
        writer.write(data)
        assert writer.commit()


def tell(server: Running, *told: Arrival) -> None:
    """Deliver events, and wait until they are noted."""
    service = server.app.service
    for arrival in told:
        service.reception.arrived(arrival)
    done: Future[None] = service.writes.submit(service.reception.flush)
    done.result(10)


# --- many at a time -----------------------------------------------------------------------------


def test_arrivals_of_many_are_noted_in_parts_and_a_batch_notes_its_own(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for what others have stored."""
    service = server.app.service
    until_verified(server)
    monkeypatch.setattr(reception, "NOTED", 2)
    monkeypatch.setattr(service.reception, "_look_at", lambda _keys: None)  # would flush too
    chunks = [make_chunk(noise(50, f"{anna.token} {number}")) for number in range(6)]
    version, file = new_id(), new_id()
    begun = anna.start(version, file, *chunks)
    arrivals = []
    for chunk in chunks:
        put_object(server, key_of(anna, chunk), chunk.data)
        head = service.blobs.head(key_of(anna, chunk))
        assert head is not None
        arrivals.append(Arrival(key_of(anna, chunk), head))
    service.reception._arrivals += arrivals  # no flush is on its way
    anna.make("own", file=file, content=content(version, chunks[4]))
    assert service.reception.waiting_arrivals == 5
    with counted(service.db) as asked:
        service.writes.submit(service.reception.flush).result(10)
        until(lambda: service.reception.waiting_arrivals == 0 and service.writes.waiting == 0)
    assert len([item for item in asked if item.startswith("BEGIN IMMEDIATE")]) >= 3
    assert isinstance(begun, messages.UploadState)


def test_arrivals_wait_for_each_other_unless_somebody_asks(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, version, file = server.app.service, new_id(), new_id()
    until_verified(server)
    monkeypatch.setattr(reception, "GATHER_SECONDS", 60)
    monkeypatch.setattr(service.reception, "_look_at", lambda _keys: None)  # would flush too
    chunks = [make_chunk(noise(60, f"{anna.token} {number}")) for number in range(5)]
    anna.upload(version, file, *chunks)
    assert service.reception.waiting_arrivals == 5
    again = anna.start(new_id(), new_id(), chunks[0])
    assert [item.state for item in again.chunks] == ["uploaded"]
    anna.make("one", file=file, content=content(version, chunks[1]))
    assert service.reception.waiting_arrivals == 3
    with counted(service.db) as asked:
        service.reception._hurry.set()
        until(lambda: service.reception.waiting_arrivals == 0 and service.writes.waiting == 0)
        service.reception._hurry.clear()
    assert len([item for item in asked if item.startswith("BEGIN IMMEDIATE")]) == 1
    check_sums(server, anna.me.drive)


def test_who_asks_what_has_come_is_told_at_once(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_verified(server)
    monkeypatch.setattr(reception, "GATHER_SECONDS", 60)
    chunk, version = make_chunk(noise(70, anna.token)), new_id()
    anna.upload(version, new_id(), chunk)
    path = f"/v1/uploads/{version}"
    told = anna.request("GET", path, messages.UploadState).chunks
    assert [item.state for item in told] == ["uploaded"]
    until_verified(server)


# --- slow bodies --------------------------------------------------------------------------------


@contextmanager
def begun(server: Running, ticket: messages.ChunkTicket, first: bytes) -> Iterator[socket.socket]:
    """A PUT whose head and first bytes were sent."""
    assert ticket.put is not None
    host, port = server.url.removeprefix("http://").split(":")
    headers = "".join(f"{name}: {value}\r\n" for name, value in ticket.put.headers.items())
    target = ticket.put.url.removeprefix(server.url)
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(f"PUT {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode() + first)
        yield raw


def everything(raw: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    parts = []
    with suppress(ConnectionResetError):  # it closed with bytes of ours unread
        while part := raw.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("length", [100_000, 6_000_000])
def test_a_body_that_stops_coming_is_given_up(start: Start, length: int) -> None:
    server = start(body_seconds=0.2)
    anna = server.account("anna")
    chunk = make_chunk(noise(length, "stops"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    with begun(server, ticket, chunk.data[: length - 1]) as raw:
        assert everything(raw).startswith(b"HTTP/1.1 408 ")
    assert nothing_left(server, anna.me.drive, chunk.id)
    assert anna.put(ticket, chunk).status_code == 200


def test_a_body_that_only_trickles_is_given_up(start: Start) -> None:
    server = start(body_seconds=0.2, body_floor=1e9)
    anna = server.account("anna")
    chunk = make_chunk(noise(100_000, "trickles"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    with begun(server, ticket, b"") as raw:
        at = 0
        while not select.select([raw], [], [], 0.01)[0]:
            raw.sendall(chunk.data[at : at + 1])
            at += 1
        assert everything(raw).startswith(b"HTTP/1.1 408 ")
    assert nothing_left(server, anna.me.drive, chunk.id)


# --- sizes --------------------------------------------------------------------------------------


def test_a_body_without_end_is_cut_at_its_length(server: Running, anna: Client) -> None:
    """Chunked transfer says no length of its own: what is over the promised one is refused."""
    chunk = make_chunk(noise(5_000_000, "endless"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    assert ticket.put is not None

    def endless() -> Iterator[bytes]:
        yield from [chunk.data] * 3

    headers = {k: v for k, v in ticket.put.headers.items() if k != "Content-Length"}
    answer = anna.http.put(ticket.put.url, content=endless(), headers=headers)
    assert answer.status_code in (400, 411)
    assert nothing_left(server, anna.me.drive, chunk.id)


def test_no_descriptor_is_larger_than_a_chunk(anna: Client) -> None:
    blocks = [262144] * 257
    too_large = {
        "version": new_id(), "file": new_id(),
        "descriptors": [{"id": bytes(32), "length": sum(blocks), "codec": "raw",
                         "block_hashes": bytes(32 * 257), "stored_lengths": blocks,
                         "sha256": bytes(32)}],
    }  # fmt: skip
    with pytest.raises(Failed) as failed:
        anna.request("POST", "/v1/files", messages.StartUploadsReply, {"uploads": [too_large]})
    assert failed.value.status == 400


def test_a_url_is_for_its_own_object(server: Running, anna: Client) -> None:
    one, other = make_chunk(noise(100, "one")), make_chunk(noise(100, "other"))
    first, second = anna.start(new_id(), new_id(), one, other).chunks
    assert first.put is not None
    assert second.put is not None
    crossed = first.put.url.replace(one.id.hex(), other.id.hex())
    assert anna.put(second, other, url=crossed).status_code == 403
    assert nothing_left(server, anna.me.drive, other.id)


# --- late, repeated and reordered ---------------------------------------------------------------


def test_a_put_after_its_upload_was_abandoned_leaves_nothing(server: Running, anna: Client) -> None:
    chunk, version = make_chunk(noise(100, "abandoned")), new_id()
    ticket = anna.start(version, new_id(), chunk).chunks[0]
    anna.request("DELETE", f"/v1/uploads/{version}", object)
    assert anna.put(ticket, chunk).status_code == 200
    until_verified(server)
    assert nothing_left(server, anna.me.drive, chunk.id)
    assert row_of(server, anna.me.drive, chunk.id) is None
    assert (anna.refresh().used_bytes, anna.me.reserved_bytes) == (0, 0)
    anna.store("a", chunk)
    assert anna.refresh().used_bytes == 100


def test_a_put_url_is_good_once(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(100, "once"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    assert [anna.put(ticket, chunk).status_code for _ in range(3)] == [200, 412, 412]
    until_verified(server)
    assert anna.refresh().used_bytes == 100


def test_a_repeated_or_late_event_changes_nothing(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(100, "repeated"))
    anna.store("a", chunk)
    until_verified(server)
    arrival = Arrival(key_of(anna, chunk), Head(100, chunk.descriptor.sha256))
    before = row_of(server, anna.me.drive, chunk.id)
    tell(server, arrival, arrival)
    assert row_of(server, anna.me.drive, chunk.id) == before
    assert anna.refresh().used_bytes == 100


def test_events_wait_while_the_database_is_busy(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = make_chunk(noise(100, "busy"))
    key = key_of(anna, chunk)
    anna.start(new_id(), new_id(), chunk)
    put_object(server, key, chunk.data)

    def busy() -> NoReturn:
        raise OperationalError("BEGIN IMMEDIATE", {}, Exception("database is locked"))

    arrival = Arrival(key, Head(100, chunk.descriptor.sha256))
    with monkeypatch.context() as locked:
        locked.setattr(server.app.service.db, "write", busy)
        with pytest.raises(OperationalError):
            tell(server, arrival)
    tell(server)
    assert anna.refresh().used_bytes == 100


def test_an_event_of_an_object_that_is_gone_marks_nothing(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(100, "gone by then"))
    anna.start(new_id(), new_id(), chunk)
    tell(server, Arrival(key_of(anna, chunk), Head(100, chunk.descriptor.sha256)))
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert row.state == "pending"


def test_an_event_that_comes_after_that_of_its_successor_removes_nothing(
    server: Running, anna: Client
) -> None:
    """The first object fulfilled no promise and was removed; then came the right one; then the
    news of the first."""
    chunk, wrong = make_chunk(noise(100, "right")), noise(100, "wrong")
    key = key_of(anna, chunk)
    anna.start(new_id(), new_id(), chunk)
    put_object(server, key, chunk.data)
    tell(server, Arrival(key, Head(100, bytes(32))))
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert row.state == "uploaded"
    assert server.app.service.blobs.read(key, 0, 100) == chunk.data != wrong


def test_an_object_that_fulfils_no_promise_goes(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(100, "promised"))
    key = key_of(anna, chunk)
    version, file = new_id(), new_id()
    anna.start(version, file, chunk)
    put_object(server, key, noise(100, "not that"))
    op = anna.create("a", file=file, content=content(version, chunk))
    assert isinstance(anna.refused(op), errors.ChunksMissing)
    assert nothing_left(server, anna.me.drive, chunk.id)
    assert anna.upload(version, file, chunk) == 1
    anna.do(op)


def test_an_object_without_a_row_is_kept_if_it_is_promised_before_its_news(
    server: Running, anna: Client
) -> None:
    chunk = make_chunk(noise(100, "promised in time"))
    key = key_of(anna, chunk)
    put_object(server, key, chunk.data)
    anna.start(new_id(), new_id(), chunk)
    tell(server, Arrival(key, Head(100, chunk.descriptor.sha256)))
    assert server.app.service.blobs.has(key)
    assert anna.refresh().used_bytes == 100


def test_what_is_being_deleted_is_needed_and_never_revived(server: Running, anna: Client) -> None:
    chunk, file, version = make_chunk(noise(100, "deleting")), new_id(), new_id()
    anna.store("a", chunk)
    until_verified(server)
    change_row(server, anna.me.drive, chunk.id, state="deleting")
    key, head = key_of(anna, chunk), Head(100, chunk.descriptor.sha256)
    ticket = anna.start(version, file, chunk).chunks[0]
    assert ticket.state == "needed"
    assert anna.put(ticket, chunk).status_code == 412  # it is there still
    tell(server, Arrival(key, head))
    op = anna.create("b", file=file, content=content(version, chunk))
    assert isinstance(anna.refused(op), errors.ChunksMissing)
    server.app.service.blobs.delete(key)
    assert anna.put(ticket, chunk).status_code == 200
    until_verified(server)
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert row.state == "deleting"
    # What collects garbage finds a lease, and the chunk awaits its object again.
    change_row(server, anna.me.drive, chunk.id, state="pending")
    anna.do(op)


def test_a_session_that_is_over_is_unknown_to_all_and_its_id_is_free(
    server: Running, anna: Client, ben: Client
) -> None:
    chunk, version = make_chunk(noise(100, "over")), new_id()
    anna.start(version, new_id(), chunk)
    assert isinstance(ben.start(version, new_id(), chunk), errors.Exists)
    expire(server, version)
    for method, path, message in (
        ("GET", f"/v1/uploads/{version}", None),
        ("POST", f"/v1/uploads/{version}/urls", messages.UrlsRequest([chunk.descriptor])),
        ("DELETE", f"/v1/uploads/{version}", None),
    ):
        with pytest.raises(Failed) as failed:
            anna.request(method, path, messages.UploadState, message)
        assert isinstance(failed.value.problem, errors.UploadUnknown)
    assert ben.start(version, new_id(), chunk).status == "uploading"
    assert (anna.refresh().reserved_bytes, ben.refresh().reserved_bytes) == (0, 100)
    check_sums(server, anna.me.drive)


def test_a_version_id_whose_upload_is_over_can_be_committed(
    server: Running, anna: Client, ben: Client
) -> None:
    version = new_id()
    anna.start(version, new_id(), make_chunk(noise(100, "over too")))
    expire(server, version)
    ben.make("a", content=content(version))
    assert anna.refresh().reserved_bytes == 0


def test_completing_again_gives_the_same_answer(anna: Client) -> None:
    chunk, file, version = make_chunk(noise(100, "complete")), new_id(), new_id()
    anna.upload(version, file, chunk)
    op = anna.create("a", file=file, content=content(version, chunk))
    wanted = messages.CompleteUpload(key=new_id(), op=op)
    path = f"/v1/uploads/{version}/complete"
    first = anna.request("POST", path, messages.Applied, wanted)
    assert [anna.request("POST", path, messages.Applied, wanted) for _ in range(2)] == [first] * 2
    assert anna.refresh().used_bytes == 100
