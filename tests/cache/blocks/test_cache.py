from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import pytest
import trio
import trio.testing
from blake3 import blake3

from cache.blocks.cache import TRANSACTION_BYTES, Block, BlockCache
from cache.blocks.lmdb_store import BlockMap, charge
from tests.fake_edge import noise

BLOCK = 256 * 1024
LIMIT = 64 * BLOCK


def chunk(number: int) -> bytes:
    return blake3(b"chunk" + number.to_bytes(4, "big")).digest()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    cache = BlockCache.open(tmp_path / "cache", LIMIT, boot_id="boot")
    yield cache
    cache.close()


async def fill(cache: BlockCache, numbers: range, length: int = 100_000) -> None:
    for number in numbers:
        await cache.put_many([(chunk(number), 0, noise(length, bytes([number])))])


def present(cache: BlockCache, numbers: range) -> list[int]:
    return [number for number in numbers if cache.contains(chunk(number), 0)]


# --- getting and putting --------------------------------------------------------------------------


async def test_what_was_put_is_got(cache: BlockCache) -> None:
    await cache.put_many([(chunk(1), 0, b"a" * BLOCK), (chunk(1), 65535, memoryview(b"tail"))])
    assert cache.get(chunk(1), 0) == b"a" * BLOCK
    assert cache.get(chunk(1), 65535) == b"tail"
    assert cache.get(chunk(1), 1) is None
    assert cache.contains(chunk(1), 0)
    assert not cache.contains(chunk(2), 0)
    stats = cache.stats()
    assert (stats.blocks, stats.hits, stats.misses) == (2, 2, 1)
    assert stats.bytes == charge(BLOCK) + charge(4)


async def test_a_view_stays_good_while_others_write_until_the_next_get(cache: BlockCache) -> None:
    first = noise(BLOCK, b"first")
    await cache.put_many([(chunk(1), 0, first)])
    view = cache.get(chunk(1), 0)
    assert view is not None
    cache._map.store([(chunk(n), 0, noise(BLOCK, bytes([n]))) for n in range(2, 20)])
    cache._map.evict(10 * BLOCK)
    cache._map.store([(chunk(n), 0, noise(BLOCK, bytes([n]))) for n in range(20, 40)])
    assert view == first


async def test_putting_again_changes_nothing(cache: BlockCache) -> None:
    await cache.put_many([(chunk(1), 0, b"x" * 5000)])
    before = cache.stats()
    await cache.put_many([(chunk(1), 0, b"x" * 5000)])
    assert cache.stats() == before


async def test_puts_queued_together_are_committed_together(cache: BlockCache) -> None:
    generation = cache._map.usage.generation
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(cache.put_many, [(chunk(number), 0, noise(1000))])
    assert cache.stats().blocks == 30
    assert cache._map.usage.generation - generation <= 3


async def test_a_cancelled_put_still_keeps_its_buffer_until_it_is_written(
    cache: BlockCache,
) -> None:
    buffer = bytearray(noise(BLOCK))
    with trio.CancelScope() as scope:
        scope.cancel()
        await cache.put_many([(chunk(1), 0, buffer)])
    assert cache.get(chunk(1), 0) == noise(BLOCK)


# --- the limit ------------------------------------------------------------------------------------


async def test_the_least_recently_used_blocks_go(cache: BlockCache) -> None:
    each = LIMIT // charge(100_000)
    await fill(cache, range(each))
    for number in range(5):
        assert cache.get(chunk(number), 0) is not None
    await fill(cache, range(each, each + 3))
    left = present(cache, range(each + 3))
    assert left[:5] == [0, 1, 2, 3, 4]
    assert 5 not in left
    assert left[-3:] == [each, each + 1, each + 2]
    assert cache.stats().bytes <= LIMIT
    assert cache.stats().evicted == each + 3 - len(left)


async def test_the_limit_holds_however_much_is_put(cache: BlockCache) -> None:
    for start in range(0, 400, 8):
        await cache.put_many([(chunk(n), 0, noise(BLOCK)) for n in range(start, start + 8)])
        assert cache.stats().bytes <= LIMIT
    assert cache.stats().dropped == 0
    assert (cache._path / "map" / "data.mdb").stat().st_size < LIMIT * 1.5


@pytest.mark.slow
async def test_a_view_left_open_keeps_no_pages_from_being_reused(cache: BlockCache) -> None:
    await fill(cache, range(1), BLOCK)
    assert cache.get(chunk(0), 0) is not None
    for start in range(1, 800, 8):
        await cache.put_many([(chunk(n), 0, noise(BLOCK)) for n in range(start, start + 8)])
    assert cache.stats().dropped == 0
    assert (cache._path / "map" / "data.mdb").stat().st_size < LIMIT * 1.5


