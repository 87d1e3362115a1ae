"""Processes that die, machines without a network, and that nothing saved is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import Device, Site, noise, run, wait_until


@pytest.fixture
def device(site: Site) -> Device:
    device = site.device("a")
    device.mount()
    return device


def another(site: Site) -> Device:
    """Another device, which knows nothing yet and shows what is on the server."""
    device = site.device("another")
    device.mount()
    return device


def fails_with(path: Path) -> int:
    """The errno that opening and reading `path` ends with."""
    with pytest.raises(OSError, match=r".") as failed:
        path.read_bytes()
    assert failed.value.errno is not None
    return failed.value.errno


def test_a_server_that_is_killed_comes_back_and_has_everything(site: Site, device: Device) -> None:
    before, during, large = noise(3_000_000, 1), noise(2_000_000, 2), noise(30_000_000, 3)
    (device.at / "before").write_bytes(before)
    device.flush()
    (device.at / "large").write_bytes(large)
    site.server.kill()
    device.goes_offline()
    (device.at / "during").write_bytes(during)
    (device.at / "dir").mkdir()
    (device.at / "before").rename(device.at / "dir" / "moved")
    assert (device.at / "dir" / "moved").read_bytes() == before
    assert device.status()["journal"]["operations"] > 0
    site.server.start()
    device.comes_online()
    device.flush()
    other = another(site)
    assert (other.at / "dir" / "moved").read_bytes() == before
    assert (other.at / "during").read_bytes() == during
    assert (other.at / "large").read_bytes() == large
    assert not (other.at / "before").exists()


def test_a_killed_mount_is_cleaned_up_and_mounted_again_with_everything(
    site: Site, device: Device
) -> None:
    """All that the kernel acknowledged is there, sent or not: the server is away meanwhile."""
    (device.at / "sent").write_text("sent")
    device.flush()
    site.server.stop()
    content = noise(5_000_000, 4)
    (device.at / "closed").write_bytes(content)
    (device.at / "dir").mkdir()
    (device.at / "sent").rename(device.at / "dir" / "kept")
    (device.at / "link").symlink_to("dir")
    os.setxattr(device.at / "closed", "user.a", b"b")
    device.kill()
    assert fails_with(device.at / "closed") in (errno.ENOTCONN, errno.ECONNABORTED)
    refused = device.mount(check=False)
    assert refused.returncode == 1
    assert "nearline umount" in refused.stderr
    site.server.start()
    cleaned = device.umount()
    assert "kept" in cleaned.stdout
    assert not device.mounted
    device.mount()
    for _again in range(2):
        assert (device.at / "closed").read_bytes() == content
        assert (device.at / "dir" / "kept").read_text() == "sent"
        assert os.readlink(device.at / "link") == "dir"
        assert os.getxattr(device.at / "closed", "user.a") == b"b"
        device.flush()
        device = another(site) if _again == 0 else device


def test_a_mount_killed_in_the_middle_of_uploads_goes_on(site: Site, device: Device) -> None:
    contents = {f"file{number}": noise(4_000_000, 10 + number) for number in range(8)}
    for name, content in contents.items():
        (device.at / name).write_bytes(content)
    wait_until(lambda: device.uploaded > 0, "uploads have begun")
    device.kill()
    device.umount()
    device.mount()
    device.flush()
    assert device.status()["refused"] == []
    other = another(site)
    assert sorted(os.listdir(other.at)) == sorted(contents)
    for name, content in contents.items():
        assert (other.at / name).read_bytes() == content, name


def test_fsynced_bytes_of_an_open_file_survive_the_mount(site: Site, device: Device) -> None:
    descriptor = os.open(device.at / "open", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"fsynced")
        os.fsync(descriptor)
        device.kill()
    finally:
        with contextlib.suppress(OSError):  # nobody answers any more
            os.close(descriptor)
    device.umount()
    device.mount()
    assert (device.at / "open").read_bytes() == b"fsynced"


def test_a_mount_without_the_server(site: Site, device: Device) -> None:
    """It starts, reads what it has, fails at once for what it has not, journals what is written."""
    cached, cold = noise(1_000_000, 5), noise(1_000_000, 6)
    writer = another(site)
    (writer.at / "unseen").mkdir()
    (writer.at / "unseen" / "file").write_text("nobody has looked here")
    (writer.at / "dir").mkdir()
    (writer.at / "dir" / "cached").write_bytes(cached)
    (writer.at / "dir" / "cold").write_bytes(cold)
    writer.flush()
    device.sees("dir/cold")
    assert device.sees("dir/cached", cached)
    (device.at / "waiting").write_text("before the mount")
    site.server.kill()
    writer.umount("--now")
    device.umount("--now")
    device.mount()
    device.goes_offline()
    assert sorted(os.listdir(device.at)) == ["dir", "unseen", "waiting"]
    with pytest.raises(OSError, match="Network is unreachable"):
        os.listdir(device.at / "unseen")
    assert (device.at / "dir" / "cached").read_bytes() == cached
    assert (device.at / "waiting").read_text() == "before the mount"
    assert (device.at / "dir" / "cold").stat().st_size == len(cold)
    assert fails_with(device.at / "dir" / "cold") == errno.ENETUNREACH
    run("df", device.at, seconds=10)
    (device.at / "dir" / "offline").write_text("written offline")
    (device.at / "dir" / "cached").write_bytes(b"overwritten")
    (device.at / "dir" / "cold").rename(device.at / "cold")
    site.server.start()
    device.comes_online()
    device.flush()
    assert (device.at / "cold").read_bytes() == cold
    writer.mount()
    writer.sees("dir/offline", b"written offline")
    writer.sees("dir/cached", b"overwritten")
    writer.sees("waiting", b"before the mount")
    writer.sees("cold", cold)


def test_a_file_deleted_elsewhere_while_it_was_changed_here_comes_back(site: Site) -> None:
    a, b = site.device("a"), site.device("b")
    a.mount()
    b.mount()
    (a.at / "file").write_bytes(noise(1_500_000, 7))
    b.sees("file")
    site.server.kill()
    b.goes_offline()
    a.goes_offline()
    a.umount("--now")
    changed = noise(1_600_000, 8)
    (b.at / "file").write_bytes(changed)
    b.umount("--now")
    site.server.start()
    a.mount()
    (a.at / "file").unlink()
    a.flush()
    b.mount()
    b.flush()
    assert b.status()["refused"] == []
    assert os.listdir(b.at) == ["file"]
    assert (b.at / "file").read_bytes() == changed
    a.sees("file", changed)


def test_a_folder_that_was_removed_elsewhere_is_made_anew_around_new_files(site: Site) -> None:
    a, b = site.device("a"), site.device("b")
    a.mount()
    b.mount()
    (a.at / "project" / "deep").mkdir(parents=True)
    (a.at / "project" / "old").write_bytes(b"old")
    b.sees("project/old", b"old")
    b.sees("project/deep")
    assert os.listdir(b.at / "project" / "deep") == []
    b.umount()
    site.server.kill()
    b.mount()
    wanted = {f"project/deep/{number}": noise(1000, number) for number in range(100)}
    for path, data in wanted.items():
        (b.at / path).write_bytes(data)
    b.umount("--now")
    site.server.start()
    shutil.rmtree(a.at / "project")
    a.flush()
    b.mount()
    b.flush()
    assert b.status()["refused"] == []
    assert os.listdir(b.at) == ["project"]
    assert os.listdir(b.at / "project") == ["deep"]
    a.sees("project/deep/99", wanted["project/deep/99"])
    assert {f"project/deep/{name}" for name in os.listdir(a.at / "project/deep")} == set(wanted)
    assert all((a.at / path).read_bytes() == data for path, data in wanted.items())
    listed = json.loads(site.cli("trash", "list", a.at, "--json").stdout)["items"]
    assert [(item["path"], item["inside"]) for item in listed] == [("project", 2)]


def test_a_signal_ends_the_mount_in_order(site: Site, device: Device) -> None:
    (device.at / "file").write_text("x")
    os.kill(device.pid, signal.SIGTERM)
    wait_until(lambda: not device.mounted, "unmounted")
    wait_until(lambda: len(site.processes()) == 1, "only the server is left")
    assert os.listdir(device.at) == []
    device.mount()
    assert (device.at / "file").read_text() == "x"


def test_umount_waits_for_the_journal_and_now_leaves_it(site: Site, device: Device) -> None:
    large = noise(20_000_000, 9)
    (device.at / "large").write_bytes(large)
    device.umount()
    other = another(site)
    assert (other.at / "large").read_bytes() == large
    device.mount()
    site.server.stop()
    (device.at / "later").write_bytes(large[:5_000_000])
    late = device.umount("--timeout", "0.5", check=False)
    assert late.returncode == 1
    assert "does not have everything" in late.stderr.splitlines()[-1]
    assert device.mounted
    flushed = site.cli("flush", device.at, "--timeout", "0.5", check=False)
    assert flushed.returncode == 1
    device.umount("--now")
    assert not device.mounted
    site.server.start()
    device.mount()
    device.flush()
    other.sees("later", large[:5_000_000])


def test_a_busy_mount_is_not_unmounted_and_the_holder_is_named(site: Site, device: Device) -> None:
    (device.at / "file").write_text("held")
    holder = subprocess.Popen(
        ["sleep", "60"], stdin=(device.at / "file").open(), stdout=subprocess.DEVNULL
    )
    try:
        for more in ([], ["--now"]):
            busy = device.umount(*more, check=False)
            assert busy.returncode == 1
            assert f"sleep ({holder.pid})" in busy.stderr
            assert (device.at / "file").read_text() == "held"
    finally:
        holder.kill()
        holder.wait()
    device.umount()
    assert not device.mounted
    assert site.cli("status").stdout.startswith("Nothing is mounted")


def write_and_sync(descriptor: int, mebibytes: int) -> None:
    """The kernel writes back later, so a full disk may be told at fsync only."""
    for number in range(mebibytes):
        os.write(descriptor, noise(1 << 20, number))
    os.fsync(descriptor)


def test_a_full_disk_is_an_error_of_the_write_and_of_nothing_else(site: Site) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may mount a small file system")
    device = site.device("a")
    device.state.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", device.state)
    try:
        device.mount()
        (device.at / "kept").write_text("kept")
        device.flush()
        site.server.stop()
        descriptor = os.open(device.at / "large", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match=r"No space left"):
            write_and_sync(descriptor, 40)
        with contextlib.suppress(OSError):  # it may be told once more
            os.close(descriptor)
        assert (device.at / "kept").read_text() == "kept"
        (device.at / "large").unlink()
        site.server.start()
        (device.at / "after").write_text("there is room again")
        device.flush()
        device.umount()
        device.mount()
        assert sorted(os.listdir(device.at)) == ["after", "kept"]
        assert (device.at / "after").read_text() == "there is room again"
        device.umount("--now")
    finally:
        if device.mounted:
            device.umount("--now", check=False)
        run("umount", "-l", device.state)
