"""Limits on sockets of the change feed: their number, their age, what may be said on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
import trio
from sqlalchemy import update
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from remote.feed.subscriber import Subscriber
from remote.http.api import ApiClient
from remote.protocol import errors, messages
from server.api.live import GOING_AWAY
from server.changes.fanout import News, account_topic
from server.metadata import schema
from tests.server.conftest import Start
from tests.server.harness import MSGPACK, Client, Running, until


def connected(server: Running, token: str) -> ClientConnection:
    headers = {"Authorization": f"Bearer {token}", "Accept": MSGPACK}
    url = f"{server.url.replace('http', 'ws')}/v1/changes/live"
    return connect(url, additional_headers=headers, ping_interval=None)


@contextmanager
def live(server: Running, token: str) -> Iterator[ClientConnection]:
    """A socket that has got its first hint."""
    with connected(server, token) as socket:
        frame = socket.recv(timeout=60)
        assert isinstance(frame, bytes)
        assert msgspec.msgpack.decode(frame, type=messages.Hint).cursor
        yield socket


def closed_with(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        _to_the_end(socket)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def _to_the_end(socket: ClientConnection) -> None:
    while True:
        socket.recv(timeout=60)


def open_sockets(server: Running) -> float:
    return float(server.app.service.metrics.live._value.get())


def test_an_account_has_so_many_sockets(start: Start) -> None:
    server = start(sockets_per_account=2)
    anna, ben = server.account("anna"), server.account("ben")
    phone = server.device(anna.me.account, "phone")
    with ExitStack() as stack:
        for token in (anna.token, phone.token):
            stack.enter_context(live(server, token))
        with pytest.raises(InvalidStatus) as refused, live(server, anna.token):
            pass
        assert refused.value.response.status_code == 429
        assert int(refused.value.response.headers["retry-after"]) >= 1
        problem = msgspec.msgpack.decode(refused.value.response.body or b"", type=errors.AnyProblem)
        assert isinstance(problem, errors.RateLimited)
        stack.enter_context(live(server, ben.token))
    until(lambda: open_sockets(server) == 0)
    with live(server, anna.token), live(server, anna.token):
        pass


@pytest.mark.parametrize("said", ["hello", b"\x00", ""])
def test_clients_have_nothing_to_say(server: Running, anna: Client, said: str | bytes) -> None:
    with live(server, anna.token) as socket:
        socket.send(said)
        assert closed_with(socket) == 1003


def test_a_message_is_not_even_taken_in(server: Running, anna: Client) -> None:
    with live(server, anna.token) as socket:
        socket.send(bytes(1_000_000))
        assert closed_with(socket) == 1009


def test_an_old_socket_is_closed_and_the_client_comes_again(start: Start) -> None:
    server = start(socket_max_age_seconds=0.05)
    anna = server.account("anna")
    with connected(server, anna.token) as socket:
        assert closed_with(socket) == 1001
    heard = trio.run(follow, server, anna)
    assert heard.changes


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.at: str | None = None
        self.changes: list[messages.Change] = []
        self.heard = trio.Event()

    def cursor(self) -> str | None:
        return self.at

    async def take(
        self,
        changes: list[messages.Change],
        cursor: str,
        seq: int,
        shared: list[messages.SharedRoot] | None,
    ) -> None:
        self.changes += changes
        self.at = cursor
        if changes:
            self.heard.set()

    async def reset(self, cursor: str, seq: int, shared: list[messages.SharedRoot] | None) -> None:
        self.at = cursor


async def follow(server: Running, anna: Client) -> Sink:
    """A real subscriber hears of a change although its sockets do not last."""
    sink = Sink()
    api = ApiClient(server.url, anna.token, pin=server.pin)
    async with api, trio.open_nursery() as nursery:
        subscriber = Subscriber(api, sink, jitter=lambda: 0.0)
        nursery.start_soon(subscriber.run)
        await subscriber.sync()
        before = server.app.service.metrics.requests.labels("WS", "/v1/changes/live", "101")
        with trio.fail_after(60):
            while before._value.get() < 3:
                await subscriber.sync()
            await trio.to_thread.run_sync(anna.make, "a")
            await sink.heard.wait()
        nursery.cancel_scope.cancel()
    return sink


def test_a_client_that_goes_while_it_is_accepted_is_no_fault(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn refuses the first hint then as if nobody had been accepted."""
    with live(server, anna.token) as socket:

        async def refuses(*_: object) -> None:
            raise RuntimeError(
                "Expected ASGI message 'websocket.accept', but got 'websocket.send'."
            )

        monkeypatch.setattr("server.api.live._Pusher._send", refuses)
        anna.do(anna.create("a"))
        assert closed_with(socket) == GOING_AWAY


def test_a_revoked_device_is_cut_off_at_once(server: Running, anna: Client) -> None:
    phone = server.device(anna.me.account, "phone")
    with live(server, phone.token) as lost, live(server, anna.token) as kept:
        anna.request("DELETE", f"/v1/devices/{phone.me.device_id}", type(None))
        assert closed_with(lost) == 4401
        anna.make("a")
        assert isinstance(kept.recv(timeout=60), bytes)


def test_news_of_the_account_makes_a_socket_look_at_its_token(
    server: Running, anna: Client
) -> None:
    with live(server, anna.token) as socket:
        with server.app.service.db.write() as conn:
            mine = schema.devices.c.id == anna.me.device_id
            changed = update(schema.devices).where(mine).values(revoked_ns=time.time_ns())
            account = conn.execute(changed.returning(schema.devices.c.account)).scalar_one()
        server.app.service.fanout.publish(News(account_topic(account)))
        assert closed_with(socket) == 4401


def test_a_peer_that_does_not_answer_pings_is_cut(start: Start) -> None:
    server = start(socket_ping_seconds=0.1)
    anna = server.account("anna")
    with live(server, anna.token) as socket:
        socket.protocol.receive_data = lambda _data: None  # type: ignore[method-assign]
        until(lambda: open_sockets(server) == 0)
