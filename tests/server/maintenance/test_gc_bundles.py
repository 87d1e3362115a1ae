"""Garbage collection of bundles: what goes, what moves, and that readers notice nothing."""

from __future__ import annotations

import errno
import itertools
import os
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Select, insert, update

from remote.protocol.bundle import bundle_of
from server.maintenance import fsck, gc_bundles
from server.maintenance.gc_bundles import Verdict, verdict
from server.maintenance.gc_chunks import DAY, GRACE_NS
from server.metadata import schema
from server.metadata.schema import chunks
from server.storage.blobs import BlobKey, BlobWriter
from tests.server.bundling import World, name
from tests.server.conftest import Start
from tests.server.deleting import forget
from tests.server.harness import make_chunk, noise

NOW = 10**18
PARTS = [make_chunk(noise(1000 + number, f"part {number}")) for number in range(5)]


@pytest.mark.parametrize(
    ("parts", "alive", "emptied_ns", "deleting", "expected"),
    [
        (3, 51, None, 0, None),
        (3, 50, None, 0, Verdict.REWRITE),
        (3, 0, NOW, 0, Verdict.FILL),
        (0, 0, None, 0, Verdict.EMPTY),
        (0, 0, NOW - GRACE_NS + 1, 0, None),
        (0, 0, NOW - GRACE_NS, 0, Verdict.DELETE),
        (0, 0, NOW, 1, Verdict.FINISH),
        (1, 10, NOW, 1, None),
    ],
)
def test_the_verdict(
    parts: int, alive: int, emptied_ns: int | None, deleting: int, expected: Verdict | None
) -> None:
    bundle = SimpleNamespace(
        parts=parts, alive=alive, length=100, emptied_ns=emptied_ns, deleting=deleting
    )
    assert verdict(bundle, NOW, GRACE_NS) is expected


@pytest.fixture
def world(start: Start) -> World:
    return World(start(collect_seconds=0))


@pytest.mark.parametrize("query", [gc_bundles._PAGE, gc_bundles._PARTS], ids=["page", "parts"])
def test_what_is_in_a_bundle_is_found_without_walking_the_drive(
    world: World, query: Select[Any]
) -> None:
    """Else a walk takes bundles times chunks."""
    with world.db.read() as conn:
        asked = str(query.compile(conn))
        values = (b"",) * asked.count("?")
        plan = conn.exec_driver_sql("EXPLAIN QUERY PLAN " + asked, values).all()
    steps = [row.detail for row in plan if "inside" in row.detail or "chunks" in row.detail]
    assert steps
    for step in steps:
        assert "ix_chunks_bundle (drive=? AND bundle=?)" in step or "(drive=? AND id=?)" in step


def test_a_bundle_that_lives_stays(world: World) -> None:
    bundle = world.bundle(*PARTS)
    world.kill(*PARTS[:2])
    world.later_ns += 2 * DAY
    assert world.collect().is_nothing()
    assert world.known() == [bundle.id]
    world.check(*PARTS[2:])


def test_an_empty_bundle_goes_after_the_grace(world: World) -> None:
    bundle = world.bundle(*PARTS)
    world.kill(*PARTS)
    assert world.has(bundle.id), "emptied just now; a URL may be alive"
    found = world.collect()
    assert (found.bundles, found.bundles_bytes) == (1, bundle.length)
    assert (world.known(), list(world.blobs.keys())) == ([], [])


def test_what_lives_in_a_mostly_dead_bundle_moves(world: World) -> None:
    bundle = world.bundle(*PARTS)
    url = world.anna.locate(
        file=world.anna.children()[name(PARTS[4])].id,
        version=world.anna.children()[name(PARTS[4])].version,
        chunks=[PARTS[4].id],
        bundles=True,
    )
    assert url.chunks
    world.kill(*PARTS[:3])
    new = bundle_of([part.descriptor for part in PARTS[3:]])
    assert [world.place(part) for part in PARTS[3:]] == [(new.id, 0), (new.id, 1003)]
    assert world.has(bundle.id), "a URL that was signed before may be alive"
    world.check(*PARTS[3:])
    world.later_ns += GRACE_NS
    world.collect()
    world.later_ns += GRACE_NS
    assert world.collect().bundles == 1
    assert (world.known(), world.has(bundle.id)) == ([new.id], False)
    world.check(*PARTS[3:])
    assert world.collect().is_nothing()


