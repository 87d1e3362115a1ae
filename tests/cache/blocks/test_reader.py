from __future__ import annotations

import random
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.blocks.block_map import Layout
from cache.blocks.cache import BlockCache
from cache.blocks.reader import Reader
from remote.protocol.content import BLOCK_SIZE, HOLE, Manifest, Piece
from remote.protocol.errors import CorruptContent, Unreachable
from remote.transfer.download import Downloader
from tests.amounts import amount
from tests.fake_edge import FakeEdge, noise, version_name

FILE, VERSION = version_name(1), version_name(2)
KIB, MIB = 1024, 1024 * 1024
CUTS = [BLOCK_SIZE * 4, BLOCK_SIZE * 2 + 777, 100_001, BLOCK_SIZE * 7 - 5]


class Manifests(dict[str, Manifest]):
    """A `ManifestStore` in memory."""

    def manifest(self, version: str) -> Manifest | None:
        return self.get(version)

    def keep_manifest(self, version: str, manifest: Manifest) -> None:
        self[version] = manifest

    def keep_manifests(self, manifests: Mapping[str, Manifest]) -> None:
        self.update(manifests)


@dataclass
class Setup:
    edge: FakeEdge
    blocks: BlockCache
    downloader: Downloader
    reader: Reader
    content: bytes
    manifests: Manifests = field(default_factory=Manifests)

    async def read(self, offset: int, length: int, **options: object) -> bytes:
        size = len(self.content)
        return bytes(await self.reader.read(FILE, VERSION, size, offset, length, **options))  # type: ignore[arg-type]  # options are the reader's own keywords

    def expect(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


@asynccontextmanager
async def reading(
    content: bytes,
    cuts: list[int] = CUTS,
    *,
    limit: int = 1 << 30,
    budget: int = 64 * MIB,
) -> AsyncIterator[Setup]:
    edge = FakeEdge()
    edge.add(VERSION, content, cuts)
    with TemporaryDirectory() as directory:
        blocks = BlockCache(Path(directory), limit, boot_id="boot")
        downloader, manifests = Downloader(edge, budget_bytes=budget), Manifests()
        reader = Reader(blocks, downloader, manifests)
        async with trio.open_nursery() as nursery:
            await nursery.start(reader.run)
            yield Setup(edge, blocks, downloader, reader, content, manifests)
            nursery.cancel_scope.cancel()
        blocks.close()


async def idle(setup: Setup) -> None:
    """Wait until nothing is being fetched or stored."""
    while setup.downloader.memory.used:
        await trio.testing.wait_all_tasks_blocked(0.01)


# --- one read -------------------------------------------------------------------------------------


async def test_a_cold_small_read_moves_one_block_in_two_requests() -> None:
    async with reading(noise(32 * MIB), [MIB]) as setup:
        assert await setup.read(17 * MIB + 5000, 4096) == setup.expect(17 * MIB + 5000, 4096)
        assert len(setup.edge.locates) == 1
        assert setup.edge.locates[0].manifest
        assert len(setup.edge.gets) == 1
        assert setup.edge.served == BLOCK_SIZE


async def test_connections_are_made_while_it_is_asked_where_a_file_is() -> None:
    """As many as the first reads will use: one for a random read, several for a whole file."""
    content = noise(32 * MIB)
    async with reading(content, [MIB]) as setup:
        await setup.read(17 * MIB, 4096)
        assert setup.edge.connected_ahead == [1]
    async with reading(content, [MIB]) as setup:
        await setup.read(0, MIB, window=setup.reader.prefetch())
        assert setup.edge.connected_ahead == [8]
        await setup.read(MIB, MIB)
        assert len(setup.edge.connected_ahead) == 1, "only when it is asked"


async def test_random_reads_through_a_handle_fetch_only_what_they_read() -> None:
    async with reading(noise(32 * MIB), [MIB]) as setup:
        window = setup.reader.prefetch()
        for place in (20, 3, 31, 11):
            offset = place * MIB + 300_000
            assert await setup.read(offset, 4096, window=window) == setup.expect(offset, 4096)
        assert setup.edge.served == 4 * BLOCK_SIZE


async def test_what_was_read_once_is_answered_without_waiting_and_in_place() -> None:
    async with reading(noise(4 * MIB)) as setup:
        assert setup.reader.try_read(FILE, VERSION, 10, 1000) is None
        await setup.read(10, 1000)
        await idle(setup)
        view = setup.reader.try_read(FILE, VERSION, 10, 1000)
        assert view is not None
        assert view.readonly  # LMDB's own pages, not a copy
        assert view == setup.expect(10, 1000)


async def test_several_cached_blocks_are_put_together_without_waiting() -> None:
    async with reading(noise(4 * MIB)) as setup:
        await setup.read(0, 2 * MIB)
        await idle(setup)
        view = setup.reader.try_read(FILE, VERSION, 100_000, MIB)
        assert view is not None
        assert view == setup.expect(100_000, MIB)


async def test_reads_are_clipped_at_the_end_of_the_version() -> None:
    async with reading(noise(600_000)) as setup:
        assert await setup.read(599_000, 4096) == setup.expect(599_000, 1000)
        assert await setup.read(600_000, 4096) == b""
        assert await setup.read(900_000, 4096) == b""
        await idle(setup)
        assert setup.reader.try_read(FILE, VERSION, 600_000, 10) == b""


async def test_an_empty_version_asks_nobody() -> None:
    async with reading(b"") as setup:
        assert await setup.read(0, 4096) == b""
        assert setup.edge.locates == []


async def test_holes_are_zeros_that_nobody_fetches() -> None:
    content = noise(MIB) + bytes(3 * MIB) + noise(MIB, b"2")
    async with reading(content, [MIB]) as setup:
        assert await setup.read(MIB - 10, 3 * MIB + 20) == setup.expect(MIB - 10, 3 * MIB + 20)
        assert setup.edge.served == BLOCK_SIZE * 2
        assert setup.reader.try_read(FILE, VERSION, 2 * MIB, 8192) == bytes(8192)


def test_a_huge_hole_costs_nothing_to_look_up() -> None:
    layout = Layout(Manifest(10**15, 65536, [Piece(HOLE, 10**15)]))
    [part] = layout.parts(10**14, 4096)
    assert (part.chunk, part.length) == (HOLE, 4096)


# --- several readers ------------------------------------------------------------------------------


async def test_one_fetch_however_many_readers_wait() -> None:
    async with reading(noise(4 * MIB), [MIB]) as setup:
        got: list[bytes] = []

        async def one(offset: int) -> None:
            got.append(await setup.read(offset, 70_000))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, 1000 * number)
        assert sorted(got) == sorted(setup.expect(1000 * n, 70_000) for n in range(20))
        assert len(setup.edge.gets) == 1
        assert len(setup.edge.locates) == 1


