"""`devices`: who has a token of the account."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from mount.cli import flags, listing, target, times
from mount.control import client
from mount.control.account_messages import (
    Devices,
    DevicesRequest,
    MakeTokenRequest,
    ReloadTokenRequest,
    RevokeDeviceRequest,
    RotateRequest,
    Token,
)
from mount.control.messages import Done
from mount.failures import Failure
from mount.process import registry

devices = App(name="devices", help="The devices and tokens of your account.")


@devices.default
@devices.command(name="list")
def list_devices(directory: flags.Mount = None, /, *, json: flags.Json = False) -> None:
    """Every device of the account whose token is good, newest first."""
    record = target.chosen(directory)
    found = target.ask(record, DevicesRequest(), Devices, "devices")
    if json:
        listing.print_json(found)
        return
    listing.show(
        ["ID", "NAME", "MAY", "FOLDER", "MADE", "EXPIRES", "LAST SEEN", ""],
        [
            [
                item.id[-8:],
                item.name,
                "read" if item.scope == "read" else "everything",
                item.folder or ("" if item.folder_id is None else "(not seen here)"),
                times.local(item.created_ns),
                "never" if item.expires_ns is None else times.local(item.expires_ns),
                "never" if item.seen_ns is None else times.local(item.seen_ns),
                "this mount" if item.current else "",
            ]
            for item in found.devices
        ],
        nothing="There are no devices.",
    )


@devices.command(name="revoke")
def revoke(
    said: Annotated[str, Parameter(name="ID-OR-NAME")],
    directory: flags.Mount = None,
    /,
    *,
    own: Annotated[bool, Parameter(negative="", help="Also if it is this mount's own.")] = False,
) -> None:
    """Refuse a device from its next request on. What it has not sent stays on it."""
    record = target.chosen(directory)
    request = RevokeDeviceRequest(said=said, own_too=own)
    done = target.ask(record, request, Done, "devices")
    print(f"{listing.printable(done.message)} is refused from now on.")


@devices.command(name="add")
def add(
    name: Annotated[str, Parameter(name="NAME")],
    directory: flags.Mount = None,
    /,
    *,
    read_only: Annotated[bool, Parameter(negative="", help="It may change nothing.")] = False,
    folder: Annotated[str | None, Parameter(help="It reaches this folder and no more.")] = None,
    expires: flags.Expires = None,
    json: flags.Json = False,
) -> None:
    """Make a token for a script or another machine, weaker than your own if you like.

    It is printed this once; keep it there with `nearline login --token-file`."""
    record = target.chosen(directory or folder)
    request = MakeTokenRequest(
        name=name,
        read_only=read_only,
        folder=None if folder is None else target.path_in(record, folder) or None,
        expires_seconds=None if expires is None else times.duration(expires),
    )
    made = target.ask(record, request, Token, "devices")
    if json:
        listing.print_json(made)
        return
    print(made.token)
    print(f"Take it back with: nearline devices revoke {made.id}", file=sys.stderr)


@devices.command(name="rotate")
def rotate(directory: flags.Mount = None, /) -> None:
    """Exchange this machine's token for a new one; the one before ends when that is used."""
    record = target.chosen(directory)
    done = target.ask(record, RotateRequest(), Done, "devices")
    print(f"This device has a new token; it is in {done.message}.")
    for other in registry.all_records():
        if other.alive and other != record and _same_login(other, record):
            _reload(other)


def _same_login(one: registry.Record, other: registry.Record) -> bool:
    return (one.url, one.account) == (other.url, other.account)


def _reload(other: registry.Record) -> None:
    """Another mount with the same login may be the same device."""
    try:
        client.ask(Path(other.control), ReloadTokenRequest())
    except (client.NotAnswering, client.MountRefused) as error:
        raise Failure(
            f"the mount at {other.mountpoint} has the old token still ({error});"
            " unmount it and mount it again"
        ) from error
