"""O_DIRECT and the page cache: whoever writes past it, however, is read by everybody, at once.

What is expected is what ext4 does, so each test runs on a local file system too.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.aio import Libaio, Uring, using
from tests.system.conftest import Pair

PIECE, PIECES = 64 << 10, 16
SIZE = PIECE * PIECES
ROUNDS = 30
READ = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(fd).st_size
with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping:
    print(flush=True)
    while True:
        for at in range(0, size, 4096):
            os.pread(fd, 4096, at) if at & 4096 else mapping[at]
"""


@pytest.fixture(params=["mount", "local"])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "local":
        place: Path = request.getfixturevalue("direct_folder")
        return place
    pair: Pair = request.getfixturevalue("pair")
    return pair.a.at


@pytest.fixture(params=[Libaio, Uring], ids=["libaio", "io_uring"])
def way(request: pytest.FixtureRequest) -> type[Libaio] | type[Uring]:
    chosen: type[Libaio] | type[Uring] = request.param
    try:
        chosen().close()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        pytest.skip(f"this machine does not allow it: {error}")
    return chosen


@contextmanager
def read_by_another_process(path: Path) -> Iterator[None]:
    """Over and over, through read(2) and through a mapping."""
    command = [sys.executable, "-c", READ, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
            assert process.poll() is None
        finally:
            process.kill()


def test_what_was_written_asynchronously_and_directly_is_read_by_all(
    folder: Path, way: type[Libaio] | type[Uring]
) -> None:
    path, content, chance = folder / f"all-{way.__name__}", bytearray(SIZE), random.Random(1)
    path.write_bytes(content)
    piece = [memoryview(mmap.mmap(-1, PIECE)) for _ in range(PIECES)]
    whole = memoryview(mmap.mmap(-1, SIZE))
    with (
        using(way) as aio,
        path.open("r+b", buffering=0) as buffered,
        mmap.mmap(buffered.fileno(), SIZE) as mapping,
        read_by_another_process(path),
    ):
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        for number in range(1, ROUNDS + 1):
            for index in chance.sample(range(PIECES), chance.randrange(1, PIECES + 1)):
                piece[index][:] = bytes([number]) * PIECE
                at = index * PIECE
                content[at : at + PIECE] = piece[index]
                aio.submit(direct, piece[index], at, write=True)
            aio.wait()
            assert os.pread(buffered.fileno(), SIZE, 0) == content
            assert mapping[:] == content
            assert path.read_bytes() == content
            for at in (chance.randrange(SIZE) for _ in range(3)):  # each in a page of old bytes?
                content[at : at + 1] = b"\xff"
                os.pwrite(buffered.fileno(), b"\xff", at)
            at = chance.randrange(SIZE)
            content[at] = mapping[at] = 0xFE
            aio.submit(direct, whole, 0, write=False)
            aio.wait()
            assert whole == content
        os.close(direct)
    assert path.read_bytes() == content


def test_what_is_written_so_reaches_the_other_device(pair: Pair) -> None:
    path = pair.a.at / "sent"
    path.write_bytes(bytes(SIZE))
    content = memoryview(mmap.mmap(-1, SIZE))
    content[:] = random.Random(2).randbytes(SIZE)
    with using(Libaio) as aio, read_by_another_process(path):
        direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
        for at in range(0, SIZE, PIECE):
            aio.submit(direct, content[at : at + PIECE], at, write=True)
        aio.wait()
        os.close(direct)
        with path.open("r+b", buffering=0) as buffered:
            buffered.write(b"one byte")
    content[:8] = b"one byte"
    pair.a.flush()
    pair.b.sees("sent", bytes(content))
