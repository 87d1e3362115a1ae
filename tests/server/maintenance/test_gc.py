"""Garbage collection, case by case: what goes, what stays, and when."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update

from remote.protocol.errors import ChunksMissing, UploadUnknown
from remote.protocol.messages import Applied, Content, UploadState
from remote.protocol.signing import LONGEST_SECONDS
from server.maintenance import fsck, gc, lock
from server.maintenance.gc_chunks import DAY, GRACE_NS, Collected, Options, Verdict, verdict
from server.metadata import schema
from server.metadata.db import Database
from server.storage.blobs import BlobKey, LocalBlobStore
from tests.server.conftest import Start
from tests.server.deleting import forget, unlink
from tests.server.harness import (
    Chunk,
    Client,
    Failed,
    Running,
    make_chunk,
    manifest_of,
    new_id,
    noise,
)
from tests.server.lookups import until_verified

HOUR = 3600 * 10**9
NOW = 10**18


# --- what a state asks for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "held", "age_ns", "expected"),
    [
        ("pending", False, GRACE_NS, Verdict.DROP),
        ("pending", False, GRACE_NS - 1, None),
        ("pending", True, 90 * DAY, None),
        ("uploaded", False, 0, Verdict.DOOM),
        ("uploaded", True, 90 * DAY, None),
        ("doomed", False, GRACE_NS, Verdict.DELETE),
        ("doomed", False, GRACE_NS - 1, None),
        ("doomed", True, 90 * DAY, Verdict.REVIVE),
        ("deleting", False, 0, Verdict.FINISH),
    ],
)
@pytest.mark.parametrize("by", ["referenced", "leased"])
def test_the_verdict(
    state: str, held: bool, age_ns: int, expected: Verdict | None, by: str
) -> None:
    chunk = SimpleNamespace(
        state=state,
        referenced=held and by == "referenced",
        leased=held and by == "leased",
        created_ns=NOW - age_ns,
        doomed_ns=NOW - age_ns,
    )
    assert verdict(chunk, NOW, GRACE_NS) is expected


def test_what_is_being_deleted_and_referred_to_is_left_for_fsck() -> None:
    chunk = SimpleNamespace(state="deleting", referenced=True, leased=False)
    assert verdict(chunk, NOW, GRACE_NS) is None


def test_the_grace_outlives_every_signed_url() -> None:
    assert GRACE_NS > LONGEST_SECONDS * 10**9


# --- beside a server ----------------------------------------------------------------------------


class World:
    """A server of its own, and a collector with a clock that can be moved."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.db, self.blobs = running.app.service.db, running.app.service.blobs
        self.anna = running.account("anna")
        self.later_ns = 0

    def clock(self) -> int:
        return time.time_ns() + self.later_ns

    def collect(self, **options: Any) -> Collected:
        return gc.run(self.db, self.blobs, Options(**options), clock=self.clock)

    def steps(self) -> Iterator[None]:
        return gc.steps(self.db, self.blobs, Options(), Collected(), self.clock)

    def states(self) -> list[str]:
        with self.db.read() as conn:
            return sorted(conn.execute(select(schema.chunks.c.state)).scalars())

    def sums(self) -> tuple[int, int]:
        me = self.anna.refresh()
        return me.used_bytes, me.reserved_bytes

    def key(self, chunk: Any) -> BlobKey:
        return BlobKey(self.anna.me.drive, chunk.id)


@pytest.fixture
def world(start: Start) -> World:
    return World(start(collect_seconds=0))


CHUNK = make_chunk(noise(1000, "chunk"))
OTHER = make_chunk(noise(500, "other"))


def test_what_is_referred_to_stays(world: World) -> None:
    world.anna.store("a", CHUNK)
    world.later_ns = 2 * DAY
    assert world.collect().is_nothing()
    assert world.states() == ["uploaded"]
    unlink(world.anna, "a")
    assert world.collect().is_nothing(), "the trash refers to it"


def test_what_nobody_refers_to_is_doomed_and_then_deleted(world: World) -> None:
    world.anna.store("a", CHUNK)
    world.anna.store("b", OTHER)
    forget(world.anna, "a")
    first = world.collect()
    assert (first.doomed, first.doomed_bytes, first.deleted) == (1, 1000, 0)
    assert world.sums() == (1500, 0), "it still takes room"
    assert world.collect().is_nothing()
    world.later_ns = GRACE_NS
    second = world.collect()
    assert (second.doomed, second.deleted, second.deleted_bytes) == (0, 1, 1000)
    assert world.states() == ["uploaded"]
    assert list(world.blobs.keys()) == [world.key(OTHER)]
    assert world.sums() == (500, 0)


def test_no_option_makes_the_grace_shorter(world: World) -> None:
    world.anna.store("a", CHUNK)
    forget(world.anna, "a")
    for _ in range(3):
        world.collect(grace_ns=0)
    assert world.states() == ["doomed"]


