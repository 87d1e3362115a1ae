"""Several chunks sent as one object: asked for, arrived, read back and read."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import zstandard
from sqlalchemy import Row, select, update

from remote.protocol import errors, messages
from remote.protocol.bundle import MAX_PART, Bundle
from server.accounts.accounts import add_account
from server.accounts.devices import issue_token
from server.metadata.schema import bundles
from server.storage.blobs import BlobKey, Head
from server.uploads import arrivals, copies, reception, verification
from server.uploads.put import WHOLE
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
from tests.server.lookups import change_row, check_sums, expire, row_of, until_verified
from tests.server.sending import (
    Announced,
    announce,
    ask,
    made_of,
    make,
    put,
    send,
    store_together,
)
from tests.server.test_process import PROGRAM, process


def some(client: Client, count: int = 3, seed: str = "") -> list[Chunk]:
    return [
        make_chunk(noise(1000 + 100 * number, f"{client.token} {seed} {number}"))
        for number in range(count)
    ]


def packed(chunk: Chunk) -> Chunk:
    """The same chunk, stored otherwise."""
    frame = zstandard.ZstdCompressor().compress(chunk.data)
    stored = {"stored_lengths": [len(frame)], "sha256": hashlib.sha256(frame).digest()}
    return Chunk(frame, msgspec.structs.replace(chunk.descriptor, codec="zstd", **stored))


FORGETFUL = (
    "from server.uploads.reception import Reception\n"
    "Reception.arrived = lambda self, arrival: None\n" + PROGRAM
)


def bundle_row(server: Running, client: Client, id: bytes) -> Row[Any] | None:
    with server.app.service.db.read() as conn:
        mine = (bundles.c.drive == client.me.drive) & (bundles.c.id == id)
        return conn.execute(select(bundles).where(mine)).first()


def change_bundle(server: Running, client: Client, id: bytes, **values: Any) -> None:
    with server.app.service.db.write() as conn:
        mine = (bundles.c.drive == client.me.drive) & (bundles.c.id == id)
        conn.execute(update(bundles).where(mine).values(**values))


def has(server: Running, client: Client, id: bytes) -> bool:
    return server.app.service.blobs.has(BlobKey(client.me.drive, id))


def located(client: Client, part: Announced, **more: Any) -> messages.Located:
    wanted = {"file": part.file, "version": part.version, "chunks": [part.chunk.id]}
    return client.locate(**wanted, **more).chunks[0]


def got(client: Client, found: messages.Located) -> bytes:
    """The stored bytes of a chunk, by a range of what it is in."""
    end = found.offset + found.descriptor.stored_length - 1
    reply = client.http.get(found.url, headers={"Range": f"bytes={found.offset}-{end}"})
    assert reply.status_code == 206, reply.text
    return reply.content


# --- sent and read ------------------------------------------------------------------------------


def test_chunks_sent_as_one_object_are_one_object(server: Running, anna: Client) -> None:
    chunks = some(anna)
    bundle, parts = store_together(anna, *chunks)
    until_verified(server)
    for part, offset in zip(parts, bundle.offsets, strict=True):
        row = row_of(server, anna.me.drive, part.chunk.id)
        assert row is not None
        assert (row.state, row.bundle, row.bundle_offset) == ("uploaded", bundle.id, offset)
        assert row.verified_ns is not None
        assert not has(server, anna, part.chunk.id)
        found = located(anna, part, bundles=True)
        assert bundle.id.hex() in found.url
        assert found.offset == offset
        assert got(anna, found) == part.chunk.data
    row = bundle_row(server, anna, bundle.id)
    assert row is not None
    assert (row.length, row.emptied_ns, row.deleting) == (bundle.length, None, 0)
    check_sums(server, anna.me.drive)


def test_a_bundle_may_be_larger_than_what_is_taken_in_at_once(
    server: Running, anna: Client
) -> None:
    chunks = [make_chunk(noise(MAX_PART, f"{anna.token} {number}")) for number in range(8)]
    bundle, parts = store_together(anna, *chunks)
    assert bundle.length > WHOLE
    assert got(anna, located(anna, parts[7], bundles=True)) == chunks[7].data
    rows = [row_of(server, anna.me.drive, chunk.id) for chunk in chunks]
    assert [row and row.bundle for row in rows] == [bundle.id] * 8


def test_several_are_located_at_once_with_their_offsets(server: Running, anna: Client) -> None:
    bundle, parts = store_together(anna, *some(anna))
    whole = [messages.WholeVersion(file=part.file, version=part.version) for part in parts]
    wanted = messages.LocateSeveral(versions=whole, bundles=True)
    reply = anna.request("POST", "/v1/chunks/locate-several", messages.LocateSeveralReply, wanted)
    found = [item.chunks[0] for item in reply.found if isinstance(item, messages.LocatedVersion)]
    assert tuple(item.offset for item in found) == bundle.offsets
    assert len({item.url for item in found}) == 1
    assert [got(anna, item) for item in found] == [part.chunk.data for part in parts]


def test_who_does_not_ask_for_bundles_is_given_the_chunk_alone(
    server: Running, anna: Client
) -> None:
    _, parts = store_together(anna, *some(anna))
    for part in parts:
        found = located(anna, part)
        assert (part.chunk.id.hex() in found.url, found.offset) == (True, 0)
        assert anna.http.get(found.url).content == part.chunk.data
        row = row_of(server, anna.me.drive, part.chunk.id)
        assert row is not None
        assert (row.copied, row.bundle is None) == (1, False)
    check_sums(server, anna.me.drive)


# --- asking -------------------------------------------------------------------------------------


def refused(work: Callable[..., Any], *args: Any) -> Any:
    with pytest.raises(Failed) as failed:
        work(*args)
    return failed.value.problem


def test_only_what_one_has_announced_and_is_not_there_makes_a_bundle(
    server: Running, anna: Client, ben: Client
) -> None:
    one, two, there = some(anna)
    first, second = announce(anna, one, two)
    stored = announce(anna, there)[0]
    assert anna.upload(stored.version, stored.file, there) == 1
    until_verified(server)
    body = made_of([one, two])[1]
    assert ask(anna, [first, second], body).id == made_of([one, two])[0].id
    never = first._replace(version=new_id())
    for parts in ([first, stored], [never], [first, first], [second, never]):
        assert isinstance(refused(ask, anna, parts, body), errors.BadUpload)
    assert isinstance(refused(ask, ben, [first], body), errors.BadUpload)
    change_row(server, anna.me.drive, one.id, state="deleting")
    assert ask(anna, [first, second], body).put.url
    expire(server, second.version)
    assert isinstance(refused(ask, anna, [first, second], body), errors.BadUpload)


def test_a_part_is_stored_as_the_upload_that_is_named_has_announced_it(
    server: Running, anna: Client
) -> None:
    """Another device may store the same chunk otherwise."""
    phone = server.device(anna.me.account, "phone")
    chunk = make_chunk(noise(300, f"{anna.token} two ways") * 10)
    announce(anna, chunk)
    part = announce(phone, packed(chunk))[0]
    bundle = send(phone, part)
    make(phone, "f", part)
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert (row.bundle, row.stored_length, row.device) == (
        bundle.id,
        len(part.chunk.data),
        phone.me.device_id,
    )
    assert got(anna, located(anna, part, bundles=True)) == part.chunk.data
    check_sums(server, anna.me.drive)


# --- arriving -----------------------------------------------------------------------------------


def test_parts_that_nobody_awaits_are_ignored(server: Running, anna: Client) -> None:
    """One has come by itself meanwhile, one is promised no more, and one only by somebody else."""
    alone, gone, hidden = some(anna)
    awaited = make_chunk(noise(5000, f"{anna.token} awaited"))
    parts = announce(anna, alone, gone, hidden, awaited)
    bundle, body = made_of([part.chunk for part in parts])
    reply = ask(anna, parts, body)
    assert anna.upload(parts[0].version, parts[0].file, alone) == 1
    anna.request("DELETE", f"/v1/uploads/{parts[1].version}", bytes)
    change_row(server, anna.me.drive, hidden.id, unshown=1)
    try:
        assert put(anna, reply, body).status_code == 200
        until_verified(server)
    finally:
        change_row(server, anna.me.drive, hidden.id, unshown=0)
    rows = [row_of(server, anna.me.drive, part.chunk.id) for part in parts]
    assert rows[1] is None
    assert [row and (row.state, row.bundle) for row in rows] == [
        ("uploaded", None),
        None,
        ("pending", None),
        ("uploaded", bundle.id),
    ]
    check_sums(server, anna.me.drive)


def test_no_bundle_is_kept_for_a_small_part_of_it(server: Running, anna: Client) -> None:
    """Only what is awaited counts as used; so many would be kept of the same large chunks."""
    large = announce(anna, make_chunk(noise(5000, f"{anna.token} large")))
    small = announce(anna, *some(anna, 4))
    bodies = [made_of([part.chunk, large[0].chunk]) for part in small]
    asked = [ask(anna, [part, *large], body) for part, (_, body) in zip(small, bodies, strict=True)]
    for reply, (_, body) in zip(asked, bodies, strict=True):
        assert put(anna, reply, body).status_code == 200
    until_verified(server)
    kept = [has(server, anna, bundle.id) for bundle, _ in bodies]
    assert kept == [True, False, False, False]
    rows = [row_of(server, anna.me.drive, part.chunk.id) for part in small]
    assert [row and row.state for row in rows] == ["uploaded"] + ["pending"] * 3
    check_sums(server, anna.me.drive)
    send(anna, *small[1:])
    for number, part in enumerate([*large, *small]):
        make(anna, f"f {number}", part)
    check_sums(server, anna.me.drive)


def test_a_bundle_that_nobody_awaits_leaves_nothing_behind(server: Running, anna: Client) -> None:
    parts = announce(anna, *some(anna))
    bundle, body = made_of([part.chunk for part in parts])
    reply = ask(anna, parts, body)
    for part in parts:
        anna.request("DELETE", f"/v1/uploads/{part.version}", bytes)
    assert put(anna, reply, body).status_code == 200
    until_verified(server)
    assert bundle_row(server, anna, bundle.id) is None
    assert not has(server, anna, bundle.id)
    check_sums(server, anna.me.drive)


def test_an_object_that_is_not_the_bundle_leaves_nothing_behind(
    server: Running, anna: Client
) -> None:
    """It has the length and the SHA-256 that were signed, and another index, or none."""
    parts = announce(anna, *some(anna))
    body = made_of([part.chunk for part in parts])[1]
    other = made_of([part.chunk for part in reversed(parts)])[1]
    assert len(other) == len(body)
    for wrong in (other, noise(len(body), "no bundle"), body[1:] + b"x"):
        reply = ask(anna, parts, wrong)
        assert put(anna, reply, wrong).status_code == 200
        until_verified(server)
        assert not has(server, anna, reply.id)
        assert bundle_row(server, anna, reply.id) is None
    states = [row_of(server, anna.me.drive, part.chunk.id) for part in parts]
    assert [row and row.state for row in states] == ["pending"] * 3
    check_sums(server, anna.me.drive)


def test_a_bundle_that_is_there_is_reported_again(server: Running, anna: Client) -> None:
    """The process that was told of it may have ended before it had noted anything."""
    parts = announce(anna, *some(anna))
    bundle, body = made_of([part.chunk for part in parts])
    with server.app.service.blobs.create(BlobKey(anna.me.drive, bundle.id)) as writer:
        writer.write(body)
        assert writer.commit()
    assert put(anna, ask(anna, parts, body), body).status_code == 412
    for number, part in enumerate(parts):
        make(anna, f"{number}", part)
    assert got(anna, located(anna, parts[1], bundles=True)) == parts[1].chunk.data
    check_sums(server, anna.me.drive)


def test_an_event_that_comes_again_changes_nothing(server: Running, anna: Client) -> None:
    bundle, parts = store_together(anna, *some(anna))
    until_verified(server)
    arrive_again(server, anna, bundle)
    row = row_of(server, anna.me.drive, parts[0].chunk.id)
    assert row is not None
    assert row.verified_ns is not None
    assert has(server, anna, bundle.id)
    check_sums(server, anna.me.drive)


def arrive_again(server: Running, client: Client, bundle: Bundle) -> None:
    key = BlobKey(client.me.drive, bundle.id)
    head = server.app.service.blobs.head(key)
    assert head is not None
    arrival = arrivals.Arrival(key, head, made=False, bundle=bundle)
    server.app.service.reception.arrived(arrival)
    until_verified(server)


def test_a_bundle_that_is_being_deleted_takes_nothing_in(server: Running, anna: Client) -> None:
    parts = announce(anna, *some(anna))
    bundle = send(anna, *parts)
    until_verified(server)
    for part in parts:
        change_row(
            server, anna.me.drive, part.chunk.id, state="pending", bundle=None, uploaded_ns=None
        )
    change_bundle(server, anna, bundle.id, deleting=1, emptied_ns=5)
    arrive_again(server, anna, bundle)
    row = row_of(server, anna.me.drive, parts[0].chunk.id)
    assert (row and row.state, has(server, anna, bundle.id)) == ("pending", True)
    change_bundle(server, anna, bundle.id, deleting=0)
    arrive_again(server, anna, bundle)
    row, kept = (
        row_of(server, anna.me.drive, parts[0].chunk.id),
        bundle_row(server, anna, bundle.id),
    )
    assert (row and row.bundle, kept and kept.emptied_ns) == (bundle.id, None)


def test_a_chunk_of_a_bundle_that_comes_by_itself_too_is_its_copy(
    server: Running, anna: Client
) -> None:
    """A PUT that was signed before the bundle came; and one of other bytes for the same chunk."""
    one, two = some(anna, 1)[0], make_chunk(noise(300, f"{anna.token} copy") * 10)
    parts = announce(anna, one, two)
    tickets = [anna.start(part.version, part.file, part.chunk).chunks[0] for part in parts]
    other = anna.start(new_id(), new_id(), packed(two)).chunks[0]
    bundle = send(anna, *parts)
    until_verified(server)
    assert anna.put(tickets[0], one).status_code == 200
    assert anna.put(other, packed(two)).status_code == 200
    until_verified(server)
    rows = [row_of(server, anna.me.drive, chunk.id) for chunk in (one, two)]
    assert [row and (row.bundle, row.copied) for row in rows] == [(bundle.id, 1), (bundle.id, 0)]
    assert has(server, anna, one.id)
    assert not has(server, anna, two.id)
    check_sums(server, anna.me.drive)


def test_a_batch_notes_the_bundles_of_its_chunks_and_no_others(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = server.app.service.reception
    until_verified(server)
    monkeypatch.setattr(reception, "GATHER_SECONDS", 60)
    monkeypatch.setattr(waiting, "_look_at", lambda _keys: None)  # would flush too
    first, second = announce(anna, *some(anna, 2)), announce(anna, *some(anna, 2, "more"))
    send(anna, *first)
    send(anna, *second)
    assert waiting.waiting_arrivals == 2
    make(anna, "one", first[1])
    assert waiting.waiting_arrivals == 1
    again = anna.start(new_id(), new_id(), second[0].chunk)
    assert [ticket.state for ticket in again.chunks] == ["uploaded"]
    assert waiting.waiting_arrivals == 0
    check_sums(server, anna.me.drive)


@pytest.mark.slow
def test_a_server_killed_before_it_noted_a_bundle_is_told_of_it_again(tmp_path: Path) -> None:
    """The client sends the same again, is told that it is there, and has its chunks."""
    data = tmp_path / "data"
    add_account(data, "anna", "a secret")
    token = issue_token(data, "anna", "here")
    with process(data, program=FORGETFUL) as (running, url):
        anna = Client(httpx.Client(base_url=url), token)
        anna.refresh()
        parts = announce(anna, *some(anna))
        bundle, body = made_of([part.chunk for part in parts])
        assert put(anna, ask(anna, parts, body), body).status_code == 200
        running.kill()
        running.wait(60)
    with process(data) as (_, url):
        anna = Client(httpx.Client(base_url=url), token)
        anna.refresh()
        assert anna.me.used_bytes == 0
        assert put(anna, ask(anna, parts, body), body).status_code == 412
        for number, part in enumerate(parts):
            make(anna, f"{number}", part)
        assert got(anna, located(anna, parts[2], bundles=True)) == parts[2].chunk.data
        assert bundle.id.hex() in located(anna, parts[2], bundles=True).url


# --- read back ----------------------------------------------------------------------------------


def spoiled(parts: list[Announced], which: int) -> bytes:
    """The bundle of these parts, one of which is not what it says."""
    bundle, body = made_of([part.chunk for part in parts])
    at = bundle.offsets[which]
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def test_a_bad_part_is_needed_again_and_the_others_stay(server: Running, anna: Client) -> None:
    parts = announce(anna, *some(anna))
    body = spoiled(parts, 1)
    reply = ask(anna, parts, body)
    assert put(anna, reply, body).status_code == 200
    until_verified(server)
    rows = [row_of(server, anna.me.drive, part.chunk.id) for part in parts]
    assert [row and (row.state, row.bundle, row.bundle_offset) for row in rows] == [
        ("uploaded", reply.id, 0),
        ("pending", None, None),
        ("uploaded", reply.id, made_of([part.chunk for part in parts])[0].offsets[2]),
    ]
    make(anna, "good", parts[0])
    assert got(anna, located(anna, parts[0], bundles=True)) == parts[0].chunk.data
    again = announce(anna, parts[1].chunk)
    send(anna, *again)
    make(anna, "again", again[0])
    assert got(anna, located(anna, again[0], bundles=True)) == parts[1].chunk.data
    check_sums(server, anna.me.drive)


def test_no_device_is_believed_what_another_one_has_sent(server: Running, anna: Client) -> None:
    """Until it is verified. Who promised a chunk first did not vouch for another one's bundle."""
    phone = server.device(anna.me.account, "phone")
    chunks = some(anna)
    first = announce(phone, *chunks)
    parts = announce(anna, *chunks)
    body = spoiled(parts, 1)
    assert put(anna, ask(anna, parts, body), body).status_code == 200
    made = messages.Content(version=first[1].version, manifest=manifest_of(chunks[1]))
    op = phone.create("f", file=first[1].file, content=made)
    assert isinstance(phone.refused(op), errors.ChunksMissing)
    assert phone.upload(new_id(), new_id(), chunks[1]) == 1
    phone.do(op)
    until_verified(server)
    assert got(phone, located(phone, first[1], bundles=True)) == chunks[1].data
    check_sums(server, anna.me.drive)


