"""Uploads never give up: whatever the network, the server and the blob store do, every byte arrives
in the end, by itself; why it waits is shown while it does, and nothing else waits with it."""

from __future__ import annotations

import itertools
import sqlite3
from typing import Any

import pytest

from remote.protocol.errors import RateLimited, Unavailable
from tests.system.conftest import Proxied
from tests.system.faultproxy import Fault
from tests.system.harness import Device, noise, wait_until
from tests.system.selection import some

STORE = "^PUT /blobs/"
ANNOUNCE = "^POST /v1/files$"
APPLY = "^POST /v1/changes/apply"
SIZE = 6_000_000  # several chunks; noise does not compress

_seeds = itertools.count(5000)


def stored(proxied: Proxied) -> list[str]:
    """The chunks whose PUT was answered well, as often as it was."""
    return [
        seen.request.split("?")[0]
        for seen in list(proxied.proxy.seen)
        if seen.request.startswith("PUT /blobs/") and seen.status < 300
    ]


def write(device: Device) -> tuple[str, bytes]:
    seed = next(_seeds)
    name, content = f"file{seed}", noise(SIZE, seed)
    (device.at / name).write_bytes(content)
    return name, content


def all_is_well(device: Device) -> bool:
    status = device.status()
    return status["reason"] is None and not status["uploads"] and not status["refused"]


# --- what passes ----------------------------------------------------------------------------------


OF_THE_STORE = [
    pytest.param({"latency": 0.2}, id="slow"),
    pytest.param({"status": 403}, id="403"),
    pytest.param({"status": 404}, id="404"),
    pytest.param({"status": 412}, id="412"),
    pytest.param({"status": 429, "retry_after": "1"}, id="429"),
    pytest.param({"status": 500}, id="500"),
    pytest.param({"status": 503}, id="503"),
    pytest.param({"status": 507}, id="507"),
    pytest.param({"reset_after": 0}, id="answer-lost"),
    pytest.param({"reset_request_after": 100_000}, id="broken-in-the-middle"),
    pytest.param({"truncate": 0}, id="truncated"),
    pytest.param({"twice": True}, id="twice"),
]


@pytest.mark.parametrize("trouble", some(OF_THE_STORE, 2, 1))
def test_whatever_the_blob_store_does(proxied: Proxied, trouble: dict[str, Any]) -> None:
    fault = proxied.proxy.add(Fault(STORE, times=3, **trouble))
    name, content = write(proxied.a)
    proxied.a.flush()
    assert fault.befell == 3
    assert all_is_well(proxied.a)
    proxied.b.sees(name, content)


OF_THE_SERVER = [
    pytest.param({"latency": 0.3}, id="slow"),
    pytest.param({"status": 403}, id="403"),
    pytest.param({"status": 404}, id="404"),
    pytest.param({"status": 412}, id="412"),
    pytest.param({"status": 429}, id="429"),
    pytest.param({"status": 500}, id="500"),
    pytest.param({"status": 503, "retry_after": "1"}, id="503"),
    pytest.param({"problem": RateLimited(retry_after_seconds=0.5)}, id="limited"),
    pytest.param({"problem": Unavailable(message="not now")}, id="unavailable"),
    pytest.param({"reset_after": 0}, id="answer-lost"),
    pytest.param({"reset_request_after": 0}, id="request-lost"),
    pytest.param({"truncate": 3}, id="truncated"),
    pytest.param({"corrupt": 0}, id="corrupted"),
    pytest.param({"twice": True}, id="twice"),
]
ANNOUNCING = [pytest.param(ANNOUNCE, *one.values, id=f"announce-{one.id}") for one in OF_THE_SERVER]
APPLYING = [pytest.param(APPLY, *one.values, id=f"apply-{one.id}") for one in OF_THE_SERVER]


@pytest.mark.parametrize(("what", "trouble"), [*some(ANNOUNCING, 3), *some(APPLYING, 3, 2)])
def test_whatever_the_server_does(proxied: Proxied, what: str, trouble: dict[str, Any]) -> None:
    fault = proxied.proxy.add(Fault(what, times=2, **trouble))
    name, content = write(proxied.a)
    (proxied.a.at / name).chmod(0o640)
    proxied.a.flush()
    if fault.befell < 2:  # one request was enough for all
        (proxied.a.at / f"{name} again").write_bytes(content[:1000])
        proxied.a.flush()
    assert fault.befell == 2
    assert all_is_well(proxied.a)
    theirs = proxied.b.sees(name, content)
    proxied.b.shows(lambda: theirs.stat().st_mode & 0o777 == 0o640, "the mode")
    chunks = stored(proxied)
    assert len(chunks) == len(set(chunks)), "no finished chunk is sent twice"


