"""The embedded edge: signed GETs, whole and by range."""

from __future__ import annotations

import http.client
import time

import pytest

from remote.protocol import messages
from server.storage import edge
from server.storage.blobs import BlobKey
from server.storage.edge import parse_range
from tests.server.harness import Client, Failed, Running, make_chunk, new_id, noise

DATA = noise(3_000_000, "edge")


@pytest.fixture
def url(anna: Client) -> str:
    chunk = make_chunk(DATA)
    file, version = anna.store("a", chunk)
    return anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url


def test_a_whole_object(anna: Client, url: str) -> None:
    got = anna.http.get(url)
    assert (got.status_code, got.content) == (200, DATA)
    assert got.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["etag"].strip('"') in url
    head = anna.http.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(DATA)))


def test_what_is_not_in_the_page_cache_is_served_too(
    anna: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "_is_cached", lambda *_: False)
    assert anna.http.get(url).content == DATA


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=262144-524287", 262144, 524288),
        ("bytes=2999990-", 2_999_990, 3_000_000),
        ("bytes=-7", 2_999_993, 3_000_000),
        ("bytes=1-99999999", 1, 3_000_000),
        ("bytes=-99999999", 0, 3_000_000),
    ],
)
def test_one_range(anna: Client, url: str, asked: str, start: int, end: int) -> None:
    got = anna.http.get(url, headers={"Range": asked})
    assert got.status_code == 206
    assert got.headers["content-range"] == f"bytes {start}-{end - 1}/3000000"
    assert got.content == DATA[start:end]


@pytest.mark.parametrize("asked", ["bytes=3000000-", "bytes=3000000-3000001", "bytes=-0"])
def test_a_range_that_is_not_there(anna: Client, url: str, asked: str) -> None:
    got = anna.http.get(url, headers={"Range": asked})
    assert (got.status_code, got.headers["content-range"]) == (416, "bytes */3000000")


@pytest.mark.parametrize("asked", [b"bytes=0-1,5-6", b"lines=0-1", b"bytes=5-1", b"bytes=-", b"x"])
def test_a_range_that_is_not_understood_is_ignored(asked: bytes) -> None:
    assert parse_range(asked, 100) is None


def raw_get(server: Running, target: str) -> int:
    """The status of a GET of exactly this target; other clients tidy it up first."""
    conn = http.client.HTTPConnection(server.url.removeprefix("http://"))
    try:
        conn.request("GET", target)
        return conn.getresponse().status
    finally:
        conn.close()


def test_the_url_is_all_the_permission_and_exact(server: Running, anna: Client, url: str) -> None:
    path = url.removeprefix(server.url)
    other = f"{path[:-100]}{'A' if path[-100] != 'A' else 'B'}{path[-99:]}"
    wrong = [
        path.partition("?")[0],
        path.replace("Expires=", "Expires=1"),
        path.replace("/chunks/", "/chunks//"),
        path.replace("/chunks/", "/chunks/./"),
        path.replace("/chunks/", "/chunks/x/../"),
        path.replace("/chunks/", "/%63hunks/"),
        path + "&x=1",
        path + "&Expires=99999999999",
        other,
    ]
    assert raw_get(server, path) == 200
    for target in wrong:
        assert raw_get(server, target) in (400, 403, 404), target
    assert anna.http.post(url).status_code == 405
    assert anna.http.get(url).status_code == 200


def test_the_host_header_signs_nothing(anna: Client, url: str) -> None:
    assert anna.http.get(url, headers={"Host": "evil.example"}).status_code == 200


def test_urls_live_for_minutes(server: Running, anna: Client) -> None:
    signer, now = server.app.service.signer, time.time_ns()
    key = BlobKey(anna.me.drive, bytes(32))
    url, expires_ns = signer.get(key, now)
    assert 0 < expires_ns - now <= messages.SIGNED_URL_SECONDS * 10**9
    assert anna.http.get(url).status_code == 404
    old, _ = signer.get(key, now - (messages.SIGNED_URL_SECONDS + 1) * 10**9)
    assert anna.http.get(old).status_code == 403
    target = url.removeprefix(server.url)
    assert signer.check_get(target, now) == key
    with pytest.raises(ValueError, match="expired"):
        signer.check_get(target, expires_ns)


# --- locate -------------------------------------------------------------------------------------


def test_locate_by_span(anna: Client) -> None:
    chunks = [make_chunk(noise(100, f"span {n}")) for n in range(4)]
    file, version = anna.store("a", *chunks)

    def under(offset: int, length: int) -> list[bytes]:
        span = messages.Span(offset, length)
        found = anna.locate(file=file, version=version, span=span).chunks
        return [located.descriptor.id for located in found]

    ids = [chunk.id for chunk in chunks]
    assert under(0, 1) == ids[:1]
    assert under(99, 2) == ids[:2]
    assert under(100, 200) == ids[1:3]
    assert under(399, 1 << 40) == ids[3:]
    assert under(400, 1) == []


def test_locate_is_authorised_by_file_and_version(anna: Client, ben: Client) -> None:
    chunk, other = make_chunk(noise(10, "private")), make_chunk(noise(10, "other"))
    file, version = anna.store("a", chunk)
    other_file, other_version = anna.store("b", other)
    mine, my_version = ben.store("mine", make_chunk(noise(10, "ben")))
    refused = [
        (ben, file, version, chunk),
        (ben, mine, my_version, chunk),
        (ben, mine, version, chunk),
        (anna, file, version, other),
        (anna, file, other_version, other),
        (anna, other_file, version, chunk),
        (anna, file, new_id(), chunk),
        (anna, new_id(), version, chunk),
    ]
    for client, where, which, what in refused:
        with pytest.raises(Failed) as failed:
            client.locate(file=where, version=which, chunks=[what.id])
        assert failed.value.status == 404


def test_old_versions_can_be_located(anna: Client) -> None:
    chunk = make_chunk(noise(10, "old"))
    file, version = anna.store("a", chunk)
    empty = messages.Content(
        version=new_id(), base=version, manifest=messages.Manifest(0, 1 << 20, [])
    )
    anna.do(messages.Write(file=file, content=empty, mtime_ns=1))
    located = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0]
    assert anna.http.get(located.url).content == chunk.data