def test_a_doomed_chunk_comes_back_with_a_lease(world: World) -> None:
    world.anna.store("a", CHUNK)
    forget(world.anna, "a")
    world.collect()
    assert world.anna.upload(new_id(), new_id(), CHUNK) == 0, "nothing has to be sent"
    world.later_ns = GRACE_NS
    assert world.collect().deleted == 0
    assert world.states() == ["uploaded"]


def deleting(world: World) -> Iterator[None]:
    """A collector that has just decided to delete `CHUNK`."""
    world.anna.store("a", CHUNK)
    forget(world.anna, "a")
    world.collect()
    world.later_ns = GRACE_NS
    steps = world.steps()
    while world.states() != ["deleting"]:
        next(steps)
    return steps


def test_a_deletion_that_crashed_is_finished(world: World) -> None:
    deleting(world)  # and given up
    assert world.blobs.has(world.key(CHUNK))
    world.collect()
    assert (world.states(), list(world.blobs.keys())) == ([], [])
    assert world.sums() == (0, 0)


def test_an_upload_during_a_deletion_sends_the_bytes_again(world: World) -> None:
    steps = deleting(world)
    anna, version, file = world.anna, new_id(), new_id()
    ticket = anna.start(version, file, CHUNK).chunks[0]
    assert ticket.state == "needed"
    assert anna.put(ticket, CHUNK).status_code == 412, "the old object is still there"
    op = anna.create("b", file=file, content=Content(version=version, manifest=manifest_of(CHUNK)))
    assert isinstance(anna.refused(op), ChunksMissing)
    for _ in steps:
        pass
    assert (world.states(), world.sums()) == (["pending"], (0, 1000))
    assert not world.blobs.has(world.key(CHUNK))
    assert anna.put(ticket, CHUNK).status_code == 200
    anna.do(op)
    assert (world.states(), world.sums()) == (["uploaded"], (1000, 0))


def test_a_put_between_the_deletion_of_object_and_row(world: World) -> None:
    steps = deleting(world)
    anna, version, file = world.anna, new_id(), new_id()
    ticket = anna.start(version, file, CHUNK).chunks[0]
    while world.blobs.has(world.key(CHUNK)):
        next(steps)
    assert world.states() == ["deleting"]
    assert anna.put(ticket, CHUNK).status_code == 200
    for _ in steps:
        pass
    assert world.blobs.has(world.key(CHUNK)), "the new object is nobody's to delete"
    anna.do(
        anna.create("b", file=file, content=Content(version=version, manifest=manifest_of(CHUNK)))
    )


def test_abandoned_promises_are_forgotten(world: World) -> None:
    anna = world.anna
    anna.start(new_id(), new_id(), CHUNK)
    world.later_ns = 2 * HOUR
    assert world.collect().is_nothing(), "the session lives for days"
    assert world.sums() == (0, 1000)
    world.later_ns = 8 * DAY
    found = world.collect()
    assert found.uploads == 1
    assert (world.states(), world.sums()) == ([], (0, 0))


def test_a_promise_without_a_session_goes_with_what_was_stored_for_it(world: World) -> None:
    """As a crash between transactions, or an older Nearline, may leave it."""
    anna = world.anna
    version = new_id()
    anna.start(version, new_id(), CHUNK)
    with world.blobs.create(world.key(CHUNK)) as writer:
        writer.write(CHUNK.data)
        writer.commit()
    with world.db.write() as conn:
        conn.execute(schema.upload_chunks.delete())
    assert world.collect().is_nothing(), "its URL may be alive"
    world.later_ns = GRACE_NS + HOUR
    found = world.collect()
    assert (found.promised, found.promised_bytes) == (1, 1000)
    assert (list(world.blobs.keys()), world.sums()) == ([], (0, 0))


def test_expired_sessions_end_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "LEASES", 2)
    anna, version = world.anna, new_id()
    anna.start(version, new_id(), *[make_chunk(bytes([n]) * 10) for n in range(5)])
    assert anna.request("GET", f"/v1/uploads/{version}", UploadState).version == version
    world.later_ns = 8 * DAY
    assert world.collect().uploads == 1
    with pytest.raises(Failed) as refused:
        anna.request("GET", f"/v1/uploads/{version}", UploadState)
    assert isinstance(refused.value.problem, UploadUnknown)
    assert (world.states(), world.sums()) == ([], (0, 0))


def test_objects_that_no_row_speaks_of_go_after_a_day(world: World) -> None:
    world.anna.store("a", CHUNK)
    with world.blobs.create(world.key(OTHER)) as writer:
        writer.write(OTHER.data)
        writer.commit()
    assert world.collect().orphans == 0
    os.utime(world.blobs.path(world.key(OTHER)), (0, 0))
    os.utime(world.blobs.path(world.key(CHUNK)), (0, 0))
    assert world.collect(orphans=False).is_nothing()
    found = world.collect()
    assert (found.orphans, found.orphans_bytes) == (1, 500)
    assert list(world.blobs.keys()) == [world.key(CHUNK)]


