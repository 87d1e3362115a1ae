"""A running server notices what administrators do to its data beside it.

Knows: which commands a server must hear of, and that each leaves a row in the audit log, in the
transaction that carries it out or after it. Must not know: how the commands work.

Whatever a command changes in the database holds from the next request on, because every request
asks the database. What waits to be told (sockets, long polls) hears of it from here, and what is
kept in memory (the keys) is read again. Once in `LOOK_SECONDS` one query reads the rows that came
since; no signal has to be sent, and none can be forgotten.

Concurrency: `start` and `close` are called as those of `Service` are; `look` from one thread at a
time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

import msgspec
import structlog
from sqlalchemy import Connection, bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError

from server.metadata.db import Database
from server.metadata.schema import audit
from server.storage.keys import BadKey

LOOK_SECONDS = 1.0
KEYS: Final = "keys_rotate"
_SUBJECT_IS_ACCOUNT = ("account_lock", "account_remove", "account_passwd")
# By an operator: what `account` (an id) may see has changed.
_DETAIL_HAS_ACCOUNT = ("device_revoke", "unshare")

_NEWEST = select(func.max(audit.c.id))
_SINCE = (
    select(audit.c.action, audit.c.subject, audit.c.detail)
    .where(
        audit.c.id > bindparam("after"),
        audit.c.id <= bindparam("newest"),
        audit.c.account.is_(None),
        audit.c.action.in_([KEYS, *_SUBJECT_IS_ACCOUNT, *_DETAIL_HAS_ACCOUNT]),
    )
    .order_by(audit.c.id)
)

log = structlog.get_logger("nearline.server")


class Beside:
    """`touched` is called with the id of each account whose view or tokens were changed,
    `new_keys` when the keys were."""

    def __init__(
        self,
        db: Database,
        threads: Executor,
        touched: Callable[[str], None],
        new_keys: Callable[[], None],
    ) -> None:
        self._db, self._threads = db, threads
        self._touched, self._new_keys = touched, new_keys
        with db.read() as conn:
            self._seen = _newest(conn)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task = loop.create_task(self._watch())

    def close(self) -> None:
        """Look no more. From any thread."""
        if self._loop is not None and self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await loop.run_in_executor(self._threads, self.look)
            except (BadKey, OSError, SQLAlchemyError) as error:  # looked at again
                log.error("commands_not_noticed", error=repr(error))

    def look(self) -> None:
        """Act on every command since the last look."""
        with self._db.read() as conn:
            newest = _newest(conn)
            rows = conn.execute(_SINCE, {"after": self._seen, "newest": newest}).all()
        if any(row.action == KEYS for row in rows):
            self._new_keys()
        for account in {_account(*row) for row in rows if row.action != KEYS}:
            self._touched(account)
        self._seen = newest


def _newest(conn: Connection) -> int:
    return conn.execute(_NEWEST).scalar() or 0


def _account(action: str, subject: str, detail: str) -> str:
    if action in _SUBJECT_IS_ACCOUNT:
        return subject
    account: str = msgspec.json.decode(detail)["account"]
    return account
