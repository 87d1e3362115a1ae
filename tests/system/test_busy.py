"""Programs that keep a mount from being unmounted are named, with what and what to do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mount import holders, mountinfo
from tests.system import harness
from tests.system.harness import Device, nearline, run, wait_until

WAIT = "; print(flush=True); sys.stdin.read()"
NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may")


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with harness.running() as site:
        device = site.device("a", "-o", "allow_other,uid=65534")
        device.mount()
        (device.at / "folder").mkdir()
        (device.at / "file").write_bytes(bytes(1 << 20))
        shutil.copy("/bin/cat", device.at / "program")
        (device.at / "program").chmod(0o755)
        yield device


@contextmanager
def python(code: str, path: Path) -> Iterator[int]:
    """A program that has run `code` and waits; its number."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import mmap, os, sys; path = sys.argv[1]; " + code + WAIT]
        + [path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"\n"
        yield process.pid
    finally:
        process.communicate()


def refusal(device: Device) -> str:
    """The words of `umount`; the mount is as usable as before."""
    done = device.umount("--now", check=False)
    assert done.returncode == 1, done.stderr
    assert (device.at / "file").exists()
    assert f"-l {device.at}`" in done.stderr or f"-uz {device.at}`" in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("f = open(path + '/file')", "has {}/file open"),
        ("os.chdir(path + '/folder')", "works in {}/folder"),
        (
            "f = os.open(path + '/file', os.O_RDONLY); m = mmap.mmap(f, 0, prot=mmap.PROT_READ);"
            " os.closerange(3, 99)",  # Python keeps a descriptor of its own
            "has {}/file mapped",
        ),
        (
            "os.mkdir(path + '/gone'); os.chdir(path + '/gone'); os.rmdir(path + '/gone')",
            "works in {}/gone (deleted)",
        ),
    ],
)
def test_a_program_is_named_with_what_it_has(device: Device, code: str, what: str) -> None:
    with python(code, device.at) as pid:
        said = refusal(device)
    assert re.search(
        rf"python[\d.]* \({pid}\) of \w+ {re.escape(what.format(device.at))}[,;]", said
    )


@needs_root
def test_a_program_of_another_user_and_one_that_lies_in_the_mount_are_named(
    device: Device,
) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=device.at, user=NOBODY)
        )
        runs = stack.enter_context(
            subprocess.Popen([device.at / "program"], stdin=subprocess.PIPE, cwd="/")
        )
        wait_until(lambda: "program" in os.readlink(f"/proc/{runs.pid}/exe"), "it runs")
        said = refusal(device)
        for process in (other, runs):
            process.communicate()
    assert f"cat ({other.pid}) of nobody works in {device.at}" in said
    assert f"program ({runs.pid}) of root runs {device.at}/program" in said


@needs_root
def test_what_is_mounted_in_it_and_loop_devices_are_named(device: Device) -> None:
    inside = device.at / "folder"
    subprocess.run(["mount", "-t", "tmpfs", "inside", inside], check=True)
    try:
        assert f"tmpfs is mounted at {inside}" in refusal(device)
    finally:
        subprocess.run(["umount", inside], check=True)
    found = subprocess.run(
        ["losetup", "--find", "--show", device.at / "file"], capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip(f"no loop devices: {found.stderr}")
    loop = found.stdout.strip()
    try:
        assert f"{loop} is a loop device over {device.at}/file" in refusal(device)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


@needs_root
def test_a_program_in_another_mount_namespace_is_found(device: Device) -> None:
    """Where it is private there (a container's volume), the file system would go on."""
    with subprocess.Popen(["unshare", "-m", "cat"], stdin=subprocess.PIPE) as other:
        wait_until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "cat\n", "it runs")
        said = refusal(device)
        other.communicate()
    assert f"cat ({other.pid}) of root has it mounted at {device.at} in a namespace" in said


@needs_root
def test_who_follows_our_unmounting_keeps_nobody_from_it(device: Device) -> None:
    """A service with a mount namespace of its own is a slave of ours: the kernel unmounts there."""
    mount = mountinfo.mounted_at(device.at)
    assert mount is not None
    above = mountinfo.containing(device.at.parent)
    assert above is not None
    if not above.shared:
        pytest.skip("what the mount is in is private here: nothing follows it")
    with subprocess.Popen(
        ["unshare", "-m", "--propagation", "slave", "sh", "-c", "echo; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        assert holders.elsewhere(mount) == []
        other.communicate()


@needs_root
@pytest.mark.parametrize("what", ["", "folder"])
def test_a_bind_mount_is_named_and_unmounting_refused(
    device: Device, tmp_path: Path, what: str
) -> None:
    subprocess.run(["mount", "--bind", device.at / what, tmp_path], check=True)
    try:
        assert f"a bind mount shows it at {tmp_path} (`umount {tmp_path}`)" in refusal(device)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@needs_root
def test_what_goes_on_in_a_bind_mount_says_so_and_ends_when_told(
    device: Device, tmp_path: Path
) -> None:
    pid, site = device.pid, device.site
    subprocess.run(["mount", "--bind", device.at, tmp_path], check=True)
    try:
        subprocess.run(["umount", device.at], check=True)
        status = run(nearline(), "status", device.at, "--json", env=site.env).stdout
        assert f"process {pid} goes on: a bind mount shows it at {tmp_path}" in status
        again = run(nearline(), "umount", device.at, env=site.env, check=False)
        assert again.returncode == 1
        assert f"goes on: a bind mount shows it at {tmp_path}" in again.stderr
        goes_on = f"is in use: unmounted from {device.at}, but process {pid} goes on"
        with pytest.raises(harness.Trouble, match=goes_on):
            device.mount()
        (tmp_path / "late").write_text("written in the bind mount")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}/cwd").exists(), "the daemon has ended")
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    device.mount()
    assert (device.at / "late").read_text() == "written in the bind mount"


def test_unmounted_lazily_it_goes_on_for_who_has_it_open(device: Device) -> None:
    pid = device.pid
    lazily = ["umount", "-l"] if os.getuid() == 0 else ["fusermount3", "-uz"]
    with (device.at / "last").open("w") as file:
        subprocess.run([*lazily, device.at], check=True)
        assert not device.mounted
        file.write("written after it was unmounted")
    wait_until(lambda: not Path(f"/proc/{pid}/cwd").exists(), "the daemon has ended")
    device.mount()
    assert (device.at / "last").read_text() == "written after it was unmounted"


def test_the_command_that_unmounts_does_not_keep_the_mount_busy_itself(device: Device) -> None:
    if not device.mounted:
        device.mount()
    harness.unmount("umount", ".", env=device.site.env, cwd=device.at)
    assert not device.mounted
