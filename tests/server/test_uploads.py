"""Uploads over HTTP: sessions, presigned PUTs, and the commit that makes a version visible."""

from __future__ import annotations

from tests.server.harness import Client, make_chunk, manifest_of, new_id, noise

from remote import wire


def test_a_file_goes_up_and_comes_back(anna: Client) -> None:
    chunks = [make_chunk(noise(700_000, "a")), make_chunk(noise(10, "b"))]
    file, version = anna.store("movie", *chunks)
    assert anna.children()["movie"].size == 700_010
    reply = anna.locate(file=file, version=version, chunks=[c.id for c in chunks], manifest=True)
    assert reply.manifest == manifest_of(*chunks)
    for located, chunk in zip(reply.chunks, chunks, strict=True):
        assert located.descriptor == chunk.descriptor
        assert anna.http.get(located.url).content == chunk.data
