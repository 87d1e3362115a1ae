"""Local system calls as changes of the tree and the journal, each in one transaction.

Knows: the rules of POSIX directories, and which journal operation an edit becomes, or how it folds
into one that the server has not seen. Must not know: the kernel, bytes beyond "content changed"
(`contents`), the network.

Folding keeps what need not be sent from being sent: a file that is created, written, renamed over
another and deleted before its turn leaves nothing behind. Only operations with `sent` unset are
touched. Every refusal is an OSError with the errno that the system call returns.

Concurrency: synchronous, on the trio thread. The directories named must be listed.

Why one class: how an edit folds depends on what the others have left in the journal, and a rename
is a removal, a link and a creation by turns. Who takes back a name is in `vacancies`.
"""

from __future__ import annotations

import errno
import os
import stat
import time

import msgspec

from cache.metadata import clock
from cache.metadata.clock import Moment
from cache.metadata.database import Database
from cache.metadata.journal import Journal
from cache.metadata.operations import (
    CONTENT_AND_ATTRIBUTES,
    Body,
    Op,
    new_id,
    since_handed_on,
    takes_back,
)
from cache.metadata.tree import LOCAL, ROOT, Dropped, Node, Tree
from cache.namespace import depth
from cache.namespace.refused_names import redirect_refused, refused_making
from cache.namespace.shares import Shares
from cache.namespace.vacancies import Place, Vacancies, Vacancy, is_new
from remote.protocol.ids import VersionId
from remote.protocol.messages import MAX_NAMES, SHARED_NAME, Kind

# Writing into a file whose change was refused tries it again, but a program that never stops
# writing shall not make that a stream of refusals.
AGAIN_SECONDS = 5.0


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _is_reachable(node: Node) -> bool:
    """Does what is done to the inode mean a file of the drive? One that is not live, but has links,
    was replaced by a remote version under an open handle. What is written and set there is a
    version too: the last writer wins."""
    return node.live or node.links > 0


