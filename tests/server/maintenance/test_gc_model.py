"""Garbage collection interleaved, step by step, with everything that makes and unmakes references.

A walk makes up the order: uploads begun, PUTs begun and finished late, events late and
repeated, HEADs that are old by the time they are used, commits, abandoned and expired sessions,
overwrites, reverts, deletions, signed URLs, steps of a collector, and collectors that crash. After
every step every chunk of every version has its object, whoever holds a signed URL can read, and the
sums are right. In the end everything is deleted, and nothing is left over.

The walks are random and repeatable: a few by default, as many as NEARLINE_FUZZ_EXAMPLES says.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec
import pytest
from sqlalchemy import select

from remote.protocol import codec, errors, messages
from remote.protocol.content import Descriptor
from server.accounts import accounts, tokens
from server.drive import commits, trash
from server.maintenance import fsck, fsck_sums, gc
from server.maintenance.fsck_findings import Names
from server.maintenance.gc_chunks import DAY, SECOND, Collected, Options
from server.metadata import schema
from server.metadata.db import Database
from server.permissions.caller import Caller
from server.storage.blobs import BlobKey, BlobMissing, BlobReader, Head, Stored
from server.uploads import arrivals, sessions
from server.uploads.arrivals import Arrival, Proof
from server.uploads.quota import Budget, Limits
from tests.amounts import amount
from tests.server.harness import Chunk, make_chunk, manifest_of, new_id

T = TypeVar("T")
PUT_NS = 900 * SECOND
GET_NS = 3600 * SECOND
LEASE_NS = 7 * DAY


def encoded(chunk: Chunk) -> Chunk:
    """The same chunk as another device stores it: compressed."""
    done = codec.encode_chunk(chunk.data)
    assert done.descriptor.id == chunk.id
    assert done.descriptor.sha256 != chunk.descriptor.sha256
    return Chunk(bytes(done.body), done.descriptor)


PLAIN = [make_chunk(bytes([number]) * 2000) for number in range(3)]
CHUNKS = [(chunk, encoded(chunk)) for chunk in PLAIN]
WHOLE = {chunk.id: chunk for chunk in PLAIN}
BODIES = {chunk.descriptor.sha256: chunk.data for pair in CHUNKS for chunk in pair}


class Store:
    """A blob store in memory, with the test's clock."""

    def __init__(self, machine: World) -> None:
        self._machine = machine
        self.objects: dict[BlobKey, tuple[bytes, int]] = {}

    def create(self, key: BlobKey) -> Any:
        raise NotImplementedError

    def open(self, key: BlobKey) -> BlobReader:
        return Reader(self.read(key, 0, 1 << 30))

    def put(self, key: BlobKey, data: bytes) -> bool:
        there = key in self.objects
        self.objects.setdefault(key, (data, self._machine.now_ns))
        return not there

    def has(self, key: BlobKey) -> bool:
        return key in self.objects

    def head(self, key: BlobKey) -> Head | None:
        if key not in self.objects:
            return None
        data = self.objects[key][0]
        return Head(len(data), hashlib.sha256(data).digest())

    def stat(self, key: BlobKey) -> Stored | None:
        data, at_ns = self.objects.get(key, (None, 0))
        return None if data is None else Stored(len(data), at_ns)

    def read(self, key: BlobKey, offset: int, length: int) -> bytes:
        if key not in self.objects:
            raise BlobMissing(key.chunk.hex())
        return self.objects[key][0][offset : offset + length]

    def delete(self, key: BlobKey) -> bool:
        return self.objects.pop(key, None) is not None

    def set_aside(self, key: BlobKey) -> bool:
        return self.delete(key)

    def keys(self) -> Iterator[BlobKey]:
        return iter(list(self.objects))


class Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, length: int) -> bytes:
        data, self._data = self._data[:length], self._data[length:]
        return data

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None: ...