async def test_pinned_chunks_stay_until_their_last_owner_lets_go(cache: BlockCache) -> None:
    await fill(cache, range(3))
    await cache.pin("one", [chunk(0), chunk(1)])
    await cache.pin("two", [chunk(0)])
    await fill(cache, range(10, 250))
    assert present(cache, range(3)) == [0, 1]
    await cache.unpin("one")
    await fill(cache, range(10, 250))
    assert present(cache, range(3)) == [0]
    await cache.pin("two", [chunk(7)])
    await fill(cache, range(10, 250))
    assert present(cache, range(3)) == []


async def test_the_disk_keeps_its_reserve(tmp_path: Path) -> None:
    free = 20 * BLOCK
    used = 0

    def disk_free(descriptor: int) -> int:
        return free - used

    cache = BlockCache(
        tmp_path, LIMIT, boot_id="boot", min_free_bytes=10 * BLOCK, disk_free=disk_free
    )
    for number in range(40):
        await cache.put_many([(chunk(number), 0, noise(BLOCK))])
        used = max(used, cache.stats().bytes)
        assert used <= 11 * charge(BLOCK)
    assert cache.stats().blocks > 5
    cache.close()


async def test_a_full_map_makes_room_by_evicting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.blocks.cache.map_size", lambda limit: 4 * 1024 * 1024)
    cache = BlockCache.open(tmp_path, LIMIT, boot_id="boot")
    stored = [await cache.put_many([(chunk(n), 0, noise(BLOCK))]) for n in range(30)]
    assert all(stored)
    assert cache.contains(chunk(29), 0)
    cache.close()


async def test_what_never_fits_is_dropped_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.blocks.cache.map_size", lambda limit: 2 * 1024 * 1024)
    cache = BlockCache.open(tmp_path, LIMIT, boot_id="boot")
    assert not await cache.put_many([(chunk(99), n, noise(BLOCK)) for n in range(16)])
    assert cache.stats().dropped == 16
    assert cache.get(chunk(99), 0) is None
    assert await cache.put_many([(chunk(1), 0, noise(BLOCK))])
    assert cache.get(chunk(1), 0) == noise(BLOCK)
    cache.close()


