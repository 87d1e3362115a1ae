"""Small chunks of the own drive leave as bundles, and whatever becomes of one, each is sent."""

from __future__ import annotations

import hashlib

import pytest
import trio
import trio.testing

from remote.protocol.bundle import MAX_PART, bundle_of, parse, tail_length
from remote.protocol.codec import Encoded, encode_chunk
from remote.protocol.errors import (
    BadUpload,
    Busy,
    Forbidden,
    NearlineError,
    ProtocolError,
    Refused,
    Unavailable,
    Unreachable,
    UrlRefused,
)
from remote.protocol.messages import PresignedPut, StartBundle, StartBundleReply
from remote.transfer import bundling
from remote.transfer.upload import BUNDLES, URL_ATTEMPTS, Sender, Upload
from tests.fake_edge import noise
from tests.remote.transfer.test_upload import Drive, chunk


class Bundling(Drive):
    """`refused`: raised for the next requests for a bundle; `dead`: for the next PUTs of one."""

    def __init__(self) -> None:
        super().__init__()
        self.bundles: list[StartBundle] = []
        self.refused: list[NearlineError] = []
        self.dead: list[NearlineError] = []
        self.other_id = False
        self.came: list[list[bytes]] = []  # chunks, by PUT
        self.is_putting = trio.Event()

    async def start_bundle(self, request: StartBundle) -> StartBundleReply:
        await trio.lowlevel.checkpoint()
        self.bundles.append(request)
        if self.refused:
            raise self.refused.pop(0)
        announced = {
            (item.version, one.id): one
            for asked in self.asked
            for item in asked
            for one in item.descriptors
        }
        made = bundle_of([announced[part.version, part.chunk] for part in request.parts])
        id = b"?" * 32 if self.other_id else made.id
        put = PresignedPut(url="bundle", headers={"sha256": request.sha256.hex()}, expires_ns=0)
        return StartBundleReply(id=id, put=put)

    async def put_chunk(self, put: PresignedPut, body: bytes | memoryview) -> None:
        if put.url != "bundle":
            await super().put_chunk(put, body)
            self.came.append([bytes.fromhex(put.url)])
            return
        self.is_putting.set()
        await self.put_go.wait()
        if self.dead:
            raise self.dead.pop(0)
        assert hashlib.sha256(body).hexdigest() == put.headers["sha256"]
        stored = bytes(body)
        made = parse(stored[-tail_length(stored[-12:]) :], len(stored))
        for part, offset in zip(made.parts, made.offsets, strict=True):
            self.has[part.id] = stored[offset : offset + part.stored_length]
            assert hashlib.sha256(self.has[part.id]).digest() == part.sha256
        self.came.append([part.id for part in made.parts])


def upload(number: int, directory: int = 1) -> Upload:
    return Upload(f"{number:032x}", "f" * 32, None, None, (directory, number))


CHUNKS = [chunk(f"chunk {number}") for number in range(12)]


async def send(
    drive: Bundling, sender: Sender, chunks: list[Encoded] = CHUNKS
) -> dict[int, int | NearlineError]:
    """All at once; what became of each."""
    told: dict[int, int | NearlineError] = {}

    async def one(number: int) -> None:
        try:
            told[number] = await sender.store(upload(number), chunks[number])
        except NearlineError as error:
            told[number] = error

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in reversed(range(len(chunks))):
                nursery.start_soon(one, number)
    return told


SIZES = {number: len(item.body) for number, item in enumerate(CHUNKS)}


def is_there(drive: Bundling) -> bool:
    return all(drive.has.get(item.descriptor.id) == bytes(item.body) for item in CHUNKS)


async def test_what_waits_together_is_one_object_in_the_order_of_its_files() -> None:
    drive = Bundling()
    assert await send(drive, Sender(drive)) == SIZES
    assert drive.came == [[item.descriptor.id for item in CHUNKS]]
    assert len(drive.asked) == len(drive.bundles) == 1
    assert is_there(drive)
    assert await send(drive, Sender(drive)) == dict.fromkeys(SIZES, 0), "nothing is sent twice"


async def test_one_alone_needs_no_bundle() -> None:
    drive = Bundling()
    assert await Sender(drive).store(upload(1), CHUNKS[0]) == SIZES[0]
    assert drive.bundles == []


async def test_what_is_large_or_of_another_drive_stands_alone() -> None:
    drive = Bundling()
    sender, large = Sender(drive), encode_chunk(noise(MAX_PART + 1))
    shared = Upload("a" * 32, "f" * 32, None, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.store, upload(1), large)
        for item in CHUNKS[:3]:
            nursery.start_soon(sender.store, shared, item)
    assert drive.bundles == []
    assert len(drive.came) == 4


