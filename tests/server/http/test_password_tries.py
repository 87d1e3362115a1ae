"""Trying passwords: what a try counts for. The clock is the test's, and waiting takes no time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from remote.protocol.errors import RateLimited, Refused
from server.accounts import accounts
from server.http.password_tries import HEARD, LONGEST_SECONDS, PasswordTries
from server.settings import Tunables
from tests.server.conftest import Start
from tests.server.harness import Failed, Running
from tests.server.linking import Visitor, make_link

ANNA = ("account", "anna")
HOUR = 3600.0


class Moment:
    """A clock that stands still, and a sleep that only says for how long it was."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0

    def tries(self, **tunables: Any) -> PasswordTries:
        return PasswordTries(Tunables(**tunables), lambda: self.now, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.slept = seconds

    def ask(
        self, tries: PasswordTries, address: str, what: object = ANNA, *, right: bool = False
    ) -> bool:
        """True if a try may be made; `slept` is how long it had to wait."""
        self.slept = 0.0
        try:
            tried = asyncio.run(tries.begin(what, address))
        except Refused as error:
            return not isinstance(error.problem, RateLimited)
        if right:
            tries.was_right(tried)
        return True


@pytest.fixture
def moment() -> Moment:
    return Moment()


def address(n: int) -> str:
    return f"10.0.{n // 250}.{n % 250}"


@pytest.mark.slow
def test_many_addresses_together_have_one_try_in_some_seconds(moment: Moment) -> None:
    tries, machines, heard = moment.tries(), 30, 0
    while moment.now < HOUR:
        heard += sum(moment.ask(tries, address(n)) for n in range(machines))
        moment.now += 20
    alone = machines * (10 + HOUR / 6)
    assert heard <= 2 * 10 + (HOUR + LONGEST_SECONDS) / 6 + machines * HEARD < alone / 10


def attacked(moment: Moment, tries: PasswordTries, what: object = ANNA) -> None:
    """A great many addresses try, until none of them is heard any more."""
    for n in range(100):
        while moment.ask(tries, address(n), what):
            pass


def test_who_knows_the_password_gets_in_while_others_guess(moment: Moment) -> None:
    tries = moment.tries()
    attacked(moment, tries)
    assert moment.ask(tries, "192.0.2.1", right=True)
    assert moment.slept == LONGEST_SECONDS
    assert moment.ask(tries, "192.0.2.1", right=True)  # it is at home there now
    assert moment.slept == 0
    tries.is_home(ANNA, "192.0.2.2")
    assert moment.ask(tries, "192.0.2.2")
    assert moment.slept == 0
    assert moment.ask(tries, "192.0.2.1", ("account", "ben"))  # which is another account
    assert moment.slept == 0


def test_what_was_wrong_too_often_is_heard_again_when_it_is_quiet(moment: Moment) -> None:
    tries = moment.tries()
    attacked(moment, tries)
    assert not moment.ask(tries, address(0))
    moment.now = 6.0
    assert moment.ask(tries, address(0), right=True)
    assert 0 < moment.slept <= LONGEST_SECONDS
    moment.now = HOUR
    assert moment.ask(tries, address(1))
    assert moment.slept == 0


def test_at_home_guessing_is_slowed_down_too(moment: Moment) -> None:
    tries = moment.tries(login_burst=3)
    tries.is_home(ANNA, "192.0.2.1")
    assert [moment.ask(tries, "192.0.2.1") for _ in range(5)] == [True] * 3 + [False] * 2


def test_right_passwords_do_not_count(moment: Moment) -> None:
    tries = moment.tries(login_burst=1)
    assert all(moment.ask(tries, address(n), right=True) for n in range(20))
    assert moment.slept == 0


def test_a_site_of_many_ipv6_networks_has_a_limit_of_its_own(moment: Moment) -> None:
    tries = moment.tries(login_burst=1)
    heard = [moment.ask(tries, f"2001:db8:1:{n:x}::1", ("link", n)) for n in range(42)]
    assert heard == [True] * 40 + [False] * 2
    assert moment.ask(tries, "2001:db8:2::1", ("link", 1))
    assert moment.ask(tries, "10.0.0.1", ("link", 1))


# --- over the wire ------------------------------------------------------------------------------


@pytest.fixture
def proxied(start: Start, moment: Moment, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A server that is told addresses, with a clock that stands still."""
    server = start(trusted_proxies=["127.0.0.1"])
    server.app.service.tries = server.app._admission._tries = moment.tries()
    accounts.add_account(server.data, "anna", "right password")
    return server


def log_in(server: Running, address: str, password: str) -> int:
    client = server.client()
    client.http.headers["X-Forwarded-For"] = address
    try:
        client.log_in("ANNA", password)
    except Failed as error:
        return error.status
    return 200


def test_a_login_under_attack(proxied: Running, moment: Moment) -> None:
    assert log_in(proxied, "192.0.2.1", "right password") == 200
    for n in range(22):
        assert log_in(proxied, address(n), "wrong password") == 401
    assert moment.slept == LONGEST_SECONDS
    assert log_in(proxied, "192.0.2.2", "right password") == 200
    moment.slept = 0.0
    assert log_in(proxied, "192.0.2.1", "right password") == 200
    assert moment.slept == 0


def test_where_a_good_token_comes_from_is_home(proxied: Running, moment: Moment) -> None:
    anna = proxied.device("anna")
    anna.http.headers["X-Forwarded-For"] = "192.0.2.3"
    anna.refresh()
    for n in range(21):
        log_in(proxied, address(n), "wrong password")
    assert moment.slept > 0
    moment.slept = 0.0
    assert log_in(proxied, "192.0.2.3", "right password") == 200
    assert moment.slept == 0


def test_a_links_password_is_guessed_by_many_no_faster(proxied: Running, moment: Moment) -> None:
    anna = proxied.device("anna")
    visitor = Visitor.at(proxied.url, make_link(anna, anna.make("a"), password="right"))

    def post(address: str, password: str) -> int:
        visitor.http.headers["X-Forwarded-For"] = address
        return visitor.post(password).status_code

    assert [post(address(n), "wrong") for n in range(21)] == [403] * 21
    assert moment.slept > 0
    assert post("192.0.2.1", "right") == 303
    moment.slept = 0.0
    assert post("192.0.2.1", "right") == 303
    assert moment.slept == 0
    visitor.http.close()
