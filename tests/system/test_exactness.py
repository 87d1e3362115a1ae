"""Named ways to write and read a file, each looked at on the second device: what `test_fsx` does at
random, one at a time, and what takes several processes."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remote.protocol.content import MAX_FILE_SIZE
from tests.system import fsx
from tests.system.conftest import Pair
from tests.system.harness import COMMAND_SECONDS, drop_page_cache, noise, run, wait_until

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 256 * KIB


def arrives(pair: Pair, name: str, content: bytes | bytearray) -> Path:
    """Write on `a`, and return when `b` has it."""
    pair.a.flush()
    return pair.b.sees(name, bytes(content))


def writers(
    script: str, *arguments: list[str], meanwhile: Callable[[], None] = lambda: None
) -> list[int]:
    """Run a script in as many processes at once as there are lists of arguments, and `meanwhile`
    again and again; what each printed, a number."""
    command = [sys.executable, "-c", "import os, sys\n" + script]
    running = [
        subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True)
        for words in arguments
    ]

    def have_ended() -> bool:
        meanwhile()
        return all(item.poll() is not None for item in running)

    wait_until(have_ended, "all have ended")
    told = [item.communicate(timeout=COMMAND_SECONDS)[0] for item in running]
    assert [item.returncode for item in running] == [0] * len(running)
    return [int(text or 0) for text in told]


# --- cold files -----------------------------------------------------------------------------------


def test_a_cold_file_is_overwritten_here_and_there(pair: Pair) -> None:
    """Every edge: the first bytes, over the border of two blocks, a page in the middle, the end and
    beyond. Nobody has read the file before; what is around the edits comes from the server."""
    content = bytearray(noise(3 * MIB + 123, 1))
    (pair.a.at / "cold").write_bytes(content)
    pair.a.flush()
    path = pair.b.sees("cold")
    with path.open("r+b", buffering=0) as file:
        for at, length in (
            (0, 3),
            (BLOCK - 2, 5),
            (MIB + 4096, 4096),
            (2 * MIB + 1, 1),
            (len(content) - 2, 7),
        ):
            data = noise(length, at)
            assert os.pwrite(file.fileno(), data, at) == length
            content[at : at + length] = data
        assert os.pread(file.fileno(), 20, BLOCK - 10) == content[BLOCK - 10 : BLOCK + 10]
    assert path.read_bytes() == content
    pair.b.flush()
    pair.a.sees("cold", bytes(content))


def test_a_cold_file_cut_and_extended_is_zeros_where_it_was_cut(pair: Pair) -> None:
    content = noise(MIB, 2)
    (pair.a.at / "cut").write_bytes(content)
    pair.a.flush()
    path = pair.b.sees("cut")
    os.truncate(path, 300_001)
    os.truncate(path, 2 * MIB)
    expected = content[:300_001] + bytes(2 * MIB - 300_001)
    assert path.read_bytes() == expected
    pair.b.flush()
    pair.site.cli("cache", "clear", pair.b.at)
    drop_page_cache(pair.b.at)
    assert path.read_bytes() == expected
    pair.a.sees("cut", expected)


# --- sizes and holes ------------------------------------------------------------------------------


def test_a_truncated_and_extended_file_reads_zeros_before_and_after_upload(pair: Pair) -> None:
    path, content = pair.a.at / "gap", noise(700_000, 3)
    path.write_bytes(content)
    for between in ("at once", "uploaded in between"):
        with path.open("r+b") as file:
            file.truncate(123_457)
            if between == "uploaded in between":
                os.fsync(file.fileno())
                pair.a.flush()
            file.truncate(600_000)
        expected = content[:123_457] + bytes(600_000 - 123_457)
        assert path.read_bytes() == expected, between
        arrives(pair, "gap", expected)
        path.write_bytes(content)


def test_islands_in_a_sparse_file_are_where_they_were_put(pair: Pair) -> None:
    content = bytearray(24 * MIB)
    pair.a.flush()
    with (pair.a.at / "islands").open("wb", buffering=0) as file:
        file.truncate(len(content))
        for at in (5, 3 * MIB - 1, 3 * MIB + 4096, 17 * MIB + 12345, len(content) - 6):
            content[at : at + 6] = b"island"
            os.pwrite(file.fileno(), b"island", at)
    before = pair.a.uploaded
    path = arrives(pair, "islands", content)
    assert pair.a.uploaded - before < 100_000
    pair.b.clear_cache()
    assert path.read_bytes() == content


def test_a_sparse_file_of_a_terabyte_takes_no_space_and_no_time(pair: Pair) -> None:
    """It is stored as two chunks, and `du` says so: where it was written, and where it was read.
    (A manifest's chunk around an island is as short as the run of bytes that is not a hole.)"""
    path, size = pair.a.at / "terabyte", 1 << 40
    pair.a.flush()  # what other tests have left to send
    before = pair.a.uploaded
    with path.open("wb", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 7)
        file.truncate(size)
        os.pwrite(file.fileno(), b"y", size - 3)
    assert path.stat().st_size == size
    assert 0 < path.stat().st_blocks * 512 <= 3 * MIB
    pair.a.flush()
    assert pair.a.uploaded - before < 100_000
    assert 0 < path.stat().st_blocks * 512 <= 3 * MIB
    theirs = pair.b.sees("terabyte")
    with theirs.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 10, size - 5) == b"\0\0y\0\0"
        assert os.pread(file.fileno(), 3, 6) == b"\0x\0"
    pair.site.cli("warm", theirs)
    wait_until(lambda: theirs.stat().st_blocks * 512 <= 3 * MIB, "the holes on b")
    path.unlink()