async def test_neighbouring_missing_blocks_are_one_request() -> None:
    async with reading(noise(4 * MIB), [2 * MIB]) as setup:
        await setup.read(0, 2 * MIB)
        assert [(start, end) for _, start, end in setup.edge.gets] == [(0, 2 * MIB)]


async def test_a_chunk_that_a_file_repeats_is_fetched_once() -> None:
    async with reading(noise(BLOCK_SIZE) * 4, [BLOCK_SIZE]) as setup:
        assert await setup.read(0, MIB) == setup.content
        assert len(setup.edge.gets) == 1


async def test_a_cancelled_reader_leaves_the_fetch_to_the_others() -> None:
    async with reading(noise(MIB), [MIB]) as setup:
        await setup.read(MIB - 10, 10)
        setup.edge.hold = trio.Event()
        got: list[bytes] = []

        async def patient() -> None:
            got.append(await setup.read(100, 1000))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as impatient:
                    impatient.start_soon(setup.read, 0, 500)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(patient)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            setup.edge.hold.set()
        assert got == [setup.expect(100, 1000)]
        assert len(setup.edge.gets) == 2


async def test_a_buffer_of_a_cancelled_read_is_not_written_to_any_more() -> None:
    async with reading(noise(MIB), [MIB]) as setup:
        await setup.read(0, 2 * BLOCK_SIZE)
        await idle(setup)
        setup.edge.hold = trio.Event()
        with trio.move_on_after(0.01):
            await setup.read(2 * BLOCK_SIZE, 2 * BLOCK_SIZE)
        view = setup.reader.try_read(FILE, VERSION, 100, 2 * BLOCK_SIZE - 100)  # the same buffer
        assert view is not None
        kept, want = view, setup.expect(100, 2 * BLOCK_SIZE - 100)
        setup.edge.hold.set()
        await idle(setup)
        assert kept == want


