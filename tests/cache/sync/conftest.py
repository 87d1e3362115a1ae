"""Two devices of one drive, without HTTP; time is trio's mock clock: no backoff is waited out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from cache.metadata.tree import ROOT
from tests.clocks import patient_clock
from tests.model.device import Device
from tests.model.server import Server


@pytest.fixture
def clock() -> Iterator[trio.testing.MockClock]:
    """pytest-trio runs the test under it."""
    with patient_clock() as clock:
        yield clock


@pytest.fixture
async def one(server: Server, tmp_path: Path, clock: object) -> Any:
    device = Device(server, tmp_path / "one", "one", server.token("one"))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()


@pytest.fixture
async def two(server: Server, tmp_path: Path, clock: object) -> Any:
    device = Device(server, tmp_path / "two", "two", server.token("two"))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()
