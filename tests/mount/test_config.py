"""mount/config.py: -o strings, sizes, URLs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mount.config import (
    Options,
    make_config,
    merge,
    needs_insecure,
    normal_url,
    parse_options,
    parse_size,
)
from mount.failures import UsageFailure


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("20GiB", 20 << 30),
        ("20G", 20 << 30),
        ("20GB", 20 * 10**9),
        ("1.5 MiB", 3 << 19),
        ("500m", 500 << 20),
        ("7B", 7),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5", "GiB", "20 gigs", "1e9", "0.0001"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(UsageFailure, match="size"):
        parse_size(text)


def test_options_of_mount8_are_understood_or_passed_over() -> None:
    options = parse_options(["rw,noauto,_netdev,user=alice,x-systemd.automount,relatime", "ro"])
    assert options.read_only is True
    assert options.fuse_options == {"noexec", "nosuid", "nodev"}


def test_a_later_option_wins() -> None:
    assert parse_options(["ro,rw"]).read_only is False
    assert parse_options(["user,exec,dev"]).fuse_options == {"nosuid", "dev"}
    assert parse_options(["uid=5", "uid=6"]).uid == 6


def test_what_options_of_mount8_cancel_and_imply() -> None:
    for text, flags in (
        ("user", {"noexec", "nosuid", "nodev"}),
        ("owner,group", {"nosuid", "nodev"}),
        ("suid,dev,exec", {"suid", "dev"}),
        ("nosuid,suid", {"suid"}),
        ("suid,nosuid,dev,users", {"noexec", "nosuid", "nodev"}),
        ("sync,dirsync", {"sync", "dirsync"}),
        ("sync,async,defaults", set()),
    ):
        assert parse_options([text]).fuse_options == flags, text


def test_our_own_options() -> None:
    options = parse_options(
        [
            "uid=1000,gid=100,umask=027,allow_other,default_permissions,account=ann,state=/s,"
            "cache=/c,cache-size=1GiB,sync=remote,on-conflict=copy,insecure,symlinks=inside"
        ]
    )
    assert options == Options(
        account="ann",
        state=Path("/s"),
        cache=Path("/c"),
        cache_size=1 << 30,
        sync="remote",
        on_conflict="copy",
        symlinks="inside",
        insecure=True,
        uid=1000,
        gid=100,
        umask=0o027,
        fuse_options=frozenset({"allow_other", "default_permissions"}),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("allow_otter", "allow_otter"),
        ("uid=me", "uid=me"),
        ("umask=9", "umask=9"),
        ("sync=maybe", "local or remote"),
        ("account", "account"),
        ("state=", "state"),
        ("allow_other=1", "allow_other"),
        ("uid=4294967295", "up to 4294967294"),
        ("umask=1777", "octal"),
        ("metrics-port=65536", "65535"),
        ("nosymfollow", "nosymfollow"),
        ("remount", "unmount it"),
    ],
)
def test_a_bad_option_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageFailure) as caught:
        parse_options([f"ro,{text}"])
    assert named in str(caught.value)
    assert caught.value.exit_code == 2


def test_sloppy_passes_over_the_unknown_but_not_over_bad_values() -> None:
    assert parse_options(["ro,whatever=3"], sloppy=True).read_only is True
    with pytest.raises(UsageFailure):
        parse_options(["uid=x"], sloppy=True)


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=100)
def test_any_option_string_parses_or_is_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageFailure):
        assert isinstance(parse_options([text]), Options)


def test_flags_win_over_options() -> None:
    merged = merge(parse_options(["sync=remote,ro,allow_other"]), Options(sync="local"))
    assert (merged.sync, merged.read_only) == ("local", True)
    assert merged.fuse_options == {"allow_other"}


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
