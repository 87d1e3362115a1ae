"""HEAD is answered as GET is, without the body, wherever there is GET."""

from __future__ import annotations

import httpx
import pytest

from server.app import ENDPOINTS
from tests.server.harness import Client, Running, make_chunk
from tests.server.linking import links_of, make_link

_EACH_ITS_OWN = ("date", "x-request-id", "location", "content-length")
"""A page's Content-Length is looked at by itself: what is told of the clock differs in length."""


def got_routes() -> list[str]:
    return sorted(item.path for item in ENDPOINTS if item.method == "GET")


def test_there_are_routes() -> None:
    assert {"/healthz", "/metrics", "/v1/me", "/s/{secret}"} <= set(got_routes())


@pytest.fixture
def filled(anna: Client) -> dict[str, str]:
    """Values for each parameter of a path."""
    top = anna.mkdir("top")
    file, version = anna.store("a", make_chunk(b"hello"), parent=top)
    secret = make_link(anna, top).url.rpartition("/")[2]
    return {"file_id": file, "secret": secret, "version": version, "fingerprint": "0" * 64}


@pytest.mark.parametrize("route", got_routes())
def test_head_is_get_without_its_body(
    server: Running, anna: Client, filled: dict[str, str], route: str
) -> None:
    path = route.format(**filled)
    got, head = (_told(anna, method, path) for method in ("GET", "HEAD"))
    assert head.status_code == got.status_code, got.text
    assert head.status_code != 405
    assert head.content == b""
    assert _compared(head) == _compared(got)
    assert ("content-length" in head.headers) is ("content-length" in got.headers)
    assert links_of(anna).links[0].downloads == (1 if route.endswith("/download") else 0)


def test_the_body_that_is_left_out_is_told_of(server: Running, anna: Client) -> None:
    path = f"/v1/files/{anna.me.root}"
    got, head = (_told(anna, method, path) for method in ("GET", "HEAD"))
    assert int(head.headers["content-length"]) == len(got.content) > 0
    again = _told(anna, "GET", path)  # over the same connection
    assert again.content == got.content


@pytest.mark.parametrize("path", ["/v1/changes/apply", "/v1/nothing", "/s/nothing"])
def test_where_get_is_refused_head_is(server: Running, anna: Client, path: str) -> None:
    got, head = (_told(anna, method, path) for method in ("GET", "HEAD"))
    assert head.status_code == got.status_code >= 400
    assert head.content == b""


def _told(client: Client, method: str, path: str) -> httpx.Response:
    return client.http.request(method, path, headers={"Authorization": f"Bearer {client.token}"})


def _compared(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in _EACH_ITS_OWN}
