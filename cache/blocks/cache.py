"""The block cache: plain blocks of chunks on this machine's disk, bounded and rebuildable.

Knows: trio, when the map may be trusted, when to write and evict. Must not know: files, versions,
the network, how LMDB lays things out (`lmdb_store`), which blocks go (`eviction`).

THE VIEW CONTRACT. `get` answers a memoryview *into LMDB's memory map*. It is valid until the next
call of any method of the same cache, and never beyond the next checkpoint of the calling task (any
`await` that may yield). Copy it, or let pyfuse3 copy it out as the reply of the handler that
returns it, which happens before any other task runs; keep it no longer. Afterwards its pages may
hold another block: a stale view does not fail, it shows other bytes.

Concurrency contract. Every method is called from the trio thread.
- Reads (`get`, `contains`) have no checkpoint. One read transaction stays open behind the last
  view; it is renewed by the next `get` (0.5 us) and closed before every write, because an old
  reader keeps LMDB from reusing freed pages. An idle cache therefore holds nothing back.
- Writes run in a worker thread, one transaction at a time, under `_writing` (a FIFO lock). Whoever
  gets the lock writes what everybody queued meanwhile in one go, up to `BATCH_BYTES`, in as many
  transactions as that takes (`TRANSACTION_BYTES`). The queue holds references only: who puts waits
  for its commit, so the queue cannot outgrow what the callers hold, and their buffers are free
  again when `put_many` returns.
- `_touched` is filled by reads; the holder of `_writing` swaps it for an empty one before handing
  it to the thread. The map's usage and pins change only under `_writing`.

Invariants:
- A block that cannot be stored (disk or map full) is dropped and counted: no read fails for it.
- The map is written without sync. It survives the death of this process, since the kernel has
  every page that was written; after a reboot that did not follow a clean close it is thrown away
  unread. `state.json`, small and synced, says which boot wrote the map and whether it was closed.
- Two processes never use one cache: `lock` is held with flock while it is open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
import msgspec
import structlog
import trio

from cache.blocks import eviction
from cache.blocks.lmdb_store import Block, BlockMap, Buffer, is_disk_full, key_of, map_size
from cache.metadata.durable import make_private, write_durably

__all__ = ["Block", "BlockCache", "Buffer", "Stats"]

FORMAT = "nearline blocks v1"
BATCH_BYTES = 16 * 1024 * 1024
# LMDB copies what a transaction stores into memory of its own, and frees it at the commit. Measured
# in seconds of processor a GiB: 0.62 to 0.64 with 1 and 2 MiB, 0.75 with 4, 0.89 with 8 and 16.
TRANSACTION_BYTES = 2 * 1024 * 1024
# Keys whose use is not yet recorded; 8 MiB of memory at most.
TOUCHED_LIMIT = 65536
TOUCHED_FLUSH = 4096

log = structlog.get_logger(__name__)


class _State(msgspec.Struct):
    format: str
    boot_id: str
    clean: bool


@dataclass(frozen=True)
class Stats:
    """The figures of `nearline cache stats`. `bytes` and `limit` are bytes of disk; `hits` to
    `evicted` count blocks since the cache was opened."""

    bytes: int
    limit: int
    blocks: int
    pinned_chunks: int
    hits: int
    misses: int
    dropped: int
    evicted: int


class _Request:
    """Blocks somebody waits to have stored."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.bytes = sum(len(plain) for _, _, plain in blocks)
        self.done = False
        self.stored = False


def free_disk(descriptor: int) -> int:
    """Bytes that an unprivileged process may still use on the disk of an open file."""
    stat = os.fstatvfs(descriptor)
    return stat.f_bavail * stat.f_frsize


