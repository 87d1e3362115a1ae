"""`log` and `restore`: the versions of a file.

Knows: that going back is a new version with the content of an old one. Must not know: what versions
are called and which one is meant (`mount.session.version_names`), the trash (`trash`).
"""

from __future__ import annotations

from itertools import pairwise

from cache.metadata import clock
from cache.metadata.operations import new_id
from cache.metadata.tree import Node
from mount.control import account_messages as ask
from mount.control import trash
from mount.control.context import Account, Report
from mount.control.paths import NoSuchPath
from mount.failures import Failure
from mount.session import version_names as versions_of
from remote.protocol import messages
from remote.protocol.errors import Refused
from remote.protocol.ids import FileId, VersionId


async def log(account: Account, request: ask.LogRequest, report: Report) -> ask.History:
    node = await _regular(account, request.path, report)
    found = versions_of.newest_first(await _versions(account, node.file))
    overtook = _overtaken(found)
    name = request.path.rpartition("/")[2]
    return ask.History(
        path=request.path,
        versions=[
            ask.Version(
                id=one.id,
                path=f"{request.path}{versions_of.SUFFIX}/{called}",
                created_ns=one.created_ns,
                mtime_ns=one.mtime_ns,
                size=one.size,
                account=one.account,
                device=one.device,
                current=one.current,
                restored_from=one.restored_from,
                overtook=overtook.get(one.id),
            )
            for called, one in versions_of.version_names(name, found).items()
        ],
    )


def _overtaken(found: list[messages.VersionInfo]) -> dict[VersionId, VersionId]:
    """Of each version whose writer had not seen the one before it: that one. Newest first."""
    return {
        later.id: before.id
        for later, before in pairwise(found)
        if later.base != before.id and later.restored_from is None
    }


async def restore(account: Account, request: ask.RestoreRequest, report: Report) -> ask.Restored:
    """From the history, or, when nothing has this path, from the trash. The path of a version in
    the mount names file and version at once."""
    if request.version is None and (named := versions_of.named_in(request.path)) is not None:
        request = ask.RestoreRequest(path=named[0], version=named[1])
    try:
        node = await _regular(account, request.path, report)
    except NoSuchPath:
        back = await trash.restore_path(account, request.path, report)
        if request.version is None:
            return back
        node = await _regular(account, back.path, report)
    try:
        wanted = _wanted(request, await _versions(account, node.file))
    except versions_of.NoSuchVersion as none:
        raise Failure(str(none)) from none
    if not wanted.current:
        await _revert(account, node, wanted)
        await account.shown()
    return ask.Restored(path=account.path_of(node.file) or request.path, version=wanted.id)


def _wanted(request: ask.RestoreRequest, known: list[messages.VersionInfo]) -> messages.VersionInfo:
    if request.version is None:
        return versions_of.before_current(known)
    if request.at:
        return versions_of.by_second(known, request.at, request.version)
    return versions_of.by_id(known, request.version)


async def _revert(account: Account, node: Node, wanted: messages.VersionInfo) -> None:
    """The content is of then, the time of its change is now: what looks for changed files (backup
    programs, make) must find it."""
    op = messages.Revert(
        file=node.file, version=wanted.id, as_version=new_id(), mtime_ns=clock.moment().stamp
    )
    (answer,) = await account.apply([op])
    if not isinstance(answer, messages.Applied):
        raise Refused(answer)


async def _regular(account: Account, path: str, report: Report) -> Node:
    node = await account.known(path, report)
    if not node.is_regular:
        raise Failure(f"{path or '/'} is a {node.kind}, which has no versions; name a file in it")
    return node


async def _versions(account: Account, file: FileId) -> list[messages.VersionInfo]:
    page = await account.client.versions(file)
    found = page.versions
    while page.next is not None:
        page = await account.client.versions(file, page.next)
        found += page.versions
    return found
