"""A server that says nothing: who asks is told at once, and one probe finds the end of it.

Mounts give up on a request after a few seconds here: a `sitecustomize` on their path says so. Where
it cannot, Python does not start: else nobody would notice that each test waits for half minutes.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from mount import credentials
from remote.http import transport
from tests.system import harness
from tests.system.faultproxy import Fault, FaultProxy
from tests.system.harness import ACCOUNT, COMMAND_SECONDS, Device, Site, noise, wait_until

HURRIED = f"""
try:
    import {transport.__name__} as transport
    assert transport.PROBE_SECONDS > 2.0 and transport.Timeouts() == transport.Timeouts(10, 30, 30)
    transport.Timeouts.__init__.__defaults__ = (6.0, 6.0, 6.0)
    transport.PROBE_SECONDS = 2.0
except Exception as problem:
    raise SystemExit(f"mounts cannot be hurried: {{problem!r}}")
"""
READS = "^POST /v1/chunks/locate|^GET /chunks/|^GET /v1/files/"
SIZE = 300_000
FILES = 8
MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[0]
"""


@dataclass
class Silent:
    site: Site
    proxy: FaultProxy
    a: Device
    b: Device

    def cold(self, what: str) -> list[Path]:
        """Files that `b` knows of and has nothing of."""
        for number in range(FILES):
            (self.a.at / f"{what}{number}").write_bytes(noise(SIZE, number))
        self.a.flush()
        paths = [self.b.sees(f"{what}{number}") for number in range(FILES)]
        self.b.shows(lambda: all(path.stat().st_size == SIZE for path in paths), "the sizes")
        return paths


@pytest.fixture(scope="module")
def mounts() -> Iterator[Silent]:
    port = harness.free_port()
    with (
        FaultProxy("127.0.0.1", port) as proxy,
        harness.running(public_url=proxy.url, port=port) as site,
    ):
        hook = site.base / "hurried"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HURRIED)
        before = os.environ.get("PYTHONPATH", "")
        site.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(hook), before]))
        found = Silent(site, proxy, site.device("a"), site.device("b"))
        found.a.mount()
        found.b.mount()
        yield found


@pytest.fixture
def silent(mounts: Silent) -> Iterator[Silent]:
    mounts.proxy.forget()
    for device in (mounts.a, mounts.b):
        device.comes_online()
    yield mounts
    mounts.proxy.forget()


def read_beside(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def pinned(device: Device) -> bool:
    said = device.site.cli("cache", "stats", str(device.at), "--json").stdout
    return bool(json.loads(said)["pinned_chunks"])


def fails_at_once(path: Path) -> None:
    with pytest.raises(OSError, match="unreachable") as failed:
        path.read_bytes()
    assert failed.value.errno == errno.ENETUNREACH


def reads_right(path: Path, content: bytes) -> bool:
    """False while its host is known to be silent."""
    try:
        return path.read_bytes() == content
    except OSError as error:
        if error.errno != errno.ENETUNREACH:
            raise
        return False


def test_a_silent_server_is_asked_by_one_probe_and_by_no_reader(silent: Silent) -> None:
    paths = silent.cold("quiet")
    reads = silent.proxy.add(Fault(READS, stall=True))
    rest = silent.proxy.add(Fault(".", stall=True))
    under_way = [read_beside(path) for path in paths[:3]]
    silent.b.goes_offline()
    for reader in under_way:
        assert "unreachable" in reader.communicate(timeout=COMMAND_SECONDS)[1]
    asked = reads.befell
    for path in paths[3:6]:
        fails_at_once(path)
    assert subprocess.run([sys.executable, "-c", MAP, paths[6]], check=False).returncode == (
        -signal.SIGBUS
    )
    for command in ("warm", "pin"):
        refused = silent.site.cli(command, str(paths[6]), check=False)
        assert refused.returncode == 1
        assert "offline" in refused.stderr
    page = os.sysconf("SC_PAGE_SIZE")
    with paths[7].open("r+b", buffering=0) as file:
        with pytest.raises(OSError, match="unreachable"):
            os.pwrite(file.fileno(), b"the kernel asks for what is around it", 100)
        assert os.pwrite(file.fileno(), b"w" * page, page) == page
    fails_at_once(paths[7])
    assert reads.befell == asked
    reads.lift()
    rest.lift()
    silent.b.comes_online()
    wait_until(lambda: pinned(silent.b), "what was pinned meanwhile is fetched")
    for number, path in enumerate(paths[:7]):
        silent.b.sees(path.name, noise(SIZE, number))
    expected = bytearray(noise(SIZE, 7))
    expected[page : 2 * page] = b"w" * page
    silent.b.flush()
    silent.a.sees("quiet7", bytes(expected))


def test_a_stopped_server_goes_on_where_it_was(silent: Silent) -> None:
    paths = silent.cold("stopped")
    os.kill(silent.site.server.pid, signal.SIGSTOP)
    try:
        reader = read_beside(paths[0])
        silent.b.goes_offline()
        assert "unreachable" in reader.communicate(timeout=COMMAND_SECONDS)[1]
        fails_at_once(paths[1])
        (silent.b.at / "saved").write_bytes(b"while it is stopped")
    finally:
        os.kill(silent.site.server.pid, signal.SIGCONT)
    silent.b.comes_online()
    silent.b.sees(paths[1].name, noise(SIZE, 1))
    silent.a.sees("saved", b"while it is stopped")


def test_a_mount_that_starts_beside_a_silent_server_finds_out_once(silent: Silent) -> None:
    paths = silent.cold("start")
    silent.b.umount()
    reads = silent.proxy.add(Fault(READS, stall=True))
    rest = silent.proxy.add(Fault(".", stall=True))
    silent.b.mount()
    silent.b.goes_offline()
    asked = reads.befell
    for path in paths[:3]:
        fails_at_once(path)
    assert reads.befell == asked
    reads.lift()
    rest.lift()
    silent.b.comes_online()
    silent.b.sees(paths[0].name, noise(SIZE, 0))


def test_when_only_the_host_of_content_is_silent_everything_else_goes_on(silent: Silent) -> None:
    """The API at an address of its own: the proxy is where content comes from."""
    site, paths = silent.site, silent.cold("edge")
    direct = f"http://{site.server.address}"
    with mock.patch.dict(os.environ, site.env, clear=True):
        credentials.save(direct, ACCOUNT, credentials.load(site.server.url, ACCOUNT))
    c = site.device("c")
    c.at.mkdir()
    where = ["--state", str(c.state), "--cache", str(c.cache), "--insecure"]
    site.cli("mount", direct, str(c.at), *where)
    gets = silent.proxy.add(Fault("^GET /chunks/", stall=True))
    probes = silent.proxy.add(Fault("^HEAD / ?", stall=True))
    fails_at_once(c.at / paths[0].name)
    asked = gets.befell
    for path in paths[1:4]:
        fails_at_once(c.at / path.name)
    assert gets.befell == asked
    c.comes_online()
    (silent.a.at / "edge news").write_bytes(b"")
    c.sees("edge news")
    gets.lift()
    probes.lift()
    wait_until(lambda: reads_right(c.at / paths[1].name, noise(SIZE, 1)), "content comes again")
