"""Room in a drive: promised, used, released; and who is told what about it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote import errors, wire
from remote.codec import encode_chunk
from remote.content import BLOCK_SIZE, Descriptor, block_count, block_hash, chunk_id
from server.storage.quota import OTHERS_SHARE, Room, refusal
from tests.server.conftest import Start
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
from tests.server.lookups import check_sums, expire, row_of, set_quota, settled
from tests.server.test_sharing import share


def promise(length: int, seed: str = "") -> Chunk:
    """A chunk that is only spoken of: nobody has its bytes."""
    hashes = b"".join(block_hash(b"%s %d" % (seed.encode(), n)) for n in range(block_count(length)))
    stored = [min(BLOCK_SIZE, length - at) for at in range(0, length, BLOCK_SIZE)]
    id = chunk_id(length, hashes)
    return Chunk(b"", Descriptor(id, length, "raw", hashes, stored, bytes(32)))


def room(client: Client) -> tuple[int, int]:
    client.refresh()
    return client.me.used_bytes, client.me.reserved_bytes


def content(version: str, *chunks: Chunk) -> wire.Content:
    return wire.Content(version=version, manifest=manifest_of(*chunks))


# --- the rule -----------------------------------------------------------------------------------


@given(
    st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100),
    st.none() | st.integers(0, 300), st.booleans(),
)  # fmt: skip
def test_what_is_let_in_fits(
    used: int, promised: int, more: int, limit: int, quota: int | None, owner: bool
) -> None:
    numbers = Room(quota, used, promised)
    problem = refusal(numbers, more, limit, owner=owner)
    if more == 0:
        assert problem is None
    elif problem is None:
        assert quota is None or used + promised + more <= quota
        assert (promised if owner else 0) + more <= (limit if owner else limit // OTHERS_SHARE)


# --- an account's own drive ---------------------------------------------------------------------


def test_room_is_reserved_then_used(server: Running, anna: Client) -> None:
    chunks = [make_chunk(noise(100, "room 1")), make_chunk(noise(50, "room 2"))]
    file, version = new_id(), new_id()
    begun = anna.start(version, file, *chunks)
    assert room(anna) == (0, 150)
    anna.start(version, file, *chunks)
    assert room(anna) == (0, 150)
    anna.put(begun.chunks[0], chunks[0])
    settled(server)
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
    wanted = wire.UrlsRequest([promise(41, "more").descriptor])

    with pytest.raises(Failed) as failed:
        anna.request("POST", f"/v1/uploads/{version}/urls", wire.UploadState, wanted)
    assert (failed.value.status, type(failed.value.problem)) == (507, errors.QuotaExceeded)


def test_uploads_of_one_request_share_the_room(server: Running, anna: Client) -> None:
    set_quota(server, anna, 100)
    wanted = wire.StartUploads(
        uploads=[
            wire.StartUpload(
                version=new_id(), file=new_id(), descriptors=[promise(60, str(n)).descriptor]
            )
            for n in range(2)
        ]
    )
    reply = anna.request("POST", "/v1/files", wire.StartUploadsReply, wanted)
    assert [type(each) for each in reply.uploads] == [wire.UploadState, errors.QuotaExceeded]
    assert room(anna) == (0, 60)


def test_a_full_drive_takes_everything_that_needs_no_room(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(500, "dedup"))
    file, _ = anna.store("a", chunk)
    set_quota(server, anna, 1)
    anna.mkdir("directory")
    anna.make("empty")
    anna.do(wire.Rename(file=file, parent=anna.me.root, name="a",
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
    settled(server)
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


def test_another_form_of_a_chunk_settles_what_was_promised(server: Running, anna: Client) -> None:
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
    """How much room an editor finds by trying: the largest made-up chunk that is let in."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        version = new_id()
        tried: Any = asker.start(version, new_id(), promise(middle, f"try {middle}"), parent=folder)
        if isinstance(tried, wire.UploadState):
            asker.request("DELETE", f"/v1/uploads/{version}", object)
            low = middle
        else:
            high = middle - 1
    return low


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
