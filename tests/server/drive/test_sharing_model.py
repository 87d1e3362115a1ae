"""Tree, grants and versions of one drive, and what each of three accounts may know of them, against
a model made of dictionaries.

Anna owns the drive; ben and cleo are given roles on files of it, and lose them again; some files
have a public link. Anybody tries anything. The model says who has which role on which file and by
which name it was given, which names a file has and who made them, and which versions. The trash is
emptied, and the ids of what was in it are tried again. The server side is the real commit path,
grants and feed on a real database, without HTTP.


Checked after every step, for each account: its role on every file; what is shared with it, and that
it is told the name that was shared; that its feed told it every change of what it sees, that what
left its sight is told as deleted, and that nothing else was told. And of every file: its names, its
versions, the current one, and that none ever went but with the file. After every name that ben or
cleo gave: that nobody reaches anything more or less by it. After every grant that was taken back:
that what is still reached is told, and nothing else.
"""

from __future__ import annotations

import inspect
import itertools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from remote.protocol import errors, messages
from remote.protocol.account_messages import Invite, MakeLink
from remote.protocol.content import EMPTY
from remote.protocol.errors import Refused
from server.accounts import accounts, tokens
from server.changes import feed
from server.changes.views import View, view_of
from server.drive import commits, sharing, trash
from server.links import links
from server.metadata import schema
from server.metadata.db import Database
from server.permissions import access
from server.permissions.caller import Caller
from tests.amounts import amount

WHO = st.sampled_from(["anna", "anna", "anna", "ben", "cleo"])
ROLE = st.sampled_from(["editor", "viewer"])
NAMES = st.sampled_from(["a", "b", "c"])
INDEX = st.integers(0, 30)
GRANTEES = ("ben", "cleo")
GRANTEE = st.sampled_from(GRANTEES)
RANK = {None: 0, "viewer": 1, "editor": 2, "owner": 3}


@dataclass
class Model:
    """`entries` (directory, name) -> file, in the order in which they came to be; every file in the
    tree or the trash; grants; versions, oldest first; `makers` of entries other than anna, with the
    step; `published` files by their link. `told` is by which entry a grant was given, `lost` where
    something in the trash was, `retired` what was deleted for good."""

    root: str
    kinds: dict[str, str] = field(default_factory=dict)
    makers: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    entries: dict[tuple[str, str], str] = field(default_factory=dict)
    grants: dict[tuple[str, str], str] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    told: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    lost: dict[str, tuple[str, str]] = field(default_factory=dict)
    retired: list[str] = field(default_factory=list)

    def follow(self, file: str, old: tuple[str, str] | None, new: tuple[str, str]) -> None:
        for (shared, to), entry in self.told.items():
            if (shared, entry) == (file, old):
                self.told[shared, to] = new

    def forget(self, file: str) -> None:
        self.retired.append(file)
        for known in (self.kinds, self.versions, self.lost, self.published):
            known.pop(file, None)  # type: ignore[attr-defined]  # dictionaries by file
        for grants in (self.grants, self.told):
            for grant in [grant for grant in grants if grant[0] == file]:
                del grants[grant]  # type: ignore[attr-defined]  # dictionaries by file and account

    def links(self, file: str) -> int:
        return list(self.entries.values()).count(file) + (file == self.root)

    def above(self, file: str) -> set[str]:
        found, todo = set[str](), [file]
        while todo:
            each = todo.pop()
            found.add(each)
            todo += [parent for (parent, _), f in self.entries.items() if f == each]
        return found

    def role(self, who: str, file: str) -> str | None:
        if who == "anna":
            return "owner"
        if self.links(file) == 0:
            return None
        roles = [self.grants.get((above, who)) for above in self.above(file)]
        return max(roles, key=RANK.__getitem__)

    def seen_by(self, who: str) -> set[str]:
        return {file for file in self.kinds if self.role(who, file)}

    # --- names ---

    def name(self, who: str, place: str, name: str, file: str, step: int) -> None:
        self.entries[place, name] = file
        self.makers[place, name] = (who if who != "anna" else "", step)

    def unname(self, place: str, name: str) -> str:
        """Take a name away; who had made it."""
        del self.entries[place, name]
        return self.makers.pop((place, name))[0]

    def reach(self, place: str) -> set[str]:
        return self.above(place) & ({file for file, _ in self.grants} | set(self.published))

    def changes_reach(self, who: str, place: str, known: set[str]) -> type[errors.Problem] | None:
        """The refusal that `who` gets, for a name in `place` of what has names in `known`."""
        if who == "anna" or any(self.reach(item) == self.reach(place) for item in known):
            return None
        return errors.OtherReach

    def reached(self) -> dict[str, set[tuple[str, str]]]:
        """Of every file in the tree: who reaches it, as what; links are visitors."""
        return {
            file: {(who, role) for who in GRANTEES if (role := self.role(who, file))}
            | {("visitor", link) for at, link in self.published.items() if at in self.above(file)}
            for file in self.kinds
            if self.links(file)
        }

    def left(self, place: str, file: str, maker: str) -> None:
        """Anna has taken a name of `file` out of `place`: names of others go that it has left
        behind there."""
        for each in [item for item in self.kinds if file in self.above(item)]:
            names = [at for at, meant in self.entries.items() if meant == each]
            if self.kinds[each] == "directory" or not (maker or any(map(self.by_other, names))):
                continue
            others = {at for at in names if file not in self.above(at[0]) and self.is_others(at)}
            own = set(names) - others
            lost = self.reach(place) - set().union(*(self.reach(parent) for parent, _ in own))
            for at in others if own else set():
                if self.reach(at[0]) & lost:
                    self.unname(*at)

    def by_other(self, at: tuple[str, str]) -> bool:
        return bool(self.makers[at][0])

    def is_others(self, at: tuple[str, str]) -> bool:
        """Made by somebody else, or carried along by them with a directory since."""
        carried = [one for one, meant in self.entries.items() if meant in self.above(at[0])]
        since = self.makers[at][1]
        return self.by_other(at) or any(
            self.by_other(one) and self.makers[one][1] > since for one in carried
        )

    def remaining(self, top: str) -> set[tuple[str, str, str]]:
        """Accounts that reach something below `top`, and the names, not by a grant at or above
        it."""
        found = set()
        for (place, name), file in self.entries.items():
            ways = {file} if top in self.above(place) else {file} | self.above(place)
            if file != top and top in self.above(file):
                found |= {(who, place, name) for at, who in self.grants if at in ways}
        return found


class GrantsMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.db = Database(Path(self.folder.name) / "db.sqlite")
        self.db.migrate()
        self.numbers = itertools.count(1)
        self.seen: set[str] = set()  # what happened at all
        self.callers: dict[str, Caller] = {}
        self.cursors = feed.Cursors(b"s")
        with self.db.write() as conn:
            for name in ("anna", "ben", "cleo"):
                accounts.insert_account(conn, name, "none", 1)
                owner = accounts.find_account(conn, name)
                assert owner is not None
                _, device = tokens.new_device(conn, owner[0], "d", 1)
                drive = select(schema.drives).where(schema.drives.c.owner == owner[0])
                row = conn.execute(drive).one()
                self.callers[name] = Caller(owner[0], name, device, "full", row.id)
                if name == "anna":
                    self.model = Model(row.root, {row.root: "directory"})
            self.at = {who: self.cursor_of(self.view(conn, who), conn) for who in self.callers}
        self.before = {who: self.model.seen_by(who) for who in self.callers}
        self.head = 0
        for parent, name, kind in ((0, "a", "directory"), (0, "b", "directory"), (1, "c", "file")):
            self.create("anna", parent, name, kind)
        for file in (1, 2):
            self.share("anna", file, "ben", "editor")
        self.share("anna", 3, "ben", "viewer")
        self.link("anna", 3, 2, "a")

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            self.folder.cleanup()

    def view(self, conn, who: str) -> View:  # type: ignore[no-untyped-def]  # a Connection
        return view_of(conn, self.callers[who])

    def cursor_of(self, view: View, conn) -> str:  # type: ignore[no-untyped-def]
        return self.cursors.write(feed.here(conn, view))

    def fresh(self) -> str:
        return f"{next(self.numbers):032x}"

    def pick(self, index: int) -> str:
        files = list(self.model.kinds)
        return files[index % len(files)]

    def pick_entry(self, index: int) -> tuple[tuple[str, str], str]:
        entries = list(self.model.entries.items())
        return entries[index % len(entries)] if entries else ((self.model.root, "-"), "0" * 32)

    # --- doing, and what the model says to it ---

    def apply(self, who: str, op: messages.Op) -> object:
        with self.db.write() as conn:
            keyed = messages.Keyed(key=self.fresh(), op=op)
            return commits.apply(conn, self.callers[who], [keyed], next(self.numbers))[0][0]

    def may(self, who: str, *files: str) -> type[errors.Problem] | None:
        """The refusal for want of a role on one of these, in that order."""
        for file in files:
            role = self.model.role(who, file)
            if RANK[role] < RANK["editor"]:
                return errors.Forbidden if role else errors.NotFound
        return None

    def directory(self, file: str) -> type[errors.Problem] | None:
        if self.model.kinds[file] != "directory":
            return errors.NotADirectory
        return errors.NotFound if self.model.links(file) == 0 else None

    def check(self, answer: object, expected: type[errors.Problem] | None) -> bool:
        """True if it was done."""
        assert isinstance(answer, expected or messages.Applied), (answer, expected)
        self.seen.add(type(answer).__name__)
        self.step = next(self.numbers)
        return expected is None

    def nobody_reaches_otherwise(self, who: str, before: dict[str, set[tuple[str, str]]]) -> None:
        """After a name was given by `who`."""
        if who != "anna":
            now = self.model.reached()
            assert {file: now[file] for file in before} == before

    def left(self, place: str, file: str, maker: str) -> None:
        names = len(self.model.entries)
        self.model.left(place, file, maker)
        self.seen |= {"a name went"} if len(self.model.entries) < names else set()

    @rule(
        who=WHO,
        parent=INDEX,
        name=NAMES,
        kind=st.sampled_from(["file", "directory"]),
        again=st.booleans(),
    )
    def create(self, who: str, parent: int, name: str, kind: str, again: bool = False) -> None:
        place, file, version = self.pick(parent), self.fresh(), self.fresh()
        if again and self.model.retired:
            file = self.model.retired[parent % len(self.model.retired)]
        content = messages.Content(version=version, manifest=EMPTY) if kind == "file" else None
        op = messages.Create(
            file=file,
            parent=place,
            name=name,
            kind=kind,  # type: ignore[arg-type]  # one of two literals
            mode=0o644,
            mtime_ns=1,
            content=content,
        )
        expected = self.may(who, place) or self.directory(place)
        if expected is None and (place, name) in self.model.entries:
            expected = errors.Exists
        if expected is None and file in self.model.retired:
            expected = errors.Exists
        if self.check(self.apply(who, op), expected):
            before = self.model.reached()
            self.model.kinds[file] = kind
            self.model.name(who, place, name, file, self.step)
            self.nobody_reaches_otherwise(who, before)
            self.model.versions[file] = [version] if kind == "file" else []

    @rule(who=WHO, entry=INDEX)
    def unlink(self, who: str, entry: int) -> None:
        (place, name), file = self.pick_entry(entry)
        if file not in self.model.kinds:
            return
        holds = any(parent == file for parent, _ in self.model.entries)
        expected = self.may(who, place) or (errors.NotEmpty if holds else None)
        if self.check(
            self.apply(who, messages.Unlink(file=file, parent=place, name=name)), expected
        ):
            maker = self.model.unname(place, name)
            if self.model.links(file) == 0:
                self.model.lost[file] = (place, name)
            if who == "anna":
                self.left(place, file, maker)

    @precondition(lambda self: self.model.lost)
    @rule()
    def empty_trash(self) -> None:
        with self.db.write() as conn:
            trash.empty(conn, self.callers["anna"], None, next(self.numbers))
        for file in [item for item in self.model.kinds if not self.model.links(item)]:
            self.model.forget(file)

    @rule(entry=INDEX, goal=INDEX, name=NAMES)
    def move_what_is_shared(self, entry: int, goal: int, name: str) -> None:
        """Also by other names than that which was shared."""
        granted = {file for file, _ in self.model.grants}
        shared = [item for item in self.model.entries.items() if item[1] in granted]
        if shared:
            self.move_entry("anna", *shared[entry % len(shared)], goal, name)

    @rule(who=WHO, entry=INDEX, goal=INDEX, name=NAMES)
    def move(self, who: str, entry: int, goal: int, name: str) -> None:
        self.move_entry(who, *self.pick_entry(entry), goal, name)

    def move_entry(self, who: str, entry: tuple[str, str], file: str, goal: int, name: str) -> None:
        place, old = entry
        place_to = self.pick(goal)
        if file not in self.model.kinds or (place_to, name) in self.model.entries:
            return
        op = messages.Rename(file=file, parent=place, name=old, new_parent=place_to, new_name=name)
        expected = self.may(who, place) or self.may(who, place_to) or self.directory(place_to)
        expected = expected or self.model.changes_reach(who, place_to, {place})
        if expected is None and file in self.model.above(place_to):
            expected = errors.WouldLoop
        if self.check(self.apply(who, op), expected):
            before = self.model.reached()
            maker = self.model.unname(place, old)
            self.model.name(who, place_to, name, file, self.step)
            self.model.follow(file, (place, old), (place_to, name))
            self.nobody_reaches_otherwise(who, before)
            if who == "anna":
                self.left(place, file, maker)

    @rule(who=WHO, entry=INDEX, other=INDEX)
    def exchange(self, who: str, entry: int, other: int) -> None:
        one, two = self.pick_entry(entry), self.pick_entry(other)
        (place, name), file = one
        (place_to, name_to), file_to = two
        if file == file_to or file not in self.model.kinds:
            return
        op = messages.Exchange(
            file=file,
            parent=place,
            name=name,
            other=file_to,
            other_parent=place_to,
            other_name=name_to,
        )
        expected = self.may(who, place) or self.may(who, place_to)
        expected = expected or self.model.changes_reach(who, place_to, {place})
        if expected is None and (
            file in self.model.above(place_to) or file_to in self.model.above(place)
        ):
            expected = errors.WouldLoop
        if self.check(self.apply(who, op), expected):
            before = self.model.reached()
            makers = self.model.unname(place, name), self.model.unname(place_to, name_to)
            self.model.name(who, place_to, name_to, file, self.step)
            self.model.name(who, place, name, file_to, self.step)
            self.model.follow(file, (place, name), (place_to, name_to))
            self.model.follow(file_to, (place_to, name_to), (place, name))
            self.nobody_reaches_otherwise(who, before)
            if who == "anna":
                self.left(place, file, makers[0])
                self.left(place_to, file_to, makers[1])

    @rule(who=WHO, file=INDEX, goal=INDEX, name=NAMES)
    def link(self, who: str, file: int, goal: int, name: str) -> None:
        source, place = self.pick(file), self.pick(goal)
        if (place, name) in self.model.entries or self.model.kinds[source] == "directory":
            return
        op = messages.Link(file=source, parent=place, name=name)
        expected = self.may(who, source) or self.may(who, place) or self.directory(place)
        known = {parent for (parent, _), file in self.model.entries.items() if file == source}
        expected = expected or self.model.changes_reach(who, place, known)
        if self.check(self.apply(who, op), expected):
            before = self.model.reached()
            self.model.name(who, place, name, source, self.step)
            self.model.follow(source, self.model.lost.pop(source, None), (place, name))
            self.nobody_reaches_otherwise(who, before)

    @rule(who=WHO, file=INDEX)
    def write(self, who: str, file: int) -> None:
        target, version = self.pick(file), self.fresh()
        if self.model.kinds[target] != "file":
            return
        content = messages.Content(version=version, manifest=EMPTY)
        expected = self.may(who, target)
        if expected is None and self.model.links(target) == 0:
            expected = errors.NotFound
        op = messages.Write(file=target, content=content, mtime_ns=2)
        if self.check(self.apply(who, op), expected):
            self.model.versions[target].append(version)

    @rule(who=WHO, file=INDEX, number=INDEX)
    def revert(self, who: str, file: int, number: int) -> None:
        target, fresh = self.pick(file), self.fresh()
        versions = self.model.versions.get(target)
        if not versions:
            return
        old = versions[number % len(versions)]
        expected = self.may(who, target)
        if expected is None and self.model.links(target) == 0:
            expected = errors.NotFound
        op = messages.Revert(file=target, version=old, as_version=fresh, mtime_ns=3)
        if self.check(self.apply(who, op), expected) and old != versions[-1]:
            versions.append(fresh)

    @rule(who=WHO, file=INDEX, goal=INDEX, name=NAMES)
    def recover(self, who: str, file: int, goal: int, name: str) -> None:
        gone, place = self.pick(file), self.pick(goal)
        if self.model.links(gone) or (place, name) in self.model.entries:
            return
        if who != "anna" or self.directory(place) or gone in self.model.above(place):
            return
        answer = self.apply(who, messages.Recover(file=gone, parent=place, name=name))
        if self.check(answer, None):
            self.model.name(who, place, name, gone, self.step)
            self.model.follow(gone, self.model.lost.pop(gone, None), (place, name))

    @rule(who=WHO, file=INDEX, to=GRANTEE, role=ROLE)
    def share(self, who: str, file: int, to: str, role: str) -> None:
        target = self.pick(file)
        expected: type[errors.Problem] | None = None
        if who != "anna":
            known = self.model.role(who, target)
            expected = errors.Forbidden if known else errors.NotFound
        elif target == self.model.root:
            expected = errors.BadRequest
        elif self.model.links(target) == 0:
            expected = errors.NotFound
        invite = Invite(to, role)  # type: ignore[arg-type]  # one of two literals
        answer: object = None
        try:
            with self.db.write() as conn:
                sharing.share(conn, self.callers[who], target, [invite], next(self.numbers))
        except Refused as error:
            answer = error.problem
        assert type(answer) is (expected or type(None)), (answer, expected)
        if expected is None:
            first = next(entry for entry, file in self.model.entries.items() if file == target)
            self.model.told.setdefault((target, to), first)
            self.model.grants[target, to] = role

    @rule(grant=INDEX, by=st.booleans())
    def unshare(self, grant: int, by: bool) -> None:
        if not self.model.grants:
            return
        file, to = list(self.model.grants)[grant % len(self.model.grants)]
        with self.db.write() as conn:
            who = self.callers["anna" if by else to]
            sharing.unshare(conn, who, file, to, next(self.numbers))
        del self.model.grants[file, to], self.model.told[file, to]
        self.what_remains_is_told(file)

    def what_remains_is_told(self, file: str) -> None:
        if self.model.kinds[file] != "directory":
            return
        with self.db.read() as conn:
            reply = sharing.list_grants(conn, self.callers["anna"], file)
        told = {(item.account, item.parent, item.name) for item in reply.reached}
        assert told == self.model.remaining(file)
        self.seen |= {"something remained"} if told else set()

    @rule(file=INDEX)
    def publish(self, file: int) -> None:
        target = self.pick(file)
        if target == self.model.root or not self.model.links(target):
            return
        if target in self.model.published:
            return
        with self.db.write() as conn:
            made = links.make(conn, self.callers["anna"], target, MakeLink(), None, 1)
        self.model.published[target] = made[0].id

    @rule(number=INDEX)
    def withdraw(self, number: int) -> None:
        if self.model.published:
            target = list(self.model.published)[number % len(self.model.published)]
            with self.db.write() as conn:
                links.revoke(conn, self.callers["anna"], self.model.published.pop(target), 2)

    # --- what must hold ---

    @invariant()
    def everybody_has_their_role(self) -> None:
        with self.db.read() as conn:
            for who, caller in self.callers.items():
                for file in self.model.kinds:
                    assert access.role_of(conn, caller, file) == self.model.role(who, file)

    @invariant()
    def what_is_shared_is_listed(self) -> None:
        with self.db.read() as conn:
            for who in ("ben", "cleo"):
                shared = self.view(conn, who).shared
                granted = {f for f, to in self.model.grants if to == who and self.model.links(f)}
                assert {root.file.id for root in shared} == granted
                for root in shared:
                    outer = (self.model.above(root.file.id) - {root.file.id}) & granted
                    assert (root.name is None) == bool(outer)
                    if root.name is not None:  # two of one name are told apart by a number
                        told = self.model.told[root.file.id, who][1]
                        assert root.name.partition(" (")[0] == told

    @invariant()
    def names_are_the_models(self) -> None:
        table = schema.entries
        mine = schema.files.c.drive == self.callers["anna"].drive
        with self.db.read() as conn:
            found = conn.execute(
                select(table).join(schema.files, table.c.file == schema.files.c.id).where(mine)
            )
            assert {(row.parent, row.name): row.file for row in found} == self.model.entries
            for who in GRANTEES:
                account = self.callers[who].account
                by = conn.execute(select(table).where(table.c.made_by == account)).all()
                made = {at for at, (maker, _) in self.model.makers.items() if maker == who}
                assert {(row.parent, row.name) for row in by} == made

    @invariant()
    def versions_are_the_models(self) -> None:
        with self.db.read() as conn:
            table = schema.versions
            for file, versions in self.model.versions.items():
                rows = conn.execute(select(table).where(table.c.file == file)).all()
                assert {row.id for row in rows} == set(versions)
                current = conn.execute(
                    select(schema.files.c.version).where(schema.files.c.id == file)
                ).scalar()
                assert current == (versions[-1] if versions else None)
                open_ended = {row.id for row in rows if row.superseded_ns is None}
                assert open_ended == set(versions[-1:])

    @invariant()
    def feeds_tell_what_is_seen_and_nothing_else(self) -> None:
        now = {who: self.model.seen_by(who) for who in self.callers}
        with self.db.read() as conn:
            anna = self.callers["anna"]
            head = feed.head(conn, anna.drive).seq
            changed = schema.files.c.rev > self.head
            mine = schema.files.c.drive == anna.drive
            rows = {
                row.id: row for row in conn.execute(select(schema.files).where(mine, changed)).all()
            }
            for who in self.callers:
                self.check_feed(conn, who, now[who], rows)
        self.before, self.head = now, head

    def check_feed(self, conn, who: str, now: set[str], rows: dict) -> None:  # type: ignore[no-untyped-def, type-arg]
        page = feed.pull(conn, self.cursors, self.view(conn, who), self.at[who])
        assert not page.reset
        self.at[who] = page.cursor
        told = {record.id: record for change in page.changes for record in change.files}
        named = [entry for change in page.changes for entry in change.entries]
        if who == "anna":
            assert told.keys() == rows.keys()
            return
        for file, record in told.items():
            if record.links:
                assert file in now, "told of a file out of sight"
                assert record.rev == rows[file].rev
            else:
                assert (record.version, record.size, record.xattrs) == (None, 0, {}) or (
                    file in now or self.model.links(file) == 0
                )
        assert all(entry.parent in now for entry in named), "a name out of sight"
        stayed = self.before[who] & now
        missed = stayed & rows.keys() - told.keys()
        assert page.shared is not None or not missed, "a change in sight was not told"