class World:
    """A drive, its devices' uploads, a collector, and the clock. Each step is a method."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.random = random
        self.now_ns = 10**18
        self.store = Store(self)
        self.db = Database(folder / "db.sqlite")
        self.db.migrate()
        with self.db.write() as conn:
            accounts.insert_account(conn, "anna", "none", 1)
            row = conn.execute(select(schema.drives)).one()
            _, device = tokens.new_device(conn, row.owner, "d", 1)
            _, weak = tokens.new_device(conn, row.owner, "w", 1, folder=row.root)
        self.caller = Caller(row.owner, "anna", device, "full", row.id)
        self.guest = Caller(row.owner, "anna", weak, "full", row.id, folder=row.root)
        self.root = row.root
        self.sessions: dict[str, tuple[str, list[Chunk], Caller]] = {}
        self.urls: list[tuple[Descriptor, str | None, int]] = []
        self.puts: list[tuple[Descriptor, str | None]] = []
        self.events: list[Arrival] = []
        self.located: list[tuple[BlobKey, int]] = []
        self.files: dict[str, str] = {}
        self.born: set[str] = set()
        self.names = itertools.count()
        self.collector: Iterator[None] | None = None

    def any(self, items: Iterable[T]) -> T | None:
        """One of them; None: there is none."""
        found = list(items)
        return self.random.choice(found) if found else None

    # --- uploads ---

    def start(self) -> None:
        numbers = self.random.sample(range(len(CHUNKS)), self.random.randint(1, 2))
        chunks = [self.random.choice(CHUNKS[number]) for number in numbers]
        file = self.any(self.files) if self.random.random() < 0.3 else None
        who = self.guest if self.random.random() < 0.3 else self.caller
        self.lease(new_id(), file or new_id(), chunks, who)

    def resume(self) -> None:
        if (version := self.any(self.sessions)) is not None:
            self.lease(version, *self.sessions[version])

    def lease(self, version: str, file: str, chunks: list[Chunk], who: Caller) -> None:
        wanted = messages.StartUpload(
            version=version, file=file, descriptors=[chunk.descriptor for chunk in chunks]
        )
        if who is self.guest and file in self.born and file not in self.files:
            return  # what is in the trash is its owner's alone
        with self.db.write() as conn:
            terms = sessions.Terms(LEASE_NS, Budget(conn, who, Limits(1 << 40, 1 << 20)), self.sign)
            sessions.start(conn, who, wanted, terms, self.now_ns)
        self.sessions[version] = (file, chunks, who)

    def sign(self, drive: str, descriptor: Descriptor, proof: str | None) -> messages.PresignedPut:
        assert drive == self.caller.drive
        self.urls.append((descriptor, proof, self.now_ns + PUT_NS))
        return messages.PresignedPut(url="/", headers={}, expires_ns=0)

    def begin_put(self) -> None:
        self.urls = [url for url in self.urls if url[2] > self.now_ns]
        if (url := self.any(self.urls)) is not None:
            self.puts.append(url[:2])

    def end_put(self) -> None:
        """A caller that is to show possession has the whole of the bytes looked at, there or
        not."""
        if (put := self.any(self.puts)) is None:
            return
        self.puts.remove(put)
        descriptor, proof = put
        key = BlobKey(self.caller.drive, descriptor.id)
        head = Head(descriptor.stored_length, descriptor.sha256)
        made = self.store.put(key, BODIES[descriptor.sha256])
        if proof is not None:
            self.events.append(Arrival(key, head, made, Proof(proof, descriptor)))
        elif made:
            self.events.append(Arrival(key, head))

    def deliver(self) -> None:
        """Any event, not the oldest; and sometimes it comes again."""
        if (event := self.any(self.events)) is None:
            return
        if self.random.random() < 0.7:
            self.events.remove(event)
        with self.db.write() as conn:
            arrivals.arrived(conn, self.store, [event], self.now_ns)

    def look(self) -> None:
        """The HEAD of a commit to be: what it tells is used later."""
        if (version := self.any(self.sessions)) is not None:
            for chunk in self.sessions[version][1]:
                key = BlobKey(self.caller.drive, chunk.id)
                if (head := self.store.head(key)) is not None:
                    self.events.append(Arrival(key, head))

    def commit(self) -> None:
        if (version := self.any(self.sessions)) is None:
            return
        file, chunks, who = self.sessions[version]
        manifest = manifest_of(*(WHOLE[chunk.id] for chunk in chunks))
        content = messages.Content(version=version, manifest=manifest)
        if file in self.files:
            result = self.apply(messages.Write(file=file, content=content, mtime_ns=1), who)
        else:
            fields: Any = {"kind": "file", "mode": 0o644, "mtime_ns": 1, "content": content}
            name = f"f{next(self.names)}"
            here = {"parent": self.root, "name": name} | fields
            if file in self.born:  # in the trash, or gone for good: its id is never free again
                refused = self.apply(messages.Create(file=file, **here))
                assert isinstance(refused, errors.Exists)
                assert refused.taken == "file"
                file = new_id()
            result = self.apply(messages.Create(file=file, **here), who)
            if isinstance(result, messages.Applied):
                self.files[file] = name
                self.born.add(file)
        if isinstance(result, messages.Applied):
            del self.sessions[version]
        else:
            assert isinstance(result, errors.ChunksMissing), result

    def whole(self) -> None:
        """An upload as it usually goes."""
        self.start()
        for _ in range(3):
            self.begin_put()
            self.end_put()
        self.look()
        while self.events:
            self.deliver()
        self.commit()

    def abandon(self) -> None:
        if (version := self.any(self.sessions)) is None:
            return
        who = self.sessions.pop(version)[2]
        with self.db.write() as conn:
            of = select(schema.uploads.c.expires_ns).where(schema.uploads.c.version == version)
            if (conn.execute(of).scalar() or 0) > self.now_ns:
                sessions.abandon(conn, who, version, self.now_ns)

    def revoke(self) -> None:
        """The guest's token ends, and is as good as a new one."""
        with self.db.write() as conn:
            sessions.end_of_device(conn, self.guest.device)
        self.sessions = {v: each for v, each in self.sessions.items() if each[2] is self.caller}

    # --- the tree ---

    def apply(self, op: messages.Op, who: Caller | None = None) -> Any:
        with self.db.write() as conn:
            keyed = messages.Keyed(key=new_id(), op=op)
            results, _ = commits.apply(conn, who or self.caller, [keyed], self.now_ns)
        return results[0]

    def unlink(self) -> None:
        if (file := self.any(self.files)) is not None:
            op = messages.Unlink(file=file, parent=self.root, name=self.files.pop(file))
            assert isinstance(self.apply(op), messages.Applied)

    def revert(self) -> None:
        versions = schema.versions.c
        with self.db.read() as conn:
            known = select(versions.file, versions.id).where(versions.status == "uploaded")
            row = self.any(conn.execute(known.where(versions.file.in_(list(self.files)))))
        if row is not None:
            op = messages.Revert(file=row.file, version=row.id, as_version=new_id(), mtime_ns=1)
            assert isinstance(self.apply(op), messages.Applied)

    def empty_trash(self) -> None:
        more = True
        while more:
            with self.db.write() as conn:
                more = trash.empty(conn, self.caller, None, self.now_ns)[1].more

    def locate(self) -> None:
        with self.db.read() as conn:
            of = conn.execute(select(schema.version_chunks.c.chunk)).scalars()
            chunk = self.any(of)
        if chunk is not None:
            self.located.append((BlobKey(self.caller.drive, chunk), self.now_ns + GET_NS))

    # --- the collector, and time ---

    def collect(self, steps: int = 10_000) -> None:
        """Go on with the collection that is under way, or begin one."""
        options = Options(keep_days=1, keep_versions=1)
        self.collector = self.collector or gc.steps(
            self.db, self.store, options, Collected(), lambda: self.now_ns
        )
        for _ in range(steps):
            if next(self.collector, self) is self:
                self.collector = None
                return

    def collect_some(self) -> None:
        self.collect(self.random.randint(1, 5))

    def be_about_to_delete(self) -> None:
        """All that is there has been unwanted for long, and a collector is somewhere in it."""
        while self.sessions:
            self.abandon()
        while self.files:
            self.unlink()
        self.empty_trash()
        self.collect()
        self.now_ns += 4000 * SECOND
        self.collect(self.random.randint(4, 12))

    def crash(self) -> None:
        """The collector is killed; the next one begins anew."""
        self.collector = None

    def wait(self) -> None:
        self.now_ns += self.random.choice([1, 800, 3500, 4000, 8 * 86_400]) * SECOND

    # --- what must hold ---

    def check(self) -> None:
        chunks, refers = schema.chunks, schema.version_chunks
        same = (refers.c.drive == chunks.c.drive) & (refers.c.chunk == chunks.c.id)
        with self.db.read() as conn:
            rows = conn.execute(select(chunks).join(refers, same).distinct()).all()
            assert list(fsck_sums.check_sums(conn, Names(conn))) == []
        for row in rows:
            assert row.state in ("uploaded", "doomed"), row.state
            head = self.store.head(BlobKey(row.drive, row.id))
            assert head == Head(row.stored_length, row.sha256)
            assert msgspec.msgpack.decode(row.descriptor, type=Descriptor).sha256 == row.sha256
        self.located = [item for item in self.located if item[1] > self.now_ns]
        for key, _ in self.located:
            assert self.store.has(key), "a signed URL is of nothing"

    def finish(self) -> None:
        """fsck has nothing to say; and once all is deleted, nothing is left."""
        report = fsck.run(self.db, self.store, read_data=True)
        assert report.findings == []
        self.collector = None
        while self.files:
            self.unlink()
        self.empty_trash()
        for _ in range(4):
            self.now_ns += 8 * DAY
            self.collect()
            self.check()
        with self.db.read() as conn:
            assert conn.execute(select(schema.chunks)).all() == []
            drive = conn.execute(select(schema.drives)).one()
            assert conn.execute(select(schema.uploaders)).all() == []
        assert (drive.used_bytes, drive.reserved_bytes) == (0, 0)
        assert (drive.unshown_bytes, drive.promised_chunks) == (0, 0)
        assert self.store.objects == {}


WEIGHTS = {
    World.start: 8,
    World.resume: 2,
    World.begin_put: 8,
    World.end_put: 8,
    World.deliver: 8,
    World.look: 4,
    World.commit: 12,
    World.whole: 6,
    World.abandon: 1,
    World.revoke: 1,
    World.unlink: 3,
    World.revert: 2,
    World.empty_trash: 2,
    World.locate: 3,
    World.collect_some: 12,
    World.collect: 1,
    World.be_about_to_delete: 4,
    World.crash: 1,
    World.wait: 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(amount(4, 1, "NEARLINE_FUZZ_EXAMPLES")))
def test_a_walk(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    world = World(tmp_path, random)
    taken: list[str] = []
    try:
        for step in random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=200):
            taken.append(step.__name__)
            step(world)
            world.check()
        world.finish()
    except AssertionError as error:
        error.add_note(f"the walk was: {' '.join(taken)}")
        raise
    finally:
        world.db.close()
