"""fsck of bundles: what the database knows of one is set right from the object; a chunk that is not
where its row says is looked for; what is nowhere is asked for again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import delete, select, update

from remote.protocol.bundle import Bundle
from server.maintenance import fsck
from server.metadata.schema import bundles, chunks
from server.uploads import quota
from server.uploads.quota import Sums
from tests.server.bundling import World, name, put_together
from tests.server.conftest import Start
from tests.server.harness import Chunk, make_chunk, new_id, noise
from tests.server.lookups import until_verified

PARTS = [make_chunk(noise(1000 + number, f"part {number}")) for number in range(4)]
FIRST = chunks.c.id == PARTS[0].id

Damage = Callable[[World, Bundle], None]


@pytest.fixture
def world(start: Start) -> World:
    return World(start(collect_seconds=0))


def state_of(world: World, part: Chunk) -> str:
    with world.db.read() as conn:
        return str(conn.execute(select(chunks.c.state).where(chunks.c.id == part.id)).scalar_one())


def repaired(world: World) -> list[str]:
    """The kinds of what was found; all of it is repaired."""
    found = fsck.run(world.db, world.blobs, read_data=True)
    assert not any(item.repaired for item in found.findings)
    report = fsck.run(world.db, world.blobs, read_data=True, repair=True)
    assert report.ok, report.findings
    return sorted({item.kind for item in found.findings})


def sql(*statements: object) -> Damage:
    def damage(world: World, bundle: Bundle) -> None:
        with world.db.write() as conn:
            for statement in statements:
                conn.execute(statement)  # type: ignore[call-overload]

    return damage


DAMAGES = {
    "another offset": ("object", sql(update(chunks).where(FIRST).values(bundle_offset=1))),
    "another bundle": ("object", sql(update(chunks).where(FIRST).values(bundle=bytes(32)))),
    "in no bundle": (
        "object",
        sql(update(chunks).where(FIRST).values(bundle=None, bundle_offset=None)),
    ),
    "all in no bundle": (
        "object",
        sql(update(chunks).values(bundle=None, bundle_offset=None), delete(bundles)),
    ),
    "no row of the bundle": ("bundle", sql(delete(bundles))),
    "another length": ("bundle", sql(update(bundles).values(length=7))),
    "counts as empty": ("bundle", sql(update(bundles).values(emptied_ns=1))),
    "is being deleted": ("bundle", sql(update(bundles).values(emptied_ns=1, deleting=1))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_known_of_a_bundle_is_read_again_from_it(world: World, damage: str) -> None:
    bundle = world.bundle(*PARTS)
    with world.db.read() as conn:
        before = conn.execute(select(chunks)).all(), conn.execute(select(bundles)).one()
    kind, do = DAMAGES[damage]
    do(world, bundle)
    assert repaired(world) == [kind]
    with world.db.read() as conn:
        row = conn.execute(select(bundles)).one()
        assert conn.execute(select(chunks)).all() == before[0]
    assert (row.length, row.sha256, row.deleting) == (bundle.length, before[1].sha256, 0)
    world.check(*PARTS)


def test_a_chunk_that_counts_as_missing_is_found_in_a_bundle(world: World) -> None:
    world.bundle(*PARTS)
    with world.db.write() as conn:
        gone = {"state": "pending", "bundle": None, "bundle_offset": None, "uploaded_ns": None}
        row = conn.execute(select(chunks).where(FIRST)).one()
        conn.execute(update(chunks).where(FIRST).values(**gone))
        length = row.stored_length
        quota.change(conn, row.drive, Sums(used=-length, reserved=length, promised=1))
    found = fsck.run(world.db, world.blobs)
    assert {item.kind for item in found.findings} == {"missing", "arrived"}
    fsck.run(world.db, world.blobs, repair=True)
    world.check(*PARTS)


def test_what_counts_as_missing_is_in_no_bundle_that_nobody_knows(world: World) -> None:
    world.bundle(*PARTS)
    with world.db.write() as conn:
        conn.execute(update(chunks).where(FIRST).values(state="pending", bundle=bytes(32)))
    assert "state" in {item.kind for item in fsck.run(world.db, world.blobs).findings}
    for _ in range(2):
        fsck.run(world.db, world.blobs, repair=True)
    world.check(*PARTS)


def test_a_bundle_that_came_back_has_its_chunks_again(world: World) -> None:
    """As `verification` leaves them when its disk is not mounted."""
    bundle = world.bundle(*PARTS)
    path = world.blobs.path(world.key(bundle.id))
    body = path.read_bytes()
    path.unlink()
    with world.db.write() as conn:
        conn.execute(update(chunks).values(state="pending"))
    kinds = {item.kind for item in fsck.run(world.db, world.blobs, repair=True).findings}
    assert kinds == {"missing", "sums"}
    path.write_bytes(body)
    fsck.run(world.db, world.blobs, repair=True)
    assert [world.place(part)[0] for part in PARTS] == [bundle.id] * len(PARTS)
    world.check(*PARTS)


@pytest.mark.parametrize("how", ["bytes of a part", "missing", "cut"])
def test_what_is_nowhere_is_asked_for_again(world: World, how: str) -> None:
    bundle = world.bundle(*PARTS)
    path = world.blobs.path(world.key(bundle.id))
    body = bytearray(path.read_bytes())
    path.unlink()
    lost = PARTS
    if how == "bytes of a part":
        body[bundle.offsets[1]] ^= 1
        path.write_bytes(body)
        lost = PARTS[1:2]
    elif how == "cut":
        path.write_bytes(body[:-1])
    fsck.run(world.db, world.blobs, read_data=True, repair=True)
    states = [state_of(world, part) for part in PARTS]
    assert states == ["pending" if part in lost else "uploaded" for part in PARTS]
    assert path.exists() == (how != "missing"), "a bundle is not put aside for one part"
    for part in lost:
        assert world.anna.upload(new_id(), new_id(), part) == 1
    until_verified(world.running)
    world.check(*PARTS)


def test_a_part_that_is_damaged_is_taken_from_another_bundle(world: World) -> None:
    """As one that was rewritten leaves it for a while."""
    bundle = world.bundle(*PARTS)
    with world.blobs.create(world.key(PARTS[0].id)) as writer:
        writer.write(PARTS[0].data)
        writer.commit()
    other = put_together(world.db, world.blobs, world.anna.me.drive, *PARTS[:1])
    with world.db.write() as conn:
        conn.execute(update(chunks).where(FIRST).values(bundle=bundle.id, bundle_offset=0))
    path = world.blobs.path(world.key(bundle.id))
    body = bytearray(path.read_bytes())
    body[0] ^= 1
    path.write_bytes(body)
    assert repaired(world) == ["object"]
    assert world.place(PARTS[0]) == (other.id, 0)
    world.check(*PARTS)


def test_healthy_bundles_have_nothing_to_say(world: World) -> None:
    world.bundle(*PARTS)
    assert set(world.anna.children()) == {name(part) for part in PARTS}
    world.check(*PARTS)


@pytest.mark.parametrize("how", ["bytes", "cut", "missing"])
def test_a_damaged_copy_of_a_part_is_made_again(world: World, how: str) -> None:
    world.bundle(*PARTS)
    file = world.anna.children()[name(PARTS[0])]
    wanted = {"file": file.id, "version": file.version, "chunks": [PARTS[0].id]}
    assert world.anna.locate(**wanted).chunks[0].offset == 0
    path = world.blobs.path(world.key(PARTS[0].id))
    good = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(good[:-1] if how == "cut" else bytes(len(good)))
    assert repaired(world) == ["copy"]
    assert world.place(PARTS[0])[0] is not None
    kept = world.running.data / "blobs" / "quarantine"
    assert len(list(kept.glob("*"))) == (how != "missing")
    world.check(*PARTS)
    url = world.anna.locate(**wanted).chunks[0].url
    assert world.anna.http.get(url).content == PARTS[0].data
    world.check(*PARTS)
