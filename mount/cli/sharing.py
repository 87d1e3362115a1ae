"""`share`, `unshare`, `shares`, `shared`, `leave`, `link`, `links`: what others may see."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

from mount.cli import flags, listing, target, times
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
    SharedRequest,
    ShareRequest,
    Shares,
    SharesRequest,
    UnshareRequest,
)
from mount.control.messages import Done
from mount.failures import UsageFailure

_SHOWN = 20
OtherAccount = Annotated[str, Parameter(name="ACCOUNT")]


def share(
    path: flags.Path,
    account: OtherAccount,
    /,
    *,
    role: Annotated[
        Literal["viewer", "editor"], Parameter(help="Whether they may also change it.")
    ] = "viewer",
) -> None:
    """Let ACCOUNT see, or with --role editor change, PATH and what is below it.

    It appears in the folder Shared of their mount. Sharing again changes the role."""
    record, below = target.at(path)
    target.ask(
        record,
        ShareRequest(below, account, role),
        Shares,
        "share",
    )
    print(f"{listing.printable(account)} is {role} of {listing.printable(_called(below))} now.")


def unshare(path: flags.Path, account: OtherAccount, /) -> None:
    """Take back from ACCOUNT what it was given on PATH.

    What it still reaches by other ways (a folder above or inside that is shared too, a hard link in
    another shared folder) is printed."""
    record, below = target.at(path)
    request = UnshareRequest(below, account)
    left = target.ask(record, request, Shares, "unshare")
    still = [item for item in left.grants if item.account.casefold() == account.casefold()]
    name, what = listing.printable(account), listing.printable(_called(below))
    print(f"{what} itself is not shared with {name} any more.")
    for item in still:
        where = "a folder above" if item.path is None else _called(item.path)
        print(f"{name} still sees it as {item.role} of {listing.printable(where)}.")
    reached = [item for item in left.reached if item.account.casefold() == account.casefold()]
    for place in reached[:_SHOWN]:
        print(f"{name} still reaches {_place(place)} as {place.role}.")
    if left.more_reached or len(reached) > _SHOWN:
        print("There is more that is still reached; `nearline shares` lists it.")


def shares(path: flags.Path, /, *, json: flags.Json = False) -> None:
    """List who has access to PATH, and where it was given.

    Where that has another name, or is in another folder, since it was given, WAS tells the old."""
    record, below = target.at(path)
    found = target.ask(record, SharesRequest(below), Shares, "shares")
    if json:
        listing.print_json(found)
        return
    listing.show(
        ["ACCOUNT", "ROLE", "GIVEN ON", "WAS", "BY", "WHEN"],
        [[found.owner, "owner", "", "", "", ""]]
        + [
            [
                grant.account,
                grant.role,
                "(above)" if grant.path is None else _called(grant.path),
                _was(grant),
                grant.granted_by,
                times.local(grant.at_ns),
            ]
            for grant in found.grants
        ],
        nothing="",
    )
    if found.reached:
        print("\nIn it, and not by the above:")
        listing.show(
            ["ACCOUNT", "ROLE", "REACHES"],
            [[item.account, item.role, _place(item)] for item in found.reached],
            nothing="",
        )
    if found.more_reached:
        print("There is more; take some of it back, and look again.")


def shared(directory: flags.Mount = None, /, *, json: flags.Json = False) -> None:
    """List what others share with you, and where it is in the mount."""
    record = target.chosen(directory)
    found = target.ask(record, SharedRequest(), Shared, "shared")
    if json:
        listing.print_json(found)
        return
    listing.show(
        ["PATH", "OWNER", "ROLE", "KIND"],
        [[item.path, item.owner, item.role, item.kind] for item in found.shared],
        nothing="Nobody shares anything with you.",
    )


def leave(path: flags.Path, /) -> None:
    """Give up what somebody shares with you at PATH (Shared/OWNER/NAME). They keep it."""
    record, below = target.at(path)
    target.ask(record, LeaveRequest(below), Done, "leave")
    print(f"{listing.printable(below)} is not shared with you any more.")


def _place(one: Reached) -> str:
    return listing.printable(f"(elsewhere)/{one.name}" if one.path is None else one.path)


def _was(one: Link | Grant) -> str:
    """Its name when it was given, where that has changed."""
    if one.was_name is None:
        return ""
    return f"(elsewhere)/{one.was_name}" if one.was_path is None else one.was_path


def _called(path: str) -> str:
    return path or "the whole drive"


# --- links --------------------------------------------------------------------------------------


def link(
    path: flags.Path,
    /,
    *,
    expires: flags.Expires = None,
    password_file: flags.PasswordFile = None,
    max_downloads: Annotated[
        int | None, Parameter(help="So many downloads may be begun, and no more.")
    ] = None,
    json: flags.Json = False,
) -> None:
    """Make a URL that shows PATH to whoever has it, also without an account.

    It is printed this once. With --password-file they are asked for that password."""
    from mount import credentials

    if max_downloads is not None and max_downloads < 1:
        raise UsageFailure("--max-downloads is at least 1; without it there is no limit")
    password = None
    if password_file is not None:
        password = credentials.read_secret("password", "", password_file)
    record, below = target.at(path)
    request = MakeLinkRequest(
        path=below,
        expires_seconds=None if expires is None else times.duration(expires),
        password=password,
        max_downloads=max_downloads,
    )
    made = target.ask(record, request, LinkMade, "link")
    if json:
        listing.print_json(made)
        return
    print(made.url)
    print(f"Take it back with: nearline links revoke {made.link.id}", file=sys.stderr)


links = App(name="links", help="The links to your files.")


@links.default
def list_links(
    path: Annotated[str | None, Parameter(name="PATH")] = None, /, *, json: flags.Json = False
) -> None:
    """The links to PATH; for a mount's own folder, or without PATH, every link of the drive.

    Where what a link shows has another name, or is in another folder, since the link was made, WAS
    tells the old."""
    record = target.chosen(path)
    below = None if path is None else target.path_in(record, path)
    request = LinksRequest(below or None)
    found = target.ask(record, request, Links, "links")
    if json:
        listing.print_json(found)
        return
    listing.show(
        ["ID", "PATH", "WAS", "MADE", "EXPIRES", "DOWNLOADS", "PASSWORD"],
        [_row(item) for item in found.links],
        nothing="There are no links. Make one with: nearline link PATH",
    )


def _row(one: Link) -> list[str]:
    limit = "" if one.max_downloads is None else f" of {one.max_downloads}"
    return [
        one.id[-8:],
        one.path or one.name,
        _was(one),
        times.local(one.created_ns),
        "never" if one.expires_ns is None else times.local(one.expires_ns),
        f"{one.downloads}{limit}",
        "yes" if one.has_password else "",
    ]


@links.command(name="revoke")
def revoke(id: Annotated[str, Parameter(name="ID")], directory: flags.Mount = None, /) -> None:
    """Make the link ID, as `nearline links` shows it, lead nowhere from now on."""
    record = target.chosen(directory)
    target.ask(record, RevokeLinkRequest(id), Done, "links")
    print("The link leads nowhere any more.")
