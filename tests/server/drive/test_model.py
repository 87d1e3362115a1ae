"""The tree's operations, its history and its trash against a model made of dictionaries.

Hypothesis makes up sequences of operations on few names and files, right and wrong ones; the model
says what each must answer and what the tree is afterwards. The server side is the real commit path
on a real database, without HTTP.

Invariants checked after every step: the tree is the model's; links count entries; what is out of
the tree is in the trash, and remembers where it was; every file has the versions that it ever had,
one of them current; the feed replayed from nothing gives the same tree.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from remote.protocol import errors, messages
from remote.protocol.content import EMPTY
from server.accounts import accounts, tokens
from server.changes import feed
from server.changes.views import view_of
from server.drive import commits, trash
from server.metadata import schema
from server.metadata.db import Database
from server.metadata.records import file_records
from server.permissions.caller import Caller
from tests.amounts import amount

NAMES = st.sampled_from(["a", "b", "c"])
INDEX = st.integers(0, 30)
SEED = [
    (0, "a", "directory"),
    (0, "b", "directory"),
    (0, "c", "file"),
    (1, "a", "directory"),
    (1, "b", "file"),
    (2, "a", "directory"),
    (2, "b", "file"),
]
"""What every run begins with, so that there is something to collide with: (index, name, kind)."""


@dataclass
class Model:
    """The tree as it should be: `entries` (directory, name) -> file; kinds of every file there is;
    `trash` file -> where it was, None: nowhere to go back to; the versions of each regular file,
    and the current one."""

    root: str
    kinds: dict[str, str] = field(default_factory=dict)
    entries: dict[tuple[str, str], str] = field(default_factory=dict)
    trash: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    versions: dict[str, set[str]] = field(default_factory=dict)
    current: dict[str, str] = field(default_factory=dict)

    def put(self, place: tuple[str, str], file: str) -> None:
        self.entries[place] = file
        self.trash.pop(file, None)

    def drop(self, place: tuple[str, str], *, comes_back: bool = True) -> None:
        file = self.entries.pop(place)
        if not self.links(file):
            self.trash[file] = place if comes_back else None

    def write(self, file: str, version: str) -> None:
        self.versions.setdefault(file, set()).add(version)
        self.current[file] = version

    def inside(self, directory: str) -> set[str]:
        """Files that went with a directory in the trash: here everything happens at one time."""
        found = {f for f, place in self.trash.items() if place and place[0] == directory}
        return found.union(*[self.inside(item) for item in found])

    def empty(self, files: set[str]) -> None:
        for file in files:
            for known in (self.trash, self.kinds, self.versions, self.current):
                known.pop(file, None)

    def children(self, directory: str) -> list[str]:
        return [name for parent, name in self.entries if parent == directory]

    def links(self, file: str) -> int:
        return list(self.entries.values()).count(file) + (file == self.root)

    def above(self, file: str) -> set[str]:
        """`file` and all directories over it."""
        found, todo = set[str](), [file]
        while todo:
            each = todo.pop()
            found.add(each)
            todo += [parent for (parent, _), f in self.entries.items() if f == each]
        return found

    def bad_directory(self, file: str) -> type[errors.Problem] | None:
        if self.kinds[file] != "directory":
            return errors.NotADirectory
        return errors.NotFound if self.links(file) == 0 else None

    def rename(
        self, file: str, old: tuple[str, str], new: tuple[str, str], seen: str | None
    ) -> type[errors.Problem] | None:
        """POSIX rename with the wire's preconditions; None: done."""
        for parent, _ in (old, new):
            if problem := self.bad_directory(parent):
                return problem
        if self.entries.get(old) != file:
            return errors.Stale
        there = self.entries.get(new)
        if there == file:
            return None
        directory = self.kinds[file] == "directory"
        if directory and file in self.above(new[0]):
            return errors.WouldLoop
        if there is not None:
            if there != seen:
                return errors.Exists
            if directory and self.kinds[there] != "directory":
                return errors.NotADirectory
            if not directory and self.kinds[there] == "directory":
                return errors.IsADirectory
            if self.children(there):
                return errors.NotEmpty
            self.drop(new)
        del self.entries[old]
        self.entries[new] = file
        return None

    def recover(
        self, file: str, parent: str | None, name: str | None
    ) -> type[errors.Problem] | None:
        """None: done."""
        if file not in self.trash:
            return errors.Stale
        place = self.trash[file]
        if parent is None and (place is None or place[0] not in self.kinds):
            return errors.NotFound
        directory, known_as = place or ("", None)
        directory, known_as = parent or directory, name or known_as
        if problem := self.bad_directory(directory):
            return problem
        if known_as is None:
            return errors.NotFound
        if (directory, known_as) in self.entries:
            return errors.Exists
        self.put((directory, known_as), file)
        return None


class TreeMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.db = Database(Path(self.folder.name) / "db.sqlite")
        self.db.migrate()
        self.numbers = itertools.count(1)
        with self.db.write() as conn:
            accounts.insert_account(conn, "anna", "none", 1)
            row = conn.execute(select(schema.drives)).one()
            _, device = tokens.new_device(conn, row.owner, "d", 1)
        self.caller = Caller(row.owner, "anna", device, "full", row.id)
        self.model = Model(row.root, {row.root: "directory"})
        self.replayed: dict[tuple[str, str], str] = {}
        self.replayed_to = 0
        for parent, name, kind in SEED:
            self.create(parent, name, kind)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            self.folder.cleanup()

    def fresh(self) -> str:
        return f"{next(self.numbers):032x}"

    def pick(self, index: int) -> str:
        files = list(self.model.kinds)
        return files[index % len(files)]

    def pick_entry(self, index: int) -> tuple[tuple[str, str], str]:
        entries = list(self.model.entries.items())
        return entries[index % len(entries)]

    def apply(self, op: messages.Op, expected: type[errors.Problem] | None) -> None:
        keyed = messages.Keyed(key=self.fresh(), op=op)
        with self.db.write() as conn:
            results, _ = commits.apply(conn, self.caller, [keyed], 1000)
        wanted = messages.Applied if expected is None else expected
        assert type(results[0]) is wanted, (op, results[0], wanted)

    # --- operations ---

    @rule(parent=INDEX, name=NAMES, kind=st.sampled_from(["file", "directory"]))
    def create(self, parent: int, name: str, kind: str) -> None:
        directory, file = self.pick(parent), self.fresh()
        expected = self.model.bad_directory(directory)
        if expected is None and (directory, name) in self.model.entries:
            expected = errors.Exists
        content = messages.Content(version=self.fresh(), manifest=EMPTY) if kind == "file" else None
        op = messages.Create(
            file=file,
            parent=directory,
            name=name,
            kind="file" if kind == "file" else "directory",
            mode=0,
            mtime_ns=0,
            content=content,
        )
        self.apply(op, expected)
        if expected is None:
            self.model.kinds[file] = kind
            self.model.entries[directory, name] = file
            if content is not None:
                self.model.write(file, content.version)

    def bad_file(self, file: str) -> type[errors.Problem] | None:
        if self.model.kinds[file] == "directory":
            return errors.IsADirectory
        return errors.NotFound if self.model.links(file) == 0 else None

    @rule(index=INDEX)
    def write(self, index: int) -> None:
        file, content = self.pick(index), messages.Content(version=self.fresh(), manifest=EMPTY)
        expected = self.bad_file(file)
        self.apply(messages.Write(file=file, content=content, mtime_ns=0), expected)
        if expected is None:
            self.model.write(file, content.version)

    @precondition(lambda self: self.model.versions)
    @rule(index=INDEX, source=INDEX, which=INDEX)
    def revert(self, index: int, source: int, which: int) -> None:
        """To a version of the file, or of another."""
        file, sources = self.pick(index), list(self.model.versions)
        known = sorted(self.model.versions[sources[source % len(sources)]])
        version, fresh = known[which % len(known)], self.fresh()
        expected = self.bad_file(file)
        if expected is None and version not in self.model.versions[file]:
            expected = errors.NotFound
        op = messages.Revert(file=file, version=version, as_version=fresh, mtime_ns=0)
        self.apply(op, expected)
        if expected is None and version != self.model.current[file]:
            self.model.write(file, fresh)

    @precondition(lambda self: self.model.trash)
    @rule(index=INDEX, live=st.booleans(), parent=st.none() | INDEX, name=st.none() | NAMES)
    def recover(self, index: int, live: bool, parent: int | None, name: str | None) -> None:
        trashed = list(self.model.trash)
        file = self.pick(index) if live else trashed[index % len(trashed)]
        directory = None if parent is None else self.pick(parent)
        expected = self.model.recover(file, directory, name)
        self.apply(messages.Recover(file=file, parent=directory, name=name), expected)

    @precondition(lambda self: self.model.trash)
    @rule(index=INDEX, everything=st.booleans())
    def empty(self, index: int, everything: bool) -> None:
        trashed = list(self.model.trash)
        file = self.pick(index) if index % 4 == 0 else trashed[index % len(trashed)]
        gone = set(self.model.trash) if everything else set()
        if not everything and file in self.model.trash:
            gone = {file} | self.model.inside(file)
        with self.db.write() as conn:
            _, reply = trash.empty(conn, self.caller, None if everything else [file], 1000)
        assert (reply.files, reply.more) == (len(gone), False)
        self.model.empty(gone)

    @precondition(lambda self: self.model.entries)
    @rule(entry=INDEX, parent=INDEX, name=NAMES)
    def link(self, entry: int, parent: int, name: str) -> None:
        target, directory = self.pick_entry(entry)[1], self.pick(parent)
        expected = self.model.bad_directory(directory)
        if expected is None and self.model.kinds[target] == "directory":
            expected = errors.IsADirectory
        if expected is None and (directory, name) in self.model.entries:
            expected = errors.Exists
        self.apply(messages.Link(file=target, parent=directory, name=name), expected)
        if expected is None:
            self.model.entries[directory, name] = target

    @precondition(lambda self: self.model.entries)
    @rule(entry=INDEX, wrong=st.none() | INDEX)
    def unlink(self, entry: int, wrong: int | None) -> None:
        (parent, name), file = self.pick_entry(entry)
        named = file if wrong is None else self.pick(wrong)
        expected: type[errors.Problem] | None = None
        if named != file:
            expected = errors.Stale
        elif self.model.children(file):
            expected = errors.NotEmpty
        self.apply(messages.Unlink(file=named, parent=parent, name=name), expected)
        if expected is None:
            self.model.drop((parent, name))

    @precondition(lambda self: self.model.entries)
    @rule(entry=INDEX, over=st.booleans(), place=INDEX, name=NAMES, seen=st.booleans())
    def rename(self, entry: int, over: bool, place: int, name: str, seen: bool) -> None:
        old, file = self.pick_entry(entry)
        new = self.pick_entry(place)[0] if over else (self.pick(place), name)
        replaces = self.model.entries.get(new) if seen else None
        expected = self.model.rename(file, old, new, replaces)
        op = messages.Rename(
            file=file,
            parent=old[0],
            name=old[1],
            new_parent=new[0],
            new_name=new[1],
            replaces=replaces,
        )
        self.apply(op, expected)

    @precondition(lambda self: self.model.entries)
    @rule(one=INDEX, other=INDEX)
    def exchange(self, one: int, other: int) -> None:
        (old, file), (new, second) = self.pick_entry(one), self.pick_entry(other)
        expected: type[errors.Problem] | None = None
        if file != second:
            loops = self.model.kinds[file] == "directory" and file in self.model.above(new[0])
            back = self.model.kinds[second] == "directory" and second in self.model.above(old[0])
            expected = errors.WouldLoop if loops or back else None
        op = messages.Exchange(
            file=file,
            parent=old[0],
            name=old[1],
            other=second,
            other_parent=new[0],
            other_name=new[1],
        )
        self.apply(op, expected)
        if expected is None:
            self.model.entries[old], self.model.entries[new] = second, file

    @precondition(lambda self: self.model.entries)
    @rule(one=INDEX, other=INDEX)
    def replace(self, one: int, other: int) -> None:
        (old, file), (new, target) = self.pick_entry(one), self.pick_entry(other)
        expected: type[errors.Problem] | None = None
        if file != target and "directory" in (self.model.kinds[file], self.model.kinds[target]):
            expected = errors.IsADirectory
        op = messages.Replace(
            file=file,
            parent=old[0],
            name=old[1],
            new_parent=new[0],
            new_name=new[1],
            target=target,
        )
        self.apply(op, expected)
        if expected is None and file != target:
            self.model.write(target, self.model.current[file])
            gone_on = self.model.versions[file] <= self.model.versions[target]
            self.model.drop(old, comes_back=not gone_on)

    # --- what must always hold ---

    @invariant()
    def the_tree_is_the_models(self) -> None:
        with self.db.read() as conn:
            rows = conn.execute(select(schema.entries)).all()
            assert {(row.parent, row.name): row.file for row in rows} == self.model.entries
            for row in conn.execute(select(schema.files)):
                assert row.links == self.model.links(row.id)
                assert (row.trashed_ns is not None) == (row.links == 0)

    @invariant()
    def the_trash_knows_where_things_were(self) -> None:
        table, model = schema.files, self.model
        with self.db.read() as conn:
            rows = conn.execute(select(table).where(table.c.trashed_ns.is_not(None))).all()
            found = {row.id: _place(row) for row in rows}
            assert found == model.trash
            page = trash.page(conn, self.caller, 1, None, None, 200)
        alone = {f for f, place in model.trash.items() if place and place[0] not in model.trash}
        assert {item.file.id: item.inside for item in page.items} == {
            file: len(model.inside(file)) for file in alone
        }

    @invariant()
    def no_version_is_lost(self) -> None:
        with self.db.read() as conn:
            rows = conn.execute(select(schema.versions)).all()
        found: dict[str, set[str]] = {}
        for row in rows:
            found.setdefault(row.file, set()).add(row.id)
        assert found == self.model.versions
        latest = {row.file: row.id for row in rows if row.superseded_ns is None}
        assert latest == self.model.current
        assert sum(row.superseded_ns is None for row in rows) == len(latest)

    @invariant()
    def the_feed_tells_the_same_tree(self) -> None:
        with self.db.read() as conn:
            cursors, head = feed.Cursors(b"s"), feed.head(conn, self.caller.drive)
            since = cursors.write(head._replace(seq=self.replayed_to))
            page = feed.pull(conn, cursors, view_of(conn, self.caller), since)
            assert not page.more
            found = page.changes
            for change in found:
                for entry in change.entries:
                    self.replayed.pop((entry.parent, entry.name), None)
                    if entry.file is not None:
                        self.replayed[entry.parent, entry.name] = entry.file
                self.replayed_to = change.seq
            assert self.replayed_to == head.seq
            assert self.replayed == self.model.entries
            last = {record.id: record for change in found for record in change.files}
            assert file_records(conn, list(last)) == list(last.values())


def _place(row: Any) -> tuple[str, str] | None:
    return (row.trashed_parent, row.trashed_name) if row.trashed_parent else None


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=amount(30, 4),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