def test_a_bundle_of_bad_parts_goes(server: Running, anna: Client) -> None:
    """So the same chunks can be sent again in the same bundle."""
    parts = announce(anna, *some(anna, 2))
    bundle, good = made_of([part.chunk for part in parts])
    wrong = bytes(length := bundle.length - len(bundle.tail)) + good[length:]
    assert put(anna, ask(anna, parts, wrong), wrong).status_code == 200
    until_verified(server)
    assert bundle_row(server, anna, bundle.id) is None
    assert not has(server, anna, bundle.id)
    check_sums(server, anna.me.drive)
    assert put(anna, ask(anna, parts, good), good).status_code == 200
    make(anna, "f", parts[0])
    until_verified(server)
    assert got(anna, located(anna, parts[0], bundles=True)) == parts[0].chunk.data


def test_a_bundle_that_the_disk_has_spoiled_is_set_aside_when_nothing_is_in_it(
    server: Running, anna: Client, ben: Client
) -> None:
    bundle, parts = store_together(anna, *some(anna, 2))
    until_verified(server)
    path = server.app.service.blobs.path(BlobKey(anna.me.drive, bundle.id))
    kept = server.data / "blobs" / "quarantine" / f"{anna.me.drive}-{bundle.id.hex()}"
    rotten = bytes(path.stat().st_size)
    path.write_bytes(rotten)
    for part in parts:
        assert not kept.exists()
        share(anna, part.file, ben, "viewer")
        change_row(server, anna.me.drive, part.chunk.id, verified_ns=None, device=None)
        assert isinstance(refused(located, ben, part), errors.Unavailable)
    assert kept.read_bytes() == rotten
    assert bundle_row(server, anna, bundle.id) is None


