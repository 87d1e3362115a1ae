"""Clocks that are wrong, or jump: signed URLs, leases and journals come to no harm.

The server, or a mount, is a process whose `time.time` is another: a `sitecustomize` on its path
adds what a file says, at every look.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system import harness
from tests.system.faultproxy import Fault, FaultProxy
from tests.system.harness import ACCOUNT, Device, Site, noise, wait_until
from tests.system.selection import some

HOOK = """
import pathlib, time
_file = pathlib.Path(__file__).with_name("shift")
_plain, _plain_ns = time.time, time.time_ns
time.time = lambda: _plain() + int(_file.read_text())
time.time_ns = lambda: _plain_ns() + int(_file.read_text()) * 10**9
"""
DAY = 24 * 3600
SIZE = 3_000_000


class Clock:
    """Of the processes that are started while it is in the site's environment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(HOOK)
        self.set(0)

    def set(self, seconds: int) -> None:
        fresh = self._directory / "fresh"
        fresh.write_text(f"{seconds}")
        fresh.replace(self._directory / "shift")

    def wear(self, site: Site) -> None:
        before = os.environ.get("PYTHONPATH", "")
        site.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self._directory), before]))

    def take_off(self, site: Site) -> None:
        del site.env["PYTHONPATH"]
        if "PYTHONPATH" in os.environ:
            site.env["PYTHONPATH"] = os.environ["PYTHONPATH"]


@dataclass
class Times:
    """A server and a mount with clocks of their own, and a mount whose clock is right."""

    site: Site
    proxy: FaultProxy
    server: Clock
    mount: Clock
    a: Device
    b: Device


@pytest.fixture(scope="module")
def times() -> Iterator[Times]:
    port = harness.free_port()
    with (
        FaultProxy("127.0.0.1", port) as proxy,
        harness.running(public_url=proxy.url, port=port) as site,
    ):
        found = Times(
            site,
            proxy,
            Clock(site.base / "server-clock"),
            Clock(site.base / "mount-clock"),
            site.device("a"),
            site.device("b"),
        )
        site.server.stop()
        found.server.wear(site)
        site.server.start()
        found.mount.wear(site)
        found.a.mount()
        found.mount.take_off(site)
        found.b.mount()
        yield found


@pytest.fixture(autouse=True)
def right(times: Times) -> Iterator[None]:
    yield
    times.proxy.forget()
    times.server.set(0)
    times.mount.set(0)


@pytest.mark.parametrize(
    ("who", "seconds"),
    some([(who, by) for by in (-DAY, 600, -600, DAY) for who in ("server", "mount")], 3),
)
def test_with_a_wrong_clock_bytes_go_both_ways(times: Times, who: str, seconds: int) -> None:
    clock = times.server if who == "server" else times.mount
    clock.set(seconds)
    there, back = noise(SIZE, seconds + DAY), noise(SIZE, seconds + 2 * DAY)
    name = f"{who}{seconds}"
    (times.a.at / name).write_bytes(there)
    times.a.flush()
    times.b.sees(name, there)
    (times.b.at / f"{name} back").write_bytes(back)
    times.b.flush()
    times.a.sees(f"{name} back", back)
    assert times.a.status()["reason"] is None


def test_urls_that_expire_before_they_are_used_are_signed_again(times: Times) -> None:
    """The server's clock jumps ahead while PUTs and GETs are held up."""
    content = noise(SIZE, 77)
    held = times.proxy.add(Fault("^PUT /blobs/", stall=True, times=2))
    (times.a.at / "put").write_bytes(content)
    wait_until(lambda: held.befell, "a PUT is held up")
    times.server.set(3600)
    held.lift()
    times.a.flush()
    refused = [seen for seen in list(times.proxy.seen) if seen.status == 403]
    assert any(seen.request.startswith("PUT /blobs/") for seen in refused), "they had expired"
    times.b.sees("put", content)


def test_what_was_saved_while_the_clock_was_ahead_is_sent_when_it_is_right(times: Times) -> None:
    times.mount.set(365 * DAY)
    held = times.proxy.add(Fault("^POST /v1/", stall=True))
    (times.a.at / "from the future").write_bytes(b"saved")
    times.mount.set(0)
    held.lift()
    times.b.sees("from the future", b"saved")


def test_a_token_that_expires_under_a_mount_is_out_and_a_login_loses_nothing(times: Times) -> None:
    """An hour passes at the server, in the middle of the mount's work."""
    site, screen = times.site, times.site.device("screen")
    made = site.cli("devices", "add", "screen", str(times.a.at), "--expires", "1h", "--json")
    file = site.base / "token-screen"
    file.write_text(json.loads(made.stdout)["token"] + "\n")
    site.cli("login", site.server.url, "--account", ACCOUNT, "--token-file", file, *site.plainly)
    screen.mount()
    (screen.at / "in time").write_bytes(b"sent")
    screen.flush()
    times.b.sees("in time", b"sent")
    times.server.set(3601)
    (screen.at / "too late").write_bytes(b"kept here")
    wait_until(lambda: screen.status()["state"] == "offline", "the token has expired")
    assert "expired" in screen.status()["reason"]
    assert "log in" in screen.status()["reason"]
    assert (screen.at / "too late").read_bytes() == b"kept here"
    assert not (times.b.at / "too late").exists()
    assert times.a.status()["state"] == "online"
    assert screen.mounted
    site.login()
    screen.flush()
    times.b.sees("too late", b"kept here")
    assert screen.status()["state"] == "online"


def test_a_token_that_expires_while_nobody_asks_anything_ends_the_feed(times: Times) -> None:
    site, screen = times.site, times.site.device("quiet")
    made = site.cli("devices", "add", "quiet", str(times.a.at), "--expires", "1h", "--json")
    file = site.base / "token-quiet"
    file.write_text(json.loads(made.stdout)["token"] + "\n")
    site.cli("login", site.server.url, "--account", ACCOUNT, "--token-file", file, *site.plainly)
    screen.mount()
    times.server.set(3601)
    (times.b.at / "not for the quiet").write_bytes(b"news")
    times.b.flush()
    wait_until(lambda: screen.status()["state"] == "offline", "the token has expired")
    assert not (screen.at / "not for the quiet").exists()
    site.login()
    screen.sees("not for the quiet", b"news")
