"""One device: every part of `cache` that keeps and sends local changes, put together once.

Knows: who needs whom. Must not know: FUSE, sockets, where state and blocks lie (whoever makes one
says), what any part does.

`Local` needs no server: the tree as this device sees it, the journal, what was written here.
`Device` also lists directories and sends. The mount's session, the model's devices, the tests of
the state and the bench all use these, so that what is tested is what ships.

Concurrency: made on the trio thread, and used there alone; each part's header says the rest. Who is
told something upward is an argument of who tells: what only notes what it hears (`Candidates`,
`Prepared`, `Schedule`, `Contact`, `Wake`) is made first. Nothing is told before all are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cache.files.collector import Candidates, Collector
from cache.files.contents import Contents, VersionReader
from cache.files.snapshots import Snapshots
from cache.files.spool import Spool
from cache.metadata.database import Database
from cache.metadata.invalidation import Invalidation, Invalidator
from cache.metadata.journal import Journal, Watcher
from cache.metadata.manifests import Manifests
from cache.metadata.tree import Tree
from cache.namespace.edits import Edits
from cache.namespace.listing_merge import ListingMerge
from cache.namespace.merge import Merge
from cache.namespace.rebuilding import FilePort
from cache.namespace.shares import Shares
from cache.sync.batches import ApplyPort, Batches
from cache.sync.listing import AheadApi, Listing, ReadApi
from cache.sync.prepared import Prepared
from cache.sync.replayer import Replayer
from cache.sync.resolver import Resolver
from cache.sync.retries import Waits
from cache.sync.schedule import Pace, Schedule
from cache.sync.signals import Contact, Wake
from cache.sync.uploader import KeepBlocks, KeepManifest, Uploader
from cache.sync.uploads import Uploads
from remote.transfer.upload import Sender, UploadPort


class SendApi(ApplyPort, FilePort, UploadPort, AheadApi, Protocol):
    """The part of `remote.http.api.ApiClient` that sending needs."""


class Local:
    """The parts of a device that work without a server. `reader` reads versions that the server
    has; `in_use` says whether the kernel still speaks of an inode. `watcher` and `on_rekey` are
    told of the journal, `on_change` of bytes that were overwritten (`Contents`)."""

    def __init__(
        self,
        db: Database,
        spool: Spool,
        manifests: Manifests,
        reader: VersionReader,
        invalidator: Invalidator,
        in_use: Callable[[int], bool],
        *,
        watcher: Watcher | None = None,
        on_rekey: Callable[[str, str], None] = lambda old, new: None,
        on_change: Callable[[int, int, int], None] = lambda ino, start, stop: None,
    ) -> None:
        self.db, self.spool, self.manifests = db, spool, manifests
        self.candidates = Candidates()
        self.tree = Tree(db, self.candidates.left)
        dropped = self.candidates.dropped
        self.journal = Journal(db, watcher, self.candidates.unreferenced, on_rekey)
        told = Invalidation(db, invalidator, self.tree.is_gone)
        self.shares = Shares(db, self.tree, self.journal, told, dropped)
        self.edits = Edits(db, self.tree, self.journal, self.shares, dropped)
        self.contents = Contents(db, self.tree, spool, reader, self.edits, on_change)
        self.collector = Collector(
            db, self.tree, self.journal, self.contents, self.candidates, in_use
        )
        self.merge = Merge(db, self.tree, self.journal, self.shares, told, dropped)
        self.listing_merge = ListingMerge(db, self.tree, self.journal, self.merge, told)


class Device(Local):
    """`send` is asked by what goes to the server, `read` by what somebody waits for. What was just
    sent is known here too: `keep_manifest` and `keep_plain`. `require_online` raises `Unreachable`
    while it is known that nobody answers; `on_reachable` is told when what is sent begins, or
    ceases, to arrive. `name`: in names of conflicted copies, which are made where `keep_copies`.
    `has_asker`: somebody has the writers of open files pause now and then (`Snapshots`)."""

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
        keep_manifest: KeepManifest,
        keep_plain: KeepBlocks,
        require_online: Callable[[], None],
        on_reachable: Callable[[], None],
        name: str,
        keep_copies: bool,
        has_asker: bool,
    ) -> None:
        prepared = Prepared()
        schedule = Schedule(prepared.has_bytes)
        super().__init__(
            db,
            spool,
            manifests,
            reader,
            invalidator,
            in_use,
            watcher=schedule,
            on_rekey=prepared.rekeyed,
            on_change=self._content_changed,
        )
        self.pace, self._wake, self._sends = Pace(), Wake(), Waits()
        self._prepared, self._schedule, self._contact = prepared, schedule, Contact(on_reachable)
        self.listing = self._make_listing(read, send, keep_manifest, require_online)
        self.sender = Sender(send)
        self.uploader = self._make_uploader(keep_manifest, keep_plain)
        self.resolver = self._make_resolver(send, name, keep_copies)
        self.snapshots = Snapshots(
            self.tree, self.journal, self.contents, self.uploader.snapshot, has_asker=has_asker
        )
        self.uploads = self._make_uploads()
        self.batches = self._make_batches(send)
        self.replayer = self._make_replayer()

    def _make_listing(
        self,
        read: ReadApi,
        ahead: AheadApi,
        keep_manifest: KeepManifest,
        require_online: Callable[[], None],
    ) -> Listing:
        return Listing(
            self.tree,
            self.manifests,
            self.merge,
            self.listing_merge,
            self.collector.collect,
            read,
            ahead,
            keep_manifest,
            require_online,
        )

    def _make_uploader(self, keep_manifest: KeepManifest, keep_plain: KeepBlocks) -> Uploader:
        return Uploader(
            self.db,
            self.tree,
            self.journal,
            self.contents,
            self.sender,
            self.listing.manifest_of,
            keep_manifest,
            keep_plain,
            self._prepared,
            on_ready=self._schedule.touched,
            on_arrival=self._contact.arrived,
        )

    def _make_resolver(self, send: SendApi, name: str, keep_copies: bool) -> Resolver:
        return Resolver(
            self.db,
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

    def _make_uploads(self) -> Uploads:
        return Uploads(
            self.tree,
            self.journal,
            self.contents,
            self.snapshots,
            self.uploader,
            self.resolver,
            self._schedule,
            self.pace,
            self._sends,
            self._contact,
            self._wake,
        )

    def _make_batches(self, send: ApplyPort) -> Batches:
        return Batches(
            self.db,
            self.tree,
            self.journal,
            self.contents,
            self.merge,
            self.uploader,
            self.resolver,
            send,
            self._sends,
            self._contact,
            self.collector.collect,
            hurry=self.uploads.waits.hurry,
        )

    def _make_replayer(self) -> Replayer:
        return Replayer(
            self.journal,
            self.merge,
            self.snapshots,
            self._schedule,
            self.pace,
            self.uploads,
            self.batches,
            self._sends,
            self._contact,
            self._wake,
        )

    def _content_changed(self, ino: int, start: int, stop: int) -> None:
        self.uploader.note_write(ino, start, stop)
        if self.uploader.wants_early(ino):
            self._wake()
