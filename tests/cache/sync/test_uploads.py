"""Which uploads run beside each other, and what does not fit."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from sqlalchemy import update

from cache.metadata.operations import Op
from cache.metadata.tree import ROOT
from cache.sync import uploader
from cache.sync.uploads import EARLY_UPLOADS
from server.metadata.schema import accounts
from tests.cache.sync.steps import files, mkdir, noise, remove, rename, save, until
from tests.model.device import Device
from tests.model.server import Server


async def test_what_does_not_fit_waits_and_holds_up_nothing_else(
    server: Server, one: Device, two: Device
) -> None:
    with server.db.write() as conn:
        conn.execute(update(accounts).values(quota_bytes=10_000))
    for number in range(3):
        await save(one, f"big {number}", noise(300_000, number))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.replayer.run)
        full = one.replayer.full_drives
        await until(lambda: full.is_short, lambda: full.changed)
        await mkdir(one, "directory")
        await save(one, "small", noise(5_000, 9))
        one.replayer.wake()
        big = {f"big {number}" for number in range(3)}
        await until(
            lambda: {op.body.name for op in one.journal} == big, lambda: one.journal.changed
        )
        assert not one.replayer.waiting_because or "10,000" in one.replayer.waiting_because
        assert (await files(two)).keys() == {"/directory", "/small"}
        assert all(op.refused is None for op in one.journal)
        with server.db.write() as conn:
            conn.execute(update(accounts).values(quota_bytes=None))
        one.replayer.retry_now()
        await until(lambda: not len(one.journal), lambda: one.journal.changed)
        assert not full.is_short
        assert one.replayer.waiting_because is None
        nursery.cancel_scope.cancel()
    assert (await files(two))["/big 1"] == noise(300_000, 1)


async def test_what_did_not_fit_and_is_deleted_leaves_no_full_drive_behind(
    server: Server, one: Device
) -> None:
    """Nor a look at the journal every millisecond, for what might fit now."""
    with server.db.write() as conn:
        conn.execute(update(accounts).values(quota_bytes=10_000))
    await save(one, "big", noise(300_000, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.replayer.run)
        full = one.replayer.full_drives
        await until(lambda: full.is_short, lambda: full.changed)
        await remove(one, "big")
        await until(lambda: not full.is_short, lambda: full.changed)
        nursery.cancel_scope.cancel()
    assert one.uploads.next_try(0) is None


async def test_two_contents_of_one_inode_are_sent_in_order(one: Device, two: Device) -> None:
    """Edited, renamed over another, edited again before any of it was sent."""
    for name in ("a", "b"):
        await save(one, name, name.encode())
    await one.flush()
    await save(one, "a", b"first")
    await rename(one, "a", "b")
    await save(one, "b", b"second")
    await one.flush()
    assert await files(one) == await files(two) == {"/b": b"second"}


async def test_a_snapshot_on_its_way_survives_a_rename_over(one: Device, two: Device) -> None:
    """Its upload was begun for a new file; now it is a version of the old one."""
    await save(one, "a", b"old")
    await one.flush()
    await save(one, "a.tmp", b"new")
    (op,) = one.journal
    await one.uploader.prepare(op)
    await rename(one, "a.tmp", "a")
    before = one.tree.node(one.tree.child(ROOT, "a").ino).file  # type: ignore[union-attr]
    await one.flush()
    assert await files(two) == {"/a": b"new"}
    assert (await two.resolve("a")).file == before


async def test_of_many_files_that_grow_few_are_sent_at_a_time(
    one: Device, two: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes memory; the others have their turn when one has caught up."""
    monkeypatch.setattr(uploader, "EARLY_STEP", 4 << 20)
    going_on, begun = trio.Event(), list[str]()
    plain = one.uploader.send_early

    async def send_early(op: Op) -> None:
        begun.append(op.key)
        await going_on.wait()
        await plain(op)

    monkeypatch.setattr(one.uploader, "send_early", send_early)
    data = {f"/{number}": noise(5 << 20, number) for number in range(EARLY_UPLOADS + 2)}
    for path, content in data.items():
        await save(one, path[1:], content)
        one.snapshots.opened(one.tree.child(ROOT, path[1:]).ino)  # type: ignore[union-attr]
    one._schedule.admit(one.journal.after)
    async with trio.open_nursery() as nursery:
        one.uploads.start(nursery)
        await trio.testing.wait_all_tasks_blocked()
        one.uploads.start(nursery)
        assert len(begun) == EARLY_UPLOADS
        going_on.set()
    async with trio.open_nursery() as nursery:
        one.uploads.start(nursery)
    assert len({*begun}) == len(data)
    await one.flush()
    assert await files(two) == data