async def test_much_is_stored_in_transactions_of_bounded_size(
    cache: BlockCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sizes = cache._map.store, []

    def counted(blocks: Sequence[Block]) -> None:
        sizes.append(sum(len(plain) for _, _, plain in blocks))
        store(blocks)

    monkeypatch.setattr(cache._map, "store", counted)
    lengths = [BLOCK] * 9 + [5] * 3 + [BLOCK] * 11 + [TRANSACTION_BYTES + 1, 7]
    blocks = [(chunk(1), n, noise(length)) for n, length in enumerate(lengths)]
    assert await cache.put_many(blocks)
    for _, number, plain in blocks:
        assert cache.get(chunk(1), number) == plain
    assert sum(sizes) == sum(lengths)
    large = [size for size in sizes if size > TRANSACTION_BYTES]
    assert large == [TRANSACTION_BYTES + 1]  # what is larger goes alone


async def test_a_full_disk_drops_blocks_and_reads_on(
    cache: BlockCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cache, range(1))

    def no_space(*_: object) -> None:
        raise lmdb.DiskError("mdb_txn_commit", errno.ENOSPC)

    monkeypatch.setattr(cache._map, "store", no_space)
    assert not await cache.put_many([(chunk(5), 0, b"x")])
    assert cache.stats().dropped == 1
    assert cache.get(chunk(0), 0) is not None


# --- keeping and throwing away --------------------------------------------------------------------


async def test_a_closed_cache_is_kept_across_a_reboot(tmp_path: Path) -> None:
    cache = BlockCache.open(tmp_path, LIMIT, boot_id="one")
    await fill(cache, range(5))
    await cache.pin("file", [chunk(1)])
    before = cache.stats()
    cache.close()
    again = BlockCache.open(tmp_path, LIMIT, boot_id="two")
    assert present(again, range(5)) == [0, 1, 2, 3, 4]
    assert (again.stats().bytes, again.stats().blocks) == (before.bytes, before.blocks)
    assert again.stats().pinned_chunks == 1
    again.close()


async def test_recency_survives_closing(tmp_path: Path) -> None:
    cache = BlockCache.open(tmp_path, LIMIT, boot_id="one")
    await fill(cache, range(10))
    assert cache.get(chunk(0), 0) is not None
    cache.close()
    again = BlockCache.open(tmp_path, 5 * charge(100_000), boot_id="one")
    await again.evict()
    assert 0 in present(again, range(10))
    again.close()


WRITER = """
import sys, trio
from pathlib import Path
from blake3 import blake3
from cache.blocks.cache import TRANSACTION_BYTES, Block, BlockCache

async def main():
    cache = BlockCache.open(Path(sys.argv[1]), 16 << 20, boot_id=sys.argv[2])
    print("open", flush=True)
    number = 0
    while True:
        items = []
        for _ in range(5):
            plain = blake3(number.to_bytes(8, "big")).digest(50_000 + number % 3 * 100_000)
            items.append((blake3(plain).digest(), 0, plain))
            number += 1
        await cache.put_many(items)
        print(number, flush=True)

trio.run(main)
"""


def kill_a_writer(path: Path, boot_id: str, batches: int) -> None:
    """Have another process put blocks, and kill it while it does."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), boot_id], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    for _ in range(batches + 1):
        assert writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("batches", [3, 60])
def test_a_killed_process_leaves_a_cache_that_is_right(tmp_path: Path, batches: int) -> None:
    kill_a_writer(tmp_path, "boot", batches)
    cache = BlockCache.open(tmp_path, 16 << 20, boot_id="boot")
    residents = list(cache._map._residents())
    assert len(residents) == cache.stats().blocks
    assert sum(r.charge for r in residents) == cache.stats().bytes
    assert cache.stats().blocks >= 5 * min(batches, 10)
    for resident in residents:
        view = cache.get(resident.key[:32], 0)
        assert view is not None
        assert blake3(view).digest() == resident.key[:32]
    trio.run(cache.put_many, [(chunk(1), 0, b"goes on")])
    assert cache.contains(chunk(1), 0)
    cache.close()


@pytest.mark.slow
def test_after_a_reboot_that_came_without_closing_nothing_is_trusted(tmp_path: Path) -> None:
    kill_a_writer(tmp_path, "one", 3)
    cache = BlockCache.open(tmp_path, LIMIT, boot_id="two")
    assert cache.stats().blocks == 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("discarded")] == []
    cache.close()


def damage_data(path: Path) -> None:
    (path / "map" / "data.mdb").write_bytes(b"not a database" * 1000)


def cut_data(path: Path) -> None:
    os.truncate(path / "map" / "data.mdb", 8192)


def damage_state(path: Path) -> None:
    (path / "state.json").write_bytes(b"{")


def lose_state(path: Path) -> None:
    (path / "state.json").unlink()


def other_format(path: Path) -> None:
    state = json.loads((path / "state.json").read_bytes())
    (path / "state.json").write_text(json.dumps(state | {"format": "nearline blocks v0"}))


@pytest.mark.parametrize("damage", [damage_data, cut_data, damage_state, lose_state, other_format])
async def test_a_damaged_cache_is_begun_anew(tmp_path: Path, damage: object) -> None:
    cache = BlockCache.open(tmp_path, LIMIT, boot_id="one")
    await fill(cache, range(5))
    cache.close()
    assert callable(damage)
    damage(tmp_path)
    again = BlockCache.open(tmp_path, LIMIT, boot_id="one")
    assert again.stats().blocks == 0
    await fill(again, range(5))
    assert present(again, range(5)) == [0, 1, 2, 3, 4]
    again.close()


async def test_two_processes_cannot_share_a_cache(tmp_path: Path) -> None:
    cache = BlockCache.open(tmp_path, LIMIT, boot_id="one")
    with pytest.raises(OSError, match="another mount") as caught:
        BlockCache.open(tmp_path, LIMIT, boot_id="one")
    assert caught.value.errno == errno.EBUSY
    cache.close()
    BlockCache.open(tmp_path, LIMIT, boot_id="one").close()


async def test_clearing_gives_the_disk_back_and_keeps_what_is_pinned(cache: BlockCache) -> None:
    await fill(cache, range(50))
    await cache.pin("file", [chunk(1)])
    data = cache._path / "map" / "data.mdb"
    before = data.stat().st_size
    await cache.clear()
    stats = cache.stats()
    assert (stats.blocks, stats.pinned_chunks) == (1, 1)
    assert present(cache, range(5)) == [1]
    assert data.stat().st_size < before // 4
    await fill(cache, range(2))
    assert present(cache, range(5)) == [0, 1]


def test_pins_of_one_owner_are_not_those_of_another_with_a_longer_name(tmp_path: Path) -> None:
    blockmap = BlockMap(tmp_path, 1 << 26)
    blockmap.set_pins("ab", [chunk(1)])
    blockmap.set_pins("abc", [chunk(2), chunk(3)])
    blockmap.set_pins("ab", [])
    assert set(blockmap.pins()) == {("abc", chunk(2)), ("abc", chunk(3))}
    blockmap.set_pins("abc", [])
    assert blockmap.pinned == frozenset()
    blockmap.close(sync=False)


async def test_everything_in_a_cache_is_its_owners_alone(tmp_path: Path, no_umask: None) -> None:
    path = tmp_path / "made" / "blocks"
    cache = BlockCache.open(path, LIMIT, boot_id="one")
    await fill(cache, range(3))
    cache.close()
    made = [path.parent, path, *path.rglob("*")]
    assert len(made) > 5
    assert [item for item in made if item.stat().st_mode & 0o077] == []


def test_a_map_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "map").mkdir()
    (tmp_path / "map").chmod(0o777)
    BlockCache.open(tmp_path, LIMIT, boot_id="one").close()
    assert (tmp_path / "map").stat().st_mode & 0o777 == 0o700