@pytest.mark.slow
async def test_readers_that_wait_take_no_memory() -> None:
    async with reading(noise(MIB), [MIB]) as setup:
        await setup.read(0, 1)  # the manifest is here
        await idle(setup)
        setup.edge.hold = trio.Event()
        before = resident_bytes()
        async with trio.open_nursery() as nursery:
            for _number in range(300):
                nursery.start_soon(setup.read, BLOCK_SIZE, MIB - BLOCK_SIZE)
            await trio.testing.wait_all_tasks_blocked()
            assert resident_bytes() - before < 50 * MIB
            setup.edge.hold.set()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def test_many_wide_readers_share_a_budget_smaller_than_any_of_them() -> None:
    content = noise(6 * MIB)
    async with reading(content, [BLOCK_SIZE], budget=2 * BLOCK_SIZE) as setup:
        done = 0

        async def wide(offset: int, length: int) -> None:
            nonlocal done
            assert await setup.read(offset, length) == setup.expect(offset, length)
            done += 1

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(wide, number * 300_000, 3 * MIB)
        assert done == 8
        assert setup.downloader.memory.peak <= 2 * BLOCK_SIZE


async def test_blocks_that_arrived_are_read_while_they_are_being_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_store = trio.Event()

    async def slow(items: object) -> bool:
        await may_store.wait()
        return True

    async with reading(noise(MIB), [MIB]) as setup:
        monkeypatch.setattr(setup.blocks, "put_many", slow)
        assert await setup.read(0, 1000) == setup.expect(0, 1000)
        view = setup.reader.try_read(FILE, VERSION, 2000, 5000)
        assert view == setup.expect(2000, 5000)
        assert await setup.read(9000, 5000) == setup.expect(9000, 5000)
        assert len(setup.edge.gets) == 1
        may_store.set()


# --- read-ahead -----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_sequential_read_asks_rarely_and_fetches_each_byte_once() -> None:
    content = noise(48 * MIB)
    async with reading(content, [MIB]) as setup:
        window = setup.reader.prefetch()
        for offset in range(0, len(content), 128 * KIB):
            view = setup.reader.try_read(FILE, VERSION, offset, 128 * KIB, window)
            if view is None:
                size = len(content)
                view = await setup.reader.read(FILE, VERSION, size, offset, 128 * KIB, window)
            assert view == setup.expect(offset, 128 * KIB)
        await idle(setup)
        assert setup.edge.served == len(content)
        assert len(setup.edge.locates) <= 2
        assert len(setup.edge.gets) < 80
        assert setup.downloader.memory.peak <= setup.downloader.memory.limit


async def test_closing_a_handle_cancels_what_was_read_ahead_for_it() -> None:
    async with reading(noise(8 * MIB), [MIB]) as setup:
        await setup.read(0, 1)
        await idle(setup)
        setup.edge.hold = trio.Event()
        window = setup.reader.prefetch()
        assert setup.reader.try_read(FILE, VERSION, 0, 4096, window) is not None
        await trio.testing.wait_all_tasks_blocked()
        assert setup.downloader.memory.used
        window.close()
        await trio.testing.wait_all_tasks_blocked()
        assert setup.downloader.memory.used == 0
        setup.edge.hold.set()
        assert await setup.read(BLOCK_SIZE, 1000) == setup.expect(BLOCK_SIZE, 1000)


async def test_a_block_given_up_is_fetched_anew_and_once() -> None:
    async with reading(noise(8 * MIB), [MIB]) as setup:
        await setup.read(0, 1)
        await idle(setup)
        setup.edge.hold = trio.Event()
        window = setup.reader.prefetch()
        setup.reader.try_read(FILE, VERSION, 0, 4096, window)
        await trio.testing.wait_all_tasks_blocked()
        setup.edge.gets.clear()
        late: list[bytes] = []

        async def join_late() -> None:
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(release)
            late.append(await setup.read(BLOCK_SIZE, 1000))

        async def release() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert setup.edge.hold is not None
            setup.edge.hold.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(join_late)
            window.close()
            now = await setup.read(BLOCK_SIZE, 1000)  # before the cancelled fetch notices
        assert [now, *late] == [setup.expect(BLOCK_SIZE, 1000)] * 2
        assert len(setup.edge.gets) == 1