@pytest.mark.slow
def test_a_dry_run_counts_and_changes_nothing(world: World) -> None:
    anna = world.anna
    anna.store("a", CHUNK)
    anna.store("b", OTHER)
    anna.start(new_id(), new_id(), make_chunk(b"promised"))
    forget(anna, "a")
    world.collect()
    unlink(anna, "b")
    with world.blobs.create(BlobKey(anna.me.drive, b"\0" * 32)) as writer:
        writer.write(b"orphan")
        writer.commit()
    world.later_ns = 40 * DAY
    until_verified(world.running)
    before = dump(world)
    found = world.collect(dry_run=True)
    assert dump(world) == before
    expected = Collected(
        uploads=1, files=1, promised=1, promised_bytes=8, deleted=1, deleted_bytes=1000
    )
    assert msgspec.structs.replace(found, orphans=0, orphans_bytes=0) == expected
    assert (found.orphans, found.orphans_bytes) == (1, 6)
    done = world.collect()
    assert (done.uploads, done.files, done.deleted, done.orphans) == (1, 1, 1, 1)


def dump(world: World) -> object:
    with world.db.read() as conn:
        rows = {
            name: conn.execute(select(table)).all()
            for name, table in schema.metadata.tables.items()
        }
    return rows, sorted(world.blobs.keys())


def test_a_run_is_in_the_audit_log_if_it_did_something(world: World) -> None:
    world.anna.store("a", CHUNK)
    world.collect()
    forget(world.anna, "a")
    world.collect()
    with world.db.read() as conn:
        log = select(schema.audit.c.detail).where(schema.audit.c.action == "gc")
        [detail] = conn.execute(log).scalars()
    assert msgspec.json.decode(detail)["doomed"] == 1


def test_accounts_have_their_own_limits(world: World) -> None:
    anna = world.anna
    file, _ = anna.store("a", CHUNK)
    with world.db.write() as conn:
        conn.execute(update(schema.accounts).values(keep_days=100))
    unlink(anna, "a")
    world.later_ns = 50 * DAY
    assert world.collect().is_nothing()
    world.later_ns = 101 * DAY
    assert world.collect().files == 1
    with world.db.read() as conn:
        gone = select(schema.files.c.id).where(schema.files.c.id == file)
        assert conn.execute(gone).first() is None


@pytest.mark.slow
def test_a_collector_in_another_process_beside_uploads(world: World) -> None:
    """Another process shares nothing with the server but the database's lock and the files."""
    ended, deleted = threading.Event(), threading.Event()
    found = Collected()

    def collect_on_and_on() -> None:
        db, blobs = Database(world.running.data / "nearline.sqlite"), LocalBlobStore(store)
        while not ended.is_set():
            for _ in gc.steps(db, blobs, Options(), found, later):
                pass
            if found.deleted:
                deleted.set()
        db.close()

    def later() -> int:
        """Every doomed chunk is old enough at once: the races are as near as they can be."""
        return time.time_ns() + next(ticks) * 2 * GRACE_NS

    store, ticks = world.running.data / "blobs", itertools.count()
    thread = threading.Thread(target=collect_on_and_on)
    thread.start()
    try:
        for number in range(10):
            chunk = make_chunk(bytes([number % 3]) * 1000)  # the same three again and again
            upload_until_taken(world.anna, f"f{number}", chunk)
            if number % 2:
                forget(world.anna, f"f{number}")
        for number in (0, 6):  # the last of their content
            forget(world.anna, f"f{number}")
        assert deleted.wait(60)
    finally:
        ended.set()
        thread.join(60)
    report = fsck.run(world.db, world.blobs, read_data=True)
    assert report.findings == []


def upload_until_taken(anna: Client, name: str, chunk: Chunk) -> None:
    """As a client does it: what is missing by the time of the commit is sent again."""
    file, version = new_id(), new_id()
    content = Content(version=version, manifest=manifest_of(chunk))
    while True:
        for ticket in anna.start(version, file, chunk).chunks:
            if ticket.state == "needed":
                assert anna.put(ticket, chunk).status_code in (200, 412)
        [result] = anna.batch(anna.create(name, file=file, content=content))
        if isinstance(result, Applied):
            return
        assert isinstance(result, ChunksMissing)


# --- who collects -------------------------------------------------------------------------------


def test_one_collects_at_a_time(tmp_path: Path) -> None:
    def is_free() -> bool:
        try:
            with lock.collecting(tmp_path):
                return True
        except lock.Collecting:
            return False

    with lock.collecting(tmp_path):
        assert not is_free()
    with lock.keeping(tmp_path), lock.keeping(tmp_path):
        assert not is_free()
    assert is_free()
