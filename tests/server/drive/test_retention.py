"""Retention: what goes when, what never goes, and what a client hears of the feed's pruning.

On a real database with times that the tests choose, without HTTP.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, delete, func, insert, select, text, update

from remote.protocol import messages
from remote.protocol.content import EMPTY
from server.accounts import accounts, tokens
from server.changes import feed
from server.changes.views import view_of
from server.drive import commits, retention
from server.drive.retention import ANSWERS_NS, DAY_NS, Expired
from server.metadata import schema
from server.metadata.db import Database
from server.permissions.caller import Caller
from tests.amounts import amount

NOW = 1000 * DAY_NS
DAYS, VERSIONS = 30, 3
"""The server's limits in these tests."""
NUMBERS = itertools.count(1)


@dataclass
class Drive:
    """One account with a device that works at any time."""

    db: Database
    caller: Caller
    root: str
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def fresh(self) -> str:
        return f"{next(self.numbers):08x}{self.caller.device[8:]}"

    def do(self, *ops: messages.Op, at: int) -> list[messages.Change]:
        keyed = [messages.Keyed(key=self.fresh(), op=op) for op in ops]
        with self.db.write() as conn:
            results, _ = commits.apply(conn, self.caller, keyed, at)
        assert all(isinstance(item, messages.Applied) for item in results), results
        return [item.change for item in results if isinstance(item, messages.Applied)]

    def make(self, name: str, parent: str | None = None, *, at: int, kind: Any = "file") -> str:
        file = self.fresh()
        content = messages.Content(version=self.fresh(), manifest=EMPTY) if kind == "file" else None
        op = messages.Create(
            file=file,
            parent=parent or self.root,
            name=name,
            kind=kind,
            mode=0o644,
            mtime_ns=1,
            content=content,
        )
        self.do(op, at=at)
        return file

    def write(self, file: str, *times: int) -> list[str]:
        """A new version at each of these times."""
        made = []
        with self.db.write() as conn:
            for at in times:
                content = messages.Content(version=self.fresh(), manifest=EMPTY)
                op = messages.Write(file=file, content=content, mtime_ns=1)
                commits.apply(conn, self.caller, [messages.Keyed(key=self.fresh(), op=op)], at)
                made.append(content.version)
        return made

    def remove(self, file: str, name: str, *, at: int) -> None:
        self.do(messages.Unlink(file=file, parent=self.root, name=name), at=at)

    def versions(self, file: str) -> list[str]:
        """Newest first."""
        table = schema.versions
        query = select(table.c.id).where(table.c.file == file)
        with self.db.read() as conn:
            return list(conn.execute(query.order_by(table.c.created_ns.desc())).scalars())

    def limit(self, **values: int | None) -> None:
        """Give the account limits of its own."""
        own = schema.accounts.c.id == self.caller.account
        with self.db.write() as conn:
            conn.execute(update(schema.accounts).where(own).values(**values))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "db.sqlite")
    database.migrate()
    yield database
    database.close()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """For a test that brings a new account every time."""
    database = Database(tmp_path_factory.mktemp("lasting") / "db.sqlite")
    database.migrate()
    yield database
    database.close()


def account(db: Database, name: str) -> Drive:
    with db.write() as conn:
        accounts.insert_account(conn, name, "none", 1)
        owner = select(schema.accounts.c.id).where(schema.accounts.c.name == name)
        query = select(schema.drives).where(schema.drives.c.owner == owner.scalar_subquery())
        row = conn.execute(query).one()
        _, device = tokens.new_device(conn, row.owner, "d", 1)
    return Drive(db, Caller(row.owner, name, device, "full", row.id), row.root)


@pytest.fixture
def anna(db: Database) -> Drive:
    return account(db, "anna")


@pytest.fixture
def ben(db: Database) -> Drive:
    return account(db, "ben")


def expire(db: Database, now_ns: int = NOW, limit: int = 1000) -> Expired:
    """Expire; as much goes as a dry run says beforehand, if there is no limit in the way."""
    with db.read() as conn:
        would = retention.would_expire(conn, now_ns, DAYS, VERSIONS)
    with db.write() as conn:
        did = retention.expire(conn, now_ns, DAYS, VERSIONS, limit)
    if limit == 1000:
        assert did == would
    return did


def prune(db: Database, now_ns: int = NOW, keep_ns: int = 30 * DAY_NS, limit: int = 1000) -> int:
    with db.write() as conn:
        return retention.prune_feed(conn, now_ns, keep_ns, limit)


def rows(db: Database, table: Table, **where: object) -> list[Any]:
    query = select(table)
    for column, value in where.items():
        query = query.where(table.c[column] == value)
    with db.read() as conn:
        return list(conn.execute(query).all())


def days_ago(days: float) -> int:
    return NOW - int(days * DAY_NS)


