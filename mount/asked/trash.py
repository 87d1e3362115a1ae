"""`trash list`, `trash restore`, `trash empty`: what was deleted, and bringing it back.

Knows: how a directory comes back with what was deleted with it, and where to when its name is taken
or its place is gone. Must not know: versions (`history`), what the server counts as deleted
together.

What comes back is looked up before anything is brought back: a directory that is no longer in the
trash says no more what was in it. Should it break off in between, the rest stays in the trash, each
by itself.
"""

from __future__ import annotations

from cache.history import restored_name
from cache.operations import Op
from mount.asked import account_messages as ask
from mount.asked.account import Account, Report, one_of
from mount.asked.paths import NoSuchPath, resolve
from mount.failures import Failure
from remote import wire
from remote.errors import AnyProblem, Exists, NotFound, Refused
from remote.ids import FileId
from remote.wire_account import EmptyTrash, TrashItem

MAX_NAMES = 100  # tried beside a name that is taken
_BRINGS_TO_TRASH = frozenset({"unlink", "rename", "replace"})


async def list_trash(account: Account, _request: ask.TrashRequest, report: Report) -> ask.Trash:
    return ask.Trash([_shown(item) for item in await _listed(account, report)])


def _shown(item: TrashItem) -> ask.TrashedFile:
    return ask.TrashedFile(
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
    account: Account, request: ask.TrashRestoreRequest, report: Report
) -> ask.Restored:
    """Where it was, or in the directory `to`."""
    item = _meant(await _listed(account, report), request.said, request.path)
    if request.to is not None:
        place = (await account.known(request.to, report)).file
        return await _bring_back(account, item, place, item.name)
    return await _bring_back(account, item, item.parent, item.name)


async def restore_path(account: Account, path: str, report: Report) -> ask.Restored:
    """What was deleted at `path` last, to that path."""
    listed = await _listed(account, report)
    item = _at(listed, path)
    if item is None:
        raise Failure(_not_in_trash(listed, path))
    directory, _, name = path.rpartition("/")
    return await _bring_back(account, item, await _directory(account, directory), name)


def _not_in_trash(listed: list[TrashItem], path: str) -> str:
    for item in listed:
        above = item.path.strip("/")
        if path.startswith(above + "/"):
            return f"{path} was deleted with {above}; restore that: nearline restore {above}"
    return f"there is no {path}, and none in the trash; `nearline trash list` shows what is"


async def _directory(account: Account, path: str) -> FileId | None:
    """The directory at `path`, or None when it is gone."""
    try:
        return (await resolve(account.session, path)).file
    except NoSuchPath:
        return None


async def _bring_back(
    account: Account, item: TrashItem, place: FileId | None, name: str
) -> ask.Restored:
    inside = await _inside(account, item)
    called = await _first(account, item, place, name)
    left = []
    answers = await account.apply([wire.Recover(file=one.file.id) for one in inside])
    for one, answer in zip(inside, answers, strict=True):
        if not isinstance(answer, wire.Applied):
            left.append(f"{one.path.strip('/')}: {answer.message or type(answer).__name__}")
    await account.shown()
    path = account.path_of(item.file.id) or called
    return ask.Restored(path=path, files=1 + len(inside) - len(left), left=left)


async def _inside(account: Account, item: TrashItem) -> list[TrashItem]:
    """What was deleted with it, each directory before what was in it."""
    found, at = [item], 0
    while at < len(found):
        if found[at].file.kind == "directory":
            found += await _pages(account, found[at].file.id)
        at += 1
    return found[1:]


async def _first(account: Account, item: TrashItem, place: FileId | None, name: str) -> str:
    """Bring back the thing itself, into `place` or (None) where it was; the name it has now. When
    the directory it was in is gone, one that has its path now will do."""
    answer = await _recover(account, item, place, name)
    if isinstance(answer, NotFound):
        place = await _directory(account, item.path.strip("/").rpartition("/")[0])
        if place is None:
            raise Failure(
                f"the directory that {name} was in is gone; say where to put it:"
                f" nearline trash restore {item.file.id} --to DIR"
            )
        answer = await _recover(account, item, place, name)
    wanted, place = name, place or item.parent
    for number in range(1, MAX_NAMES):
        if not isinstance(answer, Exists):
            break
        name = restored_name(wanted, number)
        answer = await _recover(account, item, place, name)
    if not isinstance(answer, wire.Applied):
        raise Refused(answer)
    return name


async def _recover(
    account: Account, item: TrashItem, place: FileId | None, name: str
) -> wire.Applied | AnyProblem:
    """Where it was (`place` None), or as `name` in the directory `place`."""
    where = wire.Recover(file=item.file.id)
    if place is not None:
        where = wire.Recover(file=item.file.id, parent=place, name=name)
    (answer,) = await account.apply([where])
    return answer


async def empty(account: Account, request: ask.TrashEmptyRequest, report: Report) -> ask.Emptied:
    if account.config.read_only:
        raise Failure(f"{account.config.mountpoint} is mounted read-only; mount it without that")
    which = None
    if request.said is not None:
        which = [_meant(await _listed(account, report), request.said, request.path).file.id]
    else:
        await _flush_deletions(account, report)
    files, more = 0, True
    while more:
        reply = await account.client.empty_trash(EmptyTrash(which))
        files, more = files + reply.files, reply.more
    return ask.Emptied(files)


# --- finding ------------------------------------------------------------------------------------


async def _listed(account: Account, report: Report) -> list[TrashItem]:
    """What was deleted by itself, newest first, what was deleted here a moment ago included."""
    await _flush_deletions(account, report)
    found = await _pages(account, None)
    return sorted(found, key=lambda item: item.trashed_ns, reverse=True)


async def _flush_deletions(account: Account, report: Report) -> None:
    def deletes(op: Op) -> bool:
        return op.kind in _BRINGS_TO_TRASH and not op.refused

    await account.flush(deletes, report)


async def _pages(account: Account, parent: FileId | None) -> list[TrashItem]:
    page = await account.client.trash(parent)
    found = page.items
    while page.next is not None:
        page = await account.client.trash(parent, page.next)
        found += page.items
    return found


def _at(listed: list[TrashItem], path: str) -> TrashItem | None:
    """What was deleted at `path` last."""
    return next((item for item in listed if item.path.strip("/") == path), None)


def _meant(listed: list[TrashItem], said: str, path: str | None) -> TrashItem:
    """By path, else by id. Raises `Failure`."""
    found = None if path is None else _at(listed, path)
    if found is None:
        ids = [item.file.id for item in listed]
        if path is not None and not any(one.endswith(said) for one in ids):
            raise Failure(_not_in_trash(listed, path))
        wanted = one_of(ids, said, "thing in the trash")
        found = next(item for item in listed if item.file.id == wanted)
    return found
