"""Content for those who have no client of ours: ranges, archives, damage, headers, origins."""

from __future__ import annotations

import asyncio
import contextlib
import io
import stat
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from remote.protocol import messages
from remote.protocol.codec import encode_chunk
from remote.protocol.content import HOLE, Manifest, Piece
from server.drive import versions
from server.links import content_http, zip, zip_layout
from server.links.content import PIECE, DamagedContent, Library
from server.links.content_http import ContentServer
from server.links.origin import Origins
from server.links.signing import DOWNLOAD_SECONDS, Wanted
from server.links.tree import LinkGone, LinkTree
from server.links.zip import Content, Member, archive
from server.settings import BadSettings, Settings, Tunables
from server.storage.blobs import BlobKey
from tests.server.conftest import Start
from tests.server.harness import (
    Chunk,
    Client,
    Running,
    make_chunk,
    manifest_of,
    new_id,
    noise,
    until,
)
from tests.server.linking import Visitor, make_link, revoke, sparse
from tests.server.lookups import change_row, until_verified
from tests.server.sending import store_together
from tests.server.zip_stream import streamed

CHUNKS = [make_chunk(noise(700_000, "one")), make_chunk(noise(1_400_000, "two"))]
TEXT = Chunk(b"text " * 100_000, encode_chunk(b"text " * 100_000).descriptor)
HOLE_BYTES = 300_000
WHOLE = CHUNKS[0].data + bytes(HOLE_BYTES) + TEXT.data + CHUNKS[1].data + CHUNKS[0].data


@pytest.fixture
def visitor(server: Running, anna: Client) -> Iterator[Visitor]:
    """Of a directory `top` with one file `mixed`: several chunks, one of them twice, one
    compressed, and a hole."""
    top = anna.mkdir("top")
    mixed(anna, top)
    made = Visitor.at(server.url, make_link(anna, top))
    yield made
    made.http.close()


def mixed(anna: Client, parent: str) -> str:
    file, version = new_id(), new_id()
    text = Chunk(bytes(encode_chunk(TEXT.data).body), TEXT.descriptor)
    anna.upload(version, file, *CHUNKS, text)
    pieces = [
        Piece(CHUNKS[0].id, len(CHUNKS[0].data)),
        Piece(HOLE, HOLE_BYTES),
        Piece(TEXT.id, len(TEXT.data)),
        Piece(CHUNKS[1].id, len(CHUNKS[1].data)),
        Piece(CHUNKS[0].id, len(CHUNKS[0].data)),
    ]
    manifest = Manifest(size=len(WHOLE), average=1 << 20, pieces=pieces)
    anna.make(
        "mixed", parent, file=file, content=messages.Content(version=version, manifest=manifest)
    )
    return file


def file_in(anna: Client, name: str, directory: str = "top") -> str:
    return anna.children(anna.children()[directory].id)[name].id


@pytest.fixture
def url(anna: Client, visitor: Visitor) -> str:
    return visitor.content(f"/{file_in(anna, 'mixed')}/download")


# --- a file -------------------------------------------------------------------------------------


def test_a_whole_file(visitor: Visitor, url: str) -> None:
    got = visitor.http.get(url)
    assert got.status_code == 200
    assert got.content == WHOLE
    assert got.headers["content-length"] == str(len(WHOLE))
    assert got.headers["accept-ranges"] == "bytes"
    head = visitor.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-disposition", "accept-ranges"):
        assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=262143-262144", 262_143, 262_145),
        ("bytes=699990-1000010", 699_990, 1_000_011),
        ("bytes=1000000-1499999", 1_000_000, 1_500_000),
        ("bytes=-7", len(WHOLE) - 7, len(WHOLE)),
        ("bytes=3000000-", 3_000_000, len(WHOLE)),
        ("bytes=5-99999999", 5, len(WHOLE)),
    ],
)
def test_one_range(visitor: Visitor, url: str, asked: str, start: int, end: int) -> None:
    got = visitor.http.get(url, headers={"Range": asked})
    assert got.status_code == 206
    assert got.headers["content-range"] == f"bytes {start}-{end - 1}/{len(WHOLE)}"
    assert got.headers["content-length"] == str(end - start)
    assert got.content == WHOLE[start:end]


