"""Sending chunks: announcements travel together, dead URLs are signed again, and nothing is sent
that the drive has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from remote.protocol.codec import Encoded, encode_chunk
from remote.protocol.errors import (
    BadRequest,
    BadUpload,
    Problem,
    QuotaExceeded,
    Refused,
    Unavailable,
    Unreachable,
    UrlRefused,
)
from remote.protocol.messages import (
    MAX_BATCH,
    ChunkTicket,
    PresignedPut,
    StartUpload,
    StartUploads,
    StartUploadsReply,
    UploadState,
)
from remote.transfer.limits import SMALL
from remote.transfer.upload import URL_ATTEMPTS, Sender, Upload
from tests.fake_edge import noise


class Drive:
    """An `UploadPort`. `held`: announcements wait; `refuse`: uploads answered with a problem;
    `dead_urls`: so many PUTs are refused."""

    def __init__(self) -> None:
        self.has: dict[bytes, bytes] = {}
        self.asked: list[list[StartUpload]] = []
        self.signed = self.puts = self.most_puts = self.dead_urls = 0
        self.refuse: dict[str, Problem] = {}
        self.committed: set[str] = set()
        self.down = False
        self.go = trio.Event()
        self.put_go = trio.Event()
        self.go.set()
        self.put_go.set()

    async def start_uploads(self, request: StartUploads) -> StartUploadsReply:
        self.asked.append(request.uploads)
        await self.go.wait()
        if self.down:
            raise Unreachable("down")
        return StartUploadsReply(uploads=[self._state(item) for item in request.uploads])  # type: ignore[misc]  # every Problem

    def _state(self, upload: StartUpload) -> UploadState | Problem:
        if upload.version in self.refuse:
            return self.refuse[upload.version]
        done = upload.version in self.committed
        tickets = [] if done else [self._ticket(item.id) for item in upload.descriptors]
        status = "uploaded" if done else "uploading"
        return UploadState(version=upload.version, status=status, expires_ns=0, chunks=tickets)

    def _ticket(self, chunk: bytes) -> ChunkTicket:
        if chunk in self.has:
            return ChunkTicket(id=chunk, state="uploaded")
        self.signed += 1
        put = PresignedPut(url=chunk.hex(), headers={}, expires_ns=0)
        return ChunkTicket(id=chunk, state="needed", put=put)

    async def put_chunk(self, put: PresignedPut, body: bytes | memoryview) -> None:
        self.puts += 1
        self.most_puts = max(self.most_puts, self.puts)
        await self.put_go.wait()
        self.puts -= 1
        if self.dead_urls:
            self.dead_urls -= 1
            raise UrlRefused("expired")
        self.has[bytes.fromhex(put.url)] = bytes(body)


def upload(version: str = "1") -> Upload:
    return Upload(version * 32, "f" * 32, None, None)


def chunk(text: str) -> Encoded:
    return encode_chunk(text.encode())


def large(text: str) -> Encoded:
    return encode_chunk(noise(2 * SMALL, text.encode()))


async def test_what_the_drive_has_is_not_sent() -> None:
    drive = Drive()
    sender, one = Sender(drive), chunk("bytes")
    assert await sender.store(upload(), one) == len(one.body)
    assert drive.has == {one.descriptor.id: b"bytes"}
    assert await sender.store(upload("2"), one) == 0


async def test_announcements_gather_while_one_is_under_way() -> None:
    drive = Drive()
    sender = Sender(drive)
    drive.go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.store, upload(), chunk("first"))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(20):
            version = "12"[number % 2]
            nursery.start_soon(sender.store, upload(version), chunk(f"{number // 4}"))
        await trio.testing.wait_all_tasks_blocked()
        drive.go.set()
    assert len(drive.asked) == 3, "who waited for another's bytes asks once more"
    assert sorted(len(item.descriptors) for item in drive.asked[1]) == [5, 5]  # each chunk once
    assert len(drive.has) == 6


@pytest.mark.parametrize("make", [chunk, large])
async def test_a_chunk_is_sent_once_at_a_time(make: Callable[[str], Encoded]) -> None:
    drive = Drive()
    sender, told = Sender(drive), list[int]()
    drive.put_go = trio.Event()

    async def store(version: str) -> None:
        told.append(await sender.store(upload(version), make("the same")))

    async with trio.open_nursery() as nursery:
        for version in "123":
            nursery.start_soon(store, version)
        await trio.testing.wait_all_tasks_blocked()
        drive.put_go.set()
    assert sorted(told) == [0, 0, len(make("the same").body)]
    assert drive.most_puts == 1


async def test_who_waits_for_anothers_bytes_sends_them_when_that_one_gives_up() -> None:
    drive = Drive()
    sender, first = Sender(drive), trio.CancelScope()
    drive.put_go = trio.Event()

    async def give_up() -> None:
        with first:
            await sender.store(upload("1"), large("the same"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(sender.store, upload("2"), large("the same"))
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        drive.put_go.set()
    assert len(drive.has) == 1


async def test_a_part_that_was_put_off_is_asked_again_at_once() -> None:
    """A server that others wait for answers some; nobody hears of the others' refusal."""
    drive = Drive()
    sender = Sender(drive)
    plain = drive.start_uploads

    async def answer_two(request: StartUploads) -> StartUploadsReply:
        reply = await plain(StartUploads(uploads=request.uploads[:2]))
        drive.asked[-1] = request.uploads
        later = [Unavailable() for _ in request.uploads[2:]]
        return StartUploadsReply(uploads=[*reply.uploads, *later])

    drive.start_uploads = answer_two  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        for number in range(7):
            version = Upload(f"{number:032x}", "f" * 32, None, None)
            nursery.start_soon(sender.store, version, chunk(f"{number}"))
    assert [len(asked) for asked in drive.asked] == [7, 5, 3, 1]
    assert len(drive.has) == 7


