"""Checks that every request passes before it is routed, and headers that every answer carries."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest

from remote.protocol import errors
from server.http import access_log
from server.storage.edge import Edge
from tests.server.conftest import Start
from tests.server.harness import MSGPACK, Client, Failed, Running, make_chunk, noise, run
from tests.server.linking import Visitor, make_link

SECURITY = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


def raw(server: Running, request: bytes) -> bytes:
    """The whole answer to exactly these bytes, on a connection that is closed by one side."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer and (more := sock.recv(65536)):
            answer += more
    return answer


def ask(server: Running, target: bytes, more: bytes = b"") -> int:
    answer = raw(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
    return int(answer.split()[1])


# --- targets ------------------------------------------------------------------------------------


def test_targets_with_two_readings_are_refused_before_routing(server: Running) -> None:
    assert ask(server, b"/healthz") == 200
    for target in (
        b"/./healthz",
        b"/v1/../healthz",
        b"//healthz",
        b"/%2e/healthz",
        b"/v1/%2E%2E/healthz",
        b"/%2fhealthz",
        b"/v1%5chealthz",
        b"/v1\\healthz",
        b"/healthz%00",
        b"/healthz%",
        b"/healthz?a=1&a=2",
        b"/healthz?cursor=1&%63ursor=2",
        b"/healthz?a=%00",
        b"/healthz?" + b"a" * 8192,
        b"/h\xc3\xa9althz",
        b"/healthz#x",
        b"http://x/healthz",
        b"*",
    ):
        assert ask(server, target) == 400, target


def test_a_refused_target_is_a_problem_in_the_language_asked_for(server: Running) -> None:
    got = httpx.get(f"{server.url}/healthz?a=1&a=2", headers={"Accept": MSGPACK})
    problem = msgspec.msgpack.decode(got.content, type=errors.AnyProblem)
    assert problem == errors.BadRequest(message="a parameter is given twice")
    assert got.headers["x-request-id"]
    assert httpx.get(f"{server.url}/healthz?a=1&a=2").json()["type"] == "bad_request"


def test_a_sockets_target_is_checked_too(server: Running) -> None:
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    assert ask(server, b"/v1/changes/live", upgrade) == 401
    for target in (b"/v1/changes//live", b"/v1/changes/live?cursor=a&cursor=b", b"/v1/\xff"):
        assert ask(server, target, upgrade) == 400, target


def test_the_edge_takes_one_spelling_even_without_the_guard(server: Running, anna: Client) -> None:
    chunk = make_chunk(noise(100, "spelling"))
    file, version = anna.store("a", chunk)
    url = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
    path, _, query = url.removeprefix(server.url).partition("?")
    edge = server.app._edge

    def status(path: str, query: str) -> int:
        return asyncio.run(straight_to(edge, path, query))

    assert status(path, query) == 200
    for wrong in (
        path.replace("/chunks/", "/chunks//"),
        path.replace("/chunks/", "/chunks/./"),
        path.replace("/chunks/", "/chunks/x/../"),
        path.replace("/chunks/", "/%63hunks/"),
        path + "/",
        path + "%00",
        path.upper(),
    ):
        assert status(wrong, query) == 403, wrong
    for changed in (
        query + "&x=1",
        query + "&" + query,
        query.replace("=", "%3d", 1),
        "x&" + query,
    ):
        assert status(path, changed) == 403, changed


async def straight_to(edge: Edge, path: str, query: str) -> int:
    """The status of a GET that no guard has seen, of a path that decodes to /chunks/..."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/chunks/decoded",
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [],
    }
    await edge(scope, receive, send)
    return int(sent[0]["status"])


# --- heads and bodies ---------------------------------------------------------------------------


def test_chunked_bodies_and_trailers_are_not_taken(server: Running) -> None:
    head = b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    assert raw(server, chunked + b"2\r\n{}\r\n0\r\n\r\n").split()[1] == b"411"
    answer = raw(server, chunked + b"2\r\n{}\r\n0\r\nX-Token: 1\r\n\r\n")
    assert answer == b"" or answer.split()[1] in (b"400", b"411")


def test_two_lengths_are_no_request(server: Running) -> None:
    head = b"POST /v1/login HTTP/1.1\r\nHost: x\r\n"
    for more in (
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"Content-Length: +2\r\n\r\n{}",
    ):
        assert raw(server, head + more).split()[1] in (b"400", b"411"), more


def test_a_body_that_does_not_come_is_not_waited_for(start: Start) -> None:
    server = start(body_seconds=0.05)
    head = b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = raw(server, head + b"Content-Length: 100\r\n\r\n{")
    assert answer.split()[1] == b"408"
    assert b"connection: close" in answer.lower()
    anna = server.account("anna")
    anna.make("a")  # others are as before


# --- headers ------------------------------------------------------------------------------------


def test_every_answer_has_the_security_headers(server: Running, anna: Client) -> None:
    answers = [
        anna.http.get("/v1/me", headers={"Authorization": f"Bearer {anna.token}"}),
        anna.http.get("/v1/me"),
        anna.http.get("/nothing"),
        anna.http.get("/healthz"),
        anna.http.get("/healthz?a=1&a=1"),
        anna.http.get("/chunks/x/y"),
        anna.http.get("/v1/changes/live"),
    ]
    for got in answers:
        assert {name: got.headers.get(name) for name in SECURITY} == SECURITY, got.url
        assert "strict-transport-security" not in got.headers
        assert "server" not in got.headers


def test_signed_objects_stay_cacheable(anna: Client) -> None:
    chunk = make_chunk(noise(100, "cacheable"))
    file, version = anna.store("a", chunk)
    url = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
    got = anna.http.get(url)
    assert got.headers.get_list("cache-control") == ["private, max-age=31536000, immutable"]
    assert "vary" not in got.headers
    assert "set-cookie" not in got.headers
    assert got.headers["x-content-type-options"] == "nosniff"
    assert anna.http.get(url + "x").headers["cache-control"] == "no-store"


def test_browsers_are_told_to_stay_with_tls(start: Start) -> None:
    server = start(origin="https://files.example")
    got = httpx.get(f"{server.url}/healthz")
    assert got.headers["strict-transport-security"] == "max-age=31536000"


# --- rates --------------------------------------------------------------------------------------


def statuses(client: Client, count: int) -> list[int]:
    headers = {"Authorization": f"Bearer {client.token}"}
    return [client.http.get("/v1/me", headers=headers).status_code for _ in range(count)]


@pytest.fixture
def slow(start: Start) -> Running:
    """An account may make three requests at once, then one an hour."""
    return start(account_burst=3, account_rate=1 / 3600)


def test_an_account_cannot_have_all_of_the_server(slow: Running) -> None:
    anna, ben = slow.account("anna"), slow.account("ben")  # the first request finds out who asks
    phone = slow.device(anna.me.account, "phone")
    assert statuses(anna, 2) == [200, 200]
    assert statuses(phone, 2) == [200, 429]
    assert statuses(anna, 1) == [429]
    assert statuses(ben, 2) == [200, 200]
    with pytest.raises(Failed) as failed:
        anna.refresh()
    assert isinstance(failed.value.problem, errors.RateLimited)
    assert failed.value.problem.retry_after_seconds > 3000
    got = anna.http.get("/v1/me", headers={"Authorization": f"Bearer {anna.token}"})
    assert int(got.headers["retry-after"]) > 3000
    assert slow.app.service.metrics.limited.labels("account")._value.get() == 4


def test_an_address_cannot_have_all_of_the_server(start: Start) -> None:
    server = start(address_burst=5, address_rate=1 / 3600, trusted_proxies=["127.0.0.1"])

    def get(address: str, path: str = "/v1/me") -> int:
        return httpx.get(server.url + path, headers={"X-Forwarded-For": address}).status_code

    assert [get("1.2.3.4") for _ in range(6)] == [401] * 5 + [429]
    assert get("9.9.9.9, 1.2.3.4") == 429  # what a client writes itself does not count
    assert get("1.2.3.5") == 401
    assert [get("2001:db8::1"), get("2001:db8::2")] == [401, 401]
    assert [get("2001:db8::3") for _ in range(4)][-1] == 429
    assert get("1.2.3.4", "/healthz") == 200


def test_who_is_not_a_trusted_proxy_speaks_for_itself(start: Start) -> None:
    server = start(address_burst=2, address_rate=1 / 3600)
    got = [
        httpx.get(f"{server.url}/v1/me", headers={"X-Forwarded-For": f"1.2.3.{n}"}).status_code
        for n in range(3)
    ]
    assert got == [401, 401, 429]


def test_who_is_a_little_too_fast_is_slowed_down_and_not_refused(start: Start) -> None:
    server = start(account_burst=1, account_rate=100)
    anna = server.account("anna")
    with ThreadPoolExecutor(4) as pool:
        devices = [server.device(anna.me.account, str(n)) for n in range(4)]
        seen = list(pool.map(lambda each: statuses(each, 5), devices))
    assert seen == [[200] * 5] * 4


def test_a_refused_token_is_not_charged_to_its_account(slow: Running) -> None:
    anna = slow.account("anna")
    stolen = slow.device(anna.me.account, "stolen")
    anna.request("DELETE", f"/v1/devices/{stolen.me.device_id}", type(None))
    assert statuses(stolen, 4) == [401, 401, 401, 401]
    assert statuses(anna, 1) == [200]


def test_signed_urls_are_not_counted(start: Start) -> None:
    server = start(account_burst=30, account_rate=1 / 3600)
    anna = server.account("anna")
    chunk = make_chunk(noise(100, "uncounted"))
    file, version = anna.store("a", chunk)
    url = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
    assert {anna.http.get(url).status_code for _ in range(60)} == {200}


def test_who_is_told_to_come_again_is_told_a_moment_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of its body is held meanwhile."""
    server, held = start(login_burst=1, login_seconds_per_try=3600, refused_seconds=0.7), []

    async def sleep(seconds: float) -> None:
        held.append((seconds, server.app._admission.bodies.held))

    monkeypatch.setattr(access_log, "_sleep", sleep)
    server.account("anna")
    wrong = {"account": "nobody", "password": "wrong", "device": "d"}
    answers = [server.client().http.post("/v1/login", json=wrong).status_code for _ in range(3)]
    assert answers == [401, 429, 429]
    assert held == [(0.7, 0)] * 2


def test_visits_have_a_rate_by_address_and_by_link(start: Start) -> None:
    """Downloads too, and whatever part of them is asked for."""
    slow = {"visitor_rate": 1 / 3600, "link_rate": 1 / 3600}
    server = start(visitor_burst=4, link_burst=6, trusted_proxies=["127.0.0.1"], **slow)
    anna = server.account("anna")
    file, _ = anna.store("a", make_chunk(noise(100, "visited")))
    one, other = (Visitor.at(server.url, make_link(anna, file)) for _ in range(2))

    def get(path: str, address: str) -> httpx.Response:
        return one.http.get(path, headers={"X-Forwarded-For": address, "Range": "bytes=0-0"})

    def seen(path: str, *addresses: str) -> list[int]:
        return [get(path, address).status_code for address in addresses]

    content = get(f"{one.url}/{file}/download", "1.1.1.1").headers["location"]
    assert seen(content, *["1.1.1.1"] * 4) == [206, 206, 206, 429]
    refused = get(content, "1.1.1.1")
    assert int(refused.headers["retry-after"]) > 3000
    assert refused.json()["type"] == "rate_limited"
    assert seen(other.url, "1.1.1.1", "2.2.2.2") == [429, 200]  # another link is no more visits
    assert seen(content, *["3.3.3.3"] * 3, *["4.4.4.4"] * 3) == [206, 206, 206, 429, 429, 429]
    assert seen(one.url, *["5.5.5.5"] * 4) == [200] * 4  # its pages are counted apart
    limited = server.app.service.metrics.limited
    assert limited.labels("visitor")._value.get() == 3
    assert limited.labels("link")._value.get() == 3
    assert anna.refresh().account == anna.me.account


def test_one_password_for_many_names_is_slowed_down_too(start: Start) -> None:
    server = start(login_burst=1, login_seconds_per_try=36000)
    seen = []
    for n in range(12):
        with pytest.raises(Failed) as failed:
            server.client().log_in(f"name-{n}", "guess")
        seen.append(failed.value.status)
    assert seen == [401] * 10 + [429] * 2


def test_many_links_are_not_many_more_tries(start: Start) -> None:
    server = start(login_burst=1, login_seconds_per_try=36_000.0)
    anna = server.account("anna")
    file = anna.make("a")
    visitors = [Visitor.at(server.url, make_link(anna, file, password="four")) for _ in range(11)]
    answers = [visitor.post("wrong").status_code for visitor in visitors]
    for visitor in visitors:
        visitor.http.close()
    assert answers == 10 * [403] + [429]


# --- refusals -----------------------------------------------------------------------------------


def test_only_the_very_path_of_health_is_not_counted(start: Start) -> None:
    server = start(address_burst=6, address_rate=1 / 3600)
    with httpx.Client(base_url=server.url) as client:
        near = ["/healthz/", "/healthzz", "/readyz/x", "/blobs", "/chunks", "/content"]
        assert 429 not in {client.get(path).status_code for path in near}
        assert {client.get(path).status_code for path in near} == {429}
        assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [200] * 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/chunks/a/b", 403),
        ("PUT", "/chunks/a/b", 405),
        ("PUT", "/blobs/a/b", 403),
        ("GET", "/content/a/b/c", 403),
        ("POST", "/content/a/b/c", 405),
        ("POST", "/healthz", 405),
        ("GET", "/v1//me", 400),
        ("GET", "/healthz?a=1&a=1", 400),
        ("POST", "/chunks/a/b", 413),
    ],
)
def test_what_is_refused_is_counted_by_address(
    refusing: Running, method: str, path: str, status: int
) -> None:
    """Whatever is refused without having been counted as a request."""
    content = bytes(30_000) if status == 413 else b"x" if method == "PUT" else b""
    headers = {"If-None-Match": "*", "x-amz-checksum-sha256": "A" * 43 + "="}
    with httpx.Client(base_url=refusing.url, headers=headers) as client:
        client.headers["X-Forwarded-For"] = f"192.0.2.{next(strangers)}"
        answers = [client.request(method, path, content=content) for _ in range(5)]
    assert [item.status_code for item in answers] == [status] * 3 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) > 3000
    assert answers[-1].headers["connection"] == "close"
    assert answers[-1].headers["x-request-id"]


