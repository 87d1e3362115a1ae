"""Decides about operations that the server refused for good, and about versions that ours overtook.

Knows: how each verdict of the rule book (`conflicts`) changes tree and journal. Must not know: when
operations are sent and sent again (`replayer`), the kernel.

Concurrency: called by the replayer's one task, never while a batch is under way. Each
change is one transaction; an await comes only before it (to ask the server) or after it (to list
anew).

Why one class: one verdict often leads to another (a directory is adopted, then its attributes are
insisted on), and all of them change the same tree and journal.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import structlog

from cache.metadata import clock
from cache.metadata.database import Database
from cache.metadata.journal import Journal
from cache.metadata.operations import CONTENT_AND_ATTRIBUTES, PLACES, Body, Op, begins, new_id
from cache.metadata.tree import ROOT, Tree, node_from
from cache.namespace.conflicts import Verdict, conflicted_name, conflicted_names, verdict
from cache.namespace.merge import Merge
from cache.namespace.rebuilding import FilePort, Rebuilder
from cache.namespace.shares import Shares
from cache.sync.uploader import Uploader
from remote.protocol import messages
from remote.protocol.content import EMPTY
from remote.protocol.errors import Exists, NearlineError, Problem, Refused
from remote.protocol.ids import FileId, VersionId

log = structlog.get_logger(__name__)


class Resolver:
    """`refresh(ino)` lists a directory anew; with `keep_copies` a version that ours overtook also
    gets a name beside it, marked with `device`."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        merge: Merge,
        shares: Shares,
        uploader: Uploader,
        port: FilePort,
        refresh: Callable[[int], Awaitable[None]],
        *,
        device: str,
        keep_copies: bool = False,
    ) -> None:
        self._db, self._tree, self._journal, self._merge = db, tree, journal, merge
        self._shares, self._uploader, self._port = shares, uploader, port
        self._refresh = refresh
        self._device, self._keep_copies = device, keep_copies
        self._rebuilder = Rebuilder(db, tree, journal, merge, port, self._reidentify)

    def refuse(self, op: Op, problem: Problem | None, message: str) -> None:
        """Keep it, and show it, until a person does something. Nothing was answered to the key of
        the operation itself: should the server have it, it is known by that."""
        kind = type(problem).__struct_config__.tag if problem is not None else "error"
        log.warning("refused", path=self._tree.path(op.ino), operation=op.kind, why=message)
        with self._db.transaction():
            self._journal.rewrite(op, refused=f"{kind}: {message}")

    @contextlib.contextmanager
    def putting_aside(self, op: Op, what: str) -> Iterator[None]:
        """A fault of ours with one operation must not end the mount, and with it the access to
        every other file. Its bytes stay, it goes no further, and it is shown."""
        try:
            yield
        except (NearlineError, OSError):
            raise
        except Exception:
            log.exception("a_fault_of_this_program", what=what, operation=op.kind, file=op.file)
            if self._journal.get(op.key) is op:
                self.refuse(op, None, "a fault of this program; the mount's log has it")

    def _keep(self, op: Op, problem: Problem) -> None:
        """This answer is that of the key for ever: when it is tried again it needs another."""
        with self._db.transaction():
            self._journal.rewrite(op, sent=False, key=new_id())
            self.refuse(op, problem, problem.message)

    async def resolve(self, op: Op, problem: Problem) -> None:
        """Do what the rule book says about an operation that was refused for good. Raises
        NearlineError when the server had to be asked and could not be: ask again later."""
        decided = verdict(op.kind, problem, directory=op.body.directory)
        log.info("conflict", operation=op.kind, problem=str(problem), verdict=decided.value)
        if decided is Verdict.DROP:
            await self._drop(op)
        elif decided is Verdict.ASIDE:
            self._aside(op)
        elif decided is Verdict.ANEW and isinstance(problem, Exists):
            self._under_another_id(op, problem)
        elif decided is Verdict.ADOPT:
            await self._adopt(op)
        elif decided is Verdict.RESCUE:
            if not await self._rebuilder.rebuild(op):
                await self._rescue(op)
        elif decided is Verdict.REBUILD:
            if not await self._rebuilder.rebuild(op):
                await self._drop(op)
        elif decided is Verdict.APART:
            await self._apart(op)
        elif decided is Verdict.RECREATE:
            await self._recreate(op)
        else:
            self._keep(op, problem)

    async def _drop(self, op: Op) -> None:
        """The server's state stands: forget the operation, believe the server again."""
        stale = self._forget(op)
        self._merge.after_commit()
        for directory in stale:
            await self._try_refresh(directory)

    def _forget(self, op: Op) -> list[int]:
        """Returns the directories that are to be listed anew."""
        places = (op.body.parent, op.body.new_parent)
        stale = [node.ino for file in places if file and (node := self._tree.live(file))]
        with self._db.transaction():
            self._journal.remove(op)
            self._merge.release(op)
            for file in (op.file, op.body.other):
                node = self._tree.live(file)
                if node is not None:
                    self._tree.update(node.ino, rev=0)
            for directory in stale:
                self._tree.update(directory, listed=None)
        self._uploader.forget(op)
        return stale

    async def _try_refresh(self, ino: int) -> None:
        """List a directory that is marked as not listed; what fails here is done when somebody
        looks into it."""
        try:
            if self._tree.find(ino) is not None:
                await self._refresh(ino)
        except NearlineError as error:
            log.info("directory_not_listed_again_yet", path=self._tree.path(ino), why=str(error))

    async def look_again(self, ino: int) -> None:
        """A directory was made anew, and is there: what it held before is not in it."""
        await self._try_refresh(ino)

    def _aside(self, op: Op) -> None:
        """Our file goes on under a conflicted name beside the one that took its name."""
        self._relocate(op, op.body.new_parent or op.body.parent)

    def _under_another_id(self, op: Op, problem: Exists) -> None:
        """Give another id to a new file, or version, whose id is or was another's. The server knows
        nothing of ours by that id, so it is only here that it changes."""
        with self._db.transaction():
            if problem.taken == "version":
                body = msgspec.structs.replace(op.body, renew=True)
                self._journal.rewrite(op, body=body, key=new_id(), sent=False)
                self._uploader.forget(op)
            else:
                was = msgspec.structs.replace(op)
                self._reidentify(op.file, new_id())
                self._merge.release(was)
        self._merge.after_commit()

    def _reidentify(self, old: FileId, new: FileId) -> None:
        """In tree, journal and pins."""
        self._tree.reidentify(old, new)
        self._db.run("UPDATE pin SET file = ? WHERE file = ?", new, old)
        for item in self._journal.of_file(old):
            self._journal.readdress(item, new)
        self._journal.rename_file(old, new, PLACES)

    async def _rescue(self, op: Op) -> None:
        """To the top of the drive: under the name it has there already, if it was kept when its
        share ended. What was sent for it may be in the other drive: it begins anew. Operations that
        would take names from the one drive into the other cannot be meant any more."""
        self._uploader.forget(op)
        with self._db.transaction():
            # What the file is by now may be another inode, with the bytes of a later operation.
            node = self._tree.live(op.file) or self._tree.node(op.ino)
            self._shares.lose(node.ino)
            kept = [name for parent, name in self._tree.names(node.ino) if parent == ROOT]
            if op.version is not None:
                body = msgspec.structs.replace(op.body, renew=True)
                self._journal.rewrite(op, body=body, key=new_id(), sent=False)
            if kept:
                was = msgspec.structs.replace(op)
                self._redirect(op, self._tree.node(ROOT).file, kept[0], source=False)
                self._merge.release(was)
            else:
                self._relocate(op, self._tree.node(ROOT).file)
            split = [item for item in self._journal if item.body.name and self._is_split(item)]
            stale = [directory for item in split for directory in self._forget(item)]
        self._merge.after_commit()
        for directory in stale:
            await self._try_refresh(directory)

    def _is_split(self, op: Op) -> bool:
        """True if it speaks of files in several drives."""
        body = op.body
        nodes = map(self._tree.live, (op.file, body.parent, body.new_parent, body.other))
        return len({node.drive for node in nodes if node is not None}) > 1

    def _relocate(self, op: Op, place: FileId) -> None:
        """The entry that the operation makes goes on under a conflicted name in directory `place`;
        so do the later operations that name it. When the directory was removed here, by operations
        that are still to be sent, there is nothing to move in the tree."""
        was, body, directory = msgspec.structs.replace(op), op.body, self._tree.live(place)
        parent, name = (body.new_parent or body.parent), (body.new_name or body.name)
        number = random.randrange(2, 10_000)
        fresh = conflicted_name(name, self._device, time.strftime("%Y-%m-%d"), number)
        if directory is not None:
            fresh = self._free_name(directory.ino, name)
        with self._db.transaction():
            if directory is not None:
                self._move_entry(op.ino, (parent, name), directory.ino, fresh)
            self._redirect(op, place, fresh, source=False)
            for later in self._journal.of_file(op.file):
                if later.seq > op.seq and (later.body.parent, later.body.name) == (parent, name):
                    self._redirect(later, place, fresh, source=True)
            self._merge.release(was)
        self._merge.after_commit()

    def _move_entry(self, ino: int, old: tuple[FileId, str], place: int, name: str) -> None:
        for holder, known in self._tree.names(ino):
            if (self._tree.node(holder).file, known) == old:
                self._tree.drop_entry(holder, known, self._tree.node(ino))
                self._tree.add_entry(place, name, self._tree.node(ino))
                self._merge.note_name(holder, known)
                self._merge.note_name(place, name)

    def _redirect(self, op: Op, parent: FileId, name: str, *, source: bool) -> None:
        """Make the operation anew with another place: the one it names first (`source`), or the one
        where it makes an entry."""
        if source or not op.body.new_name:
            body = msgspec.structs.replace(op.body, parent=parent, name=name)
        else:
            body = msgspec.structs.replace(op.body, new_parent=parent, new_name=name)
        self._journal.rewrite(op, body=body, key=new_id(), sent=False)

    def _free_name(self, parent: int, name: str) -> str:
        """Beside `name`, taken neither here nor, as far as it has told, on the server: what our own
        operations hold back of what that says is not in the tree."""
        place = self._tree.node(parent).file
        for fresh in conflicted_names(name, self._device, time.strftime("%Y-%m-%d")):
            here = self._tree.child(parent, fresh) is not None
            if not here and self._merge.shadow_of_entry(place, fresh) is None:
                return fresh
        raise AssertionError("there is always another number")

    async def _adopt(self, op: Op) -> None:
        """Another device made the same directory: ours becomes it, children and all."""
        parent = self._tree.live(op.body.parent)
        if parent is None:
            self._aside(op)
            return
        await self._refresh(parent.ino)
        theirs = self._merge.shadow_of_entry(op.body.parent, op.body.name)
        record = None if theirs is None else (await self._port.file(theirs)).file
        if record is None or record.kind != "directory" or self._tree.live(record.id) is not None:
            self._aside(op)
            return
        with self._db.transaction():
            self._tree.update(op.ino, file=record.id, rev=0, listed=None)
            self._journal.remove(op)
            for later in self._journal.of_file(op.file):
                if later.kind != "unlink":  # what was removed is ours; theirs was never seen
                    self._journal.readdress(later, record.id)
            self._journal.rename_file(op.file, record.id)
            if self._tree.node(op.ino).live:
                self._insist(op.ino, record)
            self._merge.learn(record)
            self._merge.release(op)
        self._merge.after_commit()

    def _insist(self, ino: int, theirs: messages.FileRecord) -> None:
        """Journal what our creation of a directory would have brought along, as changes of
        theirs."""
        node, xattrs = self._tree.node(ino), self._tree.xattrs(ino)
        if node.mode != theirs.mode:
            self._journal.add("setattr", ino, theirs.id, Body(attrs=["mode"]))
        for name in sorted(xattrs):
            if xattrs[name] != theirs.xattrs.get(name):
                self._journal.add("setxattr", ino, theirs.id, Body(xattr=name))

    async def _recreate(self, op: Op) -> None:
        """The file was deleted elsewhere while it was changed here: it comes back as a new file,
        in the same place; beside what has taken its name; or at the top when the place is gone too.
        If it was renamed over another one since, its bytes go on as that one. If it was deleted
        here too, it comes back to be deleted again: that leaves its bytes in the trash."""
        taken = next((item for item in self._after(op) if item.kind == "retake"), None)
        if taken is not None and taken.file == op.file:  # by nobody: there is no such file any more
            with self._db.transaction():
                self._journal.rewrite(op, key=new_id(), sent=False)
            await self._apart(taken)
            return
        heir = next((item for item in self._after(op) if item.kind == "replace"), None)
        if heir is not None and heir.file == op.file:
            self._go_on_as(op, heir)
            return
        with self._db.transaction():
            self._shares.lose(op.ino)
            names = self._tree.names(op.ino)
            was_removed_here = not (names or self._tree.node(op.ino).live)
            removal = self._removal(op, op.file) if was_removed_here else None
            parent, name = names[0] if names else self._beside(op.body)
            fresh = self._make_anew(op, parent, name, live=removal is None)
            if removal is not None:  # it, and what came before it, is about names from before
                again = Body(parent=self._tree.node(parent).file, name=name)
                self._journal.add("unlink", op.ino, fresh, again).origin = removal.origin
            elif self._uploader.is_written(op.ino):
                self._carry(op, fresh)
            self._merge.release(op)
        self._merge.after_commit()
        self._uploader.forget(op)

    def _make_anew(self, op: Op, parent: int, name: str, *, live: bool) -> FileId:
        """The inode goes on as a new file, with all that was to be sent for it. The creation stands
        for `op`; unless it is `live` it has no name here."""
        place, fresh = self._tree.node(parent), new_id()
        self._journal.remove(op)
        self._tree.update(op.ino, file=fresh, drive=place.drive, live=live, links=int(live), rev=0)
        if live and not self._tree.names(op.ino):
            self._tree.add_entry(parent, name, self._tree.node(op.ino))
        body = Body(parent=place.file, name=name, regular=True, renew=op.version is not None)
        create = self._journal.add("create", op.ino, fresh, body)
        create.origin = op.origin
        for later in self._journal.of_file(op.file):
            if later.ino == op.ino:  # its next versions, attributes and names
                self._journal.refile(later, fresh)
        if op.version is not None:
            self._journal.rewrite(create, version=op.version)
        return fresh

    def _removal(self, op: Op, file: FileId) -> Op | None:
        """The last operation on its inode that takes a name of `file` away."""
        later = (one for one in self._after(op) if one.kind == "unlink" and one.file == file)
        return max(later, key=lambda one: one.seq, default=None)

    def _carry(self, op: Op, file: FileId) -> None:
        """Keep the last content of a file that lost its name here: a write carries it, where
        nothing did."""
        if self._journal.open_content(file, op.ino) is None:
            self._journal.add("write", op.ino, file, Body()).origin = op.origin

    def _beside(self, body: Body) -> tuple[int, str]:
        """A place for a file that has no name any more: as near as can be to where it was."""
        holder = self._tree.live(body.last_parent)
        parent = ROOT if holder is None else holder.ino
        return parent, self._free_name(parent, body.last_name or "recovered file")

    def _after(self, op: Op) -> list[Op]:
        """Later operations that take bytes or attributes from the same inode."""
        return [item for item in self._journal if item.ino == op.ino and item.seq > op.seq]

    def _go_on_as(self, op: Op, heir: Op) -> None:
        """The write `op` and the replace `heir` that followed it are one write of the file that was
        replaced, as they would have been had they not been sent yet (but extended attributes that
        only the replaced file had stay). If that was deleted since, it is to be deleted again, even
        if that has been answered: the write may bring it back."""
        with self._db.transaction():
            removal = self._removal(op, heir.body.other)
            self._journal.remove(op)
            self._journal.remove(heir)
            body = Body(base=heir.body.base, renew=op.version is not None)
            write = self._journal.add("write", op.ino, heir.body.other, body)
            write.origin = op.origin
            if op.version is not None:
                self._journal.rewrite(write, version=op.version)
            attrs = Body(attrs=["gid", "mode", "uid"])
            self._journal.add("setattr", op.ino, heir.body.other, attrs)
            for name in sorted(self._tree.xattrs(op.ino)):
                self._journal.add("setxattr", op.ino, heir.body.other, Body(xattr=name))
            for later in [item for item in self._after(op) if item.seq < write.seq]:
                if later is removal:
                    self._journal.refile(later, later.file)
                elif later.file != op.file:
                    self._journal.move_to_end(later)
                elif later.kind in CONTENT_AND_ATTRIBUTES:
                    self._journal.refile(later, heir.body.other)
            for gone in (op, heir):
                self._merge.release(gone)
                self._uploader.forget(gone)
        self._merge.after_commit()

    async def _apart(self, op: Op) -> None:
        """The name is not to be taken back: another device has it, or has moved or removed what was
        renamed away. So that one is what it was, and what took its place here is a new file. What
        was to be sent after it changes its meaning accordingly."""
        theirs = await self._seen(op.file)
        if self._journal.get(op.key) is not op:  # nobody wants it any more
            return
        later = [item for item in self._journal if item.seq > op.seq]
        first = next((item for item in later if begins(item, op.file)), None)
        is_new = first is None or first.kind != "replace"
        fresh = new_id() if is_new or first is None else first.file
        ids = {op.file: fresh, op.body.other: op.file}
        with self._db.transaction():
            self._journal.remove(op)
            for old, new in ids.items():
                self._tree.reidentify(old, new)
                self._db.run("UPDATE pin SET file = ? WHERE file = ?", new, old)
            for item in later:
                self._speak_of(item, ids)
            self._shares.part(op.file, theirs)
            if first is None:  # it is gone here again: nobody ever hears of it
                for item in self._journal.of_file(fresh):
                    self._journal.remove(item)
            elif is_new:
                again = first.version is not None
                body = Body(op.body.new_parent, op.body.new_name, regular=True, renew=again)
                self._journal.rewrite(first, kind="create", body=body)
                self._uploader.forget(first)
            else:
                body = msgspec.structs.replace(first.body, other="", base="")
                self._journal.rewrite(first, kind="rename", body=body)
            self._merge.release(op)
            stale = self._distrust(op)
        self._merge.after_commit()
        if stale is not None:
            await self._try_refresh(stale)

    async def _seen(self, file: FileId) -> messages.FileRecord | None:
        """The server's record of a file of another's drive, which may be shared by itself."""
        node = self._tree.live(file)
        if node is None or node.drive == self._tree.own_drive:
            return None
        try:
            record = (await self._port.file(file)).file
        except Refused:
            return None
        return record if record.links else None

    def _speak_of(self, op: Op, ids: dict[FileId, FileId]) -> None:
        """The operation is about the files that these have become."""
        if op.file in ids:
            self._journal.readdress(op, ids[op.file])
        named = {place: getattr(op.body, place) for place in PLACES}
        changes = {place: ids[file] for place, file in named.items() if file in ids}
        if changes:
            body = msgspec.structs.replace(op.body, **changes)
            self._journal.rewrite(op, body=body, key=new_id(), sent=False)

    def _distrust(self, op: Op) -> int | None:
        """Believe the server about the file, and the directory, which is to be listed anew."""
        node, directory = self._tree.live(op.file), self._tree.live(op.body.parent)
        if node is not None:
            self._tree.update(node.ino, rev=0)
        if directory is not None:
            self._tree.update(directory.ino, listed=None)
        return None if directory is None else directory.ino

    async def overtaken(self, op: Op, answer: messages.Applied) -> messages.FileReply | None:
        """With `--on-conflict=copy`: the version that ours won against, if it still is to be had.
        Asked for before the operation is acknowledged, so that nothing can come in between."""
        if answer.overtaken is None or not self._keep_copies:
            return None
        try:
            file = op.body.other or op.file  # of a replace: the replaced one
            return await self._port.file(file, answer.overtaken, manifest=True)
        except Refused as error:
            log.warning("no_copy_of_an_overtaken_version", file=op.file, why=str(error))
            return None

    def keep_copy(self, op: Op, version: VersionId, reply: messages.FileReply) -> None:
        """Give that version a name beside ours: a new file whose bytes the drive has. In the
        transaction of the acknowledgement."""
        names, manifest = self._names_of(op), reply.manifest or EMPTY
        if not names:  # removed here since: it goes to the trash with the file
            return
        parent, name = names[0]
        fresh, now = self._free_name(parent, name), clock.moment().stamp
        copied = {"id": new_id(), "links": 1, "size": manifest.size, "version": version, "rev": 0}
        record = msgspec.structs.replace(reply.file, ctime_ns=now, **copied)
        node = self._tree.insert(node_from(record, self._tree.node(parent).drive))
        self._tree.update(node.ino, base_file=reply.file.id)
        self._tree.replace_xattrs(node.ino, record.xattrs)
        self._tree.add_entry(parent, fresh, node)
        body = Body(parent=self._tree.node(parent).file, name=fresh, regular=True)
        self._journal.add("create", node.ino, node.file, body).origin = op.origin
        self._merge.note_name(parent, fresh)

    def _names_of(self, op: Op) -> list[tuple[int, str]]:
        """Of the file that `op` wrote. Its name may mean another inode by now; or the file has gone
        on as another, under the name that the inode has."""
        node = self._tree.live(op.body.other or op.file)
        names = [] if node is None else self._tree.names(node.ino)
        return names or self._tree.names(op.ino)
