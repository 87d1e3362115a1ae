"""Manifests kept, and forgotten when no node and no upload has their version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cache.metadata.manifests import Manifests
from cache.metadata.operations import Body
from remote.protocol.content import EMPTY, HOLE, Manifest, Piece
from tests.cache.state import State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


async def test_they_are_kept_until_nobody_has_their_version(state: State) -> None:
    record = state.born("a", 1)
    assert record.version is not None
    manifests = Manifests(state.db)
    manifest = Manifest(size=3, average=1 << 20, pieces=[Piece(b"c" * 32, 3)])
    for version in (record.version, "7" * 32, "8" * 32):
        manifests.keep_manifest(version, manifest)
    with state.db.transaction():
        op = state.journal.add("write", state.listing()["a"], record.id, Body())
        state.journal.rewrite(op, version="7" * 32)
    await manifests.prune()
    assert manifests.manifest(record.version) == manifest == manifests.manifest("7" * 32)
    assert manifests.manifest("8" * 32) is None
    manifests.keep_manifest(record.version, EMPTY)
    assert manifests.manifest(record.version) == EMPTY


def test_what_nobody_stores_is_known_with_the_manifest(state: State) -> None:
    manifests = Manifests(state.db)
    assert manifests.hole_bytes("7" * 32) == 0
    pieces = [Piece(HOLE, 100), Piece(b"c" * 32, 3), Piece(HOLE, 20)]
    manifests.keep_manifest("7" * 32, Manifest(size=123, average=1 << 20, pieces=pieces))
    assert manifests.hole_bytes("7" * 32) == 120
    assert Manifests(state.db).hole_bytes("7" * 32) == 120
    manifests.keep_manifest("7" * 32, EMPTY)
    assert manifests.hole_bytes("7" * 32) == 0


async def test_those_of_superseded_versions_go_while_the_mount_runs(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.metadata.manifests.PRUNE_EVERY_BYTES", 20_000)
    record = state.born("a", 1)
    assert record.version is not None
    manifests = Manifests(state.db)
    manifests.keep_manifest(record.version, EMPTY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manifests.tend)
        for number in range(1000):  # as many as a file that is saved again and again has had
            manifests.keep_manifest(f"{number:032x}", EMPTY)
            if number % 250 == 249:
                with trio.fail_after(60):
                    await manifests.pruned.wait()
                rows = [row[0] for row in state.db.all("SELECT version FROM manifest")]
                assert rows == [record.version]
        nursery.cancel_scope.cancel()


async def test_the_more_are_in_use_the_rarer_they_are_looked_through(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.metadata.manifests.PRUNE_EVERY_BYTES", 1)
    manifests, used = Manifests(state.db), [state.born(f"f{n}", n + 1).version for n in range(10)]
    for version in used:
        assert version is not None
        manifests.keep_manifest(version, EMPTY)
    await manifests.prune()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manifests.tend)
        for number in range(4):  # less than half of those
            manifests.keep_manifest(f"{number:032x}", EMPTY)
        await trio.testing.wait_all_tasks_blocked()
        assert len(state.db.all("SELECT version FROM manifest")) == 14
        manifests.keep_manifest("7" * 32, EMPTY)
        with trio.fail_after(60):
            await manifests.pruned.wait()
        assert len(state.db.all("SELECT version FROM manifest")) == 10
        nursery.cancel_scope.cancel()
