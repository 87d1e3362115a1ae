"""One device: `cache.device` on a directory and a `Port`; without FUSE, block cache and sockets."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cache import device
from cache.blocks.reader import Prefetch
from cache.files.spool import Spool
from cache.metadata.manifests import Manifests
from cache.metadata.operations import Op
from cache.metadata.tree import ROOT, Node
from cache.recovery.opening import open_database
from cache.sync import listing
from remote.feed.rules import Apply, Ignore, Pull, Reset, on_hint, on_page
from remote.protocol import messages
from remote.protocol.errors import Unreachable
from tests.model.server import Network, Port, Server

listing.PIECE = 2  # a listing is merged in several, as long ones are


@dataclass
class Kernel:
    """An `Invalidator` that remembers what it was told."""

    entries: list[tuple[int, str]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    attributes: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)

    def forget_entry(self, parent: int, name: str, gone: int = 0) -> None:
        self.entries.append((parent, name))
        if gone:
            self.gone.append(gone)

    def forget_attributes(self, ino: int) -> None:
        self.attributes.append(ino)

    def forget_content(self, ino: int) -> None:
        self.contents.append(ino)


class ServerReader:
    """`contents.VersionReader` straight from the server's chunks. What was read once is on this
    machine, as with the real block cache, also after a crash."""

    def __init__(self, server: Server, network: Network, device: Device) -> None:
        self._server, self._network, self._device = server, network, device

    def try_read(
        self, file: str, version: str, offset: int, length: int, window: Prefetch | None
    ) -> memoryview | None:
        return None

    async def read(
        self, file: str, version: str, size: int, offset: int, length: int, window: Prefetch | None
    ) -> memoryview:
        here = self._device.read_before
        if version not in here or self._device.manifests.manifest(version) is None:
            manifest = await self._device.listing.manifest_of(file, version)
            assert manifest.size == size
            await self._device.port.file(file, version)  # as locating its chunks: is it allowed?
            here[version] = self._server.content(manifest, self._server.drive_of(file))
        return memoryview(here[version])[offset : offset + length]


class Device(device.Device):
    """Open it with `Device(...)`, then `await start()`. `crash` is the death of the process."""

    def __init__(
        self,
        server: Server,
        directory: Path,
        name: str,
        token: str,
        *,
        keep_copies: bool = False,
        has_asker: bool = False,
    ) -> None:
        self.name, self.network = name, Network()
        self._keep_copies, self._has_asker = keep_copies, has_asker
        self.read_before: dict[str, bytes] = {}
        self._visits = 0
        self._server, self._directory, self._token = server, directory, token
        self.open()

    def open(self) -> None:
        self.port = Port(self._server, self._token, self.network)
        self.kernel, self.handles = Kernel(), set[int]()
        self.hints: list[messages.Hint] = []  # on their way, in any order
        self.reached: list[bool] = []  # whenever it changed
        self._feed = trio.Lock()
        self._told: str | None = None
        db = open_database(self._directory / "tree.sqlite")
        manifests = Manifests(db)
        super().__init__(
            db,
            Spool(self._directory / "spool"),
            manifests,
            ServerReader(self._server, self.network, self),
            self.kernel,
            self.handles.__contains__,
            send=self.port,
            read=self.port,
            keep_manifest=manifests.keep_manifest,
            keep_plain=_keep_nothing,
            require_online=lambda: None,
            on_reachable=self._reachability_changed,
            name=self.name,
            keep_copies=self._keep_copies,
            has_asker=self._has_asker,
        )
        self._rescue, self.resolver._rescue = self.resolver._rescue, self._check_rescue  # type: ignore[method-assign]

    def _reachability_changed(self) -> None:
        self.reached.append(self.replayer.reachable)

    async def _check_rescue(self, op: Op) -> None:
        """Nothing of the own drive goes to its top while its folder is seen here: that is made
        anew."""
        place = self.tree.live(op.body.parent)
        assert place is None or place.drive != self.tree.own_drive, self.tree.path(place.ino)
        await self._rescue(op)

    async def start(self) -> None:
        if self.tree.find(ROOT) is None:
            self.merge.adopt(await self.port.me())
        await self.manifests.prune()
        self.collector.sweep()

    def crash(self) -> None:
        """The process dies: what was in memory is gone. (SQLite and the spool are as the kernel
        has them; closing the descriptors adds nothing.)"""
        self.spool.close()
        self.db.close()
        self.open()

    def close(self) -> None:
        self.spool.close()
        self.db.close()

    async def ensure_listed(self, ino: int) -> None:
        await self.listing.ensure_listed(ino)
        self._visits += 1
        if self._visits % 3 == 0:  # not always: what is not listed is to be met too
            self.listing.visit(ino)
            await self.listing.list_ahead(ino)

    # --- what a person does -----------------------------------------------------------------------

    async def resolve(self, path: str) -> Node:
        """Raises OSError (ENOENT), NearlineError."""
        node = self.tree.node(ROOT)
        for name in [part for part in path.split("/") if part]:
            await self.ensure_listed(node.ino)
            found = self.tree.child(node.ino, name)
            if found is None:
                raise OSError(errno.ENOENT, path)
            node = found
        return node

    async def place(self, path: str) -> tuple[int, str]:
        """The listed directory that holds, or may hold, `path`, and the last name."""
        above, _, name = path.rpartition("/")
        directory = await self.resolve(above)
        await self.ensure_listed(directory.ino)
        return directory.ino, name

    async def read_all(self, ino: int) -> bytes:
        return bytes(await self.contents.read(ino, 0, self.tree.node(ino).size, None))

    # --- the network ------------------------------------------------------------------------------

    async def pull(self) -> None:
        """Take every change there is, in the server's pages. As in `remote.feed.subscriber`: one
        task at a time tells `merge` what is new."""
        async with self._feed:
            more = True
            while more:
                cursor = self.merge.cursor()
                page = await self.port.changes(cursor)
                await self._take(on_page(cursor, self.merge.seq(self.tree.own_drive), page))
                more = page.more

    async def _take(self, step: Apply | Reset | Ignore) -> None:
        match step:
            case Apply(changes, cursor, seq, shared):
                await self.merge.take(changes, cursor, seq, shared)
            case Reset(cursor, seq, shared):
                await self.merge.reset(cursor, seq, shared)
        self.collector.collect()

    async def listen(self) -> None:
        """A socket says what happened since it said something last."""
        since = self._told or self.merge.cursor()
        if since is not None:
            hint = await self.port.hint(since)
            self._told = hint.cursor
            self.hints.append(hint)

    async def hear(self, nth: int) -> None:
        """One of the hints on their way arrives: not always the first, and not always once."""
        if self.hints:
            hint = self.hints[nth % len(self.hints)]
            async with self._feed:
                seq = self.merge.seq(self.tree.own_drive)
                step = on_hint(self.merge.cursor(), seq, hint)
                if not isinstance(step, Pull):
                    await self._take(step)
                    return
            await self.pull()

    async def flush(self) -> None:
        """Return when the server has everything this device wants it to have."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.replayer.run)
            await self.replayer.flush()
            nursery.cancel_scope.cancel()

    async def sync(self) -> None:
        if not self.network.up:
            raise Unreachable("partitioned")
        await self.pull()
        await self.flush()
        await self.pull()

    async def everything(self) -> dict[str, tuple[object, ...]]:
        """Every path with what can be seen of it."""
        found: dict[str, tuple[object, ...]] = {}
        await self._walk(ROOT, "", found)
        return found

    async def _walk(self, ino: int, path: str, found: dict[str, tuple[object, ...]]) -> None:
        await self.ensure_listed(ino)
        for entry in self.tree.entries(ino, 0, 1 << 30):
            node, below = entry.node, f"{path}/{entry.name}"
            body = await self.read_all(node.ino) if node.is_regular else None
            mtime = node.mtime_ns if node.is_regular else None
            attributes = self.tree.xattrs(node.ino)
            rest = (node.uid, node.gid, node.target)
            found[below] = (
                node.kind, node.mode, node.file, mtime, body, node.links, attributes, *rest
            )  # fmt: skip
            if node.is_directory:
                await self._walk(node.ino, below, found)


async def _keep_nothing(chunk: bytes, plain: memoryview) -> None:
    return None
