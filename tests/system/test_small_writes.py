"""A write(2) costs no request."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import harness
from tests.system.harness import Device

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else")
# Who opens and closes a file; everything else is the writes' doing.
OPENING = {"lookup", "create", "open", "flush", "release", "forget"}


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with harness.running() as site:
        device = site.device("a")
        device.mount()
        yield device


@contextlib.contextmanager
def counted(device: Device, most: int) -> Iterator[None]:
    before = device.status()["kernel_requests"]
    yield
    after = device.status()["kernel_requests"]
    made = {name: count - before.get(name, 0) for name, count in after.items()}
    made = {name: count for name, count in made.items() if count and name not in OPENING}
    assert sum(made.values()) <= most, made


def test_a_thousand_small_writes_are_a_few_requests(device: Device) -> None:
    with counted(device, most=10), (device.at / "small").open("wb", buffering=0) as file:
        for number in range(1000):
            file.write(b"%3d" % (number % 1000) * 100)
    assert (device.at / "small").stat().st_size == 300_000


def test_overwriting_them_and_writing_at_random_places_are_too(device: Device) -> None:
    path = device.at / "again"
    path.write_bytes(bytes(1 << 20))
    with counted(device, most=10):
        descriptor = os.open(path, os.O_WRONLY)
        for number in range(1000):
            os.pwrite(descriptor, b"%4d" % number, number * 7919 % (1 << 20))
        os.close(descriptor)


def test_allocating_is_not_a_request_a_page(device: Device) -> None:
    # The C library writes a byte a page, because there is no fallocate in pyfuse3.
    with counted(device, most=1000), (device.at / "allocated").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 << 20)
    assert (device.at / "allocated").stat().st_size == 64 << 20


def test_with_noxattr_there_are_no_attributes(device: Device) -> None:
    other = device.site.device("b", "-o", "noxattr")
    other.mount()
    (other.at / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="not supported"):
        os.getxattr(other.at / "file", "user.nearline.status")
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(other.at / "file", "user.x", b"")
    asked = other.status()["kernel_requests"]
    for number in range(20):
        (other.at / f"file{number}").write_bytes(b"x")
        with pytest.raises(OSError, match="not supported"):
            os.getxattr(other.at / "file", "user.x")
    assert other.status()["kernel_requests"].get("getxattr", 0) == asked.get("getxattr", 0)


@needs_root
def test_read_ahead_is_raised_on_every_mount(device: Device) -> None:
    for _ in range(3):
        (device.at / "read").write_bytes(b"x")  # answered: the start is over
        mounted = harness.mountinfo.mounted_at(device.at)
        assert mounted is not None
        knob = Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb")
        harness.wait_until(lambda at=knob: at.read_text() == "1024\n", "1 MiB of read-ahead")
        device.umount("--now")
        device.mount()
