"""`nearline status` as a person sees it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mount.cli import listing, times
from mount.control.messages import LimitsStatus, RefusedStatus, Status
from mount.options import MAX_TRANSFERS
from mount.progress import human_seconds
from remote.protocol.sizes import rate_text, size_text

_COLOURS = {"online": "green", "offline": "yellow", "dead": "red"}


def show(found: list[Status], console: Console | None = None) -> None:
    """A small table for each mount."""
    console = console or Console(highlight=False)
    for index, status in enumerate(found):
        if index:
            console.print()
        console.print(Text(status.mountpoint, style="bold"))
        console.print(_table(status))


def _table(status: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(status):
        colour = _COLOURS.get(status.state, "") if name == "state" else ""
        table.add_row(f"  {name}", Text(value, style=colour))
    return table


def rows(status: Status) -> list[tuple[str, str]]:
    """The lines that there are, as (name, text)."""
    reason = f": {status.reason}" if status.reason else ""
    found = [
        ("state", f"{status.state}{reason}"),
        ("server", f"{status.url} as {status.account}"),
    ]
    if status.state == "dead":
        return [*found, ("what to do", f"nearline umount {status.mountpoint}, then mount again")]
    return [*found, *_work(status), *_resources(status)]


def _work(status: Status) -> list[tuple[str, str]]:
    journal = status.journal
    waiting = f"{journal.operations} changes, {size_text(journal.bytes)}"
    found = [("to send", waiting if journal.operations else "nothing")]
    for upload in status.uploads:
        done, total = size_text(upload.bytes_done), size_text(upload.bytes_total)
        error = f", waiting: {upload.error}" if upload.error else ""
        found.append(("uploading", f"{upload.path} ({done} of {total}{error})"))
    for refused in status.refused:
        found += [("refused", _refusal(refused)), ("what to do", refused.advice)]
    found += [("quarantine", f"damaged state was put aside in {at}") for at in status.quarantined]
    lag = status.feed.lag_seconds
    complete = "never" if lag is None else f"{human_seconds(lag)} ago"
    found.append(("changes", f"{status.feed.mode}, last known complete {complete}"))
    return found


def _refusal(refused: RefusedStatus) -> str:
    since = f", since {times.local(refused.since_ns)}" if refused.since_ns else ""
    behind = f", {refused.waiting} more wait for it" if refused.waiting else ""
    return f"{refused.operation} {listing.printable(refused.path)}{since}{behind}: {refused.error}"


def _resources(status: Status) -> list[tuple[str, str]]:
    cache, moved, limits = status.cache, status.transferred, status.limits
    memory = size_text(limits.memory_bytes)
    if limits.memory_limit:
        memory += f" of {size_text(limits.memory_limit)}"
    return [
        ("cache", f"{size_text(cache.bytes)} of {size_text(cache.limit)}"),
        (
            "moved",
            f"{size_text(moved.downloaded_bytes)} down, {size_text(moved.uploaded_bytes)} up, "
            f"{moved.requests} requests",
        ),
        (
            "limits",
            f"{memory} memory, {limits.open_files} of {limits.open_files_limit} open files, "
            f"{size_text(limits.dirty_bytes)} of {size_text(limits.dirty_limit)} unsent",
        ),
        *_transfers(limits),
        ("process", str(status.pid)),
    ]


def _transfers(limits: LimitsStatus) -> list[tuple[str, str]]:
    """The limits that somebody has set."""
    found = [
        f"{way} at most {rate_text(rate)}"
        for way, rate in (("up", limits.upload_limit), ("down", limits.download_limit))
        if rate is not None
    ]
    if limits.transfers != MAX_TRANSFERS:
        found.append(f"{limits.transfers} at once")
    return [("transfers", ", ".join(found))] if found else []
