"""The edge's two ends under fire: whatever is sent is answered, and only what was signed is done.

The handlers are called as ASGI does, without sockets, so thousands of requests cost seconds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.protocol.codec import encode_chunk
from remote.protocol.content import Descriptor
from server.http.bodies import Bodies, begin, give_back
from server.metrics import Metrics
from server.settings import Settings
from server.storage.blobs import BlobKey, Head, LocalBlobStore
from server.storage.edge import Edge
from server.storage.keys import load_keys
from server.storage.signer import UrlSigner
from server.uploads.arrivals import Arrival
from server.uploads.put import Intake
from tests.remote.fuzzing import fuzz, mutated

DRIVE, VERSION, ORIGIN = "a" * 32, "c" * 32, "http://edge.example"
CHUNK = encode_chunk(b"a line that compresses well enough to be worth it\n" * 9000)
DESCRIPTOR, BODY = CHUNK.descriptor, bytes(CHUNK.body)
KEY = BlobKey(DRIVE, DESCRIPTOR.id)


@dataclass
class FakeSink:
    promise: Descriptor | None = DESCRIPTOR
    told: list[Arrival] = field(default_factory=list)

    def arrived(self, arrival: Arrival) -> None:
        self.told.append(arrival)

    async def promise_of(self, version: str, key: BlobKey) -> Descriptor | None:
        return self.promise


@dataclass
class Place:
    """An edge over a store of its own."""

    root: Path
    blobs: LocalBlobStore
    signer: UrlSigner
    reception: FakeSink
    edge: Edge
    bodies: Bodies

    def request(
        self,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        pieces: Sequence[bytes] = (b"",),
    ) -> tuple[int, bytes]:
        path, _, query = target.partition(b"?")
        scope = {
            "type": "http", "method": method, "path": path.decode("latin-1"), "raw_path": path,
            "query_string": query, "headers": list(headers),
        }  # fmt: skip
        return asyncio.run(self._answer(scope, pieces))

    async def _answer(self, scope: dict[str, Any], pieces: Sequence[bytes]) -> tuple[int, bytes]:
        rest = [
            {"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1}
            for index, piece in enumerate(pieces)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return rest.pop(0) if rest else {"type": "http.disconnect"}

        begin(self.bodies, scope, receive)

        async def send(message: Any) -> None:
            sent.append(message)

        await self.edge(scope, receive, send)
        give_back(scope)
        assert self.bodies.held == 0
        assert sent[0]["type"] == "http.response.start"
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return int(sent[0]["status"]), body

    def clear(self) -> None:
        self.blobs.delete(KEY)
        self.reception.told.clear()

    def is_clean(self) -> bool:
        kept = [path for path in self.root.rglob("*") if path.is_file()]
        return kept == [] and self.reception.told == []


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as threads:
        settings = Settings(Path(name) / "data", ORIGIN)
        signer = UrlSigner(load_keys(settings.keys, 0), settings)
        blobs, metrics, reception = LocalBlobStore(settings.blobs), Metrics(), FakeSink()
        intake = Intake(blobs, signer, reception, metrics, threads)
        edge = Edge(blobs, signer, intake.put, metrics, threads)
        room = Bodies(settings.tunables, metrics)
        yield Place(settings.blobs, blobs, signer, reception, edge, room)


def signed_put(place: Place, proof: str | None) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    head = Head(DESCRIPTOR.stored_length, DESCRIPTOR.sha256)
    put = place.signer.put(KEY, head, time.time_ns(), proof)
    headers = [(name.lower().encode(), value.encode()) for name, value in put.headers.items()]
    return put.url.removeprefix(ORIGIN).encode(), headers


def cut(body: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(min(item, len(body)) for item in cuts), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


bodies = st.just(BODY) | mutated(BODY) | st.binary(max_size=3000)
proofs = st.sampled_from([None, VERSION])
cuts = st.lists(st.integers(0, 2 * len(BODY)), max_size=5)


@given(bodies, cuts, proofs)
@fuzz
def test_only_the_very_bytes_are_stored(
    place: Place, body: bytes, where: list[int], proof: str | None
) -> None:
    target, headers = signed_put(place, proof)
    status, _ = place.request("PUT", target, headers, cut(body, where))
    if body == BODY:
        assert status == 200
        assert place.blobs.read(KEY, 0, len(BODY) + 1) == BODY
        assert len(place.reception.told) == 1
    else:
        assert status == 400
        assert place.is_clean()
    place.clear()


@given(st.data(), proofs)
@fuzz
def test_only_the_very_target_is_permitted(
    place: Place, data: st.DataObject, proof: str | None
) -> None:
    target, headers = signed_put(place, proof)
    other = data.draw(mutated(target))
    status, _ = place.request("PUT", other, headers, [BODY])
    assert status in ((200,) if other == target else (403, 405))
    if other == target:
        place.clear()
    assert place.is_clean()


names = st.sampled_from(
    [b"content-length", b"x-amz-checksum-sha256", b"if-none-match", b"range", b"x"]
)


@given(st.lists(st.tuples(names, st.binary(max_size=60)), max_size=4), st.booleans(), proofs)
@fuzz
def test_no_headers_make_it_fail(
    place: Place, extra: list[tuple[bytes, bytes]], with_ours: bool, proof: str | None
) -> None:
    target, ours = signed_put(place, proof)
    headers = [*extra, *(ours if with_ours else [])]
    status, _ = place.request("PUT", target, headers, [BODY])
    assert status in (200, 400, 403, 411)
    if status == 200:
        place.clear()
    assert place.is_clean()


@given(st.integers(0, 64), st.integers(0, 1 << 59), st.binary(min_size=32, max_size=32))
@fuzz
def test_no_other_length_or_hash_is_permitted(
    place: Place, length: int, more: int, sha256: bytes
) -> None:
    target, headers = signed_put(place, None)
    lie = dict(headers)
    if length % 2:
        lie[b"content-length"] = b"%d" % (len(BODY) + 1 + more)
    else:
        lie[b"x-amz-checksum-sha256"] = base64.b64encode(sha256)
    assert place.request("PUT", target, list(lie.items()), [BODY])[0] == 403
    assert place.is_clean()


def test_a_proof_of_something_else_than_was_promised_is_refused(place: Place) -> None:
    target, headers = signed_put(place, VERSION)
    other = encode_chunk(b"other").descriptor
    for promise in (None, other):
        place.reception.promise = promise
        assert place.request("PUT", target, headers, [BODY])[0] == 403
    place.reception.promise = DESCRIPTOR
    assert place.is_clean()


@given(st.binary(max_size=40) | mutated(b"bytes=100-2000") | mutated(b"bytes=-77"))
@fuzz
def test_ranges_give_the_right_bytes(place: Place, asked: bytes) -> None:
    with place.blobs.create(KEY) as writer:
        writer.write(BODY)
        writer.commit()
    url, _ = place.signer.get(KEY, time.time_ns())
    target = url.removeprefix(ORIGIN).encode()
    status, body = place.request("GET", target, [(b"range", asked)])
    assert status in (200, 206, 416)
    if status == 200:
        assert body == BODY
    elif status == 206:
        assert 0 < len(body) <= len(BODY)
        assert body in BODY
    place.clear()


@given(st.data())
@fuzz
def test_no_other_get_is_permitted(place: Place, data: st.DataObject) -> None:
    url, _ = place.signer.get(KEY, time.time_ns())
    target = url.removeprefix(ORIGIN).encode()
    other = data.draw(mutated(target))
    status, _ = place.request("GET", other, [])
    assert status in ((404,) if other == target else (403, 405))


def test_the_sample_is_what_it_seems() -> None:
    assert hashlib.sha256(BODY).digest() == DESCRIPTOR.sha256
    assert DESCRIPTOR.codec == "zstd"
    assert len(DESCRIPTOR.stored_lengths) > 1
