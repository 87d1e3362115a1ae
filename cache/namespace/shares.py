"""The shares of others with this account: where each appears, and who may write where.

Knows: the directories that exist on this device only (Shared, and one for each owner in it), the
`share` table, roles, and what becomes of a share that ends. Must not know: how it is told
(`merge`), the kernel, what is sent.

Shared/OWNER/NAME is the node of the shared file itself; below it the tree is like anywhere else.
When a share ends, its names go and its nodes are revoked: nothing of them can be read any more,
also through open handles. What was changed in it here and has not reached the server is kept: its
file moves to the top of the own drive, and its operations, which the server refuses by then, bring
it there (see `resolver`). Should they have reached the server before that, or should the file be
shared again, it is not kept any longer: it is where the server has it, if that can be seen.

Concurrency: synchronous, on the trio thread; `apply` inside a transaction. `_roles`
mirrors the `share` table, `_may_write` what the account may do in its own drive; both are read
again after a rollback.

Why one class: where a share is shown, who may write in it and what its end leaves are answered from
the same two mirrors, which only a change of shares renews.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections.abc import Collection

from cache.metadata import clock
from cache.metadata.database import Database
from cache.metadata.invalidation import Invalidation
from cache.metadata.journal import Journal
from cache.metadata.operations import Op, new_id
from cache.metadata.tree import HISTORY, LOCAL, REVOKED, ROOT, Dropped, Entry, Node, Tree, node_from
from cache.namespace.conflicts import marked_name
from remote.protocol.ids import DriveId, FileId
from remote.protocol.messages import SHARED_NAME, FileRecord, Role, SharedRoot

KEPT_MARK = "no longer shared"


class Shares:
    """`dropped` is called, inside the transaction, with a node that no name means any more."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        invalidation: Invalidation,
        dropped: Dropped,
    ) -> None:
        self._db, self._tree, self._journal = db, tree, journal
        self._kernel, self._dropped = invalidation, dropped
        self._roles: dict[FileId, Role] = {}
        self._may_write = False  # asked for with every answer to the kernel
        db.on_rollback.append(self._load)
        self._load()

    def _load(self) -> None:
        self._roles = {row["file"]: row["role"] for row in self._db.all("SELECT * FROM share")}
        self._may_write = self._db.meta("scope") != "read"

    def take_scope(self, scope: str) -> None:
        """Take over what the login allows from now on. In a transaction."""
        self._db.set_meta("scope", scope)
        self._may_write = scope != "read"

    # --- roles ------------------------------------------------------------------------------------

    def role(self, node: Node) -> Role:
        """The role that this account has on the node, by the server's rules."""
        if node.drive == self._tree.own_drive:
            return "owner" if self._may_write else "viewer"
        if not self._roles or node.drive in (LOCAL, REVOKED):
            return "viewer"
        names = self._tree.names(node.ino)
        if not names and not node.live:
            return "editor"  # only its open handles see it; they were opened by one
        return self._granted(node)

    def _granted(self, node: Node) -> Role:
        """The strongest role on the node or a directory above, over all its names."""
        todo = [node]
        while todo:
            here = todo.pop()
            if self._roles.get(here.file) == "editor":
                return "editor"
            for parent, _ in self._tree.names(here.ino):
                holder = self._tree.node(parent)
                if holder.drive == node.drive:
                    todo.append(holder)
        return "viewer"

    def check_reach(self, place: Node, known: Collection[int]) -> None:
        """Raise OSError (EXDEV) where a name in directory `place` would change who reaches what has
        names in the directories `known`, as far as this account can see: in another's drive its
        owner decides that. What this account cannot see the server refuses."""
        if place.drive in (self._tree.own_drive, LOCAL) or place.ino in known:
            return
        reach = self._reach(place)
        if not any(self._reach(self._tree.node(item)) == reach for item in known):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def _reach(self, place: Node) -> frozenset[FileId]:
        """The shared files at or above a directory."""
        found, here = set[FileId](), place
        while here.drive == place.drive:
            found |= {here.file} & self._roles.keys()
            here = self._tree.node(self._tree.parent(here.ino))
        return frozenset(found)

    def is_writable(self, node: Node) -> bool:
        return self.role(node) != "viewer"

    def check_writable(self, node: Node) -> None:
        """Raise OSError: EROFS where this account may only read, EACCES what it may not even."""
        if node.drive == REVOKED:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if not self.is_writable(node):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def check_readable(self, node: Node) -> None:
        """Raise OSError (EACCES) for what is not shared any more."""
        if node.drive == REVOKED:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    # --- what is shared ---------------------------------------------------------------------------

    def apply(self, shared: list[SharedRoot]) -> set[DriveId]:
        """`shared` is everything from now on. In a transaction. Returns the drives in which a file
        was given anew after it had been taken back: what went on in between nobody tells."""
        was = {row["file"]: row for row in self._db.all("SELECT * FROM share")}
        now = {root.file.id: root for root in shared}
        for row in was.values():
            if row["name"] and _moves(row, now):
                self._leave(row["file"])
        self._db.run("DELETE FROM share")
        for root in shared:
            values = (root.file.id, root.drive, root.owner, root.name, root.role, root.given_ns)
            self._db.run("INSERT INTO share VALUES (?, ?, ?, ?, ?, ?)", *values)
        self._load()
        for root in shared:
            if root.name and not self._is_in_place(root, root.name):
                self._place(root, root.name)
        for row in was.values():
            node = None if row["file"] in now else self._tree.live(row["file"])
            if node is not None and not self._tree.names(node.ino):
                self.end(node, row["name"] or "shared file")
        self._tidy()
        changed = {item["drive"] for item in was.values()} | {root.drive for root in shared}
        self._forget_modes(changed)
        self._try_again(changed)
        return {
            root.drive
            for root in shared
            if root.file.id in was and was[root.file.id]["given_ns"] != root.given_ns
        }

    def _leave(self, file: FileId) -> None:
        """Take the name under Shared away."""
        node = self._tree.live(file)
        for parent, name in [] if node is None else self._tree.names(node.ino):
            if node is not None and self._tree.node(parent).drive == LOCAL:
                self._drop(parent, name, node)

    def _drop(self, parent: int, name: str, node: Node) -> None:
        self._tree.drop_entry(parent, name, node)
        self._tree.touch(parent, clock.moment())
        self._kernel.forget_entry(parent, name, node.ino)

    def _is_in_place(self, root: SharedRoot, name: str) -> bool:
        """Not when the server's refusal of a change told of the end before the feed did."""
        holder = self._directory(self._directory(ROOT, SHARED_NAME), root.owner)
        node = self._tree.child(holder, name)
        return node is not None and node.file == root.file.id

    def _place(self, root: SharedRoot, name: str) -> None:
        holder = self._directory(self._directory(ROOT, SHARED_NAME), root.owner)
        node = self._tree.live(root.file.id)
        if node is None:
            node = self._tree.insert(node_from(root.file, root.drive))
            self._tree.replace_xattrs(node.ino, root.file.xattrs)
        else:
            self.reclaim(node, root.drive)
            if node.is_directory:  # it has one name: the new one
                for parent, old in self._tree.names(node.ino):
                    self._drop(parent, old, node)
        self._tree.add_entry(holder, name, node)
        self._tree.touch(holder, clock.moment())
        self._kernel.forget_entry(holder, name)

    def part(self, file: FileId, record: FileRecord | None) -> None:
        """The node that was `file` is another from now on: what is shared by itself is the file.
        `record` is what the server has of it, if that can be seen. In a transaction."""
        row = self._db.one("SELECT * FROM share WHERE file = ? AND name != ''", file)
        if row is None:
            return
        holder = self._directory(self._directory(ROOT, SHARED_NAME), row["owner"])
        was, name = self._tree.child(holder, row["name"]), row["name"]
        if was is not None and was.file != file:
            self._drop(holder, name, was)
            if not self._tree.names(was.ino):
                self.end(was, name)
            if record is not None:
                told = {column: row[column] for column in ("drive", "owner", "name", "role")}
                self._place(SharedRoot(file=record, **told), name)

    def _directory(self, parent: int, name: str) -> int:
        """The directory of this device that is called `name` in `parent`; made if missing."""
        found = self._tree.child(parent, name)
        if found is not None:
            return found.ino
        now = clock.moment().stamp
        seed = f"{self._tree.node(parent).file}/{name}"
        record = FileRecord(
            id=hashlib.sha256(seed.encode()).hexdigest()[:32],
            kind="directory",
            mode=0o555,
            mtime_ns=now,
            ctime_ns=now,
            rev=0,
        )
        node = node_from(record, LOCAL)
        node.listed = 0
        self._tree.insert(node)
        self._tree.add_entry(parent, name, node)
        self._kernel.forget_entry(parent, name)
        return node.ino

    def _tidy(self) -> None:
        """Directories of this device that hold nothing any more."""
        shared = self._tree.child(ROOT, SHARED_NAME)
        if shared is None:
            return
        for entry in self._tree.entries(shared.ino, 0, 100_000):
            self._remove_if_empty(shared.ino, entry.name, entry.node)
        self._remove_if_empty(ROOT, SHARED_NAME, shared)

    def _remove_if_empty(self, parent: int, name: str, node: Node) -> None:
        if self._tree.is_empty(node.ino):
            self._drop(parent, name, node)
            self._tree.update(node.ino, live=False)
            self._dropped(node)

    def _forget_modes(self, drives: set[str]) -> None:
        """The kernel remembers modes, which tell the role."""
        for drive in drives:
            for row in self._db.all("SELECT ino FROM node WHERE drive = ? AND live", drive):
                self._kernel.forget_attributes(row["ino"])

    def _try_again(self, drives: set[DriveId]) -> None:
        """Send operations again that were refused for what is shared with whom, where that is
        otherwise now."""
        for op in list(self._journal):
            if op.refused and op.refused.startswith(("forbidden", "other_reach")):
                node = self._tree.find(op.ino)
                if node is not None and node.drive in drives and self.is_writable(node):
                    self._ask_again(op)

    def _ask_again(self, op: Op) -> None:
        self._journal.rewrite(op, refused=None, key=new_id())

    # --- the end of a share, or of a part of one --------------------------------------------------

    def end(self, node: Node, name: str) -> None:
        """`node`, called `name` until now, has left what is shared. In a transaction."""
        for below, child in self._below(node):
            self._drop(node.ino, below, child)
            if not self._tree.names(child.ino):
                self.end(child, below)
        if self._has_unsent(node):
            self._keep(node, name)
        else:
            self._revoke(node)

    def _below(self, node: Node) -> list[tuple[str, Node]]:
        """Names and nodes in a directory, but for those that were made here in one that was made
        here too."""
        if not node.is_directory or self._is_made_here(node):
            return []
        found, after = [], 0
        while page := self._tree.entries(node.ino, after, 1000):
            found += [(entry.name, entry.node) for entry in page]
            after = page[-1].cookie
        return found

    def _is_made_here(self, node: Node) -> bool:
        return any(op.kind == "create" for op in self._journal.of_file(node.file))

    def _has_unsent(self, node: Node) -> bool:
        ops = self._journal.of_file(node.file)
        return any(op.ino == node.ino and (op.has_content or op.kind == "create") for op in ops)

    def _revoke(self, node: Node) -> None:
        """The node, and what shows older versions of its file."""
        own, file = self._tree.own_drive, node.file
        older = self._db.all(
            "SELECT ino FROM node WHERE NOT live AND (file = ? OR base_file = ?) AND drive != ?"
            " UNION SELECT ino FROM node WHERE drive = ? AND base_file = ?",
            *(file, file, own, HISTORY, file),
        )
        for item in (node, *(self._tree.node(row["ino"]) for row in older)):
            self._db.run("DELETE FROM entry WHERE parent = ?", item.ino)
            self._tree.update(item.ino, live=False, drive=REVOKED)
            self._forget_manifest(item)
            self._kernel.forget_content(item.ino)
            self._dropped(item)

    def _forget_manifest(self, node: Node) -> None:
        self._db.run(
            "DELETE FROM manifest WHERE version = ? AND version NOT IN"
            " (SELECT version FROM op WHERE version IS NOT NULL) AND NOT EXISTS"
            " (SELECT 1 FROM op JOIN node USING (ino) WHERE node.version = manifest.version)",
            node.version,
        )

    def lose(self, ino: int) -> None:
        """The server knows a file no more that was changed in a share: where it was made, or the
        place it had under Shared, is gone. In a transaction."""
        node = self._tree.node(ino)
        if node.drive == self._tree.own_drive or not node.live:
            return
        lost = ""
        for parent, name in self._tree.names(ino):
            if self._is_made_here(node) or self._tree.node(parent).drive == LOCAL:
                self._drop(parent, name, node)
                lost = name
        if lost and not self._tree.names(ino):
            self._keep(node, lost)

    def _keep(self, node: Node, name: str) -> None:
        """Changed here, and on no server: it goes on at the top of the own drive."""
        number = 1
        while self._tree.child(ROOT, fresh := marked_name(name, KEPT_MARK, number)) is not None:
            number += 1
        self._tree.add_entry(ROOT, fresh, node)
        self._kernel.forget_entry(ROOT, fresh)
        self._own(node)

    def _own(self, node: Node) -> None:
        """A subtree that was made here is of the own drive from now on; what was not, is not."""
        self._tree.update(node.ino, drive=self._tree.own_drive)
        for op in self._journal.of_file(node.file):
            if op.refused:  # for reasons of a share that is no more
                self._ask_again(op)
        if node.is_directory:
            for entry in self._tree.entries(node.ino, 0, 1_000_000):
                self._own_or_end(node, entry)

    def _own_or_end(self, holder: Node, entry: Entry) -> None:
        elsewhere = any(parent != holder.ino for parent, _ in self._tree.names(entry.node.ino))
        if self._has_unsent(entry.node) and not elsewhere:
            self._own(entry.node)
            return
        self._drop(holder.ino, entry.name, entry.node)
        if not self._tree.names(entry.node.ino):
            self.end(entry.node, entry.name)

    # --- what was kept, and need not be -----------------------------------------------------------

    def reclaim(self, node: Node, drive: DriveId) -> None:
        """`node` is seen in `drive`, where it is shared (again). In a transaction."""
        if node.drive != drive:
            self._leave_top(node)
            self._hand_over(node, drive)

    def landed(self, ino: int, drive: DriveId) -> None:
        """An operation on the inode was applied in `drive` after all. In a transaction."""
        node = self._tree.find(ino)
        own = self._tree.own_drive
        if node is None or not node.live or own in (drive, "") or node.drive != own:
            return
        if not self._has_unsent(node):
            name = self._leave_top(node)
            if not self._tree.names(ino):
                self.end(node, name)

    def _leave_top(self, node: Node) -> str:
        """Take the name away under which it was kept; returns that."""
        kept = ""
        for parent, name in self._tree.names(node.ino):
            if self._tree.node(parent).drive == self._tree.own_drive:
                self._drop(parent, name, node)
                kept = name
        return kept

    def _hand_over(self, node: Node, drive: DriveId) -> None:
        self._tree.update(node.ino, drive=drive)
        node.drive = drive
        if node.is_directory:
            for entry in self._tree.entries(node.ino, 0, 1_000_000):
                self._hand_over(entry.node, drive)


def _moves(row: sqlite3.Row, now: dict[FileId, SharedRoot]) -> bool:
    """True if the share of this row loses its place."""
    root = now.get(row["file"])
    return root is None or (root.owner, root.name) != (row["owner"], row["name"])
