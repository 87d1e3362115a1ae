from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from remote.protocol.content import BLOCK_SIZE
from remote.protocol.errors import (
    NOT_NOW_SECONDS,
    Busy,
    CorruptContent,
    ProtocolError,
    Refused,
    Unreachable,
)
from remote.transfer.download import STALLS, Downloader
from remote.transfer.limits import BufferPool, Claim, PrioritySemaphore
from remote.transfer.read_retry import ReadRetries
from remote.transfer.throttle import DOWNLOAD_PORTIONS_PER_SECOND, Throttle
from tests.fake_edge import FakeEdge, noise, version_name

FILE, VERSION = version_name(1), version_name(2)
CHUNK = 4 * BLOCK_SIZE + 1000


def edge_with(content: bytes, cut: int = CHUNK) -> tuple[FakeEdge, list[bytes]]:
    edge = FakeEdge()
    edge.add(VERSION, content, [cut])
    return edge, [piece.id for piece in edge.manifests[VERSION].pieces]


async def fetched(
    downloader: Downloader, chunk: bytes, first: int, last: int, ahead: tuple[bytes, ...] = ()
) -> bytes:
    fetch = downloader.fetch(FILE, VERSION, chunk, first, last, ahead=ahead)
    async with fetch as blocks:
        assert [block for block, _ in blocks] == list(range(first, last + 1))
        return b"".join(bytes(plain) for _, plain in blocks)


async def test_a_range_of_blocks_costs_one_locate_and_one_get() -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    downloader = Downloader(edge)
    assert await fetched(downloader, chunk, 1, 2) == content[BLOCK_SIZE : 3 * BLOCK_SIZE]
    assert edge.gets == [(chunk, BLOCK_SIZE, 3 * BLOCK_SIZE)]
    assert await fetched(downloader, chunk, 4, 4) == content[4 * BLOCK_SIZE :]
    assert len(edge.locates) == 1


async def test_compressed_chunks_come_back_plain() -> None:
    content = b"all work and no play " * 60_000
    edge, [chunk] = edge_with(content, cut=len(content))
    assert edge.stored[chunk][0].codec == "zstd"
    assert await fetched(Downloader(edge), chunk, 0, 4) == content
    assert edge.served < len(content) // 10


@pytest.mark.parametrize("first", [0, 2])
async def test_a_truncated_answer_is_continued_where_it_broke_off(first: int) -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    edge.faults, edge.cut_short = ["truncate"], BLOCK_SIZE + 100
    assert await fetched(Downloader(edge), chunk, first, 4) == content[first * BLOCK_SIZE :]
    starts = [start for _, start, _ in edge.gets]
    assert starts == [first * BLOCK_SIZE, (first + 1) * BLOCK_SIZE]


async def test_a_refused_url_is_signed_again_and_continued() -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    edge.faults, edge.cut_short = ["truncate", "refuse"], 2 * BLOCK_SIZE
    assert await fetched(Downloader(edge), chunk, 0, 4) == content
    assert len(edge.locates) == 2
    assert [start for _, start, _ in edge.gets] == [0, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE]


async def test_an_edge_that_refuses_every_fresh_url_is_unreachable() -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    edge.faults = ["refuse"] * 100
    with pytest.raises(Unreachable, match="refuses fresh URLs"):
        await fetched(Downloader(edge), chunk, 0, 0)
    assert len(edge.gets) == 4


async def test_refusals_count_only_in_a_row() -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    edge.faults = ["refuse"] * 3 + ["corrupt"] + ["refuse"] * 3
    assert await fetched(Downloader(edge), chunk, 0, 4) == content


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_corrupt_block_is_fetched_again_and_only_it(times: int) -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    edge.faults = ["corrupt"] * times
    assert await fetched(Downloader(edge), chunk, 0, 4) == content
    whole, *again = edge.gets
    wrong = (whole[2] - whole[1]) // 2 // BLOCK_SIZE
    assert {(start, end) for _, start, end in again} == {
        (wrong * BLOCK_SIZE, (wrong + 1) * BLOCK_SIZE)
    }
    assert len(again) == times
    assert len(edge.locates) == times  # the first refetch uses the same URL, later ones a new one


