"""Faults of networks and edges, which nobody who reads or writes notices."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from remote.protocol.errors import RateLimited, Unavailable
from tests.system.conftest import Proxied
from tests.system.faultproxy import Fault
from tests.system.harness import COMMAND_SECONDS, Device, noise, wait_until
from tests.system.selection import some

EDGE = "^GET /chunks/"
STORE = "^PUT /blobs/"
SIZE = 700_000  # one chunk of three blocks; noise does not compress

_seeds = itertools.count(1)


@dataclass
class Cold:
    """A file of a test's own that the reader knows of and has nothing of."""

    path: Path
    content: bytes
    writer: Device
    reader: Device

    def read(self) -> bool:
        """True if it reads right."""
        return self.path.read_bytes() == self.content


@pytest.fixture
def cold(proxied: Proxied) -> Cold:
    seed = next(_seeds)
    content, name = noise(SIZE, seed), f"cold{seed}"
    (proxied.a.at / name).write_bytes(content)
    proxied.a.flush()
    path = proxied.b.sees(name)
    proxied.b.shows(lambda: path.stat().st_size == SIZE, "the size on the reader")
    proxied.proxy.seen.clear()
    return Cold(path, content, proxied.a, proxied.b)


def logged(device: Device, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in device.log.splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Fault(EDGE, times=2, corrupt=300_000), id="corrupted"),
        pytest.param(Fault(EDGE, times=1, truncate=300_000), id="truncated"),
        pytest.param(Fault(EDGE, times=1, reset_after=300_000), id="reset"),
        pytest.param(Fault(EDGE, times=1, status=500), id="server-error"),
        pytest.param(Fault(EDGE, times=1, status=503), id="unavailable"),
        pytest.param(Fault(EDGE, times=1, status=403), id="expired"),
        pytest.param(Fault(EDGE, times=1, status=404), id="not-found"),
        pytest.param(Fault(EDGE, times=4, status=503, retry_after="0"), id="busy"),
        pytest.param(Fault(EDGE, times=2, status=429, retry_after="1"), id="too-often"),
    ],
)
def test_a_bad_answer_of_the_edge_is_fetched_again(
    proxied: Proxied, cold: Cold, damage: Fault
) -> None:
    fault = proxied.proxy.add(damage)
    assert cold.read()
    assert fault.befell == fault.times
    wait_until(lambda: proxied.proxy.count(EDGE) > 1, "the good answer is noted, too")


LIMITED = RateLimited(message="slow down", retry_after_seconds=0.2)


NOT_NOW = [
    pytest.param({"problem": LIMITED}, id="limited"),
    pytest.param({"problem": Unavailable(message="not now")}, id="unavailable"),
    pytest.param({"status": 429, "retry_after": "0"}, id="429"),
    pytest.param({"status": 500}, id="500"),
    pytest.param({"status": 503, "retry_after": "1"}, id="503"),
    pytest.param({"latency": 0.3}, id="slow"),
]
LOCATE = "^POST /v1/chunks/locate"
CHILDREN = "^(GET /v1/files/[0-9a-f]+/children|POST /v1/listings)"
LOCATING = [pytest.param(LOCATE, *one.values, id=f"locate-{one.id}") for one in NOT_NOW]
LISTING = [pytest.param(CHILDREN, *one.values, id=f"list-{one.id}") for one in NOT_NOW]


@pytest.mark.parametrize(("what", "trouble"), [*some(LOCATING, 2), *some(LISTING, 2, 1)])
def test_a_read_waits_for_what_passes(
    proxied: Proxied, cold: Cold, what: str, trouble: dict[str, Any]
) -> None:
    """Neither EBUSY nor ENETUNREACH reaches the application."""
    directory = proxied.a.at / f"of {cold.path.name}"
    directory.mkdir()
    (directory / "inner").write_bytes(b"inner")
    proxied.a.flush()
    fault = proxied.proxy.add(Fault(what, times=2, **trouble))
    proxied.b.umount()
    shutil.rmtree(proxied.b.state)  # a new device: it lists and locates everything anew
    shutil.rmtree(proxied.b.cache)
    proxied.b.mount()
    assert cold.read()
    proxied.b.sees(f"of {cold.path.name}/inner", b"inner")
    assert fault.befell == 2


def test_an_answer_that_stops_in_the_middle_goes_on(proxied: Proxied, cold: Cold) -> None:
    fault = proxied.proxy.add(Fault(EDGE, times=1, stall_after=300_000))
    reading = subprocess.Popen(["sha256sum", cold.path], stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: fault.befell, "the read has begun")
        assert cold.path.name in os.listdir(cold.reader.at)
        fault.lift()
        said, _ = reading.communicate(timeout=COMMAND_SECONDS)
        assert said.split()[0] == hashlib.sha256(cold.content).hexdigest()
    finally:
        fault.lift()
        reading.kill()
        reading.wait()


def test_a_refused_url_is_signed_again(proxied: Proxied, cold: Cold) -> None:
    asked = proxied.proxy.count("POST /v1/chunks/locate")
    proxied.proxy.add(Fault(EDGE, times=1, status=403))
    assert cold.read()
    assert proxied.proxy.count("POST /v1/chunks/locate") == asked + 2
    targets = [
        seen.request for seen in proxied.proxy.seen if seen.request.startswith("GET /chunks")
    ]
    assert targets[0].split("?")[0] == targets[-1].split("?")[0]


