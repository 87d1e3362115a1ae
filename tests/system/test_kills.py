"""Writers, killed mounts and servers, and every promise checked after each death.

    NEARLINE_KILL_ROUNDS=200 NEARLINE_KILL_SEED=7 .venv/bin/pytest -s tests/system/test_kills.py

runs it for long. NEARLINE_KILL_KEEP=DIR keeps ledgers and state of a round that failed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.system.harness import Site
from tests.system.killing import Killer

ROUNDS = int(os.environ.get("NEARLINE_KILL_ROUNDS", "8"))
SEED = int(os.environ.get("NEARLINE_KILL_SEED", "1"))
AUDIT_EVERY = 10
ROUND_SECONDS = 120.0


class Watchdog:
    """A round stuck in a mount fails instead of standing still."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._timer: threading.Timer | None = None

    def again(self) -> None:
        self.end()
        self._timer = threading.Timer(ROUND_SECONDS, self._site.kill_daemons)
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


@pytest.fixture
def watchdog(site: Site) -> Iterator[Watchdog]:
    """In place of the one that gives a test two minutes."""
    dog = Watchdog(site)
    yield dog
    dog.end()


def test_whatever_dies_when_every_promise_is_kept(site: Site, watchdog: Watchdog) -> None:
    killer = Killer(site, site.device("a"), SEED)
    killer.begin()
    for number in range(1, ROUNDS + 1):
        watchdog.again()
        killer.round()
        if number % AUDIT_EVERY == 0 or number == ROUNDS:
            killer.audit()
            print(f"seed {SEED}, round {number} of {ROUNDS}: {dict(killer.tally)}", flush=True)
