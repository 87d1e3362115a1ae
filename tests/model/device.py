"""One device: every part of `cache` that keeps local changes, wired as `mount.session.session` does
it, on a directory and a `Port`; without FUSE, block cache and sockets.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cache.blocks.reader import Prefetch
from cache.files.collector import Collector
from cache.files.contents import Contents
from cache.files.spool import Spool
from cache.metadata.invalidation import Invalidation
from cache.metadata.journal import Journal
from cache.metadata.manifests import Manifests
from cache.metadata.operations import Op
from cache.metadata.tree import ROOT, Node, Tree
from cache.namespace.edits import Edits
from cache.namespace.merge import Merge
from cache.namespace.shares import Shares
from cache.recovery.opening import open_database
from cache.sync.replayer import Replayer
from cache.sync.resolver import Resolver
from cache.sync.uploader import Uploader
from remote.feed.subscriber import Apply, Ignore, Pull, Reset, on_hint, on_page
from remote.protocol import messages
from remote.protocol.content import Manifest
from remote.protocol.errors import Unreachable
from remote.protocol.messages import Child
from remote.transfer.upload import Sender
from tests.model.server import Network, Port, Server


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
            manifest = await self._device.manifest_of(file, version)
            assert manifest.size == size
            await self._device.port.file(file, version)  # as locating its chunks: is it allowed?
            here[version] = self._server.content(manifest, self._server.drive_of(file))
        return memoryview(here[version])[offset : offset + length]


class Device:
    """Open it with `Device(...)`, then `await start()`. `crash` is the death of the process."""

    def __init__(
        self,
        server: Server,
        directory: Path,
        name: str,
        token: str,
        *,
        keep_copies: bool = False,
    ) -> None:
        self.name, self.network, self._keep_copies = name, Network(), keep_copies
        self.read_before: dict[str, bytes] = {}
        self._server, self._directory, self._token = server, directory, token
        self.open()

    def open(self) -> None:
        self.port = Port(self._server, self._token, self.network)
        self.kernel, self.handles = Kernel(), set[int]()
        self.hints: list[messages.Hint] = []  # on their way, in any order
        self._feed, self._listings = trio.Lock(), dict[int, trio.Event]()
        self._told: str | None = None
        self.db = open_database(self._directory / "tree.sqlite")
        self.tree, self.journal = Tree(self.db), Journal(self.db)
        self.manifests = Manifests(self.db)
        self.spool = Spool(self._directory / "spool")
        reader = ServerReader(self._server, self.network, self)
        self.contents = Contents(self.db, self.tree, self.spool, reader)
        self.collector = Collector(
            self.db, self.tree, self.journal, self.contents, self.handles.__contains__
        )
        dropped = self.collector.dropped
        told = Invalidation(self.db, self.kernel, self.tree.is_gone)
        self.shares = Shares(self.db, self.tree, self.journal, told, dropped)
        self.edits = Edits(self.db, self.tree, self.journal, self.shares, dropped)
        self.contents.edits = self.edits
        self.merge = Merge(self.db, self.tree, self.journal, self.shares, told, dropped)
        self.uploader = Uploader(
            self.db,
            self.tree,
            self.journal,
            self.contents,
            Sender(self.port),
            self.manifest_of,
            self.manifests.keep_manifest,
            _keep_nothing,
        )
        self.resolver = Resolver(
            self.db,
            self.tree,
            self.journal,
            self.merge,
            self.shares,
            self.uploader,
            self.port,
            self.list_directory,
            device=self.name,
            keep_copies=self._keep_copies,
        )
        self.replayer = Replayer(
            self.db,
            self.tree,
            self.journal,
            self.contents,
            self.merge,
            self.uploader,
            self.resolver,
            self.port,
            self.collector.collect,
        )
        self.contents.on_change = lambda ino, a, b: self.uploader.note_write(ino, a, b)
        self._rescue, self.resolver._rescue = self.resolver._rescue, self._check_rescue  # type: ignore[method-assign]

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

    # As in `mount.session.session`.

    async def list_directory(self, ino: int) -> None:
        while (underway := self._listings.get(ino)) is not None:
            await underway.wait()
            found = self.tree.find(ino)
            if found is None or found.listed is not None:
                return
        self._listings[ino] = done = trio.Event()
        try:
            await self._list(ino)
        finally:
            del self._listings[ino]
            done.set()

    async def _list(self, ino: int) -> None:
        while True:
            node = self.tree.node(ino)
            file, drive = node.file, node.drive
            page = await self.port.children(file)
            directory, as_of = page.directory, page.as_of
            children: list[Child] = list(page.children)
            while page.next is not None:
                page = await self.port.children(file, page.next)
                children += page.children
            if as_of >= self.merge.seq(drive):
                self.merge.list_directory(ino, directory, children, as_of)
                self.collector.collect()
                return

    async def ensure_listed(self, ino: int) -> None:
        node = self.tree.node(ino)
        if node.is_directory and node.listed is None and node.live:
            await self.list_directory(ino)

    async def manifest_of(self, file: str, version: str) -> Manifest:
        known = self.manifests.manifest(version)
        if known is not None:
            return known
        reply = await self.port.file(file, version, manifest=True)
        assert reply.manifest is not None
        self.manifests.keep_manifest(version, reply.manifest)
        return reply.manifest

    # What a person does.

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

    # The network.

    async def pull(self) -> None:
        """Take every change there is, in the server's pages. As in `remote.feed.subscriber`: one
        task at a time tells `merge` what is new."""
        async with self._feed:
            more = True
            while more:
                cursor = self.merge.cursor()
                page = await self.port.changes(cursor)
                self._take(on_page(cursor, self.merge.seq(self.tree.own_drive), page))
                more = page.more

    def _take(self, step: Apply | Reset | Ignore) -> None:
        match step:
            case Apply(changes, cursor, seq, shared):
                self.merge.apply(changes, cursor, seq, shared)
            case Reset(cursor, seq, shared):
                self.merge.reset(cursor, seq, shared)
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
                    self._take(step)
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