def test_going_on_where_it_broke_off(visitor: Visitor, url: str) -> None:
    etag = visitor.http.head(url).headers["etag"]
    rest = visitor.http.get(url, headers={"Range": "bytes=1000000-", "If-Range": etag})
    assert (rest.status_code, rest.content) == (206, WHOLE[1_000_000:])
    other = visitor.http.get(url, headers={"Range": "bytes=1000000-", "If-Range": '"x"'})
    assert (other.status_code, other.content) == (200, WHOLE)
    beyond = visitor.http.get(url, headers={"Range": f"bytes={len(WHOLE)}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{len(WHOLE)}"


def test_an_empty_file(anna: Client, visitor: Visitor) -> None:
    file = anna.make("empty", anna.children()["top"].id)
    got = visitor.http.get(visitor.content(f"/{file}/download"))
    assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"", "0")


def test_a_url_goes_on_with_the_version_it_was_made_for(anna: Client, visitor: Visitor) -> None:
    old, new = make_chunk(noise(100, "old")), make_chunk(noise(100, "new"))
    file, version = anna.store("a", old, parent=anna.children()["top"].id)
    first = visitor.content(f"/{file}/download")
    again = new_id()
    anna.upload(again, file, new)
    content = messages.Content(version=again, base=version, manifest=manifest_of(new))
    anna.do(messages.Write(file=file, content=content, mtime_ns=1))
    assert visitor.http.get(first).content == old.data
    assert visitor.http.get(visitor.content(f"/{file}/download")).content == new.data


def test_content_does_nothing_in_a_browser(anna: Client, visitor: Visitor, url: str) -> None:
    archived = visitor.content(f"/{anna.children()['top'].id}/zip")
    answers = [visitor.http.get(item) for item in (url, archived, url + "x")]
    answers.append(visitor.http.post(url))
    assert [item.status_code for item in answers] == [200, 200, 403, 405]
    for item in answers:
        assert item.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert item.headers["x-content-type-options"] == "nosniff"
        assert item.headers["referrer-policy"] == "no-referrer"
        assert item.headers["cache-control"] == "private, no-store"
    for item in answers[:2]:
        assert item.headers["content-type"] == "application/octet-stream"
        assert item.headers["content-disposition"].startswith("attachment; ")


def test_the_url_is_signed_and_expires(server: Running, visitor: Visitor, url: str) -> None:
    path, _, query = url.partition("?")
    parts = path.rsplit("/", 3)
    wrong = [
        path,
        f"{path}?{query.replace('Expires=', 'Expires=1')}",
        "/".join([*parts[:3], "zip"]) + f"?{query}",
        "/".join([parts[0], parts[2], parts[1], parts[3]]) + f"?{query}",
        f"{url}&x=1",
    ]
    for item in wrong:
        assert visitor.http.get(item).status_code == 403, item
    signer, now = server.app.service.links, time.time_ns()
    link, file, version = (part for part in parts[1:])
    for seconds, status in ((DOWNLOAD_SECONDS - 60, 200), (DOWNLOAD_SECONDS + 1, 403)):
        old = signer.content_url(Wanted(link, file, version), now - seconds * 10**9)
        assert visitor.http.get(old).status_code == status
    chunk = server.app.service.signer.get(BlobKey(link, bytes(32)), now)[0]
    assert visitor.http.get(chunk.replace("/chunks/", "/content/")).status_code == 403


# --- damage -------------------------------------------------------------------------------------


def damage(server: Running, client: Client, chunk: Chunk) -> None:
    """Flip the last byte of a stored object that has been verified: later, nobody looks."""
    until_verified(server)
    path = server.app.service.blobs.path(BlobKey(client.me.drive, chunk.id))
    stored = bytearray(path.read_bytes())
    stored[-1] ^= 1
    path.write_bytes(stored)


@pytest.mark.slow
def test_damage_stops_the_stream_before_the_first_wrong_byte(
    server: Running, anna: Client, visitor: Visitor
) -> None:
    chunk = make_chunk(noise(3_000_000, "damaged"))
    file, _ = anna.store("a", make_chunk(b"before"), chunk, parent=anna.children()["top"].id)
    url = visitor.content(f"/{file}/download")
    damage(server, anna, chunk)
    got = b""
    with visitor.http.stream("GET", url) as answer:
        pieces = answer.iter_raw()
        with contextlib.suppress(httpx.RemoteProtocolError):
            while True:
                got += next(pieces)  # StopIteration would say that all had come
    assert (b"before" + chunk.data).startswith(got)
    assert len(got) < len(chunk.data)
    good = visitor.http.get(url, headers={"Range": "bytes=0-1000000"})
    assert good.content == (b"before" + chunk.data)[:1_000_001]
    with pytest.raises(httpx.RemoteProtocolError):
        visitor.http.get(visitor.content(f"/{anna.children()['top'].id}/zip"))


def test_what_is_gone_stops_the_stream_too(server: Running, anna: Client, visitor: Visitor) -> None:
    chunk = make_chunk(noise(100, "gone"))
    file, _ = anna.store("a", chunk, parent=anna.children()["top"].id)
    url = visitor.content(f"/{file}/download")
    server.app.service.blobs.delete(BlobKey(anna.me.drive, chunk.id))
    with pytest.raises(httpx.RemoteProtocolError):
        visitor.http.get(url)


# --- bundles ------------------------------------------------------------------------------------


def test_a_chunk_that_collection_moves_meanwhile_is_read_where_it_is(
    server: Running, anna: Client
) -> None:
    """Whoever reads slowly has looked up the place long ago."""
    service, drive = server.app.service, anna.me.drive
    bundle, (part, *_) = store_together(
        anna, *(make_chunk(noise(900, f"{anna.token} {number}")) for number in range(2))
    )
    until_verified(server)
    with service.db.read() as conn:
        document = service.library.open(conn, part.file, part.version, drive)
    looked_up = document._stored([part.chunk.id])

    class Late(type(document)):  # type: ignore[misc]
        def _stored(self, ids: Sequence[bytes]) -> Any:
            """The first answer is old by the time that it is used."""
            if looked_up:
                return {id: looked_up.pop(id) for id in ids}
            return super()._stored(ids)

    late = Late(document.library, document.drive, document.version, document.outline)
    with service.blobs.create(BlobKey(drive, part.chunk.id)) as writer:
        writer.write(part.chunk.data)
        assert writer.commit()
    change_row(server, drive, part.chunk.id, bundle=None, bundle_offset=None)
    service.blobs.delete(BlobKey(drive, bundle.id))
    assert b"".join(late.read(0, 900)) == part.chunk.data
    assert looked_up == {}
    service.blobs.delete(BlobKey(drive, part.chunk.id))
    with pytest.raises(DamagedContent):
        list(document.read(0, 900))


# --- who is served ------------------------------------------------------------------------------


def content_server(server: Running, stall_seconds: float = 60.0) -> ContentServer:
    service = server.app.service
    library = Library(service.db.read, service.blobs)
    pools = (service.reads, service.files)
    return ContentServer(library, service.links, service.metrics, *pools, stall_seconds)


def scope_of(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    target = {"path": parts.path, "raw_path": parts.path.encode()}
    return {
        "type": "http",
        "method": "GET",
        "query_string": parts.query.encode(),
        "headers": [],
    } | target


async def never() -> Any:
    await asyncio.get_running_loop().create_future()


async def left() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def test_who_takes_nothing_is_let_go(server: Running, visitor: Visitor, url: str) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await never()

    asyncio.run(content_server(server, stall_seconds=0.01)(scope_of(url), never, send))
    assert [item["type"] for item in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["more_body"]


def test_who_has_left_is_sent_no_more(server: Running, anna: Client, visitor: Visitor) -> None:
    file = sparse(anna, "large", 1 << 40, anna.children()["top"].id)
    url = visitor.content(f"/{file}/download")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(content_server(server)(scope_of(url), left, send))
    assert len(sent) < 10
    assert all(item["more_body"] for item in sent[1:])


def test_no_account_waits_behind_visitors(server: Running, anna: Client, visitor: Visitor) -> None:
    """All threads that answer visitors are busy, and accounts are answered."""
    service = server.app.service
    busy = threading.Event()
    for pool in (service.visits, service.downloads):
        for _ in range(pool._max_workers):
            pool.submit(busy.wait, 20)
    with ThreadPoolExecutor(1) as browser:
        page = browser.submit(visitor.get)
        chunk = make_chunk(noise(100, "not a visitor's"))
        file, version = anna.store("a", chunk)
        url = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
        assert anna.http.get(url).content == chunk.data
        assert not page.done()
        busy.set()
        assert page.result(20).status_code == 200


def test_a_manifest_is_decoded_once_for_all_its_ranges(
    visitor: Visitor, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def manifest_of(row: Any) -> Manifest:
        decoded.append(row.id)
        return decode(row)

    decode = versions.manifest_of
    monkeypatch.setattr(versions, "manifest_of", manifest_of)
    for at in range(0, 1000, 100):
        got = visitor.http.get(url, headers={"Range": f"bytes={at}-{at}"})
        assert got.content == WHOLE[at : at + 1]
    assert len(decoded) == 1


def test_memory_is_constant(server: Running, anna: Client) -> None:
    file = sparse(anna, "large", 64 << 20)
    library = Library(server.app.service.db.read, server.app.service.blobs)
    version = anna.file(file).file.version
    assert version is not None
    with server.app.service.db.read() as conn:
        document = library.open(conn, file, version, anna.me.drive)
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in document.read(0, document.size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 4 << 20


def test_archives_at_a_time_are_bounded(
    anna: Client, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = visitor.content(f"/{anna.children()['top'].id}/zip")
    monkeypatch.setattr(content_http, "MAX_ARCHIVES", 0)
    refused = visitor.http.get(url)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")


def test_an_address_has_not_all_of_the_archives(
    anna: Client, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = visitor.content(f"/{anna.children()['top'].id}/zip")
    monkeypatch.setattr(content_http, "MAX_ARCHIVES_EACH", 0)
    assert visitor.http.get(url).status_code == 503
    monkeypatch.setattr(content_http, "MAX_ARCHIVES_EACH", 1)
    for _ in range(3):  # its place is given back just after an archive has ended
        until(lambda: visitor.http.get(url).status_code == 200)


# --- an archive ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tree_deeper_than_a_zip_has_room_for(anna: Client, visitor: Visitor) -> None:
    deepest = anna.children()["top"].id
    ops = []
    for _ in range(30):
        ops.append(anna.create("d" * 255, deepest, kind="directory"))
        deepest = ops[-1].file
    anna.batch(*ops)
    anna.store("deepest", make_chunk(b"hello"), parent=deepest)
    got = visitor.http.get(visitor.content(f"/{anna.children()['top'].id}/zip"))
    with zipfile.ZipFile(io.BytesIO(got.content)) as zipped:
        assert zipped.testzip() is None
        (found,) = (name for name in zipped.namelist() if name.endswith("/deepest"))
        assert len(zipped.namelist()) > 31
        assert max(len(name.encode()) for name in zipped.namelist()) <= 4096 + 1
        assert zipped.read(found) == b"hello"


def test_the_paths_in_an_archive_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index holds all of them, and many short names may be in one deep place."""
    names = [f"{n}" for n in range(100)]

    class Wide:
        """A directory of a long path, in which are many."""

        def members(self, directory: str, after: str | None) -> list[Member]:
            if after is not None or directory not in ("top", "long"):
                return []
            inside = names if directory == "long" else ["long" * 60]
            return [
                Member("long" if inside is not names else item, item, "directory", 0o755, 0)
                for item in inside
            ]

        def content(self, file: str) -> None:
            return None

    monkeypatch.setattr(zip, "_PATHS", 2000)
    monkeypatch.setattr(zip, "_SHORT_PATH", 50)
    packed = b"".join(archive(Wide(), Member("top", "top", "directory", 0o755, 0)))
    with zipfile.ZipFile(io.BytesIO(packed)) as zipped:
        found = zipped.namelist()
    assert len(found) == len(set(found)) == 102
    assert sum(map(len, found)) < 2000 + 300 + 51 * 100


@pytest.mark.slow
def test_a_tree_as_a_zip(anna: Client, visitor: Visitor, tmp_path: Path) -> None:
    top = anna.children()["top"].id
    below = anna.mkdir("below", top)
    anna.mkdir("empty", below)
    file, _ = anna.store("grüße.txt", make_chunk(b"hello"), parent=below)
    anna.do(messages.SetAttr(file=file, mode=0o4755, mtime_ns=1_600_000_001 * 10**9))
    anna.make("old", below, mtime_ns=-(1 << 62))
    anna.make("far", below, mtime_ns=1 << 62)
    anna.make("..\\up", below)
    anna.make("symlink", below, kind="symlink", target="/etc/passwd")
    anna.make("pipe", below, kind="fifo")
    got = visitor.http.get(visitor.content(f"/{top}/zip"))
    assert got.headers["content-disposition"] == 'attachment; filename="top.zip"'
    assert got.headers["accept-ranges"] == "none"
    with zipfile.ZipFile(io.BytesIO(got.content)) as zipped:
        assert zipped.testzip() is None
        infos = {info.filename: info for info in zipped.infolist()}
        zipped.extractall(tmp_path)
    (up,) = (name for name in infos if "up" in name)
    assert "\\" not in up
    assert set(infos) == {
        "top/",
        "top/mixed",
        "top/below/",
        "top/below/empty/",
        "top/below/far",
        "top/below/grüße.txt",
        "top/below/old",
        up,
    }
    assert {path: len(data) for path, data in streamed(got.content).items()} == {
        path: info.file_size for path, info in infos.items()
    }
    assert (tmp_path / "top/mixed").read_bytes() == WHOLE
    assert (tmp_path / "top/below/grüße.txt").read_bytes() == b"hello"
    assert (tmp_path / "top/below/empty").is_dir()
    hello = infos["top/below/grüße.txt"]
    assert hello.date_time == (2020, 9, 13, 12, 26, 40)
    assert hello.external_attr >> 16 == stat.S_IFREG | 0o755
    below_only = visitor.http.get(visitor.content(f"/{below}/zip"))
    with zipfile.ZipFile(io.BytesIO(below_only.content)) as zipped:
        assert {name.partition("/")[0] for name in zipped.namelist()} == {"below"}


class Scripted:
    """A tree that is as it is told, whenever it is asked."""

    def __init__(self, members: dict[str, list[Member]], content: dict[str, Content | None]):
        self._members, self._content = members, content

    def members(self, directory: str, after: str | None) -> list[Member]:
        found = self._members.get(directory, [])
        return [item for item in found if after is None or item.name > after][:2]

    def content(self, file: str) -> Content | None:
        return self._content[file]


def test_what_goes_while_it_is_packed_is_left_out(server: Running, anna: Client) -> None:
    file, version = anna.store("a", make_chunk(b"here"))
    library = Library(server.app.service.db.read, server.app.service.blobs)
    with server.app.service.db.read() as conn:
        document = library.open(conn, file, version, anna.me.drive)
    names = [Member(name, name, "file", 0o644, 0) for name in ("a", "gone", "z")]
    names.insert(1, Member("dir", "dir", "directory", 0o755, 0))
    here = Content(document, 0o644, 0)
    tree = Scripted({"top": names}, {"a": here, "gone": None, "z": here})
    packed = b"".join(archive(tree, Member("top", "top", "directory", 0o755, 0)))
    with zipfile.ZipFile(io.BytesIO(packed)) as zipped:
        assert zipped.namelist() == ["top/", "top/a", "top/dir/", "top/z"]
        assert zipped.read("top/z") == b"here"


def test_a_real_tree_changes_while_it_is_packed(server: Running, anna: Client) -> None:
    top = anna.mkdir("top")
    first, second = anna.mkdir("1", top), anna.mkdir("2", top)
    anna.make("in 1", first)
    leaving = anna.make("leaving", second)
    anna.store("large", make_chunk(noise(1 << 20, "large")), parent=top)
    made = make_link(anna, top)
    library = Library(server.app.service.db.read, server.app.service.blobs)
    tree = LinkTree(library, made.link.id, time.time_ns)
    packing = archive(tree, Member(top, "top", "directory", 0o755, 0))
    begun = next(packing)
    root = anna.me.root
    anna.do(messages.Rename(parent=top, name="1", file=first, new_parent=root, new_name="1"))
    anna.do(messages.Unlink(parent=second, name="leaving", file=leaving))
    anna.make("new", second)
    rest = b"".join(packing)
    with zipfile.ZipFile(io.BytesIO(begun + rest)) as zipped:
        assert zipped.testzip() is None
        names = set(zipped.namelist())
    assert names == {"top/", "top/1/", "top/2/", "top/2/new", "top/large"}


def test_a_link_revoked_while_it_is_packed_ends_the_archive(server: Running, anna: Client) -> None:
    top = anna.mkdir("top")
    anna.mkdir("below", top)
    anna.store("large", make_chunk(noise(1 << 20, "large")), parent=top)
    made = make_link(anna, top)
    library = Library(server.app.service.db.read, server.app.service.blobs)
    tree = LinkTree(library, made.link.id, time.time_ns)
    packing = archive(tree, Member(top, "top", "directory", 0o755, 0))
    begun = next(packing)
    revoke(anna, made.link.id)
    with pytest.raises(LinkGone):
        list(packing)
    assert not zipfile.is_zipfile(io.BytesIO(begun))


def test_sizes_that_need_zip64(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, version = anna.store("a", make_chunk(noise(5000, "zip64")))
    library = Library(server.app.service.db.read, server.app.service.blobs)
    with server.app.service.db.read() as conn:
        document = library.open(conn, file, version, anna.me.drive)
    members = [Member(name, name, "file", 0o644, 0) for name in ("a", "b")]
    content = Content(document, 0o644, 0)
    tree = Scripted({"top": members}, {"a": content, "b": content})
    with monkeypatch.context() as small:
        small.setattr(zip_layout, "_LIMIT", 3000)
        packed = b"".join(archive(tree, Member("top", "top", "directory", 0o755, 0)))
    assert b"PK\x06\x06" in packed  # the ZIP64 end of central directory
    with zipfile.ZipFile(io.BytesIO(packed)) as zipped:
        assert zipped.testzip() is None
        assert zipped.read("top/b") == noise(5000, "zip64")


def test_damage_ends_an_archive(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(100, "in a zip"))
    top = anna.mkdir("top")
    anna.store("a", chunk, parent=top)
    damage(server, anna, chunk)
    made = make_link(anna, top)
    library = Library(server.app.service.db.read, server.app.service.blobs)
    tree = LinkTree(library, made.link.id, time.time_ns)
    with pytest.raises(DamagedContent):
        list(archive(tree, Member(top, "top", "directory", 0o755, 0)))


def test_pieces_are_small(server: Running, anna: Client) -> None:
    top = anna.mkdir("top")
    sparse(anna, "large", 5 << 20, top)
    made = make_link(anna, top)
    library = Library(server.app.service.db.read, server.app.service.blobs)
    tree = LinkTree(library, made.link.id, time.time_ns)
    sizes = [len(p) for p in archive(tree, Member(top, "top", "directory", 0o755, 0))]
    assert sum(sizes) > 5 << 20
    assert max(sizes) < 3 * PIECE
    assert zip.MAX_MEMBERS < 65_536


# --- an origin of its own -----------------------------------------------------------------------


def test_content_has_an_origin_of_its_own(start: Start) -> None:
    server = start(content_url="http://content.example.org")
    anna = server.account("anna")
    file, _ = anna.store("a", make_chunk(b"apart"))
    visitor = Visitor.at(server.url, make_link(anna, file))
    try:
        url = visitor.content(f"/{file}/download")
        assert url.startswith("http://content.example.org/content/")
        target = url.removeprefix("http://content.example.org")
        there = {"Host": "content.example.org"}
        assert visitor.http.get(target, headers=there).content == b"apart"
        assert visitor.http.get(target, headers={"Host": "Content.Example.ORG:80"}).is_success
        assert visitor.http.get(target).status_code == 404
        for path in (visitor.url, "/v1/me", "/healthz", "/schema"):
            assert visitor.http.get(path, headers=there).status_code == 404
        assert visitor.get().status_code == 200
    finally:
        visitor.http.close()


def test_which_name_refuses_what() -> None:
    def refuses(origins: Origins, host: bytes, path: str) -> bool:
        return origins.refuses({"headers": [(b"host", host)], "path": path})

    one = Origins(None)
    assert not refuses(one, b"anything", "/content/x")
    assert not refuses(one, b"anything", "/v1/me")
    two = Origins("https://c.example:8443")
    assert not refuses(two, b"c.example:8443", "/content/x")
    assert refuses(two, b"c.example:8443", "/v1/me")
    assert refuses(two, b"c.example", "/content/x")
    assert refuses(two, b"", "/content/x")
    assert two.refuses({"headers": [], "path": "/content/x"})
    twice = {"headers": [(b"host", b"c.example:8443"), (b"host", b"x")], "path": "/content/x"}
    assert two.refuses(twice)


def test_an_origin_must_be_another(tmp_path: Path) -> None:
    for wrong in ("https://h", "https://H", "https://c/path", "c.example"):
        with pytest.raises(BadSettings):
            Settings(tmp_path, "https://h", Tunables(content_url=wrong))
    Settings(tmp_path, "https://h", Tunables(content_url="https://c"))
