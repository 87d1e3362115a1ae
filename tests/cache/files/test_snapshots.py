"""When open files are uploaded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.files.snapshots import EVERY_NS, STEP_NS, Snapshots
from cache.metadata.operations import Op
from cache.metadata.tree import ROOT
from tests.cache.state import State


class Clock:
    def __init__(self) -> None:
        self.now = 10**18

    def time_ns(self) -> int:
        return self.now

    def pass_(self, ns: int) -> None:
        self.now += ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time_ns", clock.time_ns)
    return clock


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


class Frozen:
    """`Snapshots` of a state, and the inodes it froze."""

    def __init__(self, state: State, *, has_asker: bool = False) -> None:
        self.state, self.inodes = state, list[int]()
        self.snapshots = Snapshots(
            state.tree, state.journal, state.contents, self._freeze, has_asker=has_asker
        )

    def _freeze(self, op: Op) -> bool:
        self.inodes.append(op.ino)
        version = f"{len(self.inodes):032x}"
        with self.state.db.transaction():
            self.state.contents.freeze(op.ino, version)
            self.state.journal.rewrite(op, version=version)
        return True


async def test_a_file_is_frozen_at_rest_when_what_was_written_is_old(
    state: State, clock: Clock
) -> None:
    frozen = Frozen(state, has_asker=True)
    snapshots = frozen.snapshots
    ino = (await state.save("a")).ino
    snapshots.opened(ino)
    snapshots.at_rest(ino)  # an early fsync of its writer
    snapshots.asked([ino], clock.now)
    assert snapshots.is_moving(state.journal.of_file(state.tree.node(ino).file)[0])
    assert (snapshots.to_ask(), frozen.inodes) == ([], [])
    clock.pass_(EVERY_NS - STEP_NS)
    assert snapshots.to_ask() == [ino]
    snapshots.at_rest(ino)
    assert frozen.inodes == [ino]
    assert snapshots.to_ask() == []
    await state.contents.write(ino, 0, b"later")
    clock.pass_(EVERY_NS)
    assert snapshots.to_ask() == []  # one snapshot at a time
    snapshots.at_rest(ino)
    assert frozen.inodes == [ino]
    assert snapshots.put_off(clock.now) == [ino]
    with state.db.transaction():
        state.contents.commit(ino, state.tree.node(ino).file, f"{1:032x}", 1)
    assert snapshots.put_off(clock.now) == []
    assert snapshots.to_ask() == [ino]


async def test_the_kernel_is_asked_for_what_nobody_knows_of(state: State, clock: Clock) -> None:
    """Pages that were written stay in the kernel for half a minute."""
    snapshots = Frozen(state).snapshots
    ino = state.make("a").ino
    with state.db.transaction():
        state.journal.remove(next(iter(state.journal)))  # on the server already
    snapshots.opened(ino)
    assert snapshots.to_ask() == []
    clock.pass_(EVERY_NS - STEP_NS)
    assert snapshots.to_ask() == [ino]
    snapshots.at_rest(ino)
    assert snapshots.to_ask() == []


async def test_without_help_of_the_kernel_any_moment_will_do(state: State, clock: Clock) -> None:
    alone, snapshots = (Frozen(state, has_asker=each).snapshots for each in (False, True))
    ino = (await state.save("a")).ino
    [op] = state.journal
    alone.opened(ino)
    snapshots.opened(ino)
    clock.pass_(EVERY_NS)
    assert alone.is_due(op)
    assert not snapshots.is_due(op)
    assert snapshots.is_moving(op)
    snapshots.asked([ino], clock.now)  # in vain
    assert snapshots.is_due(op)
    assert not snapshots.is_moving(op)
    assert snapshots.closed(ino)
    assert not snapshots.is_open(ino)


async def test_in_a_hurry_every_rest_will_do(state: State) -> None:
    frozen = Frozen(state)
    ino = (await state.save("a")).ino
    frozen.snapshots.opened(ino)
    with frozen.snapshots.hurry():
        frozen.snapshots.at_rest(ino)
    assert frozen.inodes == [ino]


async def test_what_was_written_before_a_file_replaced_another_is_frozen_first(
    state: State, clock: Clock
) -> None:
    """Both operations take their bytes from one inode, where the one would wait for the other."""
    state.born("letter")
    draft = state.born("draft", 2, size=0)
    ino = state.listing()["draft"]
    await state.contents.write(ino, 0, b"1")
    state.edits.rename(ROOT, "draft", ROOT, "letter")
    await state.contents.write(ino, 0, b"2")
    frozen = Frozen(state)
    frozen.snapshots.opened(ino)
    frozen.snapshots.at_rest(ino, now=True)
    first, last = (op for op in state.journal if op.has_content)
    assert first.file == draft.id
    assert (first.version, last.version) == (f"{1:032x}", None)
