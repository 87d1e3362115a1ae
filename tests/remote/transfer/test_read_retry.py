"""Reads wait for what passes, as long as they were told or as is bearable, and not for the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from remote.http.api import ApiClient
from remote.protocol import messages
from remote.protocol.errors import (
    ANNOUNCED_SECONDS,
    NOT_NOW_SECONDS,
    Busy,
    CorruptContent,
    Forbidden,
    NearlineError,
    NotFound,
    RateLimited,
    Refused,
    Unavailable,
    Unreachable,
)
from remote.transfer.read_retry import CAP_SECONDS, ReadApi, ReadRetries, RetriedReads, next_wait

FILE = "f" * 32
LOCATE = messages.LocateRequest(file=FILE, version=FILE)


def limited(seconds: float) -> NearlineError:
    return Refused(RateLimited(retry_after_seconds=seconds))


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


class Api:
    """A `ReadApi` that fails as it is told before it answers."""

    def __init__(self, *failures: NearlineError) -> None:
        self.failures: Iterator[NearlineError] = iter(failures)
        self.asked: list[float] = []

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(trio.current_time())
        for failure in self.failures:
            raise failure

    async def children(
        self, directory: str, cursor: str | None = None, limit: int | None = None
    ) -> messages.ChildrenPage:
        await self._answer()
        raise NotImplementedError

    async def file(
        self, file: str, version: str | None = None, manifest: bool = False
    ) -> messages.FileReply:
        await self._answer()
        raise NotImplementedError

    async def versions(self, file: str, cursor: str | None = None) -> messages.VersionsPage:
        await self._answer()
        return messages.VersionsPage(versions=[], next=cursor)

    async def locate(self, request: messages.LocateRequest) -> messages.LocateReply:
        await self._answer()
        return messages.LocateReply(chunks=[])

    async def get_range(
        self, url: str, start: int, end_exclusive: int, into: bytearray | memoryview
    ) -> int:
        await self._answer()
        return end_exclusive - start

    async def connect_ahead(self, connections: int) -> None:
        await self._answer()


# --- the rule ---------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.floats(0, 100), st.floats(0, 1, exclude_max=True), st.floats(0, 60))
def test_never_sooner_than_told_and_never_longer_than_bearable(
    attempt: int, waited: float, jitter: float, told: float
) -> None:
    wait = next_wait(limited(told), attempt, waited, jitter)
    if wait is None:
        assert waited >= ANNOUNCED_SECONDS or waited + told > ANNOUNCED_SECONDS
    else:
        assert told <= wait <= told + CAP_SECONDS
        assert waited + wait <= ANNOUNCED_SECONDS + 1e-9


@pytest.mark.parametrize(
    "error",
    [Unreachable("gone"), CorruptContent("bad"), Refused(NotFound()), Refused(Forbidden())],
)
def test_what_does_not_pass_is_not_waited_for(error: NearlineError) -> None:
    assert next_wait(error, 0, 0.0, 0.5) is None


# --- waiting ------------------------------------------------------------------------------------


async def test_it_waits_as_the_server_says(clock: trio.testing.MockClock) -> None:
    api = Api(limited(3.0), limited(5.0), Busy("busy", 503, 7.0))
    reads = RetriedReads(api, ReadRetries(jitter=lambda: 0.0))
    assert (await reads.versions(FILE, "page 2")).next == "page 2"
    assert api.asked == [0, 3, 8, 15]


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (limited(0.0), ANNOUNCED_SECONDS),
        (Busy("busy", 429), ANNOUNCED_SECONDS),
        (Refused(Unavailable()), NOT_NOW_SECONDS),
        (Busy("broken", 500), NOT_NOW_SECONDS),
    ],
)
async def test_it_waits_not_for_ever(
    clock: trio.testing.MockClock, error: NearlineError, most: float
) -> None:
    api = Api(*[error] * 10_000)
    with pytest.raises(type(error)) as raised:
        await RetriedReads(api, ReadRetries(jitter=lambda: 0.5)).locate(LOCATE)
    assert raised.value is error
    assert api.asked[-1] == most
    assert 5 < len(api.asked) < 40, "the waits grow"


async def test_a_wait_that_is_too_long_is_not_begun(clock: trio.testing.MockClock) -> None:
    api = Api(limited(ANNOUNCED_SECONDS + 1))
    with pytest.raises(Refused):
        await RetriedReads(api, ReadRetries()).file(FILE)
    assert trio.current_time() == 0


async def test_while_the_server_is_known_to_be_gone_nobody_waits(
    clock: trio.testing.MockClock,
) -> None:
    retries = ReadRetries()
    retries.down(True)
    with pytest.raises(Refused):
        await RetriedReads(Api(limited(1.0)), retries).children(FILE)
    assert trio.current_time() == 0
    retries.down(False)
    assert await RetriedReads(Api(limited(1.0)), retries).locate(LOCATE)


async def test_who_waits_learns_at_once_that_it_is_gone(clock: trio.testing.MockClock) -> None:
    retries = ReadRetries()
    reads = RetriedReads(Api(limited(20.0), limited(20.0)), retries)

    async def ask() -> None:
        with pytest.raises(Refused):
            await reads.versions(FILE)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ask)
        await trio.sleep(2)
        retries.down(True)
    assert trio.current_time() == 2


async def test_a_wait_can_be_interrupted(clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as reading:
        await RetriedReads(Api(limited(20.0)), ReadRetries()).file(FILE)
    assert reading.cancelled_caught
    assert trio.current_time() == 1


async def test_bytes_are_asked_for_once(clock: trio.testing.MockClock) -> None:
    """A connection is held meanwhile: `Downloader` waits without one."""
    api = Api(Busy("busy", 503))
    with pytest.raises(Busy):
        await RetriedReads(api, ReadRetries()).get_range("u", 0, 1, bytearray(1))
    assert api.asked == [0]


def test_the_client_is_a_read_api() -> None:
    api: ReadApi = ApiClient("https://127.0.0.1:1", None)
    assert api is not None
