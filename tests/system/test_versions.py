"""Old versions as files, and what a writer learns of a full account."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.system.conftest import Pair
from tests.system.harness import Site, noise, wait_until


def test_versions_are_files_beside_the_file(pair: Pair) -> None:
    path = pair.a.at / "report.txt"
    contents = [f"state {number}".encode() for number in range(3)]
    for content in contents:
        path.write_bytes(content)
        pair.a.flush()
    versions = Path(f"{path}@@")
    assert sorted(item.read_bytes() for item in versions.iterdir()) == contents
    assert all(item.name.endswith(".txt") for item in versions.iterdir())
    assert "report.txt@@" not in os.listdir(pair.a.at)
    pair.b.sees("report.txt", contents[-1])
    there = pair.b.at / "report.txt@@"
    assert sorted(item.read_bytes() for item in there.iterdir()) == contents
    path.write_bytes(b"one more")
    pair.a.flush()
    wait_until(lambda: len(os.listdir(there)) == 4, "the new version among them")


def test_versions_are_read_only(pair: Pair) -> None:
    path = pair.a.at / "fixed.txt"
    path.write_bytes(b"as it was")
    pair.a.flush()
    versions = Path(f"{path}@@")
    (one,) = versions.iterdir()
    for work in (
        lambda: one.open("ab"),
        lambda: one.unlink(),
        lambda: (versions / "new").write_bytes(b""),
        lambda: one.rename(pair.a.at / "stolen"),
        lambda: os.link(one, versions / "again"),
        lambda: one.chmod(0o777),
    ):
        with pytest.raises(OSError, match=r"Read-only|Invalid cross-device") as refused:
            work()
        assert refused.value.errno in (errno.EROFS, errno.EXDEV)
    assert pair.a.status()["journal"]["operations"] == 0


def test_a_name_that_really_ends_so_comes_first(pair: Pair) -> None:
    (pair.a.at / "plain").write_bytes(b"x")
    assert not (pair.a.at / "nothing@@").exists()
    (pair.a.at / "plain@@").write_bytes(b"a file of its own")
    assert (pair.a.at / "plain@@").read_bytes() == b"a file of its own"
    (pair.a.at / "nothing").write_bytes(b"now there is one")
    pair.a.flush()
    assert len(os.listdir(pair.a.at / "nothing@@")) == 1


def test_a_full_account_is_told_to_the_writer_and_nothing_is_lost(site: Site) -> None:
    a = site.device("a")
    a.mount()
    data = ["--data", str(site.server.data)]
    site.cli("account", "set", "anna", "--quota", "1MiB", *data)
    big, small = a.at / "big", a.at / "small"
    big.write_bytes(noise(3_000_000))
    wait_until(lambda: a.status()["reason"], "the reason why it waits")
    assert "quota of 1048576" in a.status()["reason"]
    with small.open("wb", buffering=0) as file:
        file.write(noise(2_000_000, 2))
        with pytest.raises(OSError, match="quota") as refused:
            os.fsync(file.fileno())
        assert refused.value.errno == errno.EDQUOT
        file_descriptor = os.dup(file.fileno())
        with pytest.raises(OSError, match="quota"):
            os.close(file_descriptor)
        with pytest.raises(OSError, match="quota"):
            file.close()
    (a.at / "directory").mkdir()
    os.rename(a.at / "directory", a.at / "renamed")
    wait_until(lambda: "renamed" in _names(site), "what needs no room")
    assert "big" not in _names(site)
    site.cli("account", "set", "anna", "--quota", "none", *data)
    a.flush()
    assert {"big", "small", "renamed"} <= _names(site)
    assert big.read_bytes() == noise(3_000_000)
    assert small.read_bytes() == noise(2_000_000, 2)


def _names(site: Site) -> set[str]:
    async def ask(api):  # type: ignore[no-untyped-def]  # an ApiClient
        return await api.children((await api.me()).root)

    return {child.entry.name for child in site.ask(ask).children}