class Edits:
    """`dropped` is called, inside the transaction, with a node that no name means any more."""

    def __init__(
        self, db: Database, tree: Tree, journal: Journal, shares: Shares, dropped: Dropped
    ) -> None:
        self._db, self._tree, self._journal = db, tree, journal
        self._shares, self._dropped = shares, dropped
        self._vacancies = Vacancies()

    # --- names ------------------------------------------------------------------------------------

    def create(
        self,
        parent: int,
        name: str,
        kind: Kind,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: str | None = None,
    ) -> Node:
        """A new file of any kind. Raises EEXIST, ENOENT (the directory is gone), EPERM,
        ENAMETOOLONG (a directory that would be too deep)."""
        with self._db.transaction():
            directory = self._directory(parent)
            self._check_free(parent, name)
            if kind == "directory":
                depth.check_new(self._tree, directory, name)
            if directory.mode & stat.S_ISGID:
                gid = directory.gid
                mode |= stat.S_ISGID if kind == "directory" else 0
            node = self._new_node(directory.drive, kind, mode, uid, gid, rdev, target)
            self._tree.add_entry(parent, name, node)
            self._tree.touch(parent, clock.moment())
            body = Body(
                parent=directory.file,
                name=name,
                directory=node.is_directory,
                regular=node.is_regular,
            )
            old = self._left_by(directory, name) if node.is_regular else None
            self._journal.add("create", node.ino, node.file, body)
            if old is not None:
                self._take_back(node, directory, name, old, Body())
            self._vacancies.filled((parent, name))
            return self._tree.node(node.ino)

    def _new_node(
        self, drive: str, kind: Kind, mode: int, uid: int, gid: int, rdev: int, target: str | None
    ) -> Node:
        now = clock.moment().stamp
        return self._tree.insert(
            Node(
                ino=0,
                file=new_id(),
                drive=drive,
                live=True,
                kind=kind,
                mode=mode & 0o7777,
                uid=uid,
                gid=gid,
                rdev=rdev,
                size=0,
                mtime_ns=now,
                ctime_ns=now,
                atime_ns=now,
                links=1,
                target=target,
                version=None,
                base_size=0,
                base_file=None,
                subdirs=0,
                rev=0,
                listed=0 if kind == "directory" else None,
            )
        )

    def link(self, ino: int, parent: int, name: str) -> Node:
        """Another name for a file. Raises EEXIST, ENOENT, EPERM (directory), EMLINK,
        EXDEV (it would change who reaches the file)."""
        with self._db.transaction():
            node, directory = self._tree.node(ino), self._directory(parent)
            if node.is_directory:
                raise fail(errno.EPERM)
            if not node.live or node.links == 0:
                raise fail(errno.ENOENT)
            if node.drive != directory.drive:
                raise fail(errno.EXDEV)
            self._shares.check_reach(directory, {place for place, _ in self._tree.names(ino)})
            if node.links >= MAX_NAMES:
                raise fail(errno.EMLINK)
            self._check_free(parent, name)
            now = clock.moment()
            self._tree.add_entry(parent, name, node)
            self._tree.update(ino, links=node.links + 1, ctime_ns=now.after(node.ctime_ns))
            self._tree.touch(parent, now)
            self._journal.add("link", ino, node.file, Body(parent=directory.file, name=name))
            self._vacancies.filled((parent, name))
            self._vacancies.linked(node.file, (parent, name), time.monotonic())
            return self._tree.node(ino)

    def unlink(self, parent: int, name: str, *, directory: bool) -> Node:
        """Remove a name: of an empty directory if `directory`, else of anything else."""
        with self._db.transaction():
            holder, node = self._directory(parent), self._child(parent, name)
            if directory and not node.is_directory:
                raise fail(errno.ENOTDIR)
            if node.is_directory and not directory:
                raise fail(errno.EISDIR)
            if node.is_directory and not self._tree.is_empty(node.ino):
                raise fail(errno.ENOTEMPTY)
            self._check_of_drive(node)
            kept = self._exchanged_with(node, (parent, name))
            now = clock.moment()
            self._tree.touch(parent, now)
            self._remove_name(parent, name, node, now)
            if kept is None:
                self._journal_removal(holder, name, node)
            else:
                here = Body(
                    parent=holder.file, name=name, new_parent=kept[1].file, new_name=kept[2]
                )
                self._journal_in_two_steps(kept[0], node, here)
            return node

    def _journal_removal(self, holder: Node, name: str, node: Node) -> None:
        if node.links == 1 and self._drop_unsent_file(node):
            return
        if node.links == 1:
            self._drop_unsent(node, CONTENT_AND_ATTRIBUTES)
        place = holder.file, name
        made = refused_making(self._journal, node, place)
        if made is not None:
            self._journal.remove(made)
            if made.kind == "link":
                return
            place = made.body.parent, made.body.name
        body = Body(parent=place[0], name=place[1], directory=node.is_directory)
        self._journal.add("unlink", node.ino, node.file, body)

    def _drop_unsent_file(self, node: Node) -> bool:
        """Take a file that the server has never heard of out of the journal; True if it was one."""
        if not self._journal.unsent_file(node.file):
            return False
        for op in self._journal.of_file(node.file):
            self._journal.remove(op)
        return True

    def _remove_name(self, parent: int, name: str, node: Node, now: Moment) -> None:
        """Take the name away; the node stops being live with its last one."""
        self._tree.drop_entry(parent, name, node)
        self._lose_link(node, now)

    def _lose_link(self, node: Node, now: Moment) -> None:
        """One of its names does not mean it any more."""
        links = max(0, node.links - 1)  # of a directory the server may have said that it is gone
        ctime = now.after(node.ctime_ns)
        self._tree.update(node.ino, links=links, ctime_ns=ctime, live=links > 0)
        if links == 0:
            self._dropped(node)

    def _drop_unsent(self, node: Node, kinds: frozenset[str]) -> list[Op]:
        """Take operations on a file whose content goes out of the journal; those taken."""
        ops = since_handed_on(self._journal.of_file(node.file))
        ops = [op for op in ops if op.kind in kinds and not op.sent]
        for op in ops:
            self._journal.remove(op)
        return ops

    def rename(
        self, parent: int, name: str, new_parent: int, new_name: str, *, replace: bool = True
    ) -> None:
        """Move a name, over what the new name meant unless `replace` is false. Raises EXDEV where
        that would change who reaches what is moved."""
        with self._db.transaction():
            source, target = self._directory(parent), self._directory(new_parent)
            node, over = self._child(parent, name), self._find(new_parent, new_name)
            self._check_not_reserved(new_parent, new_name)
            if over is not None and not replace:
                raise fail(errno.EEXIST)
            self._check_of_drive(node)
            if source.drive != target.drive:
                raise fail(errno.EXDEV)
            if over is not None and over.file == node.file:
                return  # two names of one file: rename(2) says do nothing
            self._shares.check_reach(target, {parent})
            if node.is_directory and self._tree.is_under(new_parent, node.ino):
                raise fail(errno.EINVAL)
            if over is not None:
                self._check_replaceable(node, over)
            depth.check_move(self._tree, node, (source, name), (target, new_name))
            old = self._whose_name(target, new_name, node, over)
            self._move(node, parent, name, new_parent, new_name, over)
            body = Body(
                parent=source.file,
                name=name,
                new_parent=target.file,
                new_name=new_name,
                directory=node.is_directory,
            )
            was_known = not self._journal.unsent_file(node.file)
            if old is not None:
                self._take_back(node, target, new_name, old, body)
            else:
                self._journal_move(node, over, body)
            if was_known:
                self._note_left(node, (parent, name), (new_parent, new_name))

    # Names that were left a moment ago: see `vacancies`.

    def _note_left(self, node: Node, place: tuple[int, str], new: tuple[int, str]) -> None:
        now = time.monotonic()
        undone = self._vacancies.find(new, now)
        self._vacancies.filled(new)
        is_back = undone is not None and undone.file == node.file
        if node.is_regular and node.links == 1 and place[0] == new[0] and not is_back:
            gone_on = self._tree.node(node.ino).file != node.file
            self._vacancies.left(Vacancy(node.file, node.ino, place, now, gone_on))

    def _whose_name(
        self, directory: Node, name: str, node: Node, over: Node | None
    ) -> tuple[Node, str] | None:
        """The file that `node`, which is renamed to `name`, goes on as, and what that one is called
        then: it left this name a moment ago, or has been given another one to keep."""
        if not node.is_regular or node.links != 1:
            return None
        if over is None:
            is_filled = is_new(node.file, time.time_ns())
            left = self._left_by(directory, name) if is_filled else None
            return None if left is not None and left[0].file == node.file else left  # it is back
        backup = self._vacancies.backup_of(over.file, time.monotonic())
        names = set(self._tree.names(over.ino))
        if backup is None or names != {(directory.ino, name), backup} or over.links != 2:
            return None
        return (over, backup[1]) if over.is_regular and backup[0] == directory.ino else None

    def _left_by(self, directory: Node, name: str) -> tuple[Node, str] | None:
        """The file that left the name a moment ago, as it is now, and what it is called; no name:
        its content went on as that of another. None when there is none, or it has moved on, or
        nobody can have been given it yet."""
        vacancy = self._vacancies.find((directory.ino, name), time.monotonic())
        if vacancy is None:
            return None
        if vacancy.gone_on:  # it is in the trash, which is its owner's
            node = self._tree.find(vacancy.ino)
            is_ours = directory.drive == self._tree.own_drive
            if node is None or not is_ours or self._tree.live(vacancy.file) is not None:
                return None
            return msgspec.structs.replace(node, file=vacancy.file, rev=0), ""
        node = self._tree.live(vacancy.file)
        names = [] if node is None else self._tree.names(node.ino)
        if node is None or node.links != 1 or len(names) != 1 or names[0][0] != directory.ino:
            return None
        return None if self._journal.unsent_file(node.file) else (node, names[0][1])

    def _take_back(
        self, node: Node, directory: Node, name: str, old: tuple[Node, str], body: Body
    ) -> None:
        """`node`, which has the name now, goes on as the file that had it before; what that one
        was is a new file under the name it has. For who was given the file nothing but a new
        version has come."""
        over, backup = old
        body.base = self._base_of(over)
        place = Body(parent=directory.file, name=backup, new_parent=directory.file, new_name=name)
        unsent = self._journal.unsent_create(node.file)
        if backup:
            place.other = new_id()
            self._journal.add("retake", over.ino, over.file, place)
            self._tree.update(over.ino, file=place.other, rev=0, links=1)
        else:  # it is in the trash: a name brings it back
            again = Body(parent=directory.file, name=name)
            self._journal.add("link", node.ino, over.file, again)
        self._take_identity(node, over, unsent, body, [])

    def _check_replaceable(self, node: Node, over: Node) -> None:
        if over.is_directory and not node.is_directory:
            raise fail(errno.EISDIR)
        if node.is_directory and not over.is_directory:
            raise fail(errno.ENOTDIR)
        if over.is_directory and not self._tree.is_empty(over.ino):
            raise fail(errno.ENOTEMPTY)

    def _move(
        self, node: Node, parent: int, name: str, new_parent: int, new_name: str, over: Node | None
    ) -> None:
        now = clock.moment()
        if over is not None:
            self._tree.point_entry(new_parent, new_name, over, node)
            self._tree.drop_entry(parent, name, node)
            self._lose_link(over, now)
        elif parent == new_parent:
            self._tree.rename_entry(parent, name, new_name)
        else:
            self._tree.drop_entry(parent, name, node)
            self._tree.add_entry(new_parent, new_name, node)
        self._tree.update(node.ino, ctime_ns=now.after(node.ctime_ns))
        self._tree.touch(parent, now)
        self._tree.touch(new_parent, now)

    def _journal_move(self, node: Node, over: Node | None, body: Body) -> None:
        """Which operation a rename is: see docs/semantics.md, "rename over"."""
        base = "" if over is None else self._base_of(over)
        if over is not None and over.links == 1 and self._drop_unsent_file(over):
            over = None
        unsent = self._journal.unsent_create(node.file)
        keeps_identity = (
            over is not None
            and node.is_regular
            and over.is_regular
            and node.links == 1
            and over.links == 1
        )
        dropped = []
        if over is not None and over.links == 1:
            dropped = self._drop_unsent(over, CONTENT_AND_ATTRIBUTES)
        if unsent is not None and over is None:
            body = Body(
                parent=body.new_parent,
                name=body.new_name,
                directory=node.is_directory,
                regular=node.is_regular,
            )
            self._journal.rewrite(unsent, body=body)
            self._journal.move_to_end(unsent)
        elif over is None and redirect_refused(self._journal, node, body):
            pass
        elif over is not None and keeps_identity:
            body.base = base
            self._take_identity(node, over, unsent, body, dropped)
        else:
            body.other = over.file if over is not None else ""
            self._journal.add("rename", node.ino, node.file, body)

    def _base_of(self, node: Node) -> VersionId:
        """The version of a file that is current once what was sent for it has arrived: who sees
        the file here has seen that."""
        base = node.version or ""
        for op in self._journal.of_file(node.file):
            if op.has_content:
                base = (op.version if op.sent else op.body.base) or base
        return base

    def _take_identity(
        self, node: Node, over: Node, unsent: Op | None, body: Body, dropped: list[Op]
    ) -> None:
        """The bytes of `node` become the next version of the file that `over` was. What `dropped`
        was to set, the server has as it was before: it is sent although `over` has it here."""
        self._tree.update(node.ino, file=over.file, rev=over.rev)
        if unsent is None:
            body.other = over.file
            self._journal.add("replace", node.ino, node.file, body)
            return
        version = unsent.version
        self._journal.remove(unsent)
        body = Body(base=body.base, renew=version is not None)
        write = self._journal.add("write", node.ino, over.file, body)
        if version is not None:  # its upload is under way: it goes on for the new operation
            self._journal.rewrite(write, version=version)
        unset = {name for op in dropped for name in op.body.attrs}
        attrs = [
            name
            for name in ("mode", "uid", "gid")
            if name in unset or getattr(node, name) != getattr(over, name)
        ]
        if attrs:
            self._journal.add("setattr", node.ino, over.file, Body(attrs=attrs))
        mine, theirs = self._tree.xattrs(node.ino), self._tree.xattrs(over.ino)
        unset_xattrs = {op.body.xattr for op in dropped if op.body.xattr}
        for name in sorted(mine.keys() | theirs.keys() | unset_xattrs):
            if name in unset_xattrs or mine.get(name) != theirs.get(name):
                self._journal.add("setxattr", node.ino, over.file, Body(xattr=name))

    def exchange(self, parent: int, name: str, new_parent: int, new_name: str) -> None:
        """RENAME_EXCHANGE: swap what two names mean."""
        with self._db.transaction():
            source, target = self._directory(parent), self._directory(new_parent)
            one, other = self._child(parent, name), self._child(new_parent, new_name)
            for node in (one, other):
                self._check_of_drive(node)
            if source.drive != target.drive:
                raise fail(errno.EXDEV)
            self._shares.check_reach(target, {parent})
            for node, place in ((one, new_parent), (other, parent)):
                if node.is_directory and self._tree.is_under(place, node.ino):
                    raise fail(errno.EINVAL)
            here, there = (source, name), (target, new_name)
            depth.check_move(self._tree, one, here, there)
            depth.check_move(self._tree, other, there, here)
            now = clock.moment()
            self._tree.point_entry(parent, name, one, other)
            self._tree.point_entry(new_parent, new_name, other, one)
            for node in (one, other):
                self._tree.update(node.ino, ctime_ns=now.after(node.ctime_ns))
            for ino in (parent, new_parent):
                self._tree.touch(ino, now)
            body = Body(
                parent=source.file,
                name=name,
                new_parent=target.file,
                new_name=new_name,
                other=other.file,
                directory=one.is_directory or other.is_directory,
            )
            self._journal.add("exchange", one.ino, one.file, body)
            places = (new_parent, new_name), (parent, name)
            self._vacancies.exchanged(one.file, places[0], other.file, places[1], time.monotonic())

    def _exchanged_with(self, node: Node, place: Place) -> tuple[Node, Node, str] | None:
        """The file with which `node`, which is at `place`, was exchanged a moment ago, and the
        directory and name that it has got; None: it, or either of the two, has moved on."""
        done = self._vacancies.exchange_of(node.file, time.monotonic())
        if done is None or done.here != place or not node.is_regular or node.links != 1:
            return None
        directory, kept = self._tree.find(done.there[0]), self._find(*done.there)
        if directory is None or kept is None or kept.file != done.other:
            return None
        is_alone = kept.is_regular and kept.links == 1
        return (kept, directory, done.there[1]) if is_alone else None

    def _journal_in_two_steps(self, node: Node, over: Node, move: Body) -> None:
        """`node` and `over` were exchanged, and now `over` goes: that was a rename over it. The
        exchange is taken out of the journal, or else is made undone before."""
        pair = {node.file, over.file}
        ops = [op for file in pair for op in self._journal.of_file(file) if op.kind == "exchange"]
        ops = sorted((op for op in ops if {op.file, op.body.other} == pair), key=lambda op: op.seq)
        made = ops[-1] if ops else None
        if made is not None and takes_back(made, self._journal.newest_first()):
            self._journal.remove(made)
        else:
            back = msgspec.structs.replace(move, other=node.file)
            self._journal.add("exchange", over.ino, over.file, back)
        self._journal_move(node, over, move)

    # --- attributes and content -------------------------------------------------------------------

    def set_attributes(
        self, ino: int, changes: dict[str, int], ctime_ns: int | None = None
    ) -> Node:
        """Change some of mode, uid, gid, mtime_ns and atime_ns; atime stays on this device.
        `ctime_ns` is when, if the kernel has shown it to others already; else it is now."""
        with self._db.transaction():
            node = self._tree.node(ino)
            self._shares.check_writable(node)
            moment = clock.moment().after(node.ctime_ns) if ctime_ns is None else ctime_ns
            self._tree.update(ino, ctime_ns=moment, **changes)
            sent = sorted(name for name in changes if name != "atime_ns")
            if sent and _is_reachable(node) and not self._carried(node, sent):
                self._add_attributes(node, sent)
            self._journal.try_again(self._journal.of_file(node.file))
            return self._tree.node(ino)

    def _carried(self, node: Node, names: list[str]) -> bool:
        """True if an unsent operation will take these attributes along anyway."""
        if self._journal.unsent_create(node.file) is not None:
            return True
        content = [op for op in self._unsent(node) if op.has_content]
        return bool(content) and names == ["mtime_ns"]

    def _unsent(self, node: Node) -> list[Op]:
        """Operations that will take attributes or bytes from this very inode."""
        ops = since_handed_on(self._journal.of_file(node.file))
        return [op for op in ops if op.ino == node.ino and not op.sent]

    def _add_attributes(self, node: Node, names: list[str]) -> None:
        for op in self._unsent(node):
            if op.kind == "setattr":
                body = Body(attrs=sorted({*op.body.attrs, *names}))
                self._journal.rewrite(op, body=body)
                if node.is_directory:  # or what was done in it since would move its mtime again
                    self._journal.move_to_end(op)
                return
        self._journal.add("setattr", node.ino, node.file, Body(attrs=names))

    def set_xattr(self, ino: int, name: str, value: bytes | None) -> None:
        """Set an attribute; None removes it. What was refused of the file's others is tried again
        after this, which may have made the room that it lacked."""
        with self._db.transaction():
            node = self._tree.node(ino)
            self._shares.check_writable(node)
            self._tree.set_xattr(ino, name, value)
            self._tree.update(ino, ctime_ns=clock.moment().after(node.ctime_ns))
            journaled = self._journal.of_file(node.file)
            refused = [op for op in journaled if op.refused and op.kind == "setxattr"]
            self._journal.try_again(journaled)
            if not _is_reachable(node) or self._journal.unsent_create(node.file) is not None:
                return
            ops = self._unsent(node)
            if not any(op.kind == "setxattr" and op.body.xattr == name for op in ops):
                self._journal.add("setxattr", ino, node.file, Body(xattr=name))
            for op in refused:
                if op.body.xattr != name:
                    self._journal.add("setxattr", ino, node.file, op.body)
                    self._journal.remove(op)

    def content_changed(self, node: Node) -> bool:
        """Bytes or size of a regular file changed: an operation will carry them. True if none
        would have without this change."""
        op = self._journal.open_content(node.file, node.ino)
        if _is_reachable(node) and op is None:
            self._journal.add("write", node.ino, node.file, Body())
        elif op is not None and op.body.before_loss:  # what power loss took is written anew
            body = msgspec.structs.replace(op.body, before_loss=False)
            self._journal.rewrite(op, body=body)
        self._journal.try_again(self._journal.of_file(node.file), AGAIN_SECONDS)
        return op is None

    # --- helpers ----------------------------------------------------------------------------------

    def _directory(self, ino: int) -> Node:
        node = self._tree.node(ino)
        if not node.is_directory:
            raise fail(errno.ENOTDIR)
        if not node.live:
            raise fail(errno.ENOENT)
        self._shares.check_writable(node)
        return node

    def _check_of_drive(self, node: Node) -> None:
        """Refuse to change by hand what is arranged on this device: Shared, and the owners in
        it."""
        if node.drive == LOCAL:
            raise fail(errno.EPERM)

    def _child(self, parent: int, name: str) -> Node:
        node = self._find(parent, name)
        if node is None:
            raise fail(errno.ENOENT)
        return node

    def _find(self, parent: int, name: str) -> Node | None:
        """The node that a name means. It has at least as many links as names here: while a local
        and a remote rename of it are not resolved there is a name more than the server knows."""
        node = self._tree.child(parent, name)
        if node is not None and not node.is_directory:
            node.links = max(node.links, len(self._tree.names(node.ino)))
        return node

    def _check_free(self, parent: int, name: str) -> None:
        self._check_not_reserved(parent, name)
        if self._tree.child(parent, name) is not None:
            raise fail(errno.EEXIST)

    def _check_not_reserved(self, parent: int, name: str) -> None:
        if parent == ROOT and name == SHARED_NAME:
            raise fail(errno.EPERM)
