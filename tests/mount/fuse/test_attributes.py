"""Nodes as the kernel sees them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cache.metadata.tree import Node
from mount.fuse.attributes import (
    FIRST_NS,
    KINDS,
    LAST_NS,
    TYPE_BITS,
    Ownership,
    attributes,
    is_bare,
    kept_time,
    missing,
    takes_setid,
    without_setid,
)
from tests.cache.state import State

ANYBODY = Ownership(None, None, 0)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def test_every_kind_has_its_type_bits(state: State) -> None:
    for kind in ("file", "directory", "symlink", "fifo", "socket", "char", "block"):
        node = state.make(kind, kind)  # type: ignore[arg-type]  # each is a Kind
        entry = attributes(node, ANYBODY)
        assert KINDS[stat.S_IFMT(entry.st_mode)] == kind
        assert stat.S_IMODE(entry.st_mode) == 0o644
    assert len(set(TYPE_BITS.values())) == len(TYPE_BITS) == 7


def test_whose_files_they_seem_to_be() -> None:
    assert Ownership.of(None, None, None, 0, 0) == Ownership(None, None, 0)  # root: the real owners
    assert Ownership.of(None, None, 0o22, 1000, 100) == Ownership(1000, 100, 0o22)
    assert Ownership.of(5, None, None, 1000, 100) == Ownership(5, 100, 0)
    assert Ownership.of(5, 6, None, 0, 0) == Ownership(5, 6, 0)


def test_ownership_and_umask_show(state: State) -> None:
    node = state.make("a")
    entry = attributes(node, ANYBODY)
    assert (entry.st_uid, entry.st_gid) == (1000, 1000)
    entry = attributes(node, Ownership(7, 8, 0o27))
    assert (entry.st_uid, entry.st_gid, stat.S_IMODE(entry.st_mode)) == (7, 8, 0o640)


def test_sizes_links_and_times(state: State) -> None:
    node = state.make("s", "symlink")
    node.target = "ä"
    assert attributes(node, ANYBODY).st_size == 2
    directory: Node = state.make("d", "directory")
    state.make("e", "directory", parent=directory.ino)
    directory = state.tree.node(directory.ino)
    assert attributes(directory, ANYBODY).st_nlink == 3
    directory.live = False
    assert attributes(directory, ANYBODY).st_nlink == 0
    file = state.make("f")
    file.size, file.mtime_ns, file.atime_ns, file.ctime_ns = 513, 1, 2, 3
    entry = attributes(file, ANYBODY)
    assert (entry.st_blocks, entry.st_mtime_ns, entry.st_atime_ns, entry.st_ctime_ns) == (
        8,
        1,
        2,
        3,
    )
    assert attributes(file, ANYBODY, stored=0).st_blocks == 0
    assert attributes(file, ANYBODY, stored=4097).st_blocks == 16
    assert (entry.st_ino, entry.st_nlink, entry.generation) == (file.ino, 1, 0)


def test_what_is_not_there_may_be_remembered() -> None:
    entry = missing(60.0)
    assert (entry.st_ino, entry.entry_timeout) == (0, 60.0)


def test_only_directories_that_were_listed_have_a_link_count(state: State) -> None:
    directory = state.make("d", "directory")
    directory.listed = None
    assert attributes(directory, ANYBODY).st_nlink == 1


def test_what_the_umask_hides_chmod_leaves(state: State) -> None:
    """Somebody with umask=077 makes a script executable, and takes nothing from anybody else."""
    node = state.make("a")
    assert node.mode == 0o644
    assert Ownership(7, 8, 0o077).mode(node, 0o700) == 0o744
    assert Ownership(7, 8, 0).mode(node, 0o700) == 0o700


def test_another_owner_than_everything_has_is_refused() -> None:
    drive, ours = Ownership(None, None, 0), Ownership(7, 8, 0)
    assert drive.owners(1, 2) == {"uid": 1, "gid": 2}
    assert drive.owners(None, None) == {}
    assert ours.owners(7, 8) == ours.owners(None, None) == {}
    for uid, gid in ((1, None), (None, 1), (7, 1)):
        with pytest.raises(PermissionError):
            ours.owners(uid, gid)
    assert Ownership(7, None, 0).owners(7, 5) == {"gid": 5}


def test_every_time_asked_for_is_one_that_is_kept() -> None:
    assert [kept_time(ns) for ns in (-5, 0, 1 << 80, -1 << 80)] == [-5, 0, LAST_NS, FIRST_NS]


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6755, 0o755), (0o4644, 0o644), (0o2644, 0o2644), (0o2674, 0o674), (0o1777, 0o1777)],
)
def test_who_changes_the_content_takes_setuid_and_the_setgid_of_programs_away(
    before: int, after: int
) -> None:
    assert without_setid(before, member=True) == after


def test_only_a_member_of_the_group_leaves_setgid_without_execution() -> None:
    assert without_setid(0o6644, member=True) == 0o2644
    assert without_setid(0o6644, member=False) == 0o644


@pytest.mark.parametrize(
    ("asked", "uid", "takes"),
    [
        (("uid",), 0, True),
        (("gid",), 5, True),
        (("size",), 5, True),
        (("size",), 0, False),  # root's
        ((), 5, True),  # before a write
        (("uid", "mode"), 0, False),  # the kernel has done it
        (("mtime",), 5, False),
    ],
)
def test_the_kernel_leaves_setuid_to_us_when_the_owner_or_the_content_changes(
    asked: tuple[str, ...], uid: int, takes: bool
) -> None:
    fields = Fields()
    for name in asked:
        setattr(fields, f"update_{name}", True)
    assert takes_setid(fields, uid) is takes  # type: ignore[arg-type]  # as below


class Fields:
    """`pyfuse3.SetattrFields`, which only pyfuse3 itself can fill in."""

    update_mode = update_uid = update_gid = update_size = False
    update_atime = update_mtime = update_ctime = False


def test_a_request_that_changes_nothing_but_ctime_is_known() -> None:
    fields = Fields()
    fields.update_ctime = True
    assert is_bare(fields)  # type: ignore[arg-type]  # has the fields that are asked for
    fields.update_gid = True
    assert not is_bare(fields)  # type: ignore[arg-type]  # as above