async def test_closing_a_handle_spares_what_somebody_waits_for() -> None:
    async with reading(noise(8 * MIB), [MIB]) as setup:
        await setup.read(0, 1)
        await idle(setup)
        setup.edge.hold = trio.Event()
        window = setup.reader.prefetch()
        setup.reader.try_read(FILE, VERSION, 0, 4096, window)
        got: list[bytes] = []

        async def catch_up() -> None:
            got.append(await setup.read(BLOCK_SIZE, 1000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(catch_up)
            await trio.testing.wait_all_tasks_blocked()
            window.close()
            setup.edge.hold.set()
        assert got == [setup.expect(BLOCK_SIZE, 1000)]


async def test_a_reader_that_catches_up_makes_read_ahead_urgent() -> None:
    async with reading(noise(4 * MIB), [BLOCK_SIZE]) as setup:
        await setup.read(0, 1)
        await idle(setup)
        setup.edge.hold = trio.Event()
        window = setup.reader.prefetch()
        setup.reader.try_read(FILE, VERSION, 0, 4096, window)
        assert [run.claim.urgent for run in window.runs] == [False, False]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.read, BLOCK_SIZE, 1000)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(run.claim.urgent for run in window.runs) == [False, True]
            setup.edge.hold.set()


# --- whole versions -------------------------------------------------------------------------------


async def test_a_warm_version_reads_offline() -> None:
    content = noise(5 * MIB) + bytes(MIB) + noise(5 * MIB)  # the same chunks twice
    async with reading(content, [MIB]) as setup:
        await setup.read(2 * MIB, 1)
        await setup.reader.warm(FILE, VERSION)
        assert setup.reader.cached_bytes(VERSION) == len(content)
        assert setup.edge.served == 5 * MIB
        setup.edge.is_down = True
        assert await setup.read(0, len(content)) == content


async def test_warming_survives_the_end_of_the_handle_that_read_ahead() -> None:
    async with reading(noise(4 * MIB), [MIB]) as setup:
        await setup.read(0, 1)
        await idle(setup)
        setup.edge.hold = trio.Event()
        window = setup.reader.prefetch()
        setup.reader.try_read(FILE, VERSION, 0, 4096, window)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.reader.warm, FILE, VERSION)
            await trio.testing.wait_all_tasks_blocked()
            window.close()
            setup.edge.hold.set()
        assert setup.reader.cached_bytes(VERSION) == 4 * MIB


async def test_content_made_here_is_read_without_the_network() -> None:
    content = noise(3 * MIB)
    async with reading(content, [MIB]) as setup:
        setup.edge.is_down = True
        manifest = setup.edge.manifests[VERSION]
        setup.reader.keep_manifest(VERSION, manifest)
        for number, piece in enumerate(manifest.pieces):
            await setup.reader.put_plain(piece.id, content[number * MIB : (number + 1) * MIB])
        assert await setup.read(0, len(content)) == content


# --- trouble --------------------------------------------------------------------------------------


async def test_offline_reads_of_what_is_not_here_fail_and_recover() -> None:
    async with reading(noise(4 * MIB), [MIB]) as setup:
        await setup.read(0, 1000)
        await idle(setup)
        setup.edge.is_down = True
        assert await setup.read(500, 100) == setup.expect(500, 100)
        with pytest.raises(Unreachable):
            await setup.read(3 * MIB, 1000)
        setup.edge.is_down = False
        assert await setup.read(3 * MIB, 1000) == setup.expect(3 * MIB, 1000)


async def test_everybody_waiting_for_a_manifest_learns_that_it_cannot_be_had() -> None:
    async with reading(noise(MIB)) as setup:
        setup.edge.is_down = True
        failed = 0

        async def one() -> None:
            nonlocal failed
            with pytest.raises(Unreachable):
                await setup.read(0, 10)
            failed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert failed == 5
        assert len(setup.edge.locates) == 1


async def test_corrupt_content_fails_the_read_and_is_not_kept() -> None:
    async with reading(noise(MIB), [MIB]) as setup:
        chunk = setup.edge.manifests[VERSION].pieces[0].id
        setup.edge.corrupt_for_ever.add(chunk)
        with pytest.raises(CorruptContent):
            await setup.read(0, 10)
        assert setup.blocks.stats().blocks == 0
        setup.edge.corrupt_for_ever.clear()
        assert await setup.read(0, 10) == setup.expect(0, 10)


