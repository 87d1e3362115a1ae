"""A host that says nothing is taken for silent, a slow one is not; one probe finds the end."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
import trio
import trio.testing

from remote.http.connectivity import STRIKES, WANTED_SECONDS, Connectivity, origin_of
from remote.http.transport import transport_errors
from remote.protocol.errors import Silent, Unreachable

API, EDGE = "https://api:443", "https://edge:443"


@dataclass
class Network:
    """`probed`: when each probe was sent; `alive`: what they find."""

    alive: bool = False
    probed: list[float] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connectivity = Connectivity(self.probe, jitter=lambda: 0.999)

    async def probe(self, _origin: str) -> bool:
        await trio.lowlevel.checkpoint()
        self.probed.append(trio.current_time())
        return self.alive

    def unanswered(self, origin: str = API, *, for_feed: bool = False, heard: bool = False) -> None:
        """One question that nothing comes of; `heard`: of another one something does meanwhile."""
        with pytest.raises(Silent):
            self._ask(origin, for_feed, heard)

    def _ask(self, origin: str, for_feed: bool, heard: bool) -> None:
        with self.connectivity.asking(origin, for_feed=for_feed):
            if heard:
                self.connectivity.heard(origin)
            raise Silent("timed out")

    def refused(self, origin: str = API) -> None:
        with (
            pytest.raises(Unreachable, match="offline: timed out"),
            self.connectivity.asking(origin),
        ):
            raise AssertionError("it was asked")


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    network = Network()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.connectivity.run, network.changes.append)
        await trio.testing.wait_all_tasks_blocked()
        yield network
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://api/v1/me?x=1", API),
        ("https://user@api:443/", API),
        ("http://[::1]:80/a", "http://[::1]:80"),
        ("http://API:8750", "http://api:8750"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: str) -> None:
    assert origin_of(url) == origin


async def test_some_questions_without_an_answer_make_it_silent_for_all(network: Network) -> None:
    for _ in range(STRIKES):
        assert network.connectivity.silence(API) is None
        network.unanswered()
    network.refused()
    assert network.connectivity.silence(API) == "timed out"
    assert network.connectivity.silence(EDGE) is None
    with network.connectivity.asking(EDGE):
        pass


async def test_one_of_the_feed_is_enough_and_the_feed_goes_on_asking(network: Network) -> None:
    network.unanswered(for_feed=True)
    network.refused()
    network.unanswered(for_feed=True)


async def test_who_is_heard_of_meanwhile_is_not_silent(network: Network) -> None:
    """A slow line with a large transfer on it: pieces come, and a small question times out."""
    for _ in range(3 * STRIKES):
        network.unanswered(for_feed=True, heard=True)
    for _ in range(3 * STRIKES):
        network.unanswered()
        network.connectivity.heard(API)
    assert network.connectivity.silence(API) is None


async def test_an_error_is_no_silence(network: Network) -> None:
    for _ in range(3 * STRIKES):
        with pytest.raises(Unreachable), network.connectivity.asking(API, for_feed=True):
            raise Unreachable("connection refused")
    assert network.connectivity.silence(API) is None


async def test_who_was_asking_is_told_when_it_becomes_known(network: Network) -> None:
    told: list[str] = []

    async def ask(origin: str) -> None:
        try:
            with network.connectivity.asking(origin):
                await trio.sleep(1000)
        except Unreachable as error:
            told.append(f"{origin} {error}")

    async with trio.open_nursery() as nursery:
        for origin in (API, API, EDGE):
            nursery.start_soon(ask, origin)
        await trio.testing.wait_all_tasks_blocked()
        network.unanswered(for_feed=True)
        await trio.testing.wait_all_tasks_blocked()
        assert told == [f"{API} offline: timed out"] * 2
        nursery.cancel_scope.cancel()


async def test_a_cancelled_question_stays_cancelled(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(1) as given, network.connectivity.asking(API):
        await trio.sleep_forever()
    assert given.cancelled_caught


async def test_one_probe_with_growing_waits_sooner_while_somebody_asks(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    network.unanswered(for_feed=True)
    await trio.sleep(600)
    waits = [round(after - before, 3) for before, after in itertools.pairwise(network.probed)]
    assert waits == sorted(waits)
    assert 59 < waits[-1] < 61
    before = len(network.probed)
    for _ in range(10):
        network.refused()
    await trio.sleep(2 * WANTED_SECONDS)
    assert len(network.probed) == before + 1


async def test_the_first_sign_of_life_ends_it(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    network.unanswered(for_feed=True)
    network.alive = True
    await trio.sleep(120)
    assert network.connectivity.silence(API) is None
    assert network.changes == [API, API]
    probes = len(network.probed)
    network.unanswered(for_feed=True)
    network.connectivity.heard(API)  # an answer to the feed
    await trio.sleep(600)
    assert len(network.probed) <= probes + 1


async def test_nobody_is_silent_for_who_does_not_probe() -> None:
    network = Network()
    for _ in range(3 * STRIKES):
        network.unanswered(for_feed=True)
    assert network.connectivity.silence(API) is None


@pytest.mark.parametrize(
    ("error", "is_silent"),
    [
        (httpx.ReadTimeout("late"), True),
        (httpx.ConnectTimeout("late"), True),
        (httpx.ConnectError("no"), False),
        (httpx.RemoteProtocolError("broke off"), False),
    ],
)
def test_what_counts_as_silence(error: httpx.TransportError, is_silent: bool) -> None:
    with pytest.raises(Unreachable) as raised, transport_errors("there"):
        raise error
    assert isinstance(raised.value, Silent) == is_silent


@pytest.mark.parametrize(
    ("cause", "is_silent"),
    [
        (OSError(113, "no route to host"), True),
        (OSError(101, "network is unreachable"), True),
        (ConnectionRefusedError(111, "refused"), False),
        (ConnectionResetError(104, "reset"), False),
    ],
)
def test_no_route_is_silence_and_a_refusal_is_not(cause: OSError, is_silent: bool) -> None:
    with pytest.raises(Unreachable) as raised, transport_errors("there"):
        raise httpx.ConnectError("no") from cause
    assert isinstance(raised.value, Silent) == is_silent
