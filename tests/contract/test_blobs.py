"""The contract of a blob store, for every implementation."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.storage.blobs import BlobKey, BlobMissing, BlobStore, Head, LocalBlobStore
from tests.contract.memory import MemoryBlobStore

DRIVE, OTHER = "0" * 32, "1" * 32


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return LocalBlobStore(tmp_path) if request.param == "local" else MemoryBlobStore()


def key(number: int = 0, drive: str = DRIVE) -> BlobKey:
    return BlobKey(drive, number.to_bytes(32, "big"))


def put(store: BlobStore, where: BlobKey, *parts: bytes) -> bool:
    with store.create(where) as writer:
        for part in parts:
            writer.write(part)
        return writer.commit()


def test_what_was_put_is_there(store: BlobStore) -> None:
    assert put(store, key(), b"abc", bytearray(b"def"), memoryview(b"g"))
    assert store.has(key())
    assert store.head(key()) == Head(7, hashlib.sha256(b"abcdefg").digest())
    assert store.read(key(), 0, 7) == b"abcdefg"


@pytest.mark.parametrize(
    ("offset", "length", "expected"), [(2, 3, b"cde"), (5, 100, b"fg"), (7, 1, b""), (99, 1, b"")]
)
def test_reads_are_of_ranges(store: BlobStore, offset: int, length: int, expected: bytes) -> None:
    put(store, key(), b"abcdefg")
    assert store.read(key(), offset, length) == expected


def read_all(store: BlobStore, where: BlobKey, step: int) -> bytes:
    with store.open(where) as reader:
        return b"".join(iter(lambda: reader.read(step), b""))


@pytest.mark.parametrize("step", [1, 4, 100])
def test_an_object_is_read_back_from_its_beginning(store: BlobStore, step: int) -> None:
    put(store, key(), b"abcdefg")
    put(store, key(1))
    assert read_all(store, key(), step) == b"abcdefg"
    assert read_all(store, key(1), step) == b""


def test_what_is_being_read_stays_readable_when_it_goes(store: BlobStore) -> None:
    put(store, key(), b"abc")
    with store.open(key()) as reader:
        assert store.delete(key())
        assert b"".join(iter(lambda: reader.read(9), b"")) == b"abc"


def test_what_was_not_put_is_not_there(store: BlobStore) -> None:
    assert not store.has(key())
    assert store.head(key()) is None
    assert not store.delete(key())
    with pytest.raises(BlobMissing):
        store.read(key(), 0, 1)
    with pytest.raises(BlobMissing):
        store.open(key())


def test_nothing_appears_before_the_commit(store: BlobStore) -> None:
    with store.create(key()) as writer:
        writer.write(b"half")
        assert not store.has(key())
    assert not store.has(key())
    assert list(store.keys()) == []


def test_a_failure_while_writing_leaves_nothing(store: BlobStore) -> None:
    def fail() -> None:
        with store.create(key()) as writer:
            writer.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert list(store.keys()) == []


def test_the_first_writer_wins(store: BlobStore) -> None:
    with store.create(key()) as one, store.create(key()) as other:
        one.write(b"one")
        other.write(b"other")
        assert other.commit()
        assert not one.commit()
    assert store.read(key(), 0, 9) == b"other"
    assert not put(store, key(), b"third")
    assert store.read(key(), 0, 9) == b"other"


def test_many_writers_of_one_object_make_one(store: BlobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: put(store, key(), bytes([n]) * 1000), range(16)))
    assert made.count(True) == 1
    winner = store.read(key(), 0, 2000)
    assert winner == bytes([made.index(True)]) * 1000


def test_drives_never_meet(store: BlobStore) -> None:
    put(store, key(), b"mine")
    assert not store.has(key(drive=OTHER))
    assert put(store, key(drive=OTHER), b"theirs")
    assert store.delete(key())
    assert store.read(key(drive=OTHER), 0, 9) == b"theirs"


def test_keys_names_everything_and_deleted_is_gone(store: BlobStore) -> None:
    wanted = {key(1), key(1 << 255), key(1, OTHER)}
    for item in wanted:
        put(store, item, b"x")
    assert set(store.keys()) == wanted
    assert store.delete(key(1))
    assert set(store.keys()) == wanted - {key(1)}
    assert put(store, key(1), b"y")


def test_an_empty_object_is_an_object(store: BlobStore) -> None:
    assert put(store, key())
    assert store.head(key()) == Head(0, hashlib.sha256(b"").digest())
    assert store.read(key(), 0, 10) == b""


def test_stat_tells_length_and_age_without_reading(store: BlobStore) -> None:
    assert store.stat(key()) is None
    earliest = time.time_ns() - 10**9  # a file system's clock may be a little behind
    put(store, key(), b"abc")
    found = store.stat(key())
    assert found is not None
    assert found.length == 3
    assert earliest <= found.at_ns <= time.time_ns()


def test_what_was_set_aside_is_out_of_the_way(store: BlobStore) -> None:
    assert not store.set_aside(key())
    put(store, key(), b"damaged")
    assert store.set_aside(key())
    assert store.stat(key()) is None
    assert list(store.keys()) == []
    assert put(store, key(), b"whole")
    assert store.set_aside(key())


def test_the_local_store_keeps_what_was_set_aside(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    put(store, key(), b"damaged")
    store.set_aside(key())
    kept = tmp_path / "quarantine" / f"{DRIVE}-{key().chunk.hex()}"
    assert kept.read_bytes() == b"damaged"
