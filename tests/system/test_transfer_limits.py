"""`--upload-limit`, `--download-limit` and `--transfers` on real mounts, and `nearline limit`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.system import harness
from tests.system.harness import Device, Site, noise, wait_until

# At 8 KiB a second it takes minutes: more than a test may.
CONTENT = noise(3_000_000, 1)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with harness.running() as running:
        yield running


def limits(device: Device) -> tuple[int | None, int | None, int]:
    """As `nearline status --json` tells them."""
    told = json.loads(device.site.cli("status", device.at, "--json").stdout)["limits"]
    return told["upload_limit"], told["download_limit"], told["transfers"]


def test_limits_of_a_running_mount(site: Site) -> None:
    """A limited transfer does not come to its end; one that is limited no more does."""
    a = site.device("a", "--upload-limit", "8K")
    b = site.device("b", "-o", "download-limit=8K,transfers=2")
    a.mount()
    b.mount()
    assert limits(a) == (8192, None, 16)
    assert limits(b) == (None, 8192, 2)

    (a.at / "large").write_bytes(CONTENT)
    wait_until(lambda: a.uploaded > 20_000, "some of it is sent")
    [upload] = a.status()["uploads"]
    assert upload["bytes_done"] < upload["bytes_total"] == len(CONTENT)
    assert site.cli("limit", a.at).stdout == (
        "up         8.2 kB/s\ndown       off\ntransfers  16\n"
    )
    assert "up at most 8.2 kB/s" in site.cli("status", a.at).stdout
    shown = site.cli("limit", a.at, "--up", "off", "--transfers", "4").stdout
    assert shown == "up         off\ndown       off\ntransfers  4\n"
    a.flush()
    assert limits(a) == (None, None, 4)

    large = b.sees("large")
    with subprocess.Popen(["cat", large], stdout=subprocess.PIPE) as reader:
        before = b.downloaded
        wait_until(lambda: b.downloaded > before + 20_000, "some of it has come")
        assert reader.poll() is None
        assert b.downloaded < len(CONTENT)
        assert "down at most 8.2 kB/s, 2 at once" in site.cli("status", b.at).stdout
        site.cli("limit", b.at, "--down", "20M")
        assert reader.communicate()[0] == CONTENT
    assert limits(b) == (None, 20 << 20, 2)

    site.cli("limit", b.at, "--up", "1M", "--down", "off", "--transfers", "1")
    back = noise(1_200_000, 2)
    (b.at / "back").write_bytes(back)
    b.flush()
    a.sees("back", back)


def test_limits_that_cannot_be(site: Site) -> None:
    c = site.device("c")
    c.mount()
    for words in (["--up", "fast"], ["--down", "1K"], ["--transfers", "99"]):
        done = site.cli("limit", c.at, *words, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("nearline: ")
    assert limits(c) == (None, None, 16)
    assert site.cli("limit", site.home, check=False).returncode == 1
