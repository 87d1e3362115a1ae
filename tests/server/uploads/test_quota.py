"""Room in a drive: promised, used, released; and who is told what about it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from remote.protocol import errors, messages
from remote.protocol.account_messages import MakeToken, TokenReply
from remote.protocol.codec import encode_chunk
from remote.protocol.content import BLOCK_SIZE, Descriptor, block_count, block_hash, chunk_id
from server.accounts import accounts, devices, tokens
from server.metadata import schema
from server.metadata.db import Database
from server.permissions.caller import Caller
from server.uploads import sessions
from server.uploads.quota import LEAST, OTHERS_SHARE, Amount, Budget, DriveUsage, Limits, refusal
from tests.server.conftest import Start
from tests.server.deleting import forget
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
from tests.server.lookups import check_sums, expire, row_of, set_quota, steps_of, until_verified


def promise(length: int, seed: str = "") -> Chunk:
    """A chunk that is only spoken of: nobody has its bytes."""
    hashes = b"".join(block_hash(b"%s %d" % (seed.encode(), n)) for n in range(block_count(length)))
    stored = [min(BLOCK_SIZE, length - at) for at in range(0, length, BLOCK_SIZE)]
    id = chunk_id(length, hashes)
    return Chunk(b"", Descriptor(id, length, "raw", hashes, stored, bytes(32)))


def room(client: Client) -> tuple[int, int]:
    client.refresh()
    return client.me.used_bytes, client.me.reserved_bytes


def content(version: str, *chunks: Chunk) -> messages.Content:
    return messages.Content(version=version, manifest=manifest_of(*chunks))


# --- the rule -----------------------------------------------------------------------------------


@given(
    st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100),
    st.none() | st.integers(0, 300), st.booleans(),
)  # fmt: skip
def test_what_is_let_in_fits(
    used: int, promised: int, more: int, limit: int, quota: int | None, owner: bool
) -> None:
    limit *= LEAST  # so that the number of chunks is not what refuses
    numbers = DriveUsage(quota, used, promised)
    problem = refusal(numbers, Amount(min(more, 1), more), Limits(limit, 1), owner=owner)
    if more == 0:
        assert problem is None
    elif problem is None:
        assert quota is None or used + promised + more <= quota
        assert (promised if owner else 0) + more <= (limit if owner else limit // OTHERS_SHARE)


@given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 20), st.booleans())
def test_a_chunk_counts_as_some_bytes_at_least(
    promised: int, more: int, most: int, owner: bool
) -> None:
    limits = Limits((most if owner else most * OTHERS_SHARE) * LEAST, 1000)
    numbers = DriveUsage(None, 0, promised, promised, chunks=promised)
    problem = refusal(numbers, Amount(more, more), limits, owner=owner)
    assert (problem is None) is (promised + more <= most)


@given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 40), st.booleans())
def test_each_uploader_has_so_many_promises(held: int, more: int, most: int, owner: bool) -> None:
    usage, limits = DriveUsage(None, 0, 0, held=held), Limits(1 << 40, most)
    problem = refusal(usage, Amount(more, more), limits, owner=owner)
    assert (problem is None) is (held + more <= most)


# --- an account's own drive ---------------------------------------------------------------------


def test_room_is_reserved_then_used(server: Running, anna: Client) -> None:
    chunks = [make_chunk(noise(100, "room 1")), make_chunk(noise(50, "room 2"))]
    file, version = new_id(), new_id()
    begun = anna.start(version, file, *chunks)
    assert room(anna) == (0, 150)
    anna.start(version, file, *chunks)
    assert room(anna) == (0, 150)
    anna.put(begun.chunks[0], chunks[0])
    until_verified(server)
    assert room(anna) == (100, 50)
    anna.put(begun.chunks[1], chunks[1])
    anna.make("a", file=file, content=content(version, *chunks))
    assert room(anna) == (150, 0)
    check_sums(server, anna.me.drive)


def test_what_does_not_fit_is_refused_whole_and_says_the_numbers(
    server: Running, anna: Client
) -> None:
    set_quota(server, anna, 1000)
    anna.store("a", make_chunk(noise(600, "fits")))
    small, large = make_chunk(noise(100, "small")), make_chunk(noise(301, "large"))
    answer = anna.start(new_id(), new_id(), small, large)
    assert isinstance(answer, errors.QuotaExceeded)
    for number in ("401", "600", "1000"):
        assert number in answer.message
    assert room(anna) == (600, 0)
    assert row_of(server, anna.me.drive, small.id) is None
    assert errors.RULES[type(answer)].retry is errors.Retry.LATER
    assert anna.start(new_id(), new_id(), promise(400)).status == "uploading"
    assert isinstance(anna.start(new_id(), new_id(), promise(1)), errors.QuotaExceeded)
    set_quota(server, anna, 1001)
    assert anna.start(new_id(), new_id(), promise(1)).status == "uploading"


def test_more_chunks_for_a_session_are_bounded_too(server: Running, anna: Client) -> None:
    set_quota(server, anna, 100)
    version = new_id()
    anna.start(version, new_id(), promise(60))
    wanted = messages.UrlsRequest([promise(41, "more").descriptor])

    with pytest.raises(Failed) as failed:
        anna.request("POST", f"/v1/uploads/{version}/urls", messages.UploadState, wanted)
    assert (failed.value.status, type(failed.value.problem)) == (507, errors.QuotaExceeded)


def test_uploads_of_one_request_share_the_room(server: Running, anna: Client) -> None:
    set_quota(server, anna, 100)
    wanted = messages.StartUploads(
        uploads=[
            messages.StartUpload(
                version=new_id(), file=new_id(), descriptors=[promise(60, str(n)).descriptor]
            )
            for n in range(2)
        ]
    )
    reply = anna.request("POST", "/v1/files", messages.StartUploadsReply, wanted)
    assert [type(item) for item in reply.uploads] == [messages.UploadState, errors.QuotaExceeded]
    assert room(anna) == (0, 60)


def test_a_full_drive_takes_everything_that_needs_no_room(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(500, "dedup"))
    file, _ = anna.store("a", chunk)
    set_quota(server, anna, 1)
    anna.mkdir("directory")
    anna.make("empty")
    anna.do(messages.Rename(file=file, parent=anna.me.root, name="a",
                        new_parent=anna.me.root, new_name="b"))  # fmt: skip
    anna.store("copy", chunk)
    assert anna.children()["copy"].size == 500
    assert isinstance(anna.start(new_id(), new_id(), promise(1)), errors.QuotaExceeded)


def test_what_is_promised_at_one_time_is_bounded(start: Start) -> None:
    server = start(pending_limit_bytes=1 << 28)
    anna = server.account("anna")
    large = [promise(1 << 26, str(n)) for n in range(5)]
    version = new_id()
    assert anna.start(version, new_id(), *large[:4]).status == "uploading"
    answer = anna.start(new_id(), new_id(), large[4])
    assert isinstance(answer, errors.RateLimited)
    assert answer.retry_after_seconds > 0
    anna.request("DELETE", f"/v1/uploads/{version}", object)
    assert room(anna) == (0, 0)
    assert anna.start(new_id(), new_id(), large[4]).status == "uploading"


# --- what ends gives its room back --------------------------------------------------------------


def test_abandoning_gives_back_what_nobody_else_leases(server: Running, anna: Client) -> None:
    both, alone, stored = promise(10, "both"), promise(20, "alone"), make_chunk(noise(40, "put"))
    one, other = new_id(), new_id()
    begun = anna.start(one, new_id(), both, alone, stored)
    anna.start(other, new_id(), both)
    anna.put(begun.chunks[2], stored)
    until_verified(server)
    assert room(anna) == (40, 30)
    anna.request("DELETE", f"/v1/uploads/{one}", object)
    assert room(anna) == (40, 10)
    assert row_of(server, anna.me.drive, alone.id) is None
    anna.request("DELETE", f"/v1/uploads/{other}", object)
    assert room(anna) == (40, 0)
    check_sums(server, anna.me.drive)


def test_a_commit_gives_back_what_was_promised_for_nothing(server: Running, anna: Client) -> None:
    chunk, dropped = make_chunk(noise(30, "kept")), promise(70, "written over meanwhile")
    file, version = new_id(), new_id()
    begun = anna.start(version, file, chunk, dropped)
    anna.put(begun.chunks[0], chunk)
    anna.make("a", file=file, content=content(version, chunk))
    assert room(anna) == (30, 0)
    assert row_of(server, anna.me.drive, dropped.id) is None


def test_a_session_that_is_over_ends_when_it_is_begun_again(server: Running, anna: Client) -> None:
    version = new_id()
    anna.start(version, new_id(), promise(70, "before"))
    expire(server, version)
    anna.start(version, new_id(), promise(30, "after"))
    assert room(anna) == (0, 30)


def test_another_form_of_a_chunk_replaces_what_was_promised(server: Running, anna: Client) -> None:
    plain = make_chunk(noise(3_000, "form") * 100)

    packed = encode_chunk(plain.data)
    anna.start(new_id(), new_id(), plain)
    assert room(anna) == (0, 300_000)
    phone = server.device(anna.me.account, "phone")
    phone.store("a", Chunk(bytes(packed.body), packed.descriptor))
    assert room(anna) == (len(packed.body), 0)
    check_sums(server, anna.me.drive)


# --- somebody else's drive ----------------------------------------------------------------------


def test_what_an_editor_writes_counts_for_the_owner(
    server: Running, anna: Client, ben: Client
) -> None:
    folder = anna.mkdir("shared")
    share(anna, folder, ben)
    chunk, file, version = make_chunk(noise(80, "by ben")), new_id(), new_id()
    assert ben.upload(version, file, chunk, parent=folder) == 1
    ben.make("b", folder, file=file, content=content(version, chunk))
    assert room(anna) == (80, 0)
    assert room(ben) == (0, 0)
    set_quota(server, ben, 0)
    set_quota(server, anna, 100)
    answer = ben.start(new_id(), new_id(), promise(21, "too much"), parent=folder)
    assert isinstance(answer, errors.QuotaExceeded)
    assert not any(character.isdigit() for character in answer.message)
    assert ben.start(new_id(), new_id(), promise(20, "fits"), parent=folder).status == "uploading"


def measured(asker: Client, folder: str, most: int) -> int:
    """Bytes of room that an editor finds by trying: the largest made-up chunk that is let in."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        version = new_id()
        tried: Any = asker.start(version, new_id(), promise(middle, f"try {middle}"), parent=folder)
        if isinstance(tried, messages.UploadState):
            asker.request("DELETE", f"/v1/uploads/{version}", object)
            low = middle
        else:
            high = middle - 1
    return low


