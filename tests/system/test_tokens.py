"""Tokens that may do less, mounted."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from tests.system.harness import ACCOUNT, Device, Site, noise, wait_until


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
    wait_until(lambda: b.status()["state"] == "offline", "the lost device is out")
    assert "log in" in b.status()["reason"]
    with pytest.raises(OSError, match=r"Permission|unreachable"):
        (b.at / "page").read_bytes()


def test_a_token_of_somebody_else_is_not_kept(site: Site) -> None:
    site.person("ben")
    a = site.device("a", "--account", ACCOUNT)
    a.mount()
    file = token(site, a, "mine")
    words = ["login", site.server.url, "--account", "ben", "--token-file", str(file)]
    refused = site.cli(*words, check=False)
    assert refused.returncode == 1
    assert f"of the account {ACCOUNT}, not of ben" in refused.stderr
