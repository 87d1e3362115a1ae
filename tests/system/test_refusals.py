"""Whatever a person gets wrong: one line that says what to do, and nothing half-made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import harness
from tests.system.harness import PASSWORD, Device, Site, run


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    with harness.running() as site:
        yield site


@pytest.fixture
def device(place: Site, request: pytest.FixtureRequest) -> Iterator[Device]:
    device = place.device(f"d{abs(hash(request.node.name)) % 10**8}")
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
    words = ["--data", place.server.data, "--password-file", place.password_file]
    refused(place.cli("account", "add", "anna", *words, check=False), 1, "anna", "another name")


def test_an_unreachable_server(place: Site, device: Device) -> None:
    url = f"http://127.0.0.1:{harness.free_port()}"
    words = ["--account", "anna", "--password-file", place.password_file]
    refused(place.cli("login", url, *words, check=False), 1, "check the URL")
    device.at.mkdir()
    env = {**place.env, "NEARLINE_TOKEN": "a token"}
    where = ["--account", "anna", "--state", device.state, "--cache", device.cache]
    done = run(harness.nearline(), "mount", url, device.at, *where, env=env, check=False)
    refused(done, 1, "check the URL and that the server runs")
    nothing_made(device)


def test_something_else_answers_there(place: Site, device: Device) -> None:
    """A token nobody issued."""
    device.at.mkdir()
    env = {**place.env, "NEARLINE_TOKEN": "made up"}
    where = ["--account", "anna", "--state", device.state, "--cache", device.cache]
    done = run(
        harness.nearline(), "mount", place.server.url, device.at, *where, env=env, check=False
    )
    refused(done, 1, "token", "nearline login")
    nothing_made(device)


def test_http_to_another_machine(place: Site, device: Device) -> None:
    url = "http://files.example.org"
    words = ["--account", "anna", "--password-file", place.password_file]
    refused(place.cli("login", url, *words, check=False), 2, "TLS", "--insecure")
    device.at.mkdir()
    where = ["--account", "anna", "--state", device.state, "--cache", device.cache]
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
    refused(done, 1, "another mount is using", "--state")
    nothing_made(second)
    (device.at / "alive").write_text("still")
    assert (device.at / "alive").read_text() == "still"


def test_the_state_of_another_account(place: Site, device: Device) -> None:
    device.mount()
    device.umount()
    words = ["--password-file", place.password_file]
    place.cli("account", "add", "carl", "--data", place.server.data, *words)
    place.cli("login", place.server.url, "--account", "carl", *words)
    try:
        done = device.mount("--account", "carl", check=False)
        refused(done, 1, "belongs to anna", "--state")
        refused(device.mount(check=False), 2, "--account")
    finally:
        for name in ("logins.json",):
            logins = place.home / ".config/nearline/credentials" / name
            text = logins.read_text()
            logins.write_text(
                text[: text.index("{")] + text[text.index("{") : text.index("}") + 1] + "]"
            )
    device.mount()


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


@pytest.mark.parametrize("how", ["module", "mount(8)"])
def test_mount_as_mount_8_does(place: Site, device: Device, tmp_path: Path, how: str) -> None:
    """mount(8) looks for its helper in /sbin only, so there it is called as mount(8) calls it,
    through the installed script."""
    device.at.mkdir()
    options = f"rw,account=anna,state={device.state},cache={device.cache}"
    helper = tmp_path / "mount.nearline"
    python = Path(harness.nearline()).with_name("python")
    helper.write_text(f'#!/bin/sh\nexec {python} -P -m mount.helper "$@"\n')
    helper.chmod(0o755)
    if how == "mount(8)":
        run(
            "unshare", "--mount", "--propagation", "unchanged", "true"
        )  # a namespace of our own is possible here
        installed = Path("/sbin/mount.nearline")
        if installed.exists():
            helper = installed
    run(helper, place.server.url, device.at, "-o", options, env=place.env)
    assert device.mounted
    (device.at / how.replace("(", "")).write_text("through the helper")
    done = run(helper, place.server.url, device.at, "-o", options, env=place.env, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("mount.nearline: ")
    assert "already mounted" in done.stderr
    assert os.listdir(device.at)