def test_st_blocks_never_hides_data(pair: Pair) -> None:
    """Programs take `st_blocks` of 0 for nothing but holes."""
    content, path = noise(300_000, 4), pair.a.at / "blocks"
    with path.open("wb", buffering=0) as file:
        file.write(content)
        assert path.stat().st_blocks > 0  # the kernel has not handed over a byte of it
    assert path.stat().st_blocks == -(-len(content) // 4096) * 8
    theirs = arrives(pair, "blocks", content)
    assert theirs.stat().st_blocks == -(-len(content) // 4096) * 8  # cold
    for empty, size in (("touched", 0), ("hole", 10 * MIB)):
        (pair.a.at / empty).touch()
        os.truncate(pair.a.at / empty, size)
        assert (pair.a.at / empty).stat().st_blocks == 0
        with (pair.a.at / empty).open("ab", buffering=0) as file:
            file.write(b"line")
            wait_until(lambda e=empty: (pair.a.at / e).stat().st_blocks, "blocks while it is open")


@pytest.mark.parametrize("when", ["open", "closed", "cold"])
def test_tar_and_cp_keep_every_byte_of_a_sparse_file(pair: Pair, tmp_path: Path, when: str) -> None:
    name, content = f"sparse-{when}", bytearray(5 * MIB)
    content[2 * MIB : 2 * MIB + 9] = b"somewhere"
    file = (pair.a.at / name).open("wb", buffering=0)
    file.truncate(len(content))
    os.pwrite(file.fileno(), b"somewhere", 2 * MIB)
    at = pair.a.at
    if when != "open":
        file.close()
    if when == "cold":
        pair.a.flush()
        pair.b.sees(name)
        at = pair.b.at
    archive = tmp_path / "archive.tar"
    run("tar", "-C", at, "--sparse", "-cf", archive, name)
    run("cp", "--sparse=auto", at / name, tmp_path / "copy")
    file.close()
    run("tar", "-C", tmp_path, "-xf", archive)
    assert (tmp_path / name).read_bytes() == content
    assert (tmp_path / "copy").read_bytes() == content


def test_seek_finds_data_from_the_start_to_the_end(pair: Pair) -> None:
    """FUSE, as pyfuse3 has it, does not ask the mount where holes are: none is told, and so no byte
    is left out."""
    path = pair.a.at / "seek"
    path.touch()
    os.truncate(path, 3 * MIB)
    with path.open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 3 * MIB
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            os.lseek(file.fileno(), 3 * MIB, os.SEEK_DATA)


def test_a_file_that_is_too_large_is_refused_and_keeps_what_it_has(pair: Pair) -> None:
    """The kernel takes a write at any place into its cache: whoever syncs is told."""
    path = pair.a.at / "too large"
    path.write_bytes(b"small")
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        os.truncate(path, MAX_FILE_SIZE + 1)
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b"x", MAX_FILE_SIZE)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        os.fsync(descriptor)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        os.close(descriptor)
    arrives(pair, "too large", b"small")


def test_fallocate_says_that_it_cannot_and_posix_fallocate_can(pair: Pair) -> None:
    path = pair.a.at / "allocated"
    path.write_bytes(b"some")
    assert fsx.fallocate_answer(path) == errno.EOPNOTSUPP
    assert path.read_bytes() == b"some"
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 2, 10_000)
    arrives(pair, "allocated", b"some" + bytes(9_998))


# --- several at once ------------------------------------------------------------------------------

APPENDER = """
path, who, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = os.open(path, os.O_WRONLY | os.O_APPEND)
for number in range(count):
    record = b"%d %06d " % (who, number) + bytes([97 + who]) * 90 + b"\\n"
    assert os.write(file, record) == len(record)
"""


def test_appends_of_several_processes_are_all_there_and_whole(pair: Pair) -> None:
    path, count = pair.a.at / "log", 400
    path.touch()
    processes = [[str(path), str(who), str(count)] for who in range(6)]
    writers(APPENDER, *processes, meanwhile=pair.a.flush)  # snapshots are taken in between
    content = path.read_bytes()
    records = content.splitlines()
    assert sorted(records) == sorted(
        b"%d %06d " % (who, number) + bytes([97 + who]) * 90
        for who in range(6)
        for number in range(count)
    )
    for who in range(6):  # each one's are in its order
        mine = [line for line in records if line.startswith(b"%d " % who)]
        assert mine == sorted(mine)
    arrives(pair, "log", content)


