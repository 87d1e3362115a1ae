"""The client against a real HTTP server that answers what each test tells it to."""

from __future__ import annotations

import logging
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog
import trio
import trustme
import uvicorn

from mount import logs
from remote.http import data as data_module
from remote.http import transport
from remote.http.api import ApiClient, InsecureUrl, NoWebSocket, Timeouts, Truncated, check_url
from remote.protocol import account_messages, errors, messages
from remote.protocol.content import EMPTY
from remote.protocol.errors import Busy, ProtocolError, Refused, Unreachable, UrlRefused

MSGPACK = "application/msgpack"
FILE, VERSION = "a" * 32, "b" * 32
BLOB = random.Random(7).randbytes(1_000_000)
HINT = messages.Hint(since="c1", cursor="c2", seq=7)

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


@dataclass
class Asked:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    short_by: int = 0  # breaks off so many bytes before the declared end


@dataclass
class FakeServer:
    """An ASGI application: `answers[path]` is what that path answers, `asked` what came."""

    url: str = ""
    pin: str = ""
    answers: dict[str, Answer | Callable[[Asked], Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await self.websocket(scope, receive, send)
        asked = await read_request(scope, receive)
        self.asked.append(asked)
        answer = self.answers.get(asked.path, Answer(b"nothing here", 404))
        if not isinstance(answer, Answer):
            answer = answer(asked)
        headers = {"content-length": str(len(answer.body)), **answer.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        body = answer.body[: len(answer.body) - answer.short_by]
        await send({"type": "http.response.body", "body": body, "more_body": bool(answer.short_by)})
        return None  # uvicorn closes the connection when a body ends too early

    async def websocket(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = scope["query_string"].decode()
        self.asked.append(Asked("WS", scope["path"], query, headers, b""))
        await receive()
        for frame in self.frames:
            await send(frame)


async def read_request(scope: dict[str, Any], receive: Receive) -> Asked:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    return Asked(scope["method"], scope["path"], scope["query_string"].decode(), headers, body)


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    fake = FakeServer()
    listening = socket.create_server(("127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    issued = trustme.CA().issue_cert("127.0.0.1")
    fake.pin = issued.cert_chain_pems[0].bytes().decode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    config = uvicorn.Config(
        fake,
        ssl_context_factory=lambda *_: context,
        lifespan="off",
        log_level="critical",
        http="h11",
        timeout_graceful_shutdown=1,
        date_header=False,
    )
    process = uvicorn.Server(config)
    thread = threading.Thread(target=process.run, kwargs={"sockets": [listening]})
    thread.start()
    yield fake
    process.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def server(running: FakeServer) -> FakeServer:
    running.answers.clear()
    running.asked.clear()
    running.frames.clear()
    return running


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[ApiClient]:
    async with ApiClient(server.url, "secret-token", pin=server.pin) as made:
        yield made


def packed(message: object, status: int = 200) -> Answer:
    return Answer(msgspec.msgpack.encode(message), status, {"content-type": MSGPACK})


def problem(refusal: errors.Problem) -> Answer:
    return packed(refusal, errors.RULES[type(refusal)].status)


# --- the API ------------------------------------------------------------------------------------


PAGE = messages.ChangesPage(cursor="c2", seq=7, changes=[])
STATE = messages.UploadState(version=VERSION, status="uploading", expires_ns=9, chunks=[])
RECORD = messages.FileRecord(id=FILE, kind="file", mode=0o644, mtime_ns=1, ctime_ns=2, rev=3)
CHANGE = messages.Change(
    drive="d" * 32, seq=8, at_ns=1, device="laptop", files=[RECORD], entries=[]
)
KEYED = messages.Keyed(key="e" * 32, op=messages.Unlink(file=FILE, parent=VERSION, name="n"))
COMPLETE = messages.CompleteUpload(
    key="e" * 32,
    op=messages.Write(
        file=FILE, mtime_ns=1, content=messages.Content(version=VERSION, manifest=EMPTY)
    ),
)  # fmt: skip
APPLY = messages.ApplyReply([messages.Applied(change=CHANGE), errors.Stale(message="moved on")])
LOCATE = messages.LocateRequest(file=FILE, version=VERSION, chunks=[b"c" * 32])
BUNDLE = messages.StartBundle(parts=[messages.BundlePart(VERSION, b"c" * 32)], sha256=bytes(32))
PUT = messages.PresignedPut(url="https://s/blobs/1", headers={}, expires_ns=1)
SESSION = messages.LoginReply("t", "ada", "f" * 32)
LOGIN = messages.LoginRequest("ada", "correct horse", "laptop")
START = messages.StartUploads(uploads=[messages.StartUpload(version=VERSION, file=FILE)])
ME = messages.Me(
    account="ada", device_id="f" * 32, drive="d" * 32, root=FILE, cursor="c1", seq=1, used_bytes=0,
    quota_bytes=None, now_ns=5,
)  # fmt: skip
CHILDREN = messages.ChildrenPage(directory=RECORD, children=[], as_of=7)

SHARE = account_messages.ShareRequest([account_messages.Invite("ben", "viewer")])
SHARES = account_messages.SharesReply("ada", [])
MAKE_LINK = account_messages.MakeLink(expires_ns=5, max_downloads=3)
LINK = account_messages.LinkInfo(
    id=VERSION, file=FILE, name="n", created_ns=1, expires_ns=5, has_password=False,
    max_downloads=3, downloads=0,
)  # fmt: skip
LINKS = account_messages.LinksReply([LINK])
TRASH = account_messages.TrashPage(items=[])
EMPTY_TRASH = account_messages.EmptyTrash([FILE])
MAKE_TOKEN = account_messages.MakeToken(name="backup", scope="read")
TOKEN = account_messages.TokenReply("t", "f" * 32)
PASSWORD = account_messages.ChangePassword(old="old one", new="new one", revoke_devices=True)
PASSWORD_REPLY = account_messages.PasswordReply(devices_revoked=2)

Call = Callable[[ApiClient], Awaitable[Any]]
CALLS: list[tuple[str, str, str, Any, Any, Call]] = [
    # method, path, query, what is sent, what is answered, the call
    ("POST", "/v1/login", "", LOGIN, SESSION, lambda c: c.login(LOGIN)),
    ("GET", "/v1/me", "", None, ME, lambda c: c.me()),
    ("POST", "/v1/files", "", START, messages.StartUploadsReply([STATE, errors.QuotaExceeded()]),
     lambda c: c.start_uploads(START)),
    ("POST", f"/v1/uploads/{VERSION}/complete", "", COMPLETE, messages.Applied(change=CHANGE),
     lambda c: c.complete(VERSION, COMPLETE)),
    ("GET", f"/v1/files/{FILE}", "", None, messages.FileReply(file=RECORD, role="owner"),
     lambda c: c.file(FILE)),
    ("GET", f"/v1/files/{FILE}", f"version={VERSION}&manifest=true", None,
     messages.FileReply(file=RECORD, role="owner", manifest=EMPTY),
     lambda c: c.file(FILE, VERSION, manifest=True)),
    ("GET", f"/v1/files/{FILE}/children", "cursor=a%2Bb&limit=10", None, CHILDREN,
     lambda c: c.children(FILE, "a+b", 10)),
    ("GET", f"/v1/files/{FILE}/versions", "", None, messages.VersionsPage(versions=[]),
     lambda c: c.versions(FILE)),
    ("POST", "/v1/bundles", "", BUNDLE, messages.StartBundleReply(id=bytes(32), put=PUT),
     lambda c: c.start_bundle(BUNDLE)),
    ("POST", "/v1/chunks/locate", "", LOCATE, messages.LocateReply(chunks=[]),
     lambda c: c.locate(LOCATE)),
    ("POST", "/v1/changes/apply", "", messages.ApplyRequest([KEYED]), APPLY,
     lambda c: c.apply(messages.ApplyRequest([KEYED]))),
    ("GET", "/v1/changes", "cursor=c1", None, PAGE, lambda c: c.changes("c1")),
    ("GET", "/v1/changes", "", None, PAGE, lambda c: c.changes(None)),
    ("GET", "/v1/changes/wait", "cursor=c1&timeout=25.0", None, PAGE,
     lambda c: c.wait("c1", 25.0)),
    ("POST", f"/v1/files/{FILE}/share", "", SHARE, SHARES, lambda c: c.share(FILE, SHARE)),
    ("GET", f"/v1/files/{FILE}/shares", "", None, SHARES, lambda c: c.shares(FILE)),
    ("GET", "/v1/shared", "", None, account_messages.SharedReply([]), lambda c: c.shared()),
    ("POST", f"/v1/files/{FILE}/links", "", MAKE_LINK, account_messages.LinkMade(LINK, "https://x/s/y"),
     lambda c: c.make_link(FILE, MAKE_LINK)),
    ("GET", f"/v1/files/{FILE}/links", "", None, LINKS, lambda c: c.links(FILE)),
    ("GET", "/v1/links", "", None, LINKS, lambda c: c.links()),
    ("GET", "/v1/trash", "", None, TRASH, lambda c: c.trash()),
    ("GET", "/v1/trash", f"parent={FILE}&cursor=2", None, TRASH, lambda c: c.trash(FILE, "2")),
    ("POST", "/v1/trash/empty", "", EMPTY_TRASH, account_messages.EmptiedReply(3, False),
     lambda c: c.empty_trash(EMPTY_TRASH)),
    ("GET", "/v1/devices", "", None, account_messages.DevicesReply([]), lambda c: c.devices()),
    ("POST", "/v1/devices", "", MAKE_TOKEN, TOKEN, lambda c: c.make_token(MAKE_TOKEN)),
    ("POST", "/v1/devices/rotate", "", None, TOKEN, lambda c: c.rotate()),
    ("POST", "/v1/password", "", PASSWORD, PASSWORD_REPLY, lambda c: c.change_password(PASSWORD)),
]  # fmt: skip


async def test_every_endpoint_says_and_understands_its_message(
    client: ApiClient, server: FakeServer
) -> None:
    for method, path, query, sent, answered, call in CALLS:
        server.answers[path] = packed(answered)
        assert await call(client) == answered
        asked = server.asked[-1]
        assert (asked.method, asked.path, asked.query) == (method, path, query)
        assert asked.headers["authorization"] == "Bearer secret-token"
        assert asked.headers["accept"] == MSGPACK
        if sent is None:
            assert asked.body == b""
        else:
            assert asked.headers["content-type"] == MSGPACK
            assert msgspec.msgpack.decode(asked.body, type=type(sent)) == sent


DELETES: list[tuple[str, Call]] = [
    (f"/v1/files/{FILE}/share/ben", lambda c: c.unshare(FILE, "ben")),
    (f"/v1/links/{VERSION}", lambda c: c.revoke_link(VERSION)),
    (f"/v1/devices/{VERSION}", lambda c: c.revoke_device(VERSION)),
]


@pytest.mark.parametrize(("path", "call"), DELETES)
async def test_a_deletion_has_no_answer(
    client: ApiClient, server: FakeServer, path: str, call: Call
) -> None:
    server.answers[path] = Answer(status=204)
    await call(client)
    assert (server.asked[-1].method, server.asked[-1].path) == ("DELETE", path)


async def test_an_account_name_stays_one_part_of_the_path(
    client: ApiClient, server: FakeServer
) -> None:
    """`asked.path` is decoded: only what was sent tells `/` from `%2F`, and `?` from a query."""
    name = "a/b?c=d"
    server.answers[f"/v1/files/{FILE}/share/{name}"] = Answer(status=204)
    await client.unshare(FILE, name)
    assert server.asked[-1].query == ""


async def test_every_request_has_an_id_of_its_own(client: ApiClient, server: FakeServer) -> None:
    server.answers |= {"/v1/me": packed(ME), "/put": Answer(), "/get": Answer(b"x")}
    await client.me()
    await client.me()
    await client.put_chunk(
        messages.PresignedPut(url=f"{server.url}/put", headers={}, expires_ns=0), b""
    )
    await client.get_range(f"{server.url}/get", 0, 1, bytearray(1))
    with pytest.raises(NoWebSocket):
        async with client.live("c1"):
            pass
    ids = [asked.headers["x-request-id"] for asked in server.asked]
    assert len(set(ids)) == len(ids) == 5
    assert all(re.fullmatch("[0-9a-f]{16}", item) for item in ids)


async def test_the_log_has_the_ids_of_failed_and_slow_requests_and_no_secrets(
    client: ApiClient, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the most talkative level, everything that any library says included."""
    monkeypatch.setattr(transport, "SLOW_SECONDS", -1.0)
    monkeypatch.setattr(data_module, "SLOW_TRANSFER_SECONDS", -1.0)
    server.answers |= {
        "/v1/me": packed(ME),
        "/blob": Answer(b"x" * 10),
        "/gone": Answer(status=403),
    }
    secret = "Policy=p&Signature=very-secret"
    with logging_to(tmp_path / "log"):
        await client.me()
        await client.get_range(f"{server.url}/blob?{secret}", 0, 10, bytearray(10))
        put = messages.PresignedPut(url=f"{server.url}/gone?{secret}", headers={}, expires_ns=0)
        for call in (
            lambda: client.changes("secret-cursor"),
            lambda: client.put_chunk(put, b"x"),
            lambda: client.get_range(f"{server.url}/gone?{secret}", 0, 1, bytearray(1)),
            lambda: client.get_range(f"{server.url}/blob?{secret}", 0, 20, bytearray(20)),
        ):
            with pytest.raises(errors.NearlineError):
                await call()
        for bad in (
            f"http://example.org/x?{secret}",
            f"ftp://h/x?{secret}",
            f"http://h:x/?{secret}",
        ):
            with pytest.raises(ValueError, match="http") as caught:
                await client.get_range(bad, 0, 1, bytearray(1))
            assert "secret" not in str(caught.value)
        with pytest.raises(NoWebSocket):
            async with client.live("secret-cursor"):
                pass
    text = (tmp_path / "log").read_text()
    assert "secret" not in text
    lines = [line for line in map(msgspec.json.decode, text.splitlines()) if "id" in line]
    assert [line["id"] for line in lines] == [item.headers["x-request-id"] for item in server.asked]
    assert [(line["event"], line["path"]) for line in lines] == [
        ("request_was_slow", "/v1/me"),
        ("request_was_slow", "/blob"),
        ("request_failed", "/v1/changes"),
        ("request_failed", "/gone"),
        ("request_failed", "/gone"),
        ("request_failed", "/blob"),
        ("request_failed", "/v1/changes/live"),
    ]


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """As a mount logs, at level debug; what was configured before comes back."""
    root, log = logging.getLogger(), transport.log
    handlers, level = root.handlers[:], root.level
    logs.configure("debug", file)
    transport.log = structlog.get_logger(transport.__name__)  # the old one keeps its old way
    try:
        yield
    finally:
        root.handlers[0].close()
        root.handlers[:], transport.log = handlers, log
        root.setLevel(level)
        structlog.reset_defaults()


@pytest.mark.parametrize("kind", errors.RULES)
async def test_a_problem_is_a_refusal(
    client: ApiClient, server: FakeServer, kind: type[errors.Problem]
) -> None:
    extra = {"chunks": [b"c" * 32]} if kind is errors.ChunksMissing else {}
    sent = kind(message="do this", **extra)
    server.answers["/v1/me"] = problem(sent)
    with pytest.raises(Refused, match="do this") as caught:
        await client.me()
    assert caught.value.problem == sent
    assert caught.value.errno == errors.RULES[kind].errno


async def test_a_problem_may_be_json(client: ApiClient, server: FakeServer) -> None:
    body = msgspec.json.encode(errors.RateLimited(retry_after_seconds=3.5))
    server.answers["/v1/me"] = Answer(body, 429, {"content-type": "application/json"})
    with pytest.raises(Refused) as caught:
        await client.me()
    assert caught.value.problem == errors.RateLimited(retry_after_seconds=3.5)


NOON = "Sun, 22 Nov 2026 12:00:00 GMT"
A_MINUTE_LATER = "Sun, 22 Nov 2026 12:01:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": A_MINUTE_LATER, "date": NOON}, 60.0),  # whatever our own clock says
        ({"retry-after": NOON, "date": A_MINUTE_LATER}, 0.0),
        ({"retry-after": "99999999"}, errors.LONGEST_RETRY_AFTER),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": A_MINUTE_LATER, "date": "today"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_who_answers_not_now_may_say_when(
    client: ApiClient,
    server: FakeServer,
    headers: dict[str, str],
    seconds: float | None,
    status: int,
) -> None:
    server.answers["/v1/me"] = server.answers["/chunks/abc"] = Answer(b"busy", status, headers)
    with pytest.raises(Busy) as asked:
        await client.me()
    with pytest.raises(Busy) as fetched:
        await client.get_range(f"{server.url}/chunks/abc", 0, 10, bytearray(10))
    put = messages.PresignedPut(url=f"{server.url}/chunks/abc", headers={}, expires_ns=0)
    with pytest.raises(Busy) as sent:
        await client.put_chunk(put, b"x")
    for caught in (asked, fetched, sent):
        assert caught.value.status == status
        assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(b"<h1>Bad Gateway</h1>", 502), Unreachable),
        (Answer(b"", 500), Unreachable),
        (Answer(b"slow down", 429), Unreachable),
        (Answer(b"not found", 404), ProtocolError),
        (Answer(b'{"status_code": 404, "detail": "x"}', 404), ProtocolError),
        (Answer(b"", 302, {"location": "https://elsewhere.example/"}), ProtocolError),
        (Answer(b"<h1>Welcome to my router</h1>"), ProtocolError),
        (packed({"account": 5}), ProtocolError),
        (packed(PAGE), ProtocolError),
        (Answer(packed(ME).body, short_by=3), Unreachable),
        (packed({"type": "no_such_problem", "message": ""}, 400), ProtocolError),
        (packed({"type": "no_such_problem", "message": ""}, 503), Unreachable),
    ],
)
async def test_any_other_answer_has_its_class(
    client: ApiClient, server: FakeServer, answer: Answer, kind: type[Exception]
) -> None:
    server.answers["/v1/me"] = answer
    with pytest.raises(kind) as caught:
        await client.me()
    assert server.url in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_another_device_shares_pools_and_counters(
    client: ApiClient, server: FakeServer
) -> None:
    server.answers["/v1/me"] = packed(ME)
    other = client.with_token("other-token")
    await other.me()
    assert server.asked[-1].headers["authorization"] == "Bearer other-token"
    await client.with_token(None).me()
    assert "authorization" not in server.asked[-1].headers
    await client.me()
    assert server.asked[-1].headers["authorization"] == "Bearer secret-token"
    assert other.transferred is client.transferred
    assert client.transferred.requests == 3


async def test_a_token_that_was_exchanged_on_the_way_is_no_refusal(
    client: ApiClient, server: FakeServer
) -> None:
    def only_new(asked: Asked) -> Answer:
        client.use_token("new-token")  # a rotation ends while this request is under way
        if asked.headers["authorization"] != "Bearer new-token":
            return problem(errors.Unauthorized())
        return packed(ME)

    server.answers["/v1/me"] = only_new
    assert (await client.me()).account == "ada"
    assert len(server.asked) == 2
    server.answers["/v1/me"] = problem(errors.Unauthorized())
    with pytest.raises(Refused):
        await client.me()
    assert len(server.asked) == 3


async def test_bytes_are_counted(client: ApiClient, server: FakeServer) -> None:
    server.answers["/v1/login"] = packed(messages.LoginReply("t", "ada", "f" * 32))
    await client.login(LOGIN)
    assert client.transferred.uploaded_bytes == len(server.asked[-1].body) > 0
    login = server.answers["/v1/login"]
    assert isinstance(login, Answer)
    assert client.transferred.downloaded_bytes == len(login.body)


# --- no answer ----------------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with ApiClient(f"http://127.0.0.1:{port}", None, insecure=True) as client:
        with pytest.raises(Unreachable) as caught:
            await client.me()
    told = f"cannot connect: http://127.0.0.1:{port}: connection refused"
    assert str(caught.value) == told


async def test_the_name_does_not_exist() -> None:
    async with ApiClient("http://no-such-host.localhost:1", None, insecure=True) as client:
        with pytest.raises(Unreachable, match=r"cannot connect: http://no-such-host"):
            await client.me()


async def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with ApiClient(url, None, insecure=True, timeouts=Timeouts(read=0.05)) as client:
            with pytest.raises(Unreachable, match="timed out"):
                await client.me()


@pytest.mark.parametrize(
    "url", ["http://nas.example", "http://192.168.1.5:8750/", "http://localhost.example"]
)
def test_other_machines_are_spoken_to_over_tls(url: str) -> None:
    with pytest.raises(InsecureUrl, match="not encrypted"):
        ApiClient(url, None)
    check_url(url, insecure=True)


@pytest.mark.parametrize(
    "url",
    ["https://nas.example", "http://localhost:1", "http://127.0.0.7", "http://[::1]:8750",
     "http://up.localhost"],
)  # fmt: skip
def test_loopback_with_a_pin_and_tls_are_fine(url: str) -> None:
    check_url(url, pinned=True)
    if not url.startswith("https:"):
        with pytest.raises(InsecureUrl, match="anybody's on this machine"):
            check_url(url)


@pytest.mark.parametrize(
    "url", ["nas.example", "ftp://nas.example", "https://", "http://", "", "/x"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        check_url(url, insecure=True)


# --- the data path ------------------------------------------------------------------------------


def ranged(asked: Asked) -> Answer:
    start, end = asked.headers["range"].removeprefix("bytes=").split("-")
    body = BLOB[int(start) : int(end) + 1]
    content_range = f"bytes {start}-{int(start) + len(body) - 1}/{len(BLOB)}"
    return Answer(body, 206, {"content-range": content_range})


async def test_a_range_lands_in_the_callers_buffer(client: ApiClient, server: FakeServer) -> None:
    server.answers["/blob"] = ranged
    into = bytearray(b"." * 400_000)
    assert await client.get_range(f"{server.url}/blob?s=1", 100_000, 450_000, into) == 350_000
    assert into == BLOB[100_000:450_000] + b"." * 50_000
    asked = server.asked[-1]
    assert asked.headers["accept-encoding"] == "identity"
    assert "authorization" not in asked.headers
    assert asked.query == "s=1"
    assert client.transferred.downloaded_bytes == 350_000


async def test_many_ranges_at_once(client: ApiClient, server: FakeServer) -> None:
    server.answers["/blob"] = ranged
    into = memoryview(bytearray(len(BLOB)))
    async with trio.open_nursery() as nursery:
        for start in range(0, len(BLOB), 25_000):
            part = into[start : start + 25_000]
            nursery.start_soon(client.get_range, f"{server.url}/blob", start, start + 25_000, part)
    assert into == BLOB


async def test_the_whole_object_may_answer_a_range_of_all_of_it(
    client: ApiClient, server: FakeServer
) -> None:
    server.answers["/blob"] = Answer(BLOB)
    into = bytearray(len(BLOB))
    await client.get_range(f"{server.url}/blob", 0, len(BLOB), into)
    assert into == BLOB


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(status=403), UrlRefused),
        (Answer(status=401), UrlRefused),
        (Answer(status=404), UrlRefused),
        (Answer(status=500), Unreachable),
        (Answer(status=503), Unreachable),
        (Answer(status=416), Truncated),
        (Answer(status=400), ProtocolError),
        (Answer(status=302, headers={"location": "/elsewhere"}), ProtocolError),
        (Answer(BLOB[10:19], 206, {"content-range": "bytes 10-18/100"}), Truncated),
        (Answer(BLOB[10:19], 206, {"content-range": "bytes 10-19/100"}), Truncated),
        (Answer(BLOB[10:21], 206, {"content-range": "bytes 10-19/100"}), Truncated),
        (Answer(BLOB[10:20], 206, {"content-range": "bytes 10-19/100"}, short_by=1), Unreachable),
        (Answer(BLOB[11:21], 206, {"content-range": "bytes 11-20/100"}), ProtocolError),
        (Answer(BLOB[10:20], 206), ProtocolError),
        (Answer(BLOB), ProtocolError),
        (
            Answer(b"x" * 10, 206, {"content-range": "bytes 10-19/9", "content-encoding": "br"}),
            ProtocolError,
        ),
    ],
)
async def test_a_wrong_answer_to_a_range(
    client: ApiClient, server: FakeServer, answer: Answer, kind: type[Exception]
) -> None:
    server.answers["/blob"] = answer
    with pytest.raises(kind, match="download from 127"):
        await client.get_range(f"{server.url}/blob", 10, 20, bytearray(10))
    # The pool survives: the next request is answered.
    server.answers["/blob"] = ranged
    assert await client.get_range(f"{server.url}/blob", 10, 20, bytearray(10)) == 10


async def test_a_range_that_does_not_fit_is_the_callers_mistake(client: ApiClient) -> None:
    for start, end, into in ((0, 11, 10), (5, 5, 10), (-1, 5, 10)):
        with pytest.raises(ValueError, match="does not fit"):
            await client.get_range("http://127.0.0.1:1/blob", start, end, bytearray(into))


async def test_content_from_other_machines_comes_over_tls(client: ApiClient) -> None:
    with pytest.raises(InsecureUrl):
        await client.get_range("http://edge.example/blob", 0, 1, bytearray(1))
    with pytest.raises(InsecureUrl):
        await client.put_chunk(put_to("http://edge.example/blob"), b"x")


def put_to(url: str) -> messages.PresignedPut:
    headers = {"If-None-Match": "*", "x-amz-checksum-sha256": "c2hh", "Content-Length": "1000000"}
    return messages.PresignedPut(url=url, headers=headers, expires_ns=9)


@pytest.mark.parametrize("status", [200, 201, 204, 412])
async def test_a_chunk_is_put_with_its_headers(
    client: ApiClient, server: FakeServer, status: int
) -> None:
    server.answers["/blob"] = Answer(status=status)
    await client.put_chunk(put_to(f"{server.url}/blob?signature=1"), memoryview(BLOB))
    asked = server.asked[-1]
    assert (asked.method, asked.query, asked.body) == ("PUT", "signature=1", BLOB)
    assert asked.headers["if-none-match"] == "*"
    assert asked.headers["x-amz-checksum-sha256"] == "c2hh"
    assert asked.headers["content-length"] == str(len(BLOB))
    assert "transfer-encoding" not in asked.headers
    assert "authorization" not in asked.headers
    assert client.transferred.uploaded_bytes == len(BLOB)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, UrlRefused), (401, UrlRefused), (500, Unreachable), (503, Unreachable),
     (409, Unreachable), (400, ProtocolError)],
)  # fmt: skip
async def test_a_put_that_is_not_taken(
    client: ApiClient, server: FakeServer, status: int, kind: type[Exception]
) -> None:
    server.answers["/blob"] = Answer(b"<Error/>", status)
    with pytest.raises(kind, match="upload to 127"):
        await client.put_chunk(put_to(f"{server.url}/blob"), BLOB)


# --- live ---------------------------------------------------------------------------------------


def frame(data: bytes) -> dict[str, Any]:
    return {"type": "websocket.send", "bytes": data}


ACCEPT: dict[str, Any] = {"type": "websocket.accept"}


async def test_hints_come_as_they_are_sent(client: ApiClient, server: FakeServer) -> None:
    large = messages.Hint(since="c2", cursor="c3", seq=8, changes=[CHANGE] * 2000)
    encode = msgspec.msgpack.encode
    server.frames = [ACCEPT, frame(encode(HINT)), frame(encode(large))]
    server.frames.append({"type": "websocket.close", "code": 1001, "reason": "restarting"})
    async with client.live("c1") as hints:
        assert await anext(hints) == HINT
        assert await anext(hints) == large
        with pytest.raises(Unreachable, match="restarting"):
            await anext(hints)
    asked = server.asked[-1]
    assert (asked.path, asked.query) == ("/v1/changes/live", "cursor=c1")
    assert asked.headers["authorization"] == "Bearer secret-token"


async def test_what_ends_a_session_is_one_plain_error(
    client: ApiClient, server: FakeServer
) -> None:
    server.frames = [ACCEPT, {"type": "websocket.close", "code": 1001}]
    with pytest.raises(Unreachable, match="1001"):
        async with client.live("c1") as hints:
            await anext(hints)
    server.frames = [ACCEPT, frame(b"\xc1")]
    with pytest.raises(ProtocolError, match="no hint"):
        async with client.live("c1") as hints:
            await anext(hints)
    server.frames = [ACCEPT, {"type": "websocket.send", "text": "hello"}]
    with pytest.raises(ProtocolError, match="no hint"):
        async with client.live("c1") as hints:
            await anext(hints)


async def test_an_error_of_the_caller_stays_itself(client: ApiClient, server: FakeServer) -> None:
    server.frames = [ACCEPT, frame(msgspec.msgpack.encode(HINT))]
    with pytest.raises(LookupError, match="mine"):
        async with client.live("c1"):
            raise LookupError("mine")


async def test_no_websocket_is_to_be_had(client: ApiClient, server: FakeServer) -> None:
    server.frames = [{"type": "websocket.close", "code": 1000}]
    with pytest.raises(NoWebSocket, match="403"):
        async with client.live("c1"):
            pass


async def test_a_cancelled_session_ends_at_once(client: ApiClient, server: FakeServer) -> None:
    server.frames = [ACCEPT, frame(msgspec.msgpack.encode(HINT))]
    with trio.CancelScope() as scope:
        async with client.live("c1") as hints:
            async for _ in hints:
                scope.cancel()
    assert scope.cancelled_caught
    server.answers["/v1/me"] = packed(ME)
    assert await client.me() == ME


async def test_the_certificate_store_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ssl.SSLContext] = []
    real = httpx.create_ssl_context

    def counted() -> ssl.SSLContext:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(httpx, "create_ssl_context", counted)
    async with ApiClient("https://localhost:1", None) as client:
        for _ in range(2):
            with pytest.raises(Unreachable):
                await client.me()
        with pytest.raises(Unreachable):
            await client.get_range("https://localhost:1/chunk", 0, 1, bytearray(1))
    assert len(made) == 1


@pytest.mark.slow
def test_http_is_loaded_when_the_first_request_is_made() -> None:
    program = (
        "import sys, mount.daemon\n"
        "from remote.http.api import ApiClient\n"
        "for url in 'http://127.0.0.1:1', 'http://localhost:1/', 'https://nas.example':\n"
        "    ApiClient(url, None, pin='a certificate')\n"
        "assert not {'httpx', 'httpx_ws', 'httpcore'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
