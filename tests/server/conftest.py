"""Servers, and clients of the accounts anna and ben."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from server.accounts import accounts
from tests.conftest import one_authority
from tests.server.harness import Client, Running, run

Start = Callable[..., Running]

DEAR = accounts.HASHER
"""What hashes passwords when no test looks."""
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture(autouse=True)
def _passwords_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 is dear on purpose; of what is tested, its cost alone depends on that."""
    monkeypatch.setattr(accounts, "HASHER", CHEAP)


@pytest.fixture(autouse=True)
def _one_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    one_authority(monkeypatch)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for every test that brings its own accounts and leaves the server as it is."""
    running = run(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers of a test's own, on `tmp_path/data` unless it says otherwise."""
    running: list[Running] = []

    def begin(data: Path = tmp_path / "data", **tunables: Any) -> Running:
        running.append(run(data, **tunables))
        return running[-1]

    yield begin
    for item in running:
        if item.thread.is_alive():
            item.stop()


@pytest.fixture
def anna(server: Running) -> Iterator[Client]:
    client = server.account("anna")
    yield client
    client.http.close()


@pytest.fixture
def ben(server: Running) -> Iterator[Client]:
    client = server.account("ben")
    yield client
    client.http.close()
