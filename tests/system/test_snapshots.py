"""Files that are never closed: each version is the file as it was at one moment."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Device, Site, noise, wait_until

PAGES, PAGE = 1024, 4096
ORDER = random.Random("the kernel goes from the first page to the last: we do not").sample(
    range(PAGES), PAGES
)

# Goes through the file for ever, giving each page the next number: at every moment there is one
# place in the order before which the pages have one number, and after which the one before it.
WRITER = f"""
import os, sys
order = {ORDER}
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(file, bytes({PAGES * PAGE}))
print("writing", flush=True)
number = 0
while True:
    number += 1
    for page in order:
        os.pwrite(file, number.to_bytes(8, "big") * ({PAGE} // 8), page * {PAGE})
"""


# The kernel writes back at moments of its own: here, all the time.
WRITE_BACK = """
import os, subprocess, sys
while True:
    subprocess.run(["sync", "-f", sys.argv[1]])
"""


@pytest.fixture
def writer(site: Site) -> Iterator[Path]:
    """The file that is being written."""
    device = site.device("a")
    device.mount()
    path = device.at / "endless"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, env=site.env, text=True
    )
    write_back = subprocess.Popen([sys.executable, "-c", WRITE_BACK, device.at], env=site.env)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield path
    finally:
        for item in (write_back, process):
            item.kill()
            item.wait()


def numbers(content: bytes) -> list[int]:
    """The number that each page says; -1 of a page that is in itself torn."""
    found = []
    for start in range(0, len(content), PAGE):
        words = {content[at : at + 8] for at in range(start, start + PAGE, 8)}
        found.append(int.from_bytes(words.pop(), "big") if len(words) == 1 else -1)
    return found


def test_every_version_of_a_file_that_never_rests_is_of_one_moment(
    site: Site, writer: Path
) -> None:
    device, flushes = site.devices[0], 8

    def now() -> int:
        return numbers(writer.read_bytes())[ORDER[0]]

    for _flush in range(flushes):
        device.flush()
    last = now()
    wait_until(lambda: now() > last, "the writer began anew")
    device.flush()
    versions = sorted(
        (writer.parent / "endless@@").iterdir(), key=lambda one: one.stat().st_mtime_ns
    )
    assert len(versions) >= flushes
    seen = []
    for version in versions:
        found = numbers(version.read_bytes())
        assert len(found) == PAGES
        pages = [found[page] for page in ORDER]
        assert -1 not in pages
        assert pages == sorted(pages, reverse=True), f"{version.name} is of several moments"
        assert pages[0] - pages[-1] <= 1, f"{version.name} is of several moments"
        seen.append(pages[0])
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_a_program_that_fsyncs_is_sent_as_it_was_at_an_fsync(site: Site) -> None:
    """A database: what is uploaded while it works is what it had made durable."""
    device = site.device("a")
    device.mount()
    file = os.open(device.at / "database", os.O_RDWR | os.O_CREAT)
    try:
        os.write(file, b"one")
        os.fsync(file)
        device.flush()
        assert device.status()["journal"]["operations"] == 0
        other: Device = site.device("b")
        other.mount()
        other.sees("database", b"one")
        os.pwrite(file, b"two", 0)
        os.fsync(file)
        device.flush()
        other.sees("database", b"two")
    finally:
        os.close(file)
    wait_until(lambda: device.status()["journal"]["operations"] == 0, "sent after the close")


def test_flush_waits_for_what_only_the_kernel_has(site: Site) -> None:
    """Of files that are open, by descriptor or by mapping, and whose names have changed since."""
    device, content = site.device("a"), noise(32 << 20)
    device.mount()
    mapped = device.at / "mapped"
    mapped.write_bytes(bytes(PAGE))
    with mapped.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), PAGE)
    flags = os.O_CREAT | os.O_WRONLY
    one, other = (os.open(device.at / name, flags) for name in ("open", "renamed"))
    os.write(one, content)
    os.write(other, b"bytes")
    (device.at / "renamed").rename(device.at / "name")
    memory[:5] = b"bytes"
    device.flush()
    device.kill()  # the kernel's pages are gone with it
    for descriptor in (one, other):
        with contextlib.suppress(OSError):  # ENOTCONN
            os.close(descriptor)
    memory.close()
    device.umount()
    reader = site.device("b")
    reader.mount()
    assert (reader.at / "open").read_bytes() == content
    assert (reader.at / "name").read_bytes() == b"bytes"
    assert (reader.at / "mapped").read_bytes()[:6] == b"bytes\0"


def test_a_mount_that_is_told_to_end_while_files_are_open_has_what_was_written(site: Site) -> None:
    device, content = site.device("a"), noise(32 << 20)
    device.mount()
    descriptor = os.open(device.at / "open", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, content)
    pid = device.pid
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}/cwd").exists(), "the daemon is gone")
    with contextlib.suppress(OSError):  # ENOTCONN
        os.close(descriptor)
    device.mount()
    assert (device.at / "open").read_bytes() == content
