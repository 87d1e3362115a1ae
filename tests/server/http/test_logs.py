"""Things that the server writes down, and things that it never does."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from remote.protocol import account_messages
from server.accounts.accounts import add_account
from server.http import logs, redaction
from server.service import Service
from tests.server.conftest import Start
from tests.server.harness import Client, Failed, Running, make_chunk, noise, until

ROOT = Path(__file__).parents[3]
PASSWORD = "correct-horse-battery-staple"
LINK_PASSWORD = "another-very-long-password"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """A log configured as the server's process configures it."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(stream)
    structlog.configure(cache_logger_on_first_use=False)  # loggers of this process outlive this
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_kinds_of_records_are_json_without_secrets(log: io.StringIO) -> None:
    secret = "A" * 43
    own, other = structlog.get_logger("nearline.test"), logging.getLogger("some.library")
    own.info("hello", token=secret, path=f"/v1/me?token={secret}", n=1)
    other.warning("sent %s", {"Authorization": f"Bearer {secret}"})
    other.info("not worth a line")
    for tell in (own.exception, other.exception):
        try:
            raise ValueError(f"bad Signature={secret}~ in Cookie: a={secret}")
        except ValueError:
            tell("failed")
    seen = lines(log)
    assert [item["event"] for item in seen][::2] == ["hello", "failed"]
    assert [item["level"] for item in seen] == ["info", "warning", "error", "error"]
    assert seen[0]["n"] == 1
    assert seen[1]["logger"] == "some.library"
    assert all("timestamp" in item for item in seen)
    assert all("ValueError" in item["exception"] for item in seen[2:])
    assert secret not in log.getvalue()


def test_a_request_is_logged_with_who_asked(start: Start) -> None:
    with structlog.testing.capture_logs() as seen:
        anna = start().account("anna")
        headers = {"Authorization": f"Bearer {anna.token}", "X-Request-Id": "mine-1"}
        anna.http.get("/v1/me", headers=headers)
        anna.http.get("/v1/me", headers={"X-Request-Id": "mine-2"})
        until(lambda: any(item.get("id") == "mine-2" for item in seen))
    one, other = (
        next(item for item in seen if item.get("id") == id) for id in ("mine-1", "mine-2")
    )
    assert (one["event"], one["log_level"], one["status"]) == ("request", "info", 200)
    assert one["device"] == anna.me.device_id
    assert len(one["account"]) == 32
    assert one["address"] == "127.0.0.1"
    assert other["status"] == 401
    assert not {"account", "device"} & set(other)


def test_a_slow_request_is_told_apart(start: Start) -> None:
    with structlog.testing.capture_logs() as seen:
        server = start(slow_seconds=0.000001)
        anna = server.account("anna")
        anna.changes(None)
        anna.http.get("/v1/changes/wait?timeout=0.01")
        until(lambda: len(seen) >= 3)
    by_path = {item["path"]: item for item in seen}
    assert by_path["/v1/me"]["event"] == "slow_request"
    assert by_path["/v1/me"]["log_level"] == "warning"
    assert by_path["/v1/changes/wait"]["event"] == "request"


def test_a_flood_is_not_one_of_the_log_too(start: Start) -> None:
    with structlog.testing.capture_logs() as seen:
        server = start(address_burst=1, address_rate=1 / 3600)
        answers = [httpx.get(f"{server.url}/v1/me").status_code for _ in range(4)]
        until(lambda: len(seen) >= 1)
        server.stop()
    assert answers == [401, 429, 429, 429]
    assert [item["status"] for item in seen] == [401]


def test_refusals_beyond_their_rate_are_not_logged(start: Start) -> None:
    with structlog.testing.capture_logs() as seen:
        server = start(refusal_burst=4, refusal_rate=1 / 3600)
        paths = ["/chunks/a/b", "/v1//me", "/v1/me", "/s/nothing"] * 5
        answers = [httpx.get(server.url + path).status_code for path in paths]
        anna = server.account("anna")
        anna.http.get("/nothing", headers={"Authorization": f"Bearer {anna.token}"})
        server.stop()
    told = [(item["path"], item["status"]) for item in seen if item["event"] == "request"]
    assert told == [
        ("/chunks/a/b", 403),
        ("/v1//me", 400),
        ("/v1/me", 401),
        ("/s/[link]", 404),
        ("/v1/me", 200),
        ("/nothing", 404),
    ]
    assert answers.count(429) == 8  # those that no other rate slows down


@pytest.mark.parametrize(
    "path", ["/chunks/" + "x" * 7000, "/v1/" + "%F0%9F%98%80" * 500, "/healthz" + "/y" * 200]
)
def test_paths_are_cut(server: Running, path: str) -> None:
    with structlog.testing.capture_logs() as seen:
        httpx.get(server.url + path)
        until(lambda: any(item["event"] == "request" for item in seen))
    logged = next(item["path"] for item in seen if item["event"] == "request")
    assert logged.endswith("[cut]")
    assert 190 < len(logged.removesuffix("[cut]").encode()) <= 200