async def test_when_nothing_is_begun_that_is_said() -> None:
    drive = Drive()
    drive.refuse = {"1" * 32: Unavailable(message="not now")}
    with pytest.raises(Refused, match="not now"):
        await Sender(drive).store(upload(), chunk("x"))
    assert len(drive.asked) == 1


async def test_a_request_names_no_more_uploads_than_a_batch_holds() -> None:
    drive = Drive()
    sender, one = Sender(drive), chunk("x")
    drive.go = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(MAX_BATCH + 5):
            version = Upload(f"{number:032x}", "f" * 32, None, None)
            nursery.start_soon(sender.store, version, one)
        await trio.testing.wait_all_tasks_blocked()
        drive.go.set()
    assert all(len(asked) <= MAX_BATCH for asked in drive.asked)


async def test_puts_are_bounded() -> None:
    drive = Drive()
    sender = Sender(drive, parallel=3)
    drive.put_go = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(sender.store, upload(), large(f"{number}"))
        await trio.testing.wait_all_tasks_blocked()
        assert drive.puts == 3
        sender.places.change(5)
        await trio.testing.wait_all_tasks_blocked()
        assert drive.puts == 5
        drive.put_go.set()
    assert drive.most_puts == 5


async def test_small_puts_count_less() -> None:
    drive = Drive()
    sender = Sender(drive, parallel=2)
    drive.put_go = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(sender.store, upload(), chunk(f"{number}"))
        await trio.testing.wait_all_tasks_blocked()
        assert drive.puts == 8
        drive.put_go.set()


async def test_a_dead_url_is_signed_again() -> None:
    drive = Drive()
    drive.dead_urls = URL_ATTEMPTS - 1
    assert await Sender(drive).store(upload(), chunk("x")) == 1
    assert drive.signed == URL_ATTEMPTS
    drive.dead_urls = URL_ATTEMPTS
    with pytest.raises(Unreachable, match="fresh URLs"):
        await Sender(drive).store(upload(), chunk("y"))


async def test_one_refused_upload_does_not_spoil_the_others() -> None:
    drive = Drive()
    drive.refuse["2" * 32] = QuotaExceeded(message="full")
    sender, sent = Sender(drive), []

    async def good() -> None:
        sent.append(await sender.store(upload(), chunk("good")))

    async def bad() -> None:
        with pytest.raises(Refused, match="full"):
            await sender.store(upload("2"), chunk("bad"))

    drive.go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(good)
        nursery.start_soon(bad)
        await trio.testing.wait_all_tasks_blocked()
        drive.go.set()
    assert sent == [4]


@pytest.mark.parametrize("bad", [0, 3, 8])
async def test_one_that_makes_the_whole_request_refused_is_found(bad: int) -> None:
    """Uploads that nobody objects to must not be given up because of who they travelled with."""
    drive = Drive()
    sender, sent, refused = Sender(drive), [], []
    plain = drive.start_uploads

    async def refuse(request: StartUploads) -> StartUploadsReply:
        reply = await plain(request)
        if any(item.version == f"{bad}" * 32 for item in request.uploads):
            raise Refused(BadRequest(message="unreadable"))
        return reply

    drive.start_uploads = refuse  # type: ignore[method-assign]

    async def store(number: int) -> None:
        try:
            sent.append((number, await sender.store(upload(f"{number}"), chunk(f"{number}"))))
        except Refused:
            refused.append(number)

    drive.go = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(store, number)
        await trio.testing.wait_all_tasks_blocked()
        drive.go.set()
    assert refused == [bad]
    assert sorted(sent) == [(number, 1) for number in range(9) if number != bad]


async def test_who_is_cancelled_while_asking_takes_nobody_along() -> None:
    drive = Drive()
    sender, done = Sender(drive), []

    async def store(text: str) -> None:
        done.append(await sender.store(upload(), chunk(text)))

    drive.go = trio.Event()
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as first:
            first.start_soon(store, "asks for both")
            await trio.testing.wait_all_tasks_blocked()
            outer.start_soon(store, "waits")
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        drive.go.set()
    assert done == [5]


async def test_without_an_answer_everybody_hears_it_and_may_ask_again() -> None:
    drive = Drive()
    sender, drive.down = Sender(drive), True
    with pytest.raises(Unreachable):
        await sender.store(upload(), chunk("x"))
    drive.down = False
    assert await sender.store(upload(), chunk("x")) == 1


async def test_of_a_committed_version_every_chunk_is_there() -> None:
    """Its commit was answered to a process that died; announcing again must come to an end."""
    drive = Drive()
    drive.committed.add("1" * 32)
    assert await Sender(drive).store(upload(), chunk("x")) == 0


async def test_an_answer_without_the_chunk_is_no_answer() -> None:
    drive = Drive()
    drive._ticket = lambda chunk: ChunkTicket(id=b"?" * 32, state="uploaded")  # type: ignore[method-assign]
    with pytest.raises(Unreachable, match="announced"):
        await Sender(drive).store(upload(), chunk("x"))


async def test_a_bad_upload_is_to_be_made_anew() -> None:
    drive = Drive()
    drive.refuse["1" * 32] = BadUpload(message="no")
    with pytest.raises(Refused) as refused:
        await Sender(drive).store(upload(), chunk("x"))
    assert isinstance(refused.value.problem, BadUpload)
