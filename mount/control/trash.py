"""`trash list`, `trash restore`, `trash empty`: what was deleted, and bringing it back.

Knows: how a directory comes back with what was deleted with it, and where to when its name is taken
or its place is gone. Must not know: versions (`history`), how a thing is found (`trash_finding`).

What comes back is looked up before anything is brought back: a directory that is no longer in the
trash says no more what was in it. Should it break off in between, the rest stays in the trash, each
by itself.

Where a thing was is the directory of that path, if the one it was in is gone: what is missing of it
is made anew, and the deleted one stays in the trash with the rest, to be restored as well.
"""

from __future__ import annotations

from time import time_ns

from msgspec import structs

from cache.metadata.operations import new_id
from cache.metadata.tree import Node
from mount.control.account_messages import (
    Emptied,
    Restored,
    Trash,
    TrashedFile,
    TrashEmptyRequest,
    TrashRequest,
    TrashRestoreRequest,
)
from mount.control.context import CommandContext, Report
from mount.control.paths import NoSuchPath
from mount.control.trash_finding import Finder, all_items, flush_deletions, path_of
from mount.failures import Failure
from mount.session.version_names import restored_name
from remote.protocol import messages
from remote.protocol.account_messages import EmptyTrash, TrashItem
from remote.protocol.errors import AnyProblem, Exists, NotFound, Refused
from remote.protocol.ids import FileId

# Tried beside a name that is taken.
MAX_NAMES = 100
# Stands in a path for directories that are gone for good.
_UNKNOWN = "…"


async def list_trash(context: CommandContext, request: TrashRequest, report: Report) -> Trash:
    finder = await Finder.of(context, report)
    if request.path:
        found = await finder.inside(request.path)
    elif request.said is not None:
        item = await finder.meant(request.said, None)
        found = await finder.inside(path_of(item))
    else:
        found = finder.alone
    return Trash([_shown(item) for item in found])


def _shown(item: TrashItem) -> TrashedFile:
    return TrashedFile(
        id=item.file.id,
        path=item.path.strip("/"),
        name=item.name,
        kind=item.file.kind,
        size=item.file.size,
        trashed_ns=item.trashed_ns,
        expires_ns=item.expires_ns,
        inside=item.inside,
    )


async def restore(
    context: CommandContext, request: TrashRestoreRequest, report: Report
) -> Restored:
    """Where it was, or in the directory `to`."""
    finder = await Finder.of(context, report)
    item = await finder.meant(request.said, request.path)
    place = item.parent
    if request.to is not None:
        place = (await context.flushed_node(request.to, report)).file
    return await Restoring(context, finder, report).bring_back(item, place)


async def restore_path(context: CommandContext, path: str, report: Report) -> Restored:
    """Bring back what was deleted at `path` last, to that path."""
    finder = await Finder.of(context, report)
    found = await finder.at(path)
    if not found:
        raise Failure(finder.missing(path))
    restoring = Restoring(context, finder, report)
    place = await restoring.directory(path.rpartition("/")[0])
    return await restoring.bring_back(found[0], None if place is None else place.file)


