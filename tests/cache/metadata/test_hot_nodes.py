"""Nodes in memory beside SQLite, which is what they have to agree with."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.metadata.hot_nodes import HotNodes
from cache.metadata.tree import ROOT, Node, node_from
from remote.protocol.messages import Child, EntryRecord, FileRecord, Kind
from tests.amounts import amount
from tests.cache.state import State, new_file

REPOSITORY = Path(__file__).parents[3]
# Who writes rows of `node` where no tree is made over them yet.
BEFORE_ANY_TREE = {"cache/metadata/schema.py", "cache/recovery/power_loss.py"}

numbers = st.integers(0, 30)


def a_node(ino: int, size: int = 0) -> Node:
    record = FileRecord(id=new_file(), kind="file", mode=0o644, mtime_ns=0, ctime_ns=0, rev=0)
    node = node_from(record, "e" * 32)
    node.ino, node.size = ino, size
    return node


@settings(max_examples=amount(200, 40), deadline=None)
@given(st.integers(1, 5), st.lists(st.tuples(numbers, numbers), max_size=40))
def test_there_are_never_more_than_agreed_and_the_latest_are_there(
    most: int, puts: list[tuple[int, int]]
) -> None:
    hot, model = HotNodes[Node](most), dict[int, int]()
    for ino, size in puts:
        hot.put(a_node(ino, size))
        model[ino] = size
        assert len(hot) <= most
        found = hot.get(ino)
        assert found is not None
        assert found.size == size
    for ino, size in model.items():
        held = hot.get(ino)
        assert held is None or held.size == size


def test_nobody_shares_a_node_with_anybody() -> None:
    hot, given_in = HotNodes[Node](), a_node(7, 1)
    hot.put(given_in)
    given_in.size = 2
    first = hot.get(7)
    assert first is not None
    first.size = 3
    again = hot.get(7)
    assert again is not None
    assert again.size == 1
    hot.changed(7, {"size": 4})
    hot.changed(8, {"size": 4})
    assert again.size == 1
    assert hot.get(8) is None


def test_only_the_tree_writes_rows_of_nodes() -> None:
    """Else what is in memory would not be what is in the database."""
    writes = re.compile(r"(UPDATE|INTO|DELETE FROM)\s+node\b")
    found = {
        str(path.relative_to(REPOSITORY))
        for folder in ("cache", "mount")
        for path in (REPOSITORY / folder).rglob("*.py")
        if writes.search(path.read_text())
    }
    assert found == {"cache/metadata/tree.py", *BEFORE_ANY_TREE}


class Refused(Exception):
    """Makes a transaction be rolled back."""


class Beside(RuleBasedStateMachine):
    """Everything that a tree can do to its nodes, with a memory so small that much is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self._place = tempfile.TemporaryDirectory(prefix="nearline-test-")
        self._state = State(Path(self._place.name))
        self._tree, self._db = self._state.tree, self._state.db
        self._tree._hot._most = 4
        self._names = 0

    def teardown(self) -> None:
        self._state.close()
        self._place.cleanup()

    def _all(self) -> list[int]:
        return [row[0] for row in self._db.all("SELECT ino FROM node ORDER BY ino")]

    def _one(self, pick: int) -> int:
        inodes = self._all()
        return inodes[pick % len(inodes)]

    def _directory(self, pick: int) -> Node:
        inodes = [ino for ino in self._all() if self._tree.node(ino).is_directory]
        return self._tree.node(inodes[pick % len(inodes)])

    def _fresh(self, kind: Kind) -> FileRecord:
        return FileRecord(id=new_file(), kind=kind, mode=0o755, mtime_ns=0, ctime_ns=0, rev=1)

    def _name(self) -> str:
        self._names += 1
        return f"n{self._names}"

    @rule(pick=numbers, kind=st.sampled_from(["file", "directory"]))
    def make(self, pick: int, kind: Kind) -> None:
        parent = self._directory(pick)
        with self._db.transaction():
            node = self._tree.insert(node_from(self._fresh(kind), parent.drive))
            self._tree.add_entry(parent.ino, self._name(), node)
        node.size = 999  # a caller's own

    @rule(pick=numbers, kinds=st.lists(st.sampled_from(["file", "directory"]), max_size=3))
    def list_some(self, pick: int, kinds: list[Kind]) -> None:
        parent = self._directory(pick)
        children = []
        for kind in kinds:
            record = self._fresh(kind)
            entry = EntryRecord(parent=parent.file, name=self._name(), file=record.id, rev=1)
            children.append(Child(entry=entry, file=record))
        with self._db.transaction():
            self._tree.add_fresh(parent, children)

    @rule(pick=numbers, size=numbers, listed=st.none() | numbers)
    def change(self, pick: int, size: int, listed: int | None) -> None:
        with self._db.transaction():
            self._tree.update(self._one(pick), size=size, listed=listed)

    @rule(pick=numbers, size=numbers)
    def change_in_vain(self, pick: int, size: int) -> None:
        with pytest.raises(Refused):
            self._fail(self._one(pick), size)

    def _fail(self, ino: int, size: int) -> None:
        with self._db.transaction():
            self._tree.update(ino, size=size, links=size)
            self._tree.node(ino)
            raise Refused

    @rule(pick=numbers, to=numbers)
    def point(self, pick: int, to: int) -> None:
        rows = self._db.all("SELECT parent, name, ino FROM entry ORDER BY cookie")
        if rows:
            parent, name, ino = rows[pick % len(rows)]
            new = self._tree.node(self._one(to))
            with self._db.transaction():
                self._tree.point_entry(parent, name, self._tree.node(ino), new)

    @rule(pick=numbers)
    def unname(self, pick: int) -> None:
        rows = self._db.all("SELECT parent, name, ino FROM entry ORDER BY cookie")
        if rows:
            parent, name, ino = rows[pick % len(rows)]
            with self._db.transaction():
                self._tree.drop_entry(parent, name, self._tree.node(ino))
                self._tree.update(ino, live=False, links=0)

    @rule(pick=numbers)
    def delete(self, pick: int) -> None:
        ino = self._one(pick)
        with self._db.transaction():
            if ino != ROOT and self._tree.is_empty(ino) and not self._tree.names(ino):
                self._tree.delete(ino)

    @rule(pick=numbers)
    def reidentify(self, pick: int) -> None:
        with self._db.transaction():
            self._tree.reidentify(self._tree.node(self._one(pick)).file, new_file())

    @rule(which=st.sampled_from(["own", "any"]))
    def distrust(self, which: str) -> None:
        with self._db.transaction():
            drive = self._tree.own_drive if which == "own" else None
            self._tree.doubt_nodes(drive, 0, 1000)
            self._tree.doubt_listings(drive, 0, 1000)

    @rule(pick=numbers)
    def show_and_forget_another_drive(self, pick: int) -> None:
        with self._db.transaction():
            node = self._tree.insert(node_from(self._fresh("file"), "another"))
        self._tree.find(node.ino)
        with self._db.transaction():
            self._tree.delete_drive("another")
        assert self._tree.find(node.ino) is None

    @rule(pick=numbers)
    def look(self, pick: int) -> None:
        self._tree.find(self._one(pick)).mode = 0  # type: ignore[union-attr]  # a caller's own

    @invariant()
    def everything_is_what_the_row_says(self) -> None:
        inodes = self._all()
        assert len(self._tree._hot) <= 4
        for ino in [*inodes, max(inodes) + 1]:
            here = self._tree._hot.get(ino)
            row = self._db.one("SELECT * FROM node WHERE ino = ?", ino)
            if here is not None:
                assert row is not None, ino
                assert {name: row[name] for name in row.keys()} == {  # noqa: SIM118  # a sqlite3.Row
                    name: getattr(here, name) for name in here.__struct_fields__
                }
        assert {*self._tree.dead(inodes)} == {
            row[0] for row in self._db.all("SELECT ino FROM node WHERE NOT live")
        }


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=amount(60, 12), stateful_step_count=30, deadline=None)
