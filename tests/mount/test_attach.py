"""What mount(2) and fusermount3 are given."""

from pathlib import Path

import pytest

from mount import attach
from mount.config import FUSE_FLAGS

URL = "http://host:1/a,b\\c"


def test_mount_2_has_no_set_user_id_programs_and_devices_unless_they_are_asked_for() -> None:
    assert attach.mount_flags(set()) == 2 | 4
    assert attach.mount_flags({"suid", "dev"}) == 0
    assert attach.mount_flags({"ro", "noexec", "sync", "dirsync", "nosuid"}) == 1 | 2 | 4 | 8 | 144


def test_libfuse_keeps_others_out_itself_where_only_root_is_let_in() -> None:
    assert attach.kernel_options({"allow_root", "default_permissions", "ro"}) == [
        "allow_other",
        "default_permissions",
    ]


def test_fusermount3_wants_commas_and_backslashes_escaped() -> None:
    assert attach.fusermount_options({"ro", "default_permissions"}, URL, "nearline") == (
        "ro,nosuid,nodev,default_permissions,fsname=http://host:1/a\\,b\\\\c,subtype=nearline"
    )


def test_every_option_that_a_mount_can_have_is_known_here() -> None:
    for name in FUSE_FLAGS | {"ro"}:
        attach.fusermount_options({name}, URL, "nearline")
        assert attach.mount_flags({name}) or attach.kernel_options({name}), name


def test_an_option_that_is_not_known_is_left_to_libfuse(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not supported"):
        attach.attach(tmp_path, {"blksize=512"}, URL, "nearline")


def test_what_cannot_be_mounted_leaves_no_descriptor(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    with pytest.raises(OSError, match=r"No such file|fusermount3"):
        attach.attach(tmp_path / "missing", {"default_permissions"}, URL, "nearline")
    assert descriptors() == before
