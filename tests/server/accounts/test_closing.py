"""Accounts that are locked and unlocked, and accounts that are removed, beside a running server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from remote.protocol import errors, messages
from remote.protocol.account_messages import (
    Invite,
    MakeToken,
    SharedReply,
    ShareRequest,
    SharesReply,
    TokenReply,
)
from server.accounts import accounts, closing, devices
from server.accounts.accounts import AccountExists, AccountUnknown
from server.app import ENDPOINTS
from server.drive import purge
from server.maintenance import account_removal, admin, fsck, gc, lock
from server.maintenance.gc_chunks import GRACE_NS, Options
from server.metadata import schema
from server.permissions import audit
from tests.server.harness import Client, Failed, Running, make_chunk, new_id, noise, until
from tests.server.linking import Visitor, make_link

TOKEN_ENDPOINTS = [each for each in ENDPOINTS if each.summary is not None and not each.public]


def refusal(work: Callable[..., Any], *args: Any) -> Any:
    with pytest.raises(Failed) as failed:
        work(*args)
    return failed.value.problem


def share(owner: Client, file: str, to: Client, role: Any = "editor") -> None:
    wanted = ShareRequest([Invite(to.me.account, role)])
    owner.request("POST", f"/v1/files/{file}/share", SharesReply, wanted)


def shared(client: Client) -> list[str | None]:
    found = client.request("GET", "/v1/shared", SharedReply).shared
    return [root.name for root in found]


def told(server: Running, client: Client) -> list[str]:
    with server.app.service.db.read() as conn:
        return [item.action for item in audit.read(conn, account=client.me.account, limit=10_000)]


# --- locking ------------------------------------------------------------------------------------


def test_a_locked_account_is_refused_everywhere_and_comes_back(
    server: Running, anna: Client
) -> None:
    script = MakeToken(name="script", scope="read")
    weak = anna.request("POST", "/v1/devices", TokenReply, script).token
    closing.lock(server.data, anna.me.account)
    for token in (anna.token, weak):
        with httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {token}"}
        ) as client:
            for item in TOKEN_ENDPOINTS:
                path = re.sub("{.*?}", "0" * 32, item.path)
                got = client.request(item.method, path)
                assert (got.status_code, got.json()["type"]) == (401, "unauthorized"), path
    assert "locked" in refusal(anna.refresh).message
    closing.lock(server.data, anna.me.account)
    closing.unlock(server.data, anna.me.account)
    anna.refresh()
    assert [item for item in told(server, anna) if item.startswith("account_")] == [
        "account_lock",
        "account_lock",
        "account_unlock",
    ]


def test_the_password_of_a_locked_account_looks_wrong(server: Running) -> None:
    """Also the right one: who guesses it while the account is locked does not learn that."""
    accounts.add_account(server.data, name := f"locked-{new_id()[:12]}", "a secret")
    closing.lock(server.data, name)
    locked = refusal(server.client().log_in, name, "a secret")
    assert locked == errors.Unauthorized(message="wrong account name or password")
    closing.unlock(server.data, name)
    assert server.client().log_in(name, "a secret").me.account == name


def test_sockets_and_polls_of_a_locked_account_end(server: Running, anna: Client) -> None:
    cursor, before = anna.me.cursor, server.app.service.fanout.listeners()
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    with (
        ThreadPoolExecutor(1) as pool,
        connect(url, additional_headers={"Authorization": f"Bearer {anna.token}"}) as socket,
    ):
        socket.recv(timeout=60)
        poll = {"cursor": cursor, "timeout": 30}
        waiting = pool.submit(anna.request, "GET", "/v1/changes/wait", messages.ChangesPage, **poll)
        until(lambda: server.app.service.fanout.listeners() >= before + 2)
        closing.lock(server.data, anna.me.account)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
        assert isinstance(refusal(waiting.result), errors.Unauthorized)


def test_a_socket_ends_whose_device_the_administrator_revoked(
    server: Running, anna: Client
) -> None:
    phone = server.device(anna.me.account, "phone")
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    with connect(url, additional_headers={"Authorization": f"Bearer {phone.token}"}) as socket:
        socket.recv(timeout=60)
        devices.revoke_device(server.data, phone.me.device_id)
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)


def test_links_of_a_locked_account_do_not_open(server: Running, anna: Client) -> None:
    file, _ = anna.store("a", make_chunk(noise(2000, "a")))
    visitor = Visitor.at(server.url, make_link(anna, file))
    try:
        leads = visitor.http.get(f"{visitor.url}/{file}/download")
        content = leads.headers["location"]
        assert (visitor.get().status_code, visitor.http.get(content).status_code) == (200, 200)
        closing.lock(server.data, anna.me.account)
        assert visitor.get().status_code == 404
        assert visitor.http.get(content).status_code == 404
        closing.unlock(server.data, anna.me.account)
        assert visitor.get().status_code == 200
    finally:
        visitor.http.close()


def test_others_go_on_with_what_a_locked_account_shares(
    server: Running, anna: Client, ben: Client
) -> None:
    folder, mine = anna.mkdir("folder"), ben.mkdir("mine")
    share(anna, folder, ben)
    share(ben, mine, anna)
    closing.lock(server.data, anna.me.account)
    ben.make("goes on", folder)
    assert shared(ben) == ["folder"]
    closing.unlock(server.data, anna.me.account)
    assert shared(anna) == ["mine"]
    assert "goes on" in anna.children(folder)


# --- removing -----------------------------------------------------------------------------------


def counted(server: Running, client: Client) -> dict[str, int]:
    """Rows that are left of an account, by table."""
    found = {}
    drive = client.me.drive
    where: dict[str, Any] = {
        "files": schema.files.c.drive == drive,
        "versions": schema.versions.c.drive == drive,
        "changes": schema.changes.c.drive == drive,
        "links": schema.links.c.drive == drive,
        "idempotency": schema.idempotency.c.device == client.me.device_id,
        "chunks": schema.chunks.c.drive == drive,
        "uploads": schema.uploads.c.drive == drive,
    }
    with server.app.service.db.read() as conn:
        for table, which in where.items():
            query = select(func.count()).select_from(schema.metadata.tables[table]).where(which)
            found[table] = conn.execute(query).scalar_one()
    return found


def furnish(server: Running, anna: Client, ben: Client) -> tuple[str, str]:
    """A drive with everything that one can have; returns (anna's, ben's) shared directory."""
    deep = anna.me.root
    for level in range(20):
        deep = anna.mkdir(f"level {level}", deep)
    names = [anna.create(f"f{n}", deep) for n in range(30)]
    anna.batch(*names)
    anna.do(messages.Link(file=names[0].file, parent=anna.me.root, name="twice"))
    anna.do(messages.SetXattr(file=names[1].file, name="user.x", value=b"x"))
    anna.do(messages.Unlink(file=names[2].file, parent=deep, name="f2"))
    file, _ = anna.store("stored", make_chunk(noise(1000, "stored")))
    anna.start(new_id(), new_id(), make_chunk(noise(1000, "promised")))
    make_link(anna, file)
    mine, bens = anna.mkdir("mine"), ben.mkdir("bens")
    share(anna, mine, ben)
    share(ben, bens, anna)
    ben.make("of ben", mine)
    anna.make("of anna", bens)
    return mine, bens


@pytest.mark.slow
def test_a_removed_account_leaves_nothing_but_its_name(
    server: Running, anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_removal, "BATCH", 7)
    mine, bens = furnish(server, anna, ben)
    name = anna.me.account
    before = admin.leaving(server.data, name)
    assert (before["links"], before["shared"], before["received"]) == (1, 1, 1)
    done = admin.remove_account(server.data, name)
    assert done == before | {"emptied": True}
    assert isinstance(refusal(anna.refresh), errors.Unauthorized)
    assert isinstance(refusal(ben.file, mine), errors.NotFound)
    assert shared(ben) == []
    assert set(ben.children(bens)) == {"of anna"}  # it is ben's
    left = counted(server, anna)
    rest = {"files": 1, "changes": 0, "links": 0, "idempotency": 0}
    assert {item: left[item] for item in rest} == rest
    service, later = server.app.service, time.time_ns()
    for _ in range(2):
        later += GRACE_NS + 1
        gc.run(service.db, service.blobs, Options(), clock=lambda now=later: now)  # type: ignore[misc]
    left = counted(server, anna)
    assert (left["chunks"], left["uploads"], left["versions"]) == (0, 0, 0)
    report = fsck.run(service.db, service.blobs, read_data=True)
    assert [item for item in report.findings if item.account in (name, ben.me.account)] == []


def test_grantees_are_told_that_a_share_ended_with_its_owner(
    server: Running, anna: Client, ben: Client
) -> None:
    share(anna, anna.mkdir("folder"), ben)
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    with connect(url, additional_headers={"Authorization": f"Bearer {ben.token}"}) as socket:
        socket.recv(timeout=60)
        cursor = ben.changes(None).cursor
        closing.remove(server.data, anna.me.account)
        assert socket.recv(timeout=60)
        assert ben.changes(cursor).shared == []


def test_the_name_of_a_removed_account_is_given_to_nobody(
    server: Running, anna: Client, ben: Client
) -> None:
    name, file = anna.me.account, ben.make("file")
    closing.remove(server.data, name)
    with pytest.raises(AccountExists, match="not given again"):
        accounts.add_account(server.data, name.upper(), "a secret")
    assert isinstance(refusal(share, ben, file, anna), errors.NotFound)
    for work in (closing.lock, closing.unlock):
        with pytest.raises(AccountUnknown):
            work(server.data, name)
    assert name not in [item.name for item in accounts.list_accounts(server.data)]
    rows = list(admin.read_audit(server.data, None, name))
    assert rows[-1]["action"] == "account_remove"
    assert rows[-1]["detail"]["name"] == name


@pytest.mark.slow
def test_a_removal_that_was_interrupted_is_finished_by_the_next_collection(
    server: Running, anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any of its transactions, and the data is right in between."""
    monkeypatch.setattr(account_removal, "BATCH", 3)
    furnish(server, anna, ben)
    service = server.app.service
    with lock.keeping(server.data):
        assert not admin.remove_account(server.data, anna.me.account)["emptied"]
    before, left = 1000, left_of(server, anna)
    while 1 < left < before:
        steps = account_removal.steps(service.db, time.time_ns)
        for _ in range(30):
            next(steps, None)
        steps.close()
        report = fsck.run(service.db, service.blobs, read_data=False)
        assert [item for item in report.findings if item.account == anna.me.account] == []
        before, left = left, left_of(server, anna)
    assert left == 1, "it does not come forward"
    gc.run(service.db, service.blobs, Options())
    assert counted(server, anna)["changes"] == counted(server, anna)["idempotency"] == 0
    again = admin.remove_account(server.data, anna.me.account)
    assert (again["files"], again["emptied"]) == (0, True)