GrantsMachine.TestCase.settings = settings(
    max_examples=amount(20, 2),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestGrants = GrantsMachine.TestCase


# --- the same rules, in walks that use names much -----------------------------------------------

WALKS, STEPS = 5, 80
WEIGHTS = {"link": 12, "move": 10, "exchange": 2, "create": 3, "unlink": 2, "share": 2}
WEIGHTS |= {"unshare": 1, "publish": 1, "withdraw": 1, "recover": 1}


class Walk(GrantsMachine):
    """From two folders that ben edits, one of which cleo knows a part of, with files in each."""

    def set_out(self) -> None:
        self.begin()
        root = self.model.root
        team, other = (self.put("anna", root, name, "directory") for name in "xy")
        deep, inner = (self.put("anna", team, name, "directory") for name in "xy")
        for place, to in ((team, "ben"), (other, "ben"), (deep, "cleo")):
            self.share("anna", self.number(place), to, "editor")
        for place in (team, other, deep, inner):
            for who in ("anna", "ben"):
                self.put(who, place, who, "file")

    def number(self, file: str) -> int:
        return list(self.model.kinds).index(file)

    def put(self, who: str, place: str, name: str, kind: str) -> str:
        self.create(who, self.number(place), name, kind)
        return self.model.entries[place, name]

    def places(self) -> list[str]:
        kinds = self.model.kinds
        return [item for item in kinds if kinds[item] == "directory" and self.model.links(item)]

    def walk(self, chance: random.Random) -> None:
        draw: dict[str, Callable[[], object]] = {
            "who": lambda: chance.choices(("anna", "ben", "cleo"), (4, 5, 1))[0],
            "to": lambda: chance.choice(GRANTEES),
            "role": lambda: chance.choice(("editor", "editor", "viewer")),
            "name": lambda: chance.choice("abcdefghijkl"),
            "kind": lambda: chance.choice(("file", "file", "directory")),
            "by": lambda: chance.random() < 0.9,
            "goal": lambda: self.number(chance.choice(self.places())),
            "parent": lambda: self.number(chance.choice(self.places())),
        }
        step = getattr(self, chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0])
        wanted = inspect.signature(step).parameters
        step(**{item: draw.get(item, lambda: chance.randrange(1000))() for item in wanted})
        self.everybody_has_their_role()
        self.names_are_the_models()
        self.feeds_tell_what_is_seen_and_nothing_else()


@pytest.mark.slow
def test_who_reaches_what_by_names_is_as_the_model_says() -> None:
    seen: set[str] = set()
    for seed in range(WALKS):
        walk, chance = Walk(), random.Random(seed)
        try:
            walk.set_out()
            for _ in range(STEPS):
                walk.walk(chance)
        finally:
            walk.teardown()
        seen |= walk.seen
    assert seen >= {"OtherReach", "a name went", "something remained"}
