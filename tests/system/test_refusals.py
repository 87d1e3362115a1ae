"""Whatever a person gets wrong: one line that says what to do, and nothing half-made."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import harness
from tests.system.harness import PASSWORD, Device, Site, run, wait_until


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    with harness.running() as site:
        yield site


@pytest.fixture
def device(place: Site) -> Iterator[Device]:
    device = place.device(f"d{len(place.devices)}")
    yield device
    if device.mounted:
        device.umount()


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """`done` failed with `code` and one line that has all of `words`."""
    assert done.returncode == code, done
    assert done.stderr.startswith("nearline: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def nothing_made(device: Device) -> None:
    assert not device.state.exists()
    assert not device.cache.exists()
    assert not device.mounted
    assert str(device.at) not in device.site.cli("status").stdout


def test_wrong_password(place: Site, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not it\n")
    where = place.server.url
    before = sorted(place.home.rglob("*"))
    for account, file in (("anna", wrong), ("nobody", place.password_file)):
        done = place.cli("login", where, "--account", account, "--password-file", file, check=False)
        refused(done, 1, account, "password", "try again")
    assert sorted(place.home.rglob("*")) == before


def test_an_account_that_is_not_logged_in(place: Site, device: Device) -> None:
    refused(device.mount("--account", "ben", check=False), 1, "ben", "nearline login")
    nothing_made(device)


def test_an_account_that_is_there_already(place: Site) -> None:
    words: list[str | Path] = ["--data", place.server.data, "--password-file", place.password_file]
    refused(place.cli("account", "add", "anna", *words, check=False), 1, "anna", "another name")


def test_an_unreachable_server(place: Site, device: Device) -> None:
    url = f"http://127.0.0.1:{harness.free_port()}"
    words: list[str | Path] = ["--account", "anna", "--password-file", place.password_file]
    refused(place.cli("login", url, *words, check=False), 1, "check the URL")
    device.at.mkdir()
    env = {**place.env, "NEARLINE_TOKEN": "a token"}
    where = ["--account", "anna", "--state", str(device.state), "--cache", str(device.cache)]
    command = [harness.nearline(), "mount", url, str(device.at), *where]
    done = run(*command, "--insecure", env=env, check=False)
    refused(done, 1, "check the URL and that the server runs")
    nothing_made(device)
    refused(run(*command, env=env, check=False), 1, "key", f"nearline login {url} --account anna")
    nothing_made(device)


def test_a_token_nobody_issued(place: Site, device: Device) -> None:
    device.at.mkdir()
    env = {**place.env, "NEARLINE_TOKEN": "made up"}
    where = ["--account", "anna", "--state", str(device.state), "--cache", str(device.cache)]
    done = run(
        harness.nearline(), "mount", place.server.url, device.at, *where, env=env, check=False
    )
    refused(done, 1, "token", "nearline login")
    nothing_made(device)


def test_http_to_another_machine(place: Site, device: Device) -> None:
    url = "http://files.example.org"
    words: list[str | Path] = ["--account", "anna", "--password-file", place.password_file]
    refused(place.cli("login", url, *words, check=False), 2, "TLS", "--insecure")
    device.at.mkdir()
    where = ["--account", "anna", "--state", str(device.state), "--cache", str(device.cache)]
    refused(place.cli("mount", url, device.at, *where, check=False), 2, "TLS", "--insecure")
    nothing_made(device)


def test_a_mountpoint_that_cannot_be_one(place: Site, device: Device, tmp_path: Path) -> None:
    device.at.mkdir()
    (device.at / "mine").write_text("kept")
    refused(device.mount(check=False), 1, "not empty")
    assert (device.at / "mine").read_text() == "kept"
    nothing_made(device)
    url = place.server.url
    refused(place.cli("mount", url, device.at / "mine", check=False), 1, "not a directory")
    refused(place.cli("mount", url, tmp_path / "none", check=False), 1, "mkdir -p")
    assert not (tmp_path / "none").exists()


def test_mounted_already_and_the_state_of_another_mount(place: Site, device: Device) -> None:
    device.mount()
    refused(device.mount(check=False), 1, "already mounted", "nearline umount")
    second = place.device(device.name + "x")
    second.at.mkdir()
    where = ["--state", str(device.state), "--cache", str(second.cache)]
    done = place.cli("mount", place.server.url, second.at, *where, check=False)
    refused(done, 1, f"the mount at {device.at}", "is using", "nearline umount", "--state")
    nothing_made(second)
    (device.at / "alive").write_text("still")
    assert (device.at / "alive").read_text() == "still"


def test_the_state_of_another_account(site: Site) -> None:
    device = site.device("a")
    device.mount()
    device.umount()
    words = ["--password-file", str(site.password_file)]
    site.cli("account", "add", "carl", "--data", site.server.data, *words)
    site.cli("login", site.server.url, "--account", "carl", *words)
    refused(device.mount("--account", "carl", check=False), 1, "belongs to anna", "--state")
    refused(device.mount(check=False), 2, "--account")
    device.mount("--account", "anna")


def test_nothing_to_unmount(place: Site, tmp_path: Path) -> None:
    refused(place.cli("umount", tmp_path, check=False), 1, "not mounted", "nearline status")
    refused(place.cli("flush", tmp_path, check=False), 1, "not in a Nearline mount")


def test_an_option_nobody_knows(place: Site, device: Device) -> None:
    refused(device.mount("-o", "rw,colour=blue", check=False), 2, "colour")
    refused(device.mount("--cache-size", "many", check=False), 2, "many")
    refused(place.cli("mout", check=False), 2, "--help")
    nothing_made(device)


def test_a_state_directory_that_cannot_be_made(place: Site, device: Device) -> None:
    device.at.mkdir()
    words = ["--state", str(place.password_file / "below"), "--cache", str(device.cache)]
    refused(place.cli("mount", place.server.url, device.at, *words, check=False), 1, "--state")
    nothing_made(device)


def test_a_second_server_and_a_port_that_is_taken(place: Site, tmp_path: Path) -> None:
    data, address = place.server.data, place.server.address
    done = place.cli("serve", "--data", data, "--listen", "127.0.0.1:0", check=False)
    refused(done, 1, "another server is running")
    done = place.cli("serve", "--data", tmp_path / "new", "--listen", address, check=False)
    refused(done, 1, "cannot listen", address)
    refused(place.cli("serve", "--data", tmp_path, "--listen", "nowhere", check=False), 2, "HOST")


def test_a_read_only_mount(place: Site, device: Device) -> None:
    device.mount("--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (device.at / "file").write_text("no")
    assert PASSWORD not in str(device.status())


def test_mount_of_type_nearline(place: Site, device: Device, tmp_path: Path) -> None:
    """mount(8) looks for its helper in /sbin only: it is put there for a mount namespace of our
    own, as `make install-helper` does for everybody."""
    if os.getuid() != 0:
        pytest.skip("only root may make a mount namespace")
    device.at.mkdir()
    helper = tmp_path / "mount.nearline"
    # mount(8) gives its helper next to no environment; a root of this site has the site's home.
    home = " ".join(f"{name}={place.env[name]}" for name in ("HOME", "XDG_RUNTIME_DIR"))
    path = f"PYTHONPATH={place.env.get('PYTHONPATH', '')}"
    python = f"{sys.executable} -P -m mount.cli.mount_helper"
    helper.write_text(f'#!/bin/sh\nexec env {home} {path} {python} "$@"\n')
    helper.chmod(0o755)
    options = f"rw,account=anna,state={device.state},cache={device.cache}"
    mount = f"mount -t nearline {place.server.url} {device.at} -o {options}"
    script = f"""
        mount -t overlay overlay -o lowerdir={tmp_path}:/usr/sbin /usr/sbin
        {mount}
        echo through the helper > {device.at}/file
        findmnt --noheadings --output FSTYPE {device.at}
        if {mount}; then exit 3; fi
        {harness.nearline()} umount {device.at}
        """
    done = run(
        *("unshare", "--mount", "--propagation", "private", "sh", "-ec", script), env=place.env
    )
    assert done.stdout.split() == ["fuse.nearline"]
    assert "mount.nearline: " in done.stderr
    assert "already mounted" in done.stderr
    device.mount()
    assert (device.at / "file").read_text() == "through the helper\n"


def test_without_dev_fuse(place: Site, device: Device) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may make a mount namespace")
    device.at.mkdir()
    words = [harness.nearline(), "mount", place.server.url, str(device.at)]
    words += ["--state", str(device.state), "--cache", str(device.cache)]
    script = f"mount -t tmpfs tmpfs /dev; mknod /dev/null c 1 3; exec {' '.join(words)}"
    done = run(
        *("unshare", "--mount", "--propagation", "private", "sh", "-ec", script),
        env=place.env,
        check=False,
    )
    refused(done, 1, "there is no /dev/fuse", "modprobe fuse")
    nothing_made(device)


# --- what the server refuses ----------------------------------------------------------------------


def flush_fails(device: Device) -> str:
    """Why; the lines before the last one are its progress."""
    done = device.site.cli("flush", device.at, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_refused_for_good_is_shown_kept_and_tried_again(place: Site) -> None:
    """Two devices give a file more attributes together than it may have."""
    a, b = place.device("ra"), place.device("rb")
    a.mount()
    b.mount()
    (a.at / "dir").mkdir()
    (a.at / "dir" / "file").write_text("x")
    a.flush()
    b.sees("dir/file")
    place.server.stop()
    for device in (a, b):
        for number in range(9):
            os.setxattr(device.at / "dir" / "file", f"user.{device.name}{number}", bytes(64 << 10))
    a.umount("--now")
    place.server.start()
    b.flush()
    a.mount()
    assert "refused" in flush_fails(a)
    shown = a.status()["refused"]
    assert {(item["path"], item["operation"]) for item in shown} == {("dir/file", "setxattr")}
    assert all(item["error"].startswith("too_large: ") and item["advice"] for item in shown)
    assert os.getxattr(a.at / "dir" / "file", "user.nearline.status") == b"error"
    (a.at / "another").write_text("goes on")
    b.sees("another", b"goes on")
    told = place.cli("status", a.at).stdout
    assert "refused" in told
    assert "what to do" in told
    examined = place.cli("doctor", check=False)
    assert examined.returncode == 1
    assert f"setxattr of {a.at}/dir/file" in examined.stdout

    again = place.cli("retry", a.at / "dir", check=False)
    assert again.returncode == 1
    assert "nearline: refused again: dir/file (too_large: " in again.stderr
    assert len(a.status()["refused"]) == len(shown)
    a.kill()
    a.umount()
    a.mount()
    assert len(a.status()["refused"]) == len(shown)
    for number in range(9):
        os.removexattr(b.at / "dir" / "file", f"user.rb{number}")
    b.flush()
    assert "has taken" in place.cli("retry", a.at).stdout
    assert place.cli("retry", a.at / "dir" / "file").stdout == "nothing was refused\n"
    assert a.status()["refused"] == []
    a.flush()
    wait_until(lambda: len(os.listxattr(b.at / "dir" / "file")) == 9, "b has those of a")
    assert place.cli("doctor").returncode == 0
    a.umount()
    b.umount()


def test_a_name_that_was_refused_is_settled_by_another(place: Site) -> None:
    """Also what was waiting behind it goes; and what is deleted needs nothing more."""
    a, b = place.device("na"), place.device("nb")
    a.mount()
    place.server.stop()
    for name in ("one", "two"):
        (a.at / name).mkdir()
        for number in range(16):
            os.setxattr(a.at / name, f"user.{number}", bytes(64 << 10))
        (a.at / name / "inside").write_text(name)
    a.umount("--now")
    with sqlite3.connect(a.state / "tree.sqlite") as state:  # ours looks at the limit before
        state.execute("INSERT INTO xattr SELECT ino, 'user.16', x'00' FROM xattr GROUP BY ino")
    state.close()
    place.server.start()
    a.mount()
    assert "2 changes were refused" in flush_fails(a)
    assert [item["waiting"] > 0 for item in a.status()["refused"]] == [True, True]
    (a.at / "two" / "inside").unlink()
    (a.at / "two").rmdir()
    os.removexattr(a.at / "one", "user.1")
    (a.at / "one").rename(a.at / "three")
    a.flush()
    assert a.status()["refused"] == []
    b.mount()
    assert b.sees("three/inside", b"one")
    assert not (b.at / "two").exists()
    a.umount()
    b.umount()
