"""A mount that says that it is ready is writable, for the person whose it is, at once.

For root, whom the kernel lets do everything: the person is somebody else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.system import harness
from tests.system.harness import Device, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

PERSON = 65534  # nobody
NEW_MOUNTS = 4
# Waits from before the mount, so that it comes first. Becomes the person itself, who may not run
# this interpreter everywhere.
WRITER = """
import os, sys
person = int(sys.argv[2])
os.setgroups([])
os.setresgid(person, person, person)
os.setresuid(person, person, person)
print("here", flush=True)
sys.stdin.read(1)
os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
"""


def mounted_and_written(
    device: Device, name: str, at_ready: Callable[[], object] = lambda: None
) -> str:
    """Mount in the foreground, as a unit of systemd does, and make `name` in it when the mount says
    that it is ready and `at_ready` has returned. What the writer says; empty when it could."""
    site = device.site
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(site.base / "notify"))
        notified.settimeout(harness.COMMAND_SECONDS)
        command = [
            *(harness.nearline(), "mount", "--foreground", site.server.url, str(device.at)),
            *("--state", str(device.state), "--cache", str(device.cache), *device.options),
        ]
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(device.at / name), str(PERSON)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"here\n"
        env = {**site.env, "NOTIFY_SOCKET": str(site.base / "notify")}
        mount = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        try:
            assert notified.recv(100) == b"READY=1"
            at_ready()
            return writer.communicate(b"\n")[1].decode()
        finally:
            writer.kill()
            writer.wait()
            mount.send_signal(signal.SIGTERM)
            mount.wait(harness.COMMAND_SECONDS)
            (site.base / "notify").unlink()


def test_the_first_file_of_a_new_mount_can_be_made(site: Site) -> None:
    site.base.chmod(0o711)
    owner = f"allow_other,uid={PERSON},gid={PERSON}"
    for number in range(NEW_MOUNTS):
        device = site.device(f"new{number}", "-o", owner)
        device.at.mkdir()
        assert mounted_and_written(device, f"file{number}") == ""


def test_the_first_file_of_a_new_mount_can_be_made_though_its_server_is_gone(site: Site) -> None:
    site.base.chmod(0o711)
    device = site.device("a", "-o", f"allow_other,uid={PERSON},gid={PERSON}")
    device.at.mkdir()
    assert mounted_and_written(device, "file", site.server.kill) == ""
    site.server.start()
    device.mount()
    device.flush()
    assert (device.at / "file").stat().st_uid == PERSON


def test_the_first_file_of_a_mount_without_its_server_can_be_made(site: Site) -> None:
    """It was mounted before, and its top was seen."""
    site.base.chmod(0o711)
    device = site.device("a", "-o", f"allow_other,uid={PERSON},gid={PERSON}")
    device.mount()
    assert list(device.at.iterdir()) == []
    device.umount()
    site.server.kill()
    assert mounted_and_written(device, "file") == ""
    site.server.start()
    device.mount()
    device.flush()
    assert (device.at / "file").stat().st_uid == PERSON
