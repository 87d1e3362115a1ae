"""mount/options.py: what is said with -o and flags."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mount.failures import UsageFailure
from mount.options import MAX_TRANSFERS, OPTIONS, Options, parse_options, with_flags
from remote.transfer.limits import TRANSFERS


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
            "cache=/c,cache-size=1GiB,sync=remote,on-conflict=copy,insecure,symlinks=inside,"
            "upload-limit=2M,download-limit=500kB,transfers=4"
        ]
    )
    assert options == Options(
        account="ann",
        state_dir=Path("/s"),
        cache_dir=Path("/c"),
        cache_size=1 << 30,
        upload_limit=2 << 20,
        download_limit=500_000,
        transfers=4,
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
    flags = {"sync": "local", "read_only": False, "cache_size": "1G", "state_dir": None}
    options = with_flags(parse_options(["sync=remote,ro,allow_other,state=/s"]), flags)
    assert (options.sync, options.read_only, options.cache_size) == ("local", True, 1 << 30)
    assert options.fuse_options == {"allow_other"}
    assert options.state_dir == Path("/s")


def test_a_flag_with_a_value_that_cannot_be_is_named() -> None:
    with pytest.raises(UsageFailure, match="huge"):
        with_flags(Options(), {"cache_size": "huge"})


def test_what_is_not_said_is_the_default() -> None:
    assert parse_options([]) == Options()
    assert with_flags(Options(), dict.fromkeys(OPTIONS)) == Options()


def test_limits_of_transfers() -> None:
    fstab = parse_options(["upload-limit=2M,download-limit=off"])
    assert (fstab.upload_limit, fstab.download_limit, fstab.transfers) == (2 << 20, None, 16)
    assert with_flags(fstab, {"upload_limit": "off"}).upload_limit is None
    assert MAX_TRANSFERS == TRANSFERS
    for wrong in ("upload-limit=fast", "download-limit=1K", "transfers=0", "transfers=17"):
        with pytest.raises(UsageFailure, match=wrong.partition("=")[0]):
            parse_options([wrong])
