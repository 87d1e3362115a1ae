from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache.metadata.durable import write_durably


def test_a_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_durably(file, b"one")
    file.chmod(0o666)
    write_durably(file, b"two")
    assert file.read_bytes() == b"two"
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TypeError):
        write_durably(file, "no bytes")  # type: ignore[arg-type]  # meant
    assert file.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_may_be_for_others_whatever_the_umask_is(tmp_path: Path) -> None:
    file, before = tmp_path / "file", os.umask(0o077)
    try:
        write_durably(file, b"words", mode=0o644)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o644