class BlockCache:
    """Blocks by (chunk id, block number). The module header has the contracts."""

    def __init__(
        self,
        path: Path,
        limit_bytes: int,
        *,
        boot_id: str,
        min_free_bytes: int = 0,
        disk_free: Callable[[int], int] = free_disk,
    ) -> None:
        """Open or make the cache in directory `path` (made if missing); blocking.

        `limit_bytes` bounds what is kept; `min_free_bytes` of disk are left free. `boot_id` names
        the running kernel's boot (/proc/sys/kernel/random/boot_id). A cache that cannot be trusted
        or opened is thrown away and begun anew. Raises OSError when the directory cannot be used,
        with EBUSY when another process has the cache open.
        """
        self._path, self._limit, self._min_free = path, limit_bytes, min_free_bytes
        self._boot_id, self._disk_free = boot_id, disk_free
        self._writing = trio.Lock()
        self._queue: list[_Request] = []
        self._touched: dict[bytes, None] = {}
        self._hits = self._misses = self._dropped = self._evicted = 0
        self._is_failing = False  # touched under `_writing` only, like `_dropped`
        make_private(path)
        path.chmod(0o700)  # blocks are not hashed again when read: nobody else may write them
        self._lock = _lock(path)
        try:
            self._map = self._open_map()
        except BaseException:
            os.close(self._lock)
            raise

    @classmethod
    def open(
        cls, path: Path, limit_bytes: int, *, boot_id: str, min_free_bytes: int = 0
    ) -> BlockCache:
        """The constructor by the name that says what it does to the disk."""
        return cls(path, limit_bytes, boot_id=boot_id, min_free_bytes=min_free_bytes)

    def _open_map(self) -> BlockMap:
        for leftover in self._path.glob("discarded-*"):
            shutil.rmtree(leftover)
        reason = _why_distrust(self._path, self._boot_id)
        if reason is not None:
            self._discard(reason)
        _write_state(self._path, _State(FORMAT, self._boot_id, clean=False))
        try:
            return self._new_map()
        except lmdb.Error as error:
            self._discard(f"LMDB cannot open it: {error}")
            return self._new_map()

    def _new_map(self) -> BlockMap:
        directory = self._path / "map"
        directory.mkdir(exist_ok=True, mode=0o700)
        directory.chmod(0o700)  # earlier versions left it open to whoever got so far
        return BlockMap(directory, map_size(self._limit))

    def _discard(self, reason: str) -> None:
        if (self._path / "map").exists():
            log.warning("block_cache_begun_anew", path=str(self._path), reason=reason)
            shutil.rmtree(_set_aside(self._path))

    def close(self) -> None:
        """Sync and close; blocking. No other method may be called, and no view used, afterwards."""
        if self._touched:
            self._guarded(self._map.touch, self._touched)
        self._map.close(sync=True)
        _write_state(self._path, _State(FORMAT, self._boot_id, clean=True))
        os.close(self._lock)

    # --- reading ---------------------------------------------------------------------------------

    def get(self, chunk: bytes, block: int) -> memoryview | None:
        """The plain bytes of a block, or None. THE VIEW CONTRACT in the header applies."""
        key = key_of(chunk, block)
        view = self._map.view(key)
        if view is None:
            self._misses += 1
            return None
        self._hits += 1
        if key not in self._touched and len(self._touched) < TOUCHED_LIMIT:
            self._touched[key] = None
        return view

    def contains(self, chunk: bytes, block: int) -> bool:
        """True if a block is here. Counts neither as use nor as hit or miss; ends no view."""
        return self._map.has(key_of(chunk, block))

    def stats(self) -> Stats:
        return Stats(
            bytes=self._map.usage.bytes,
            limit=self._limit,
            blocks=self._map.usage.blocks,
            pinned_chunks=len(self._map.pinned),
            hits=self._hits,
            misses=self._misses,
            dropped=self._dropped,
            evicted=self._evicted,
        )

    # --- writing ---------------------------------------------------------------------------------

    async def put_many(self, blocks: Sequence[Block]) -> bool:
        """Store (chunk id, block number, plain bytes) items. When this returns they are committed
        (True) or, if they do not fit, dropped and counted (False); their buffers may be reused
        either way. Not cancellable while it waits, since the thread may be reading the buffers."""
        request = _Request(blocks)
        self._queue.append(request)
        with trio.CancelScope(shield=True):
            async with self._writing:
                while not request.done:
                    await self._write_next_batch()
        return request.stored

    async def _write_next_batch(self) -> None:
        batch = [self._queue.pop(0)]
        size = batch[0].bytes
        while self._queue and size + self._queue[0].bytes <= BATCH_BYTES:
            size += self._queue[0].bytes
            batch.append(self._queue.pop(0))
        dropped = self._dropped
        try:
            await self._in_thread(self._store_all, [item for r in batch for item in r.blocks])
            await self._shrink()
        finally:
            for request in batch:
                request.done, request.stored = True, self._dropped == dropped

    async def evict(self) -> int:
        """Go down to the low-water mark if over the limit; how many blocks went."""
        async with self._writing:
            return await self._shrink()

    async def pin(self, owner: str, chunks: Iterable[bytes]) -> None:
        """Keep the blocks of `chunks` from eviction on behalf of `owner` (a file id), instead of
        what `owner` pinned before. Kept on disk with the cache and lost with it, so whoever pins
        remembers too. Raises `lmdb.Error` when it cannot be recorded."""
        async with self._writing:
            await self._in_thread(self._map.set_pins, owner, sorted(set(chunks)))

    async def unpin(self, owner: str) -> None:
        """Drop the pins of `owner`; other owners' pins of the same chunks hold."""
        await self.pin(owner, ())

    async def clear(self) -> None:
        """Forget every block that is not pinned, and give the disk space back."""
        async with self._writing:
            with trio.CancelScope(shield=True):
                pins: dict[str, list[bytes]] = {}
                for owner, chunk in self._map.pins():
                    pins.setdefault(owner, []).append(chunk)
                self._map.close(sync=False)
                aside = _set_aside(self._path)
                self._map, self._touched = self._new_map(), {}
                for owner, chunks in pins.items():
                    await self._in_thread(self._map.set_pins, owner, chunks)
                await self._in_thread(self._guarded, self._carry_over, aside)
                await trio.to_thread.run_sync(shutil.rmtree, aside)

    def _carry_over(self, aside: Path) -> None:
        """Copy what is pinned out of the map that was set aside: it must be here offline too."""
        if not self._map.pinned:
            return
        old = BlockMap(aside, map_size(self._limit))
        try:
            for block in old.pinned_blocks():
                self._map.store([block])
        finally:
            old.close(sync=False)

    async def _in_thread(self, job: Callable[..., object], *args: object) -> None:
        """Run one write in a worker thread, with no snapshot held open. Caller has `_writing`."""
        self._map.end_view()
        await trio.to_thread.run_sync(job, *args)

    async def _shrink(self) -> int:
        """Evict what is above the limit. Caller has `_writing`."""
        used = self._map.usage.bytes
        free = self._disk_free(self._lock)
        limit = eviction.effective_limit(self._limit, used, free, self._min_free)
        needed = eviction.excess(used, limit)
        if needed == 0 and len(self._touched) < TOUCHED_FLUSH:
            return 0
        touched, self._touched = self._touched, {}
        before = self._map.usage.blocks
        await self._in_thread(self._evict, needed, touched)
        gone = before - self._map.usage.blocks
        self._evicted += gone
        return gone

    # --- in the worker thread --------------------------------------------------------------------

    def _evict(self, needed: int, touched: Iterable[bytes]) -> None:
        self._guarded(self._map.touch, touched)
        self._guarded(self._map.evict, needed)

    def _store_all(self, blocks: Sequence[Block]) -> None:
        start = size = 0
        for number, (_, _, plain) in enumerate(blocks):
            if size and size + len(plain) > TRANSACTION_BYTES:
                self._store(blocks[start:number])
                start, size = number, 0
            size += len(plain)
        self._store(blocks[start:])

    def _store(self, blocks: Sequence[Block]) -> None:
        try:
            self._map.store(blocks)
            self._is_failing = False
        except lmdb.MapFullError:
            self._evict(self._limit - int(self._limit * eviction.LOW_WATER), ())
            if not self._guarded(self._map.store, blocks):
                self._dropped += len(blocks)
        except lmdb.Error as error:
            self._dropped += len(blocks)
            self._warn(error)

    def _guarded(self, job: Callable[..., object], *args: object) -> bool:
        """True if `job` committed. A cache that cannot be written still reads."""
        try:
            job(*args)
        except lmdb.Error as error:
            self._warn(error)
            return False
        return True

    def _warn(self, error: lmdb.Error) -> None:
        """Say it once until a batch is stored again: a full disk stays full for a while."""
        if not self._is_failing:
            cause = "the disk is full" if is_disk_full(error) else str(error)
            log.warning("blocks_not_cached", cause=cause, path=str(self._path))
        self._is_failing = True


