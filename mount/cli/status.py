"""`status`, `doctor`, `pin`, `unpin`, `warm`, `cache`: asking a mount, and about this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from msgspec import structs

from mount.cli import flags
from mount.control import client, messages
from mount.process import detached_mounts, registry
from mount.progress import View
from remote.protocol.sizes import size_text

Place = Annotated[str, Parameter(name="PATH")]
Directory = Annotated[str, Parameter(name="DIR")]


def status(
    directory: Annotated[str | None, Parameter(name="DIR")] = None, /, *, json: flags.Json = False
) -> None:
    """Show what the mount at DIR is doing; without DIR, every mount of yours."""
    if directory is not None:
        record, _ = registry.find(Path(directory))
        found = [status_of(record)]
    else:
        list(registry.forget_gone())
        found = [status_of(record) for record in registry.all_records()]
    if json:
        print_json(found[0] if directory is not None else {"mounts": found})
    elif found:
        from mount.cli import status_table

        status_table.show(found)
    else:
        print("Nothing is mounted. Start with: nearline up")


def status_of(record: registry.Record) -> messages.Status:
    """The mount's own answer, or, when its process is gone or silent, what the record tells."""
    try:
        found = client.status(Path(record.control))
        return structs.replace(found, reason=detached_mounts.described(record) or found.reason)
    except (client.NotAnswering, client.MountRefused) as error:
        reason = "its process is gone"
        if record.alive:
            reason = f"process {record.pid} does not answer: {error}"
        return messages.Status(
            state="dead",
            reason=reason,
            mountpoint=record.mountpoint,
            url=record.url,
            account=record.account,
            pid=record.pid,
            state_dir=record.state_dir,
            cache_dir=record.cache_dir,
        )


def print_json(what: object) -> None:
    """The stable schema: the fields of `Status`, without the tag that the socket needs."""
    from msgspec import json, to_builtins

    plain = to_builtins(what)
    for item in plain.get("mounts", [plain]):
        item.pop("type", None)
    print(json.format(json.encode(plain)).decode())


def doctor() -> int:
    """Check FUSE, the servers you are logged in to, clocks, tokens and disks.

    One line each: ok, warn or fail, and what to do. Exit code 1 when anything fails."""
    from mount.doctor import examine

    worst = 0
    for finding in examine():
        print(finding.line(), flush=True)
        worst = max(worst, finding.level == "fail")
    return int(worst)


def pin(path: Place, /) -> None:
    """Fetch PATH and keep it on this machine, also offline."""
    record, below = registry.live(Path(path))
    with View("pin") as view:
        _ask(record, messages.PinRequest(below), view)


def unpin(path: Place, /) -> None:
    """Let PATH be evicted again when room is needed."""
    record, below = registry.live(Path(path))
    _ask(record, messages.UnpinRequest(below))


def warm(path: Place, /) -> None:
    """Fetch PATH into the cache once; it may be evicted later."""
    record, below = registry.live(Path(path))
    with View("warm") as view:
        _ask(record, messages.WarmRequest(below), view)


def _ask(
    record: registry.Record, request: messages.Request, view: View | None = None
) -> messages.Reply:
    return client.ask(
        Path(record.control), request, on_progress=view, line_timeout=None if view else 60.0
    )


def cache_stats(directory: Directory, /, *, json: flags.Json = False) -> None:
    """Show how full the block cache of the mount at DIR is, and how often it had what was read."""
    record, _ = registry.live(Path(directory))
    stats = _ask(record, messages.CacheStatsRequest())
    assert isinstance(stats, messages.CacheStats)
    if json:
        print_json(stats)
        return
    reads = stats.hits + stats.misses
    print(f"used     {size_text(stats.bytes)} of {size_text(stats.limit)}")
    print(f"blocks   {stats.blocks}")
    print(f"pinned   {stats.pinned_chunks} chunks")
    print(f"hits     {stats.hits} of {reads}{f' ({stats.hits / reads:.0%})' if reads else ''}")


def cache_clear(directory: Directory, /) -> None:
    """Drop every block of the mount at DIR that is neither pinned nor waiting to be uploaded."""
    record, _ = registry.live(Path(directory))
    answer = _ask(record, messages.CacheClearRequest())
    freed = int(answer.message) if isinstance(answer, messages.Done) and answer.message else 0
    print(f"freed {size_text(freed)}", file=sys.stdout)
