"""Chunks sent together, as a client sends them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import httpx

from remote.protocol import messages
from remote.protocol.bundle import Bundle, bundle_of
from tests.server.harness import Chunk, Client, manifest_of, new_id


class Announced(NamedTuple):
    """A chunk that the upload of a version of `file` has announced."""

    file: str
    version: str
    chunk: Chunk


def announce(client: Client, *chunks: Chunk) -> list[Announced]:
    """An upload of a file of its own for each of them, all needed."""
    found = [Announced(new_id(), new_id(), chunk) for chunk in chunks]
    for file, version, chunk in found:
        begun = client.start(version, file, chunk)
        assert [ticket.state for ticket in begun.chunks] == ["needed"]
    return found


def made_of(chunks: Sequence[Chunk]) -> tuple[Bundle, bytes]:
    """The bundle of these chunks, and the object."""
    found = bundle_of([chunk.descriptor for chunk in chunks])
    return found, b"".join(chunk.data for chunk in chunks) + found.tail


def ask(client: Client, parts: Sequence[Announced], body: bytes) -> messages.StartBundleReply:
    """Ask to send `body` as the bundle of these parts."""
    wanted = messages.StartBundle(
        parts=[messages.BundlePart(part.version, part.chunk.id) for part in parts],
        sha256=hashlib.sha256(body).digest(),
    )
    return client.request("POST", "/v1/bundles", messages.StartBundleReply, wanted)


def put(client: Client, reply: messages.StartBundleReply, body: bytes) -> httpx.Response:
    return client.http.put(reply.put.url, content=body, headers=reply.put.headers)


def send(client: Client, *parts: Announced) -> Bundle:
    """Send them as one object."""
    bundle, body = made_of([part.chunk for part in parts])
    reply = ask(client, parts, body)
    assert reply.id == bundle.id
    assert put(client, reply, body).status_code == 200
    return bundle


def make(client: Client, name: str, part: Announced, parent: str | None = None) -> None:
    """A regular file of what was announced and sent."""
    content = messages.Content(version=part.version, manifest=manifest_of(part.chunk))
    client.make(name, parent, file=part.file, content=content)


def store_together(
    client: Client, *chunks: Chunk, parent: str | None = None
) -> tuple[Bundle, list[Announced]]:
    """A file of each chunk, all sent as one object."""
    parts = announce(client, *chunks)
    bundle = send(client, *parts)
    for number, part in enumerate(parts):
        make(client, f"{bundle.id.hex()[:8]} {number}", part, parent)
    return bundle, parts
