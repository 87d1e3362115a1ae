"""Bodies of requests: how large, how slow, and how much of them is held at a time."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.protocol.errors import RateLimited, Refused, TooLarge
from server.http import bodies
from server.http.bodies import BUFFERED, STRANGER_BYTES, Bodies, Body, BodyDeadlines, TooSlow
from server.http.rate_limits import SharedBytes
from server.metrics import Metrics
from server.service import Service
from server.settings import BadSettings, Settings, Tunables
from tests.server.conftest import Start
from tests.server.harness import Client, Running, make_chunk, new_id, noise, until
from tests.server.http.test_connections import connected, everything

MIB = 1024 * 1024
LOGIN = b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def small(start: Start, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A server with room for 8 MiB of bodies: 1 MiB for strangers, of which one address may have
    half. It does not wait for what comes after an answer."""
    monkeypatch.setattr(bodies, "DRAIN_SECONDS", 0.0)
    return start(body_limit=2 * MIB, body_memory_bytes=8 * MIB)


def bodies_of(server: Running) -> Bodies:
    return server.app._admission.bodies


def buffered(server: Running) -> int:
    """Bytes of bodies that uvicorn holds, and nobody took."""
    open_ = list(server.app.connections._open)
    return sum(len(item.cycle.body) for item in open_ if getattr(item, "cycle", None))


@contextmanager
def asking(server: Running, head: bytes, length: int, sent: bytes) -> Iterator[socket.socket]:
    with connected(server) as sock:
        sock.sendall(head + b"Content-Length: %d\r\n\r\n" % length + sent)
        yield sock


def authorized(client: Client, request: str) -> bytes:
    head = f"{request} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Authorization: Bearer {client.token}\r\n".encode()


# --- how large ----------------------------------------------------------------------------------


def test_nothing_large_is_taken_from_strangers(small: Running) -> None:
    heads = [
        LOGIN,
        LOGIN + b"Authorization: Bearer wrong\r\n",
        LOGIN.replace(b"/v1/login", b"/s/" + b"x" * 43),
        LOGIN.replace(b"/v1/login", b"/v1/changes/apply"),
        LOGIN.replace(b"/v1/login", b"/nothing"),
        LOGIN.replace(b"POST", b"PUT").replace(b"/v1/login", b"/chunks/a/b"),
        LOGIN.replace(b"POST", b"GET").replace(b"/v1/login", b"/healthz"),
        LOGIN.replace(b"POST", b"GET").replace(b"/v1/login", b"/content/a/b/c"),
        LOGIN.replace(b"POST", b"DELETE").replace(b"/v1/login", b"/v1/devices/1"),
    ]
    with ExitStack() as stack:
        for head in heads:
            sock = stack.enter_context(asking(small, head, STRANGER_BYTES + 1, b" " * 1000))
            answer = everything(sock).lower()
            assert answer.split()[1] == b"413", head
            assert b"connection: close" in answer
        until(lambda: buffered(small) == 0)
        assert bodies_of(small).held == 0


def test_who_has_a_bad_token_is_told_before_the_body_is_taken(small: Running) -> None:
    head = LOGIN.replace(b"/v1/login", b"/v1/changes/apply") + b"Authorization: Bearer wrong\r\n"
    with asking(small, head, MIB, b"{") as sock:
        answer = everything(sock)
    assert answer.split()[1] == b"401"
    assert b"connection: close" in answer.lower()
    assert bodies_of(small).held == 0


@pytest.mark.parametrize("request_line", ["PUT /blobs/a/b", "POST /v1/changes/apply"])
def test_who_is_still_sending_gets_the_answer_and_no_reset(
    server: Running, request_line: str
) -> None:
    """All that was announced is taken, and then the connection ends in order."""
    head = f"{request_line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n".encode()
    rest = bytes(2 * MIB)
    with asking(server, head, len(rest) + 1, b"{") as sock:
        answer = sock.recv(65536)
        assert answer.split()[1] in (b"400", b"401")
        sock.sendall(rest)
        assert everything(sock) in (b"", answer.partition(b"\r\n\r\n")[2])
    assert bodies_of(server).held == 0


