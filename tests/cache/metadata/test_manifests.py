"""Manifests kept, and forgotten when no node and no upload has their version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
