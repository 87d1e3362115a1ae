"""Fixtures for every test."""

from __future__ import annotations

import gc
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.amounts import IS_QUICK

gc.set_threshold(20_000, 20, 20)  # so that it takes no twentieth of a run

# A quick run loses no power: what it writes need not reach a disk, where half of its time would go.
_MEMORY, _ENOUGH = Path("/dev/shm"), 1 << 30
if IS_QUICK and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ENOUGH:
    tempfile.tempdir = os.environ.setdefault("TMPDIR", str(_MEMORY))

# The same examples in every run: a change is judged by what it changes. NEARLINE_EXPLORE draws
# others. How long one takes is never a failure.
settings.register_profile(
    "nearline",
    derandomize="NEARLINE_EXPLORE" not in os.environ,
    deadline=None,
    max_examples=20 if IS_QUICK else 100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("nearline")


_SLOW = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """A quick run does not load a file of which every test is slow."""
    if not IS_QUICK or not collection_path.match("test_*.py"):
        return None
    return _SLOW.search(collection_path.read_text()) is not None or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Real mounts first: their files take longest, and at the end everybody would wait for them."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/system/"))
    if IS_QUICK:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish() -> None:
    """All that is loaded stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


_LOGS = structlog.get_config()


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home directory in `tmp_path` and let the environment mean it."""
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    for name, below in (
        ("XDG_STATE_HOME", ".local/state"),
        ("XDG_CACHE_HOME", ".cache"),
        ("XDG_CONFIG_HOME", ".config"),
        ("XDG_DATA_HOME", ".local/share"),
    ):
        monkeypatch.setenv(name, str(place / below))
    for name in ("NEARLINE_TOKEN", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    return place


def one_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that trust nobody but an authority without a key: to load the hundred and more of
    certifi takes longer than most tests."""
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(__file__).with_name("authority.pem")))


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command that is called in a test, or in a fixture, says where its log goes: for that test
    alone."""
    structlog.configure(**_LOGS)
    yield
    structlog.configure(**_LOGS)


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Only what asks for private modes gets them."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own: no test may see, or leave anything in, that of the person."""
    return isolate(tmp_path, monkeypatch)
