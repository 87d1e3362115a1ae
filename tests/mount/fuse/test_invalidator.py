"""Lookup counts, and making the kernel forget without waiting for it."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace

import pyfuse3
import pytest
import trio
import trio.testing

from mount.fuse.attributes import Ownership
from mount.fuse.invalidator import KernelInvalidator, LookupCounts
from mount.fuse.operations import FileSystem


def test_an_inode_is_in_use_until_the_last_reference_is_gone() -> None:
    lookups = LookupCounts()
    lookups.looked_up(7)
    lookups.looked_up(7)
    lookups.opened(7)
    assert not lookups.forgotten(7, 1)
    assert lookups.looks_up(7)
    assert not lookups.forgotten(7, 1)
    assert not lookups.looks_up(7)
    assert lookups.in_use(7)
    assert lookups.closed(7)
    assert not lookups.in_use(7)
    lookups.looked_up(7)
    assert lookups.forgotten(7, 5)  # a kernel that forgets more than it had leaves no debt
    lookups.looked_up(7)
    assert lookups.in_use(7)


class Kernel:
    """Stands for pyfuse3's calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[object, ...]] = []
        self.fail: list[OSError] = []
        self.go = threading.Event()
        self.go.set()
        monkeypatch.setattr(pyfuse3, "invalidate_entry", self._call)
        monkeypatch.setattr(pyfuse3, "invalidate_inode", self._call)

        self.token = trio.lowlevel.current_trio_token()
        self.changed = trio.Event()

    def _call(self, *args: object, **more: object) -> None:
        self.go.wait(60)
        self.told.append((*args, *more))
        trio.from_thread.run_sync(self._note, trio_token=self.token)
        if self.fail:
            raise self.fail.pop()

    def _note(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def was_told(self, times: int) -> None:
        with trio.fail_after(60):
            while len(self.told) < times:
                await self.changed.wait()


async def test_forgetting_is_queued_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, lookups = Kernel(monkeypatch), LookupCounts()
    invalidator = KernelInvalidator(lookups)
    lookups.looked_up(2)
    kernel.go.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidator.run)
        invalidator.forget_entry(1, "ä")
        await trio.testing.wait_all_tasks_blocked()
        invalidator.forget_attributes(5)  # returns at once, though the kernel blocks the first
        invalidator.forget_entry(2, "b")
        assert kernel.told == []
        kernel.go.set()
        await kernel.was_told(3)
        nursery.cancel_scope.cancel()
    assert kernel.told == [(1, "ä".encode(), 0), (5, "attr_only"), (2, b"b", 0)]


async def test_of_a_directory_that_the_kernel_does_not_hold_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It knows no name in one. The top it always holds, and what is open."""
    kernel, lookups = Kernel(monkeypatch), LookupCounts()
    invalidator = KernelInvalidator(lookups)
    lookups.opened(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidator.run)
        for parent in (2, 1, 3):
            invalidator.forget_entry(parent, "a")
        await kernel.was_told(2)
        nursery.cancel_scope.cancel()
    assert kernel.told == [(1, b"a", 0), (3, b"a", 0)]


async def test_who_watches_is_told_of_what_is_gone_unless_somebody_writes_into_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel, lookups = Kernel(monkeypatch), LookupCounts()
    invalidator = KernelInvalidator(lookups)
    for ino, writable in ((7, False), (8, True)):
        lookups.opened(ino, writable=False)
        lookups.opened(ino, writable=writable)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidator.run)
        for ino in (6, 7, 8):
            invalidator.forget_entry(1, "a", ino)
        lookups.closed(8, writable=True)
        invalidator.forget_entry(1, "a", 8)
        await kernel.was_told(4)
        nursery.cancel_scope.cancel()
    assert kernel.told == [(1, b"a", 6), (1, b"a", 7), (1, b"a", 0), (1, b"a", 8)]


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTEMPTY, errno.EIO])
async def test_a_kernel_that_will_not_is_no_reason_to_end(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    kernel, invalidator = Kernel(monkeypatch), KernelInvalidator(LookupCounts())
    kernel.fail = [OSError(code, "no")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invalidator.run)
        invalidator.forget_entry(1, "a")
        invalidator.forget_entry(1, "b")
        await kernel.was_told(2)
        nursery.cancel_scope.cancel()


async def test_a_file_that_the_kernel_makes_anew_from_an_old_answer_is_looked_up_again() -> None:
    released: list[int] = []
    again: list[int] = []
    session = SimpleNamespace(
        tree=None,
        edits=None,
        replayer=SimpleNamespace(asked=lambda: None),
        contents=SimpleNamespace(release=released.append),
        collector=SimpleNamespace(unused=released.append),
        look_up_again=again.append,
    )
    lookups = LookupCounts()
    system = FileSystem(session, lookups, Ownership(None, None, 0))  # type: ignore[arg-type]  # the part of it that is used
    for ino in (7, 7, 8):
        lookups.looked_up(ino)
    await system.forget([(7, 1), (8, 1)])
    assert (again, released) == ([7], [8, 8])
    await system.forget([(7, 1)])
    assert (again, released) == ([7], [8, 8, 7, 7])
