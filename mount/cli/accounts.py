"""`account` (but for `add`) and `admin token`: who may use a server, and how much of it.

On the machine that has the server's data, also while it runs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from mount import credentials
from mount.cli import confirm, flags, listing, times
from mount.failures import UsageFailure
from mount.options import absolute, size
from remote.protocol.sizes import size_text

token = App(name="token", help="Tokens of any account.")


def ask(what: str, data_dir: Path, *values: Any, **options: Any) -> Any:
    """Have `server.maintenance.admin` do something. Raises `Failure`."""
    from mount.process import embedded

    return embedded.admin(what, data_dir, *values, **options)


def print_plain(found: dict[str, Any]) -> None:
    """Print plain values as JSON."""
    from msgspec import json

    print(json.format(json.encode(found)).decode())


# --- accounts and tokens ------------------------------------------------------------------------


def account_list(*, data: flags.Data, json: flags.Json = False) -> None:
    """Every account, with what it uses and may use."""
    found = ask("list_accounts", absolute(data))
    if json:
        print_plain({"accounts": found})
        return
    listing.show(
        ["ACCOUNT", "USED", "RESERVED", "QUOTA", "KEEPS", "DEVICES", "MADE", ""],
        [_account(item) for item in found],
        nothing="There are no accounts; make one with `nearline account add`.",
    )


def _account(one: dict[str, Any]) -> list[str]:
    quota = one["quota_bytes"]
    kept = [f"{one['keep_days']} days"] if one["keep_days"] is not None else []
    kept += [f"{one['keep_versions']} versions"] if one["keep_versions"] is not None else []
    return [
        one["name"],
        size_text(one["used_bytes"]),
        size_text(one["reserved_bytes"]) if one["reserved_bytes"] else "",
        "none" if quota is None else size_text(quota),
        ", ".join(kept) or "as the server",
        str(one["devices"]),
        times.local(one["created_ns"]),
        "" if one["locked_ns"] is None else "locked",
    ]


def account_set(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    data: flags.Data,
    quota: Annotated[str | None, Parameter(help="A size such as 10GiB, or none.")] = None,
    keep_days: Annotated[
        str | None, Parameter(help="Days that history and trash are kept; `default`: the server's.")
    ] = None,
    keep_versions: Annotated[
        str | None, Parameter(help="Newest versions always kept; `default`: the server's.")
    ] = None,
) -> None:
    """Change how much an account may store, and how long its history is kept."""
    values: dict[str, int | None] = {}
    if quota is not None:
        values["quota_bytes"] = None if quota == "none" else size(quota)
    if keep_days is not None:
        values["keep_days"] = _number("--keep-days", keep_days)
    if keep_versions is not None:
        values["keep_versions"] = _number("--keep-versions", keep_versions)
    if not values:
        raise UsageFailure("nothing is to be changed; give --quota, --keep-days or --keep-versions")
    print("  ".join(_account(ask("set_account", absolute(data), name, **values))))


def _number(flag: str, text: str) -> int | None:
    if text == "default":
        return None
    if not text.isascii() or not text.isdecimal():
        raise UsageFailure(f"{flag} {text} is no number; give one, or `default`")
    return int(text)


def account_passwd(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    data: flags.Data,
    password_file: flags.PasswordFile = None,
    revoke_devices: flags.RevokeDevices = False,
) -> None:
    """Give an account another password. Its devices go on, unless they are revoked."""
    prompt = f"New password of {name}: "
    password = credentials.read_new_secret("password", prompt, password_file)
    revoked = ask("set_password", absolute(data), name, password, revoke_devices=revoke_devices)
    print(f"{name} has a new password; {_what_became(revoke_devices, revoked)}.")


def _what_became(revoke_devices: bool, revoked: int) -> str:
    return f"devices refused: {revoked}" if revoke_devices else "its devices go on"


def account_lock(name: Annotated[str, Parameter(name="NAME")], /, *, data: flags.Data) -> None:
    """Refuse an account from its next request on: every device, its password, its links.

    Its files stay, and other accounts go on using what it shares with them."""
    ask("lock_account", absolute(data), name)
    print(f"{name} is locked. Undo with: nearline account unlock {name} --data {data}")


def account_unlock(name: Annotated[str, Parameter(name="NAME")], /, *, data: flags.Data) -> None:
    """Let an account in again, with the devices and the password that it had."""
    ask("unlock_account", absolute(data), name)
    print(f"{name} may come in again.")


def account_remove(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    data: flags.Data,
    yes: Annotated[bool, Parameter(negative="", help="Do not ask.")] = False,
) -> None:
    """Delete an account with everything in its drive, for good.

    To keep the files, lock it instead. Its name is not given to anybody again."""
    where = absolute(data)
    for line in _leaving(ask("leaving", where, name)):
        print(line)
    if not yes and not confirm.agreed(f"Remove the account {name} for good?"):
        print("Nothing was removed.")
        return
    done = ask("remove_account", where, name)
    if not done["emptied"]:
        print(f"{name} is gone. Something else is at work; the next collection empties its drive.")
        return
    print(f"{name} is gone. Its space comes back with the next garbage collections.")


def _leaving(one: dict[str, Any]) -> list[str]:
    """The fate of everything that the account has to do with."""
    return [
        f"{one['name']} has {one['files']:,} files, {size_text(one['used_bytes'])} with history"
        " and trash: they are deleted for good.",
        f"What it shares with others ends at once: {one['shared']:,}. So do its links:"
        f" {one['links']:,}.",
        f"What others share with it ends ({one['received']:,}); what it wrote there stays.",
        f"Its devices are refused from their next request on: {one['devices']:,}.",
        "The audit log stays, and the name is not given to anybody again.",
    ]


@token.command(name="list")
def token_list(
    account: Annotated[str | None, Parameter(name="ACCOUNT")] = None,
    /,
    *,
    data: flags.Data,
    json: flags.Json = False,
) -> None:
    """The devices whose token is good, of one account or of all."""
    found = ask("list_tokens", absolute(data), account)
    if json:
        print_plain({"tokens": found})
        return
    rows = [
        [
            item["account"],
            item["id"],
            item["name"],
            "read" if item["scope"] == "read" else "everything",
            item["folder"] or "",
            "never" if item["expires_ns"] is None else times.local(item["expires_ns"]),
            "never" if item["seen_ns"] is None else times.local(item["seen_ns"]),
        ]
        for item in found
    ]
    headings = ["ACCOUNT", "ID", "NAME", "MAY", "FOLDER", "EXPIRES", "LAST SEEN"]
    listing.show(headings, rows, nothing="There are no tokens.")


@token.command(name="add")
def token_add(
    account: Annotated[str, Parameter(name="ACCOUNT")],
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    data: flags.Data,
    read_only: Annotated[bool, Parameter(negative="", help="It may change nothing.")] = False,
    folder: Annotated[
        str | None, Parameter(help="It reaches this folder and no more: a path from / or an id.")
    ] = None,
    expires: flags.Expires = None,
) -> None:
    """Make a token for ACCOUNT's device NAME without its password; it is printed this once."""
    ends = None if expires is None else time.time_ns() + times.duration(expires) * 10**9
    limits = {"read_only": read_only, "folder": folder, "expires_ns": ends}
    print(ask("add_token", absolute(data), account, name, **limits))


@token.command(name="revoke")
def token_revoke(device: Annotated[str, Parameter(name="ID")], /, *, data: flags.Data) -> None:
    """Refuse a device from its next request on."""
    name = ask("revoke_token", absolute(data), device)
    print(f"{listing.printable(name)} is refused from now on.")