@pytest.mark.slow
def test_an_editor_cannot_weigh_what_is_in_the_drive(
    server: Running, anna: Client, ben: Client
) -> None:
    """Asking for a chunk takes the same room whether it is there, packed or not, or not there."""
    folder = anna.mkdir("shared")
    share(anna, folder, ben)
    plain = make_chunk(noise(300, "weighed") * 100)

    packed = encode_chunk(plain.data)
    anna.store("private", Chunk(bytes(packed.body), packed.descriptor))
    absent = make_chunk(noise(300, "not there") * 100)
    anna.refresh()
    set_quota(server, anna, anna.me.used_bytes + 50_000)
    found = []
    for chunk in (plain, absent):
        version = new_id()
        ben.start(version, new_id(), chunk, parent=folder)
        found.append(measured(ben, folder, 60_000))
        too_much = promise(20_001, "over")
        answer = ben.start(new_id(), new_id(), too_much, parent=folder)
        assert isinstance(answer, errors.QuotaExceeded)
        ben.request("DELETE", f"/v1/uploads/{version}", object)
    assert found == [20_000, 20_000]


def test_editors_may_promise_only_a_part(start: Start) -> None:
    server = start(pending_limit_bytes=1 << 28)
    anna, ben = server.account("anna"), server.account("ben")
    folder = anna.mkdir("shared")
    share(anna, folder, ben)
    large = [promise(1 << 26, str(n)) for n in range(3)]
    assert ben.start(new_id(), new_id(), large[0], parent=folder).status == "uploading"
    answer = ben.start(new_id(), new_id(), large[1], parent=folder)
    assert isinstance(answer, errors.RateLimited)
    assert anna.start(new_id(), new_id(), large[2]).status == "uploading"


