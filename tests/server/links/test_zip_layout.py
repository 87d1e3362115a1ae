"""The layout of archives: readable from the front, and by their index, whatever is in them."""

from __future__ import annotations

import io
import random
import zipfile

import pytest

from server.links import zip_layout
from server.links.zip_layout import Entry, Layout, packed_size
from tests.server.zip_stream import streamed

BLOCK = 0xFFFF
SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 300_000]


def packed(contents: dict[str, bytes], seed: int = 0) -> bytes:
    """An archive of these, the content in pieces that end anywhere."""
    cut, archive, parts = random.Random(seed), Layout(), list[bytes]()
    for path, data in contents.items():
        pieces, at = [], 0
        while at < len(data):
            length = cut.choice([1, 1000, BLOCK, 256 * 1024])
            pieces.append(data[at : at + length])
            at += length
        parts += map(bytes, archive.entry(Entry(path, len(data), 10**18, 0o644 << 16), pieces))
    return b"".join([*parts, *archive.end()])


def of_every_size() -> dict[str, bytes]:
    files = {f"top/{size}": random.Random(size).randbytes(size) for size in SIZES}
    return {"top/": b"", **files}


@pytest.mark.parametrize("seed", range(5))
def test_it_is_read_from_its_front_and_by_its_index(seed: int) -> None:
    contents = of_every_size()
    archive = packed(contents, seed)
    assert streamed(archive) == contents
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        assert zipped.testzip() is None
        assert {info.filename: zipped.read(info) for info in zipped.infolist()} == contents
        sizes = {info.file_size: info.compress_size for info in zipped.infolist()}
    assert sizes == {size: packed_size(size) for size in SIZES}


def test_what_is_too_large_for_four_bytes_has_eight_and_nothing_else_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the limit it is the packed size that decides, which is a little larger."""
    contents = {name: bytes(size) for name, size in (("a", 9995), ("b", 9996), ("c", 10_001))}
    monkeypatch.setattr(zip_layout, "_LIMIT", 10_000)
    archive = packed(contents)
    assert streamed(archive, limit=10_000) == contents
    assert b"PK\x06\x06" in archive
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        assert zipped.testzip() is None
        assert {name: zipped.read(name) for name in contents} == contents


@pytest.mark.slow
def test_more_entries_than_two_bytes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {f"{number}/": b"" for number in range(0x10000)}
    archive = packed(contents)
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        assert len(zipped.infolist()) == 0x10000