# --- trust: what is on disk beside the map --------------------------------------------------------


def _lock(path: Path) -> int:
    """A descriptor holding the cache's flock; the kernel lets go when the process dies."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OSError(errno.EBUSY, "another mount uses this cache", str(path)) from error
    return descriptor


def _why_distrust(path: Path, boot_id: str) -> str | None:
    """Why the map at `path` may not be opened; None when it may."""
    try:
        state = msgspec.json.decode((path / "state.json").read_bytes(), type=_State)
    except FileNotFoundError:
        return "it has no state file"
    except msgspec.DecodeError as error:
        return f"its state file is damaged: {error}"
    if state.format != FORMAT:
        return f"it is in format {state.format!r}"
    if not state.clean and state.boot_id != boot_id:
        return "the machine went down while it was in use"
    return None


def _write_state(path: Path, state: _State) -> None:
    """Replace the state file; on return it is on disk, before anything the map does next."""
    write_durably(path / "state.json", msgspec.json.encode(state))


def _set_aside(path: Path) -> Path:
    """Rename the map away; what is left to do is to delete the answer. A crash in between leaves
    a `discarded-*` directory that the next open deletes."""
    number = 0
    while (aside := path / f"discarded-{number}").exists():
        number += 1
    return (path / "map").rename(aside)