def test_the_longest_login_is_let_in(server: Running) -> None:
    long = {"account": "\U0001f600" * 255, "password": "\U0001f600" * 1024, "device": "\x01" * 255}
    got = server.client().http.post("/v1/login", json=long)
    assert got.status_code == 401


def test_room_for_bodies_is_for_several_of_the_largest(tmp_path: Any) -> None:
    with pytest.raises(BadSettings, match="body_memory_bytes"):
        Settings(tmp_path, "http://x", Tunables(body_limit=16 * MIB, body_memory_bytes=63 * MIB))


# --- how much of all ----------------------------------------------------------------------------


def test_strangers_fill_their_room_and_nobody_elses(small: Running) -> None:
    """Bodies that are held open: the next is refused, and who has a token does not notice."""
    anna, held = small.account("anna"), bodies_of(small)
    each, most = 20_000, MIB // 2
    with ExitStack() as stack:
        for count in range(most // each):
            stack.enter_context(asking(small, LOGIN, each, b"{"))
            until(lambda count=count: held.held == (count + 1) * each)  # type: ignore[misc]
        answer = everything(stack.enter_context(asking(small, LOGIN, each, b"{"))).lower()
        assert answer.split()[1] == b"429"
        assert b"retry-after: 1\r\n" in answer
        assert b"connection: close" in answer
        assert held.held <= most
        chunk = make_chunk(noise(300_000, "beside strangers"))
        anna.store("a", chunk)  # a batch, a start and a PUT
    until(lambda: held.held == 0)


def test_what_uvicorn_holds_is_counted(small: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's token is still looked up, and the body comes meanwhile, as far as it may."""
    anna, looked_up = small.account("anna"), asyncio.Event()
    read = Service.read

    async def slow(service: Service, token: str | None, work: Callable[..., Any]) -> Any:
        await looked_up.wait()
        return await read(service, token, work)

    small.app.service.recent_tokens.forget(anna.token)
    monkeypatch.setattr(Service, "read", slow)
    loop, bodies = small.server._loop, bodies_of(small)
    assert loop is not None
    with asking(small, authorized(anna, "POST /v1/changes/apply"), 2 * MIB, b"") as sock:
        until(lambda: bodies.claimed.taken > 0)
        with ThreadPoolExecutor(1) as thread:
            sending = thread.submit(sock.sendall, b" " * 2 * MIB)
            until(lambda: buffered(small) > 65536)
            assert buffered(small) <= BUFFERED == bodies.claimed.taken
            loop.call_soon_threadsafe(looked_up.set)
            sending.result(20)
        assert sock.recv(65536).split()[1] == b"400"
    until(lambda: bodies.held == 0)


def test_what_comes_ahead_of_its_turn_is_bounded(
    small: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests behind one that is under way: one may wait, and there is room for so much of all."""
    anna = small.account("anna")
    wait = f"/v1/changes/wait?cursor={anna.me.cursor}&timeout=25"
    first = authorized(anna, f"GET {wait}") + b"\r\n"
    with connected(small) as sock:
        sock.sendall(first + 2 * b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert everything(sock) == b""
    second, behind = LOGIN + b"Content-Length: 20000\r\n\r\n", small.app.connections.behind
    others = [(str(n), MIB >> (n + 1)) for n in range(3)]
    assert all(behind.take(*item) for item in others)
    taken = behind.taken
    with ExitStack() as stack:
        for count in range(3):
            sock = stack.enter_context(connected(small))
            sock.sendall(first + second + b" " * 20_000)
            until(lambda count=count: behind.taken == taken + (count + 1) * 20_000)  # type: ignore[misc]
        sock = stack.enter_context(connected(small))
        sock.sendall(first + second + b" " * 20_000)
        assert everything(sock) == b""
    anna.make("a")  # ends what was waited behind
    until(lambda: behind.taken == taken)
    until(lambda: small.app.service.metrics.polls._value.get() == 0)
    assert "Exception in ASGI application" not in caplog.text


def test_what_is_sent_behind_is_answered_in_its_turn(small: Running) -> None:
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    login = LOGIN + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
    with connected(small) as sock:
        sock.sendall(get + b"\r\n" + login)
        answers = everything(sock)
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b" 400 " in answers
    assert small.app.connections.behind.taken == 0


def test_chunks_go_to_the_disk_in_pieces_while_there_is_little_room(small: Running) -> None:
    anna, bodies = small.account("anna"), bodies_of(small)
    chunk = make_chunk(noise(6 * MIB, "little room"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    others = bodies.trusted.taken
    assert bodies.trusted.take("others", 2 * MIB)
    assert bodies.trusted.take(anna.me.drive, 0)
    assert anna.put(ticket, chunk).status_code == 200  # 4 MiB of it had no place at once
    bodies.trusted.give_back("others", 2 * MIB)
    until(lambda: bodies.trusted.taken == others)


def test_a_chunk_that_has_no_room_is_to_be_sent_again(small: Running) -> None:
    anna, bodies = small.account("anna"), bodies_of(small)
    chunk = make_chunk(noise(100_000, "no room"))
    ticket = anna.start(new_id(), new_id(), chunk).chunks[0]
    holders = [(str(n), (5 * MIB) >> (n + 1)) for n in range(7)]  # each half of what is left
    for holder, amount in holders:
        assert bodies.trusted.take(holder, amount)
    refused = anna.put(ticket, chunk)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    for holder, amount in holders:
        bodies.trusted.give_back(holder, amount)
    assert anna.put(ticket, chunk).status_code == 200


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 600)), max_size=60))
def test_nobody_has_more_than_is_left_for_all_others(takes: list[tuple[int, int]]) -> None:
    room, held = SharedBytes(1000), dict.fromkeys(range(6), 0)
    for holder, amount in takes:
        before = sum(held.values())
        if room.take(holder, amount):
            held[holder] += amount
            assert held[holder] <= 1000 - sum(held.values())
        else:
            assert held[holder] + 2 * amount > 1000 - before
        assert room.taken == sum(held.values())
    for holder, amount in held.items():
        room.give_back(holder, amount)
    assert room.taken == 0
    assert room.take("somebody", 500)


# --- how slow -----------------------------------------------------------------------------------


@given(st.floats(0, 1e4), st.integers(0, 1 << 26))
def test_nobody_is_waited_for_longer_than_the_floor_allows(waited: float, taken: int) -> None:
    left = BodyDeadlines(30.0, 1024.0, 3600.0).left(waited, taken)
    assert 0 <= left <= 30
    assert waited + left <= max(waited, min(3600, 30 + taken / 1024 + 1e-6))
    assert left == 30 or taken < 1024 * (waited + 30) or waited > 3570


@pytest.mark.parametrize(
    "settings", [{"body_floor": 1e9, "body_seconds": 0.2}, {"body_total_seconds": 0.2}]
)
def test_any_body_that_only_trickles_is_given_up(start: Start, settings: dict[str, Any]) -> None:
    server = start(**settings)
    with asking(server, LOGIN, 20_000, b"{") as sock:
        sock.settimeout(0.01)
        answer = b""
        while not answer:
            sock.sendall(b" ")
            try:
                answer = sock.recv(65536)
            except TimeoutError:
                continue
    assert answer.split()[1] == b"408"
    assert b"connection: close" in answer.lower()
    until(lambda: bodies_of(server).held == 0)


@pytest.mark.parametrize("who", ["stranger", "account", "signed"])
def test_who_goes_away_while_sending_is_no_fault_of_the_server(small: Running, who: str) -> None:
    anna = small.account("anna")
    heads = {"stranger": LOGIN, "account": authorized(anna, "POST /v1/changes/apply")}
    length = 1000
    if who == "signed":
        chunk = make_chunk(noise(100_000, "gone"))
        put = anna.start(new_id(), new_id(), chunk).chunks[0].put
        assert put is not None
        length = len(chunk.data)
        sums = "".join(
            f"{name}: {value}\r\n"
            for name, value in put.headers.items()
            if name.lower() != "content-length"
        )
        path = put.url.removeprefix(small.url)
        heads["signed"] = f"PUT {path} HTTP/1.1\r\nHost: x\r\n{sums}".encode()
    before = statuses(small)
    with asking(small, heads[who], length, b"{"):
        until(lambda: bodies_of(small).held > 0)
    until(lambda: statuses(small) - before != Counter())
    assert statuses(small) - before == Counter({"499": 1})
    until(lambda: bodies_of(small).held == 0)


def statuses(server: Running) -> Counter[str]:
    """The number of answers, by status."""
    counted: Counter[str] = Counter()
    for family in server.app.service.metrics.requests.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                counted[sample.labels["status"]] += int(sample.value)
    return counted


# --- without a server ---------------------------------------------------------------------------


def arriving(*pieces: bytes) -> Any:
    messages = [
        {"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    ]
    messages.append({"type": "http.disconnect"})

    async def receive() -> Any:
        return messages.pop(0)

    return receive


def test_a_body_in_pieces_is_taken_and_counted() -> None:
    bodies = Bodies(Tunables(), Metrics())
    pieces = [bytes(100_000)] * 9
    body = Body(bodies, arriving(*pieces), 900_000)
    body.is_identified("anna")
    seen = []

    async def take() -> None:
        for _ in pieces:
            assert body.more
            await body()
            seen.append(bodies.held)
        assert not body.more
        assert (await body())["type"] == "http.disconnect"

    asyncio.run(take())
    assert seen == [min(900_000, BUFFERED + n * 100_000) for n in range(1, 10)]
    body.let_go()
    assert bodies.held == 0
    body.end()
    assert bodies.held == 0


def test_what_was_let_go_has_no_room() -> None:
    bodies = Bodies(Tunables(), Metrics())
    body = Body(bodies, arriving(bytes(1000), bytes(1000)), 2000)
    body.trust("drive")
    asyncio.run(body())  # type: ignore[arg-type]
    assert bodies.held == 2000
    body.let_go()
    assert bodies.held == 1000
    body.end()
    assert bodies.held == 0


def test_a_claim_is_no_more_than_a_stranger_until_it_is_proven() -> None:
    bodies = Bodies(Tunables(), Metrics())
    body = Body(bodies, arriving(bytes(30_000)), 30_000)
    body.is_claimed("1.2.3.4")
    with pytest.raises(Refused) as refused:
        asyncio.run(body())  # type: ignore[arg-type]
    assert isinstance(refused.value.problem, TooLarge)
    body.trust("anna")
    asyncio.run(body())  # type: ignore[arg-type]


def test_strangers_and_claims_and_trusted_are_counted_apart() -> None:
    bodies = Bodies(Tunables(body_memory_bytes=8 * MIB, body_limit=MIB), Metrics())
    held = [Body(bodies, arriving(), 20_000) for _ in range(40)]
    for body in held[:26]:
        body.is_strangers("a")
    with pytest.raises(Refused) as refused:
        held[26].is_strangers("a")
    assert isinstance(refused.value.problem, RateLimited)
    assert bodies.strangers.taken == 26 * 20_000
    Body(bodies, arriving(), 20_000).is_strangers("b")
    Body(bodies, arriving(), MIB).is_claimed("a")
    Body(bodies, arriving(), MIB).is_identified("a")


def test_nothing_is_waited_for_beyond_its_time() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    bodies = Bodies(Tunables(body_seconds=0.001), Metrics())
    body = Body(bodies, never, 10)
    body.is_strangers("a")
    with pytest.raises(TooSlow):
        asyncio.run(body())  # type: ignore[arg-type]
