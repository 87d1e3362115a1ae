"""Manifests kept, and forgotten when no node and no upload has their version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.manifests import Manifests
from cache.operations import Body
from remote.content import EMPTY, Manifest, Piece
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
