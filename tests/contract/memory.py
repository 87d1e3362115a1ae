"""A second blob store, so that the contract is not one implementation's habits; for models too."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator

from server.storage.blobs import BlobKey, BlobMissing, BlobReader, BlobWriter, Head, Stored


class MemoryBlobStore:
    """Keeps the contract of `BlobStore`. What was set aside is named in `aside`."""

    def __init__(self) -> None:
        self._objects: dict[BlobKey, bytes] = {}
        self._since: dict[BlobKey, int] = {}
        self.aside: list[BlobKey] = []
        self._lock = threading.Lock()  # guards `_objects`

    def copy(self) -> MemoryBlobStore:
        made = MemoryBlobStore()
        made._objects, made._since = self._objects.copy(), self._since.copy()
        return made

    def create(self, key: BlobKey) -> BlobWriter:
        return _MemoryWriter(self, key)

    def add(self, key: BlobKey, data: bytes) -> bool:
        with self._lock:
            self._since.setdefault(key, time.time_ns())
            return self._objects.setdefault(key, data) is data

    def has(self, key: BlobKey) -> bool:
        return key in self._objects

    def head(self, key: BlobKey) -> Head | None:
        data = self._objects.get(key)
        return None if data is None else Head(len(data), hashlib.sha256(data).digest())

    def stat(self, key: BlobKey) -> Stored | None:
        data = self._objects.get(key)
        return None if data is None else Stored(len(data), self._since[key])

    def read(self, key: BlobKey, offset: int, length: int) -> bytes:
        if key not in self._objects:
            raise BlobMissing(key.chunk.hex())
        return self._objects[key][offset : offset + length]

    def open(self, key: BlobKey) -> BlobReader:
        return _MemoryReader(self.read(key, 0, 1 << 30))

    def delete(self, key: BlobKey) -> bool:
        self._since.pop(key, None)
        return self._objects.pop(key, None) is not None

    def set_aside(self, key: BlobKey) -> bool:
        self.aside.append(key)
        return self.delete(key)

    def keys(self) -> Iterator[BlobKey]:
        return iter(list(self._objects))


class _MemoryReader:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, length: int) -> bytes:
        return self._file.read(min(length, 3))  # fewer than asked for is allowed

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(self, *exc: object) -> None: ...


class _MemoryWriter:
    def __init__(self, store: MemoryBlobStore, key: BlobKey) -> None:
        self._store, self._key, self._data = store, key, bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._data += data

    def commit(self) -> bool:
        return self._store.add(self._key, bytes(self._data))

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *exc: object) -> None: ...
