"""Answers where no endpoint is, and when one fails."""

from __future__ import annotations

import contextlib
import threading

import msgspec
import pytest
from uvicorn.protocols.utils import ClientDisconnected
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from remote.protocol.errors import AnyProblem, BadRequest, NotFound
from server.api import exchange, live
from server.app import ENDPOINTS
from tests.server.harness import Client, Running


def test_no_two_endpoints_are_one() -> None:
    declared = [(item.method, item.path) for item in ENDPOINTS]
    assert len(set(declared)) == len(declared) > 30


@pytest.mark.parametrize("path", ["/v1/me", "/v1/me/"])
def test_a_slash_at_the_end_makes_no_difference(anna: Client, path: str) -> None:
    got = anna.http.get(path, headers={"Authorization": f"Bearer {anna.token}"})
    assert got.json()["account"] == anna.me.account


def test_which_methods_there_are(anna: Client) -> None:
    got = anna.http.options("/v1/devices")
    assert (got.status_code, got.headers["allow"], got.content) == (204, "GET, OPTIONS, POST", b"")
    assert anna.http.options("/v1/nothing").status_code == 404
    refused = anna.http.put("/v1/devices")
    assert refused.status_code == 405
    assert isinstance(msgspec.json.decode(refused.content, type=AnyProblem), BadRequest)


def test_a_host_that_can_be_none_is_refused(anna: Client) -> None:
    assert anna.http.get("/healthz", headers={"Host": "example.org:99"}).status_code == 200
    for host in ("a b", "a/b", "a[b?"):
        got = anna.http.get("/healthz", headers={"Host": host})
        assert (got.status_code, got.json()["type"]) == (400, "bad_request"), host


@pytest.mark.parametrize("path", ["/v1/me", "/v1/nothing", "/"])
def test_a_socket_to_where_none_is_gets_a_problem(server: Running, anna: Client, path: str) -> None:
    url = server.url.replace("http", "ws") + path
    headers = {"Authorization": f"Bearer {anna.token}"}
    with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=headers):
        pass
    answer = refused.value.response
    assert answer.status_code == 404
    assert isinstance(msgspec.msgpack.decode(answer.body or b"", type=AnyProblem), NotFound)


def test_a_socket_that_fails_is_closed_and_logged(
    server: Running,
    anna: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fail(self: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(live._Pusher, "serve", fail)
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    headers = {"Authorization": f"Bearer {anna.token}"}
    with connect(url, additional_headers=headers) as socket, pytest.raises(ConnectionClosed) as end:
        socket.recv(timeout=60)
    assert end.value.rcvd is not None
    assert (end.value.rcvd.code, end.value.rcvd.reason) == (4500, "")
    shown = capsys.readouterr()
    assert "socket_failed" in shown.out + shown.err


def test_a_client_that_goes_while_it_is_accepted_is_no_fault(
    server: Running,
    anna: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is sent to who has gone, uvicorn raises this."""
    tried = threading.Event()

    async def gone(self: object) -> None:
        tried.set()
        raise ClientDisconnected

    monkeypatch.setattr(exchange.Socket, "accept", gone)
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    headers = {"Authorization": f"Bearer {anna.token}"}
    with contextlib.suppress(InvalidHandshake), connect(url, additional_headers=headers):
        pass
    assert tried.wait(60)
    anna.refresh()  # answered after it by the same loop
    shown = capsys.readouterr()
    assert "socket_failed" not in shown.out + shown.err
