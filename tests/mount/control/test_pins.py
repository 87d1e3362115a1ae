"""Pinned files are fetched and kept, also those that come later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from cache.metadata.tree import ROOT
from mount.control.paths import NoSuchPath
from mount.control.pins import Pins
from remote.protocol.content import HOLE, Manifest, Piece
from remote.protocol.errors import CorruptContent, Unreachable
from tests.cache.state import State


class Session:
    """The parts of `mount.session.session.Session` that pins use."""

    def __init__(self, state: State) -> None:
        self.db, self.tree, self.merge = state.db, state.tree, state.merge
        self.here: set[str] = set()
        self.kept: dict[str, list[bytes]] = {}
        self.reader = SimpleNamespace(cached_bytes=self._cached, warm=self._warm)
        self.blocks = SimpleNamespace(pin=self._pin, unpin=self._unpin)
        self.warmed: list[str] = []
        self.back = trio.Event()
        self.listing = SimpleNamespace(manifest_of=self._manifest_of)
        self.offline = False
        self.broken: set[str] = set()

    def comes_back(self) -> None:
        self.offline = False
        self.back.set()
        self.back = trio.Event()

    async def ensure_listed(self, ino: int) -> None:
        return None

    def require_online(self) -> None:
        if self.offline:
            raise Unreachable("offline")

    def _cached(self, version: str) -> int:
        return 3 if version in self.here else 0

    async def _warm(self, file: str, version: str) -> None:
        self.warmed.append(file)
        if file in self.broken:
            raise CorruptContent("wrong")
        self.here.add(version)

    async def _manifest_of(self, file: str, version: str) -> Manifest:
        pieces = [Piece(version.encode(), 2), Piece(HOLE, 1)]
        return Manifest(size=3, average=1 << 20, pieces=pieces)

    async def _pin(self, file: str, chunks: list[bytes]) -> None:
        self.kept[file] = chunks

    async def _unpin(self, file: str) -> None:
        self.kept.pop(file, None)


async def nobody(_done: int, _total: int) -> None:
    return None


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def fill(state: State) -> dict[str, str]:
    """d/a, d/b and c, three bytes each; returns their file ids."""
    top = state.born("d", 1, kind="directory")
    state.list_directory(state.listing()["d"], [], 1)
    made = {"d": top.id}
    for seq, (name, parent) in enumerate((("a", top.id), ("b", top.id)), start=2):
        made[name] = state.born(name, seq, parent=parent, size=3).id
    made["c"] = state.born("c", 4, size=3).id
    return made


async def test_a_pinned_directory_is_all_that_is_in_it(state: State) -> None:
    ids, session = fill(state), Session(state)
    pins = Pins(session)  # type: ignore[arg-type]  # the parts of it that are used
    told: list[tuple[int, int]] = []

    async def tell(done: int, total: int) -> None:
        told.append((done, total))

    await pins.pin("d", tell)
    assert set(session.kept) == set(session.warmed) == {ids["a"], ids["b"]}
    assert all(len(chunks) == 1 for chunks in session.kept.values())  # holes are nobody's chunks
    assert told == [(0, 2), (1, 2), (2, 2)]
    await pins.pin("/d/a", nobody)
    await pins.unpin("d")
    assert set(session.kept) == {ids["a"]}  # its own pin stays
    await pins.unpin("d/a")
    assert session.kept == {}


async def test_warming_keeps_nothing_and_fetches_once(state: State) -> None:
    ids, session = fill(state), Session(state)
    pins = Pins(session)  # type: ignore[arg-type]  # the parts of it that are used
    await pins.warm("", nobody)
    await pins.warm("c", nobody)
    assert sorted(session.warmed) == sorted([ids["a"], ids["b"], ids["c"]])
    assert session.kept == {}


async def test_what_does_not_exist_cannot_be_pinned(state: State) -> None:
    pins = Pins(Session(state))  # type: ignore[arg-type]  # the parts of it that are used
    with pytest.raises(NoSuchPath):
        await pins.pin("nothing/here", nobody)
    assert state.db.all("SELECT * FROM pin") == []


async def test_new_versions_and_files_follow(
    state: State, autojump_clock: trio.testing.MockClock
) -> None:
    ids, session = fill(state), Session(state)
    pins = Pins(session)  # type: ignore[arg-type]  # the parts of it that are used
    await pins.pin("d", nobody)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pins.run)
        await trio.testing.wait_all_tasks_blocked()
        fresh = state.born("new", 9, parent=ids["d"], size=3)
        await trio.sleep(5)
        assert fresh.id in session.kept
        nursery.cancel_scope.cancel()
    assert state.tree.node(ROOT).live


async def test_what_was_pinned_offline_comes_when_the_server_is_back(
    state: State, autojump_clock: trio.testing.MockClock
) -> None:
    ids, session = fill(state), Session(state)
    pins = Pins(session)  # type: ignore[arg-type]  # the parts of it that are used
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pins.run)
        await trio.testing.wait_all_tasks_blocked()
        session.offline = True
        with pytest.raises(Unreachable):
            await pins.pin("d", nobody)
        await trio.sleep(3600)
        assert session.kept == {}
        session.comes_back()
        await trio.sleep(2)
        assert set(session.kept) == {ids["a"], ids["b"]}
        nursery.cancel_scope.cancel()


async def test_a_pinned_file_that_cannot_be_had_is_tried_again_and_keeps_no_other_away(
    state: State, autojump_clock: trio.testing.MockClock
) -> None:
    ids, session = fill(state), Session(state)
    pins = Pins(session)  # type: ignore[arg-type]  # the parts of it that are used
    session.broken = {ids["b"]}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pins.run)
        with pytest.raises(CorruptContent):
            await pins.pin("d", nobody)
        await trio.sleep(2)
        assert set(session.kept) == {ids["a"]}
        session.broken = set()
        await trio.sleep(600)
        assert set(session.kept) == {ids["a"], ids["b"]}
        nursery.cancel_scope.cancel()
