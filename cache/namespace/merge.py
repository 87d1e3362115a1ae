"""Remote changes merged into the local tree.

Knows: how a record that tells a file's or name's state after a change becomes rows, what a local
operation in the journal holds back, and what the kernel must forget. Must not know: how changes
arrive (`remote.feed.subscriber`), what is sent (`replayer`), what a share is (`shares`), FUSE.

The rule: a record that no unacknowledged local operation writes is applied; one that is held is
kept as a shadow, and applied when the last such operation is acknowledged or refused. Records tell
whole states and carry the drive sequence number that made them, so an older one never undoes a
newer one, and applying one twice does nothing.

A new version of a regular file, or a new mtime, looks like an atomic replace: the file gets a new
inode, and open handles keep the old one and its bytes (the kernel keeps one size and one page
cache for each inode: both belong to the version).

Concurrency: on the trio thread; synchronous, one transaction per piece of a page of
changes or acknowledgement; the kernel is told after the commit. `take` and `reset` alone await,
between transactions: listings and acknowledgements come in between, other pages do not.

Why one class: the feed, acknowledgements and listings (`listing_merge`, by `learn` and
`learn_entry`) are three ways in which the same records come, and what one of them knows to be newer
decides what another may still say.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import structlog
import trio
from msgspec import structs

from cache.metadata import clock
from cache.metadata.database import Database
from cache.metadata.invalidation import Invalidation
from cache.metadata.journal import Journal
from cache.metadata.operations import Op, entry_key, file_key, writes
from cache.metadata.tree import ROOT, Dropped, Node, Tree, node_from
from cache.namespace.shares import Shares
from cache.namespace.underway import Underway
from remote.protocol.errors import NotKept
from remote.protocol.ids import DriveId, FileId
from remote.protocol.messages import (
    MAX_SENT_AS,
    Change,
    EntryRecord,
    FileRecord,
    Me,
    SharedRoot,
)

log = structlog.get_logger(__name__)

# In `meta`, before the key of a name: see `Merge._ahead`.
GONE = "gone:"
# Of the feed, applied in one transaction: some 10 ms.
CHANGES_AT_ONCE = 30
# Rows changed in one transaction when much is not to be believed any more: some milliseconds.
PIECE = 1000
# In `meta`: ids with spaces between.
DEVICES = "device"


def _newest_first(device: str, before: list[str]) -> list[str]:
    return [device, *(item for item in before if item != device)][:MAX_SENT_AS]


class Merge:
    """`dropped` is called, inside the transaction, with a node that no name means any more."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        shares: Shares,
        invalidation: Invalidation,
        dropped: Dropped,
    ) -> None:
        self._db, self._tree, self._journal = db, tree, journal
        self._shares, self._kernel, self._dropped = shares, invalidation, dropped
        # Names whose newest record came as an acknowledgement, ahead of the feed: what the feed (or
        # a listing under way) still says of them from before is old, also when the name is gone and
        # no row could tell: (drive, sequence number) by entry key. Names that are gone are in the
        # database too: after a restart a row tells of all others.
        self._ahead = self._recall_gone()
        self._shadows = set[str]()  # keys of the table, which is asked at each answer
        self._load_shadows()
        db.on_rollback.append(self._load_shadows)
        self.underway = Underway()
        # Set, and replaced, after remote changes were applied, or nobody can tell what changed.
        self.changed = trio.Event()

    # --- the first contact ------------------------------------------------------------------------

    def adopt(self, me: Me) -> None:
        """Remember whose drive this is; make the root at first contact. Raises ValueError when
        the state belongs to another drive, `NotKept` when the disk is full."""
        known = self._db.meta("drive")
        if known is not None and known != me.drive:
            raise ValueError(
                f"this state directory belongs to another drive ({known}); use another --state"
            )
        with _kept(), self._db.transaction():
            for key in ("drive", "root", "account"):
                self._db.set_meta(key, getattr(me, key))
            self._db.set_meta(DEVICES, " ".join(_newest_first(me.device_id, self.devices())))
            self._shares.take_scope(me.scope)
            self._db.set_meta("used_bytes", me.used_bytes)
            self._db.set_meta("quota_bytes", me.quota_bytes)
            if self._tree.find(ROOT) is None:
                self._db.set_meta("cursor", me.cursor)
                self._db.set_meta("seq", me.seq)
                now = clock.moment().stamp
                record = FileRecord(
                    id=me.root, kind="directory", mode=0o755, mtime_ns=now, ctime_ns=now, rev=0
                )
                root = node_from(record, me.drive)
                root.ino = ROOT
                self._tree.insert(root)

    def devices(self) -> list[str]:
        """As which devices this mount may have sent what has no answer yet, the present one first:
        a new login of the account is another device."""
        return str(self._db.meta(DEVICES) or "").split()

    # --- the feed (remote.feed.subscriber.FeedSink) -----------------------------------------------

    def cursor(self) -> str | None:
        value = self._db.meta("cursor")
        return None if value is None else str(value)

    def seq(self, drive: str) -> int:
        """The sequence number up to which the feed of a drive has been applied."""
        value = self._db.meta("seq" if drive == self._tree.own_drive else f"seq:{drive}")
        return value if isinstance(value, int) else 0

    async def take(
        self, changes: list[Change], cursor: str, seq: int, shared: list[SharedRoot] | None
    ) -> None:
        """`apply` in pieces, between which others are answered. The cursor comes with the last one:
        whoever dies before that is told all of it again, which changes nothing."""
        while len(changes) > CHANGES_AT_ONCE:
            some, changes = changes[:CHANGES_AT_ONCE], changes[CHANGES_AT_ONCE:]
            with _kept(), self._db.transaction():
                self._apply_some(some, shared)
            self._kernel.tell()
            shared = None
            await trio.lowlevel.checkpoint()
        self.apply(changes, cursor, seq, shared)

    def apply(
        self, changes: list[Change], cursor: str, seq: int, shared: list[SharedRoot] | None
    ) -> None:
        """A page of the feed."""
        with _kept(), self._db.transaction():
            self._apply_some(changes, shared)
            self._db.set_meta("cursor", cursor)
            self._db.set_meta("seq", seq)
            told = [key for key, (drive, rev) in self._ahead.items() if rev <= self.seq(drive)]
            for key in told:
                self._db.run("DELETE FROM meta WHERE key = ?", GONE + key)
        for key in told:
            del self._ahead[key]
        self._kernel.tell()
        if changes or shared is not None:
            self._tell_changed()

    def _tell_changed(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def _apply_some(self, changes: Sequence[Change], shared: list[SharedRoot] | None) -> None:
        if shared is not None:
            self._take_shares(shared)
        for change in changes:
            self._merge(self._with_times_of_edits(change))
            own = change.drive == self._tree.own_drive
            self._db.set_meta("seq" if own else f"seq:{change.drive}", change.seq)

    async def reset(self, cursor: str, seq: int, shared: list[SharedRoot] | None) -> None:
        """The feed cannot tell what happened: believe no listing, and let every record in. In
        pieces, between which others are answered. The cursor comes with the last one: whoever dies
        before that asks with the old one, and is told to do all of it again."""
        with _kept(), self._db.transaction():
            self._db.run("DELETE FROM meta WHERE key LIKE 'seq:%'")
            self._db.run("DELETE FROM meta WHERE key GLOB ?", GONE + "*")
            self._db.set_meta("seq", seq)
        self._ahead.clear()  # what is answered from here on is ahead of the new cursor
        pieces, is_done = self._distrust(None), False
        while not is_done:
            with _kept(), self._db.transaction():
                is_done = next(pieces, None) is None
            self._kernel.tell()
            await trio.lowlevel.checkpoint()
        with _kept(), self._db.transaction():
            if shared is not None:
                self._take_shares(shared)
            self._db.set_meta("cursor", cursor)
        self._kernel.tell()
        self._tell_changed()  # whatever is kept here (pinned) is asked for again

    def _take_shares(self, shared: list[SharedRoot]) -> None:
        """Take over the list of shares, with the records of those that have a place of their own: a
        change that follows may be from before it was shared, and tell that it was not in sight."""
        for drive in self._shares.apply(shared):
            deque(self._distrust(drive), maxlen=0)
        for root in shared:
            self._merge_file(root.file)

    def _distrust(self, drive: DriveId | None) -> Iterator[Literal["piece"]]:
        """The feed cannot tell what happened in the drive (None: in any): believe no listing, let
        every record in. A piece for each step, inside a transaction; nothing, when all is done.

        Listings come after all that they are compared with. What was listed before it is their
        turn is listed once more, and so is what is still being listed when the first of them has
        its turn: it may have been compared with what is not to be believed. The kernel comes last:
        what it asks for before a listing's turn is answered as believed, and it would keep that."""
        self.underway.forget()
        for first, last in self._tree.ranges("entry", PIECE):
            self._tree.doubt_entries(drive, first, last)
            yield "piece"
        for first, last in self._tree.ranges("node", PIECE):
            self._tree.doubt_nodes(drive, first, last)
            yield "piece"
        self.underway.forget()
        for first, last in self._tree.ranges("node", PIECE):
            self._tree.doubt_listings(drive, first, last)
            yield "piece"
        for first, last in self._tree.ranges("entry", PIECE):
            for parent, name in self._tree.names_between(drive, first, last):
                self._forget_entry(parent, name)
            yield "piece"

    # --- what was asked for ----------------------------------------------------------------------

    def learn(self, record: FileRecord) -> None:
        """Merge the server's answer about one file. In a transaction."""
        self._merge_file(record)

    def rev_ahead(self, key: str) -> int:
        """The sequence number that acknowledged the name of this key, ahead of the feed; 0: none
        did, or the feed has told of it."""
        return self._ahead.get(key, ("", 0))[1]

    def note_name(self, parent: int, name: str) -> None:
        """The kernel must look the name up again, once `after_commit` is called."""
        self._forget_entry(parent, name)

    # --- acknowledgements -------------------------------------------------------------------------

    def acknowledge(self, op: Op, change: Change) -> None:
        """The server applied `op`; `change` is the state it left. In a transaction."""
        self._journal.remove(op)
        if change.seq > self.seq(change.drive):
            for entry in change.entries:
                self._note_ahead(entry, change)
        own = {op.file, op.body.other}
        for record in change.files:
            if record.kind == "directory" and record.id not in own:
                self._note_directory(record)  # our own edit set its times here already
        files = [
            self._with_our_times(item)
            for item in change.files
            if item.kind != "directory" or item.id in own
        ]
        self._merge(structs.replace(change, files=files))
        self._shares.landed(op.ino, change.drive)
        self.release(op)

    def _note_ahead(self, entry: EntryRecord, change: Change) -> None:
        key = entry_key(entry.parent, entry.name)
        self._ahead[key] = (change.drive, change.seq)
        if entry.file is None:
            self._db.set_meta(GONE + key, f"{change.seq} {change.drive}")

    def _recall_gone(self) -> dict[str, tuple[str, int]]:
        rows = self._db.all("SELECT key, value FROM meta WHERE key GLOB ?", GONE + "*")
        values = ((row["key"].removeprefix(GONE), row["value"].partition(" ")) for row in rows)
        return {key: (drive, int(rev)) for key, (rev, _, drive) in values}

    def release(self, op: Op) -> None:
        """`op` left the journal: what it alone held back is applied. In a transaction."""
        for key in writes(op):
            if not self._journal.is_pending(key):
                self._release_key(key)
        node = self._tree.find(op.ino)
        if node is not None and node.live and not (node.is_directory or self._tree.names(op.ino)):
            self._unnamed(node)  # a listing had told that it is gone

    def release_free(self) -> None:
        """Apply what nothing holds back any more: local edits fold operations away, too."""
        if not self._shadows:
            return
        held = self._db.all("SELECT key, record FROM shadow")
        free = [key for key, packed in held if not self._holds(key, _unpack(key, packed))]
        if free:
            with self._db.transaction():
                for key in free:
                    self._release_key(key)
            self._kernel.tell()

    def _release_key(self, key: str) -> None:
        record = self._shadow(key)
        if record is None:
            return
        self._drop_shadow(key)
        if isinstance(record, FileRecord):
            self._merge_file(self._not_earlier(record))
        else:
            self._release_entry(record)

    def _not_earlier(self, record: FileRecord) -> FileRecord:
        """A record that was held back is older than what was made in the directory since then."""
        node = self._tree.live(record.id)
        if node is None or record.kind != "directory":
            return record
        mtime, ctime = max(record.mtime_ns, node.mtime_ns), max(record.ctime_ns, node.ctime_ns)
        return structs.replace(record, mtime_ns=mtime, ctime_ns=ctime)

    def _with_our_times(self, record: FileRecord) -> FileRecord:
        """The edit set ctime here when it happened; git and backup programs would read the file
        again if it moved when the server heard of it. What was made in a directory since then has
        moved its mtime, and whoever keeps a listing must not see that go back."""
        node = self._tree.live(record.id)
        if node is None:
            return record
        mtime = max(record.mtime_ns, node.mtime_ns) if node.is_directory else record.mtime_ns
        return structs.replace(record, ctime_ns=node.ctime_ns, mtime_ns=mtime)

    def _with_times_of_edits(self, change: Change) -> Change:
        """A directory has the times of the edit that waits to be answered: this is most often the
        same edit, and the feed was faster than the answer."""
        pending = self._journal.is_pending
        edited = {
            item.parent for item in change.entries if pending(entry_key(item.parent, item.name))
        }
        nodes = {file: self._tree.live(file) for file in edited}
        files = [
            structs.replace(item, mtime_ns=node.mtime_ns, ctime_ns=node.ctime_ns)
            if (node := nodes.get(item.id)) is not None
            else item
            for item in change.files
        ]
        return structs.replace(change, files=files) if edited else change

    def _release_entry(self, entry: EntryRecord) -> None:
        """A name that was held back. It may be older than the directory's listing, which was held
        back here too, so the listing says nothing against it."""
        parent = self._tree.live(entry.parent)
        if parent is None:
            return
        # What is still to come of a listing may be older, or newer.
        is_underway = self.underway.note(parent.ino, entry, {})
        if parent.listed is not None or is_underway:
            self.learn_entry(entry, {}, listing=True)

    def _note_directory(self, record: FileRecord) -> None:
        """Everything but the times. Not only its `rev`: what the feed has still to tell of the
        directory is older than that, and would be taken for known."""
        node = self._tree.live(record.id)
        if node is not None and record.rev > node.rev:
            ours = {"mtime_ns": node.mtime_ns, "ctime_ns": node.ctime_ns}
            self._merge_file(structs.replace(record, **ours))

    # --- records ----------------------------------------------------------------------------------

    def _merge(self, change: Change) -> None:
        files = {record.id: record for record in change.files}
        for record in change.files:
            self._merge_file(record)
        # New names before lost ones, so that a rename never leaves its file without a name.
        for entry in sorted(change.entries, key=lambda one: one.file is None):
            self.learn_entry(entry, files)

    def _holds(self, key: str, record: FileRecord | EntryRecord) -> bool:
        """True if an unacknowledged local operation holds this record back."""
        if self._journal.is_pending(key):
            return True
        return isinstance(record, EntryRecord) and self._is_edited(record)

    def _is_edited(self, record: EntryRecord) -> bool:
        """A name goes only after what was made or written under it here has reached the server:
        when the file is deleted there, or not shared any more, that brings it back, under that
        name. A directory's also when it has gone to another file: what is in ours goes into that
        one (`rebuilding`)."""
        parent = self._tree.live(record.parent)
        node = None if parent is None else self._tree.child(parent.ino, record.name)
        if node is None or record.file == node.file or not len(self._journal):
            return False
        if node.is_directory:
            files = self._tree.files_below(node.ino)
            return any(self._journal.is_needed(item) or self._is_written(item) for item in files)
        return record.file is None and self._is_written(node.file)

    def _is_written(self, file: FileId) -> bool:
        return any(op.kind in ("create", "write") for op in self._journal.of_file(file))

    def _held(self, key: str, record: FileRecord | EntryRecord) -> bool:
        """Is it held back, or older than what was? An answer can come when the feed has told of
        later changes already; what is free and not released yet must not undo what is newer."""
        shadow = self._shadow(key)
        known = None if shadow is None else shadow.rev
        if not self._holds(key, record):
            if known is not None and known < record.rev:
                self._drop_shadow(key)
            return known is not None and known > record.rev
        if known is None or known < record.rev:
            packed = msgspec.msgpack.encode(record)
            self._db.run("INSERT OR REPLACE INTO shadow VALUES (?, ?)", key, packed)
            self._shadows.add(key)
        return True

    # The `shadow` table: nearly always empty, and asked for every record.

    def _load_shadows(self) -> None:
        self._shadows = {row["key"] for row in self._db.all("SELECT key FROM shadow")}

    def _shadow(self, key: str) -> FileRecord | EntryRecord | None:
        if key not in self._shadows:
            return None
        row = self._db.one("SELECT record FROM shadow WHERE key = ?", key)
        return None if row is None else _unpack(key, row["record"])

    def _drop_shadow(self, key: str) -> None:
        self._db.run("DELETE FROM shadow WHERE key = ?", key)
        self._shadows.discard(key)

    def _merge_file(self, record: FileRecord) -> None:
        if self._held(file_key(record.id), record):
            return
        node = self._tree.live(record.id)
        if node is None:
            self.underway.note_file(record)
            return
        if record.rev <= node.rev:
            return
        content = record.kind == "file" and (
            (record.version, record.mtime_ns) != (node.version, node.mtime_ns)
        )
        if content:
            self._replace_node(node, record)
        else:
            self._update_node(node, record)

    def _replace_node(self, old: Node, record: FileRecord) -> None:
        fresh = node_from(record, old.drive)
        self._tree.update(old.ino, live=False)
        self._tree.insert(fresh)
        self._tree.replace_xattrs(fresh.ino, record.xattrs)
        for parent, name in self._tree.names(old.ino):
            self._kernel.forget_entry(parent, name, old.ino)
        self._tree.repoint(old.ino, fresh.ino)
        if record.links == 0 and not self._tree.names(fresh.ino):
            self._tree.update(fresh.ino, live=False)  # deleted elsewhere, and written here before
            self._dropped(fresh)
        self._dropped(old)

    def _update_node(self, node: Node, record: FileRecord) -> None:
        seen = ("mode", "uid", "gid", "mtime_ns", "links", "target")
        changed = any(getattr(node, name) != getattr(record, name) for name in seen)
        ctime = record.ctime_ns
        if ctime < node.ctime_ns:  # by the server's clock, which may be behind ours: it has moved,
            ctime = node.ctime_ns + changed  # and has not gone back
        self._tree.update(
            node.ino,
            mode=record.mode,
            uid=record.uid,
            gid=record.gid,
            mtime_ns=record.mtime_ns,
            ctime_ns=ctime,
            links=record.links,
            target=record.target,
            rev=record.rev,
        )
        self._tree.replace_xattrs(node.ino, record.xattrs)
        if record.links == 0 and not self._tree.names(node.ino):
            node.links = 0
            self._unnamed(node)
        if changed or ctime != node.ctime_ns:
            self._kernel.forget_attributes(node.ino)

    def learn_entry(
        self, entry: EntryRecord, files: dict[FileId, FileRecord], *, listing: bool = False
    ) -> None:
        """Merge a name, with the records of `files` that came with it. `listing`: it is of a
        listing, which says how its directory was, and not what happened in it."""
        key = entry_key(entry.parent, entry.name)
        if entry.rev < self.rev_ahead(key) or self._held(key, entry):
            return
        parent = self._tree.live(entry.parent)
        if parent is None:
            return
        if not listing:
            self.underway.note(parent.ino, entry, files)
        if parent.listed is None and not listing:
            # It is asked for when somebody looks; the kernel must not remember from before.
            self._forget_entry(parent.ino, entry.name)
            if not self._is_seen(entry, parent):
                return
        newest = max(
            self._tree.entry_rev(parent.ino, entry.name), 0 if listing else parent.listed or 0
        )
        if entry.rev < newest or (entry.rev == newest and not listing) or self._has_left(entry):
            return
        old = self._tree.child(parent.ino, entry.name)
        new = None if entry.file is None else self._node_for(entry, parent, files)
        if old is not None and new is not None and old.ino == new.ino:
            self._tree.set_entry_rev(parent.ino, entry.name, entry.rev)
            return
        if old is not None and new is not None:
            self._tree.point_entry(parent.ino, entry.name, old, new, entry.rev)
        elif old is not None:
            self._tree.drop_entry(parent.ino, entry.name, old)
        elif new is not None:
            self._tree.add_entry(parent.ino, entry.name, new, entry.rev)
        if old is not None and not self._tree.names(old.ino):
            self._remember_place(old, entry)
            told = files.get(old.file)
            if parent.drive != self._tree.own_drive and told is not None and not told.links:
                self._shares.end(old, entry.name)
            else:
                self._unnamed(old)
        self._kernel.forget_entry(parent.ino, entry.name, 0 if old is None else old.ino)

    def _is_seen(self, entry: EntryRecord, parent: Node) -> bool:
        """Does a directory that is not listed, or not to the end, have the name or its file all the
        same? What is looked up there must not stay as it was."""
        if self._tree.child(parent.ino, entry.name) is not None:
            return True
        node = None if entry.file is None else self._tree.live(entry.file)
        return node is not None and any(at == parent.ino for at, _ in self._tree.names(node.ino))

    def _remember_place(self, node: Node, entry: EntryRecord) -> None:
        """Another device took the last name of a file that was written here: should it prove to be
        gone, that is where its bytes come back."""
        for op in self._journal.of_file(node.file):
            if op.kind == "write" and op.ino == node.ino:
                place = {"last_parent": entry.parent, "last_name": entry.name}
                body = structs.replace(op.body, **place)
                self._journal.rewrite(op, body=body, refused=op.refused)

    def _node_for(
        self, entry: EntryRecord, parent: Node, files: dict[FileId, FileRecord]
    ) -> Node | None:
        """The node a name must mean now; made from its record when this device did not know it."""
        assert entry.file is not None
        node = self._tree.live(entry.file)
        if node is not None:
            self._shares.reclaim(node, parent.drive)
            if node.is_directory:
                self._leave_old_place(node, parent, entry.name)
            return node
        record = files.get(entry.file)
        if record is None:  # nothing told us what it is: ask the server when somebody looks
            self._tree.update(parent.ino, listed=None)
            return None
        node = self._tree.insert(node_from(record, parent.drive))
        self._tree.replace_xattrs(node.ino, record.xattrs)
        return node

    def _has_left(self, entry: EntryRecord) -> bool:
        """Is it a directory that moved on since? A listing of where it is now can come first, and
        what tells of that move later is older than the listing: nothing would bring it back."""
        node = None if entry.file is None else self._tree.live(entry.file)
        if node is None or not node.is_directory:
            return False
        return any(self._tree.entry_rev(*at) > entry.rev for at in self._tree.names(node.ino))

    def _leave_old_place(self, node: Node, parent: Node, name: str) -> None:
        """A directory has one name: the new one wins at once, so that the tree stays a tree."""
        for old_parent, old_name in self._tree.names(node.ino):
            if (old_parent, old_name) != (parent.ino, name):
                self._tree.drop_entry(old_parent, old_name, node)
                self._forget_entry(old_parent, old_name)

    def _unnamed(self, node: Node) -> None:
        """No name here means the node. It may live on in a directory that is not listed, or be
        about to get its new name from the same change; it is gone when the server says so."""
        record_gone = node.links == 0 or not node.is_directory
        if record_gone and not self._journal.is_pending(file_key(node.file)):
            self._tree.update(node.ino, live=False)
            self._dropped(node)

    def _forget_entry(self, parent: int, name: str) -> None:
        self._kernel.forget_entry(parent, name)

    def shadow_of_entry(self, parent: FileId, name: str) -> FileId | None:
        """The file that the server says a name means, which a local operation holds back here."""
        shadow = self._shadow(entry_key(parent, name))
        return shadow.file if isinstance(shadow, EntryRecord) else None

    def after_commit(self) -> None:
        """Tell the kernel what `acknowledge` and `release` changed, after their transaction."""
        self._kernel.tell()


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Makes an OSError of the disk (full) a `NotKept`: the feed is asked for the same again
    later."""
    try:
        yield
    except OSError as error:
        raise NotKept(f"cannot store what changed on the server: {error}") from error


def _unpack(key: str, packed: bytes) -> FileRecord | EntryRecord:
    """A row of `shadow`."""
    if key.startswith("F"):
        return msgspec.msgpack.decode(packed, type=FileRecord)
    return msgspec.msgpack.decode(packed, type=EntryRecord)
