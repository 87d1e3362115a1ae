"""The audit log: who did what, with which device, when. Append-only.

Knows: how a row is written and read back, what of an operation it tells. Must not know: what the
actions do.

`note` is called in the transaction that makes the change, so that there is never the one without
the other. Details are for people and programs to read later: ids, names, numbers, never a secret.
Tree operations are noted under their wire tags (`create`, `rename`, ...); the rest is `Action`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET
from sqlalchemy import Connection, insert, or_, select

from remote.protocol import messages
from server.metadata.schema import accounts, audit, devices
from server.permissions.caller import Caller

Action = Literal[
    "account_add",
    "account_set",
    "account_passwd",
    "account_lock",
    "account_unlock",
    "account_remove",
    "login",
    "login_failed",
    "token_make",
    "token_rotate",
    "token_copied",
    "device_revoke",
    "share",
    "unshare",
    "link_make",
    "link_revoke",
    "link_open",
    "link_refused",
    "link_download",
    "trash_empty",
    "trash_expire",
    "versions_expire",
    "chunk_bad",
    "gc",
    "backup",
    "restore",
    "fsck",
    "keys_rotate",
]

_PLACE = ("parent", "name")
_MOVE = (*_PLACE, "new_parent", "new_name")
# What is told of each operation beside its file and the version that it brings: where and under
# which name; not what is in attributes and symlinks.
_TOLD: dict[type[messages.Op], tuple[str, ...]] = {
    messages.Create: (*_PLACE, "kind"),
    messages.Write: (),
    messages.Link: _PLACE,
    messages.Rename: (*_MOVE, "replaces"),
    messages.Replace: (*_MOVE, "target"),
    messages.Retake: ("parent", "name", "new_name", "backup"),
    messages.Exchange: (*_PLACE, "other", "other_parent", "other_name"),
    messages.Unlink: _PLACE,
    messages.SetAttr: ("mode", "uid", "gid", "mtime_ns"),
    messages.SetXattr: ("name",),
    messages.Revert: ("version", "as_version"),
    messages.Recover: _PLACE,
}

MAX_READ = 10_000
# Names in one row.
_MAX_TOLD = 50

_encode = msgspec.json.Encoder(order="deterministic").encode


def row(
    caller: Caller | None, action: str, subject: str | None, now_ns: int, **detail: Any
) -> dict[str, Any]:
    """A row of the log, for those who write many at once. No caller: an operator, or the server."""
    return {
        "at_ns": now_ns,
        "account": caller.account if caller is not None else None,
        "device": caller.device if caller is not None else None,
        "action": action,
        "subject": subject,
        "detail": _encode(detail).decode(),
    }


def note(
    conn: Connection,
    caller: Caller | None,
    action: Action,
    subject: str | None,
    now_ns: int,
    **detail: Any,
) -> None:
    """Write one row."""
    conn.execute(insert(audit), row(caller, action, subject, now_ns, **detail))


def of_operation(
    caller: Caller, op: messages.Op, now_ns: int, left: Sequence[str] = ()
) -> dict[str, Any]:
    """The row of an operation that was applied; its action is the operation's tag. `left` are names
    of others that went with it: the first of them are told."""
    told = ((name, getattr(op, name)) for name in _TOLD[type(op)])
    detail = {name: value for name, value in told if value is not None and value is not UNSET}
    if isinstance(op, messages.Create | messages.Write) and op.content is not None:
        detail["version"] = op.content.version
    if left:
        detail |= {"names_gone": left[:_MAX_TOLD], "how_many_gone": len(left)}
    return row(caller, str(op.__struct_config__.tag), op.file, now_ns, **detail)


# --- reading ------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A row as people read it. `account` and `device` are names; None: an operator, or the server
    by itself. `at_ns` is nanoseconds since 1970 UTC."""

    id: int
    at_ns: int
    account: str | None
    device: str | None
    action: str
    subject: str | None
    detail: dict[str, Any]


def read(
    conn: Connection,
    since_ns: int | None = None,
    account: str | None = None,
    after: int = 0,
    limit: int = 1000,
) -> list[Entry]:
    """Rows after row `after`, in the order of what happened, at most `limit` (10,000).

    `since_ns` leaves out what is older; `account` (a name) all but what that account did, or had
    done to it. For the next page, `after` is the `id` of the last row.
    """
    query = (
        select(
            audit.c.id,
            audit.c.at_ns,
            accounts.c.name.label("account"),
            devices.c.name.label("device"),
            audit.c.action,
            audit.c.subject,
            audit.c.detail,
        )
        .join(accounts, audit.c.account == accounts.c.id, isouter=True)
        .join(devices, audit.c.device == devices.c.id, isouter=True)
        .where(audit.c.id > after)
    )
    if since_ns is not None:
        query = query.where(audit.c.at_ns >= since_ns)
    if account is not None:
        who = select(accounts.c.id).where(accounts.c.name_key == account.casefold())
        whose = who.scalar_subquery()
        query = query.where(or_(audit.c.account == whose, audit.c.subject == whose))
    rows = conn.execute(query.order_by(audit.c.id).limit(min(limit, MAX_READ)))
    return [Entry(*item[:-1], detail=msgspec.json.decode(item.detail)) for item in rows]
