"""A file's bytes through writes, truncations, snapshots, commits and the death of the process,
against a bytearray."""

from __future__ import annotations

import errno
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.files import spool
from cache.files.contents import Contents
from cache.files.layers import changed_ranges
from cache.files.spool import THREADED_WRITE
from cache.metadata.tree import ROOT
from remote.protocol.content import MAX_FILE_SIZE
from tests.amounts import amount
from tests.cache.state import State

SIZE = 60
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE), st.integers(1, 20)),
        st.tuples(st.just("truncate"), st.integers(0, SIZE), st.just(0)),
        st.tuples(st.sampled_from(("freeze", "commit", "reopen", "sync")), st.just(0), st.just(0)),
    ),
    max_size=16,
)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


class File:
    """One file of a `State`, and what it must hold."""

    def __init__(self, state: State) -> None:
        self.state = state
        record = state.born("a", 1, size=30)
        assert record.version is not None
        state.versions.bytes[record.version] = b"\xff" * 30
        self.ino, self.file = state.listing()["a"], record.id
        self.now, self.snapshot = bytearray(b"\xff" * 30), b""
        self.marks = itertools.count(1)

    async def write(self, at: int, length: int) -> None:
        data = bytes([next(self.marks)]) * length
        assert await self.state.contents.write(self.ino, at, data) == length
        self.now.extend(bytes(max(0, at + length - len(self.now))))
        self.now[at : at + length] = data

    async def truncate(self, size: int, _: int) -> None:
        self.state.contents.truncate(self.ino, size)
        self.now = self.now[:size].ljust(size, b"\0")

    async def freeze(self, *_: int) -> None:
        contents = self.state.contents
        if contents.frozen(self.ino) is None and contents.stack(self.ino):
            assert contents.freeze(self.ino, f"{next(self.marks):032x}") is not None
            self.snapshot = bytes(self.now)

    async def commit(self, *_: int) -> None:
        layer = self.state.contents.frozen(self.ino)
        if layer is None:
            return
        assert layer.version is not None
        self.state.versions.bytes[layer.version] = self.snapshot
        with self.state.db.transaction():
            size = len(self.snapshot)
            self.state.contents.commit(self.ino, self.file, layer.version, size)
        self.state.contents.sweep()

    async def reopen(self, *_: int) -> None:
        self.state.reopen()
        await self.state.contents.tidy()  # as at every start

    async def sync(self, *_: int) -> None:
        await self.state.contents.sync_all()
        ids = {f"{layer.id}.layer" for layer in self.state.contents.stack(self.ino)}
        assert set(self.state.spool_files()) <= ids
        assert self.state.db.all("SELECT * FROM unsettled") == []

    async def check(self, offset: int, length: int) -> None:
        contents = self.state.contents
        read = await contents.read(self.ino, offset, length, None)
        assert bytes(read) == self.now[offset : offset + length]
        layer = contents.frozen(self.ino)
        if layer is not None:
            into = bytearray(len(self.snapshot))
            await contents.read_snapshot(self.ino, layer, 0, memoryview(into))
            assert into == self.snapshot
        self.check_counts(contents)

    def check_counts(self, contents: Contents) -> None:
        layers = contents.stack(self.ino)
        row = self.state.db.one("SELECT COALESCE(SUM(stop - start), 0) FROM extent")
        assert row is not None
        assert contents.dirty_bytes == row[0]
        assert self.state.tree.node(self.ino).size == len(self.now)
        assert all(start < layer.size for layer in layers for start, _ in layer.extents)
        for layer in layers:
            parts = sorted(part[:3] for part in layer.unsynced)
            rows = self.state.db.all("SELECT * FROM unsettled WHERE layer = ?", layer.id)
            assert [tuple(item)[1:] for item in rows] == parts
            assert all(layer.extents.covers(start, stop) for start, stop, _ in parts)


