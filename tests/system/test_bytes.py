"""Bytes that move over the network, and those that do not."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.system.conftest import Pair
from tests.system.harness import noise, run, wait_until

MIB = 1 << 20


def write_noise(path: Path, size: int, seed: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, 16 * MIB):
            file.write(noise(min(16 * MIB, size - start), seed * 1000 + start // MIB))


def whole(pair: Pair, name: str, size: int) -> Path:
    """Wait until all of it is on `b`, which may have seen it while it was being written; its
    path."""
    path = pair.b.at / name
    pair.b.shows(lambda: path.stat().st_size == size, f"all of {name} on b")
    return path


def test_an_edit_in_the_middle_of_300_mb_sends_little(pair: Pair) -> None:
    write_noise(pair.a.at / "big", 300 * MIB, 1)
    pair.a.flush()
    theirs = whole(pair, "big", 300 * MIB)
    run("cmp", pair.a.at / "big", theirs)
    before = pair.a.uploaded
    edit = noise(100_000, 99)
    with (pair.a.at / "big").open("r+b") as file:
        file.seek(150 * MIB + 12345)
        file.write(edit)
    pair.a.flush()
    assert len(edit) <= pair.a.uploaded - before <= 8 * MIB

    def edited() -> bool:
        with theirs.open("rb") as file:
            file.seek(150 * MIB + 12345)
            return file.read(len(edit)) == edit

    wait_until(edited, "the edit on b")
    run("cmp", pair.a.at / "big", theirs)
    (pair.a.at / "big").unlink()


def test_a_small_read_moves_little(pair: Pair) -> None:
    """Even with the kernel's read-ahead on: one block of 256 KiB, and the answers around it."""
    write_noise(pair.a.at / "cold", 64 * MIB, 2)
    pair.a.flush()
    with whole(pair, "cold", 64 * MIB).open("rb", buffering=0) as file:
        for number, offset in enumerate((31 * MIB + 4096, 7 * MIB - 4096)):
            before = pair.b.downloaded
            file.seek(offset)
            got = file.read(4096)
            assert 4096 <= pair.b.downloaded - before <= 512 * 1024, number
            expected = noise(16 * MIB, 2000 + offset // (16 * MIB) * 16)
            assert got == expected[offset % (16 * MIB) :][:4096]


def test_many_readers_fetch_each_block_once(pair: Pair) -> None:
    size = 8 * MIB
    content = noise(size, 3)
    (pair.a.at / "crowd").write_bytes(content)
    pair.a.flush()
    path = pair.b.sees("crowd")
    wait_until(lambda: path.stat().st_size == size, "the size on b")
    before = pair.b.downloaded

    def read(number: int) -> bool:
        """Each starts elsewhere, and together they want everything many times. (Blocks begin where
        chunks do: only who reads every byte is sure to need every one of them.)"""
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            places = [(number * 5 + step) % 32 * 256 * 1024 for step in range(32)]
            return all(
                os.pread(file.fileno(), 256 * 1024, place) == content[place : place + 256 * 1024]
                for place in places
            )

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(16)))
    assert size <= pair.b.downloaded - before < size * 1.05


def test_what_was_read_is_not_fetched_again(pair: Pair) -> None:
    content = noise(4 * MIB, 4)
    (pair.a.at / "again").write_bytes(content)
    pair.a.flush()
    path = pair.b.sees("again", content)
    before = pair.b.downloaded
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == content
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[MIB : 2 * MIB] == content[MIB : 2 * MIB]
    assert pair.b.downloaded - before < 64 * 1024
    pair.b.clear_cache()
    with path.open("rb") as file:
        assert file.read() == content
    assert pair.b.downloaded - before >= len(content)


def test_a_large_file_is_uploaded_while_it_is_being_written(pair: Pair) -> None:
    before = pair.a.uploaded
    with (pair.a.at / "growing").open("wb") as file:
        for step in range(6):
            file.write(noise(16 * MIB, 500 + step))
            file.flush()
            os.fsync(file.fileno())
        wait_until(lambda: pair.a.uploaded - before > 8 * MIB, "bytes sent before the close")
    pair.a.flush()
    assert pair.a.uploaded - before < 96 * MIB * 1.1
    theirs = whole(pair, "growing", 96 * MIB)
    with theirs.open("rb") as file:
        for step in range(6):
            assert file.read(16 * MIB) == noise(16 * MIB, 500 + step), step


def test_a_copy_sends_nothing_again(pair: Pair) -> None:
    write_noise(pair.a.at / "original", 20 * MIB, 6)
    pair.a.flush()
    before = pair.a.uploaded
    run("cp", pair.a.at / "original", pair.a.at / "copy")
    with (pair.a.at / "longer").open("wb") as file:
        file.write((pair.a.at / "original").read_bytes() + b"a little more")
    pair.a.flush()
    assert pair.a.uploaded - before < 8 * MIB  # the last chunk of `longer`, and messages
    for name in ("original", "copy"):  # in whichever order
        whole(pair, name, 20 * MIB)
    pair.b.sees("longer")
    run("cmp", pair.b.at / "original", pair.b.at / "copy")


def test_text_is_compressed_on_the_way(pair: Pair) -> None:
    line = b"The quick brown fox jumps over the lazy dog, number %d.\n"
    content = b"".join(line % number for number in range(100_000))
    before = pair.a.uploaded
    (pair.a.at / "text").write_bytes(content)
    pair.a.flush()
    assert pair.a.uploaded - before < len(content) / 4
    pair.b.sees("text", content)


def test_pinned_files_stay_through_a_clearing(pair: Pair) -> None:
    content = noise(2 * MIB, 7)
    (pair.a.at / "pinned").write_bytes(content)
    pair.a.flush()
    path = pair.b.sees("pinned")
    pair.site.cli("pin", path)
    assert os.getxattr(path, "user.nearline.status") == b"synced"
    pair.b.clear_cache()
    before = pair.b.downloaded
    assert path.read_bytes() == content
    assert pair.b.downloaded - before < 64 * 1024
    pair.site.cli("unpin", path)
    pair.b.clear_cache()
    assert os.getxattr(path, "user.nearline.status") == b"online-only"
    pair.site.cli("warm", path)
    assert os.getxattr(path, "user.nearline.status") == b"synced"
