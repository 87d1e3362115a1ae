"""A batch of operations is as good as its operations one by one: the same answers, the same rows,
the same feed, whatever they are and whoever sends them.

The rows that a batch works on are read and written in sets (`drive.working_set`); here each example
is done once one operation at a time, and once, on a copy of the database, in batches.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, update

from remote.protocol import errors, messages
from remote.protocol.content import EMPTY, Manifest, Piece
from server.accounts import accounts, tokens
from server.drive import commits, working_set
from server.metadata import schema
from server.metadata.db import Database
from server.permissions.caller import Caller
from server.uploads import sessions
from server.uploads.quota import Budget, Limits
from tests.amounts import amount
from tests.server.copies import FILE, copied, rows_of, statements
from tests.server.harness import Chunk, make_chunk, noise
from tests.server.lookups import steps_of

NAMES = ["a", "b", "c", "d"]
PUT = messages.PresignedPut(url="/", headers={}, expires_ns=0)
NOW = 1000


class Place(NamedTuple):
    """A database that examples begin with, and who may write to it."""

    folder: Path
    root: str
    callers: dict[str, Caller]
    chunks: list[Chunk]
    versions: list[str]
    """With a session of the owner's that leases every chunk."""


def fresh() -> str:
    return f"{next(_numbers):032x}"


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tree with a directory that ben edits, one that a token is for, and one with a link; chunks
    that are there, doomed and awaited."""
    folder = tmp_path_factory.mktemp("batches")
    db = Database(folder / FILE)
    db.migrate()
    with db.write() as conn:
        accounts.insert_account(conn, "anna", "none", 1)
        accounts.insert_account(conn, "ben", "none", 1)
        rows = {row.owner: row for row in conn.execute(select(schema.drives))}
        anna, ben = (accounts.find_account(conn, name) for name in ("anna", "ben"))
        assert anna is not None
        assert ben is not None
        _, laptop = tokens.new_device(conn, anna[0], "laptop", 1)
        _, bens = tokens.new_device(conn, ben[0], "laptop", 1)
    drive, root = rows[anna[0]].id, rows[anna[0]].root
    owner = Caller(anna[0], "anna", laptop, "full", drive)
    shared, scoped, linked = fresh(), fresh(), fresh()
    made = [
        create(root, name, id, "directory")
        for name, id in zip("abc", (shared, scoped, linked), strict=True)
    ]
    made += [create(item, "a", fresh()) for item in (root, shared, scoped, linked)][1:]
    made.append(create(shared, "b", fresh(), "directory"))
    stored = [make_chunk(noise(100 + number, "batches")) for number in range(4)]
    uploads = [fresh() for _ in range(3)]
    with db.write() as conn:
        results, _ = commits.apply(conn, owner, [keyed(op) for op in made], 1)
        assert all(isinstance(item, messages.Applied) for item in results)
        _, token = tokens.new_device(conn, anna[0], "script", 1, folder=scoped)
        grant = {"file": shared, "account": ben[0], "role": "editor", "granted_by": anna[0]}
        conn.execute(insert(schema.grants), grant | {"at_ns": 1, "place": root, "name": "a"})
        link = {"id": fresh(), "secret_sha256": bytes(32), "file": linked, "drive": drive}
        link |= {"created_by": anna[0], "created_ns": 1, "downloads": 0}
        conn.execute(insert(schema.links), link | {"place": root, "name": "c"})
        budget = Budget(conn, owner, Limits(1 << 40, 1 << 20))
        for version in uploads:
            wanted = messages.StartUpload(
                version=version, file=fresh(), descriptors=[item.descriptor for item in stored]
            )
            sessions.start(conn, owner, wanted, sessions.Terms(10**9, budget, lambda *_: PUT), 1)
        for chunk, state in zip(stored, ("uploaded", "uploaded", "doomed", "pending"), strict=True):
            mine = schema.chunks.c.id == chunk.id
            conn.execute(update(schema.chunks).where(mine).values(state=state))
    db.close()
    callers = {
        "anna": owner,
        "ben": Caller(ben[0], "ben", bens, "full", rows[ben[0]].id),
        "token": Caller(anna[0], "anna", token, "full", drive, folder=scoped),
    }
    return Place(folder, root, callers, stored, uploads)


def create(
    parent: str,
    name: str,
    file: str,
    kind: Any = "file",
    content: messages.Content | None = None,
    **more: Any,
) -> messages.Create:
    if kind == "file" and content is None:
        content = messages.Content(version=fresh(), manifest=EMPTY)
    fields = {"mode": 0o644, "mtime_ns": 5} | more
    return messages.Create(
        file=file, parent=parent, name=name, kind=kind, content=content, **fields
    )


def keyed(op: messages.Op) -> messages.Keyed:
    return messages.Keyed(key=fresh(), op=op)


# --- operations that are mostly right -----------------------------------------------------------


class Drawn:
    """Makes operations up, of what the database has by now."""

    def __init__(self, db: Database, place: Place, data: st.DataObject) -> None:
        self.place, self.data = place, data
        with db.read() as conn:
            drive = schema.files.c.drive == place.callers["anna"].drive
            files = conn.execute(
                select(schema.files).where(drive).order_by(schema.files.c.id)
            ).all()
            by_name = (schema.entries.c.parent, schema.entries.c.name)
            self.entries = conn.execute(select(schema.entries).order_by(*by_name)).all()
            known = select(schema.versions.c.id).order_by(schema.versions.c.id)
            self.versions = list(conn.execute(known).scalars())
        self.ids = [row.id for row in files]
        self.directories = [row.id for row in files if row.kind == "directory"]
        self.regular = [row.id for row in files if row.kind == "file"]

    def one(self, items: Any) -> Any:
        return self.data.draw(st.sampled_from(list(items)))

    def likely(self, items: Any, other: Any) -> Any:
        """One of `items`, or now and then of `other`."""
        return self.one(items if items and self.data.draw(st.integers(0, 9)) else other)

    def entry(self) -> tuple[str, str, str]:
        row = self.one(self.entries)
        return row.parent, row.name, self.likely([row.file], self.ids)

    def new_id(self) -> str:
        return str(self.likely([fresh()], self.ids))

    def there(self) -> tuple[str, str]:
        return self.likely(self.directories, self.ids), self.name()

    def name(self) -> str:
        return str(self.likely(NAMES, ["", "..", "a/b", "a\0", "é" * 200, "n" * 255]))

    def content(self) -> messages.Content:
        chunks = self.data.draw(st.lists(st.sampled_from(self.place.chunks[:3]), max_size=3))
        chunks = self.likely([chunks], [self.place.chunks])
        pieces = [Piece(item.id, item.descriptor.length) for item in chunks]
        manifest = Manifest(sum(item.length for item in pieces), 1 << 20, pieces)
        version = self.one([fresh(), self.one(self.place.versions), self.one(self.versions)])
        return messages.Content(version=version, manifest=manifest, base=self.one(self.versions))

    def op(self) -> messages.Op:
        make = self.one(
            [self.create, self.create, self.mkdir, self.write, self.unlink, self.rename]
            + [self.link, self.setattr, self.setxattr, self.replace, self.exchange, self.retake]
            + [self.revert, self.recover]
        )
        return make()  # type: ignore[no-any-return]  # one of these

    def create(self) -> messages.Op:
        parent, name = self.there()
        more: dict[str, Any] = {"xattrs": self.one([{}, {"user.b": b"2", "user.a": b"1"}])}
        if self.data.draw(st.booleans()):
            return create(parent, name, self.new_id(), content=self.content(), **more)
        return create(parent, name, self.new_id(), "symlink", target=self.one(["x", "x\0"]), **more)

    def mkdir(self) -> messages.Op:
        return create(*self.there(), self.new_id(), "directory")

    def write(self) -> messages.Op:
        file = self.likely(self.regular, self.ids)
        return messages.Write(file=file, content=self.content(), mtime_ns=self.one([7, 1 << 70]))

    def unlink(self) -> messages.Op:
        parent, name, file = self.entry()
        return messages.Unlink(file=file, parent=parent, name=name)

    def rename(self) -> messages.Op:
        parent, name, file = self.entry()
        new, seen = self.there(), None
        if self.data.draw(st.booleans()):
            *over, seen = self.entry()
            new = over[0], over[1]
        return messages.Rename(
            file=file, parent=parent, name=name, new_parent=new[0], new_name=new[1], replaces=seen
        )

    def link(self) -> messages.Op:
        parent, name = self.there()
        return messages.Link(file=self.likely(self.regular, self.ids), parent=parent, name=name)

    def setattr(self) -> messages.Op:
        return messages.SetAttr(file=self.one(self.ids), mode=self.likely([0o600], [1 << 20]))

    def setxattr(self) -> messages.Op:
        name, value = self.one(["user.a", "user.c", ""]), self.one([b"v", b"", None, bytes(70_000)])
        return messages.SetXattr(file=self.one(self.ids), name=name, value=value)

    def replace(self) -> messages.Op:
        (parent, name, file), (there, over, target) = self.entry(), self.entry()
        return messages.Replace(
            file=file, parent=parent, name=name, new_parent=there, new_name=over, target=target
        )

    def exchange(self) -> messages.Op:
        (parent, name, file), (there, over, other) = self.entry(), self.entry()
        return messages.Exchange(
            file=file, parent=parent, name=name, other=other, other_parent=there, other_name=over
        )

    def retake(self) -> messages.Op:
        parent, name, file = self.entry()
        return messages.Retake(
            file=file, parent=parent, name=name, new_name=self.name(), backup=self.new_id()
        )

    def revert(self) -> messages.Op:
        new = self.likely([fresh()], self.versions)
        file, version = self.likely(self.regular, self.ids), self.one(self.versions)
        return messages.Revert(file=file, version=version, as_version=new, mtime_ns=3)

    def recover(self) -> messages.Op:
        parent, name = self.one([(None, None), self.there()])
        return messages.Recover(file=self.one(self.ids), parent=parent, name=name)


# --- the same -----------------------------------------------------------------------------------

HOW = settings(
    deadline=None,
    max_examples=amount(40, 5),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("who", ["anna", "ben", "token"])
@given(data=st.data())
@HOW
def test_a_batch_is_its_operations_one_by_one(place: Place, who: str, data: st.DataObject) -> None:
    caller, count = place.callers[who], data.draw(st.integers(1, 25))
    sizes = data.draw(st.lists(st.integers(1, 25), min_size=count, max_size=count))
    ops: list[messages.Keyed] = []
    answers: list[commits.Result] = []
    with copied(place.folder) as one, copied(place.folder) as many:
        batches = iter(sizes)
        put_off, left = set[str](), next(batches)
        for _ in range(count):
            op = Drawn(one, place, data).op()
            if not put_off.isdisjoint(working_set.operations.named(op)):
                continue  # would be put off in a batch, and is another test's
            answer = apply(one, caller, [keyed_op := keyed(op)])[0]
            ops.append(keyed_op)
            answers.append(answer)
            if isinstance(answer, errors.ChunksMissing):
                put_off.add(op.file)
        at = 0
        for size in (left, *batches):
            if at < len(ops):
                assert apply(many, caller, ops[at : at + size]) == answers[at : at + size]
                at += size
        assert rows_of(many) == rows_of(one)


def apply(db: Database, caller: Caller, ops: list[messages.Keyed]) -> list[commits.Result]:
    with db.write() as conn:
        results, _ = commits.apply(conn, caller, ops, NOW)
    return results


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_batch_goes_on_after_what_was_read_ahead(
    place: Place, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    monkeypatch.setattr(commits, "AHEAD_FIRST", 1)
    monkeypatch.setattr(commits, "AHEAD", ahead)
    caller, folder = place.callers["anna"], fresh()
    ops = [create(place.root, "new", folder, "directory")]
    ops += [create(folder, f"n{number}", fresh()) for number in range(7)]
    with copied(place.folder) as db:
        results = apply(db, caller, [keyed(op) for op in ops])
        assert all(isinstance(item, messages.Applied) for item in results)
        with db.read() as conn:
            named = select(schema.entries.c.name).where(schema.entries.c.parent == folder)
            assert len(conn.execute(named).all()) == 7


# --- how much is asked --------------------------------------------------------------------------


def test_files_in_bulk_cost_few_statements(place: Place) -> None:
    """A batch costs what it costs; a file of it next to nothing."""
    caller, chunk = place.callers["anna"], place.chunks[0]
    piece = Piece(chunk.id, chunk.descriptor.length)
    asked = []
    for count in (10, 50, 150):
        manifest = Manifest(piece.length, 1 << 20, [piece])
        contents = [messages.Content(version=fresh(), manifest=manifest) for _ in range(count)]
        ops = [
            create(place.root, f"n{at}", fresh(), content=each) for at, each in enumerate(contents)
        ]
        with copied(place.folder) as db, statements(db) as found:
            results = apply(db, caller, [keyed(op) for op in ops])
        assert all(isinstance(each, messages.Applied) for each in results)
        asked.append(len(found))
    assert asked[1] == asked[0] <= 40
    assert asked[2] <= 2 * asked[0]


@pytest.mark.slow
def test_what_is_read_ahead_does_not_depend_on_how_much_there_is(place: Place) -> None:
    caller, taken = place.callers["anna"], []
    row = {"drive": caller.drive, "kind": "fifo", "mode": 0, "uid": 0, "gid": 0, "links": 1}
    row |= {"size": 0, "rdev": 0, "rev": 0, "mtime_ns": 1, "ctime_ns": 1}
    more = [(fresh(), f"other {number}") for number in range(3000)]
    folder = fresh()
    ops = [create(place.root, "new", folder, "directory"), create(folder, "n", fresh())]
    ops += [create(place.root, f"n{number}", fresh()) for number in range(5)]
    move = messages.Rename(
        file=folder, parent=place.root, name="new", new_parent=place.root, new_name="newer"
    )
    for others in ([], more):
        with copied(place.folder) as db, db.write() as conn:
            for file, name in others:
                conn.execute(insert(schema.files), row | {"id": file})
                entry = {"parent": place.root, "name": name, "file": file, "rev": 1}
                conn.execute(insert(schema.entries), entry)
            keys = [keyed(op) for op in (*ops, move)]
            taken.append(steps_of(conn, partial(commits.apply, conn, caller, keys, NOW)))
    assert taken[1] <= taken[0] + 20
