"""Waiting for room for dirty bytes, and for the server: who waits learns of whatever ends it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from cache.metadata.operations import Body, Op
from cache.sync.full_drives import FullDrives
from mount.session.backpressure import Backpressure
from remote.protocol.errors import Unreachable

MINE, THEIRS = 1, 2  # inodes, each in a drive of its own
LIMIT = 10


class Journal(list[Op]):
    changed = trio.Event()

    @property
    def has_refused(self) -> bool:
        return any(op.refused for op in self)

    async def wait_for_all(self) -> None: ...

    def open_content(self, file: str, ino: int) -> Op | None:
        return next((op for op in self if op.ino == ino), None)


class Replayer:
    """Remembers who is expedited; `flush` returns what `answer` says, when it is set."""

    def __init__(self) -> None:
        self.full_drives, self.snapshots = FullDrives(), self
        self.hurries: list[set[str]] = []
        self.answered = trio.Event()
        self.left: list[Op] = []

    @contextlib.contextmanager
    def expedited(self, origins: set[str]) -> Iterator[None]:
        self.hurries.append(origins)
        yield

    def open_inodes(self) -> list[int]:
        return [MINE]

    async def flush(self, which: Callable[[Op], bool]) -> list[Op]:
        await self.answered.wait()
        return self.left


class World:
    """As much of a mount as `Backpressure` looks at, with as many dirty bytes as may be."""

    def __init__(self, ino: int = MINE) -> None:
        self.offline = False
        self.contents = SimpleNamespace(dirty_bytes=LIMIT, stack=lambda ino: ["a layer"])
        self.journal, self.replayer = Journal([content(ino)]), Replayer()
        self.journal.changed = trio.Event()
        self.waiting = Backpressure(
            LIMIT,
            SimpleNamespace(node=node, find=node),  # type: ignore[arg-type]  # as much as it needs
            self.journal,  # type: ignore[arg-type]
            self.contents,  # type: ignore[arg-type]
            self.replayer,  # type: ignore[arg-type]
            self.require_online,
            lambda: self.offline,
        )

    def require_online(self) -> None:
        if self.offline:
            raise Unreachable("offline")

    def go_offline(self) -> None:
        self.offline = True
        self.waiting.reachability_changed()


def node(ino: int) -> Any:
    return SimpleNamespace(ino=ino, file=f"f{ino}", drive=f"drive {ino}", is_directory=False)


def content(ino: int, refused: str | None = None) -> Op:
    key = f"k{ino}"
    op = Op(seq=ino, key=key, kind="write", ino=ino, file=f"f{ino}", body=Body(), refused=refused)
    op.origin = key
    return op


async def waited(work: Callable[[], Any], change: Callable[[], None]) -> int | None:
    """The errno that who waits gets once `change` has been made."""
    found: list[int | None] = []

    async def wait() -> None:
        try:
            await work()
        except (OSError, Unreachable) as error:
            found.append(error.errno)
        else:
            found.append(None)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not found
            change()
    return found[0]


async def writes(world: World, change: Callable[[], None], size: int = 1) -> int | None:
    return await waited(lambda: world.waiting.wait_for_space(MINE, size), change)


# --- room -----------------------------------------------------------------------------------------


async def test_a_writer_who_waits_learns_that_a_drive_is_full() -> None:
    world = World()
    full = world.replayer.full_drives.refused
    assert await writes(world, lambda: full("drive 1", 0, 0.5)) == errno.EDQUOT


async def test_the_full_drive_of_another_is_no_reason_while_something_leaves() -> None:
    world = World()

    def sent() -> None:
        world.contents.dirty_bytes = 0
        world.journal.changed.set()

    world.replayer.full_drives.refused("drive 2", 0, 0.5)
    assert await writes(world, sent) is None


async def test_when_all_that_waits_is_for_a_full_drive_there_is_no_space_for_another() -> None:
    world = World(THEIRS)
    full = world.replayer.full_drives.refused
    assert await writes(world, lambda: full("drive 2", 0, 0.5)) == errno.ENOSPC


async def test_a_writer_who_waits_learns_that_the_server_is_not_to_be_had() -> None:
    world = World()
    assert await writes(world, world.go_offline) == errno.ENOSPC


async def test_a_writer_who_waits_goes_on_when_bytes_were_sent_and_has_them_hurried() -> None:
    world = World()

    def sent() -> None:
        world.contents.dirty_bytes = 4
        world.journal.changed.set()

    assert await writes(world, sent, size=6) is None
    assert world.replayer.hurries == [{"k1"}]


@pytest.mark.parametrize("why", ["offline", "refused", "nothing to send"])
async def test_what_cannot_end_is_not_waited_for(why: str) -> None:
    world = World()
    world.offline = why == "offline"
    if why == "refused":
        world.journal[:] = [content(MINE, refused="forbidden: no")]
    if why == "nothing to send":
        world.journal.clear()
    with pytest.raises(OSError, match="wait for the server") as refused:
        await world.waiting.wait_for_space(MINE, 1)
    assert refused.value.errno == errno.ENOSPC


async def test_writes_that_are_under_way_together_do_not_pass_the_limit_together() -> None:
    world = World()
    world.contents.dirty_bytes = 4
    assert world.waiting.fits(6)
    with world.waiting.incoming(3):
        assert not world.waiting.fits(6)
        assert world.waiting.fits(3)
    assert world.waiting.fits(6)


async def test_who_waits_goes_on_when_another_write_failed() -> None:
    world = World()
    world.contents.dirty_bytes = 0
    with contextlib.ExitStack() as another:
        another.enter_context(world.waiting.incoming(LIMIT))
        assert await writes(world, another.close) is None


async def test_one_write_larger_than_the_limit_goes_alone() -> None:
    world = World()
    assert not world.waiting.fits(2 * LIMIT)
    world.contents.dirty_bytes = 0
    assert world.waiting.fits(2 * LIMIT)


# --- the server -----------------------------------------------------------------------------------


async def sends(world: World, change: Callable[[], None]) -> int | None:
    return await waited(lambda: world.waiting.until_sent(node(MINE)), change)


async def test_it_has_been_sent() -> None:
    world = World()

    def sent() -> None:
        world.journal.clear()
        world.replayer.answered.set()

    assert await sends(world, sent) is None
    await world.waiting.until_sent(node(MINE))  # there is nothing to wait for


async def test_it_was_refused_or_stands_behind_what_was() -> None:
    world = World()
    world.replayer.left = list(world.journal)
    assert await sends(world, world.replayer.answered.set) == errno.EIO


async def test_there_is_no_room_for_it() -> None:
    world = World()
    full = world.replayer.full_drives.refused
    assert await sends(world, lambda: full("drive 1", 0, 0.5)) == errno.EDQUOT


async def test_the_server_went_away() -> None:
    world = World()
    assert await sends(world, world.go_offline) == errno.ENETUNREACH


async def test_offline_it_is_said_at_once() -> None:
    world = World()
    world.offline = True
    with pytest.raises(Unreachable):
        await world.waiting.until_sent(node(MINE))


async def test_who_gives_up_offline_waits_for_one_try(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world, given_up = World(), trio.Event()

    async def wait() -> None:
        await world.waiting.until_given_up()
        given_up.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1000)
        world.go_offline()
        await trio.sleep(1)
        world.offline = False
        world.waiting.reachability_changed()
        await trio.sleep(1000)
        assert not given_up.is_set()
        world.go_offline()
        await trio.sleep(10)
        assert given_up.is_set()