async def test_who_comes_while_bundles_are_under_way_leaves_in_one() -> None:
    drive = Bundling()
    sender, drive.put_go = Sender(drive), trio.Event()
    async with trio.open_nursery() as nursery:
        for number, item in enumerate(CHUNKS):
            nursery.start_soon(sender.store, upload(number), item)
            await trio.testing.wait_all_tasks_blocked()
        assert drive.puts == BUNDLES
        drive.put_go.set()
    assert sorted(map(len, drive.came)) == [1] * BUNDLES + [len(CHUNKS) - BUNDLES]


async def test_on_a_slow_line_what_waits_leaves_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sender, "uplink", property(lambda _: 1))
    monkeypatch.setattr(bundling, "LEAST_LENGTH", 3 * len(CHUNKS[0].body))
    drive = Bundling()
    await send(drive, Sender(drive))
    assert all(len(came) <= 3 for came in drive.came)
    assert {id for came in drive.came for id in came} == {one.descriptor.id for one in CHUNKS}


async def test_a_chunk_of_several_files_is_in_a_bundle_once() -> None:
    drive = Bundling()
    told = await send(drive, Sender(drive), [CHUNKS[0], CHUNKS[1], CHUNKS[0], CHUNKS[0]])
    assert [sorted(item) for item in drive.came] == [sorted(drive.has)]
    assert sorted(told.values()) == [0, 0, SIZES[0], SIZES[1]]  # type: ignore[type-var]
    assert len(drive.asked) == 2, "the others ask once more whether it is there"


@pytest.mark.parametrize(
    "problem", [Refused(BadUpload(message="no")), ProtocolError("too large for me"), None]
)
async def test_what_is_not_taken_as_a_bundle_stands_alone(problem: NearlineError | None) -> None:
    drive = Bundling()
    drive.refused, drive.other_id = [problem] if problem else [], problem is None
    sender = Sender(drive)
    assert await send(drive, sender) == SIZES
    assert len(drive.came) == len(CHUNKS)
    assert is_there(drive)
    drive.has.clear()
    drive.other_id = False
    await send(drive, sender)
    assert len(drive.came) == len(CHUNKS) + 1, "the next ones are tried together again"


async def test_a_token_that_may_not_is_told_so_once() -> None:
    drive = Bundling()
    drive.refused = [Refused(Forbidden(message="only a part of the drive"))]
    sender = Sender(drive)
    assert await send(drive, sender) == SIZES
    drive.has.clear()
    assert await send(drive, sender) == SIZES
    assert len(drive.bundles) == 1


@pytest.mark.parametrize("error", [Unreachable("down"), Refused(Unavailable(message="later"))])
async def test_everybody_hears_what_went_wrong_and_may_come_again(error: NearlineError) -> None:
    drive = Bundling()
    drive.refused = [error]
    sender = Sender(drive)
    assert await send(drive, sender) == dict.fromkeys(SIZES, error)
    drive.dead = [Unreachable("broke off")]
    assert {type(item) for item in (await send(drive, sender)).values()} == {Unreachable}
    assert await send(drive, sender) == SIZES


async def test_one_for_which_the_store_has_no_place_is_not_the_fault_of_others_for_ever() -> None:
    drive = Bundling()
    sender, drive.dead = Sender(drive), [Busy("full", 507)]
    assert {type(item) for item in (await send(drive, sender)).values()} == {Busy}
    assert await send(drive, sender) == SIZES
    assert len(drive.came) == len(CHUNKS)
    drive.has.clear()
    assert await send(drive, sender) == SIZES
    assert len(drive.came) == len(CHUNKS) + 1


async def test_a_url_that_died_is_signed_again_for_all() -> None:
    drive = Bundling()
    drive.dead = [UrlRefused("expired")] * (URL_ATTEMPTS - 1)
    assert await send(drive, Sender(drive)) == SIZES
    assert len(drive.bundles) == URL_ATTEMPTS
    drive.has.clear()
    drive.dead = [UrlRefused("expired")] * URL_ATTEMPTS
    told = await send(drive, Sender(drive))
    assert all("fresh URLs" in str(item) for item in told.values())


@pytest.mark.parametrize("doomed", range(4))
async def test_who_is_cancelled_on_the_way_harms_no_other_part(doomed: int) -> None:
    """Also when the memory that it lent is used for something else at once."""
    drive = Bundling()
    sender, drive.put_go = Sender(drive), trio.Event()
    lent = [bytearray(noise(1000, b"%d" % number)) for number in range(4)]
    chunks = [encode_chunk(buffer) for buffer in lent]
    expected = {item.descriptor.id: bytes(item.body) for item in chunks}
    scopes = [trio.CancelScope() for _ in chunks]

    async def one(number: int) -> None:
        with scopes[number]:
            await sender.store(upload(number), chunks[number])

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(one, number)
            await drive.is_putting.wait()
            assert len(drive.bundles) == 1
            scopes[doomed].cancel()
            await trio.testing.wait_all_tasks_blocked()
            lent[doomed][:] = bytes(1000)
            drive.put_go.set()
    others = {item.descriptor.id for number, item in enumerate(chunks) if number != doomed}
    assert others <= drive.has.keys()
    assert all(expected[chunk] == stored for chunk, stored in drive.has.items())
