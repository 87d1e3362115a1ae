"""mount/session/symlinks.py: which symlinks of others are shown, and which could lead out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.metadata.tree import ROOT, Node
from mount.session.symlinks import NOWHERE, Symlinks
from remote.protocol.ids import mark_of
from tests.cache.namespace.test_shares import THEIRS, at, folder, root, share
from tests.cache.state import State

INSIDE = ["x", "./x", "x/y", "../x", "..", "../../x", "../../..", "x/./y", "..//x/"]
"""Targets of a symlink three directories below what is shared that stay in it."""
OUTSIDE = [
    "/", "/etc/passwd", "//x", "../../../../x", "../../../..", "./../../../../x", "x/../y",
    "../x/..", "x/../../../../../y", "../../.././../x",
]  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path)
    yield opened
    opened.close()


def shown(state: State, node: Node, *, inside: bool = True) -> str:
    return Symlinks(state.tree, inside=inside).target(state.tree.node(node.ino))


def place_of_anna(state: State) -> tuple[str, Node]:
    """A folder in the own drive, which ben edits, and a directory three below it."""
    top = node = state.make("team", "directory")
    for name in "abc":
        node = state.make(name, "directory", node.ino)
    return top.file, node


def symlink(state: State, place: Node, target: str, made_under: bytes, seq: int = 1) -> Node:
    """One that another device has told of."""
    fields = {"kind": "symlink", "version": None, "target": target, "made_under": made_under}
    state.born(f"link {seq}", seq, place.file, **fields)
    found = state.tree.child(place.ino, f"link {seq}")
    assert found is not None
    return found


@pytest.mark.parametrize("target", INSIDE + OUTSIDE)
def test_one_of_an_editor_is_shown_where_it_stays_in_what_is_shared(
    state: State, target: str
) -> None:
    team, place = place_of_anna(state)
    node = symlink(state, place, target, mark_of(team))
    assert shown(state, node) == (target if target in INSIDE else NOWHERE)
    assert shown(state, node, inside=False) == target


@pytest.mark.parametrize("target", INSIDE + OUTSIDE)
def test_ones_own_are_never_touched(state: State, target: str) -> None:
    _, place = place_of_anna(state)
    assert shown(state, symlink(state, place, target, b"")) == target
    here = state.edits.create(place.ino, "here", "symlink", 0o777, 0, 0, target=target)
    assert shown(state, here) == target
    state.reopen()
    assert shown(state, here) == target


def test_moved_out_of_what_its_maker_reached_it_goes_up_no_more(state: State) -> None:
    team, place = place_of_anna(state)
    node = symlink(state, place, "../x", mark_of(team))
    down = symlink(state, place, "x/y", mark_of(team), 2)
    for one, name in ((node, "link 1"), (down, "link 2")):
        state.edits.rename(place.ino, name, ROOT, name)
        assert shown(state, one) == (NOWHERE if one is node else "x/y")


def test_it_must_stay_from_each_of_its_names(state: State) -> None:
    team, place = place_of_anna(state)
    node = symlink(state, place, "../x", mark_of(team))
    assert shown(state, node) == "../x"
    state.edits.link(node.ino, at(state, "team").ino, "again")
    assert shown(state, node) == NOWHERE


def test_below_shared_everybody_elses_count_as_others(state: State) -> None:
    record, inner = folder(state), folder(state)
    share(state, root(record, "proj"))
    state.list_directory(at(state, "Shared/bob/proj").ino, [("d", inner)], 5)
    links = {
        name: state.record(kind="symlink", version=None, target=name.replace(":", "/"))
        for name in ("x", "..:x", "..:..:x", ":etc")
    }
    state.list_directory(at(state, "Shared/bob/proj/d").ino, list(links.items()), 5)
    told = {name: shown(state, at(state, f"Shared/bob/proj/d/{name}")) for name in links}
    assert told == {"x": "x", "..:x": "../x", "..:..:x": NOWHERE, ":etc": NOWHERE}
    place = at(state, "Shared/bob/proj/d")
    mine = state.edits.create(place.ino, "mine", "symlink", 0o777, 0, 0, target="/etc")
    assert mine.drive == THEIRS
    assert shown(state, mine) == "/etc"


def test_for_a_folder_tokens_mount_the_root_is_where_it_stays(state: State) -> None:
    place = state.make("d", "directory")
    node = symlink(state, place, "../x", mark_of(state.tree.node(ROOT).file))
    out = symlink(state, place, "../../x", mark_of(state.tree.node(ROOT).file), 2)
    assert [shown(state, item) for item in (node, out)] == ["../x", NOWHERE]
