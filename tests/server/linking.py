"""Making links, and visiting them without an account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from remote.protocol.account_messages import LinkMade, LinksReply, MakeLink
from remote.protocol.content import HOLE, Manifest, Piece
from remote.protocol.messages import Content
from tests.server.harness import PLAIN, Chunk, Client, new_id


def make_link(client: Client, file: str, **wanted: Any) -> LinkMade:
    return client.request("POST", f"/v1/files/{file}/links", LinkMade, MakeLink(**wanted))


def links_of(client: Client, file: str | None = None) -> LinksReply:
    path = "/v1/links" if file is None else f"/v1/files/{file}/links"
    return client.request("GET", path, LinksReply)


def revoke(client: Client, link: str) -> None:
    client.request("DELETE", f"/v1/links/{link}", bytes)


def store_at(client: Client, name: str, parent: str | None, *chunks: Chunk) -> tuple[str, str]:
    """A regular file of these chunks, wherever; returns (file, version)."""
    return client.store(name, *chunks, parent=parent)


def sparse(client: Client, name: str, length: int, parent: str | None = None) -> str:
    """A regular file of nothing but a hole."""
    manifest = Manifest(size=length, average=1 << 20, pieces=[Piece(HOLE, length)])
    return client.make(name, parent, content=Content(version=new_id(), manifest=manifest))


@dataclass
class Visitor:
    """A browser that was given the URL of a link."""

    http: httpx.Client
    url: str

    @classmethod
    def at(cls, base: str, made: LinkMade) -> Visitor:
        return cls(httpx.Client(base_url=base, timeout=30, verify=PLAIN), urlsplit(made.url).path)

    def get(self, below: str = "", **more: Any) -> httpx.Response:
        return self.http.get(self.url + below, **more)

    def post(self, password: str) -> httpx.Response:
        return self.http.post(self.url, data={"password": password})

    def content(self, below: str) -> str:
        """The signed URL that a download is led to."""
        answer = self.get(below)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]