strangers = itertools.count(1)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that refuses an address something three times, then once an hour."""
    more = {"trusted_proxies": ["127.0.0.1"], "refusal_burst": 3, "refusal_rate": 1 / 3600}
    running = run(tmp_path_factory.mktemp("refusing"), **more)
    yield running
    running.stop()


def test_what_is_right_is_not_refused_for_what_was_wrong(refusing: Running) -> None:
    anna = refusing.account("anna")
    chunk = make_chunk(noise(100, "right beside wrong"))
    file, version = anna.store("a", chunk)
    url = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
    assert [anna.http.get(url + "x").status_code for _ in range(5)] == [403] * 3 + [429] * 2
    assert anna.http.get(url).content == chunk.data
    assert anna.http.get("/healthz").status_code == 200
    headers = {"Authorization": f"Bearer {anna.token}"}
    assert {anna.http.get("/nothing", headers=headers).status_code for _ in range(5)} == {404}
    assert {anna.http.get("/v1/me").status_code for _ in range(5)} == {401}  # counted as requests


def test_an_ipv6_site_cannot_have_all_of_the_server(start: Start) -> None:
    server = start(address_burst=1, address_rate=1 / 3600, trusted_proxies=["127.0.0.1"])

    def get(address: str) -> int:
        return httpx.get(f"{server.url}/v1/me", headers={"X-Forwarded-For": address}).status_code

    assert [get(f"2001:db8:1:{n}::1") for n in range(6)] == [401] * 4 + [429] * 2
    assert get("2001:db8:2::1") == 401
