"""Nobody is handed a URL that has bytes of a chunk that they may not read.

Chunks of files of several directories are stored as one object. Everybody who may come to the drive
asks in every way where each of them is, and fetches all that each URL they are given has: the whole
and many ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from remote.protocol import messages
from server.permissions import access
from tests.server.harness import Chunk, Client, Failed, Running, make_chunk, noise
from tests.server.linking import Visitor, make_link
from tests.server.lookups import row_of, until_verified
from tests.server.matrix import Scene
from tests.server.sending import Announced, announce, make, send

# So many bytes of noise are nowhere by chance.
TELLING = 16

READABLE = {
    "owner": {"shared", "inner", "beside", "root"},
    "reader": {"shared", "inner", "beside", "root"},
    "folder": {"shared", "inner"},
    "elsewhere": {"beside"},
    "editor": {"shared", "inner"},
    "viewer": {"shared", "inner"},
    "guest": {"inner"},
    "stranger": set(),
    "revoked": set(),
    "expired": set(),
    "ended": set(),
    "visitor": set(),
}


class Street(NamedTuple):
    """Files by the name of their directory, whose chunks lie in one object of `length` bytes."""

    scene: Scene
    files: dict[str, Announced]
    offsets: dict[str, int]
    length: int

    def names_in(self, body: bytes) -> set[str]:
        """The files of which there are bytes in `body`."""
        return {name for name, part in self.files.items() if is_any_of(part.chunk, body)}


def is_any_of(chunk: Chunk, body: bytes) -> bool:
    data = chunk.data
    return any(data[at : at + TELLING] in body for at in range(0, len(data), TELLING))


@pytest.fixture
def street(server: Running) -> Street:
    """New for each test: what somebody was given before must not matter."""
    scene = Scene(server)
    owner = scene.owner
    names = {"shared": scene.shared, "inner": scene.inner, "beside": scene.beside, "root": None}
    parts = announce(owner, *(make_chunk(noise(3000, f"{owner.token} {name}")) for name in names))
    bundle = send(owner, *parts)
    for part, place in zip(parts, names.values(), strict=True):
        make(owner, "a neighbour", part, place)
    scene.who["guest"] = scene.guest
    until_verified(server)
    files = dict(zip(names, parts, strict=True))
    return Street(scene, files, dict(zip(names, bundle.offsets, strict=True)), bundle.length)


def asked(client: Client, part: Announced, *, bundles: bool) -> Iterator[messages.Located]:
    """Where the chunk is, in every way that one can ask."""
    here: dict[str, Any] = {"file": part.file, "version": part.version, "bundles": bundles}
    span = messages.Span(0, 1)
    for wanted in (
        messages.LocateRequest(chunks=[part.chunk.id], **here),
        messages.LocateRequest(span=span, manifest=True, **here),
    ):
        try:
            reply = client.request("POST", "/v1/chunks/locate", messages.LocateReply, wanted)
        except Failed:
            continue
        yield from reply.chunks
    whole = messages.WholeVersion(file=part.file, version=part.version)
    try:
        several = client.request(
            "POST",
            "/v1/chunks/locate-several",
            messages.LocateSeveralReply,
            messages.LocateSeveral(versions=[whole], bundles=bundles),
        )
    except Failed:
        return
    for item in several.found:
        if isinstance(item, messages.LocatedVersion):
            yield from item.chunks


def all_of(http: httpx.Client, url: str, street: Street) -> bytes:
    """Everything that the URL gives, to whoever asks."""
    places = [(0, street.length), *((at, at + 3000) for at in street.offsets.values())]
    ranges = [f"bytes={start}-{end - 1}" for start, end in places]
    ranges += ["bytes=0-", "bytes=1-", "bytes=2999-", "bytes=-1", "bytes=-4000", "bytes=-99999"]
    got = http.get(url).content
    return got + b"".join(http.get(url, headers={"Range": item}).content for item in ranges)


@pytest.mark.parametrize("who", READABLE)
@pytest.mark.parametrize("bundles", [True, False], ids=["bundles", "alone"])
def test_no_url_has_bytes_of_a_chunk_that_one_may_not_read(
    street: Street, who: str, bundles: bool
) -> None:
    client = street.scene.who[who]
    for name, part in street.files.items():
        found = list(asked(client, part, bundles=bundles))
        assert len(found) == (3 if name in READABLE[who] else 0)
        for item in found:
            end = item.offset + item.descriptor.stored_length - 1
            mine = client.http.get(item.url, headers={"Range": f"bytes={item.offset}-{end}"})
            assert mine.content == part.chunk.data
            assert street.names_in(all_of(client.http, item.url, street)) <= READABLE[who]


def test_the_owner_is_given_the_neighbours_too(street: Street) -> None:
    """Else the test above could not fail."""
    for who in ("owner", "reader"):
        client = street.scene.who[who]
        item = next(asked(client, street.files["inner"], bundles=True))
        assert street.names_in(client.http.get(item.url).content) == set(street.files)


def test_a_drive_that_is_not_ones_own_is_never_ones_own(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above does fail when everybody counts as the owner."""
    monkeypatch.setattr(access, "owns_drive", lambda caller, drive: True)
    viewer = street.scene.who["viewer"]
    item = next(asked(viewer, street.files["shared"], bundles=True))
    assert not street.names_in(all_of(viewer.http, item.url, street)) <= READABLE["viewer"]


def test_a_visitor_of_a_link_is_given_what_the_link_shows(server: Running, street: Street) -> None:
    scene = street.scene
    visitor = Visitor.at(server.url, make_link(scene.owner, scene.inner))
    file = street.files["inner"]
    download, archive = (
        visitor.content(f"/{file.file}/download"),
        visitor.content(f"/{scene.inner}/zip"),
    )
    assert visitor.http.get(download).content == file.chunk.data
    for url in (download, archive):
        assert street.names_in(visitor.http.get(url).content) == {"inner"}
        assert street.names_in(all_of(visitor.http, url, street)) == {"inner"}
    row = row_of(server, scene.owner.me.drive, file.chunk.id)
    assert row is not None
    assert row.copied == 0  # it is read where it is