def test_a_body_that_stops_in_the_middle_goes_on(proxied: Proxied) -> None:
    fault = proxied.proxy.add(Fault(STORE, times=1, stall_request_after=100_000))
    name, content = write(proxied.a)
    wait_until(lambda: fault.befell, "the upload has begun")
    (proxied.a.at / f"{name} beside").mkdir()
    proxied.b.sees(f"{name} beside")
    fault.lift()
    proxied.a.flush()
    proxied.b.sees(name, content)


# --- what lasts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", some([403, 404, 429, 500, 503, 507], 4))
def test_why_it_waits_is_shown_and_nothing_else_waits(proxied: Proxied, status: int) -> None:
    here = proxied.a
    before, old = write(here)
    here.flush()
    fault = proxied.proxy.add(Fault(STORE, status=status))
    name, content = write(here)

    def is_shown() -> bool:
        found = here.status()
        errors = [item["error"] for item in found["uploads"] if name in item["path"]]
        return bool(errors and errors[0] and found["reason"] and found["state"] == "online")

    wait_until(is_shown, "the reason in status")
    assert (here.at / name).read_bytes() == content, "what waits is read"
    assert (here.at / before).read_bytes() == old
    (here.at / f"{name} directory").mkdir()
    (here.at / before).rename(here.at / f"{name} directory" / "moved")
    proxied.b.sees(f"{name} directory/moved", old)
    fault.lift()
    here.flush()
    wait_until(lambda: all_is_well(here), "no reason is left")
    proxied.b.sees(name, content)


def test_the_network_goes_in_the_middle_of_uploads(proxied: Proxied) -> None:
    here = proxied.a
    slow = proxied.proxy.add(Fault(STORE, latency=0.1))
    files = dict(write(here) for _ in range(3))
    wait_until(lambda: len(stored(proxied)) >= 2, "some chunks are there")
    proxied.proxy.cut()
    here.goes_offline()
    assert here.status()["reason"]
    (here.at / "offline note").write_bytes(b"written meanwhile")
    assert all((here.at / name).read_bytes() == content for name, content in files.items())
    slow.lift()
    proxied.proxy.mend()
    here.comes_online()
    here.flush()
    for name, content in (files | {"offline note": b"written meanwhile"}).items():
        proxied.b.sees(name, content)
    chunks = stored(proxied)
    assert len(chunks) == len(set(chunks)), "no finished chunk is sent twice"
    wait_until(lambda: all_is_well(here), "no reason is left")


# --- what the server forgets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "forget",
    [
        pytest.param("UPDATE uploads SET expires_ns = 1", id="expired"),
        pytest.param("DELETE FROM upload_chunks", id="leases-gone"),
        pytest.param("DELETE FROM uploads", id="session-gone"),
    ],
)
def test_an_upload_that_the_server_forgot_begins_anew(proxied: Proxied, forget: str) -> None:
    """Half way: every chunk is there, the version is not. What is there is not sent again."""
    held = proxied.proxy.add(Fault(APPLY, stall=True))
    name, content = write(proxied.a)
    wait_until(lambda: held.befell, "the bytes are there, and the commit is on its way")
    before = stored(proxied)
    assert before
    database = next(proxied.site.server.data.glob("*.sqlite*"))
    with sqlite3.connect(database, timeout=30) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        assert connection.execute(forget).rowcount
    connection.close()
    held.lift()
    proxied.a.flush()
    proxied.b.sees(name, content)
    assert stored(proxied) == before
    assert all_is_well(proxied.a)


def test_a_server_killed_between_the_bytes_and_the_commit(proxied: Proxied) -> None:
    held = proxied.proxy.add(Fault(APPLY, stall=True))
    name, content = write(proxied.a)
    wait_until(lambda: held.befell, "the bytes are there, and the commit is on its way")
    before = stored(proxied)
    proxied.site.server.kill()
    held.lift()
    proxied.site.server.start()
    proxied.a.flush()
    proxied.b.sees(name, content)
    assert stored(proxied) == before
