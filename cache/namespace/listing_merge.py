"""Listings of directories merged into the local tree, in pieces.

Knows: how an answer that took its time is laid under what the feed has told since it was asked for,
and which of its entries can be put in without a comparison. Must not know: what one record becomes
(`merge`), what is asked, and when (`cache.sync.listing`).

Invariant: a directory counts as listed when all of an answer is in, and everything that the feed
told meanwhile is over it.

Concurrency: synchronous, on the trio thread, one transaction for each piece; others may have their
turn between two of them. The kernel is told after the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import structs

from cache.metadata.database import Database
from cache.metadata.invalidation import Invalidation
from cache.metadata.journal import Journal
from cache.metadata.operations import entry_key, file_key
from cache.metadata.tree import LOCAL, Tree
from cache.namespace.merge import Merge
from cache.namespace.underway import Meanwhile
from remote.protocol.messages import Child, EntryRecord, FileRecord


class ListingMerge:
    """See above."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        merge: Merge,
        invalidation: Invalidation,
    ) -> None:
        self._db, self._tree, self._journal = db, tree, journal
        self._merge, self._kernel = merge, invalidation

    def begin_listing(self, ino: int) -> Meanwhile:
        """The directory is about to be asked for: from now on the feed may run ahead of the answer.
        `end_listing` or `abandon_listing` follows."""
        return self._merge.underway.begin(ino)

    def abandon_listing(self, ino: int, meanwhile: Meanwhile) -> None:
        """No answer came. Does nothing after `end_listing`."""
        self._merge.underway.end(ino, meanwhile)

    def list_some(self, ino: int, children: Sequence[Child], as_of: int) -> None:
        """Some entries of the directory as they were at `as_of`. What nothing is known of, which is
        most in a first listing, is put in at once; the rest one by one. What the feed has told of a
        name since is applied when the listing ends: should it be given up, the name shall not be as
        it was before."""
        newer = self._merge.underway.newer(ino, as_of)
        with self._db.transaction():
            for child in children if newer else ():
                if child.entry.name in newer:
                    self._merge.learn(child.file)
            children = [child for child in children if child.entry.name not in newer]
            fresh, others = self._split(ino, children, as_of)
            parent = self._tree.find(ino)
            if parent is not None and parent.live:
                self._tree.add_fresh(parent, fresh)
                for child in fresh:
                    self._kernel.forget_entry(ino, child.entry.name)
            for child in others:
                self._merge.learn(child.file)
                entry = self._not_before(child.entry, as_of)
                self._merge.learn_entry(entry, {child.file.id: child.file}, listing=True)
        self._kernel.tell()

    def end_listing(
        self,
        ino: int,
        directory: FileRecord,
        children: Iterable[Child],
        as_of: int,
        meanwhile: Meanwhile,
    ) -> bool:
        """`children` were all that the directory held; what the feed has told since `begin_listing`
        is applied over that. False: that is not known whole, so the directory is not listed yet."""
        self.abandon_listing(ino, meanwhile)
        if meanwhile.is_incomplete:
            return False
        listed = {child.entry.name for child in children}
        with self._db.transaction():
            self._merge.learn(directory)
            parent = self._tree.node(ino)
            rows = self._db.all(
                "SELECT name FROM entry JOIN node USING (ino) WHERE parent = ? AND drive != ?",
                ino,
                LOCAL,
            )
            for name in [row["name"] for row in rows if row["name"] not in listed]:
                gone = EntryRecord(parent=parent.file, name=name, file=None, rev=as_of)
                self._merge.learn_entry(gone, {}, listing=True)
            self._tree.update(ino, listed=as_of)
            for record in meanwhile.files.values():
                self._merge.learn(record)
            for entry in meanwhile.entries:
                self._merge.learn_entry(entry, meanwhile.files)
            self._kernel.forget_attributes(ino)  # how many directories are in it is known now
        self._kernel.tell()
        return self._tree.node(ino).listed is not None

    def _split(
        self, ino: int, children: Sequence[Child], as_of: int
    ) -> tuple[list[Child], list[Child]]:
        """Those of which neither name nor file is known here, and those that must be compared.
        What is known to be just so is in neither."""
        here = self._tree.entries_named(ino, [child.entry.name for child in children])
        live = self._tree.which_live([child.file.id for child in children])
        is_quiet = self._db.one("SELECT 1 FROM shadow LIMIT 1") is None
        fresh: list[Child] = []
        others: list[Child] = []
        for child in children:
            entry, file = child.entry, child.file
            key = entry_key(entry.parent, entry.name)
            pending = self._journal.is_pending(key) or self._journal.is_pending(file_key(file.id))
            if not is_quiet or pending or self._merge.rev_ahead(key):
                others.append(child)
            elif entry.name not in here and file.id not in live:
                fresh.append(child)
                live.add(file.id)
                here[entry.name] = (entry.rev, file.id, file.rev)
            elif here.get(entry.name) != (entry.rev, file.id, file.rev):
                others.append(child)
        return fresh, others

    def _not_before(self, entry: EntryRecord, as_of: int) -> EntryRecord:
        """An answer tells also of names that it has left as they were. For the server these are no
        newer by that, and a listing that came after the answer is not older than it."""
        rev = self._merge.rev_ahead(entry_key(entry.parent, entry.name))
        return structs.replace(entry, rev=rev) if entry.rev < rev <= as_of else entry
