"""`share`, `unshare`, `shares`, `shared`, `leave`, and links: what others may see.

Knows: which endpoint answers which request. Must not know: who may do what (the server decides).
"""

from __future__ import annotations

import time

from cache.metadata.tree import Node
from mount.control.account_messages import (
    Grant,
    LeaveRequest,
    Link,
    LinkMade,
    Links,
    LinksRequest,
    MakeLinkRequest,
    Reached,
    RevokeLinkRequest,
    Shared,
    SharedPlace,
    SharedRequest,
    ShareRequest,
    Shares,
    SharesRequest,
    UnshareRequest,
)
from mount.control.context import CommandContext, Report, one_of
from mount.control.messages import Done
from mount.control.paths import resolve
from mount.failures import Failure
from remote.protocol import account_messages
from remote.protocol.ids import FileId
from remote.protocol.messages import SHARED_NAME

_SECOND_NS = 1_000_000_000


async def share(context: CommandContext, request: ShareRequest, report: Report) -> Shares:
    node = await context.flushed_node(request.path, report)
    invited = [account_messages.Invite(account=request.account, role=request.role)]
    entry = await _entry(context, request.path, node)
    reply = await context.client.share(
        node.file, account_messages.ShareRequest(users=invited, entry=entry)
    )
    return _shares(context, request.path, reply)


async def _entry(context: CommandContext, path: str, node: Node) -> account_messages.Entry | None:
    """By which of its names a file is shared, where it has several: others are told that one. Where
    it makes no difference it is not said: an older server refuses a field that it does not know.
    """
    if node.is_directory or node.links < 2:
        return None
    *above, name = [part for part in path.split("/") if part]
    parent = await resolve(context.session, "/".join(above))
    return account_messages.Entry(parent=parent.file, name=name)


async def unshare(context: CommandContext, request: UnshareRequest, report: Report) -> Shares:
    """Take the grant back; the answer tells which others are left, also those above, and what is
    still reached otherwise."""
    node = await context.flushed_node(request.path, report)
    await context.client.unshare(node.file, request.account)
    return _shares(context, request.path, await context.client.shares(node.file))


async def shares(context: CommandContext, request: SharesRequest, report: Report) -> Shares:
    node = await context.flushed_node(request.path, report)
    return _shares(context, request.path, await context.client.shares(node.file))


def _shares(context: CommandContext, path: str, reply: account_messages.SharesReply) -> Shares:
    grants = [
        Grant(
            account=grant.account,
            role=grant.role,
            path=context.path_of(grant.file),
            granted_by=grant.granted_by,
            at_ns=grant.at_ns,
            was_name=None if grant.was is None else grant.was.name,
            was_path=None if grant.was is None else _path_of(context, grant.was),
        )
        for grant in reply.grants
    ]
    reached = [
        Reached(account=item.account, role=item.role, name=item.name, path=_path_of(context, item))
        for item in reply.reached
    ]
    return Shares(
        path=path,
        owner=reply.owner,
        grants=grants,
        reached=reached,
        more_reached=reply.more_reached,
    )


def _path_of(
    context: CommandContext, entry: account_messages.Reached | account_messages.Entry
) -> str | None:
    """Of that very name: the file may have others."""
    above = context.path_of(entry.parent)
    return None if above is None else f"{above}/{entry.name}".lstrip("/")


async def shared(context: CommandContext, _request: SharedRequest, _report: Report) -> Shared:
    found = (await _places(context)).values()
    return Shared(sorted(found, key=lambda place: place.path))


async def _places(context: CommandContext) -> dict[FileId, SharedPlace]:
    """The files that others share, by id, without those that are reached through another."""
    roots = (await context.client.shared()).shared
    return {
        root.file.id: SharedPlace(
            path=f"{SHARED_NAME}/{root.owner}/{root.name}",
            owner=root.owner,
            role=root.role,
            kind=root.file.kind,
            size=root.file.size,
        )
        for root in roots
        if root.name is not None
    }


async def leave(context: CommandContext, request: LeaveRequest, _report: Report) -> Done:
    places = await _places(context)
    file = next((file for file, place in places.items() if place.path == request.path), None)
    if file is None:
        raise Failure(_not_shared(request.path, [place.path for place in places.values()]))
    await context.client.unshare(file, context.name)
    await context.pull_and_invalidate()
    return Done()


def _not_shared(path: str, places: list[str]) -> str:
    for place in places:
        if path.startswith(place + "/"):
            return f"{path} is part of {place}; leave that, or ask its owner"
    return f"nobody shares {path or 'this'} with you; `nearline shared` lists what others share"


# --- links --------------------------------------------------------------------------------------


async def make_link(context: CommandContext, request: MakeLinkRequest, report: Report) -> LinkMade:
    node = await context.flushed_node(request.path, report)
    asked = account_messages.MakeLink(
        expires_ns=in_seconds(request.expires_seconds),
        password=request.password,
        max_downloads=request.max_downloads,
        entry=await _entry(context, request.path, node),
    )
    made = await context.client.make_link(node.file, asked)
    return LinkMade(_link(context, made.link), made.url)


async def links(context: CommandContext, request: LinksRequest, report: Report) -> Links:
    file = None
    if request.path is not None:
        file = (await context.flushed_node(request.path, report)).file
    found = (await context.client.links(file)).links
    found.sort(key=lambda link: link.created_ns, reverse=True)
    return Links([_link(context, link) for link in found])


async def revoke_link(context: CommandContext, request: RevokeLinkRequest, _report: Report) -> Done:
    known = (await context.client.links()).links
    await context.client.revoke_link(one_of([link.id for link in known], request.id, "link"))
    return Done()


def _link(context: CommandContext, link: account_messages.LinkInfo) -> Link:
    return Link(
        id=link.id,
        name=link.name,
        path=context.path_of(link.file),
        created_ns=link.created_ns,
        expires_ns=link.expires_ns,
        has_password=link.has_password,
        max_downloads=link.max_downloads,
        downloads=link.downloads,
        was_name=None if link.was is None else link.was.name,
        was_path=None if link.was is None else _path_of(context, link.was),
    )


def in_seconds(seconds: int | None) -> int | None:
    """The moment so many seconds from now, in nanoseconds since 1970."""
    return None if seconds is None else time.time_ns() + seconds * _SECOND_NS
