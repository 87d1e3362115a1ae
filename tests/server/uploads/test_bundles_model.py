"""Chunks stored alone and in bundles, copied out, collected and rewritten, in any order.

The walks of `test_gc_model`, in which the drive's owner sends several chunks as one object too, and
events are lost as with a server that is killed. After every step each chunk of each version has its
bytes where its row says, whoever holds a signed URL can read, and nobody who may not read a
bundle's other chunks was given one. In the end all is deleted, and nothing is left over.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import select

from remote.protocol import messages
from remote.protocol.bundle import Bundle, bundle_of
from remote.protocol.content import Descriptor
from remote.protocol.errors import BadUpload, Refused
from server.metadata import schema
from server.storage.blobs import BlobKey, Head
from server.storage.places import place_of
from server.uploads import bundles, copies, verification
from server.uploads.arrivals import Arrival
from server.uploads.copies import Source
from server.uploads.verification import Verdict
from tests.amounts import amount
from tests.server.harness import new_id
from tests.server.maintenance import test_gc_model
from tests.server.maintenance.test_gc_model import BODIES, CHUNKS, GET_NS, SECOND, Store, World


class Writer:
    """An object on its way into a store in memory."""

    def __init__(self, store: Store, key: BlobKey) -> None:
        self._store, self._key, self._data = store, key, b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._data += data

    def commit(self) -> bool:
        return self._store.put(self._key, self._data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None: ...


class WritableStore(Store):
    def create(self, key: BlobKey) -> Any:
        return Writer(self, key)


class BundleWorld(World):
    """`signed` bundles may be sent, `sources` were read to be copied out, `copied` objects wait to
    be noted, `verdicts` to be recorded."""

    def __init__(self, folder: Path, random: Random) -> None:
        super().__init__(folder, random)
        self.store = WritableStore(self)
        self.signed: list[tuple[BlobKey, bytes]] = []
        self.sources: list[Source] = []
        self.copied: dict[BlobKey, Head] = {}
        self.verdicts: list[Verdict] = []

    # --- sent together ---

    def begin_bundle(self) -> None:
        """Of some chunks that the owner has announced, whether or not they are needed still."""
        awaited: dict[bytes, tuple[str, Descriptor]] = {}
        for version, (_, chunks, who) in self.sessions.items():
            for chunk in chunks if who is self.caller else ():
                awaited[chunk.id] = (version, chunk.descriptor)
        if not awaited:
            return
        parts = self.random.sample(sorted(awaited), self.random.randint(1, len(awaited)))
        made = bundle_of([awaited[id][1] for id in parts])
        body = b"".join(BODIES[part.sha256] for part in made.parts) + made.tail
        wanted = messages.StartBundle(
            parts=[messages.BundlePart(awaited[id][0], id) for id in parts],
            sha256=hashlib.sha256(body).digest(),
        )

        def sign(key: BlobKey, head: Head) -> messages.PresignedPut:
            if key.chunk == made.id and head.length == len(body):
                self.signed.append((key, body))
            return messages.PresignedPut(url="/", headers={}, expires_ns=0)

        with self.db.read() as conn:
            try:
                bundles.start(conn, self.caller, wanted, sign, self.now_ns)
            except Refused as error:
                if not isinstance(error.problem, BadUpload):
                    raise

    def end_bundle(self) -> None:
        """A PUT that ends, or is told that the object is there."""
        if (sent := self.any(self.signed)) is None:
            return
        self.signed.remove(sent)
        key, body = sent
        made = self.store.put(key, body)
        found: Bundle | None = bundles.index_of(self.store, key)
        head = Head(len(body), hashlib.sha256(body).digest())
        self.events.append(Arrival(key, head, made, bundle=found))

    def together(self) -> None:
        """An upload as it usually goes."""
        self.start()
        self.begin_bundle()
        self.end_bundle()
        while self.events:
            self.deliver()
        self.commit()

    def be_killed(self) -> None:
        """The server ends, and has not noted what it was told."""
        self.events.clear()
        self.copied.clear()
        self.verdicts.clear()
        self.sources.clear()

    def be_mostly_dead(self) -> None:
        """Three files in one bundle, of which one is left, and a collection is somewhere in it."""
        chunks = [self.random.choice(pair) for pair in CHUNKS]
        for chunk in chunks:
            self.lease(new_id(), new_id(), [chunk], self.caller)
        self.begin_bundle()
        self.end_bundle()
        while self.events:
            self.deliver()
        for _ in range(6):
            self.commit()
        while self.sessions:
            self.abandon()
        while len(self.files) > 1:
            self.unlink()
        self.empty_trash()
        self.collect()
        self.now_ns += 4000 * SECOND
        self.collect(self.random.randint(4, 14))

    # --- read back and read ---

    def judge(self) -> None:
        with self.db.read() as conn:
            known = conn.execute(select(schema.chunks.c.drive, schema.chunks.c.id))
            found = verification.suspects(conn, [BlobKey(*row) for row in known])
        self.verdicts += [verification.judge(self.store, item) for item in found]

    def record(self) -> None:
        with self.db.write() as conn:
            bad = verification.record(conn, self.verdicts, self.now_ns)
        assert bad == [], "what is good was condemned"
        self.verdicts = []

    def begin_copy(self) -> None:
        with self.db.read() as conn:
            of = conn.execute(select(schema.version_chunks.c.chunk)).scalars()
            if (chunk := self.any(of)) is not None:
                self.sources += copies.sources(conn, [BlobKey(self.caller.drive, chunk)])

    def copy(self) -> None:
        if (source := self.any(self.sources)) is None:
            return
        self.sources.remove(source)
        if self.store.has(source.place.key):
            head = copies.copy(self.store, source)
            assert head is not None
            self.copied[source.key] = head

    def read_alone(self) -> None:
        """As it usually goes."""
        self.begin_copy()
        self.copy()
        self.note_copies()

    def note_copies(self) -> None:
        with self.db.write() as conn:
            copies.note(conn, self.store, self.copied)
        self.copied = {}

    def locate(self) -> None:
        """By the owner, who may read everything, or by the token for a folder."""
        refers, chunks = schema.version_chunks, schema.chunks
        same = (refers.c.drive == chunks.c.drive) & (refers.c.chunk == chunks.c.id)
        with self.db.read() as conn:
            row = self.any(conn.execute(select(chunks).join(refers, same)))
        if row is None:
            return
        key = place_of(row).key
        if self.random.random() < 0.5 and row.bundle is not None:
            if not row.copied:
                return
            key = BlobKey(row.drive, row.id)
        self.located.append((key, self.now_ns + GET_NS))

    # --- what must hold ---

    def check(self) -> None:
        chunks, refers = schema.chunks, schema.version_chunks
        same = (refers.c.drive == chunks.c.drive) & (refers.c.chunk == chunks.c.id)
        with self.db.read() as conn:
            rows = conn.execute(select(chunks).join(refers, same).distinct()).all()
            held = conn.execute(select(chunks).where(chunks.c.bundle.is_not(None))).all()
            known = set(conn.execute(select(schema.bundles.c.id)).scalars())
        for row in rows:
            assert row.state in ("uploaded", "doomed"), row.state
            stored = self.store.read(*place_of(row))
            assert hashlib.sha256(stored).digest() == row.sha256
            if row.copied:
                own = self.store.head(BlobKey(row.drive, row.id))
                assert own == Head(row.stored_length, row.sha256)
        assert {row.bundle for row in held} <= known, "a bundle has no row"
        self.located = [item for item in self.located if item[1] > self.now_ns]
        for key, _ in self.located:
            assert self.store.has(key), "a signed URL is of nothing"

    def finish(self) -> None:
        self.be_killed()
        self.signed.clear()
        self.now_ns += 8 * 86_400 * SECOND
        super().finish()
        with self.db.read() as conn:
            assert conn.execute(select(schema.bundles)).all() == []


WEIGHTS = test_gc_model.WEIGHTS | {
    BundleWorld.locate: 4,
    BundleWorld.begin_bundle: 8,
    BundleWorld.end_bundle: 8,
    BundleWorld.together: 10,
    BundleWorld.be_killed: 1,
    BundleWorld.judge: 3,
    BundleWorld.record: 3,
    BundleWorld.begin_copy: 5,
    BundleWorld.copy: 5,
    BundleWorld.note_copies: 4,
    BundleWorld.read_alone: 5,
    BundleWorld.be_mostly_dead: 5,
}


@pytest.mark.parametrize("seed", range(amount(6, 2, "NEARLINE_FUZZ_EXAMPLES")))
def test_a_walk_with_bundles(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    world = BundleWorld(tmp_path, random)
    taken: list[str] = []
    try:
        for step in random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=250):
            taken.append(step.__name__)
            getattr(world, step.__name__)()
            world.check()
        world.finish()
    except AssertionError as error:
        error.add_note(f"the walk was: {' '.join(taken)}")
        raise
    finally:
        world.db.close()