async def test_reading_goes_on_when_the_cache_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(items: object) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    content = noise(4 * MIB)
    async with reading(content, [MIB]) as setup:
        monkeypatch.setattr(setup.blocks, "put_many", refuse)
        window = setup.reader.prefetch()
        for offset in range(0, len(content), 256 * KIB):
            got = await setup.read(offset, 256 * KIB, window=window)
            assert got == setup.expect(offset, 256 * KIB)
        assert setup.edge.served <= len(content) + MIB  # nothing is read ahead to be dropped
        with pytest.raises(OSError, match="no room"):
            await setup.reader.warm(FILE, VERSION)


async def test_a_cache_much_smaller_than_the_file_still_reads_right() -> None:
    content = noise(12 * MIB)
    async with reading(content, [MIB], limit=2 * MIB) as setup:
        for offset in range(0, len(content), MIB):
            assert await setup.read(offset, MIB) == setup.expect(offset, MIB)
        await idle(setup)
        assert setup.blocks.stats().bytes <= 2 * MIB


REFERENCE = b"".join(
    [noise(700_000, b"a"), bytes(400_000), b"words " * 100_000, noise(900_000, b"b")]
)
faults = st.lists(st.sampled_from(["", "", "truncate", "corrupt", "refuse", "late"]), max_size=12)
spans = st.lists(
    st.tuples(st.integers(0, len(REFERENCE) + 10), st.integers(1, 700_000)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=amount(40, 10))
@given(faults, spans, st.integers(0, 2**32), st.booleans())
def test_whatever_the_edge_does_reads_equal_the_content(
    planned: list[str], wanted: list[tuple[int, int]], seed: int, together: bool
) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        async with reading(REFERENCE, [100_000, 400_000, 300_001], budget=BLOCK_SIZE * 5) as setup:
            setup.edge.faults = planned[:]
            window = setup.reader.prefetch()

            async def one(offset: int, length: int) -> None:
                expected = setup.expect(offset, length)
                handle = window if rng.random() < 0.7 else None
                try:
                    here = setup.reader.try_read(FILE, VERSION, offset, length, handle)
                    if here is not None:
                        assert here == expected
                        return
                    assert await setup.read(offset, length, window=handle) == expected
                except (Unreachable, CorruptContent):
                    assert setup.edge.gets  # only what the edge did can fail a read

            async with trio.open_nursery() as nursery:
                for offset, length in wanted:
                    if together:
                        nursery.start_soon(one, offset, length)
                    else:
                        await one(offset, length)
            window.close()
            await idle(setup)
            for offset, length in wanted:  # the faults are used up or left: no damage was kept
                setup.edge.faults = []
                assert await setup.read(offset, length) == setup.expect(offset, length)

    trio.run(main)


# --- small files that may be read next ----------------------------------------------------------


async def test_small_versions_are_located_together_and_are_here_then() -> None:
    async with reading(b"") as setup:
        names = [version_name(100 + number) for number in range(5)]
        for name in names:
            setup.edge.add(name, noise(3000, name.encode()), [5000])
        setup.edge.add(names[0], bytes(100_000), [100_000])  # a hole
        await setup.reader.fetch_whole([(FILE, name) for name in [*names, version_name(999)]])
        await trio.testing.wait_all_tasks_blocked()
        await idle(setup)
        assert len(setup.edge.located_together) == 1
        assert all(setup.reader.is_here(name) for name in names)
        assert not setup.reader.is_here(version_name(999))
        for name in names[1:]:
            found = setup.reader.try_read(FILE, name, 0, 3000)
            assert found == noise(3000, name.encode())
        assert setup.edge.locates == []
        await setup.reader.fetch_whole([(FILE, name) for name in names])
        assert len(setup.edge.located_together) == 1
        assert len(setup.edge.gets) == 4


def bundled(setup: Setup, count: int = 6, gap: int = 0) -> list[str]:
    """Small versions whose chunks lie in one object."""
    names = [version_name(200 + number) for number in range(count)]
    for name in names:
        setup.edge.add(name, small(name), [5000])
    setup.edge.bundle(*names, gap=gap)
    return names


def small(name: str) -> bytes:
    return noise(3000, name.encode())


def are_here(setup: Setup, names: list[str]) -> bool:
    return all(setup.reader.try_read(FILE, name, 0, 3000) == small(name) for name in names)


async def test_neighbours_in_a_bundle_come_by_one_request() -> None:
    async with reading(b"") as setup:
        names = bundled(setup)
        await setup.reader.fetch_whole([(FILE, name) for name in names])
        await trio.testing.wait_all_tasks_blocked()
        await idle(setup)
        assert len(setup.edge.gets) == 1
        assert setup.edge.served == len(names) * 3000
        assert are_here(setup, names)


async def test_what_is_here_and_lies_between_is_not_asked_for_if_it_is_large() -> None:
    async with reading(b"") as setup:
        names = bundled(setup, gap=40_000)
        await setup.reader.fetch_whole([(FILE, name) for name in names])
        await trio.testing.wait_all_tasks_blocked()
        await idle(setup)
        assert len(setup.edge.gets) == len(names)
        assert are_here(setup, names)


@pytest.mark.parametrize("fault", ["corrupt", "refuse", "truncate", "down", "late"])
async def test_what_did_not_come_together_comes_by_itself(fault: str) -> None:
    async with reading(b"") as setup:
        names = bundled(setup)
        setup.edge.faults = [fault]
        await setup.reader.fetch_whole([(FILE, name) for name in names])
        await trio.testing.wait_all_tasks_blocked()
        await idle(setup)
        alone = {"corrupt": 1, "refuse": 6, "truncate": 3, "down": 6, "late": 0}[fault]
        assert len(setup.edge.gets) == 1 + alone
        assert are_here(setup, names)


@pytest.mark.parametrize("fault", ["", "corrupt", "down"])
async def test_who_reads_one_of_several_that_come_together_waits_for_that(fault: str) -> None:
    async with reading(b"") as setup:
        names = bundled(setup)
        await setup.reader.fetch_whole([(FILE, name) for name in names[:1]])
        await idle(setup)
        setup.edge.hold = trio.Event()
        found: list[bytes] = []

        async def read(name: str) -> None:
            found.append(bytes(await setup.reader.read(FILE, name, 3000, 100, 200)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.reader.fetch_whole, [(FILE, name) for name in names])
            await trio.testing.wait_all_tasks_blocked()
            setup.edge.hold.set()
            setup.edge.hold, setup.edge.faults = trio.Event(), [fault]
            await trio.testing.wait_all_tasks_blocked()
            gets = len(setup.edge.gets)
            for name in names[1:]:
                nursery.start_soon(read, name)
            await trio.testing.wait_all_tasks_blocked()
            assert len(setup.edge.gets) == gets
            setup.edge.hold.set()
        assert sorted(found) == sorted(small(name)[100:300] for name in names[1:])


async def test_who_waits_for_what_comes_together_when_the_mount_goes_down_hears_of_it() -> None:
    async with reading(b"") as setup:
        names = bundled(setup)
        await setup.reader.fetch_whole([(FILE, name) for name in names[:1]])
        await idle(setup)
        async with trio.open_nursery() as nursery:
            setup.edge.hold = trio.Event()
            nursery.start_soon(setup.reader.fetch_whole, [(FILE, name) for name in names])
            await trio.testing.wait_all_tasks_blocked()
            setup.edge.hold.set()
            setup.edge.hold = trio.Event()
            await trio.testing.wait_all_tasks_blocked()

            async def read() -> None:
                with pytest.raises(Unreachable, match="stopped"):
                    await setup.reader.read(FILE, names[2], 3000, 0, 3000)

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert setup.reader._nursery is not None
            setup.reader._nursery.cancel_scope.cancel()


async def test_who_reads_what_is_being_located_waits_for_that() -> None:
    content = noise(3000)
    async with reading(content, [5000]) as setup:
        setup.edge.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.reader.fetch_whole, [(FILE, VERSION)])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(setup.read, 0, 3000)
            await trio.testing.wait_all_tasks_blocked()
            setup.edge.hold.set()
        assert setup.edge.locates == []
        assert len(setup.edge.gets) == 1
        assert await setup.read(0, 3000) == content


async def test_who_reads_what_could_not_be_located_together_asks_alone() -> None:
    content = noise(3000)
    async with reading(content, [5000]) as setup:
        setup.edge.hold, setup.edge.is_down = trio.Event(), True

        async def fetch() -> None:
            with pytest.raises(Unreachable):
                await setup.reader.fetch_whole([(FILE, VERSION)])
            setup.edge.is_down = False

        found: list[bytes] = []

        async def read() -> None:
            found.append(await setup.read(0, 3000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            setup.edge.hold.set()
        assert found == [content]
        assert len(setup.edge.locates) == 1
