"""Asking a mount for a command: which mount, and waiting for its answer.

Knows: how a path, a directory or nothing at all means a mount. Must not know: what is asked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from mount.control import client, messages
from mount.failures import Failure, UsageFailure
from mount.process import registry
from mount.progress import View

# The longest silence: a large answer over a slow line, not a wedged mount. While the mount waits
# for an upload, it says so every second.
LINE_TIMEOUT_SECONDS = 300.0

T = TypeVar("T")


def at(path: str) -> tuple[registry.Record, str]:
    """The running mount that `path` is in, and the path below its root. Raises `Failure`."""
    return registry.live(Path(path))


def chosen(directory: str | None) -> registry.Record:
    """The running mount at `directory`; without one that of the working directory, or the only one
    there is. Raises `Failure` for none and `UsageFailure` for several."""
    if directory is not None:
        return at(directory)[0]
    records = [record for record in registry.all_records() if record.alive]
    here = os.path.abspath(".")
    inside = [record for record in records if Path(here).is_relative_to(record.mountpoint)]
    if inside:
        return at(here)[0]
    if len(records) == 1:
        return at(records[0].mountpoint)[0]
    if not records:
        raise Failure("nothing is mounted; start with `nearline up` or `nearline mount URL DIR`")
    places = ", ".join(record.mountpoint for record in records)
    raise UsageFailure(f"there are {len(records)} mounts; say which: {places}")


def ask(record: registry.Record, request: messages.Request, kind: type[T], title: str) -> T:
    """Ask the mount; its answer, which is a `kind`. Raises `Failure`."""
    with View(title) as view:
        answer = client.ask(
            Path(record.control), request, on_progress=view, line_timeout=LINE_TIMEOUT_SECONDS
        )
    if not isinstance(answer, kind):
        raise Failure(
            f"the mount at {record.mountpoint} answered something else; is it of another version?"
            f" `nearline umount {record.mountpoint}` and mount it again"
        )
    return answer


def below(record: registry.Record, path: str) -> str | None:
    """`path` relative to the root of the mount, or None when it is not in it."""
    try:
        found, inside = registry.find(Path(path))
    except Failure:
        return None
    return inside if found.mountpoint == record.mountpoint else None


def path_in(record: registry.Record, path: str) -> str:
    """As `below`, but raise `UsageFailure` for a path somewhere else."""
    inside = below(record, path)
    if inside is None:
        raise UsageFailure(f"{path} is not in the mount at {record.mountpoint}; give a path there")
    return inside