def test_a_bundle_that_was_out_of_reach_for_a_while_is_found_again(
    server: Running, anna: Client, ben: Client
) -> None:
    bundle, parts = store_together(anna, *some(anna, 2))
    until_verified(server)
    path = server.app.service.blobs.path(BlobKey(anna.me.drive, bundle.id))
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    for part in parts:
        share(anna, part.file, ben, "viewer")
        change_row(server, anna.me.drive, part.chunk.id, verified_ns=None, device=None)
        assert isinstance(refused(located, ben, part), errors.Unavailable)
    check_sums(server, anna.me.drive)
    elsewhere.rename(path)
    for part in parts:
        assert ben.http.get(located(ben, part).url).content == part.chunk.data
        assert got(anna, located(anna, part, bundles=True)) == part.chunk.data
    check_sums(server, anna.me.drive)


def test_a_verdict_about_where_a_chunk_was_does_not_condemn_it(
    server: Running, anna: Client
) -> None:
    """Collection has written it into another bundle, and the one before is gone."""
    _, parts = store_together(anna, *some(anna, 1))
    until_verified(server)
    key, service = BlobKey(anna.me.drive, parts[0].chunk.id), server.app.service
    change_row(server, *key, verified_ns=None)
    with service.db.read() as conn:
        suspect = verification.suspects(conn, [key])[0]
    change_row(server, *key, bundle=b"m" * 32)
    gone = verification.Verdict(suspect, None, "missing", is_gone=True)
    with service.db.write() as conn:
        assert verification.record(conn, [gone], 1) == []
        assert verification.record(conn, [gone._replace(is_gone=False)], 1) == []
    row = row_of(server, *key)
    assert (row and row.state) == "uploaded"
    change_row(server, *key, bundle=suspect.place.key.chunk)