def test_whoever_logs_a_path_cuts_it(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("x" * 100)

    monkeypatch.setattr(Service, "read", fail)
    id = "0" * 32
    with structlog.testing.capture_logs() as seen:
        token = {"Authorization": "Bearer x"}
        httpx.get(f"{server.url}/v1/files/{id}/children/{'x' * 300}", headers=token)
        httpx.get(f"{server.url}/v1/files/{id}", headers=token)
        until(lambda: any(item["event"] == "request_failed" for item in seen))
    paths = [item["path"] for item in seen]
    assert max(len(item) for item in paths) <= 205
    assert redaction.shown_path("/s/" + "x" * 43) == "/s/[link]"


def test_no_value_is_long(log: io.StringIO) -> None:
    """Whoever logs what: the net under it."""
    structlog.get_logger("nearline.test").info("x" * 9000, body={"a": "y" * 9000}, n=1)
    logging.getLogger("some.library").warning("z" * 9000)
    try:
        raise ValueError("v" * 90_000)
    except ValueError:
        logging.getLogger("some.library").exception("failed")
    seen = lines(log)
    assert len(seen) == 3
    assert seen[0]["n"] == 1
    assert max(len(line) for line in log.getvalue().splitlines()[:2]) < 6000
    assert len(log.getvalue().splitlines()[2]) < 30_000
    assert log.getvalue().count("[cut]") == 4


@pytest.mark.slow
def test_a_run_of_everything_leaves_no_secret_in_the_log(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "server.log"
    add_account(data, "anna", PASSWORD)
    command = [sys.executable, "-m", "mount.cli", "serve", "--data", data]
    with log.open("w") as stream:
        running = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert running.stdout is not None
    try:
        url = running.stdout.readline().rpartition(" ")[2].strip()
        secrets = everything(url)
    finally:
        running.terminate()
        running.wait(60)
        running.stdout.close()
    told = log.read_text()
    for path in ("/v1/login", "/v1/changes/apply", "/chunks/", "/v1/changes/live", "/s/[link]"):
        assert path in told
    for line in told.splitlines():
        json.loads(line)
    for secret in (PASSWORD, LINK_PASSWORD, "Signature=", "Bearer ", *secrets):
        assert secret not in told, secret


def everything(url: str) -> list[str]:
    """Use a server in all ways there are, rightly and wrongly; returns what must stay secret."""
    with httpx.Client(base_url=url, timeout=30) as http:
        anna = Client(http).log_in("anna", PASSWORD)
        secrets = [anna.token, anna.me.cursor]
        with pytest.raises(Failed):
            Client(http).log_in("anna", PASSWORD + "!")
        secrets += bytes_up_and_down(anna)
        anna.changes(anna.me.cursor)
        for path in ("/v1/me", "/v1/changes/wait", "/chunks/a/b", "/%2e", "/s"):
            http.get(f"{path}?token={anna.token}&timeout=0")
            http.get(f"{path}/{anna.token}")
        live(url, anna)
        return secrets + through_a_link(anna)


def bytes_up_and_down(anna: Client) -> list[str]:
    chunk = make_chunk(noise(1000, "logged"))
    begun = anna.start("1" * 32, "2" * 32, chunk)
    put = begun.chunks[0].put
    anna.http.put(put.url, content=chunk.data[1:], headers=put.headers | {"Content-Length": "999"})
    file, version = anna.store("a", chunk)
    got = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
    anna.http.get(got)
    anna.http.get(got + "x")
    secrets = [signature_of(put.url), signature_of(got)]
    return secrets + [item[:-2] for item in secrets]


def signature_of(url: str) -> str:
    query = httpx.URL(url).params
    return query.get("Signature") or query["signature"]


def live(url: str, anna: Client) -> None:
    where = f"{url.replace('http', 'ws')}/v1/changes/live?cursor="
    headers = {"Authorization": f"Bearer {anna.token}"}
    with connect(where + anna.me.cursor, additional_headers=headers) as socket:
        assert socket.recv(timeout=60)
        socket.send(anna.token)
    with pytest.raises(InvalidStatus), connect(where + anna.token, additional_headers=headers):
        pass


def through_a_link(anna: Client) -> list[str]:
    file = anna.children()["a"].id
    wanted = account_messages.MakeLink(password=LINK_PASSWORD)
    made = anna.request("POST", f"/v1/files/{file}/links", account_messages.LinkMade, wanted)
    anna.http.get(made.url)
    anna.http.post(made.url, data={"password": LINK_PASSWORD + "!"})
    answer = anna.http.post(made.url, data={"password": LINK_PASSWORD})
    cookie = next(iter(anna.http.cookies.values()))
    assert answer.status_code in (200, 303)
    down = anna.http.get(f"{made.url}/{file}/download")
    assert down.status_code == 303, down.text
    content = down.headers["location"]
    assert anna.http.get(content).content == noise(1000, "logged")
    anna.http.get(content + "x")
    return [made.url.rpartition("/")[2], cookie, signature_of(content)]
