"""`share`, `unshare`, `shares`, `shared`, `leave`, and links: what others may see.

Knows: which endpoint answers which request. Must not know: who may do what (the server decides).
"""

from __future__ import annotations

import time

from cache.metadata.tree import Node
from mount.control import account_messages as ask
from mount.control.context import Account, Report, one_of
from mount.control.messages import Done
from mount.control.paths import resolve
from mount.failures import Failure
from remote.protocol import account_messages as wire
from remote.protocol.ids import FileId
from remote.protocol.messages import SHARED_NAME

_SECOND_NS = 1_000_000_000


async def share(account: Account, request: ask.ShareRequest, report: Report) -> ask.Shares:
    node = await account.known(request.path, report)
    invited = [wire.Invite(account=request.account, role=request.role)]
    entry = await _entry(account, request.path, node)
    reply = await account.client.share(node.file, wire.ShareRequest(users=invited, entry=entry))
    return _shares(account, request.path, reply)


async def _entry(account: Account, path: str, node: Node) -> wire.Entry | None:
    """By which of its names a file is shared, where it has several: others are told that one. Where
    it makes no difference it is not said: an older server refuses a field that it does not know.
    """
    if node.is_directory or node.links < 2:
        return None
    *above, name = [part for part in path.split("/") if part]
    parent = await resolve(account.session, "/".join(above))
    return wire.Entry(parent=parent.file, name=name)


async def unshare(account: Account, request: ask.UnshareRequest, report: Report) -> ask.Shares:
    """Take the grant back; the answer tells which others are left, also those above, and what is
    still reached otherwise."""
    node = await account.known(request.path, report)
    await account.client.unshare(node.file, request.account)
    return _shares(account, request.path, await account.client.shares(node.file))


async def shares(account: Account, request: ask.SharesRequest, report: Report) -> ask.Shares:
    node = await account.known(request.path, report)
    return _shares(account, request.path, await account.client.shares(node.file))


def _shares(account: Account, path: str, reply: wire.SharesReply) -> ask.Shares:
    grants = [
        ask.Grant(
            account=grant.account,
            role=grant.role,
            path=account.path_of(grant.file),
            granted_by=grant.granted_by,
            at_ns=grant.at_ns,
            was_name=None if grant.was is None else grant.was.name,
            was_path=None if grant.was is None else _path_of(account, grant.was),
        )
        for grant in reply.grants
    ]
    reached = [
        ask.Reached(account=one.account, role=one.role, name=one.name, path=_path_of(account, one))
        for one in reply.reached
    ]
    return ask.Shares(
        path=path,
        owner=reply.owner,
        grants=grants,
        reached=reached,
        more_reached=reply.more_reached,
    )


def _path_of(account: Account, entry: wire.Reached | wire.Entry) -> str | None:
    """Of that very name: the file may have others."""
    above = account.path_of(entry.parent)
    return None if above is None else f"{above}/{entry.name}".lstrip("/")


async def shared(account: Account, _request: ask.SharedRequest, _report: Report) -> ask.Shared:
    found = (await _places(account)).values()
    return ask.Shared(sorted(found, key=lambda place: place.path))


async def _places(account: Account) -> dict[FileId, ask.SharedPlace]:
    """What others share, by file, without what is reached through another."""
    roots = (await account.client.shared()).shared
    return {
        root.file.id: ask.SharedPlace(
            path=f"{SHARED_NAME}/{root.owner}/{root.name}",
            owner=root.owner,
            role=root.role,
            kind=root.file.kind,
            size=root.file.size,
        )
        for root in roots
        if root.name is not None
    }


async def leave(account: Account, request: ask.LeaveRequest, _report: Report) -> Done:
    places = await _places(account)
    file = next((file for file, place in places.items() if place.path == request.path), None)
    if file is None:
        raise Failure(_not_shared(request.path, [place.path for place in places.values()]))
    await account.client.unshare(file, account.name)
    await account.shown()
    return Done()


def _not_shared(path: str, places: list[str]) -> str:
    for place in places:
        if path.startswith(place + "/"):
            return f"{path} is part of {place}; leave that, or ask its owner"
    return f"nobody shares {path or 'this'} with you; `nearline shared` lists what others share"


# --- links --------------------------------------------------------------------------------------


async def make_link(account: Account, request: ask.MakeLinkRequest, report: Report) -> ask.LinkMade:
    node = await account.known(request.path, report)
    asked = wire.MakeLink(
        expires_ns=in_seconds(request.expires_seconds),
        password=request.password,
        max_downloads=request.max_downloads,
        entry=await _entry(account, request.path, node),
    )
    made = await account.client.make_link(node.file, asked)
    return ask.LinkMade(_link(account, made.link), made.url)


async def links(account: Account, request: ask.LinksRequest, report: Report) -> ask.Links:
    file = None
    if request.path is not None:
        file = (await account.known(request.path, report)).file
    found = (await account.client.links(file)).links
    found.sort(key=lambda link: link.created_ns, reverse=True)
    return ask.Links([_link(account, link) for link in found])


async def revoke_link(account: Account, request: ask.RevokeLinkRequest, _report: Report) -> Done:
    known = (await account.client.links()).links
    await account.client.revoke_link(one_of([link.id for link in known], request.id, "link"))
    return Done()


def _link(account: Account, link: wire.LinkInfo) -> ask.Link:
    return ask.Link(
        id=link.id,
        name=link.name,
        path=account.path_of(link.file),
        created_ns=link.created_ns,
        expires_ns=link.expires_ns,
        has_password=link.has_password,
        max_downloads=link.max_downloads,
        downloads=link.downloads,
        was_name=None if link.was is None else link.was.name,
        was_path=None if link.was is None else _path_of(account, link.was),
    )


def in_seconds(seconds: int | None) -> int | None:
    """The moment so many seconds from now, in nanoseconds since 1970."""
    return None if seconds is None else time.time_ns() + seconds * _SECOND_NS
