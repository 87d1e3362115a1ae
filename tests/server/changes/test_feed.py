"""The change feed: pull, long poll, push; cursors, epochs, and who hears of what."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec
import pytest
from sqlalchemy import update
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from remote.protocol import errors, messages
from remote.protocol.errors import Refused
from server.changes import fanout, feed
from server.changes.fanout import LocalFanout, News
from server.changes.feed import Cursors, Position
from server.metadata import schema
from tests.server.conftest import Start
from tests.server.harness import Client, Failed, Running, new_id, until

# --- pull ---------------------------------------------------------------------------------------


def test_pull_tells_what_happened_in_order(anna: Client) -> None:
    done = [anna.do(anna.create(name)).change for name in "abc"]
    page = anna.changes(anna.me.cursor)
    assert (page.changes, page.seq, page.more, page.reset) == (done, 3, False, False)
    assert page.cursor == anna.refresh().cursor
    after = anna.changes(page.cursor)
    assert (after.changes, after.cursor) == ([], page.cursor)


def test_pull_comes_in_pages(anna: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    anna.batch(*[anna.create(str(n)) for n in range(5)])
    monkeypatch.setattr(feed, "PAGE_BYTES", 1500)
    seen, cursor, more = [], anna.me.cursor, True
    while more:
        page = anna.changes(cursor)
        seen += [change.seq for change in page.changes]
        cursor, more = page.cursor, page.more
        assert page.changes
    assert seen == [1, 2, 3, 4, 5]


def test_without_a_cursor_one_begins_at_the_head(anna: Client) -> None:
    anna.make("a")
    page = anna.changes(None)
    assert (page.reset, page.changes, page.seq) == (True, [], 1)
    assert page.cursor == anna.refresh().cursor


def test_a_restored_database_resets_its_clients(server: Running, anna: Client) -> None:
    with server.app.service.db.write() as conn:
        mine = schema.drives.c.id == anna.me.drive
        conn.execute(update(schema.drives).where(mine).values(epoch="another"))
    page = anna.changes(anna.me.cursor)
    assert page.reset
    assert not anna.changes(page.cursor).reset


def test_a_cursor_of_the_future_or_of_another_drive_resets(
    server: Running, anna: Client, ben: Client
) -> None:
    cursors = server.app.service.cursors
    ahead = cursors.read(anna.me.cursor)._replace(seq=99)
    assert anna.changes(cursors.write(ahead)).reset
    assert anna.changes(ben.me.cursor).reset


@pytest.mark.parametrize("spoil", ["", "x", "%", "AAAA", "é"])
def test_a_forged_cursor_is_a_bad_request(anna: Client, spoil: str) -> None:
    cursor = anna.me.cursor[:-4] + spoil
    for path in ("/v1/changes", "/v1/changes/wait", f"/v1/files/{anna.me.root}/changes"):
        with pytest.raises(Failed) as failed:
            anna.request("GET", path, messages.ChangesPage, cursor=cursor)
        assert isinstance(failed.value.problem, errors.BadRequest)


def test_cursors_are_of_one_spelling_and_one_server() -> None:
    position = Position("e", new_id(), 7)
    ours, others = Cursors(b"ours"), Cursors(b"others")
    assert ours.read(ours.write(position)) == position
    assert ours.write(position) == ours.write(position)
    with pytest.raises(Refused):
        others.read(ours.write(position))


def test_accounts_hear_nothing_of_each_other(anna: Client, ben: Client) -> None:
    anna.make("secret")
    assert ben.changes(ben.me.cursor).changes == []
    with pytest.raises(Failed) as failed:
        ben.file(anna.me.root)
    assert failed.value.status == 404
    assert isinstance(ben.refused(ben.create("x", parent=anna.me.root)), errors.NotFound)


def test_the_changes_of_one_file(anna: Client) -> None:
    file, other = anna.make("a"), anna.make("b")
    anna.do(messages.SetAttr(file=file, mode=0o600))
    page = anna.request("GET", f"/v1/files/{file}/changes", messages.ChangesPage)
    assert [change.seq for change in page.changes] == [1, 3]
    assert {f.id for change in page.changes for f in change.files} == {file}
    later = anna.request(
        "GET", f"/v1/files/{other}/changes", messages.ChangesPage, cursor=page.cursor
    )
    assert later.changes == []


# --- long poll ----------------------------------------------------------------------------------


def test_waiting_ends_with_the_change(server: Running, anna: Client) -> None:
    fanout = server.app.service.fanout
    before = fanout.listeners()
    phone = server.device(anna.me.account, "phone")
    with ThreadPoolExecutor(1) as pool:
        path, cursor = "/v1/changes/wait", anna.me.cursor
        waiting = pool.submit(
            anna.request, "GET", path, messages.ChangesPage, cursor=cursor, timeout=25
        )
        until(lambda: fanout.listeners() > before)
        change = phone.do(phone.create("a")).change
        page = waiting.result(20)
    assert page.changes == [change]


def test_waiting_does_not_wait_when_there_is_something(anna: Client) -> None:
    anna.make("a")
    path = "/v1/changes/wait"
    page = anna.request("GET", path, messages.ChangesPage, cursor=anna.me.cursor, timeout=25)
    assert len(page.changes) == 1
    empty = anna.request("GET", path, messages.ChangesPage, cursor=page.cursor, timeout=0)
    assert empty.changes == []


def test_a_server_that_stops_answers_who_waits(start: Start) -> None:
    server = start()
    anna = server.account("anna")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            anna.request,
            "GET",
            "/v1/changes/wait",
            messages.ChangesPage,
            cursor=anna.me.cursor,
            timeout=60,
        )
        until(lambda: server.app.service.fanout.listeners() > 0)
        server.server.stop()
        assert waiting.result(20).changes == []
    server.thread.join(60)
    assert not server.thread.is_alive()


# --- push ---------------------------------------------------------------------------------------


@contextmanager
def live(server: Running, token: str, cursor: str = "") -> Iterator[ClientConnection]:
    url = f"{server.url.replace('http', 'ws')}/v1/changes/live?cursor={cursor}"
    with connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
        yield socket


def hint(socket: ClientConnection) -> messages.Hint:
    frame = socket.recv(timeout=60)
    assert isinstance(frame, bytes)
    return msgspec.msgpack.decode(frame, type=messages.Hint)


def test_hints_chain_and_carry_small_changes(server: Running, anna: Client) -> None:
    with live(server, anna.token, anna.me.cursor) as socket:
        first = hint(socket)
        assert (first.since, first.cursor, first.seq) == (anna.me.cursor, anna.me.cursor, 0)
        cursor = first.cursor
        for name in "ab":
            change = anna.do(anna.create(name)).change
            told = hint(socket)
            assert (told.since, told.changes, told.seq) == (cursor, [change], change.seq)
            cursor = told.cursor
        assert cursor == anna.refresh().cursor


def test_a_large_change_is_to_be_pulled(server: Running, anna: Client) -> None:
    with live(server, anna.token) as socket:
        cursor = hint(socket).cursor
        anna.make("a", xattrs={"user.a": bytes(65536)})
        told = hint(socket)
        assert told.changes == []
        assert told.since != cursor  # who is at `cursor` must not believe that nothing happened
        assert told.cursor == anna.refresh().cursor
        change = anna.do(anna.create("b")).change
        after = hint(socket)
        assert (after.since, after.changes) == (told.cursor, [change])


def test_many_changes_at_once_lose_none(server: Running, anna: Client) -> None:
    with live(server, anna.token) as socket:
        cursor, seen = hint(socket).cursor, 0
        anna.batch(*[anna.create(str(n)) for n in range(300)])
        while seen < 300:
            told = hint(socket)
            if told.since == cursor:
                assert [c.seq for c in told.changes] == list(range(seen + 1, told.seq + 1))
            cursor, seen = told.cursor, told.seq
        assert cursor == anna.refresh().cursor


def test_a_socket_hears_only_its_own_drive(server: Running, anna: Client, ben: Client) -> None:
    with live(server, anna.token) as socket:
        hint(socket)
        ben.make("b")
        change = anna.do(anna.create("a")).change
        assert hint(socket).changes == [change]


@pytest.mark.parametrize(("token", "cursor"), [("", ""), ("wrong", ""), (None, "forged")])
def test_a_refused_handshake_says_why(
    server: Running, anna: Client, token: str | None, cursor: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:  # noqa: SIM117  # the raise is in the connect
        with live(server, anna.token if token is None else token, cursor):
            pass
    response = refused.value.response
    assert response.status_code == (400 if cursor else 401)
    assert response.body is not None
    problem = msgspec.msgpack.decode(response.body, type=errors.AnyProblem)
    assert isinstance(problem, errors.BadRequest if cursor else errors.Unauthorized)


def test_a_server_that_stops_closes_its_sockets(start: Start) -> None:
    server = start()
    anna = server.account("anna")
    with live(server, anna.token) as socket:
        hint(socket)
        server.server.stop()
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)
    server.thread.join(60)
    assert not server.thread.is_alive()


def test_a_revoked_device_hears_nothing_more(server: Running, anna: Client) -> None:
    phone = server.device(anna.me.account, "phone")
    with live(server, phone.token) as socket:
        hint(socket)
        with server.app.service.db.write() as conn:
            mine = schema.devices.c.id == phone.me.device_id
            conn.execute(update(schema.devices).where(mine).values(revoked_ns=1))
        anna.make("secret")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401


def test_a_closed_socket_is_forgotten(server: Running, anna: Client) -> None:
    fanout = server.app.service.fanout
    before = fanout.listeners()
    with live(server, anna.token) as socket:
        hint(socket)
        assert fanout.listeners() == before + 1
    until(lambda: fanout.listeners() == before)


# --- news ---------------------------------------------------------------------------------------


def change(seq: int) -> messages.Change:
    return messages.Change(drive="d", seq=seq, at_ns=0, device="x", files=[], entries=[])


def news(*seqs: int) -> News:
    made = tuple(change(seq) for seq in seqs)
    return News("drive/d", "e", "d", seqs[0] - 1, seqs[-1], made)


def test_merged_news_keep_all_changes_or_none() -> None:
    both = news(1, 2).then(news(3))
    assert (both.since, both.seq, [c.seq for c in both.changes]) == (0, 3, [1, 2, 3])
    gap = news(1).then(news(5))
    assert (gap.since, gap.seq, gap.changes) == (0, 5, ())
    assert gap.then(news(6)).changes == ()
    many = news(*range(1, fanout.INLINE_CHANGES + 1)).then(news(fanout.INLINE_CHANGES + 1))
    assert (many.seq, many.changes) == (fanout.INLINE_CHANGES + 1, ())


def test_publishing_without_a_loop_is_no_error() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(LocalFanout().publish, news(1)).result() is None
