"""Where passwords are hashed: whose turn it is, and that nobody has all places."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update

from remote.protocol import errors
from remote.protocol.errors import RateLimited, Refused
from server.accounts import accounts
from server.accounts.accounts import add_account
from server.http.password_queue import PLACES, Allowed, Desk
from server.http.rate_limits import TokenBuckets
from server.http.round_robin import RoundRobin
from server.metadata import schema
from server.pools import Pool
from tests.server.conftest import CHEAP, DEAR, Start
from tests.server.harness import Client, Failed, Running, until
from tests.server.linking import Visitor, make_link

OLD = PasswordHasher(time_cost=1, memory_cost=16, parallelism=1)


# --- turns --------------------------------------------------------------------------------------


def test_queues_take_turns_and_so_do_holders() -> None:
    turns: RoundRobin[str] = RoundRobin(("login", "link"))
    for n in range(4):
        turns.join("login", "one", f"one {n}")
    turns.join("login", "two", "two")
    for n in range(2):
        turns.join("link", "anna", f"anna {n}")
    turns.leave("login", "one", "one 1")
    turns.leave("login", "one", "one 1")
    turns.leave("link", "ben", "nobody")
    seen = [turns.next() for _ in range(7)]
    assert seen == ["one 0", "anna 0", "two", "anna 1", "one 2", "one 3", None]


# --- the desk -----------------------------------------------------------------------------------


class Hashing:
    """Work that goes on until it is let go. `done` is what was begun, in order."""

    def __init__(self) -> None:
        self.go, self.done = threading.Event(), list[str]()

    def work(self, name: str) -> str:
        self.done.append(name)
        assert self.go.wait(60)
        return name


async def asked(desk: Desk, *runs: tuple[str, str, Callable[..., Any], str]) -> list[Any]:
    """Tasks that have come to the desk, in this order."""
    tasks = [asyncio.create_task(desk.run(*item)) for item in runs]
    await asyncio.sleep(0)
    return tasks


def test_who_fills_one_kind_of_places_is_in_nobodys_way() -> None:
    hashing, pool = Hashing(), Pool(2, "password")

    async def go() -> list[Any]:
        desk = Desk(pool)
        link = [("link", "anna", hashing.work, f"anna {n}") for n in range(60)]
        tasks = await asked(desk, *link, ("login", "1.2.3.4", hashing.work, "login"))
        tasks += await asked(desk, ("link", "ben", hashing.work, "ben"))
        hashing.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(go())
    pool.shutdown()
    refused = [item for item in results if isinstance(item, Refused)]
    assert len(refused) == 60 - PLACES["link"].each
    assert all(isinstance(item.problem, RateLimited) for item in refused)
    assert set(hashing.done) == {"anna 0", "anna 1", "login", "ben"}


def test_a_login_waits_for_one_of_each_other_address() -> None:
    hashing, pool = Hashing(), Pool(2, "password")

    async def go() -> None:
        desk = Desk(pool)
        busy = await asked(desk, *(("visit", str(n), hashing.work, "busy") for n in range(2)))
        many = [("login", "many", hashing.work, f"many {n}") for n in range(8)]
        tasks = await asked(desk, *many, ("login", "one", hashing.work, "one"))
        hashing.go.set()
        await asyncio.gather(*busy, *tasks)

    asyncio.run(go())
    pool.shutdown()
    assert "one" in hashing.done[:5]


def test_who_gives_up_leaves_its_place_and_its_turn() -> None:
    hashing, pool = Hashing(), Pool(2, "password")

    async def go() -> None:
        desk = Desk(pool, {"login": Allowed(3, 3)})
        tasks = await asked(desk, *(("login", "a", hashing.work, str(n)) for n in range(3)))
        tasks[2].cancel()
        await asyncio.gather(tasks[2], return_exceptions=True)
        tasks += await asked(desk, ("login", "a", hashing.work, "3"))
        hashing.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(4):
            await desk.run("login", "a", hashing.work, "later")

    asyncio.run(go())
    pool.shutdown()
    assert sorted(hashing.done) == ["0", "1", "3"] + ["later"] * 4


# --- in a server --------------------------------------------------------------------------------


@contextmanager
def many_links(server: Running, anna: Client, file: str, hashing: Hashing) -> Iterator[list[int]]:
    """Ten requests at once to make a link with a password; the answers are there at the end."""

    def make(_: int) -> int:
        with pytest.raises(Failed) as failed:
            make_link(Client(server.client().http, anna.token), file, password="a password")
        return failed.value.status

    answers: list[int] = []
    with ThreadPoolExecutor(10) as pool:
        asking = pool.map(make, range(10))
        until(lambda: len(hashing.done) == 2)
        yield answers
        answers += asking


def test_one_account_keeps_nobody_from_logging_in(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_account(tmp_path / "data", "ben", "bens password")
    server = start()
    anna, hashing = server.account("anna"), Hashing()
    file = anna.make("a")

    def stuck(password: str) -> str:
        hashing.work(password)
        raise Refused(errors.BadRequest())

    monkeypatch.setattr(accounts, "hash_password", stuck)
    with many_links(server, anna, file, hashing) as answers, ThreadPoolExecutor(4) as pool:
        logins = [
            pool.submit(server.client().log_in, "ben", "bens password", f"{n}") for n in range(4)
        ]
        until(lambda: server.app.service.desk._places["login"].taken == 4)
        hashing.go.set()
        assert all(item.result(20).token for item in logins)
    assert sorted(answers) == [400] * 2 + [429] * 8


def test_links_with_a_password_have_a_rate_before_anything_is_hashed(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, hashed = anna.make("a"), list[str]()
    monkeypatch.setattr(accounts, "hash_password", lambda given: hashed.append(given) or "hash")
    monkeypatch.setattr(server.app.service, "locked_links", TokenBuckets(2, 3600))
    for n in range(2):
        make_link(anna, file, password=f"password {n}")
    with pytest.raises(Failed) as failed:
        make_link(anna, file, password="another")
    assert isinstance(failed.value.problem, RateLimited)
    assert hashed == ["password 0", "password 1"]
    make_link(anna, file)  # without one


def test_passwords_do_not_queue_up_for_ever(start: Start) -> None:
    """Not those of logins, of links that are made, or of links that are opened."""
    server = start()
    anna = server.account("anna")
    file = anna.make("a")
    made = make_link(anna, file, password="right")
    nothing = Desk(server.app.service.passwords, {kind: Allowed(0, 0) for kind in PLACES})
    server.app.service.desk = nothing
    for work in (
        lambda: server.client().log_in("anna", "guess"),
        lambda: make_link(anna, file, password="another"),
    ):
        with pytest.raises(Failed) as failed:
            work()
        assert isinstance(failed.value.problem, RateLimited)
    visitor = Visitor.at(server.url, made)
    refused = visitor.post("right")
    visitor.http.close()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "Too many passwords at once" in refused.text
    assert "set-cookie" not in refused.headers


# --- parameters ---------------------------------------------------------------------------------


def test_what_a_password_costs() -> None:
    """docs/security.md says so."""
    assert (DEAR.time_cost, DEAR.memory_cost, DEAR.parallelism) == (3, 64 * 1024, 4)


def test_a_login_renews_a_hash_of_older_parameters(start: Start, tmp_path: Path) -> None:
    add_account(tmp_path / "data", "anna", "right password")
    server, table = start(), schema.accounts

    def stored() -> str:
        with server.app.service.db.read() as conn:
            return str(conn.execute(select(table.c.password)).scalar_one())

    old = OLD.hash("right password")
    with server.app.service.db.write() as conn:
        conn.execute(update(table).values(password=old))
    with pytest.raises(Failed):
        server.client().log_in("anna", "wrong password")
    assert stored() == old
    server.client("anna", password="right password")
    renewed = stored()
    assert CHEAP.verify(renewed, "right password")
    assert not CHEAP.check_needs_rehash(renewed)
    server.client("anna", password="right password")
    assert stored() == renewed


@pytest.mark.slow
def test_a_password_that_was_changed_meanwhile_is_not_renewed(start: Start, tmp_path: Path) -> None:
    add_account(tmp_path / "data", "anna", "right password")
    service = start().app.service
    with service.db.write() as conn:
        account = accounts.account_id(conn, "anna")
        accounts.renew_password(conn, account, "another hash", "new hash")
        assert conn.execute(select(schema.accounts.c.password)).scalar_one() != "new hash"


@pytest.mark.parametrize("meanwhile", ["another password", "right password"])
def test_a_login_does_not_outlast_a_change_of_the_password(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """The second case is another login that renews the hash at the same moment."""
    add_account(tmp_path / "data", "anna", "right password")
    server, check, hashed = start(), accounts.check_password, CHEAP.hash(meanwhile)

    def checked_then_changed(old: str | None, given: str) -> accounts.Checked:
        found = check(old, given)
        with server.app.service.db.write() as conn:
            conn.execute(update(schema.accounts).values(password=hashed))
        return found

    monkeypatch.setattr(accounts, "check_password", checked_then_changed)
    if meanwhile == "right password":
        server.client("anna", password="right password")
        return
    with pytest.raises(Failed) as failed:
        server.client().log_in("anna", "right password")
    assert isinstance(failed.value.problem, errors.Unauthorized)
    with server.app.service.db.read() as conn:
        assert conn.execute(select(schema.devices.c.id)).first() is None


def test_opening_a_link_renews_a_hash_of_older_parameters(server: Running, anna: Client) -> None:
    made, table = make_link(anna, anna.make("a"), password="right"), schema.links
    mine = table.c.id == made.link.id
    with server.app.service.db.write() as conn:
        conn.execute(update(table).where(mine).values(password=OLD.hash("right")))
    visitor = Visitor.at(server.url, made)
    assert visitor.post("right").status_code == 303
    assert visitor.get().status_code == 200  # its cookie is of the new hash
    visitor.http.close()
    with server.app.service.db.read() as conn:
        renewed = conn.execute(select(table.c.password).where(mine)).scalar_one()
    assert not CHEAP.check_needs_rehash(renewed)