# --- versions -----------------------------------------------------------------------------------


def test_old_versions_beyond_the_newest_go(anna: Drive) -> None:
    file = anna.make("a", at=days_ago(100))
    made = anna.write(file, *[days_ago(100 - number) for number in range(1, 6)])
    assert expire(anna.db) == Expired(3, 0, False)
    assert anna.versions(file) == made[:1:-1]
    assert expire(anna.db) == Expired(0, 0, False)


def test_a_version_that_was_current_lately_stays(anna: Drive) -> None:
    file = anna.make("a", at=days_ago(100))
    anna.write(file, *map(days_ago, (99, 29, 28, 27, 26)))
    # The first was overwritten 99 days ago; the second was current until 29 days ago.
    assert expire(anna.db) == Expired(1, 0, False)
    assert len(anna.versions(file)) == 5
    assert expire(anna.db, NOW + 3 * DAY_NS) == Expired(2, 0, False)


def test_the_current_version_never_goes(anna: Drive) -> None:
    anna.limit(keep_days=0, keep_versions=0)
    file = anna.make("a", at=days_ago(100))
    current = anna.write(file, days_ago(99))
    assert expire(anna.db) == Expired(1, 0, False)
    assert anna.versions(file) == current
    assert expire(anna.db, NOW + 1000 * DAY_NS) == Expired(0, 0, False)


def test_what_is_current_stays_whatever_else_is_said_of_it(anna: Drive) -> None:
    """Even where the note of when it was overwritten is wrong."""
    file = anna.make("a", at=days_ago(100))
    made = anna.write(file, *[days_ago(90 - number) for number in range(5)])
    with anna.db.write() as conn:
        conn.execute(update(schema.files).where(schema.files.c.id == file).values(version=made[0]))
    expire(anna.db)
    assert made[0] in anna.versions(file)


def test_each_account_has_its_limits(anna: Drive, ben: Drive) -> None:
    made = {}
    for drive in (anna, ben):
        made[drive.root] = drive.make("a", at=days_ago(100))
        drive.write(made[drive.root], *[days_ago(90 - number) for number in range(9)])
    ben.limit(keep_versions=5)
    assert expire(anna.db) == Expired(7 + 5, 0, False)
    ben.limit(keep_versions=1, keep_days=1000)
    assert expire(anna.db) == Expired(0, 0, False)
    ben.limit(keep_versions=1, keep_days=1_000_000)  # not so long that numbers overflow
    assert expire(anna.db, NOW + 1000 * DAY_NS) == Expired(0, 0, False)
    ben.limit(keep_versions=1, keep_days=None)
    assert expire(anna.db) == Expired(4, 0, False)
    assert (len(anna.versions(made[anna.root])), len(ben.versions(made[ben.root]))) == (3, 1)


def test_versions_go_in_steps(anna: Drive) -> None:
    files = [anna.make(name, at=days_ago(100)) for name in "ab"]
    for file in files:
        anna.write(file, *[days_ago(90 - number) for number in range(7)])
    assert [expire(anna.db, limit=4) for _ in range(4)] == [
        Expired(4, 0, True),
        Expired(4, 0, True),
        Expired(2, 0, False),
        Expired(0, 0, False),
    ]


def test_a_version_that_two_files_share_is_let_go_of_with_the_second(anna: Drive) -> None:
    """Its chunks are referred to as long as one of the files has it in its history."""
    file, temporary = anna.make("a", at=days_ago(100)), anna.make("new", at=days_ago(100))
    version = anna.versions(temporary)[0]
    chunk = {"drive": anna.caller.drive, "id": b"c" * 32, "state": "uploaded", "length": 1}
    more = {"stored_length": 1, "sha256": b"s" * 32, "descriptor": b"", "created_ns": 1}
    with anna.db.write() as conn:
        conn.execute(insert(schema.chunks), chunk | more)
        reference = {"version": version, "drive": anna.caller.drive, "chunk": b"c" * 32}
        conn.execute(insert(schema.version_chunks), reference)
    op = messages.Replace(
        file=temporary,
        parent=anna.root,
        name="new",
        new_parent=anna.root,
        new_name="a",
        target=file,
    )
    anna.do(op, at=days_ago(90))
    assert expire(anna.db) == Expired(0, 1, False)
    assert len(rows(anna.db, schema.version_chunks, version=version)) == 1
    anna.write(file, *[days_ago(80 - number) for number in range(3)])
    assert expire(anna.db) == Expired(2, 0, False)
    assert rows(anna.db, schema.version_chunks, version=version) == []


