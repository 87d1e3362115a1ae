"""Spool files: bounded descriptors, leases, and which writes a sync covers."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from cache.files import spool as spool_module
from cache.files.spool import THREADED_WRITE, DamagedSpool, Spool


async def read(spool: Spool, layer: int, length: int) -> bytes:
    into = bytearray(length)
    spool.read_into(layer, 0, memoryview(into))
    return bytes(into)


async def test_bytes_come_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    large = os.urandom(THREADED_WRITE + 5)
    await spool.write(1, 2, b"abc")
    await spool.write(2, 0, large)
    assert await read(spool, 1, 5) == b"\0\0abc"
    assert await read(spool, 2, len(large)) == large
    spool.close()


async def test_bytes_that_are_gone_are_damage_and_not_zeros(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    await spool.write(1, 0, b"abc")
    with pytest.raises(DamagedSpool, match="ends at 3"):
        await read(spool, 1, 4)
    with pytest.raises(DamagedSpool, match=r"2\.layer is gone"):
        await read(spool, 2, 1)
    assert os.listdir(tmp_path / "spool") == ["1.layer"]
    spool.close()


async def test_descriptors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "OPEN_FILES", 4)
    spool = Spool(tmp_path / "spool")
    await spool.write(1, 0, b"1")
    with spool.lease(1) as leased:
        for layer in range(2, 20):
            await spool.write(layer, 0, b"%d" % layer)
        os.fstat(leased)  # in use: not closed however many came after
        open_here = len(list(Path("/proc/self/fd").iterdir()))
    for layer in range(20, 40):
        await spool.write(layer, 0, b"%d" % layer)
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_here
    assert await read(spool, 7, 1) == b"7"
    spool.close()


async def test_a_descriptor_just_opened_stays_while_all_others_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its number would soon be another file's, whose bytes were then uploaded instead."""
    monkeypatch.setattr(spool_module, "OPEN_FILES", 4)
    spool = Spool(tmp_path / "spool")
    for layer in range(1, 20):
        await spool.write(layer, 0, b"%02d" % layer)
    with contextlib.ExitStack() as leases:
        for layer in range(1, 20):
            descriptor = leases.enter_context(spool.lease(layer))
            assert os.pread(descriptor, 2, 0) == b"%02d" % layer
    spool.close()


async def test_a_removed_layer_in_use_is_closed_with_its_last_lease(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    await spool.write(1, 0, b"abc")
    with spool.lease(1) as fd:
        await spool.remove_all([1])
        assert os.pread(fd, 3, 0) == b"abc"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    await spool.remove_all([1])  # twice is once
    assert list((tmp_path / "spool").iterdir()) == []


class Disk:
    """`fdatasync` that can be held up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.started, self.go = 0, trio.Event(), threading.Event()
        self.go.set()
        self._token = trio.lowlevel.current_trio_token()
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, fd: int) -> None:
        self.calls += 1
        trio.from_thread.run_sync(self.started.set, trio_token=self._token)
        self.go.wait()


async def test_a_sync_covers_what_was_written_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, spool = Disk(monkeypatch), Spool(tmp_path / "spool")
    await spool.write(1, 0, b"a")
    await spool.sync(1)
    await spool.sync(1)
    assert disk.calls == 1
    disk.started = trio.Event()
    await spool.write(1, 1, b"b")
    disk.go.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spool.sync, 1)
        await disk.started.wait()
        await spool.write(1, 2, b"c")  # the sync under way may not see it
        disk.go.set()
    await spool.sync(1)
    assert disk.calls == 3
    spool.close()


async def test_two_who_sync_at_once_both_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, spool = Disk(monkeypatch), Spool(tmp_path / "spool")
    await spool.write(1, 0, b"a")
    disk.go.clear()
    done: list[int] = []

    async def sync(number: int) -> None:
        await spool.sync(1)
        done.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync, 1)
        await disk.started.wait()
        nursery.start_soon(sync, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert not done
        disk.go.set()
    assert sorted(done) == [1, 2]
    spool.close()


async def test_what_an_earlier_process_wrote_is_not_taken_for_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Spool(tmp_path / "spool")
    await first.write(1, 0, b"a")
    first.close()
    disk, second = Disk(monkeypatch), Spool(tmp_path / "spool")
    await second.sync(1)
    assert disk.calls == 1
    second.close()
