"""Several chunks sent as one object: asked for, arrived, read back and read."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, update

from remote.protocol import messages
from server.metadata.schema import bundles
from server.storage.blobs import BlobKey
from tests.server.harness import Chunk, Client, Running, make_chunk, noise
from tests.server.lookups import check_sums, row_of, settled
from tests.server.sending import (
    Announced,
    store_together,
)


def some(client: Client, count: int = 3, seed: str = "") -> list[Chunk]:
    return [
        make_chunk(noise(1000 + 100 * number, f"{client.token} {seed} {number}"))
        for number in range(count)
    ]


def bundle_row(server: Running, client: Client, id: bytes) -> Row[Any] | None:
    with server.app.service.db.read() as conn:
        mine = (bundles.c.drive == client.me.drive) & (bundles.c.id == id)
        return conn.execute(select(bundles).where(mine)).first()


def change_bundle(server: Running, client: Client, id: bytes, **values: Any) -> None:
    with server.app.service.db.write() as conn:
        mine = (bundles.c.drive == client.me.drive) & (bundles.c.id == id)
        conn.execute(update(bundles).where(mine).values(**values))


def has(server: Running, client: Client, id: bytes) -> bool:
    return server.app.service.blobs.has(BlobKey(client.me.drive, id))


def located(client: Client, part: Announced, **more: Any) -> messages.Located:
    wanted = {"file": part.file, "version": part.version, "chunks": [part.chunk.id]}
    return client.locate(**wanted, **more).chunks[0]


def got(client: Client, found: messages.Located) -> bytes:
    """The stored bytes of a chunk, by a range of what it is in."""
    end = found.offset + found.descriptor.stored_length - 1
    reply = client.http.get(found.url, headers={"Range": f"bytes={found.offset}-{end}"})
    assert reply.status_code == 206, reply.text
    return reply.content


# --- sent and read ------------------------------------------------------------------------------


def test_chunks_sent_as_one_object_are_one_object(server: Running, anna: Client) -> None:
    chunks = some(anna)
    bundle, parts = store_together(anna, *chunks)
    settled(server)
    for part, offset in zip(parts, bundle.offsets, strict=True):
        row = row_of(server, anna.me.drive, part.chunk.id)
        assert row is not None
        assert (row.state, row.bundle, row.bundle_offset) == ("uploaded", bundle.id, offset)
        assert row.verified_ns is not None
        assert not has(server, anna, part.chunk.id)
        found = located(anna, part, bundles=True)
        assert bundle.id.hex() in found.url
        assert found.offset == offset
        assert got(anna, found) == part.chunk.data
    row = bundle_row(server, anna, bundle.id)
    assert row is not None
    assert (row.length, row.emptied_ns, row.deleting) == (bundle.length, None, 0)
    check_sums(server, anna.me.drive)


def test_several_are_located_at_once_with_their_offsets(server: Running, anna: Client) -> None:
    bundle, parts = store_together(anna, *some(anna))
    whole = [messages.WholeVersion(file=part.file, version=part.version) for part in parts]
    wanted = messages.LocateSeveral(versions=whole, bundles=True)
    reply = anna.request("POST", "/v1/chunks/locate-several", messages.LocateSeveralReply, wanted)
    found = [item.chunks[0] for item in reply.found if isinstance(item, messages.LocatedVersion)]
    assert tuple(item.offset for item in found) == bundle.offsets
    assert len({item.url for item in found}) == 1
    assert [got(anna, item) for item in found] == [part.chunk.data for part in parts]


def test_who_does_not_ask_for_bundles_is_given_the_chunk_alone(
    server: Running, anna: Client
) -> None:
    _, parts = store_together(anna, *some(anna))
    for part in parts:
        found = located(anna, part)
        assert (part.chunk.id.hex() in found.url, found.offset) == (True, 0)
        assert anna.http.get(found.url).content == part.chunk.data
        row = row_of(server, anna.me.drive, part.chunk.id)
        assert row is not None
        assert (row.copied, row.bundle is None) == (1, False)
    check_sums(server, anna.me.drive)
