"""mount/config.py: URLs, and where a mount's state is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mount.config import make_config, needs_insecure, normal_url
from mount.failures import UsageFailure
from mount.options import Options, parse_options


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://Files.Example.org/", "https://files.example.org"),
        ("https://h:443", "https://h"),
        ("http://127.0.0.1:8750", "http://127.0.0.1:8750"),
        ("http://[::1]:80/", "http://[::1]"),
        ("https://h/base/", "https://h/base"),
    ],
)
def test_one_server_has_one_url(url: str, normal: str) -> None:
    assert normal_url(url) == normal == normal_url(normal)


@pytest.mark.parametrize(
    "url", ["", "host", "ftp://h", "https://", "https://h:x", "https://u:p@h", "https://h/?q=1"]
)
def test_what_is_no_server_url_is_refused(url: str) -> None:
    with pytest.raises(UsageFailure):
        normal_url(url)


def test_only_plain_http_to_another_machine_is_insecure() -> None:
    assert needs_insecure("http://files.example.org")
    assert needs_insecure("http://127.0.0.1.example.org")
    assert not needs_insecure("https://files.example.org")
    assert not needs_insecure("http://localhost:1")
    assert not needs_insecure("http://nas.localhost:1")


def test_defaults_are_private_to_mountpoint_and_url(home: Path) -> None:
    one = make_config("http://localhost:1", Path("/a"), "ann", Options())
    two = make_config("http://localhost:1", Path("/b"), "ann", Options())
    again = make_config("http://LOCALHOST:1/", Path("/a"), "ann", Options())
    assert one == again
    assert one.state_dir != two.state_dir
    assert one.cache_dir != two.cache_dir
    assert one.state_dir.is_relative_to(home)
    assert one.state_dir.is_absolute()


def test_read_only_reaches_fuse() -> None:
    config = make_config("http://localhost:1", Path("/a"), "ann", parse_options(["ro"]))
    assert config.read_only
    assert "ro" in config.fuse_options
