"""Finding things in the trash: by the path where they were, by their id, and what is in a folder.

Knows: that what was deleted with its folder is listed inside that, at any depth, and what was
deleted from it before by itself. Must not know: how anything comes back (`trash`), the server's
rule of what was deleted together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cache.metadata.operations import Op
from mount.control.context import CommandContext, Report, one_of
from mount.failures import Failure
from remote.protocol.account_messages import TrashItem
from remote.protocol.ids import FileId

_BRINGS_TO_TRASH = frozenset({"unlink", "rename", "replace"})
_ENDING = re.compile("[0-9a-f]{6,32}")


async def flush_deletions(context: CommandContext, report: Report) -> None:
    def deletes(op: Op) -> bool:
        return op.kind in _BRINGS_TO_TRASH and not op.refused

    await context.flush(deletes, report)


async def all_items(
    context: CommandContext,
    parent: FileId | None,
    *,
    name: str | None = None,
    ending: str | None = None,
) -> list[TrashItem]:
    """A listing of the server's, whole."""
    page = await context.client.trash(parent, name=name, ending=ending)
    found = page.items
    while page.next is not None:
        page = await context.client.trash(parent, page.next, name=name, ending=ending)
        found += page.items
    return found


def path_of(item: TrashItem) -> str:
    return item.path.strip("/")


def _newest_first(items: Iterable[TrashItem]) -> list[TrashItem]:
    return sorted(items, key=lambda item: item.trashed_ns, reverse=True)


class Finder:
    """The trash as it is now. `alone` is what was deleted by itself, newest first."""

    def __init__(self, context: CommandContext, alone: list[TrashItem]) -> None:
        self._context, self.alone = context, alone

    @classmethod
    async def of(cls, context: CommandContext, report: Report) -> Finder:
        """With what was deleted here a moment ago."""
        await flush_deletions(context, report)
        return cls(context, _newest_first(await all_items(context, None)))

    async def at(self, path: str) -> list[TrashItem]:
        """The items deleted at `path`, newest first: by itself, or with a folder above."""
        found = [item for item in self.alone if path_of(item) == path]
        for item in self.alone:
            above = path_of(item) + "/"
            if item.file.kind == "directory" and path.startswith(above):
                found += await self._within(item, path.removeprefix(above))
        return _newest_first(found)

    async def _within(self, folder: TrashItem, path: str) -> list[TrashItem]:
        name, _, rest = path.partition("/")
        here = await all_items(self._context, folder.file.id, name=name)
        if not rest:
            return here
        below = [await self._within(item, rest) for item in here if item.file.kind == "directory"]
        return [item for some in below for item in some]

    async def meant(self, said: str, path: str | None) -> TrashItem:
        """By path, the newest; else by id. Raises `Failure`."""
        found = [] if path is None else await self.at(path)
        if found:
            return found[0]
        if _ENDING.fullmatch(said):
            found = await all_items(self._context, None, ending=said)
        found = found or self.alone
        if path is not None and not any(item.file.id.endswith(said) for item in found):
            raise Failure(self.missing(path))
        wanted = one_of([item.file.id for item in found], said, "thing in the trash")
        return next(item for item in found if item.file.id == wanted)

    async def inside(self, path: str) -> list[TrashItem]:
        """The items deleted in the folder that is, or was, at `path`: with it, or before, also when
        the folder is there. What is no folder is told itself. Raises `Failure` when there is
        nothing."""
        at = await self.at(path)
        found = {item.file.id: item for item in self.alone if _folder_of(item) == path}
        for item in at:
            if item.file.kind == "directory":
                inside = await all_items(self._context, item.file.id)
                found |= {child.file.id: child for child in inside}
        if not found and not at:
            raise Failure(self.missing(path))
        return _newest_first(found.values()) or at

    def missing(self, path: str) -> str:
        for item in self.alone:
            above = path_of(item)
            if item.file.kind == "directory" and path.startswith(above + "/"):
                return (
                    f"there is no {path} in the trash; `nearline trash list {above}` shows what is"
                )
        return f"there is no {path}, and none in the trash; `nearline trash list` shows what is"


def _folder_of(item: TrashItem) -> str:
    return path_of(item).rpartition("/")[0]
