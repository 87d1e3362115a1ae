"""Writers, killed mounts and servers, and every promise checked after each death.

    NEARLINE_KILL_ROUNDS=200 NEARLINE_KILL_SEED=7 .venv/bin/pytest -s tests/system/test_kills.py

runs it for long. NEARLINE_KILL_KEEP=DIR keeps ledgers and state of a round that failed.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.control import client
from mount.control.messages import Status, socket_path
from mount.process import unmount
from tests.system import harness
from tests.system.faultproxy import Fault, FaultProxy
from tests.system.harness import COMMAND_SECONDS, Device, Site, noise, wait_until
from tests.system.kill_model import Node, Op, Seen, World, apply, content, crash
from tests.system.kill_sent import IN_FLIGHT, Store
from tests.system.kill_verifier import Broken, Told, resolve
from tests.system.killing import ROOT, Killer

ROUNDS = int(os.environ.get("NEARLINE_KILL_ROUNDS", "4"))
SEED = int(os.environ.get("NEARLINE_KILL_SEED", "1"))
AUDIT_EVERY = 10
ROUND_SECONDS = 360.0


class Watchdog:
    """A round stuck in a mount fails instead of standing still."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def again(self) -> None:
        self.end()
        self._timer = threading.Timer(ROUND_SECONDS, _bark)
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _bark() -> None:
    for site in list(harness.RUNNING):
        site.kill_daemons()


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[Watchdog]:
    """In place of the one that is for a whole test."""
    dog = Watchdog()
    dog.again()
    yield dog
    dog.end()


def test_whatever_dies_when_every_promise_is_kept(site: Site, watchdog: Watchdog) -> None:
    killer = Killer(site, site.device("a"), SEED)
    killer.begin()
    for number in range(1, ROUNDS + 1):
        watchdog.again()
        killer.round()
        if number % AUDIT_EVERY == 0 or number == ROUNDS:
            killer.audit()
            print(f"seed {SEED}, round {number} of {ROUNDS}: {dict(killer.tally)}", flush=True)


LARGE = 40 << 20
PUT, HALF = "^PUT /blobs/", 16  # chunks are 1.2 MiB long on average


@pytest.fixture
def far() -> Iterator[tuple[Site, FaultProxy]]:
    """A server, and the network before it."""
    port = harness.free_port()
    with (
        FaultProxy("127.0.0.1", port) as network,
        harness.running(public_url=network.url, port=port) as site,
    ):
        yield site, network


def stored(site: Site) -> Store:
    return Store.read(site.server.data / "blobs", site.server.log)


def status_of(device: Device) -> Status:
    """At once: a command would take longer to start than an upload takes."""
    return client.status(socket_path(device.state))


@pytest.mark.parametrize("victims", [("mount",), ("server",)])
def test_an_upload_goes_on_from_the_chunks_that_are_there(
    far: tuple[Site, FaultProxy], victims: tuple[str, ...]
) -> None:
    """Both sides say how much was sent: no finished chunk twice, but what was under way."""
    site, network = far
    device = site.device("a")
    device.mount()
    network.add(Fault(PUT, times=HALF))
    held = network.add(Fault(PUT, stall=True))
    (device.at / "large").write_bytes(noise(LARGE))
    wait_until(lambda: held.befell and stored(site).chunks == HALF, "half of it is sent")
    before = status_of(device).transferred.uploaded_bytes
    if "server" in victims:
        site.server.kill()
    if "mount" in victims:
        device.kill()
    network.cut()  # what was under way is lost with who died
    network.forget()
    if "server" in victims:
        site.server.start()
    if "mount" in victims:
        device.umount()
        device.mount()
    device.flush()
    after = status_of(device).transferred.uploaded_bytes
    sent = after if victims == ("server",) else before + after
    store = stored(site)
    assert LARGE / 4 < before < LARGE
    assert sent < LARGE + IN_FLIGHT * store.largest
    assert len(store.again) <= IN_FLIGHT, store.again