# --- copied out ---------------------------------------------------------------------------------


def test_however_many_ask_for_one_chunk_it_is_copied_once(
    server: Running, anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, parts = store_together(anna, *some(anna))
    share(anna, parts[1].file, ben, "viewer")
    until_verified(server)
    made, asked = list[BlobKey](), threading.Barrier(4)
    create = server.app.service.blobs.create

    def counting(key: BlobKey) -> Any:
        made.append(key)
        return create(key)

    monkeypatch.setattr(server.app.service.blobs, "create", counting)

    def locate(_: int) -> bytes:
        client = server.device(ben.me.account)
        asked.wait(60)
        return client.http.get(located(client, parts[1], bundles=True).url).content

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(locate, range(4)))
    assert found == [parts[1].chunk.data] * 4
    assert made == [BlobKey(anna.me.drive, parts[1].chunk.id)]


@pytest.mark.parametrize("left", ["a copy", "something else"])
def test_what_a_crash_left_is_a_copy_or_goes(server: Running, anna: Client, left: str) -> None:
    _, parts = store_together(anna, *some(anna, 2, left))
    until_verified(server)
    chunk = parts[1].chunk
    with server.app.service.blobs.create(BlobKey(anna.me.drive, chunk.id)) as writer:
        writer.write(chunk.data if left == "a copy" else noise(len(chunk.data), left))
        assert writer.commit()
    assert anna.http.get(located(anna, parts[1]).url).content == chunk.data


