"""One device: every part of `cache` that keeps and sends local changes, put together once.

Knows: who needs whom. Must not know: FUSE, sockets, where state and blocks lie (whoever makes one
says), what any part does.

`Local` needs no server: the tree as this device sees it, the journal, what was written here.
`Device` also lists directories and sends. The mount's session, the model's devices, the tests of
the state and the bench all use these, so that what is tested is what ships.

Concurrency: made on the trio thread, and used there alone; each part's header says the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from cache.files.collector import Collector
from cache.files.contents import Contents, VersionReader
from cache.files.spool import Spool
from cache.metadata.database import Database
from cache.metadata.invalidation import Invalidation, Invalidator
from cache.metadata.journal import Journal
from cache.metadata.manifests import Manifests
from cache.metadata.tree import Tree
from cache.namespace.edits import Edits
from cache.namespace.merge import Merge
from cache.namespace.rebuilding import FilePort
from cache.namespace.shares import Shares
from cache.sync.listing import AheadApi, Listing, ReadApi
from cache.sync.replayer import ApplyPort, Replayer
from cache.sync.resolver import Resolver
from cache.sync.uploader import Uploader
from remote.protocol.content import Manifest
from remote.protocol.ids import VersionId
from remote.transfer.upload import Sender, UploadPort


class SendApi(ApplyPort, FilePort, UploadPort, AheadApi, Protocol):
    """The part of `remote.http.api.ApiClient` that sending needs."""


class Local:
    """What a device keeps. `reader` reads versions that the server has; `in_use` says whether the
    kernel still speaks of an inode."""

    def __init__(
        self,
        db: Database,
        spool: Spool,
        manifests: Manifests,
        reader: VersionReader,
        invalidator: Invalidator,
        in_use: Callable[[int], bool],
    ) -> None:
        self.db, self.spool, self.manifests = db, spool, manifests
        self.tree, self.journal = Tree(db), Journal(db)
        self.contents = Contents(db, self.tree, spool, reader)
        self.collector = Collector(db, self.tree, self.journal, self.contents, in_use)
        dropped = self.collector.dropped
        told = Invalidation(db, invalidator, self.tree.is_gone)
        self.shares = Shares(db, self.tree, self.journal, told, dropped)
        self.edits = Edits(db, self.tree, self.journal, self.shares, dropped)
        self.contents.edits = self.edits
        self.merge = Merge(db, self.tree, self.journal, self.shares, told, dropped)


class Device(Local):
    """`send` is asked by what goes to the server, `read` by what somebody waits for. What was just
    sent is known here too: `keep_manifest` and `keep_plain`. `require_online` raises `Unreachable`
    while it is known that nobody answers. `name`: in names of conflicted copies, which are made
    where `keep_copies`."""

    def __init__(
        self,
        db: Database,
        spool: Spool,
        manifests: Manifests,
        reader: VersionReader,
        invalidator: Invalidator,
        in_use: Callable[[int], bool],
        *,
        send: SendApi,
        read: ReadApi,
        keep_manifest: Callable[[VersionId, Manifest], None],
        keep_plain: Callable[[bytes, memoryview], Awaitable[None]],
        require_online: Callable[[], None],
        name: str,
        keep_copies: bool,
    ) -> None:
        super().__init__(db, spool, manifests, reader, invalidator, in_use)
        self.listing = Listing(
            self.tree,
            manifests,
            self.merge,
            self.collector.collect,
            read,
            send,
            keep_manifest,
            require_online,
        )
        self.uploader = Uploader(
            db,
            self.tree,
            self.journal,
            self.contents,
            Sender(send),
            self.listing.manifest_of,
            keep_manifest,
            keep_plain,
        )
        self.resolver = Resolver(
            db,
            self.tree,
            self.journal,
            self.merge,
            self.shares,
            self.uploader,
            send,
            self.listing.list_directory,
            device=name,
            keep_copies=keep_copies,
        )
        self.replayer = Replayer(
            db,
            self.tree,
            self.journal,
            self.contents,
            self.merge,
            self.uploader,
            self.resolver,
            send,
            self.collector.collect,
        )