def test_an_uploader_may_have_so_many_sessions_and_promises(start: Start) -> None:
    """Of each drive, and without taking any from others."""
    server = start(pending_limit_chunks=10)
    anna, ben, eve = (server.account(name) for name in ("anna", "ben", "eve"))
    folder = anna.mkdir("shared")
    share(anna, folder, ben)
    share(anna, folder, eve)
    chunks = [promise(1, str(number)) for number in range(10)]

    def begin(who: Client, *promised: Chunk) -> Any:
        return who.start(new_id(), new_id(), *promised, parent=folder)

    for who in (ben, eve, anna):
        version = new_id()
        who.start(version, new_id(), *chunks[:6], parent=folder)
        assert isinstance(begin(who, *chunks[6:8]), messages.UploadState)  # 2 sessions, 8 chunks
        for refused in (begin(who, chunks[9]), begin(who)):
            assert isinstance(refused, errors.RateLimited)
        who.request("DELETE", f"/v1/uploads/{version}", object)
        assert isinstance(begin(who, *chunks[:2]), messages.UploadState)
        check_sums(server, anna.me.drive)
    ben.start(new_id(), new_id(), *chunks[:9])
    check_sums(server, ben.me.drive)


@pytest.mark.slow
def test_what_others_asked_for_and_the_owner_wants_too(
    server: Running, anna: Client, ben: Client
) -> None:
    """Whoever comes first, in whatever form it arrives, and whoever gives up."""
    folder = anna.mkdir("shared")
    share(anna, folder, ben)
    drive = anna.me.drive

    for number, ending in enumerate(("ben sends", "anna sends", "ben leaves", "anna leaves")):
        chunk = make_chunk(noise(1000 + number, ending))
        versions = new_id(), new_id()
        before = room(anna)
        asked = ben.start(versions[0], new_id(), chunk, parent=folder)
        check_sums(server, drive)
        own = anna.start(versions[1], new_id(), chunk)
        check_sums(server, drive)
        if ending == "ben sends":
            ben.put(asked.chunks[0], chunk)
        elif ending == "anna sends":
            anna.put(own.chunks[0], chunk)
        for who, version in ((ben, versions[0]), (anna, versions[1])):
            if ending != f"{'anna' if who is ben else 'ben'} leaves":
                continue
            who.request("DELETE", f"/v1/uploads/{version}", object)
        until_verified(server)
        check_sums(server, drive)
        for who, version in ((anna, versions[1]), (ben, versions[0])):
            if not ending.endswith("leaves"):
                who.request("DELETE", f"/v1/uploads/{version}", object)
        check_sums(server, drive)
        assert (room(anna)[0] > before[0]) is ending.endswith("sends")