async def test_a_block_that_stays_corrupt_fails_and_is_named() -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    edge.corrupt_for_ever.add(chunk)
    with capture_logs() as logs, pytest.raises(CorruptContent, match="block 1"):
        await fetched(Downloader(edge), chunk, 1, 1)
    assert len(edge.gets) == 4
    given_up = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(e["chunk"], e["block"], e["host"]) for e in given_up] == [
        (chunk.hex(), 1, "edge.test")
    ]


async def test_an_edge_that_says_not_now_is_asked_again_and_holds_no_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    downloader = Downloader(edge, connections=1, retries=ReadRetries(jitter=lambda: 1.0))
    edge.faults = ["busy"] * 4
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetched, downloader, chunk, 0, 4)
        await trio.sleep(0.1)
        assert edge.faults == ["busy"] * 3
        assert downloader.connections.used == 0
        assert downloader.memory.used > 0
    assert trio.current_time() > 1
    assert await fetched(downloader, chunk, 0, 4) == content


async def test_an_edge_that_goes_on_saying_not_now_is_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    edge.faults = ["busy"] * 1000
    with pytest.raises(Busy):
        await fetched(Downloader(edge), chunk, 0, 4)
    assert trio.current_time() >= NOT_NOW_SECONDS
    assert edge.faults


async def test_while_it_is_known_to_be_gone_no_edge_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    edge.faults, retries = ["busy"] * 1000, ReadRetries()
    retries.down(True)
    with pytest.raises(Busy):
        await fetched(Downloader(edge, retries=retries), chunk, 0, 4)
    assert trio.current_time() == 0
    assert len(edge.gets) == STALLS


async def test_no_network_is_the_callers_to_handle() -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    downloader = Downloader(edge)
    await fetched(downloader, chunk, 0, 0)
    edge.is_down = True
    with pytest.raises(Unreachable):
        await fetched(downloader, chunk, 1, 1)
    assert downloader.memory.used == downloader.connections.used == 0


async def test_a_refusal_passes_through() -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    edge.manifests.clear()
    with pytest.raises(Refused, match="no such version"):
        await fetched(Downloader(edge), chunk, 0, 0)


async def test_a_descriptor_that_does_not_hash_to_its_id_is_refused() -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    descriptor, body = edge.stored[chunk]
    other = type(descriptor)(
        id=descriptor.id,
        length=descriptor.length,
        codec=descriptor.codec,
        block_hashes=bytes(len(descriptor.block_hashes)),
        stored_lengths=descriptor.stored_lengths,
        sha256=descriptor.sha256,
    )
    edge.stored[chunk] = (other, body)
    with pytest.raises(ProtocolError, match="bad descriptor"):
        await fetched(Downloader(edge), chunk, 0, 0)


async def test_chunks_wanted_at_once_are_located_in_one_request() -> None:
    edge, chunks = edge_with(noise(20 * BLOCK_SIZE), cut=BLOCK_SIZE)
    downloader = Downloader(edge)
    async with trio.open_nursery() as nursery:
        for chunk in chunks * 2:
            nursery.start_soon(fetched, downloader, chunk, 0, 0)
    assert [sorted(request.chunks) for request in edge.locates] == [sorted(chunks)]


async def test_chunks_wanted_soon_are_located_along() -> None:
    edge, chunks = edge_with(noise(20 * BLOCK_SIZE), cut=BLOCK_SIZE)
    downloader = Downloader(edge)
    for number, chunk in enumerate(chunks):
        await fetched(downloader, chunk, 0, 0, tuple(chunks[number + 1 : number + 11]))
    assert [len(request.chunks) for request in edge.locates] == [11, 9]


