"""Bounds that hold on real mounts: dirty bytes, and a block cache that never touches them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system import harness
from tests.system.conftest import Proxied
from tests.system.faultproxy import Fault, FaultProxy
from tests.system.harness import Device, drop_page_cache, noise, wait_until

LIMIT = 8 << 20
UPLOADS = "PUT /"


@pytest.fixture(scope="module")
def limited() -> Iterator[Proxied]:
    """`a` may have 8 MiB of dirty bytes; `b` anything."""
    port = harness.free_port()
    with (
        FaultProxy("127.0.0.1", port) as proxy,
        harness.running(public_url=proxy.url, port=port) as site,
    ):
        small = ["-o", f"dirty-limit={LIMIT}", "--cache-size", "32MiB"]
        proxied = Proxied(site, proxy, site.device("a", *small), site.device("b"))
        proxied.a.mount()
        proxied.b.mount()
        yield proxied


@pytest.fixture
def calm(limited: Proxied) -> Iterator[Proxied]:
    limited.proxy.forget()
    limited.b.comes_online()
    yield limited
    limited.proxy.forget()
    limited.a.comes_online()
    limited.a.flush()


def dirty(device: Device) -> int:
    return int(device.status()["limits"]["dirty_bytes"])


SAVE = """
import os, sys
descriptor, found = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 0
left = memoryview(sys.stdin.buffer.read())
def write():
    global left
    while left:
        left = left[os.write(descriptor, left):]
for step in write, lambda: os.fsync(descriptor), lambda: os.close(descriptor):
    try:
        step()
    except OSError as failed:
        found = found or failed.errno
print(found)
"""


class Writer:
    """Writes and closes a file in a process of its own: one forked by the test would have a copy of
    the descriptor, and closing that waits for room too."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SAVE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        self._process.stdin.write(content)  # it reads all of it before it writes anything
        self._process.stdin.close()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def failed(self) -> int:
        """The first errno, when it has ended; 0: none."""
        self._process.wait(90)
        assert self._process.stdout is not None
        with self._process.stdout as said:
            return int(said.read())


def at_most(device: Device, done: Callable[[], bool]) -> int:
    """The most dirty bytes that were seen until `done`."""
    seen = [0]

    def look() -> bool:
        seen.append(dirty(device))
        return done()

    wait_until(look, "the writer is done", 90)
    return max(seen)


def test_at_the_limit_writers_wait_while_online(calm: Proxied) -> None:
    """Several at once, and one file that is larger than the limit; none passes it."""
    stalled = calm.proxy.add(Fault(UPLOADS, stall=True))
    large, many = noise(30_000_000, 1), [noise(3_000_000, 2 + n) for n in range(4)]
    writers = [Writer(calm.a.at / "large", large)]
    writers += [Writer(calm.a.at / f"many{n}", many[n]) for n in range(4)]
    wait_until(lambda: dirty(calm.a) > LIMIT - (1 << 20), "the limit is reached")
    wait_until(lambda: stalled.befell, "uploads stand still")
    assert writers[0].is_alive
    assert calm.a.status()["state"] == "online"
    states = {os.getxattr(path, "user.nearline.status") for path in calm.a.at.iterdir()}
    assert states <= {b"pending", b"uploading"}
    stalled.lift()
    most = at_most(calm.a, lambda: not any(writer.is_alive for writer in writers))
    assert LIMIT - (1 << 20) < most <= LIMIT
    assert [writer.failed() for writer in writers] == [0] * 5
    calm.a.flush()
    assert dirty(calm.a) == 0
    calm.b.sees("large", large)
    for n in range(4):
        calm.b.sees(f"many{n}", many[n])


def test_who_waits_is_told_when_the_network_goes_and_nothing_is_lost(calm: Proxied) -> None:
    stalled = calm.proxy.add(Fault(UPLOADS, stall=True))
    kept = noise(5_000_000, 10)
    (calm.a.at / "kept").write_bytes(kept)
    writer = Writer(calm.a.at / "too much", noise(20_000_000, 11))
    wait_until(lambda: dirty(calm.a) > LIMIT - (1 << 20), "the limit is reached")
    wait_until(lambda: stalled.befell, "uploads stand still")
    assert writer.is_alive
    calm.proxy.cut()
    assert writer.failed() == errno.ENOSPC
    assert dirty(calm.a) <= LIMIT
    assert Writer(calm.a.at / "nor this", noise(2_000_000, 12)).failed() == errno.ENOSPC
    (calm.a.at / "but this").mkdir()
    assert (calm.a.at / "kept").read_bytes() == kept
    calm.proxy.forget()
    calm.b.sees("but this")
    calm.b.sees("kept", kept)
    wait_until(lambda: dirty(calm.a) == 0, "there is room again")
    calm.a.comes_online()
    assert Writer(calm.a.at / "this now", noise(20_000_000, 13)).failed() == 0


LATE = """
import contextlib, os, subprocess, sys
path, happens = sys.argv[1:]
file = os.open(path, os.O_WRONLY | os.O_CREAT)

def write():
    left = memoryview(os.urandom(2_000_000))
    while left:
        left = left[os.write(file, left):]

def said(end, which):
    try:
        end(which)
        return 0
    except OSError as failed:
        return failed.errno

write()
if happens == "child":
    subprocess.run(["true"], check=True)
elif happens == "fork":
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
elif happens == "dup":
    print(said(os.close, os.dup(file)), flush=True)
elif happens != "nothing":
    print("written", flush=True)
    sys.stdin.readline()
if happens == "fsync":
    print(said(os.fsync, file), flush=True)
    sys.stdin.readline()
    write()
    print(said(os.fsync, file), flush=True)
print(said(os.close, file))
"""