def test_a_late_put_of_the_owners_may_be_what_others_asked_for(
    server: Running, anna: Client, ben: Client
) -> None:
    folder = anna.mkdir("shared")
    share(anna, folder, ben)
    chunk, version = make_chunk(noise(1500, "late")), new_id()
    late = anna.start(version, new_id(), chunk).chunks[0]
    anna.request("DELETE", f"/v1/uploads/{version}", object)
    ben.start(new_id(), new_id(), chunk, parent=folder)
    assert anna.put(late, chunk).status_code == 200
    until_verified(server)
    check_sums(server, anna.me.drive)
    row = row_of(server, anna.me.drive, chunk.id)
    assert row is not None
    assert (row.state, row.unshown) == ("uploaded", 0)


# --- what it costs ------------------------------------------------------------------------------


@pytest.mark.slow
def test_asking_costs_the_same_whatever_others_have_promised(tmp_path: Path) -> None:
    db = Database(tmp_path / "db.sqlite")
    db.migrate()
    with db.write() as conn:
        accounts.insert_account(conn, "anna", "none", 1)
        drive = conn.execute(select(schema.drives)).one()
        _, full = tokens.new_device(conn, drive.owner, "laptop", 1)
        _, weak = tokens.new_device(conn, drive.owner, "script", 1, folder=drive.root)
    own = Caller(drive.owner, "anna", full, "full", drive.id)
    guest = Caller(drive.owner, "anna", weak, "full", drive.id, folder=drive.root)

    def begin(conn: Connection, who: Caller, *promised: Chunk) -> None:
        descriptors = [item.descriptor for item in promised]
        wanted = messages.StartUpload(version=new_id(), file=new_id(), descriptors=descriptors)
        budget = Budget(conn, who, Limits(1 << 40, 1 << 20))
        put = messages.PresignedPut(url="/", headers={}, expires_ns=0)
        sessions.start(conn, who, wanted, sessions.Terms(10**9, budget, lambda *_: put), 1)

    def work() -> list[int]:
        found = []
        for who in (own, guest):
            with db.write() as conn:
                small = promise(100, f"{who.device} {new_id()}")
                found.append(steps_of(conn, partial(begin, conn, who, small)))
        return found

    before = work()
    with db.write() as conn:
        for number in range(4):
            tiny = [promise(1, f"{number} {item}") for item in range(1000)]
            begin(conn, guest, *tiny)
    after = work()
    db.close()
    assert all(late <= early + 5 for late, early in zip(after, before, strict=True))


# --- who may not go on --------------------------------------------------------------------------


def sessions_of(server: Running, drive: str) -> set[str]:
    with server.app.service.db.read() as conn:
        mine = select(schema.uploads.c.version).where(schema.uploads.c.drive == drive)
        return set(conn.execute(mine).scalars())


