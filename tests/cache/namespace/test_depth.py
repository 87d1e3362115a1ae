"""The bound on depth: said at the call, as far as this machine knows the tree."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache.metadata.tree import ROOT, Node
from cache.namespace import depth
from cache.namespace.depth import Extent
from remote.protocol.messages import MAX_LEVELS, MAX_PATH_BYTES
from tests.cache.state import State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def chain(state: State, names: list[str], drive: str = "") -> list[Node]:
    """Directories in each other, as the server may have had them for long."""
    made: list[Node] = []
    with state.db.transaction():
        for name in names:
            holder = state.tree.node(made[-1].ino if made else ROOT)
            node = state.edits._new_node(drive or holder.drive, "directory", 0o755, 0, 0, 0, None)
            state.tree.add_entry(holder.ino, name, node)
            made.append(node)
    return made


def too_long(work: Callable[[], object]) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011  # the errno is what is asserted
        work()
    assert refused.value.errno == errno.ENAMETOOLONG


def test_so_many_levels_and_no_more(state: State) -> None:
    made = chain(state, ["d"] * (MAX_LEVELS - 1))
    last = state.make("last", "directory", made[-1].ino)
    too_long(lambda: state.make("more", "directory", last.ino))
    state.make("file", "file", last.ino)
    assert depth.place(state.tree, last) == Extent(MAX_LEVELS, 2 * (MAX_LEVELS - 1) + 5)


def test_so_many_bytes_of_path_and_no_more(state: State) -> None:
    made = chain(state, ["é" * 127 + "x"] * (MAX_PATH_BYTES // 256 - 1))
    short = state.make("s", "directory", made[-1].ino)
    too_long(lambda: state.make("n" * 255, "directory", short.ino))
    state.make("n" * 255, "directory", made[-1].ino)


def test_a_tree_moves_only_where_all_of_it_fits(state: State) -> None:
    tall, under = chain(state, ["t"] * 401), chain(state, ["u"] * 600)
    before = state.ops()
    too_long(lambda: state.edits.rename(ROOT, "t", under[599].ino, "t"))
    low = state.make("low", "directory", under[599].ino)
    too_long(lambda: state.edits.exchange(ROOT, "t", under[599].ino, "low"))
    too_long(lambda: state.edits.exchange(under[599].ino, "low", ROOT, "t"))
    assert state.ops() == [*before, "create low"]
    state.edits.rename(ROOT, "t", under[598].ino, "t")
    assert depth.place(state.tree, tall[-1]).levels == MAX_LEVELS
    state.unlink("low", under[599].ino)
    assert low.is_directory


def test_what_is_deeper_already_may_move_up_and_go(state: State) -> None:
    made = chain(state, ["d"] * 1300)
    bottom, above = made[-1], made[-2]
    state.edits.rename(above.ino, "d", above.ino, "longer")
    state.edits.rename(above.ino, "longer", made[1200].ino, "up")
    too_long(lambda: state.edits.rename(made[1200].ino, "up", above.ino, "down"))
    too_long(lambda: state.make("more", "directory", bottom.ino))
    state.make("file", "file", bottom.ino)
    state.unlink("file", bottom.ino)
    state.unlink("up", made[1200].ino)


def test_of_a_shared_drive_what_is_below_the_share_counts(state: State) -> None:
    made = chain(state, ["Shared", "anna", "folder"])
    with state.db.transaction():
        state.tree.update(made[2].ino, drive="f" * 32)
    folder = state.tree.node(made[2].ino)
    assert depth.place(state.tree, folder) == Extent(1, 7)


def test_a_look_at_a_tree_that_moves_is_bounded(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = state.make("top", "directory")
    for number in range(50):
        state.make(f"{number}", "directory", top.ino)
    deep = state.make("deep", "directory", top.ino)
    state.make("deeper", "directory", deep.ino)
    assert depth.below(state.tree, state.tree.node(top.ino)) == Extent(2, 12)
    looked = []
    monkeypatch.setattr(depth, "LOOKED_AT", 20)
    plain = state.tree.entries

    def entries(parent: int, after: int, limit: int) -> object:
        looked.append(limit)
        return plain(parent, after, limit)

    monkeypatch.setattr(state.tree, "entries", entries)
    assert depth.below(state.tree, state.tree.node(top.ino)).levels == 1
    assert looked == [20]
