"""mount/units/updatedb.py: one word in a file of the system's, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mount.units.updatedb import rewrite, with_type, without_type

DEBIAN = (
    b'PRUNE_BIND_MOUNTS="yes"\n# PRUNENAMES=".git"\n'
    b'PRUNEPATHS="/tmp"\nPRUNEFS="NFS fuse.sshfs"\n# \xff end'
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (DEBIAN, DEBIAN.replace(b"sshfs", b"sshfs fuse.nearline")),
        (b'PRUNEFS = ""', b'PRUNEFS = "fuse.nearline"'),
        (b'PRUNEFS = "NFS "\n', b'PRUNEFS = "NFS fuse.nearline"\n'),
        (b"", b'PRUNEFS="fuse.nearline"\n'),
        (b'#PRUNEFS="NFS"', b'#PRUNEFS="NFS"\nPRUNEFS="fuse.nearline"\n'),
        (b'PRUNEFS="a"\nPRUNEFS="b"\n', b'PRUNEFS="a"\nPRUNEFS="b fuse.nearline"\n'),
        (b'PRUNEFS="FUSE.Nearline"\n', b'PRUNEFS="FUSE.Nearline"\n'),
        (b'PRUNEFS="fuse.nearline.old"\n', b'PRUNEFS="fuse.nearline.old fuse.nearline"\n'),
    ],
)
def test_the_type_is_added_once_and_the_rest_stays(before: bytes, after: bytes) -> None:
    assert with_type(before) == after
    assert with_type(after) == after


@pytest.mark.parametrize("before", [DEBIAN, b"", b'PRUNEFS="NFS"\n', b'PRUNEFS=""\n'])
def test_it_can_be_taken_out_again(before: bytes) -> None:
    added = with_type(before)
    assert b"fuse.nearline" not in without_type(added)
    if b'PRUNEFS=""' not in before:
        assert without_type(added) == before


def test_a_file_keeps_its_mode_and_a_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.conf", tmp_path / "updatedb.conf"
    real.write_bytes(DEBIAN)
    real.chmod(0o640)
    link.symlink_to(real)
    assert rewrite(link)
    assert not rewrite(link)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o7777 == 0o640
    assert rewrite(link, remove=True)
    assert real.read_bytes() == DEBIAN
    assert sorted(os.listdir(tmp_path)) == ["real.conf", "updatedb.conf"]


def test_where_there_is_no_updatedb_nothing_is_made(tmp_path: Path) -> None:
    assert not rewrite(tmp_path / "updatedb.conf")
    assert os.listdir(tmp_path) == []
