"""A control socket with a made-up mount behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from mount.control import server


async def serve(
    path: Path, fake: Any, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Have `fake` answer on `path`, in a directory that is there, until cancelled."""
    async with server.listening(path) as listener:
        task_status.started()
        await server.serve_control(listener, fake)
