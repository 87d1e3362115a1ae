"""Many announcements at once are as good as one by one, and cost little more than one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select, update

from remote.protocol import messages
from remote.protocol.content import EMPTY, Descriptor
from remote.protocol.errors import AnyProblem, Refused
from server.accounts import accounts, tokens
from server.drive import commits
from server.metadata import schema
from server.metadata.db import Database
from server.permissions.caller import Caller
from server.storage.blobs import BlobKey, Head, LocalBlobStore
from server.uploads import arrivals, sessions
from server.uploads.arrivals import Arrival
from server.uploads.quota import Budget, Limits
from tests.amounts import amount
from tests.server.copies import FILE, copied, rows_of, statements
from tests.server.harness import Chunk, make_chunk, noise

NOW = 1000
LIMITS = Limits(12 * 64 * 1024, 9)
_numbers = itertools.count(1)


class Place(NamedTuple):
    """`files` and `parents` are ids to announce for; `versions` have sessions: the owner's that is
    alive, one that is over, ben's, the token's, and one is committed."""

    folder: Path
    callers: dict[str, Caller]
    files: list[str]
    parents: list[str | None]
    versions: list[str]
    chunks: list[Chunk]


def fresh() -> str:
    return f"{next(_numbers):032x}"


def put(drive: str, descriptor: Descriptor, proof: str | None) -> messages.PresignedPut:
    url = f"/{drive}/{descriptor.id.hex()}/{proof}"
    return messages.PresignedPut(url=url, headers={}, expires_ns=0)


def terms(conn: Connection, caller: Caller, limits: Limits = LIMITS) -> sessions.Terms:
    return sessions.Terms(10**9, Budget(conn, caller, limits), put)


def start(
    conn: Connection, caller: Caller, wanted: messages.StartUpload, now_ns: int = NOW
) -> messages.UploadState | AnyProblem:
    """One announcement; a refusal undoes only what it did."""
    conn.exec_driver_sql("SAVEPOINT one")
    try:
        return sessions.start(conn, caller, wanted, terms(conn, caller), now_ns)
    except Refused as error:
        conn.exec_driver_sql("ROLLBACK TO SAVEPOINT one")
        return error.problem  # type: ignore[return-value]  # every Problem
    finally:
        conn.exec_driver_sql("RELEASE SAVEPOINT one")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("announcing")
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
    guest = Caller(ben[0], "ben", bens, "full", rows[ben[0]].id)
    shared, private, inside, committed = fresh(), fresh(), fresh(), fresh()
    chunks = [make_chunk(noise(100 + number, "announcing")) for number in range(6)]
    versions = [fresh() for _ in range(4)]
    make = messages.Create
    ops: list[messages.Op] = [
        make(file=shared, parent=root, name="s", kind="directory", mode=0, mtime_ns=1),
        make(file=private, parent=root, name="p", kind="directory", mode=0, mtime_ns=1),
        make(
            file=inside,
            parent=shared,
            name="f",
            kind="file",
            mode=0,
            mtime_ns=1,
            content=messages.Content(version=committed, manifest=EMPTY),
        ),
    ]
    with db.write() as conn:
        keyed = [messages.Keyed(key=fresh(), op=op) for op in ops]
        assert all(
            isinstance(each, messages.Applied) for each in commits.apply(conn, owner, keyed, 1)[0]
        )
        _, script = tokens.new_device(conn, anna[0], "script", 1, folder=shared)
        grant = {"file": shared, "account": ben[0], "role": "editor", "granted_by": anna[0]}
        conn.execute(insert(schema.grants), grant | {"at_ns": 1, "place": root, "name": "s"})
        mine = schema.accounts.c.id == anna[0]
        conn.execute(update(schema.accounts).where(mine).values(quota_bytes=700))
    token = Caller(anna[0], "anna", script, "full", drive, folder=shared)
    with db.write() as conn:
        begun = zip(versions, (owner, owner, guest, token), (0, 1, 2, 1), strict=True)
        for version, who, chunk in begun:
            descriptors = [chunks[chunk].descriptor]
            wanted = messages.StartUpload(
                version=version, file=inside, descriptors=descriptors, parent=shared
            )
            assert isinstance(start(conn, who, wanted), messages.UploadState)
        over = schema.uploads.c.version == versions[1]
        conn.execute(update(schema.uploads).where(over).values(expires_ns=5))
        for chunk, state in ((3, "uploaded"), (4, "doomed")):
            row = {"drive": drive, "id": chunks[chunk].id, "state": state, "created_ns": 1}
            each = chunks[chunk].descriptor
            row |= {"length": each.length, "stored_length": each.length, "sha256": each.sha256}
            conn.execute(insert(schema.chunks), row | {"descriptor": msgspec.msgpack.encode(each)})
    db.close()
    callers = {"anna": owner, "ben": guest, "token": token}
    files = [inside, private, fresh(), fresh()]
    return Place(folder, callers, files, [None, shared, private], [*versions, committed], chunks)


@st.composite
def announced(draw: st.DrawFn, place: Place) -> list[messages.StartUpload]:
    some = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    new = [fresh() for _ in range(2)]
    found = []
    for number in some:
        chunks = draw(st.lists(st.sampled_from(place.chunks), max_size=3))
        descriptors = [item.descriptor for item in chunks]
        if number == 0 and descriptors:
            descriptors[0] = msgspec.structs.replace(descriptors[0], id=bytes(32))
        found.append(
            messages.StartUpload(
                version=draw(st.sampled_from([fresh(), *new, *place.versions])),
                file=draw(st.sampled_from(place.files)),
                parent=draw(st.sampled_from(place.parents)),
                descriptors=descriptors,
            )
        )
    return found


@pytest.mark.parametrize("who", ["anna", "ben", "token"])
@given(data=st.data())
@settings(
    deadline=None,
    max_examples=amount(60, 8),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_announced_together_or_one_by_one(place: Place, who: str, data: st.DataObject) -> None:
    caller, wanted = place.callers[who], data.draw(announced(place))
    with copied(place.folder) as one, copied(place.folder) as many:
        with one.write() as conn:
            answers = [start(conn, caller, item) for item in wanted]
        with many.write() as conn:
            never = lambda: False  # noqa: E731
            found = sessions.start_many(conn, caller, wanted, terms(conn, caller), NOW, never)
        assert found == answers
        assert rows_of(many) == rows_of(one)


def test_files_in_bulk_cost_few_statements_from_announcement_to_arrival(
    place: Place, tmp_path: Path
) -> None:
    caller, blobs = place.callers["anna"], LocalBlobStore(tmp_path)
    asked = []
    for count in (5, 45):
        chunks = [make_chunk(noise(5, f"bulk {number}")) for number in range(count)]
        wanted = [
            messages.StartUpload(version=fresh(), file=fresh(), descriptors=[item.descriptor])
            for item in chunks
        ]
        told = []
        for chunk in chunks:
            key = BlobKey(caller.drive, chunk.id)
            with blobs.create(key) as writer:
                writer.write(chunk.data)
                writer.commit()
            told.append(Arrival(key, Head(len(chunk.data), chunk.descriptor.sha256)))
        with copied(place.folder) as db, statements(db) as found:
            with db.write() as conn:
                wide = terms(conn, caller, Limits(1 << 40, 1 << 20))
                begun = sessions.start_many(conn, caller, wanted, wide, NOW, lambda: False)
            assert all(isinstance(item, messages.UploadState) for item in begun)
            with db.write() as conn:
                assert len(arrivals.arrived(conn, blobs, told, NOW)) == count
        asked.append(len(found))
    assert asked[1] == asked[0]
    assert asked[1] <= 25
