"""Tokens that may do less, mounted."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from tests.system.harness import ACCOUNT, Device, Site, noise


def token(site: Site, device: Device, name: str, *options: str) -> Path:
    """A token that `device` makes, in a file."""
    made = site.cli("devices", "add", name, str(device.at), *options, "--json").stdout
    file = site.base / f"token-{name}"
    file.write_text(json.loads(made)["token"] + "\n")
    return file


def keep(site: Site, file: Path) -> None:
    """Log in with it, in place of the password's token."""
    site.cli("login", site.server.url, "--account", ACCOUNT, "--token-file", str(file))


def test_a_token_for_one_folder_mounts_that_folder(site: Site) -> None:
    a, b = site.device("a"), site.device("b")
    a.mount()
    folder = a.at / "folder"
    folder.mkdir()
    (folder / "inside").write_bytes(b"within reach")
    (a.at / "outside").write_bytes(b"out of reach")
    a.flush()
    keep(site, token(site, a, "camera", "--folder", str(folder)))
    b.mount()
    assert b.sees("inside", b"within reach").parent == b.at
    assert [path.name for path in b.at.iterdir()] == ["inside"]
    (b.at / "picture").write_bytes(noise(400_000))
    b.flush()
    a.sees("folder/picture", noise(400_000))
    (folder / "inside").rename(a.at / "moved out")
    b.misses("inside")


def test_a_token_for_reading_mounts_read_only(site: Site) -> None:
    a, b = site.device("a"), site.device("b")
    a.mount()
    (a.at / "page").write_bytes(b"words")
    a.flush()
    keep(site, token(site, a, "screen", "--read-only"))
    b.mount()
    page = b.sees("page", b"words")
    with pytest.raises(OSError, match="Read-only") as refused:
        page.write_bytes(b"x")
    assert refused.value.errno == errno.EROFS
    with pytest.raises(OSError, match="Read-only"):
        (b.at / "new").mkdir()


def test_a_revoked_device_is_out_at_once(site: Site) -> None:
    a, b = site.device("a"), site.device("b")
    a.mount()
    (a.at / "page").write_bytes(noise(300_000))
    a.flush()
    keep(site, token(site, a, "lost"))
    b.mount()
    b.sees("page")
    site.cli("devices", "revoke", "lost", str(a.at))
    b.goes_offline()
    assert "log in" in b.status()["reason"]
    with pytest.raises(OSError, match=r"Permission|unreachable"):
        (b.at / "page").read_bytes()


def test_a_refused_mount_takes_the_new_login_and_loses_nothing(site: Site) -> None:
    a, b = site.device("a", "--account", ACCOUNT), site.device("b", "--account", ACCOUNT)
    a.mount()
    keep(site, token(site, a, "lost"))
    b.mount()
    site.cli("devices", "revoke", "lost", str(a.at))
    b.goes_offline()
    assert "log in" in b.status()["reason"]
    assert f"{b.at} does not know that its token is good" in site.cli("doctor", check=False).stdout
    (b.at / "written").write_bytes(b"while it was out")
    said = site.cli("login", site.server.url, "--account", ACCOUNT, *site.by_password).stdout
    assert f"{b.at} goes on with the login that is kept" in said
    assert f"{a.at} goes on with its own token" in said
    b.flush()
    a.sees("written", b"while it was out")
    b.comes_online()
    assert f"{b.at} goes on with the login that is kept" in site.cli("doctor", check=False).stdout
    site.person("ben")
    site.cli("devices", "revoke", "lost", str(a.at), check=False)
    said = site.cli("login", site.server.url, "--account", "ben", *site.by_password).stdout
    assert f"{b.at} is of {ACCOUNT} and stays so" in said
    assert b.status()["state"] == "online"


def test_after_a_restored_backup_a_mount_goes_on_with_a_new_login(site: Site) -> None:
    """The server knows neither the device nor its token any more. Nobody tells the mount: it reads
    the kept token again."""
    site.server.stop()
    backup = site.base / "backup"
    shutil.copytree(site.server.data, backup)
    site.server.start()
    a, b = site.device("a"), site.device("b")
    a.mount()
    keep(site, token(site, a, "new"))
    a.umount()
    b.mount()
    site.server.stop()
    (b.at / "written").write_bytes(b"while it was away")
    shutil.rmtree(site.server.data)
    shutil.copytree(backup, site.server.data)
    site.server.start()
    site.login()
    b.flush()
    a.mount()
    a.sees("written", b"while it was away")


def test_a_token_of_somebody_else_is_not_kept(site: Site) -> None:
    site.person("ben")
    a = site.device("a", "--account", ACCOUNT)
    a.mount()
    file = token(site, a, "mine")
    words = ["login", site.server.url, "--account", "ben", "--token-file", str(file)]
    refused = site.cli(*words, check=False)
    assert refused.returncode == 1
    assert f"of the account {ACCOUNT}, not of ben" in refused.stderr