def test_what_is_left_of_several_becomes_one(world: World) -> None:
    more = [make_chunk(noise(2000 + number, f"more {number}")) for number in range(3)]
    world.bundle(*PARTS[:3])
    world.bundle(*more)
    world.kill(*PARTS[:2], *more[:2])
    assert world.place(PARTS[2])[0] == world.place(more[2])[0] is not None
    world.check(PARTS[2], more[2])


def test_one_that_is_left_alone_stands_alone(world: World) -> None:
    world.bundle(*PARTS)
    world.kill(*PARTS[:4])
    assert world.place(PARTS[4]) == (None, None)
    assert world.has(PARTS[4].id)
    world.check(PARTS[4])


def test_no_bundle_grows_beyond_its_limits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_bundles, "MAX_PARTS", 2)
    more = [make_chunk(noise(3000 + number, f"more {number}")) for number in range(7)]
    world.bundle(*more)
    world.kill(*more[:4])
    assert world.place(more[4])[0] == world.place(more[5])[0] is not None
    assert world.place(more[6]) == (None, None)
    world.check(*more[4:])


def test_a_bundle_of_very_small_chunks_is_not_rewritten_for_its_index(world: World) -> None:
    tiny = [make_chunk(bytes([number])) for number in range(3)]
    bundle = world.bundle(*tiny)
    assert sum(len(part.data) for part in tiny) < bundle.length / 2
    assert world.collect().is_nothing()
    world.kill(*tiny[:1])
    assert world.collect().is_nothing()
    assert world.known() == [bundle.id]


def test_a_collector_that_crashes_anywhere_harms_nothing(world: World) -> None:
    """And the next one ends what it began."""
    more = [make_chunk(noise(2000 + number, f"more {number}")) for number in range(3)]
    bundle = world.bundle(*PARTS)
    other = world.bundle(*more)
    for part in (*PARTS[:3], *more):
        forget(world.anna, name(part))
    for crash in itertools.count(1):
        steps = world.steps()
        done = len(list(itertools.islice(steps, crash)))
        steps.close()  # type: ignore[attr-defined]
        world.check(*PARTS[3:])
        world.later_ns += GRACE_NS
        if done < crash:
            break
    world.collect()
    world.later_ns += GRACE_NS
    world.collect()
    assert not world.has(bundle.id)
    assert not world.has(other.id)
    world.check(*PARTS[3:])


def test_a_damaged_part_stays_for_fsck_to_tell(world: World) -> None:
    bundle = world.bundle(*PARTS)
    path = world.blobs.path(world.key(bundle.id))
    body = bytearray(path.read_bytes())
    body[bundle.offsets[4]] ^= 1
    path.write_bytes(body)
    world.kill(*PARTS[:3])
    assert world.place(PARTS[3]) == (None, None)
    assert world.place(PARTS[4]) == (bundle.id, bundle.offsets[4])
    world.later_ns += 2 * GRACE_NS
    world.collect()
    assert world.has(bundle.id)
    [finding] = fsck.run(world.db, world.blobs, read_data=True).findings
    assert finding.chunk == PARTS[4].id.hex()


def test_a_chunk_that_was_sent_anew_meanwhile_is_not_moved(world: World) -> None:
    """`verification` may take a chunk out of a bundle while it is rewritten."""
    world.bundle(*PARTS)
    for part in PARTS[:3]:
        forget(world.anna, name(part))
    world.collect()
    world.later_ns += GRACE_NS
    steps = world.steps()
    new = bundle_of([part.descriptor for part in PARTS[3:]])
    while not world.has(new.id):
        next(steps)
    with world.blobs.create(world.key(PARTS[3].id)) as writer:
        writer.write(PARTS[3].data)
        writer.commit()
    with world.db.write() as conn:
        mine = chunks.c.id == PARTS[3].id
        conn.execute(update(chunks).where(mine).values(bundle=None, bundle_offset=None))
    for _ in steps:
        pass
    assert world.place(PARTS[3]) == (None, None)
    assert world.place(PARTS[4]) == (new.id, new.offsets[1])
    world.check(*PARTS[3:])


