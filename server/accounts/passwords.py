"""Changing passwords, and what ends with the old one.

Knows: what a new password must be (`accounts`), whose devices may be revoked with it. Must not
know: HTTP, how often an old one may be tried (`http.password_tries`).
"""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Connection, update

from server.accounts import devices
from server.accounts.accounts import account_id, check_new_password, hash_password, opened
from server.metadata.schema import accounts as accounts_table
from server.metadata.schema import devices as devices_table
from server.permissions import audit
from server.permissions.caller import Caller


def set_password(data_dir: Path, name: str, password: str, *, revoke_devices: bool) -> int:
    """Give account `name` another password; returns how many devices were revoked with it.

    For the machine's administrator, as in `accounts`. Raises `AccountUnknown`, `BadPassword`.
    """
    check_new_password(name, password)
    hashed = hash_password(password)
    with opened(data_dir) as db, db.write() as conn:
        account = account_id(conn, name)
        return replace_password(conn, None, account, hashed, time.time_ns(), revoke_devices)


def replace_password(
    conn: Connection,
    caller: Caller | None,
    account: str,
    hashed: str,
    now_ns: int,
    revoke_devices: bool,
) -> int:
    """Give `account` the password that hashes to `hashed`, and end all its tokens (but that of
    `caller`) if its devices are to be revoked; returns how many were. No caller: an operator."""
    mine = accounts_table.c.id == account
    conn.execute(update(accounts_table).where(mine).values(password=hashed))
    revoked = 0
    if revoke_devices:
        others = devices_table.c.account == account
        if caller is not None:
            others &= devices_table.c.id != caller.device
        revoked = devices.revoke_all(conn, others, now_ns)
    audit.note(conn, caller, "account_passwd", account, now_ns, devices_revoked=revoked)
    return revoked
