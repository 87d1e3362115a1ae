"""Fixtures that tests of the client share."""

from __future__ import annotations

import pytest

from tests.conftest import one_authority


@pytest.fixture(autouse=True)
def _one_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    one_authority(monkeypatch)