def test_nothing_is_put_into_a_bundle_that_is_being_deleted(world: World) -> None:
    bundle = world.bundle(*PARTS)
    new = bundle_of([part.descriptor for part in PARTS[3:]])
    for part in PARTS[:3]:
        forget(world.anna, name(part))
    world.collect()
    world.later_ns += GRACE_NS
    steps = world.steps()
    while not world.has(new.id):
        next(steps)
    with world.db.write() as conn:
        row = {"drive": world.anna.me.drive, "id": new.id, "length": new.length, "created_ns": 1}
        row |= {"sha256": bytes(32), "emptied_ns": 1, "deleting": 1}
        conn.execute(insert(schema.bundles), row)
    for _ in steps:
        pass
    assert [world.place(part)[0] for part in PARTS[3:]] == [bundle.id, bundle.id]
    world.check(*PARTS[3:])
    world.collect()
    world.collect()
    assert [world.place(part)[0] for part in PARTS[3:]] == [new.id, new.id], "another time"
    world.check(*PARTS[3:])


def test_a_copy_takes_the_place_of_the_part(world: World) -> None:
    world.bundle(*PARTS)
    with world.blobs.create(world.key(PARTS[4].id)) as writer:
        writer.write(PARTS[4].data)
        writer.commit()
    with world.db.write() as conn:
        conn.execute(update(chunks).where(chunks.c.id == PARTS[4].id).values(copied=1))
    world.kill(*PARTS[:3])
    assert [world.place(part) for part in PARTS[3:]] == [(None, None)] * 2
    world.check(*PARTS[3:])
    world.kill(PARTS[4])
    world.collect()
    assert not world.has(PARTS[4].id), "and goes with the chunk"


def test_a_bundle_without_a_row_goes_after_a_day(world: World) -> None:
    bundle = world.bundle(*PARTS[:2])
    loose = bundle_of([part.descriptor for part in PARTS[2:]])
    with world.blobs.create(world.key(loose.id)) as writer:
        writer.write(b"".join(part.data for part in PARTS[2:]) + loose.tail)
        writer.commit()
    for id in (bundle.id, loose.id):
        os.utime(world.blobs.path(world.key(id)), (0, 0))
    assert world.collect().orphans == 1
    assert list(world.blobs.keys()) == [world.key(bundle.id)]


def test_a_dry_run_counts_and_changes_nothing(world: World) -> None:
    bundle = world.bundle(*PARTS)
    for part in PARTS[:3]:
        forget(world.anna, name(part))
    world.collect()
    world.later_ns += GRACE_NS
    with world.db.write() as conn:  # as if the chunks were gone
        dead = [part.id for part in PARTS[:3]]
        conn.execute(schema.upload_chunks.delete())
        conn.execute(chunks.delete().where(chunks.c.id.in_(dead)))
    found = world.collect(dry_run=True)
    assert (found.rewritten, found.rewritten_bytes) == (1, 1003 + 1004)
    assert world.place(PARTS[4]) == (bundle.id, bundle.offsets[4])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_keeps_nothing_from_being_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Or it stayed full."""
    more = [make_chunk(noise(2000 + number, f"more {number}")) for number in range(3)]
    bundle, other = world.bundle(*PARTS), world.bundle(*more)
    for part in (*PARTS[:3], *more):
        forget(world.anna, name(part))

    def full(_key: BlobKey) -> BlobWriter:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(world.blobs, "create", full)
    for _ in range(4):
        world.collect()
        world.later_ns += GRACE_NS
    assert not world.has(other.id)
    world.check(*PARTS[3:])
    assert [world.place(part)[0] for part in PARTS[3:]] == [bundle.id] * 2
    monkeypatch.undo()
    world.collect()
    assert world.place(PARTS[3])[0] != bundle.id
    world.check(*PARTS[3:])


@pytest.mark.parametrize("damage", ["other bytes", "missing"])
def test_a_copy_that_is_damaged_takes_no_place(world: World, damage: str) -> None:
    """The part in the bundle is what is good; fsck tells of the copy."""
    world.bundle(*PARTS)
    path = world.blobs.path(world.key(PARTS[4].id))
    world.anna.locate(
        file=world.anna.children()[name(PARTS[4])].id,
        version=world.anna.children()[name(PARTS[4])].version,
        chunks=[PARTS[4].id],
    )
    path.unlink()
    if damage == "other bytes":
        path.write_bytes(bytes(len(PARTS[4].data)))
    world.kill(*PARTS[:3])
    new = bundle_of([part.descriptor for part in PARTS[3:]])
    assert [world.place(part)[0] for part in PARTS[3:]] == [new.id] * 2
    assert fsck.run(world.db, world.blobs, read_data=True, repair=True).ok
    world.check(*PARTS[3:])
