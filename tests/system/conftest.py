"""Sites for the tests of real mounts; logs of failed tests; the watchdog."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from tests.system import harness, parents
from tests.system.faultproxy import FaultProxy
from tests.system.harness import Device, Site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.system)
            if not Path("/dev/fuse").exists():
                item.add_marker(pytest.mark.skip(reason="there is no /dev/fuse"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "new_programs(why): its commands are new programs, and none is forked (parents.py)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around fixtures, too; so a module with fixtures of its own is marked as a whole."""
    if item.get_closest_marker("new_programs") is None:
        return (yield)
    with mock.patch.object(parents, "is_off", True):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]  # pytest's own types of this wrapper are not public
    report = yield
    if report.failed:
        for site in harness.RUNNING:
            report.sections += list(site.logs())
    return report


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[None]:
    """A test stuck in a mount fails instead of standing still. What it says then follows from the
    mounts' end, so this says why they ended."""
    barked = threading.Event()

    def bark() -> None:
        barked.set()
        for site in list(harness.RUNNING):
            site.kill_daemons()

    timer = threading.Timer(seconds, bark)
    timer.start()
    yield
    timer.cancel()
    if barked.is_set():
        pytest.fail(f"it took longer than {seconds:g} s: its mounts were killed", pytrace=False)


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    with watched(harness.TEST_SECONDS):
        yield


@pytest.fixture
def direct_folder(tmp_path: Path) -> Iterator[Path]:
    """On a local file system that has O_DIRECT. (On Linux before 6.6 tmpfs does not.)"""
    for place in (tmp_path, Path("/var/tmp"), Path(__file__).parent):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            try:
                os.close(os.open(Path(folder, "direct"), os.O_RDWR | os.O_CREAT | os.O_DIRECT))
            except OSError:
                continue
            yield Path(folder)
            return
    pytest.fail("no local file system here has O_DIRECT: TMPDIR can name one that has")


@dataclass
class Pair:
    """Two devices of one account, and the site they are on."""

    site: Site
    a: Device
    b: Device

    def flush(self) -> None:
        """Return when the server has all that either wrote."""
        self.a.flush()
        self.b.flush()


@contextlib.contextmanager
def two_devices() -> Iterator[Pair]:
    """Both mounted, of a site of their own."""
    with harness.running() as site:
        pair = Pair(site, site.device("a"), site.device("b"))
        pair.a.mount()
        pair.b.mount()
        yield pair


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two mounts for the whole module: its tests use names of their own, and break nothing."""
    with two_devices() as pair:
        yield pair


@pytest.fixture
def site() -> Iterator[Site]:
    """A server of the test's own, and nothing mounted."""
    with harness.running() as site:
        yield site


@dataclass
class Proxied:
    """Two devices whose every byte goes through a proxy that can be told to misbehave."""

    site: Site
    proxy: FaultProxy
    a: Device
    b: Device


@pytest.fixture(scope="module")
def through_proxy() -> Iterator[Proxied]:
    port = harness.free_port()
    with (
        FaultProxy("127.0.0.1", port) as proxy,
        harness.running(public_url=proxy.url, port=port) as site,
    ):
        proxied = Proxied(site, proxy, site.device("a"), site.device("b"))
        proxied.a.mount()
        proxied.b.mount()
        yield proxied


@pytest.fixture
def proxied(through_proxy: Proxied) -> Iterator[Proxied]:
    """The network is sound when a test begins, which both know, and again when it has ended."""
    through_proxy.proxy.forget()
    for device in (through_proxy.a, through_proxy.b):
        device.comes_online()
    yield through_proxy
    through_proxy.proxy.forget()
