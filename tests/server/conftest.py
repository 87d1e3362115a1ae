"""Servers with the accounts anna and ben, and clients logged in to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.accounts import add_account
from tests.server.harness import Client, Running, run

Start = Callable[..., Running]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with accounts anna and ben, made once: Argon2 is slow on purpose."""
    data = tmp_path_factory.mktemp("template")
    add_account(data, "anna", "secret")
    add_account(data, "ben", "secret")
    return data


@pytest.fixture
def start(template: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts servers on a copy of the template (or on what an earlier one left)."""
    running: list[Running] = []

    def begin(data: Path = tmp_path / "data", **tunables: Any) -> Running:
        if not data.exists():
            shutil.copytree(template, data)
        running.append(run(data, **tunables))
        return running[-1]

    yield begin
    for each in running:
        if each.thread.is_alive():
            each.stop()


@pytest.fixture
def server(start: Start) -> Running:
    return start()


@pytest.fixture
def anna(server: Running) -> Client:
    return server.client("anna")


@pytest.fixture
def ben(server: Running) -> Client:
    return server.client("ben")