@pytest.mark.parametrize("ending", ["taken back", "given up", "read only"])
def test_who_loses_a_share_loses_the_uploads_in_its_drive(
    server: Running, anna: Client, ben: Client, ending: str
) -> None:
    eve = server.account("eve")
    folder = anna.mkdir("shared")
    for who in (ben, eve):
        share(anna, folder, who)
    both, bens = promise(3000, "both"), promise(5000, "ben's")
    kept = make_chunk(noise(7000, "sent"))
    versions = {who: new_id() for who in "abce"}
    anna.start(versions["a"], new_id(), promise(1000, "anna's"))
    begun = ben.start(versions["b"], new_id(), both, bens, kept, parent=folder)
    ben.put(begun.chunks[2], kept)
    ben.start(versions["c"], new_id(), promise(2000, "elsewhere"))
    eve.start(versions["e"], new_id(), both, parent=folder)
    until_verified(server)
    assert room(anna) == (7000, 9000)
    if ending == "read only":
        share(anna, folder, ben, "viewer")
    else:
        unshare(anna if ending == "taken back" else ben, folder, ben.me.account)
    assert room(anna) == (7000, 4000)
    assert sessions_of(server, anna.me.drive) == {versions["a"], versions["e"]}
    assert sessions_of(server, ben.me.drive) == {versions["c"]}
    assert row_of(server, anna.me.drive, bens.id) is None
    check_sums(server, anna.me.drive)
    check_sums(server, ben.me.drive)
    with pytest.raises(Failed) as failed:
        ben.request("GET", f"/v1/uploads/{versions['b']}", messages.UploadState)
    assert isinstance(failed.value.problem, errors.UploadUnknown)
    if ending == "taken back":
        share(anna, folder, ben)
        again = ben.start(versions["b"], new_id(), kept, parent=folder)
        assert again.chunks[0].state == "needed"


def test_a_share_that_is_deleted_for_good_takes_the_uploads_along(
    server: Running, anna: Client, ben: Client
) -> None:
    eve = server.account("eve")
    folder, other = anna.mkdir("shared"), anna.mkdir("other")
    share(anna, folder, ben)
    share(anna, other, eve)
    ben.start(new_id(), new_id(), promise(5000, "ben's"), parent=folder)
    kept = new_id()
    eve.start(kept, new_id(), promise(2000, "eve's"), parent=other)
    forget(anna, "shared")
    assert sessions_of(server, anna.me.drive) == {kept}
    assert room(anna) == (0, 2000)
    check_sums(server, anna.me.drive)


def test_another_role_that_still_writes_ends_nothing(
    server: Running, anna: Client, ben: Client
) -> None:
    folder = anna.mkdir("shared")
    share(anna, folder, ben)
    ben.start(new_id(), new_id(), promise(100, "goes on"), parent=folder)
    share(anna, folder, ben)
    assert room(anna) == (0, 100)


@pytest.mark.parametrize("who", ["its account", "the administrator"])
@pytest.mark.parametrize("weak", [True, False])
def test_who_loses_a_device_loses_its_uploads(
    server: Running, anna: Client, who: str, weak: bool
) -> None:
    folder = anna.mkdir("folder")
    limits = {"folder": folder} if weak else {}
    reply = anna.request("POST", "/v1/devices", TokenReply, MakeToken(name="lost", **limits))
    lost = Client(anna.http, reply.token)
    lost.refresh()
    lost.start(new_id(), new_id(), promise(300, "lost"), parent=folder)
    mine = new_id()
    anna.start(mine, new_id(), promise(100, "mine"))
    assert room(anna) == (0, 400)
    if who == "its account":
        anna.request("DELETE", f"/v1/devices/{reply.device_id}", type(None))
    else:
        devices.revoke_device(server.data, reply.device_id)
    assert room(anna) == (0, 100)
    assert sessions_of(server, anna.me.drive) == {mine}
    check_sums(server, anna.me.drive)


def test_an_upload_ends_with_the_token_for_a_single_folder(server: Running, anna: Client) -> None:
    folder, until_ns = anna.mkdir("folder"), time.time_ns() + 3600 * 10**9
    for limits, expected in (({"folder": folder}, True), ({}, False)):
        wanted = MakeToken(name="short", expires_ns=until_ns, **limits)
        token = anna.request("POST", "/v1/devices", TokenReply, wanted).token
        client = Client(anna.http, token)
        client.refresh()
        begun = client.start(new_id(), new_id(), promise(300, str(limits)), parent=folder)
        assert (begun.expires_ns == until_ns) is expected
