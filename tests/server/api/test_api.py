"""Things that all endpoints share: two encodings, Problems, request ids, the schema, metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import bindparam, select

from remote.protocol import errors, messages
from remote.protocol.errors import BadRequest, Refused
from server.api.openapi import document
from server.app import ENDPOINTS
from server.metadata.db import Database
from server.service import Service
from tests.server.conftest import Start
from tests.server.harness import MSGPACK, Client, Failed, Running, make_chunk, noise


def auth(client: Client, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {client.token}"} | more


def test_json_and_messagepack_say_the_same(anna: Client) -> None:
    anna.make("a", xattrs={"user.a": b"\xff"})
    path = f"/v1/files/{anna.me.root}/children"
    plain = anna.http.get(path, headers=auth(anna))
    packed = anna.http.get(path, headers=auth(anna, Accept=MSGPACK))
    assert plain.headers["content-type"] == "application/json"
    assert packed.headers["content-type"] == MSGPACK
    one = msgspec.json.decode(plain.content, type=messages.ChildrenPage)
    other = msgspec.msgpack.decode(packed.content, type=messages.ChildrenPage)
    assert one == other


def test_a_whole_session_in_json(anna: Client) -> None:
    chunk = make_chunk(noise(10, "json"))
    descriptor = json.loads(msgspec.json.encode(chunk.descriptor))
    upload = {"version": "1" * 32, "file": "2" * 32, "descriptors": [descriptor]}
    begun = anna.http.post("/v1/files", json={"uploads": [upload]}, headers=auth(anna)).json()
    put = begun["uploads"][0]["chunks"][0]["put"]
    assert anna.http.put(put["url"], content=chunk.data, headers=put["headers"]).is_success
    piece = [descriptor["id"], 10]
    manifest = {"size": 10, "average": 1 << 20, "pieces": [piece]}
    op = {
        "op": "create",
        "file": "2" * 32,
        "parent": anna.me.root,
        "name": "a",
        "kind": "file",
        "mode": 0o644,
        "mtime_ns": 1,
        "content": {"version": "1" * 32, "manifest": manifest},
    }
    body = {"ops": [{"key": "3" * 32, "op": op}]}
    done = anna.http.post("/v1/changes/apply", json=body, headers=auth(anna)).json()
    assert done["results"][0]["type"] == "applied"
    locate = {"file": "2" * 32, "version": "1" * 32, "span": [0, 10]}
    locate["span"] = {"offset": 0, "length": 10}
    found = anna.http.post("/v1/chunks/locate", json=locate, headers=auth(anna)).json()
    assert anna.http.get(found["chunks"][0]["url"]).content == chunk.data


def test_the_answer_follows_the_request_when_accept_says_nothing(anna: Client) -> None:
    body = msgspec.msgpack.encode(messages.ApplyRequest(ops=[]))
    headers = auth(anna, **{"Content-Type": "application/x-msgpack", "Accept": "*/*"})
    got = anna.http.post("/v1/changes/apply", content=body, headers=headers)
    assert got.headers["content-type"] == MSGPACK
    problem = msgspec.msgpack.decode(got.content, type=errors.AnyProblem)
    assert isinstance(problem, errors.BadRequest)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("DELETE", "/v1/me", 405, "bad_request"),
        ("GET", "/v1/files/by-fingerprint/xyz", 400, "bad_request"),
        ("GET", f"/v1/files/by-fingerprint/{'0' * 64}", 404, "not_found"),
        ("GET", "/v1/changes/wait?timeout=soon", 400, "bad_request"),
        ("GET", "/v1/changes/wait?timeout=nan", 200, None),
    ],
)
def test_every_refusal_is_a_problem(
    anna: Client, method: str, path: str, status: int, kind: str | None
) -> None:
    got = anna.http.request(method, path, headers=auth(anna))
    assert got.status_code == status
    assert got.json().get("type") == kind


def test_a_body_that_is_too_large_is_refused(start: Start) -> None:
    server = start(body_limit=65536)
    anna = server.account("anna")
    with pytest.raises(Failed) as failed:
        anna.make("a", xattrs={"user.a": bytes(65537)})
    assert (failed.value.status, type(failed.value.problem)) == (413, errors.TooLarge)


def test_an_unforeseen_error_tells_nothing(anna: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(Service, "read", fail)
    got = anna.http.get("/v1/me", headers=auth(anna))
    assert got.status_code == 500
    assert got.json()["type"] == "unavailable"
    assert "secret" not in got.text


def test_answers_carry_a_request_id(anna: Client) -> None:
    got = anna.http.get("/healthz", headers={"X-Request-Id": "abc-1"})
    assert got.headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 65, 'x"'):
        got = anna.http.get("/healthz", headers={"X-Request-Id": bad})
        assert got.headers["x-request-id"] not in ("", bad)


def test_logs_have_no_secrets(anna: Client, capsys: pytest.CaptureFixture[str]) -> None:
    chunk = make_chunk(noise(10, "log"))
    file, version = anna.store("a", chunk)
    url = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
    assert anna.http.get(url + "x").status_code == 403
    anna.refresh()
    anna.changes(anna.me.cursor)
    shown = capsys.readouterr()
    logged = shown.out + shown.err
    assert "/v1/changes" in logged
    assert "/chunks/" in logged
    for secret in (anna.token, "Signature", "signature", anna.me.cursor):
        assert secret not in logged


def test_the_schema_names_every_endpoint(server: Running) -> None:
    got = httpx.get(f"{server.url}/schema").json()
    assert got == httpx.get(f"{server.url}/schema/openapi.json").json()
    assert got["openapi"].startswith("3.1")
    described = {(m.upper(), path) for path, methods in got["paths"].items() for m in methods}
    private = {"/healthz", "/readyz", "/metrics", "/schema", "/schema/openapi.json"}
    assert described == {
        (item.method, item.path)
        for item in ENDPOINTS
        if item.path not in private and not item.path.startswith("/s/") and item.method != "WS"
    }


def test_the_schema_has_what_a_signature_says(server: Running) -> None:
    paths = httpx.get(f"{server.url}/schema").json()["paths"]
    trash = {item["name"]: item for item in paths["/v1/trash"]["get"]["parameters"]}
    assert set(trash) == {"parent", "cursor", "limit", "name", "ending"}
    assert trash["limit"]["schema"] == {"type": "integer", "minimum": 1}
    share = paths["/v1/files/{file_id}/share/{account}"]["delete"]
    assert [(item["name"], item["in"]) for item in share["parameters"]] == [
        ("file_id", "path"),
        ("account", "path"),
    ]
    assert set(share["responses"]) == {"204", "default"}
    assert paths["/v1/login"]["post"]["security"] == []


def test_references_in_the_schema_lead_somewhere() -> None:
    shown: Any = json.loads(document(ENDPOINTS))
    components = shown["components"]["schemas"]

    def refs(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*(refs(value) for value in node.values()))
        return set().union(*(refs(item) for item in node)) if isinstance(node, list) else set()

    found = refs(shown)
    assert found
    assert {ref.rpartition("/")[2] for ref in found} <= set(components)


def test_metrics_count(server: Running, anna: Client) -> None:
    anna.make("a")
    shown = httpx.get(f"{server.url}/metrics").text
    assert 'nearline_operations_total{answer="applied",operation="Create"}' in shown
    assert 'route="/v1/changes/apply"' in shown
    assert anna.me.account not in shown


@pytest.mark.parametrize("where", ["account", "device"])
def test_what_no_database_should_be_asked_is_refused_before(server: Running, where: str) -> None:
    """NUL in text is an error of PostgreSQL's driver, and would be a 500 that clients repeat."""
    login = {"account": "anna", "password": "not this one", "device": "d"}
    answer = server.client().http.post("/v1/login", json=login | {where: "a\0b"})
    assert answer.status_code == (400 if where == "account" else 401)


@pytest.mark.parametrize(
    ("value", "fits"),
    [("a\0b", False), ("ab", True), (1 << 63, False), ((1 << 63) - 1, True), (-(1 << 63), True)],
)
def test_the_database_is_asked_only_for_what_every_one_can_hold(
    tmp_path: Path, value: str | int, fits: bool
) -> None:
    database = Database(tmp_path / "db.sqlite")
    with database.read() as conn:
        query = select(bindparam("value", value))
        if fits:
            assert conn.execute(query).scalar() == value
        else:
            with pytest.raises(Refused) as refused:
                conn.execute(query)
            assert isinstance(refused.value.problem, BadRequest)
    database.close()