class Restoring:
    def __init__(self, context: CommandContext, finder: Finder, report: Report) -> None:
        self._context, self._finder, self._report = context, finder, report

    async def bring_back(self, item: TrashItem, place: FileId | None) -> Restored:
        """Into the directory `place`, or (None) where it was."""
        inside = await self._inside(item)
        called = await self._first(item, place)
        left = []
        answers = await self._context.apply(
            [messages.Recover(file=child.file.id) for child in inside]
        )
        for child, answer in zip(inside, answers, strict=True):
            if not isinstance(answer, messages.Applied):
                left.append(f"{path_of(child)}: {answer.message or type(answer).__name__}")
        await self._context.pull_and_invalidate()
        path = self._context.path_of(item.file.id) or called
        return Restored(path=path, files=1 + len(inside) - len(left), left=left)

    async def _inside(self, item: TrashItem) -> list[TrashItem]:
        """The items that were deleted with it, each directory before what was in it."""
        found, at = [item], 0
        while at < len(found):
            if found[at].file.kind == "directory":
                found += await all_items(self._context, found[at].file.id)
            at += 1
        return found[1:]

    async def _first(self, item: TrashItem, place: FileId | None) -> str:
        """Bring back the thing itself; the name it has now. When the directory it was in is gone,
        or in the trash, the one that has its path will do."""
        answer = await self._recover(item, place, item.name)
        if isinstance(answer, NotFound):
            await self._context.pull_and_invalidate()  # what others have made there meanwhile
            place = await self._folder(path_of(item).rpartition("/")[0], item)
            answer = await self._recover(item, place, item.name)
        name, place = item.name, place or item.parent
        for number in range(1, MAX_NAMES):
            if not isinstance(answer, Exists):
                break
            name = restored_name(item.name, number)
            answer = await self._recover(item, place, name)
        if not isinstance(answer, messages.Applied):
            raise Refused(answer)
        return name

    async def _recover(
        self, item: TrashItem, place: FileId | None, name: str
    ) -> messages.Applied | AnyProblem:
        """Where it was (`place` None), or as `name` in the directory `place`."""
        where = messages.Recover(file=item.file.id)
        if place is not None:
            where = messages.Recover(file=item.file.id, parent=place, name=name)
        (answer,) = await self._context.apply([where])
        return answer

    # --- the directory that something was in ------------------------------------------------------

    async def directory(self, path: str) -> Node | None:
        """The directory at `path`, or None when it is gone."""
        try:
            found = await self._context.flushed_node(path, self._report)
        except NoSuchPath:
            return None
        return found if found.is_directory else None

    async def _folder(self, path: str, item: TrashItem) -> FileId:
        """The directory at `path`, in which `item` was; what is missing is made anew, and called
        otherwise where something else has its name."""
        found = await self.directory(path)
        if found is not None:
            return found.file
        if path.split("/")[0] == _UNKNOWN:
            raise Failure(
                f"the directory that {item.name} was in is gone; say where to put it:"
                f" nearline trash restore {item.file.id} --to DIR"
            )
        above, _, name = path.rpartition("/")
        deleted = await self._finder.at(path)
        was = [folder for folder in deleted if folder.file.kind == "directory"]
        # That one first, then the newest.
        was.sort(key=lambda folder: folder.file.id != item.parent)
        place = await self._folder(above, was[0] if was else item)
        return await self._make(place, name, was[0].file if was else None)

    async def _make(self, place: FileId, name: str, like: messages.FileRecord | None) -> FileId:
        """A directory in `place`, with the attributes of `like`."""
        wanted = name
        for number in range(MAX_NAMES):
            name = restored_name(wanted, number) if number else wanted
            made = _directory(place, name, like)
            (answer,) = await self._context.apply([made])
            if not isinstance(answer, Exists):
                break
        if not isinstance(answer, messages.Applied):
            raise Refused(answer)
        return made.file


def _directory(parent: FileId, name: str, like: messages.FileRecord | None) -> messages.Create:
    made = messages.Create(
        file=new_id(), parent=parent, name=name, kind="directory", mode=0o755, mtime_ns=time_ns()
    )
    if like is None:
        return made
    return structs.replace(
        made, mode=like.mode, uid=like.uid, gid=like.gid, mtime_ns=like.mtime_ns, xattrs=like.xattrs
    )


async def empty(context: CommandContext, request: TrashEmptyRequest, report: Report) -> Emptied:
    if context.config.read_only:
        raise Failure(f"{context.config.mountpoint} is mounted read-only; mount it without that")
    which = None
    if request.said is not None:
        finder = await Finder.of(context, report)
        which = [(await finder.meant(request.said, request.path)).file.id]
    else:
        await flush_deletions(context, report)
    files, more = 0, True
    while more:
        reply = await context.client.empty_trash(EmptyTrash(which))
        files, more = files + reply.files, reply.more
    return Emptied(files)