@given(
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    keep_days=st.integers(0, 60),
    keep_versions=st.integers(0, 6),
)
@settings(max_examples=amount(40, 10), deadline=None)
def test_versions_against_the_rule_in_words(
    lasting: Database, gaps: list[int], keep_days: int, keep_versions: int
) -> None:
    anna = account(lasting, f"anna-{next(NUMBERS)}")
    anna.limit(keep_days=keep_days, keep_versions=keep_versions)
    times = [days_ago(sum(gaps[index:]) + 0.5) for index in range(len(gaps))]
    file = anna.make("a", at=times[0])
    made = [*anna.versions(file), *anna.write(file, *times[1:])]
    kept = []
    for index, version in enumerate(made):
        is_current = index == len(made) - 1
        newer = len(made) - 1 - index
        if is_current or newer < keep_versions or NOW - times[index + 1] <= keep_days * DAY_NS:
            kept.append(version)
    expire(lasting)
    assert set(anna.versions(file)) == set(kept)


# --- the trash ----------------------------------------------------------------------------------


def test_the_trash_goes_when_its_time_has_come(anna: Drive, ben: Drive) -> None:
    ben.limit(keep_days=60)
    for drive in (anna, ben):
        for name, day in (("old", 40), ("young", 20)):
            file = drive.make(name, at=days_ago(100))
            drive.write(file, days_ago(99))
            drive.remove(file, name, at=days_ago(day))
        drive.make("kept", at=days_ago(100))
    assert expire(anna.db) == Expired(0, 1, False)
    assert len(rows(anna.db, schema.versions, drive=anna.caller.drive)) == 3
    assert len(rows(anna.db, schema.files, drive=anna.caller.drive)) == 3
    assert len(rows(anna.db, schema.files, drive=ben.caller.drive)) == 4
    assert expire(anna.db, NOW + 100 * DAY_NS) == Expired(0, 3, False)


def test_the_trash_goes_in_steps(anna: Drive) -> None:
    folder = anna.make("d", at=days_ago(100), kind="directory")
    for name in "abcd":
        file = anna.make(name, folder, at=days_ago(100))
        anna.do(messages.Unlink(file=file, parent=folder, name=name), at=days_ago(50))
    anna.remove(folder, "d", at=days_ago(50))
    steps = [expire(anna.db, limit=2) for _ in range(3)]
    assert steps == [Expired(0, 2, True), Expired(0, 2, True), Expired(0, 1, False)]
    assert [row.id for row in rows(anna.db, schema.files)] == [anna.root]


def test_what_went_is_in_the_audit_log(anna: Drive, ben: Drive) -> None:
    for drive in (anna, ben):
        file = drive.make("a", at=days_ago(100))
        drive.write(file, *map(days_ago, (90, 89, 88, 87)))
        drive.remove(drive.make("b", at=days_ago(100)), "b", at=days_ago(50))
    expire(anna.db)
    expire(anna.db)  # nothing to say
    found = [
        (row.action, row.subject, row.account, msgspec.json.decode(row.detail))
        for row in rows(anna.db, schema.audit, at_ns=NOW)
    ]
    assert sorted(found, key=str) == sorted(
        [("versions_expire", drive.caller.account, None, {"versions": 2}) for drive in (anna, ben)]
        + [("trash_expire", drive.caller.account, None, {"files": 1}) for drive in (anna, ben)],
        key=str,
    )


def test_the_trash_is_found_by_its_index(db: Database) -> None:
    """Otherwise every file of the server would be looked at."""
    with db.read() as conn:
        query = "EXPLAIN QUERY PLAN SELECT id FROM files WHERE drive = 'd' AND trashed_ns < 5"
        assert "ix_files_trash" in str(conn.execute(text(query)).all())


# --- the feed -----------------------------------------------------------------------------------

SECRET = b"s"


def pull(drive: Drive, cursor: str | None) -> messages.ChangesPage:
    with drive.db.read() as conn:
        return feed.pull(conn, feed.Cursors(SECRET), view_of(conn, drive.caller), cursor)


def floor(drive: Drive) -> int:
    (row,) = rows(drive.db, schema.drives, id=drive.caller.drive)
    return int(row.floor_seq)


def share(by: Drive, file: str, to: Drive) -> None:
    row = {"file": file, "account": to.caller.account, "role": "editor"}
    with by.db.write() as conn:
        conn.execute(insert(schema.grants), row | {"granted_by": by.caller.account, "at_ns": 1})


def test_old_changes_go_and_what_follows_is_complete(anna: Drive) -> None:
    before = pull(anna, None).cursor
    for number, day in enumerate((90, 80, 40)):
        anna.make(f"{number}", at=days_ago(day))
    at_floor = pull(anna, None).cursor
    young = [anna.make(f"young{number}", at=days_ago(20 - number)) for number in range(2)]
    assert prune(anna.db) == 3
    assert prune(anna.db) == 0
    assert floor(anna) == 3
    assert [row.seq for row in rows(anna.db, schema.changes)] == [4, 5]
    page = pull(anna, at_floor)
    assert not page.reset
    assert [{f.id for f in c.files} - {anna.root} for c in page.changes] == [{f} for f in young]
    assert pull(anna, before).reset


