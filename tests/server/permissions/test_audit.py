"""The audit log: one row for what was done, none for what was not, and none ever changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import IntegrityError

from remote.protocol import errors, messages
from remote.protocol.account_messages import MakeToken, TokenReply
from server.accounts import accounts, devices
from server.metadata import schema
from server.metadata.db import Database
from server.permissions import audit
from server.permissions.audit import Entry
from tests.server.conftest import Start
from tests.server.harness import (
    EMPTY,
    Client,
    Failed,
    Running,
    make_chunk,
    manifest_of,
    new_id,
)


def read(server: Running, client: Client | None = None, **wanted: Any) -> list[Entry]:
    if client is not None:
        wanted["account"] = client.me.account
    with server.app.service.db.read() as conn:
        return audit.read(conn, **wanted)


def actions(server: Running, client: Client) -> list[str]:
    return [item.action for item in read(server, client)]


# --- operations ---------------------------------------------------------------------------------


def test_an_operation_leaves_exactly_one_row(server: Running, anna: Client) -> None:
    begun = time.time_ns()
    op = anna.create("letter")
    anna.do(op)
    (row,) = read(server, anna)
    assert (row.account, row.device) == (anna.me.account, "laptop")
    assert (row.action, row.subject) == ("create", op.file)
    assert begun <= row.at_ns <= time.time_ns()
    assert op.content is not None
    told = {"parent": anna.me.root, "name": "letter", "kind": "file"}
    assert row.detail == told | {"version": op.content.version}


def test_a_repeated_batch_leaves_no_second_row(server: Running, anna: Client) -> None:
    ops, keys = [anna.create(name) for name in "abc"], [new_id() for _ in range(3)]
    anna.batch(*ops, keys=keys)
    anna.batch(*ops, keys=keys)
    anna.batch(ops[0], ops[0], keys=[keys[0]] * 2)
    assert [item.subject for item in read(server, anna)] == [op.file for op in ops]


def test_a_refused_operation_leaves_no_row(server: Running, anna: Client, ben: Client) -> None:
    late = make_chunk(b"not there")
    missing = messages.Content(version=new_id(), manifest=manifest_of(late))
    answers = anna.batch(anna.create("a"), anna.create("a"), anna.create("b", content=missing))
    assert [type(item) for item in answers] == [
        messages.Applied,
        errors.Exists,
        errors.ChunksMissing,
    ]
    ben.refused(ben.create("x", anna.me.root))
    assert actions(server, anna) == ["create"]
    assert actions(server, ben) == []


@pytest.mark.slow
def test_a_transaction_that_fails_leaves_no_row(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("power loss")

    with monkeypatch.context() as patched:
        patched.setattr("server.drive.commits._Batch._news", crash)  # all rows are written by then
        with pytest.raises(Failed):
            anna.make("a")
    assert actions(server, anna) == []


def test_every_kind_of_operation_is_told(server: Running, anna: Client) -> None:
    root = anna.me.root
    folder, a, b = anna.mkdir("d"), anna.make("a"), anna.make("b")
    version = new_id()
    done: list[messages.Op] = [
        messages.Write(
            file=a, content=messages.Content(version=version, manifest=EMPTY), mtime_ns=1
        ),
        messages.Link(file=a, parent=folder, name="a"),
        messages.Exchange(
            file=a, parent=root, name="a", other=b, other_parent=root, other_name="b"
        ),
        messages.Rename(file=a, parent=root, name="b", new_parent=folder, new_name="c"),
        messages.Replace(file=b, parent=root, name="a", new_parent=folder, new_name="c", target=a),
        messages.SetAttr(file=a, mode=0o600),
        messages.SetXattr(file=a, name="user.secret", value=b"not told"),
        messages.Unlink(file=a, parent=folder, name="c"),
    ]
    for op in done:
        anna.do(op)
    rows = {item.action: item for item in read(server, anna)[3:]}
    assert {tag: row.subject for tag, row in rows.items()} == {
        str(op.__struct_config__.tag): op.file for op in done
    }
    assert rows["write"].detail == {"version": version}
    assert rows["rename"].detail == {
        "parent": root,
        "name": "b",
        "new_parent": folder,
        "new_name": "c",
    }
    assert rows["replace"].detail["target"] == a
    assert rows["setattr"].detail == {"mode": 0o600}
    assert rows["setxattr"].detail == {"name": "user.secret"}
    assert "not told" not in str(rows)


def test_what_is_told_is_known_of_every_operation() -> None:
    assert set(audit._TOLD) == set(messages.Op.__args__)
    for kind, fields in audit._TOLD.items():
        assert set(fields) <= set(kind.__struct_fields__)


def test_who_did_it_is_the_editor_and_not_the_owner(
    server: Running, anna: Client, ben: Client
) -> None:
    folder = anna.mkdir("shared")
    with server.app.service.db.write() as conn:
        found = [accounts.find_account(conn, item.me.account) for item in (anna, ben)]
        owner, editor = [item[0] for item in found if item is not None]
        row = {"file": folder, "account": editor, "role": "editor", "granted_by": owner}
        conn.execute(insert(schema.grants), row | {"at_ns": 1})
    ben.make("by ben", folder)
    (row,) = read(server, ben)
    assert (row.action, row.account) == ("create", ben.me.account)
    assert actions(server, anna) == ["create"]


# --- tokens, devices, accounts, logins ----------------------------------------------------------


def test_tokens_and_devices_are_told_without_their_secrets(server: Running, anna: Client) -> None:
    folder = anna.mkdir("folder")
    wanted = MakeToken(name="cron", scope="read", folder=folder)
    made = anna.request("POST", "/v1/devices", TokenReply, wanted)
    cron = Client(anna.http, made.token)
    fresh = cron.request("POST", "/v1/devices/rotate", TokenReply)
    anna.request("DELETE", f"/v1/devices/{made.device_id}", type(None))
    rows = read(server, anna)[1:]
    assert [(item.action, item.device, item.subject) for item in rows] == [
        ("token_make", "laptop", made.device_id),
        ("token_rotate", "cron", made.device_id),
        ("device_revoke", "laptop", made.device_id),
    ]
    assert rows[0].detail == {
        "name": "cron",
        "scope": "read",
        "folder": folder,
        "expires_ns": None,
    }
    for secret in (made.token, fresh.token):
        assert secret not in str(rows)


def test_refused_requests_leave_no_row(server: Running, anna: Client, ben: Client) -> None:
    for method, path, message in (
        ("POST", "/v1/devices", MakeToken(name="x", folder=new_id())),
        ("DELETE", f"/v1/devices/{ben.me.device_id}", None),
    ):
        with pytest.raises(Failed):
            anna.request(method, path, type(None), message)
    assert actions(server, anna) == []


def test_what_the_administrator_does_is_told(tmp_path: Path) -> None:
    accounts.add_account(tmp_path, "anna", "pass word")
    accounts.set_account(tmp_path, "anna", quota_bytes=5, keep_days=None)
    accounts.set_account(tmp_path, "anna")
    devices.issue_token(tmp_path, "anna", "here", scope="read")
    (device,) = devices.list_devices(tmp_path)
    devices.revoke_device(tmp_path, device.id)
    with accounts.opened(tmp_path) as db, db.read() as conn:
        rows = audit.read(conn)
    assert [item.action for item in rows] == [
        "account_add",
        "account_set",
        "token_make",
        "device_revoke",
    ]
    assert {(item.account, item.device) for item in rows} == {(None, None)}
    assert rows[0].detail == {"name": "anna"}
    assert rows[1].detail == {"quota_bytes": 5, "keep_days": None}
    assert rows[2].detail["scope"] == "read"
    assert (rows[2].subject, rows[3].subject) == (device.id, device.id)
    assert "pass word" not in str(rows)


def test_logins_are_told_and_failed_ones_once_a_minute(start: Start) -> None:
    server = start(login_burst=100)
    with server.app.service.db.write() as conn:
        accounts.insert_account(conn, "anna", accounts.hash_password("right"), time.time_ns())
    anna = server.client("anna", password="right", device="phone")
    for name in ("anna", "ANNA", "Anna", "nobody"):
        with pytest.raises(Failed):
            server.client().log_in(name, "wr0ng")
    rows = read(server)
    assert [(item.action, item.account, item.device) for item in rows] == [
        ("login", "anna", "phone"),
        ("login_failed", None, None),
        ("login_failed", None, None),
    ]
    assert rows[0].subject == anna.me.device_id
    assert [item.detail for item in rows] == [
        {"name": "phone", "address": "127.0.0.1"},
        {"name": "anna", "address": "127.0.0.1"},
        {"name": "nobody", "address": "127.0.0.1"},
    ]
    assert "wr0ng" not in str(rows)
    told = [item.action for item in read(server, account="anna")]
    assert told == ["login", "login_failed"]


def test_guessing_names_does_not_fill_the_log(start: Start) -> None:
    server = start()
    service = server.app.service
    for _ in range(60):
        service.login_failures_from.take("127.0.0.1", time.monotonic() + 3600)
    with pytest.raises(Failed):
        server.client().log_in("one more", "wrong")
    assert read(server) == []


# --- reading ------------------------------------------------------------------------------------


def test_the_log_is_read_in_pages_from_a_moment_on(server: Running, anna: Client) -> None:
    for name in "abcd":
        anna.make(name)
    rows = read(server, anna)
    assert [item.detail["name"] for item in rows] == ["a", "b", "c", "d"]
    first = read(server, anna, limit=3)
    assert first == rows[:3]
    assert read(server, anna, after=first[-1].id) == rows[3:]
    assert read(server, anna, since_ns=rows[2].at_ns) == [
        item for item in rows if item.at_ns >= rows[2].at_ns
    ]
    assert read(server, anna, since_ns=rows[3].at_ns + 1) == []
    assert read(server, account="nobody at all") == []
    assert read(server, account=anna.me.account.upper()) == rows


# --- append-only --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["new", "migrated"])
def test_the_log_cannot_be_changed_or_deleted(tmp_path: Path, how: str) -> None:
    db = Database(tmp_path / "db.sqlite")
    if how == "migrated":
        _as_of_0001(db)
    db.migrate()
    with db.write() as conn:
        audit.note(conn, None, "gc", None, 1, chunks=2)
    for attempt in (update(schema.audit).values(detail="{}"), delete(schema.audit)):
        with pytest.raises(IntegrityError, match="append-only"), db.write() as conn:
            conn.execute(attempt)
    with db.read() as conn:
        (row,) = audit.read(conn)
    assert (row.at_ns, row.action, row.detail) == (1, "gc", {"chunks": 2})
    db.close()


def _as_of_0001(db: Database) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    migrations = Path(schema.__file__).parent / "migrations"
    config.set_main_option("script_location", str(migrations))
    with db.write() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0001")