def test_a_transfer_that_broke_goes_on_where_it_stopped(proxied: Proxied, cold: Cold) -> None:
    proxied.proxy.add(Fault(EDGE, times=1, reset_after=600_000))
    assert cold.read()
    moved = sum(seen.body for seen in proxied.proxy.seen if seen.request.startswith("GET /chunks"))
    assert moved < SIZE + 262_144


def test_lasting_corruption_is_an_error_that_names_what_is_corrupt(
    proxied: Proxied, cold: Cold
) -> None:
    fault = proxied.proxy.add(Fault(EDGE, corrupt=1000))
    with pytest.raises(OSError, match="Input/output") as failed:
        cold.path.read_bytes()
    assert failed.value.errno == errno.EIO
    [line] = logged(cold.reader, "corrupt_block_given_up")[:1]
    assert len(str(line["chunk"])) == 64
    assert line["block"] in (0, 1, 2)
    assert line["host"] == proxied.proxy.url.removeprefix("http://")
    fault.lift()
    assert cold.read()


def test_uploads_survive_what_the_blob_store_answers(proxied: Proxied) -> None:
    content = noise(12_000_000, 1000)
    faults = [
        proxied.proxy.add(fault)
        for fault in (
            Fault(STORE, times=1, status=403),
            Fault(STORE, times=1, status=500),
            Fault(STORE, times=1, reset_after=0),
            Fault(STORE, times=1, status=503),
        )
    ]
    (proxied.a.at / "upload").write_bytes(content)
    proxied.a.flush()
    assert all(fault.befell == 1 for fault in faults)
    proxied.b.sees("upload", content)


def test_an_answer_lost_after_it_was_carried_out_is_not_carried_out_twice(
    proxied: Proxied,
) -> None:
    """The idempotency key: the reply is reset, the same request is sent again."""
    fault = proxied.proxy.add(Fault("POST /v1/changes/apply", times=3, reset_after=0))
    at = proxied.a.at / "once"
    at.mkdir()
    (at / "file").write_text("one")
    os.link(at / "file", at / "twin")
    (at / "file").rename(at / "moved")
    proxied.a.flush()
    assert fault.befell == 3
    there = proxied.b.sees("once")
    assert sorted(os.listdir(there)) == ["moved", "twin"]
    assert (there / "moved").stat().st_nlink == 2
    assert proxied.a.status()["refused"] == []


def test_a_stalled_edge_holds_up_nobody_else(proxied: Proxied, cold: Cold) -> None:
    """While a read waits for the network: everything that is here is answered, writes too."""
    fault = proxied.proxy.add(Fault(EDGE, stall=True))
    reading = subprocess.Popen(["sha256sum", cold.path], stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: fault.befell, "the read has begun")
        beside = cold.reader.at / "beside"
        assert cold.path.name in os.listdir(cold.reader.at)
        beside.write_text("written meanwhile")
        assert beside.read_text() == "written meanwhile"
        assert os.statvfs(cold.reader.at).f_namemax == 255
        assert reading.poll() is None
        fault.lift()
        said, _ = reading.communicate(timeout=COMMAND_SECONDS)
        assert said.split()[0] == hashlib.sha256(cold.content).hexdigest()
    finally:
        fault.lift()
        reading.kill()
        reading.wait()


def test_the_network_is_not_on_the_path_of_a_write(proxied: Proxied) -> None:
    """With every request held back, hundreds of operations are done before one is answered."""
    fault = proxied.proxy.add(Fault("POST|PUT", stall=True))
    at = proxied.a.at / "held"
    at.mkdir()
    for number in range(200):
        (at / f"file{number}").write_text(str(number))
        (at / f"file{number}").chmod(0o600)
        (at / f"file{number}").rename(at / f"renamed{number}")
    assert len(os.listdir(at)) == 200
    assert proxied.a.status()["journal"]["operations"] >= 200
    fault.lift()
    proxied.a.flush()
    assert proxied.a.status()["journal"] == {"operations": 0, "bytes": 0}
    assert len(os.listdir(proxied.b.sees("held"))) == 200


def test_a_mount_follows_the_network_down_and_up(proxied: Proxied, cold: Cold) -> None:
    assert cold.read()
    cold.reader.comes_online()
    proxied.proxy.cut()
    cold.reader.goes_offline()
    assert cold.reader.status()["feed"]["mode"] == "down"
    assert cold.reader.status()["reason"]
    assert cold.read()
    (cold.reader.at / "offline").write_text("journaled")
    proxied.proxy.mend()
    cold.reader.comes_online()
    cold.reader.flush()
    cold.writer.sees("offline", b"journaled")


def test_without_a_web_socket_changes_come_by_polling(proxied: Proxied) -> None:
    refusal = proxied.proxy.add(Fault("^GET /v1/changes/live", status=400))
    proxied.proxy.cut()
    proxied.proxy.mend()
    wait_until(lambda: refusal.befell, "the refusal")
    wait_until(lambda: proxied.b.status()["feed"]["mode"] == "poll", "polling")
    (proxied.a.at / "polled").write_text("polled")
    proxied.b.sees("polled", b"polled")
    assert proxied.b.status()["feed"]["mode"] == "poll"
    (proxied.a.at / "polled").unlink()
    proxied.b.misses("polled")
