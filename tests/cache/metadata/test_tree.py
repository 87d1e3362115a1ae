"""Nodes, entries and readdir positions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.metadata.tree import ROOT
from tests.cache.state import State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def test_positions_are_stable_and_never_used_again(state: State) -> None:
    for name in "abcd":
        state.make(name)
    first = state.tree.entries(ROOT, 0, 2)
    assert [entry.name for entry in first] == ["a", "b"]
    for name in "acd":
        state.unlink(name)
    state.make("e")
    state.make("a")
    rest = state.tree.entries(ROOT, first[-1].cookie, 10)
    assert [entry.name for entry in rest] == ["e", "a"]
    assert all(entry.cookie > first[-1].cookie for entry in rest)


def test_inode_numbers_are_never_used_again(state: State) -> None:
    ino = state.make("a").ino
    state.unlink("a")
    state.collector.collect()
    assert state.tree.find(ino) is None
    assert state.make("b").ino > ino
    with pytest.raises(OSError, match="no inode"):
        state.tree.node(ino)


def test_paths_and_ancestors(state: State) -> None:
    top = state.make("d", "directory")
    below = state.make("e", "directory", parent=top.ino)
    file = state.make("f", parent=below.ino)
    tree = state.tree
    assert (tree.path(ROOT), tree.path(file.ino)) == ("/", "d/e/f")
    assert tree.is_under(below.ino, top.ino)
    assert tree.is_under(top.ino, top.ino)
    assert not tree.is_under(top.ino, below.ino)
    assert (tree.parent(below.ino), tree.parent(ROOT)) == (top.ino, ROOT)
    state.in_use.add(file.ino)
    state.unlink("f", below.ino)
    assert tree.path(file.ino) == f"(removed {file.ino})"


def test_extended_attributes(state: State) -> None:
    ino = state.make("a").ino
    with state.db.transaction():
        state.tree.set_xattr(ino, "user.b", b"\0\xff")
        state.tree.set_xattr(ino, "user.a", b"")
    assert list(state.tree.xattrs(ino).items()) == [("user.a", b""), ("user.b", b"\0\xff")]
    with state.db.transaction():
        state.tree.set_xattr(ino, "user.a", None)
        state.tree.replace_xattrs(ino, {"user.c": b"3"})
    assert (state.tree.xattr(ino, "user.b"), state.tree.xattr(ino, "user.c")) == (None, b"3")