@settings(max_examples=amount(60, 12), deadline=None)
@given(steps, st.integers(0, SIZE), st.integers(0, SIZE))
def test_reads_see_exactly_what_was_written(
    steps: list[tuple[str, int, int]], offset: int, length: int
) -> None:
    async def run(state: State) -> None:
        file = File(state)
        for name, at, size in steps:
            await getattr(file, name)(at, size)
            await file.check(offset, length)
        await file.check(0, 3 * SIZE)

    with tempfile.TemporaryDirectory() as directory:
        state = State(Path(directory))
        trio.run(run, state)
        state.close()


async def test_a_write_under_way_puts_the_snapshot_off(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = state.make("a")
    started, go = trio.Event(), trio.Event()
    plain = state.spool.write

    async def slow(layer: int, offset: int, data: bytes | memoryview) -> bytes:
        started.set()
        await go.wait()
        return await plain(layer, offset, data)

    monkeypatch.setattr(state.spool, "write", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.contents.write, node.ino, 0, bytes(THREADED_WRITE))
        await started.wait()
        assert state.contents.freeze(node.ino, "9" * 32) is None
        nursery.start_soon(state.contents.wait_idle)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    layer = state.contents.freeze(node.ino, "9" * 32)
    assert layer is not None
    assert list(layer.extents) == [(0, THREADED_WRITE)]


async def test_a_write_under_way_outlives_what_somebody_else_takes_back(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that fails meanwhile (a full disk) makes that the layers are read anew."""
    node = await state.save("a", b"short")
    started, go = trio.Event(), trio.Event()
    plain = state.spool.write

    async def slow(layer: int, offset: int, data: bytes | memoryview) -> bytes:
        started.set()
        await go.wait()
        return await plain(layer, offset, data)

    def fail() -> None:
        with state.db.transaction():
            state.tree.update(node.ino, mode=0o600)
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(state.spool, "write", slow)
    data = b"x" * THREADED_WRITE
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.contents.write, node.ino, 0, data)
        await started.wait()
        with pytest.raises(OSError, match="full"):
            fail()
        assert bytes(await state.contents.read(node.ino, 0, 9, None)) == b"short"
        go.set()
    assert bytes(await state.contents.read(node.ino, 0, len(data), None)) == data
    layer = state.contents.freeze(node.ino, "9" * 32)
    assert layer is not None
    assert list(layer.extents) == [(0, len(data))]


def fill(state: State, monkeypatch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    """Have the disk refuse bytes, whether they are written by this thread or another one."""
    later, now = state.spool.write, state.spool.write_now

    async def write(layer: int, offset: int, data: bytes | memoryview) -> bytes:
        if is_full():
            raise OSError(errno.ENOSPC, "full")
        return await later(layer, offset, data)

    def write_now(layer: int, offset: int, data: bytes | memoryview) -> bytes:
        if is_full():
            raise OSError(errno.ENOSPC, "full")
        return now(layer, offset, data)

    monkeypatch.setattr(state.spool, "write", write)
    monkeypatch.setattr(state.spool, "write_now", write_now)


@pytest.mark.parametrize("data", [b"small", bytes(THREADED_WRITE)], ids=["little", "much"])
async def test_a_full_disk_gets_back_what_only_waits_to_be_deleted(
    state: State, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """Bytes that are dropped stay on the disk for some seconds, in case of a power loss."""
    await state.save("large", b"large")
    state.unlink("large")
    state.collector.collect()
    [large] = state.spool_files()
    fill(state, monkeypatch, lambda: large in state.spool_files())
    node = await state.save("fresh", data)
    assert bytes(await state.contents.read(node.ino, 0, len(data), None)) == data


@pytest.mark.parametrize("data", [b"bytes", bytes(THREADED_WRITE)], ids=["little", "much"])
async def test_a_failed_write_is_not_believed(
    state: State, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    node = state.make("a")
    other = await state.save("other", b"12345")
    kept = state.contents.stack(other.ino)[0]
    fill(state, monkeypatch, lambda: True)
    with pytest.raises(OSError, match="full"):
        await state.contents.write(node.ino, 0, data)
    assert (state.tree.node(node.ino).size, state.contents.dirty_bytes) == (0, 5)
    assert state.contents.freeze(node.ino, "9" * 32) is not None
    assert state.contents.stack(other.ino)[0] is kept  # an upload of it may have it in hand


async def test_a_small_write_is_one_transaction(state: State) -> None:
    node = state.make("a")
    state.contents.made(node.ino)
    before = state.db.commits
    await state.contents.write(node.ino, 0, b"bytes")
    assert state.db.commits == before + 1
    await state.contents.write(node.ino, 5, b"more")
    assert state.db.commits == before + 2


async def test_many_are_made_safe_with_one_note_and_one_sync_of_their_names(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [await state.save(f"f{number}", b"bytes") for number in range(9)]
    names = list[Path]()
    monkeypatch.setattr(spool, "sync_directory", names.append)
    before = state.db.commits
    await state.contents.sync_all()
    assert len(names) == 1
    assert state.db.commits == before + 1
    assert not any(layer.unsynced for node in nodes for layer in state.contents.stack(node.ino))


async def test_one_that_cannot_be_made_safe_keeps_no_other_from_it(state: State) -> None:
    lost, kept = await state.save("lost", b"bytes"), await state.save("kept", b"bytes")
    state.spool.close()  # it opens again what it needs
    [layer] = state.contents.stack(lost.ino)
    (state.directory / "spool" / f"{layer.id}.layer").unlink()
    await state.contents.sync_all()
    assert state.contents.stack(lost.ino)[0].unsynced
    assert not state.contents.stack(kept.ino)[0].unsynced


async def test_limits(state: State) -> None:
    node = state.make("a")
    with pytest.raises(OSError, match="large") as refused:
        await state.contents.write(node.ino, MAX_FILE_SIZE, b"x")
    assert refused.value.errno == errno.EFBIG
    with pytest.raises(OSError, match="large"):
        state.contents.truncate(node.ino, MAX_FILE_SIZE + 1)


async def test_a_huge_truncation_costs_nothing(state: State) -> None:
    node = await state.save("a", b"12345")
    state.contents.truncate(node.ino, 10**15)
    (layer,) = state.contents.stack(node.ino)
    assert changed_ranges(layer) == [(0, 10**15)]
    assert state.contents.dirty_bytes == 5
    assert bytes(await state.contents.read(node.ino, 10**15 - 3, 9, None)) == b"\0\0\0"
    assert bytes(await state.contents.read(node.ino, 3, 4, None)) == b"45\0\0"


async def test_what_was_cut_off_never_comes_back(state: State) -> None:
    node = await state.save("a", b"secret")
    state.contents.truncate(node.ino, 2)
    state.contents.truncate(node.ino, 6)
    assert bytes(await state.contents.read(node.ino, 0, 9, None)) == b"se\0\0\0\0"


async def test_a_truncation_that_power_loss_undoes_finds_its_bytes(state: State) -> None:
    """Bytes and journal were synced; the truncation was not, so the database may come back without
    it: the spool must not be ahead."""
    node = await state.save("a", b"precious")
    await state.contents.sync(node.ino)
    saved = {p: p.read_bytes() for p in state.directory.glob("tree.sqlite*")}
    state.contents.truncate(node.ino, 0)
    state.close()
    for path, data in saved.items():
        path.write_bytes(data)
    state.open()
    assert bytes(await state.contents.read(node.ino, 0, 99, None)) == b"precious"


async def test_spool_files_that_no_layer_names_go_at_the_next_start(state: State) -> None:
    await state.save("a", b"kept")
    (state.directory / "spool" / "999.layer").write_bytes(b"left by a crash")
    (state.directory / "spool" / "notes.txt").write_bytes(b"not ours")
    state.reopen()
    await state.contents.tidy()
    names = {path.name for path in (state.directory / "spool").iterdir()}
    assert names == {"1.layer", "notes.txt"}
    await state.save("b", b"new")  # its file is none that was to be deleted
    assert (state.directory / "spool" / "1000.layer").exists()


async def test_content_that_changes_hands_keeps_its_snapshot(state: State) -> None:
    node = await state.save("a", b"bytes")
    state.contents.freeze(node.ino, "8" * 32)
    with state.db.transaction():
        state.contents.renew(node.ino, "7" * 32, "6" * 32)  # not the one that is frozen
        state.contents.renew(node.ino, "8" * 32, "9" * 32)
    layer = state.contents.frozen(node.ino)
    assert layer is not None
    assert layer.version == "9" * 32
    state.reopen()
    layer = state.contents.frozen(node.ino)
    assert layer is not None
    assert layer.version == "9" * 32


async def test_the_chosen_chunk_size_is_kept(state: State) -> None:
    node = await state.save("a", b"bytes")
    layer = state.contents.freeze(node.ino, "9" * 32)
    assert layer is not None
    assert state.contents.average(layer, 1 << 20) == 1 << 20
    state.reopen()
    layer = state.contents.frozen(node.ino)
    assert layer is not None
    assert state.contents.average(layer, 1 << 18) == 1 << 20


async def test_a_rollback_forgets_what_memory_had_ahead(state: State) -> None:
    node = await state.save("a", b"bytes")

    def work() -> None:
        with state.db.transaction():
            state.contents.discard(node.ino)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    state.contents.sweep()
    assert state.contents.dirty_bytes == 5
    assert bytes(await state.contents.read(node.ino, 0, 9, None)) == b"bytes"
    assert state.listing(ROOT) == {"a": node.ino}


async def test_files_that_a_crash_left_are_deleted_and_no_others(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.files.contents.TIDY_AT_ONCE", 2)
    kept = [await state.save(f"kept{number}", b"bytes") for number in range(3)]
    crashed = await state.save("crashed", b"bytes")
    with state.db.transaction():
        state.contents.discard(crashed.ino)  # and the process died before the file was deleted
    dropped = await state.save("dropped", b"bytes")
    state.reopen()
    spool = state.directory / "spool"
    (spool / "notes.txt").write_text("not ours")
    with state.db.transaction():
        state.contents.discard(dropped.ino)  # power loss may take this back
    fresh = await state.save("fresh", b"bytes")
    with state.db.transaction():
        state.contents.discard(fresh.ino)
    before = {path.name for path in spool.iterdir()}
    await state.contents.tidy()
    assert {path.name for path in spool.iterdir()} == before - {"4.layer"}
    for node in kept:
        assert bytes(await state.contents.read(node.ino, 0, 9, None)) == b"bytes"


async def test_nothing_is_remembered_of_files_that_are_gone(state: State) -> None:
    """A program's temporary files: made, written and deleted before they were sent."""
    for number in range(20):
        await state.save(f"t{number}", b"bytes")
        state.unlink(f"t{number}")
        state.collector.collect()
        if number % 2:
            await state.contents.sync_all()
    await state.contents.sync_all()
    assert len(state.journal) == 0
    assert state.contents.remembered == 0


async def test_of_what_has_no_layer_so_much_is_remembered(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.files.contents.MAX_BARE", 3)
    contents, inodes = state.contents, [state.make(f"f{number}").ino for number in range(5)]
    for ino in inodes:
        assert contents.stack(ino) == []
    assert contents.remembered == 3
    await contents.write(inodes[-1], 0, b"bytes")

    def cut_in_vain() -> None:
        with state.db.transaction():
            contents.truncate(inodes[-2], 5)
            raise KeyError

    with pytest.raises(KeyError):
        cut_in_vain()
    assert contents.stack(inodes[-2]) == []
    assert bytes(await contents.read(inodes[-1], 0, 9, None)) == b"bytes"
    layer = contents.freeze(inodes[-1], "7" * 32)
    assert layer is not None
    with state.db.transaction():
        contents.commit(inodes[-1], "8" * 32, "7" * 32, 5)
    assert contents.stack(inodes[-1]) == []
    assert contents.remembered == 2