async def test_who_reads_on_never_waits_for_where_the_next_chunks_are() -> None:
    """They are asked for when half of what was asked for before is left, and once."""
    edge, chunks = edge_with(noise(20 * BLOCK_SIZE), cut=BLOCK_SIZE)
    downloader = Downloader(edge)
    async with trio.open_nursery() as nursery:
        for number, chunk in enumerate(chunks):
            for _ in range(2):
                downloader.locate_ahead(
                    nursery.start_soon, FILE, VERSION, chunks[number : number + 8]
                )
            await trio.testing.wait_all_tasks_blocked()
            asked = len(edge.locates)
            await fetched(downloader, chunk, 0, 0)
            assert len(edge.locates) == asked, "it was known"
    assert [len(request.chunks) for request in edge.locates] == [8, 5, 5, 2]


async def test_what_cannot_be_located_ahead_is_asked_for_by_who_reads() -> None:
    edge, chunks = edge_with(noise(4 * BLOCK_SIZE), cut=BLOCK_SIZE)
    downloader = Downloader(edge)
    edge.is_down = True
    async with trio.open_nursery() as nursery:
        downloader.locate_ahead(nursery.start_soon, FILE, VERSION, chunks)
    edge.is_down = False
    assert await fetched(downloader, chunks[0], 0, 0)


async def test_a_url_is_signed_anew_before_it_expires(
    autojump_clock: trio.testing.MockClock,
) -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    downloader = Downloader(edge)
    await fetched(downloader, chunk, 0, 0)
    await trio.sleep(265)
    await fetched(downloader, chunk, 0, 0)
    assert len(edge.locates) == 1
    await trio.sleep(10)
    await fetched(downloader, chunk, 0, 0)
    assert len(edge.locates) == 2


async def test_a_wrong_clock_here_does_not_sign_for_every_fetch() -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    edge.lifetime_ns = -(10**15)  # what a clock ten days ahead makes of it
    downloader = Downloader(edge)
    for block in range(4):
        await fetched(downloader, chunk, block, block)
    assert len(edge.locates) == 1


async def test_a_cancelled_asker_leaves_the_others_to_ask_anew() -> None:
    edge, [chunk] = edge_with(noise(CHUNK))
    edge.hold = trio.Event()
    downloader = Downloader(edge)
    got: list[bytes] = []

    async def second() -> None:
        got.append(await fetched(downloader, chunk, 0, 0))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as asking:
                asking.start_soon(fetched, downloader, chunk, 0, 0)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(second)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()
        edge.hold.set()
    assert [len(plain) for plain in got] == [BLOCK_SIZE]
    assert downloader.memory.used == 0


async def test_memory_in_flight_stays_under_the_budget() -> None:
    edge, chunks = edge_with(noise(32 * BLOCK_SIZE), cut=2 * BLOCK_SIZE)
    downloader = Downloader(edge, budget_bytes=6 * BLOCK_SIZE, connections=2)
    async with trio.open_nursery() as nursery:
        for chunk in chunks:
            nursery.start_soon(fetched, downloader, chunk, 0, 1)
    assert downloader.memory.peak == 6 * BLOCK_SIZE
    assert downloader.connections.peak == 2
    assert downloader.memory.used == 0


# --- under a limit ------------------------------------------------------------------------------

RATE = BLOCK_SIZE
PORTION = RATE // DOWNLOAD_PORTIONS_PER_SECOND


def limited(edge: FakeEdge, rate: int | None = RATE, **more: int) -> Downloader:
    throttle = Throttle(rate, portions_per_second=DOWNLOAD_PORTIONS_PER_SECOND)
    return Downloader(edge, throttle=throttle, **more)