@pytest.mark.slow
def test_no_transaction_of_a_removal_takes_much(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write meanwhile: what a transaction takes does not grow with the drive."""
    for _ in account_removal.steps(server.app.service.db, time.time_ns):
        pass  # what other tests left
    monkeypatch.setattr(account_removal, "BATCH", 10)
    folder = anna.mkdir("folder")
    anna.batch(*(anna.create(f"f{n}", folder) for n in range(100)))
    closing.remove(server.data, anna.me.account)
    service, taken = server.app.service, []
    drop = purge.drop_files

    def dropped(conn: Any, by: Any, ids: Any, now_ns: int) -> purge.Dropped:
        taken.append(len(ids))
        return drop(conn, by, ids, now_ns)

    monkeypatch.setattr(purge, "drop_files", dropped)
    names = [100 - counted_names(server, folder)]
    for _ in account_removal.steps(service.db, time.time_ns):
        names.append(100 - counted_names(server, folder))
    assert max(later - now for now, later in pairwise(names)) <= 11
    assert max(taken) <= 10
    assert sum(taken) == 101


def left_of(server: Running, client: Client) -> int:
    """Files of a drive, and names in it."""
    mine = schema.files.c.drive == client.me.drive
    there = (
        select(func.count())
        .select_from(schema.entries)
        .join(schema.files, schema.entries.c.file == schema.files.c.id)
    )
    with server.app.service.db.read() as conn:
        names: int = conn.execute(there.where(mine)).scalar_one()
        files: int = conn.execute(select(func.count()).where(mine)).scalar_one()
    return names + files


def counted_names(server: Running, folder: str) -> int:
    query = select(func.count()).where(schema.entries.c.parent == folder)
    with server.app.service.db.read() as conn:
        return int(conn.execute(query).scalar_one())
