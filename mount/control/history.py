"""`log` and `restore`: the versions of a file.

Knows: that going back is a new version with the content of an old one. Must not know: what versions
are called and which one is meant (`mount.session.version_names`), the trash (`trash`).
"""

from __future__ import annotations

from itertools import pairwise

from cache.metadata import clock
from cache.metadata.operations import new_id
from cache.metadata.tree import Node
from mount.control import trash
from mount.control.account_messages import (
    History,
    LogRequest,
    Restored,
    RestoreRequest,
    Version,
)
from mount.control.context import CommandContext, Report
from mount.control.paths import NoSuchPath
from mount.failures import Failure
from mount.session import version_names
from remote.protocol import messages
from remote.protocol.errors import Refused
from remote.protocol.ids import FileId, VersionId


async def log(context: CommandContext, request: LogRequest, report: Report) -> History:
    node = await _regular(context, request.path, report)
    found = version_names.newest_first(await _versions(context, node.file))
    overtook = _overtaken(found)
    name = request.path.rpartition("/")[2]
    return History(
        path=request.path,
        versions=[
            Version(
                id=one.id,
                path=f"{request.path}{version_names.SUFFIX}/{called}",
                created_ns=one.created_ns,
                mtime_ns=one.mtime_ns,
                size=one.size,
                account=one.account,
                device=one.device,
                current=one.current,
                restored_from=one.restored_from,
                overtook=overtook.get(one.id),
            )
            for called, one in version_names.version_names(name, found).items()
        ],
    )


def _overtaken(found: list[messages.VersionInfo]) -> dict[VersionId, VersionId]:
    """Of each version whose writer had not seen the one before it: that one. Newest first."""
    return {
        later.id: before.id
        for later, before in pairwise(found)
        if later.base != before.id and later.restored_from is None
    }


async def restore(context: CommandContext, request: RestoreRequest, report: Report) -> Restored:
    """From the history, or, when nothing has this path, from the trash. The path of a version in
    the mount names file and version at once."""
    if request.version is None and (named := version_names.named_in(request.path)) is not None:
        request = RestoreRequest(path=named[0], version=named[1])
    try:
        node = await _regular(context, request.path, report)
    except NoSuchPath:
        back = await trash.restore_path(context, request.path, report)
        if request.version is None:
            return back
        node = await _regular(context, back.path, report)
    try:
        wanted = _wanted(request, await _versions(context, node.file))
    except version_names.NoSuchVersion as error:
        raise Failure(str(error)) from error
    if not wanted.current:
        await _revert(context, node, wanted)
        await context.pull_and_invalidate()
    return Restored(path=context.path_of(node.file) or request.path, version=wanted.id)


def _wanted(request: RestoreRequest, known: list[messages.VersionInfo]) -> messages.VersionInfo:
    if request.version is None:
        return version_names.before_current(known)
    if request.at:
        return version_names.by_second(known, request.at, request.version)
    return version_names.by_id(known, request.version)


async def _revert(context: CommandContext, node: Node, wanted: messages.VersionInfo) -> None:
    """The content is of then, the time of its change is now: what looks for changed files (backup
    programs, make) must find it."""
    op = messages.Revert(
        file=node.file, version=wanted.id, as_version=new_id(), mtime_ns=clock.moment().stamp
    )
    (answer,) = await context.apply([op])
    if not isinstance(answer, messages.Applied):
        raise Refused(answer)


async def _regular(context: CommandContext, path: str, report: Report) -> Node:
    node = await context.flushed_node(path, report)
    if not node.is_regular:
        raise Failure(f"{path or '/'} is a {node.kind}, which has no versions; name a file in it")
    return node


async def _versions(context: CommandContext, file: FileId) -> list[messages.VersionInfo]:
    page = await context.client.versions(file)
    found = page.versions
    while page.next is not None:
        page = await context.client.versions(file, page.next)
        found += page.versions
    return found