@contextlib.contextmanager
def late(path: Path, happens: str) -> Iterator[subprocess.Popen[str]]:
    """Writes 2 MB, has something happen, and closes: the program, with what it says."""
    command = [sys.executable, "-c", LATE, path, happens]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


FULL = str(errno.ENOSPC)


def offline_and_full(calm: Proxied) -> None:
    calm.proxy.cut()
    wait_until(lambda: calm.a.status()["state"] == "offline", "offline")
    assert Writer(calm.a.at / "full", noise(20_000_000, 50)).failed() == errno.ENOSPC
    assert dirty(calm.a) > LIMIT - (1 << 20)


@pytest.mark.parametrize("happens", ["nothing", "child", "fork"])
def test_the_writers_close_tells_whatever_a_child_has_closed(calm: Proxied, happens: str) -> None:
    offline_and_full(calm)
    with late(calm.a.at / happens, happens) as process:
        assert line(process) == FULL


def test_every_close_of_a_duplicate_tells(calm: Proxied) -> None:
    """A shell's redirections are such."""
    offline_and_full(calm)
    with late(calm.a.at / "dup", "dup") as process:
        assert [line(process), line(process)] == [FULL, FULL]


def test_the_writers_close_tells_whoever_has_read_meanwhile(calm: Proxied) -> None:
    """A reader's handle may be told by the kernel, and it is no use."""
    offline_and_full(calm)
    path = calm.a.at / "read"
    path.touch()
    with late(path, "reader") as process:
        assert line(process) == "written"
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
        go_on(process)
        assert line(process) == FULL


def test_what_was_refused_is_told_to_those_who_were_writing_then(calm: Proxied) -> None:
    """An fsync is told once, as everywhere, so that who tries again can succeed when there is
    room. Its close is told all the same; one who comes later is not."""
    offline_and_full(calm)
    path = calm.a.at / "again"
    with late(path, "fsync") as process:
        assert line(process) == "written"
        go_on(process)
        assert line(process) == FULL
        calm.proxy.forget()
        wait_until(lambda: dirty(calm.a) == 0, "there is room again", 60)
        wait_until(lambda: calm.a.status()["state"] == "online", "the mount knows", 60)
        assert Writer(path, b"by another").failed() == 0
        go_on(process)
        assert line(process) == "0"
        assert line(process) == FULL
    assert Writer(path, b"by another").failed() == 0


def test_who_waits_goes_on_waiting_while_only_the_feed_is_down(calm: Proxied) -> None:
    """The bytes that are sent arrive, so there will be room."""
    feed = calm.proxy.add(Fault("^GET /v1/changes", status=503))
    calm.proxy.cut()
    calm.proxy.mend()
    calm.a.goes_offline()
    (calm.a.at / "small").write_bytes(b"bytes")
    wait_until(lambda: dirty(calm.a) == 0, "it was sent all the same")
    large = noise(20_000_000, 15)
    assert Writer(calm.a.at / "large though offline", large).failed() == 0
    assert calm.a.status()["state"] == "offline"
    feed.lift()
    calm.b.sees("large though offline", large)


def test_eviction_never_touches_dirty_bytes(calm: Proxied) -> None:
    """The block cache is filled over and over while dirty bytes wait; offline they are all read
    back, also by the process after the one that was killed, and at last elsewhere."""
    cold = {f"cold{number}": noise(30_000_000, 20 + number) for number in range(3)}
    base = noise(4_000_000, 30)
    for name, content in {**cold, "base": base}.items():
        (calm.b.at / name).write_bytes(content)
    calm.b.flush()
    calm.a.sees("base", base)
    calm.proxy.add(Fault(UPLOADS, stall=True))
    waiting = {f"dirty{number}": noise(1_800_000, 40 + number) for number in range(4)}
    for name, content in waiting.items():
        (calm.a.at / name).write_bytes(content)
    with (calm.a.at / "base").open("r+b") as file:  # dirty bytes over blocks of the cache
        file.seek(1_000_000)
        file.write(b"!" * 5000)
    changed = base[:1_000_000] + b"!" * 5000 + base[1_005_000:]
    for name, content in cold.items():
        calm.a.sees(name, content)
    assert evicted(calm.a) > 100
    assert dirty(calm.a) >= 4 * 1_800_000 + 5000
    calm.proxy.cut()
    calm.a.goes_offline()
    for _process in range(2):
        drop_page_cache(calm.a.at)
        for name, content in waiting.items():
            assert (calm.a.at / name).read_bytes() == content
        with (calm.a.at / "base").open("rb") as file:
            file.seek(1_000_000)
            assert file.read(5000) == b"!" * 5000
        if not _process:
            calm.a.kill()
            calm.a.umount()
            calm.a.mount()
    calm.proxy.forget()
    for name, content in {**waiting, "base": changed}.items():
        calm.b.sees(name, content)


def evicted(device: Device) -> int:
    return int(json.loads(device.site.cli("cache", "stats", device.at, "--json").stdout)["evicted"])