def test_a_quiet_drive_is_pruned_to_the_end_and_goes_on(anna: Drive) -> None:
    anna.make("a", at=days_ago(90))
    cursor = pull(anna, None).cursor
    assert prune(anna.db) == 1
    assert pull(anna, cursor) == messages.ChangesPage(cursor=cursor, seq=1, changes=[])
    anna.make("b", at=days_ago(50))
    assert len(pull(anna, cursor).changes) == 1


def test_a_clock_that_was_set_back_leaves_no_gap(anna: Drive) -> None:
    for number, day in enumerate((90, 10, 80)):
        anna.make(f"{number}", at=days_ago(day))
    assert prune(anna.db) == 1
    assert [row.seq for row in rows(anna.db, schema.changes)] == [2, 3]
    assert floor(anna) == 1


def test_the_feed_is_pruned_in_steps(anna: Drive, ben: Drive) -> None:
    for drive in (anna, ben):
        for number in range(5):
            drive.make(f"{number}", at=days_ago(90 - number))
    assert [prune(anna.db, limit=4) for _ in range(4)] == [4, 4, 2, 0]
    assert (floor(anna), floor(ben)) == (5, 5)


def test_who_sees_a_quiet_part_of_a_drive_is_not_reset(anna: Drive, ben: Drive) -> None:
    """Ben's position is that of the last change he saw, far below the floor of Anna's drive."""
    folder = anna.make("folder", at=days_ago(100), kind="directory")
    share(anna, folder, ben)
    for name, day in (("a", 99), ("b", 98)):
        anna.make(name, folder, at=days_ago(day))
    long_ago = pull(ben, pull(ben, None).cursor).cursor
    anna.make("c", folder, at=days_ago(97))
    knows_all = pull(ben, long_ago).cursor
    for number in range(5):
        anna.make(f"{number}", at=days_ago(80))
    prune(anna.db)
    assert floor(anna) == 9
    topic = f"grant/{anna.caller.drive}/{folder}"
    assert [row.seq for row in rows(anna.db, schema.changes, topic=topic)] == [4]
    page = pull(ben, knows_all)
    assert (page.reset, page.changes, page.cursor) == (False, [], knows_all)
    assert pull(ben, long_ago).reset
    file = anna.make("d", folder, at=days_ago(1))
    for _ in range(2):
        (change,) = pull(ben, knows_all).changes
        assert file in {record.id for record in change.files}
        assert prune(anna.db, now_ns=NOW + DAY_NS) == 0
    assert prune(anna.db, now_ns=NOW + 100 * DAY_NS) > 0
    assert [row.seq for row in rows(anna.db, schema.changes, topic=topic)] == [10]
    assert pull(ben, knows_all).reset


def test_pruning_below_a_young_change_of_a_part_resets_who_missed_one(
    anna: Drive, ben: Drive
) -> None:
    folder = anna.make("folder", at=days_ago(100), kind="directory")
    share(anna, folder, ben)
    early = pull(ben, None).cursor
    anna.make("a", folder, at=days_ago(99))
    cursor = pull(ben, early).cursor
    anna.make("b", at=days_ago(80))
    file = anna.make("c", folder, at=days_ago(1))
    prune(anna.db)
    assert floor(anna) == 3
    (change,) = pull(ben, cursor).changes
    assert file in {record.id for record in change.files}
    assert pull(ben, early).reset


def test_pruning_parts_uses_their_index(db: Database) -> None:
    with db.read() as conn:
        query = f"EXPLAIN QUERY PLAN DELETE FROM changes WHERE {schema.OF_A_PART}"
        plan = conn.execute(text(f"{query} AND drive = 'd' AND seq <= 5")).all()
    assert "ix_changes_parts" in str(plan)


def test_a_change_missing_at_the_floor_stops_the_pruning(anna: Drive) -> None:
    """Faults of the data are not made worse."""
    for number in range(3):
        anna.make(f"{number}", at=days_ago(90))
    with anna.db.write() as conn:
        conn.execute(delete(schema.changes).where(schema.changes.c.seq == 1))
    assert prune(anna.db) == 0
    assert floor(anna) == 0


def test_answers_go_after_ninety_days(anna: Drive) -> None:
    old, young = NOW - ANSWERS_NS - 1, NOW - ANSWERS_NS
    for number in range(5):
        anna.make(f"old{number}", at=old - number)
    anna.make("young", at=young)
    assert [prune(anna.db, keep_ns=NOW, limit=2) for _ in range(4)] == [2, 2, 1, 0]
    with anna.db.read() as conn:
        assert conn.execute(select(func.count()).select_from(schema.idempotency)).scalar() == 1