CREATOR = """
won = 0
for number in range(60):
    try:
        os.close(os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        won += 1
    except FileExistsError:
        pass
print(won)
"""


def test_of_all_who_create_exclusively_one_wins(pair: Pair) -> None:
    directory = pair.a.at / "exclusive"
    directory.mkdir()
    won = writers(CREATOR, *([str(directory)] for _ in range(5)))
    assert sum(won) == 60 == len(os.listdir(directory))
    pair.a.flush()
    pair.b.shows(lambda: len(os.listdir(pair.b.at / "exclusive")) == 60, "the names on b")


def test_what_another_handle_truncates_is_gone_for_all(pair: Pair) -> None:
    path = pair.a.at / "truncated"
    path.write_bytes(noise(400_000, 5))
    with path.open("r+b", buffering=0) as other:
        path.open("wb").close()  # O_TRUNC
        assert os.fstat(other.fileno()).st_size == 0
        assert os.pread(other.fileno(), 10, 0) == b""
        assert os.pwrite(other.fileno(), b"behind", 5000) == 6
    arrives(pair, "truncated", bytes(5000) + b"behind")


# --- other ways in and out ------------------------------------------------------------------------


def test_stores_through_a_mapping_are_read_at_once_and_sent_after_msync(pair: Pair) -> None:
    path, content = pair.a.at / "mapped", bytearray(noise(600_000, 6))
    path.write_bytes(content)
    pair.a.flush()
    pair.a.clear_cache()  # the pages around the stores come from the server
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as view:
        for at in (0, BLOCK - 3, 599_990):
            view[at : at + 6] = content[at : at + 6] = b"stored"
        assert os.pread(file.fileno(), 6, BLOCK - 3) == b"stored"
        os.pwrite(file.fileno(), b"written", 1000)
        content[1000:1007] = b"written"
        assert view[1000:1007] == b"written"
        view.flush()  # msync
        arrives(pair, "mapped", content)  # while it is mapped
        view[5:8] = content[5:8] = b"end"
    arrives(pair, "mapped", content)


def test_sendfile_splice_and_copy_file_range_copy_exactly(pair: Pair) -> None:
    content = noise(1_300_001, 7)
    source = pair.a.at / "source"
    source.write_bytes(content)
    pair.a.flush()
    pair.a.clear_cache()
    with source.open("rb", buffering=0) as file:
        size = len(content)
        for name in ("sendfile", "copy_file_range", "splice"):
            with (pair.a.at / name).open("w+b", buffering=0) as out:
                done = 0
                while done < size:
                    done += _transfer(name, file.fileno(), out.fileno(), done, size - done)
            assert (pair.a.at / name).read_bytes() == content, name
    for name in ("sendfile", "copy_file_range", "splice"):
        arrives(pair, name, content)


def _transfer(how: str, source: int, target: int, at: int, length: int) -> int:
    if how == "sendfile":
        os.lseek(target, at, os.SEEK_SET)
        return os.sendfile(target, source, at, length)
    if how == "copy_file_range":
        return os.copy_file_range(source, target, length, at, at)
    reading, writing = os.pipe()
    try:
        moved = left = os.splice(source, writing, min(length, 60_000), offset_src=at)
        while left:
            left -= os.splice(reading, target, left, offset_dst=at + moved - left)
        return moved
    finally:
        os.close(reading)
        os.close(writing)


def test_direct_and_buffered_handles_show_the_same_bytes(pair: Pair) -> None:
    path, content = pair.a.at / "direct", bytearray(noise(BLOCK + 8192, 8))
    aligned = mmap.mmap(-1, 8192)
    path.write_bytes(content)
    pair.a.flush()
    pair.a.clear_cache()
    with path.open("r+b", buffering=0) as cached:
        fd, direct = cached.fileno(), os.open(path, os.O_RDWR | os.O_DIRECT)
        assert os.pread(fd, len(content), 0) == content  # the page cache is full
        aligned[:] = content[4096:12288] = noise(8192, 9)
        assert os.pwritev(direct, [aligned], 4096) == 8192
        assert os.pread(fd, len(content), 0) == content
        os.pwrite(fd, b"dirty", BLOCK)  # in the page cache only
        content[BLOCK : BLOCK + 5] = b"dirty"
        assert os.preadv(direct, [aligned], BLOCK) == 8192
        assert aligned[:] == content[BLOCK : BLOCK + 8192]
        aligned[:] = noise(8192, 10)
        end = len(content)
        assert os.pwritev(direct, [aligned], end) == 8192  # it grows
        content += aligned[:]
        assert os.fstat(fd).st_size == len(content)
        assert os.pread(fd, 8192, end) == content[end:]
        os.ftruncate(fd, 10_000)
        del content[10_000:]
        assert os.preadv(direct, [aligned], 8192) == 10_000 - 8192
        os.close(direct)
    arrives(pair, "direct", content)
