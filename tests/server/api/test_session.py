"""Accounts, logging in, tokens: who gets in and who does not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from remote.protocol import errors
from remote.protocol.account_messages import ChangePassword, PasswordReply
from server.accounts.accounts import (
    AccountExists,
    AccountUnknown,
    BadAccountName,
    BadPassword,
    add_account,
    hash_password,
    password_matches,
)
from server.accounts.devices import issue_token
from server.accounts.passwords import set_password
from server.app import ENDPOINTS
from server.http.rate_limits import TokenBuckets
from server.metadata import schema
from server.permissions import audit
from tests.server.conftest import Start
from tests.server.harness import Client, Failed, Running

NEED_TOKEN = [
    (each.method, re.sub("{.*?}", "0" * 32, each.path))
    for each in ENDPOINTS
    if each.summary is not None and not each.public
]


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic YTpi", "wrong"])
def test_nothing_without_a_good_token(server: Running, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        for method, path in NEED_TOKEN:
            got = client.request(method, path)
            assert (got.status_code, got.json()["type"]) == (401, "unauthorized"), path


def test_a_token_in_the_url_is_none(anna: Client) -> None:
    assert anna.http.get("/v1/me", params={"token": anna.token}).status_code == 401
    assert anna.http.get("/v1/me", params={"access_token": anna.token}).status_code == 401


def test_an_account_logs_in(start: Start, tmp_path: Path) -> None:
    add_account(tmp_path / "data", "Anna", "pass word")
    server = start()
    client = server.client("anna", password="pass word", device="phone")
    assert client.me.account == "Anna"
    assert client.me.seq == 0
    assert client.me.quota_bytes is None
    assert client.file(client.me.root).role == "owner"
    other = server.client("Anna", password="pass word")
    assert other.token != client.token
    assert other.me.device_id != client.me.device_id
    assert other.me.drive == client.me.drive


@pytest.mark.parametrize(("name", "password"), [("anna", "wrong"), ("nobody", "a secret")])
def test_wrong_logins_look_alike(start: Start, tmp_path: Path, name: str, password: str) -> None:
    add_account(tmp_path / "data", "anna", "a secret")
    server = start()
    with pytest.raises(Failed) as failed:
        server.client().log_in(name, password)
    assert failed.value.status == 401
    assert failed.value.problem == errors.Unauthorized(message="wrong account name or password")


def test_guessing_is_slowed_down(start: Start, tmp_path: Path) -> None:
    add_account(tmp_path / "data", "anna", "a secret")
    server = start(login_burst=2, login_seconds_per_try=3600)
    for _ in range(3):
        server.client("anna", password="a secret")  # good logins do not count
    for status in (401, 401, 429, 429):
        with pytest.raises(Failed) as failed:
            server.client().log_in("anna", "wrong")
        assert failed.value.status == status
    assert isinstance(failed.value.problem, errors.RateLimited)
    assert failed.value.problem.retry_after_seconds > 60
    with pytest.raises(Failed) as failed:
        server.client().log_in("ANNA", "a secret")
    assert failed.value.status == 429


def test_a_revoked_or_expired_token_is_refused_at_the_next_request(
    server: Running, anna: Client
) -> None:
    mine = schema.devices.c.id == anna.me.device_id
    for column in ("expires_ns", "revoked_ns"):
        with server.app.service.db.write() as conn:
            conn.execute(update(schema.devices).where(mine).values({column: time.time_ns()}))
        with pytest.raises(Failed) as failed:
            anna.refresh()
        assert failed.value.status == 401
        with server.app.service.db.write() as conn:
            conn.execute(update(schema.devices).where(mine).values({column: None}))
        anna.refresh()


def test_a_read_token_reads_and_changes_nothing(server: Running, anna: Client) -> None:
    file = anna.make("a")
    with server.app.service.db.write() as conn:
        mine = schema.devices.c.id == anna.me.device_id
        conn.execute(update(schema.devices).where(mine).values(scope="read"))
    assert anna.file(file).file.id == file
    assert isinstance(anna.refused(anna.create("b")), errors.Forbidden)
    assert isinstance(anna.start("0" * 32, "1" * 32), errors.Forbidden)


def test_tokens_and_passwords_are_not_in_the_database(start: Start, tmp_path: Path) -> None:
    add_account(tmp_path / "data", "anna", "correct horse")
    server = start()
    client = server.client("anna", password="correct horse")
    server.stop()
    stored = (tmp_path / "data" / "nearline.sqlite").read_bytes()
    assert client.token.encode() not in stored
    assert b"correct horse" not in stored


# --- the administrator's functions --------------------------------------------------------------


def test_adding_accounts_beside_a_running_server(start: Start, tmp_path: Path) -> None:
    server = start()
    add_account(server.data, "ben", "a secret")
    assert server.client("ben").me.account == "ben"
    with pytest.raises(AccountExists):
        add_account(server.data, "BEN", "a secret")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "@x", "a b", "é", "x" * 65, "a\n"])
def test_account_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadAccountName):
        add_account(tmp_path / "data", name, "a secret")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("password", ["", "x", "seven 7", "a" * 1025, "Anna-Maria", "ANNA-MARIA"])
def test_a_weak_password_is_refused(tmp_path: Path, password: str) -> None:
    with pytest.raises(BadPassword, match="password"):
        add_account(tmp_path / "data", "anna-maria", password)
    assert not (tmp_path / "data").exists()
    add_account(tmp_path / "data", "anna-maria", "eight-88")
    with pytest.raises(BadPassword, match="password"):
        set_password(tmp_path / "data", "anna-maria", password, revoke_devices=False)


def test_the_administrator_gives_another_password(server: Running, anna: Client) -> None:
    name = anna.me.account
    assert set_password(server.data, name, "another one", revoke_devices=False) == 0
    anna.refresh()
    server.client(name, password="another one")
    assert set_password(server.data, name, "a third one", revoke_devices=True) == 2
    assert isinstance(refusal(anna.refresh), errors.Unauthorized)
    with pytest.raises(AccountUnknown):
        set_password(server.data, "nobody", "another one", revoke_devices=False)


# --- changing one's own -------------------------------------------------------------------------


def refusal(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
    with pytest.raises(Failed) as failed:
        work(*args, **more)
    return failed.value.problem


def with_password(server: Running, client: Client, password: str) -> None:
    mine = schema.accounts.c.name == client.me.account
    with server.app.service.db.write() as conn:
        conn.execute(update(schema.accounts).where(mine).values(password=hash_password(password)))


def change(client: Client, old: str, new: str, **more: Any) -> int:
    wanted = ChangePassword(old=old, new=new, **more)
    return client.request("POST", "/v1/password", PasswordReply, wanted).devices_revoked


def test_a_person_changes_their_own_password(server: Running, anna: Client) -> None:
    with_password(server, anna, "old password")
    phone = server.device(anna.me.account, "phone")
    assert change(anna, "old password", "new password") == 0
    phone.refresh()
    wrong = server.client()
    assert isinstance(refusal(wrong.log_in, anna.me.account, "old password"), errors.Unauthorized)
    server.client(anna.me.account, password="new password", device="desk")
    assert change(anna, "new password", "newer password", revoke_devices=True) == 2
    assert isinstance(refusal(phone.refresh), errors.Unauthorized)
    anna.refresh()
    with server.app.service.db.read() as conn:
        rows = audit.read(conn, account=anna.me.account)
    told = [(item.device, item.detail) for item in rows if item.action == "account_passwd"]
    assert told == [("laptop", {"devices_revoked": 0}), ("laptop", {"devices_revoked": 2})]


def test_a_token_alone_changes_no_password(start: Start) -> None:
    """Tries count with logins, and are told as they are."""
    server = start(login_burst=3, login_seconds_per_try=3600)
    anna = server.account("anna")
    with_password(server, anna, "old password")
    weak = server.device(anna.me.account, "weak")
    with server.app.service.db.write() as conn:
        its = schema.devices.c.id == weak.me.device_id
        conn.execute(update(schema.devices).where(its).values(scope="read"))
    assert isinstance(refusal(change, weak, "old password", "new password"), errors.Forbidden)
    for new in ("short", anna.me.account):
        assert isinstance(refusal(change, anna, "old password", new), errors.BadRequest)
    assert change(anna, "old password", "old password") == 0  # a right one does not count
    for _ in range(2):
        refused = refusal(change, anna, "wrong", "new password")
        assert isinstance(refused, errors.Forbidden)
        assert "old password" in refused.message
    assert isinstance(
        refusal(server.client().log_in, anna.me.account, "wrong"), errors.Unauthorized
    )
    assert isinstance(refusal(change, anna, "old password", "new password"), errors.RateLimited)
    with server.app.service.db.read() as conn:
        actions = [item.action for item in audit.read(conn, account=anna.me.account)]
    assert actions == ["account_passwd", "login_failed"]


def test_a_token_is_issued_without_a_password(server: Running, anna: Client) -> None:
    token = issue_token(server.data, anna.me.account, "here")
    me = Client(anna.http, token).refresh()
    assert me.account == anna.me.account
    with server.app.service.db.read() as conn:
        query = select(schema.devices.c.name).where(schema.devices.c.id == me.device_id)
        assert conn.execute(query).scalar() == "here"
    with pytest.raises(AccountUnknown):
        issue_token(server.data, "nobody", "here")


def test_without_an_account_no_password_is_right() -> None:
    assert not password_matches(None, "anything")
    assert not password_matches("not a hash", "anything")


# --- the limiter --------------------------------------------------------------------------------


def test_a_bucket_empties_and_refills() -> None:
    buckets = TokenBuckets(burst=2, seconds=10)
    assert [buckets.take("a", 0) for _ in range(3)] == [0, 0, 10]
    assert buckets.take("b", 0) == 0
    assert buckets.take("a", 4) == 6
    assert buckets.take("a", 10) == 0
    buckets.give_back("a", 10)
    assert buckets.take("a", 10) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100)), max_size=40))
def test_no_more_than_the_burst_and_the_rate(tries: list[tuple[str, float]]) -> None:
    buckets, now = TokenBuckets(burst=3, seconds=5), 0.0
    taken: dict[str, int] = {}
    for key, wait in tries:
        now += wait
        if buckets.take(key, now) == 0:
            taken[key] = taken.get(key, 0) + 1
        assert taken.get(key, 0) <= 3 + now / 5 + 1e-6


def test_the_limiter_remembers_only_so_many() -> None:
    buckets = TokenBuckets(burst=1, seconds=10, max_keys=2)
    for key in "abc":
        buckets.take(key, 0)
    assert buckets.take("c", 0) > 0
    assert buckets.take("a", 0) == 0


def test_health_needs_no_token(server: Running) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/schema"):
        assert httpx.get(server.url + path).status_code == 200


def test_wire_types_are_strict(anna: Client) -> None:
    wrong = [
        b"",
        b"{}",
        b"[]",
        b'{"account": "a", "password": "b", "device": "c", "extra": 1}',
        b'{"account": 1, "password": "b", "device": "c"}',
        b'{"account": "\xff", "password": "b", "device": "c"}',
        b"[" * 20_000,
    ]
    for body in wrong:
        headers = {"Content-Type": "application/json"}
        got = anna.http.post("/v1/login", content=body, headers=headers)
        assert (got.status_code, got.json()["type"]) == (400, "bad_request"), body[:50]
    got = anna.http.post("/v1/login", content=b"{}", headers={"Content-Type": "text/plain"})
    assert got.status_code == 400