@contextlib.contextmanager
def wedged(at: Path, *guarded: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Somebody who waits in the mount for a process that is dead, and its thread that is not."""
    at.mkdir()
    wedge = subprocess.Popen(
        [sys.executable, "-m", "tests.system.wedge", at, *guarded], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert wedge.stdout is not None
    try:
        assert wedge.stdout.readline() == b"ready\n"
        caller = subprocess.Popen(["mkdir", at / "new"], stderr=subprocess.DEVNULL)
        thread = int(wedge.stdout.readline())
        wait_until(lambda: state_of(thread) == "D", "it waits for the directory's lock")
        wedge.kill()
        yield caller, thread
    finally:
        unmount.detach(at, lazy=True)
        assert wedge.wait(COMMAND_SECONDS) == -signal.SIGKILL
        wedge.stdout.close()
    assert caller.wait(COMMAND_SECONDS) == 1


def test_a_mount_whose_process_cannot_die_is_taken_away(tmp_path: Path) -> None:
    """A thread in the kernel outlives the kill, and holds up who is in the mount: see `unmount`."""
    with wedged(tmp_path / "at") as (caller, thread):
        process = Path(f"/proc/{thread}/status").read_text().split("Tgid:")[1].split()[0]
        wait_until(lambda: state_of(int(process)) == "Z", "it is dead")
        assert state_of(thread) == "D"
        assert caller.poll() is None


def test_whoever_waits_in_a_mount_that_is_killed_gets_an_error_at_once(tmp_path: Path) -> None:
    """Of the same thread the guard of a real mount makes an end: see `mount/fuse/fusectl.py`."""
    with wedged(tmp_path / "at", "guarded") as (caller, _):
        assert caller.wait(COMMAND_SECONDS) == 1
        with pytest.raises(OSError, match="not connected"):
            os.listdir(tmp_path / "at")


def state_of(task: int) -> str:
    """That of a process's first thread, or of any thread."""
    return Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[0]


# The verifier notices what it is for.


def a_world() -> World:
    """A closed file of 5,000 bytes, with a second name and attributes, and one that is written."""
    world = World(1, 0, {"w1": 0}, {0: Node("directory", 0o755)})
    for op in (
        Op(1, "create", "w1/closed", handle=1, stop=0o644),
        Op(2, "write", handle=1, start=0, stop=5000),
        Op(3, "close", handle=1),
        Op(4, "link", "w1/closed", "w1/second"),
        Op(5, "utimens", "w1/closed", stop=77),
        Op(6, "create", "w1/written", handle=6, stop=0o600),
        Op(7, "write", handle=6, start=0, stop=10_000),
        Op(8, "fsync", handle=6),
        Op(9, "write", handle=6, start=6000, stop=20_000),
    ):
        apply(world, op)
    return world


def bytes_of(world: World) -> dict[str, bytes]:
    """As they are when every byte was handed over."""
    found = {}
    for path in world.names:
        node = world.at(path)
        pieces = copy.copy(node.pieces)
        for start, stop, number in node.pending:
            pieces = [(a, min(b, start), n) for a, b, n in pieces] + [(start, stop, number)]
        found[path] = content(world.writer, pieces, 0, node.reach)
    return found


def shown(world: World) -> dict[str, Seen]:
    """A mount that keeps every promise."""
    seen = {}
    for path, number in world.names.items():
        node = world.at(path)
        links = list(world.names.values()).count(number)
        mtime = node.mtime_ns or 1
        told = (number, links, node.mode, node.reach, mtime, dict(node.xattrs), node.target)
        seen[path] = Seen(node.kind, *told)
    return seen


def test_what_was_promised_is_accepted_with_and_without_what_was_not() -> None:
    world = a_world()
    data = bytes_of(world)
    resolved = resolve(Told(copy.deepcopy(world)), shown(world), data.__getitem__)
    assert resolved.at("w1/written").size == 20_000
    seen = shown(world)
    seen["w1/written"] = seen["w1/written"]._replace(size=10_000)
    # The page from 8192 on was handed over, the one before it was not.
    kept = content(1, [(0, 10_000, 7)], 0, 8192) + data["w1/written"][8192:10_000]
    resolved = resolve(Told(copy.deepcopy(world)), seen, {**data, "w1/written": kept}.__getitem__)
    crash(world)
    assert content(1, resolved.at("w1/written").pieces, 0, 10_000) == kept


@pytest.mark.parametrize(
    "op", [Op(10, "rename", "w1/written", "w1/closed"), Op(10, "unlink", "w1/closed")]
)
def test_what_was_in_progress_is_done_or_not(op: Op) -> None:
    before, after = a_world(), a_world()
    apply(after, op)
    for world in (before, after):
        resolved = resolve(Told(a_world(), op), shown(world), bytes_of(world).__getitem__)
        assert resolved.names == world.names
    half = shown(before)
    del half["w1/written"], half["w1/closed"]
    with pytest.raises(Broken, match="is gone"):
        resolve(Told(a_world(), op), half, bytes_of(before).__getitem__)


@pytest.mark.parametrize(
    ("path", "wrong", "why"),
    [
        ("w1/second", None, "is gone"),
        ("w1/closed", {"size": 4999}, "size is 4999"),
        ("w1/closed", {"mtime_ns": 78}, "mtime is 78"),
        ("w1/closed", {"mode": 0o600}, "mode"),
        ("w1/closed", {"xattrs": {"user.a": "b"}}, "attributes"),
        ("w1/second", {"ino": 9}, "no longer a name of the same file"),
        ("w1/written", {"ino": 1}, "one inode"),
        ("w1/written", {"size": 9999}, "size is 9999"),
        ("w1/written", {"size": 20_001}, "size is 20001"),
    ],
)
def test_what_is_wrong_with_a_name_is_noticed(
    path: str, wrong: dict[str, object] | None, why: str
) -> None:
    world = a_world()
    seen = shown(world)
    was = seen.pop(path)
    if wrong is not None:
        seen[path] = was._replace(**wrong)  # type: ignore[arg-type]  # of fields
    with pytest.raises(Broken, match=why):
        resolve(Told(world), seen, bytes_of(world).__getitem__)


def test_a_name_that_should_be_gone_is_noticed() -> None:
    world = a_world()
    seen = shown(world)
    apply(world, Op(10, "unlink", "w1/second"))
    seen["w1/closed"] = seen["w1/closed"]._replace(links=1)
    with pytest.raises(Broken, match="should not be"):
        resolve(Told(world), seen, bytes_of(world).__getitem__)


@pytest.mark.parametrize(
    ("path", "at"), [("w1/second", 4999), ("w1/written", 3), ("w1/written", 7000)]
)
def test_one_wrong_byte_is_noticed(path: str, at: int) -> None:
    world = a_world()
    data = bytes_of(world)
    wrong = bytearray(data[path])
    wrong[at] ^= 1
    with pytest.raises(Broken, match=f"{path}: bytes"):
        resolve(Told(world), shown(world), {**data, path: bytes(wrong)}.__getitem__)
