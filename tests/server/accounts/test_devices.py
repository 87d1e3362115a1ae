"""Devices and tokens: making weaker ones, rotating, revoking, and what is seen of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, select, update
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from remote.protocol import errors, messages
from remote.protocol.account_messages import DevicesReply, MakeToken, TokenReply
from server.accounts import accounts, devices, tokens
from server.accounts.tokens import OVERLAP_NS, SeenThisHour
from server.metadata import schema
from server.permissions import audit
from tests.server.harness import Client, Failed, Running, new_id, until

HOUR = 3600 * 10**9


def made(by: Client, **wanted: Any) -> Client:
    """A client with a new token that `by` makes."""
    wanted = {"name": "script"} | wanted
    reply = by.request("POST", "/v1/devices", TokenReply, MakeToken(**wanted))
    client = Client(by.http, reply.token)
    client.refresh()
    assert client.me.device_id == reply.device_id
    return client


def listed(client: Client) -> dict[str, Any]:
    return {item.name: item for item in client.request("GET", "/v1/devices", DevicesReply).devices}


def rotated(client: Client) -> Client:
    return Client(client.http, client.request("POST", "/v1/devices/rotate", TokenReply).token)


def revoke(client: Client, device: str) -> None:
    client.request("DELETE", f"/v1/devices/{device}", type(None))


def refusal(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
    with pytest.raises(Failed) as failed:
        work(*args, **more)
    return failed.value.problem


# --- listing and revoking -----------------------------------------------------------------------


def test_an_account_sees_its_devices_and_no_others(
    server: Running, anna: Client, ben: Client
) -> None:
    server.device(anna.me.account, "phone")
    folder = anna.mkdir("folder")
    expires_ns = time.time_ns() + HOUR
    weak = made(anna, name="cron", scope="read", folder=folder, expires_ns=expires_ns)
    found = listed(anna)
    assert list(found) == ["laptop", "phone", "cron"]
    assert [item.current for item in found.values()] == [True, False, False]
    assert found["cron"].id == weak.me.device_id
    assert (found["cron"].scope, found["cron"].folder) == ("read", folder)
    assert found["cron"].expires_ns == expires_ns
    assert set(listed(ben)) == {"laptop"}


def test_a_revoked_device_is_refused_and_listed_no_more(server: Running, anna: Client) -> None:
    phone = server.device(anna.me.account, "phone")
    revoke(anna, phone.me.device_id)
    assert isinstance(refusal(phone.refresh), errors.Unauthorized)
    assert set(listed(anna)) == {"laptop"}
    assert isinstance(refusal(revoke, anna, phone.me.device_id), errors.NotFound)


def test_nobody_revokes_the_device_of_another(anna: Client, ben: Client) -> None:
    assert isinstance(refusal(revoke, ben, anna.me.device_id), errors.NotFound)
    assert isinstance(refusal(revoke, ben, new_id()), errors.NotFound)
    anna.refresh()


@pytest.mark.parametrize("weak", [{"scope": "read"}, {"folder": "folder"}])
def test_a_weak_token_logs_itself_out_and_nobody_else(anna: Client, weak: dict[str, Any]) -> None:
    if "folder" in weak:
        weak = {"folder": anna.mkdir("folder")}
    client = made(anna, **weak)
    assert isinstance(refusal(revoke, client, anna.me.device_id), errors.Forbidden)
    assert isinstance(refusal(listed, client), errors.Forbidden)
    assert isinstance(refusal(made, client), errors.Forbidden)
    revoke(client, client.me.device_id)
    assert isinstance(refusal(client.refresh), errors.Unauthorized)
    anna.refresh()


def test_a_socket_is_closed_as_soon_as_its_token_is_revoked(server: Running, anna: Client) -> None:
    phone = server.device(anna.me.account, "phone")
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    with (
        connect(url, additional_headers={"Authorization": f"Bearer {phone.token}"}) as lost,
        connect(url, additional_headers={"Authorization": f"Bearer {anna.token}"}) as kept,
    ):
        lost.recv(timeout=60)
        kept.recv(timeout=60)
        revoke(anna, phone.me.device_id)
        with pytest.raises(ConnectionClosed) as closed:
            lost.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
        anna.make("goes on")
        assert kept.recv(timeout=60)


def test_a_long_poll_ends_when_its_token_is_revoked(server: Running, anna: Client) -> None:
    phone = server.device(anna.me.account, "phone")
    cursor = phone.me.cursor
    phone.changes(cursor)
    before = server.app.service.fanout.listeners()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            phone.request,
            "GET",
            "/v1/changes/wait",
            messages.ChangesPage,
            cursor=cursor,
            timeout=30,
        )
        until(lambda: server.app.service.fanout.listeners() > before)
        revoke(anna, phone.me.device_id)
        assert isinstance(refusal(waiting.result), errors.Unauthorized)


# --- making -------------------------------------------------------------------------------------


def test_a_token_for_a_folder_must_name_a_directory_of_ones_own(anna: Client, ben: Client) -> None:
    file, gone, others = anna.make("file"), anna.mkdir("gone"), ben.mkdir("others")
    anna.do(messages.Unlink(file=gone, parent=anna.me.root, name="gone"))
    assert isinstance(refusal(made, anna, folder=file), errors.NotADirectory)
    for folder in (gone, others, new_id()):
        assert isinstance(refusal(made, anna, folder=folder), errors.NotFound)


@pytest.mark.parametrize("expires_ns", [0, -1, 1 << 63])
def test_a_token_expires_in_the_future(anna: Client, expires_ns: int) -> None:
    assert isinstance(refusal(made, anna, expires_ns=expires_ns), errors.BadRequest)
    assert set(listed(anna)) == {"laptop"}


def test_an_expired_token_is_refused_and_listed_no_more(server: Running, anna: Client) -> None:
    short = made(anna, expires_ns=time.time_ns() + HOUR)
    with server.app.service.db.read() as conn:
        caller = tokens.authenticate(conn, short.token, time.time_ns())
        with pytest.raises(errors.Refused) as refused:
            tokens.authenticate(conn, short.token, time.time_ns() + HOUR)
        reply = devices.devices_of(conn, caller, time.time_ns() + HOUR)
    assert isinstance(refused.value.problem, errors.Unauthorized)
    assert [item.name for item in reply.devices] == ["laptop"]


def test_there_is_an_end_to_making_tokens(anna: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MAX_TOKENS", 2)
    first = made(anna)
    assert isinstance(refusal(made, anna), errors.Forbidden)
    revoke(anna, first.me.device_id)
    made(anna)


# --- rotating -----------------------------------------------------------------------------------


def test_a_rotated_token_is_good_and_the_one_before_for_ten_minutes(
    server: Running, anna: Client
) -> None:
    key, op = new_id(), anna.create("a")
    first = anna.batch(op, keys=[key])
    fresh = rotated(anna)
    assert fresh.token != anna.token
    now_ns = time.time_ns()
    with server.app.service.db.read() as conn:
        tokens.authenticate(conn, fresh.token, now_ns + 2 * OVERLAP_NS)
        with pytest.raises(errors.Refused):
            tokens.authenticate(conn, anna.token, now_ns + OVERLAP_NS)
    device = anna.refresh().device_id  # the new one may not have arrived
    assert fresh.refresh().device_id == device
    assert fresh.batch(op, keys=[key]) == first  # answers are the device's, not the token's


USES: dict[str, Callable[[Client], Any]] = {
    "reading": Client.refresh,
    "writing": lambda client: client.make("a"),
    "making a token": made,
    "what is refused in a reading": lambda client: refusal(client.file, new_id()),
    "what is refused in a writing": lambda client: refusal(revoke, client, new_id()),
}


@pytest.mark.parametrize("use", USES)
def test_the_token_before_ends_when_the_new_one_is_used(
    server: Running, anna: Client, use: str
) -> None:
    anna.refresh()
    fresh = rotated(anna)
    fresh.me = anna.me
    USES[use](fresh)
    assert isinstance(refusal(anna.refresh), errors.Unauthorized)
    fresh.refresh()


def reuses(server: Running, account: str) -> list[audit.Entry]:
    with server.app.service.db.read() as conn:
        found = audit.read(conn, account=account, limit=10_000)
    return [item for item in found if item.action == "token_copied"]


def test_who_copied_a_token_does_not_throw_its_owner_out(server: Running, anna: Client) -> None:
    """The owner rotates, because the old token may be known to others; one of them rotates it."""
    thief = Client(anna.http, anna.token)
    fresh = rotated(anna)
    fresh.refresh()
    for _ in range(3):
        assert isinstance(refusal(rotated, thief), errors.Unauthorized)
    fresh.refresh()
    [told] = reuses(server, anna.me.account)
    assert told.detail == {"device": anna.me.device_id, "address": "127.0.0.1"}


def test_a_token_that_only_aged_or_was_revoked_is_no_sign_of_a_thief(
    server: Running, anna: Client
) -> None:
    phone = server.device(anna.me.account, "phone")
    gone = rotated(phone)
    revoke(anna, phone.me.device_id)
    for item in (phone, gone, Client(anna.http, "nonsense")):
        assert isinstance(refusal(rotated, item), errors.Unauthorized)
    rotated(anna)
    mine = schema.devices.c.id == anna.me.device_id
    with server.app.service.db.write() as conn:
        conn.execute(update(schema.devices).where(mine).values(old_until_ns=time.time_ns()))
    assert isinstance(refusal(rotated, anna), errors.Unauthorized)
    assert reuses(server, anna.me.account) == []


def test_a_socket_of_the_token_before_hears_nothing_more(server: Running, anna: Client) -> None:
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    with connect(url, additional_headers={"Authorization": f"Bearer {anna.token}"}) as lost:
        lost.recv(timeout=60)
        fresh = rotated(anna)
        fresh.me = anna.me
        fresh.make("seen by the new one only")
        with pytest.raises(ConnectionClosed):
            lost.recv(timeout=60)


def test_a_rotation_whose_answer_was_lost_is_repeated(server: Running, anna: Client) -> None:
    lost, fresh = rotated(anna), rotated(anna)
    assert isinstance(refusal(lost.refresh), errors.Unauthorized)
    anna.refresh()
    fresh.refresh()
    assert isinstance(refusal(anna.refresh), errors.Unauthorized)
    third = rotated(fresh)
    fresh.refresh()
    third.refresh()
    assert isinstance(refusal(fresh.refresh), errors.Unauthorized)


def test_a_rotation_makes_no_token_stronger_or_longer(server: Running, anna: Client) -> None:
    expires_ns = time.time_ns() + HOUR
    weak = made(anna, scope="read", folder=anna.mkdir("folder"), expires_ns=expires_ns)
    before = listed(anna)["script"]
    fresh = rotated(weak)
    after = listed(anna)["script"]
    assert (after.id, after.scope, after.folder) == (before.id, "read", before.folder)
    assert after.expires_ns == expires_ns
    assert fresh.refresh().root == before.folder


def test_revoking_a_device_ends_both_its_tokens(server: Running, anna: Client) -> None:
    phone = server.device(anna.me.account, "phone")
    fresh = rotated(phone)
    revoke(anna, phone.me.device_id)
    assert isinstance(refusal(phone.refresh), errors.Unauthorized)
    assert isinstance(refusal(fresh.refresh), errors.Unauthorized)


# --- when a device was seen ---------------------------------------------------------------------


def test_a_device_is_seen_without_a_write_per_request(server: Running, anna: Client) -> None:
    service, begun = server.app.service, time.time_ns()
    phone = server.device(anna.me.account, "phone")
    until(lambda: listed(anna)["phone"].seen_ns is not None)
    assert begun <= listed(anna)["phone"].seen_ns <= time.time_ns()
    written: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        written.append(statement)

    engine = service.db._writer
    event.listen(engine, "before_cursor_execute", note)
    try:
        for _ in range(5):
            phone.refresh()
        service.writes.submit(lambda: None).result(10)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert not [item for item in written if "seen_ns" in item]


def test_a_device_that_only_writes_is_seen_too(server: Running, anna: Client) -> None:
    found = accounts.find_account
    with server.app.service.db.write() as conn:
        account = found(conn, anna.me.account)
        assert account is not None
        token, device = tokens.new_device(conn, account[0], "writer", time.time_ns())
    Client(anna.http, token).do(anna.create("a"))
    until(lambda: listed(anna)["writer"].seen_ns is not None)
    assert listed(anna)["writer"].id == device


def test_seen_once_an_hour() -> None:
    seen = SeenThisHour()
    told = [seen.is_first("a", at) for at in (0, 1, HOUR - 1, HOUR, HOUR + 1)]
    assert told == [True, False, False, True, False]
    assert seen.is_first("b", HOUR + 2)


# --- the administrator's functions --------------------------------------------------------------


def test_the_administrator_makes_a_token_for_a_folder(server: Running, anna: Client) -> None:
    inner = anna.mkdir("in ner", anna.mkdir("outer"))
    expires_ns = time.time_ns() + HOUR
    for folder in ("/outer/in ner", "outer/in ner", "outer/in ner/", inner):
        token = devices.issue_token(
            server.data, anna.me.account, folder, scope="read", folder=folder, expires_ns=expires_ns
        )
        assert Client(anna.http, token).refresh().root == inner
    row = next(item for item in devices.list_devices(server.data) if item.name == inner)
    assert (row.account, row.scope, row.folder) == (anna.me.account, "read", inner)
    assert row.expires_ns == expires_ns
    token = devices.issue_token(server.data, anna.me.account, "all", folder="/")
    assert Client(anna.http, token).refresh().root == anna.me.root


def test_the_administrator_is_told_what_is_wrong(
    server: Running, anna: Client, ben: Client
) -> None:
    file, others = anna.make("file"), ben.mkdir("others")
    for folder in ("/nothing", "/file", "/file/x", file, others, new_id()):
        with pytest.raises(devices.FolderUnknown, match="directory"):
            devices.issue_token(server.data, anna.me.account, "x", folder=folder)
    with pytest.raises(ValueError, match="future"):
        devices.issue_token(server.data, anna.me.account, "x", expires_ns=1)
    with pytest.raises(accounts.AccountUnknown):
        devices.list_devices(server.data, "nobody")
    with pytest.raises(devices.DeviceUnknown, match="token list"):
        devices.revoke_device(server.data, new_id())


def test_the_administrator_lists_and_revokes(server: Running, anna: Client, ben: Client) -> None:
    phone = server.device(anna.me.account, "phone")
    mine = devices.list_devices(server.data, anna.me.account.upper())
    assert [item.name for item in mine] == ["laptop", "phone"]
    assert {ben.me.account, anna.me.account} <= {
        item.account for item in devices.list_devices(server.data)
    }
    assert devices.revoke_device(server.data, phone.me.device_id) == "phone"
    assert isinstance(refusal(phone.refresh), errors.Unauthorized)
    assert [item.name for item in devices.list_devices(server.data, anna.me.account)] == ["laptop"]


def test_the_administrator_sets_limits(server: Running, anna: Client) -> None:
    name = anna.me.account
    done = accounts.set_account(server.data, name, quota_bytes=10**9, keep_days=7)
    assert (done.quota_bytes, done.keep_days, done.keep_versions) == (10**9, 7, None)
    assert anna.refresh().quota_bytes == 10**9
    done = accounts.set_account(server.data, name, quota_bytes=None, keep_versions=3)
    assert (done.quota_bytes, done.keep_days, done.keep_versions) == (None, 7, 3)
    found = {item.name: item for item in accounts.list_accounts(server.data)}
    assert found[name] == done
    assert found[name].devices == 1
    for wrong in ({"quota_bytes": -1}, {"keep_days": 1 << 40}, {"quota_bytes": 1 << 63}):
        with pytest.raises(ValueError, match="between"):
            accounts.set_account(server.data, name, **wrong)
    with pytest.raises(accounts.AccountUnknown):
        accounts.set_account(server.data, "nobody", keep_days=1)


def test_a_folder_whose_tokens_are_revoked_has_no_feed_of_its_own(
    server: Running, anna: Client
) -> None:
    folder = anna.mkdir("folder")
    weak = made(anna, folder=folder)

    def topics() -> set[str]:
        seq = anna.do(anna.create(new_id(), folder)).change.seq
        table = schema.changes
        query = select(table.c.topic).where(table.c.drive == anna.me.drive, table.c.seq == seq)
        with server.app.service.db.read() as conn:
            return set(conn.execute(query).scalars())

    assert f"grant/{anna.me.drive}/{folder}" in topics()
    revoke(anna, weak.me.device_id)
    assert topics() == {f"drive/{anna.me.drive}"}


def test_an_old_token_is_found_by_an_index(server: Running) -> None:
    with server.app.service.db.read() as conn:
        for query in (tokens._BY_TOKEN, tokens._BY_OLD_TOKEN):
            text = str(query.compile(conn))
            values = (b"", 0)[: text.count("?")]
            plan = conn.exec_driver_sql("EXPLAIN QUERY PLAN " + text, values).all()
            assert not [row.detail for row in plan if row.detail.startswith("SCAN")], plan


def test_a_revoked_row_stays_for_the_history(server: Running, anna: Client) -> None:
    """Versions and the audit log name devices: a row is marked, never deleted."""
    phone = server.device(anna.me.account, "phone")
    file = phone.make("by phone")
    revoke(anna, phone.me.device_id)
    page = anna.request("GET", f"/v1/files/{file}/versions", messages.VersionsPage)
    assert [item.device for item in page.versions] == ["phone"]


def test_expiry_and_revocation_are_checked_on_the_old_token_too(
    server: Running, anna: Client
) -> None:
    rotated(anna)
    mine = schema.devices.c.id == anna.me.device_id
    with server.app.service.db.write() as conn:
        conn.execute(update(schema.devices).where(mine).values(expires_ns=time.time_ns()))
    assert isinstance(refusal(anna.refresh), errors.Unauthorized)
