"""Passwords are hashed and compared in threads of their own, in front of which few may wait.

Knows: how dear a password is. Must not know: whose it is, what it opens.

Each is 64 MiB and tens of milliseconds of work. Logins, links' passwords and new links share the
threads, so that none of the three can be used to keep the server from the others for longer than
`MAX_WAITING` take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from remote.errors import RateLimited, Refused
from server.service import Service

MAX_WAITING = 50
"""Beyond these, somebody is guessing."""

T = TypeVar("T")


async def off_loop(service: Service, work: Callable[..., T], *args: object) -> T:
    """`work(*args)`, which hashes a password. Raises `Refused(RateLimited)`."""
    if service.passwords.waiting >= MAX_WAITING:
        message = "too many passwords at once; try again in 1 s"
        raise Refused(RateLimited(message=message, retry_after_seconds=1.0))
    return await asyncio.get_running_loop().run_in_executor(service.passwords, work, *args)
