"""What networks and edges do to traffic, and that nobody who reads or writes notices."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from tests.system.conftest import Proxied
from tests.system.faultproxy import Fault
from tests.system.harness import Device, noise, wait_until

EDGE = "^GET /chunks/"
STORE = "^PUT /blobs/"
CONTENT = noise(700_000, 1)  # one chunk, three blocks, not compressible


@pytest.fixture
def writer(proxied: Proxied) -> Device:
    device = proxied.site.device("a")
    device.mount()
    return device


@pytest.fixture
def reader(proxied: Proxied, writer: Device) -> Device:
    """A second device, on which `file` is known and its content is not."""
    (writer.at / "file").write_bytes(CONTENT)
    writer.flush()
    device = proxied.site.device("b")
    device.mount()
    assert (device.at / "file").stat().st_size == len(CONTENT)
    return device


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
    ],
)
def test_a_bad_answer_of_the_edge_is_fetched_again(
    proxied: Proxied, reader: Device, damage: Fault
) -> None:
    fault = proxied.proxy.add(damage)
    assert (reader.at / "file").read_bytes() == CONTENT
    assert fault.befell == fault.times
    assert proxied.proxy.count(EDGE) > 1


def test_a_refused_url_is_signed_again(proxied: Proxied, reader: Device) -> None:
    asked = proxied.proxy.count("POST /v1/chunks/locate")
    proxied.proxy.add(Fault(EDGE, times=1, status=403))
    assert (reader.at / "file").read_bytes() == CONTENT
    assert proxied.proxy.count("POST /v1/chunks/locate") == asked + 2
    targets = [
        seen.request for seen in proxied.proxy.seen if seen.request.startswith("GET /chunks")
    ]
    assert targets[0].split("?")[0] == targets[-1].split("?")[0]


def test_a_transfer_that_broke_goes_on_where_it_stopped(proxied: Proxied, reader: Device) -> None:
    proxied.proxy.add(Fault(EDGE, times=1, reset_after=600_000))
    assert (reader.at / "file").read_bytes() == CONTENT
    moved = sum(seen.body for seen in proxied.proxy.seen if seen.request.startswith("GET /chunks"))
    assert moved < len(CONTENT) + 262_144


def test_lasting_corruption_is_an_error_that_names_what_is_corrupt(
    proxied: Proxied, reader: Device
) -> None:
    fault = proxied.proxy.add(Fault(EDGE, corrupt=1000))
    with pytest.raises(OSError, match="Input/output") as failed:
        (reader.at / "file").read_bytes()
    assert failed.value.errno == errno.EIO
    [line] = logged(reader, "corrupt block given up")[:1]
    assert len(str(line["chunk"])) == 64
    assert line["block"] in (0, 1, 2)
    assert line["host"] == proxied.proxy.url.removeprefix("http://")
    fault.lift()
    assert (reader.at / "file").read_bytes() == CONTENT


def test_uploads_survive_what_the_blob_store_answers(proxied: Proxied, writer: Device) -> None:
    content = noise(12_000_000, 2)
    faults = [
        proxied.proxy.add(Fault(STORE, times=1, **fault))
        for fault in ({"status": 403}, {"status": 500}, {"reset_after": 0}, {"status": 503})
    ]
    (writer.at / "upload").write_bytes(content)
    writer.flush()
    assert all(fault.befell == 1 for fault in faults)
    other = proxied.site.device("b")
    other.mount()
    assert (other.at / "upload").read_bytes() == content


def test_an_answer_lost_after_it_was_carried_out_is_not_carried_out_twice(
    proxied: Proxied, writer: Device
) -> None:
    """The idempotency key: the reply is reset, the same request is sent again."""
    fault = proxied.proxy.add(Fault("POST /v1/changes/apply", times=3, reset_after=0))
    (writer.at / "once").mkdir()
    (writer.at / "once" / "file").write_text("one")
    os.link(writer.at / "once" / "file", writer.at / "once" / "twin")
    (writer.at / "once" / "file").rename(writer.at / "once" / "moved")
    writer.flush()
    assert fault.befell == 3
    other = proxied.site.device("b")
    other.mount()
    assert sorted(os.listdir(other.at)) == ["once"]
    assert sorted(os.listdir(other.at / "once")) == ["moved", "twin"]
    assert (other.at / "once" / "moved").stat().st_nlink == 2
    assert writer.status()["refused"] == []


def test_a_stalled_edge_holds_up_nobody_else(proxied: Proxied, reader: Device) -> None:
    """While a read waits for the network: everything that is here is answered, writes too."""
    fault = proxied.proxy.add(Fault(EDGE, stall=True))
    pid = os.fork()
    if pid == 0:
        ok = (reader.at / "file").read_bytes() == CONTENT
        os._exit(0 if ok else 1)
    wait_until(lambda: fault.befell, "the read has begun")
    assert os.listdir(reader.at) == ["file"]
    (reader.at / "beside").write_text("written meanwhile")
    assert (reader.at / "beside").read_text() == "written meanwhile"
    assert os.statvfs(reader.at).f_namemax == 255
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    fault.lift()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_latency_is_not_on_the_path_of_a_write(proxied: Proxied, writer: Device) -> None:
    """With every request held back, a thousand operations are done before one is sent."""
    fault = proxied.proxy.add(Fault("POST|PUT", stall=True))
    for number in range(200):
        (writer.at / f"file{number}").write_text(str(number))
        (writer.at / f"file{number}").chmod(0o600)
        (writer.at / f"file{number}").rename(writer.at / f"renamed{number}")
    assert len(os.listdir(writer.at)) == 200
    assert writer.status()["journal"]["operations"] >= 200
    assert writer.uploaded < 200 * 10
    fault.lift()
    writer.flush()
    assert writer.status()["journal"] == {"operations": 0, "bytes": 0}


def test_without_a_web_socket_changes_come_by_polling(proxied: Proxied) -> None:
    proxied.proxy.add(Fault("^GET /v1/changes/live", status=400))
    a, b = proxied.site.device("a"), proxied.site.device("b")
    a.mount()
    b.mount()
    assert os.listdir(b.at) == []
    (a.at / "file").write_text("polled")
    b.sees("file", b"polled")
    assert b.status()["feed"]["mode"] == "poll"
    (a.at / "file").unlink()
    b.misses("file")


def test_a_mount_follows_the_network_down_and_up(proxied: Proxied, reader: Device) -> None:
    def state() -> str:
        return str(reader.status()["state"])

    assert (reader.at / "file").read_bytes() == CONTENT
    wait_until(lambda: state() == "online", "online at first")
    proxied.proxy.cut()
    wait_until(lambda: state() == "offline", "offline after the cut")
    assert reader.status()["feed"]["mode"] == "down"
    assert reader.status()["reason"]
    assert (reader.at / "file").read_bytes() == CONTENT
    (reader.at / "offline").write_text("journaled")
    proxied.proxy.mend()
    wait_until(lambda: state() == "online", "online after the mending")
    reader.flush()
    names = {Path(entry).name for entry in os.listdir(reader.at)}
    assert names == {"file", "offline"}
