"""The order of starting: what must have happened before others hear of a mount."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mount import daemon


async def test_somebody_looks_at_the_mount_before_it_is_ready_and_the_kernel_told_of_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A change that the kernel is told of while it asks for the attributes of the top the first
    time makes it refuse everybody: it keeps those that it began with."""
    order: list[str] = []

    async def look_at(mountpoint: Path) -> None:
        assert mountpoint == tmp_path
        order.append("looked at")

    async def tell() -> None:
        order.append("told")

    monkeypatch.setattr(daemon, "_look_at", look_at)
    config: Any = SimpleNamespace(mountpoint=tmp_path, url="http://h", account="anna")
    invalidator: Any = SimpleNamespace(run=tell)
    await daemon._begin(config, invalidator, lambda: order.append("ready"))
    assert order == ["looked at", "ready", "told"]
