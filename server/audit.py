"""The audit log: who did what, with which device, when. Append-only.

Knows: how a row is written. Must not know: what the actions do.

`note` is called in the transaction that makes the change, so that there is never the one without
the other. Details are for people and programs to read later: ids, names, numbers, never a secret.
Tree operations are noted under their wire tags (`create`, `rename`, ...); the rest is `ACTIONS`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, insert

from server.caller import Caller
from server.schema import audit

ACTIONS = frozenset(
    {
        "account_add",
        "account_set",
        "login",
        "login_failed",
        "token_make",
        "token_rotate",
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
    }
)

_encode = msgspec.json.Encoder().encode


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
    action: str,
    subject: str | None,
    now_ns: int,
    **detail: Any,
) -> None:
    """Write one row."""
    conn.execute(insert(audit), row(caller, action, subject, now_ns, **detail))