async def test_under_a_limit_a_range_comes_in_portions(autojump_clock: MockClock) -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    downloader = limited(edge)
    assert await fetched(downloader, chunk, 0, 4) == content
    assert edge.served == CHUNK
    assert [end for _, _, end in edge.gets[:-1]] == [start for _, start, _ in edge.gets[1:]]
    assert {end - start for _, start, end in edge.gets[:-1]} == {PORTION}
    seconds = (CHUNK - RATE // 2) / RATE  # half a second's bytes had been saved up
    assert trio.current_time() == pytest.approx(seconds, abs=1e-3)
    assert downloader.memory.used == downloader.connections.used == 0


async def test_a_read_goes_before_what_is_read_ahead(autojump_clock: MockClock) -> None:
    """It waits for one portion of that, also where there is one place for all of them."""
    edge, chunks = edge_with(noise(12 * BLOCK_SIZE), cut=4 * BLOCK_SIZE)
    downloader = limited(edge, connections=1)
    ahead = Claim(urgent=False)

    async def fetch(chunk: bytes, claim: Claim) -> None:
        async with downloader.fetch(FILE, VERSION, chunk, 0, 3, claim=claim):
            pass

    async with trio.open_nursery() as nursery:
        for chunk in chunks[:2]:
            nursery.start_soon(fetch, chunk, ahead)
        await trio.sleep(2)
        before = len(edge.gets)
        await fetch(chunks[2], Claim())
        others = [chunk for chunk, _, _ in edge.gets[before:] if chunk != chunks[2]]
        assert len(others) <= 1
        nursery.cancel_scope.cancel()
    assert downloader.memory.used == downloader.connections.used == 0


async def test_a_limit_cuts_what_is_under_way(autojump_clock: MockClock) -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    downloader, edge.hold = limited(edge, None), trio.Event()
    got: list[bytes] = []

    async def fetch() -> None:
        got.append(await fetched(downloader, chunk, 0, 4))

    async with trio.open_nursery() as nursery:
        edge.hold.set()
        await downloader._locator.find(FILE, VERSION, chunk)
        edge.hold = trio.Event()
        nursery.start_soon(fetch)
        await trio.testing.wait_all_tasks_blocked()
        assert edge.gets == [(chunk, 0, CHUNK)]
        await trio.sleep(1)
        downloader.throttle.change(RATE)
        edge.hold.set()
    assert got == [content]
    assert downloader.link.rate is not None
    assert downloader.link.rate <= 2 * RATE  # what was cut off brought nothing
    assert edge.served == CHUNK  # nothing of the first request was answered
    assert max(end - start for _, start, end in edge.gets[1:]) == PORTION
    assert trio.current_time() >= 1 + CHUNK / RATE


async def test_no_limit_any_more_ends_the_waiting(autojump_clock: MockClock) -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    downloader = limited(edge, RATE // 100)
    got: list[bytes] = []

    async def fetch() -> None:
        got.append(await fetched(downloader, chunk, 0, 4))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        await trio.sleep(60)
        assert got == []
        downloader.throttle.change(None)
        began = trio.current_time()
    assert got == [content]
    assert trio.current_time() == began


async def test_portions_outlive_the_urls_they_came_by(autojump_clock: MockClock) -> None:
    """A slow limit is no reason to ask for a block again."""
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    edge.lifetime_ns = 40 * 10**9
    downloader = limited(edge, 8 * 1024)
    assert await fetched(downloader, chunk, 0, 4) == content
    assert trio.current_time() > 100
    assert len(edge.locates) > 3
    assert edge.served == CHUNK


@pytest.mark.parametrize("fault", ["truncate", "refuse", "busy", "down"])
async def test_a_portion_that_fails_costs_no_block_that_came(
    autojump_clock: MockClock, fault: str
) -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    edge.faults = [""] * 9 + [fault]
    assert await fetched(limited(edge), chunk, 0, 4) == content
    again = edge.gets[10:]
    assert again[0][1] == 2 * BLOCK_SIZE
    assert edge.served <= CHUNK + 2 * PORTION


async def test_a_wrong_block_is_fetched_again_in_portions(autojump_clock: MockClock) -> None:
    content = noise(CHUNK)
    edge, [chunk] = edge_with(content)
    edge.faults = ["", "", "", "", "corrupt"]
    assert await fetched(limited(edge), chunk, 0, 4) == content
    assert edge.served == CHUNK + BLOCK_SIZE


async def test_a_quota_is_fair_and_urgent_claims_go_first() -> None:
    quota, order = PrioritySemaphore(10), list[str]()
    late = Claim(urgent=False)

    async def claim(name: str, amount: int, by: Claim) -> None:
        await quota.acquire(amount, by)
        order.append(name)

    await quota.acquire(10, Claim())
    async with trio.open_nursery() as nursery:
        for name, amount, by in [
            ("ahead", 4, Claim(urgent=False)),
            ("late", 4, late),
            ("big", 8, Claim()),
            ("small", 2, Claim()),
        ]:
            nursery.start_soon(claim, name, amount, by)
            await trio.testing.wait_all_tasks_blocked()
        quota.release(2)  # not enough for "big", which must not be overtaken by "small"
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        quota.release(8)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(order) == ["big", "small"]  # granted together: they wake in any order
        late.urgent = True
        quota.release(4)
        await trio.testing.wait_all_tasks_blocked()
        assert order[2:] == ["late"]
        quota.release(4)
    assert order[-1] == "ahead"


async def test_a_cancelled_claim_takes_nothing() -> None:
    quota = PrioritySemaphore(10)
    await quota.acquire(10, Claim())
    with trio.move_on_after(0):
        await quota.acquire(5, Claim())
    quota.release(10)
    assert quota.used == 0
    await quota.acquire(10, Claim())


def test_buffers_are_used_again_and_idle_ones_are_bounded() -> None:
    pool = BufferPool(keep=1 << 20)
    first = pool.take(300_000)
    assert len(first) == 512 * 1024
    pool.give(first)
    assert pool.take(400_000) is first
    for buffer in [pool.take(1 << 20) for _ in range(3)]:
        pool.give(buffer)
    kept = pool.take(1 << 20)
    assert pool.take(1 << 20) is not kept


# --- bundles --------------------------------------------------------------------------------------


async def test_a_chunk_is_found_where_it_lies_in_a_bundle() -> None:
    content = noise(3 * CHUNK)
    edge, chunks = edge_with(content)
    name = edge.bundle(VERSION)
    downloader = Downloader(edge)
    assert (
        await fetched(downloader, chunks[1], 1, 2) == content[CHUNK:][BLOCK_SIZE : 3 * BLOCK_SIZE]
    )
    assert edge.gets == [(name, CHUNK + BLOCK_SIZE, CHUNK + 3 * BLOCK_SIZE)]


async def test_a_refused_url_is_asked_anew_for_all_that_are_in_the_object() -> None:
    content = noise(3 * CHUNK)
    edge, chunks = edge_with(content)
    edge.bundle(VERSION)
    downloader = Downloader(edge)
    assert await fetched(downloader, chunks[0], 0, 0, tuple(chunks)) == content[:BLOCK_SIZE]
    edge.faults = ["refuse"]
    assert await fetched(downloader, chunks[1], 0, 0, tuple(chunks)) == content[CHUNK:][:BLOCK_SIZE]
    assert downloader._locator.located(chunks[2]) is None
    assert len(edge.locates) == 2
    assert len(edge.gets) == 3


async def test_what_moved_to_another_object_is_found_there() -> None:
    """It was remembered where it is not any more: its object was written anew."""
    content = noise(3 * CHUNK)
    edge, chunks = edge_with(content)
    edge.bundle(VERSION)
    downloader = Downloader(edge)
    assert await fetched(downloader, chunks[0], 0, 0, tuple(chunks)) == content[:BLOCK_SIZE]
    edge.bundled.clear()
    edge.faults = ["refuse"]
    assert await fetched(downloader, chunks[2], 0, 0) == content[2 * CHUNK :][:BLOCK_SIZE]
    assert edge.gets[-1] == (chunks[2], 0, BLOCK_SIZE)