def test_a_part_that_cannot_be_read_is_not_copied(server: Running, anna: Client) -> None:
    bundle, parts = store_together(anna, *some(anna))
    until_verified(server)
    path = server.app.service.blobs.path(BlobKey(anna.me.drive, bundle.id))
    whole = path.read_bytes()
    path.write_bytes(whole[: bundle.offsets[1]] + bytes(len(whole) - bundle.offsets[1]))
    assert anna.http.get(located(anna, parts[0]).url).content == parts[0].chunk.data
    assert isinstance(refused(located, anna, parts[1]), errors.Unavailable)
    whole_versions = [
        messages.WholeVersion(file=part.file, version=part.version) for part in parts[:2]
    ]
    wanted = messages.LocateSeveral(versions=whole_versions)
    reply = anna.request("POST", "/v1/chunks/locate-several", messages.LocateSeveralReply, wanted)
    assert [type(item) for item in reply.found] == [messages.LocatedVersion, errors.Unavailable]
    path.unlink()
    assert isinstance(refused(located, anna, parts[2]), errors.Unavailable)
    assert not has(server, anna, parts[1].chunk.id)


def test_a_copy_is_noted_only_of_what_is_in_a_bundle_still(server: Running, anna: Client) -> None:
    """Meanwhile its chunk may have gone, or come to be stored by itself."""
    _, parts = store_together(anna, *some(anna, 3))
    until_verified(server)
    service, drive = server.app.service, anna.me.drive
    there: dict[BlobKey, Head] = {}
    for chunk in [*(part.chunk for part in parts), make_chunk(noise(100, "gone"))]:
        key = BlobKey(drive, chunk.id)
        with service.blobs.create(key) as writer:
            writer.write(chunk.data)
            assert writer.commit()
        there[key] = Head(chunk.descriptor.stored_length, chunk.descriptor.sha256)
    pending, alone, bundled, _ = there
    change_row(server, *pending, state="pending")
    change_row(server, *alone, bundle=None)
    with service.db.write() as conn:
        copies.note(conn, service.blobs, there)
    rows = [row_of(server, *key) for key in (pending, alone, bundled)]
    assert [row and row.copied for row in rows] == [0, 0, 1]
    assert [service.blobs.has(key) for key in there] == [True, True, True, False]
    change_row(server, *pending, state="uploaded")
