"""Whoever asks for little has a turn while the kernel asks for much."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from cache.metadata.tree import ROOT
from mount.fuse import directory_requests, name_requests
from mount.fuse.attributes import Ownership
from mount.fuse.invalidator import LookupCounts
from mount.fuse.operations import FileSystem
from mount.fuse.turns import MOST, Turns, readable
from tests.cache.state import State

MANY = 25


class Mounted:
    """The kernel's requests over a `State`."""

    def __init__(self, directory: Path) -> None:
        self.state = State(directory)
        self.lookups = LookupCounts()
        session: Any = SimpleNamespace(
            tree=self.state.tree,
            shares=self.state.shares,
            contents=self.state.contents,
            collector=self.state.collector,
            stored_bytes=lambda node: node.size,
            subscriber=SimpleNamespace(active=lambda: None),
            symlinks=None,
            edits=self.state.edits,
            replayer=SimpleNamespace(
                asked=lambda: None, snapshots=SimpleNamespace(is_open=lambda ino: False)
            ),
            visit_directory=self._ensure_listed,
            journal=self.state.journal,
        )
        self.system = FileSystem(session, self.lookups, Ownership(None, None, 0))

    async def _ensure_listed(self, ino: int) -> None:
        pass


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    found = Mounted(tmp_path)
    yield found
    found.state.close()


async def test_others_have_a_turn_while_thousands_are_forgotten(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_requests, "FORGOTTEN_AT_ONCE", 10)
    inodes = [mounted.state.make(f"f{number}").ino for number in range(MANY)]
    for ino in inodes:
        mounted.lookups.looked_up(ino)
    known = []

    async def somebody() -> None:
        while any(mounted.lookups.looks_up(ino) for ino in inodes):
            known.append(sum(map(mounted.lookups.looks_up, inodes)))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(somebody)
        await trio.lowlevel.checkpoint()
        await mounted.system.forget([(ino, 1) for ino in inodes])
    assert any(0 < count < MANY for count in known)  # in whatever order trio takes its tasks


async def test_a_large_directory_is_told_in_pieces_and_all_of_it(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def reply(token: Any, name: bytes, entry: Any, position: int) -> bool:
        told.append(name.decode())
        return True  # the kernel has room for more

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    monkeypatch.setattr(directory_requests, "AT_ONCE", 10)
    names = [f"f{number}" for number in range(MANY)]
    for name in names:
        mounted.state.make(name)
    context: Any = SimpleNamespace(pid=1)
    token: Any = None
    fh = await mounted.system.opendir(ROOT, context)
    lengths = [-1]
    while lengths[-1]:
        before, reached = len(told), mounted.system._handles[fh].reached
        await mounted.system.readdir(fh, reached, token)
        lengths.append(len(told) - before)
    assert told == [".", "..", *names]
    assert lengths == [-1, 12, 10, 5, 0]


async def test_times_of_what_nobody_can_see_any_more_are_not_kept(mounted: Mounted) -> None:
    """Linux hands them over for each file that is deleted."""
    state, lookups = mounted.state, mounted.lookups
    state.in_use.add(ino := state.make("a").ino)
    fields: Any = SimpleNamespace(
        update_mode=False, update_uid=False, update_gid=False, update_size=False,
        update_atime=False, update_mtime=True, update_ctime=True,
    )  # fmt: skip
    context: Any = SimpleNamespace(uid=0)

    async def touch(moment: int) -> int:
        attr = pyfuse3.EntryAttributes()
        attr.st_mtime_ns = attr.st_ctime_ns = moment
        before = state.db.commits
        await mounted.system.setattr(ino, attr, fields, None, context)
        assert state.tree.node(ino).mtime_ns == moment or state.db.commits == before
        return state.db.commits - before

    assert await touch(1_000) == 1
    lookups.opened(ino)
    state.unlink("a")
    assert await touch(2_000) == 1, "somebody has it open"
    lookups.closed(ino)
    assert await touch(3_000) == 0
    assert state.tree.node(ino).mtime_ns == 2_000


class Queue:
    """The kernel's queue of requests: large ones that wait for their turn, and small ones."""

    def __init__(self, *requests: str) -> None:
        self.waiting, self.answered = list(requests), list[str]()
        self.turns = Turns(lambda: bool(self.waiting))

    async def take_all(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, nursery)

    async def _work(self, nursery: trio.Nursery) -> None:
        """As pyfuse3 does: whoever takes a request handles it, and the next task waits for more."""
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        if self.waiting:
            request = self.waiting.pop(0)
            nursery.start_soon(self._work, nursery)
            await self._handle(request)

    async def _handle(self, request: str) -> None:
        if request.startswith("large"):
            await self.turns.come()
        self.answered.append(request)


async def test_what_is_small_is_answered_before_what_is_large() -> None:
    large = [f"large {number}" for number in range(5)]
    queue = Queue(*large, "small 1", "small 2")
    await queue.take_all()
    assert queue.answered == ["small 1", "small 2", *large]


async def test_what_is_small_and_comes_later_waits_for_one_large_answer_only() -> None:
    queue = Queue("large 0", "large 1", "large 2")
    answer = queue.answered.append

    class Answered(list[str]):
        def append(self, request: str) -> None:
            answer(request)
            if request == "large 0":  # it comes while that is copied to the kernel
                queue.waiting.append("small")

    answered, queue.answered = queue.answered, Answered()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.take_all)
        await trio.testing.wait_all_tasks_blocked()
    assert answered == ["large 0", "small", "large 1", "large 2"]


async def test_who_is_alone_does_not_wait() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()  # any checkpoint raises
        await Turns(lambda: False).come()
    assert not scope.cancelled_caught


async def test_large_answers_go_on_however_much_is_asked() -> None:
    asked = 0

    def ask() -> bool:
        nonlocal asked
        asked += 1
        return True

    await Turns(ask).come()
    assert asked == MOST + 1


async def test_whoever_is_told_to_end_while_waiting_holds_nobody_up() -> None:
    turns = Turns(lambda: True)
    with trio.CancelScope() as scope:
        scope.cancel()
        await turns.come()
    assert scope.cancelled_caught
    await turns.come()


def test_a_descriptor_is_asked() -> None:
    there, here = os.pipe()
    try:
        is_waiting = readable(there)
        assert not is_waiting()
        os.write(here, b"x")
        assert is_waiting()
    finally:
        os.close(there)
        os.close(here)


async def test_reads_and_listings_wait_for_their_turn(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Noted(Turns):
        async def come(self) -> None:
            asked.append("turn")

    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *args: False)
    mounted.system.turns = Noted()
    node = mounted.state.make("a")
    context: Any = SimpleNamespace(pid=1)
    token: Any = None
    directory = await mounted.system.opendir(ROOT, context)
    await mounted.system.readdir(directory, 0, token)
    assert asked == ["turn"]
    with pytest.raises(pyfuse3.FUSEError):  # no such handle
        await mounted.system.read(directory + 1, 0, 1)
    assert asked == ["turn", "turn"]
    await mounted.system.getattr(node.ino, context)
    assert asked == ["turn", "turn"]
