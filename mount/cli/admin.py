"""`admin`: looking after a server's data, on the machine that has it.

All but `admin restore` work beside the running server. Everything is done by
`server.maintenance.admin`, which
gives and takes plain values.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import App, Parameter

from mount.cli import flags, listing, times
from mount.cli.accounts import ask, print_plain, token
from mount.options import absolute
from remote.protocol.sizes import size_text

admin = App(name="admin", help="Look after a server's data, also while it runs.")
admin.command(token)
keys = App(name="keys", help="The keys that the server signs with.")
admin.command(keys)

_Flag = Parameter(negative="")
_SHOWN_LOST = 20
_KEYS_TODO = "If others may have had it: nearline admin keys rotate --now --data {}"

# --- garbage collection, fsck -------------------------------------------------------------------


@admin.command
def gc(
    *,
    data: flags.Data,
    dry_run: Annotated[bool, _Flag, Parameter(help="Only say what would be done.")] = False,
    config: Annotated[
        str | None,
        Parameter(help="Keep what this file says, not what the last server was told to keep."),
    ] = None,
    json: flags.Json = False,
) -> None:
    """Delete what nobody can reach any more and what has been kept long enough.

    The server does this by itself. A chunk that lost its last reference is deleted by a run an
    hour later or more, when no signed URL for it can be alive."""
    settings = None if config is None else absolute(config)
    found = ask("collect_garbage", absolute(data), config=settings, dry_run=dry_run)
    if json:
        print_plain(found)
        return
    for line in _collected(found):
        print(f"{'would be' if dry_run else 'were'} {line}")
    if not any(found.values()):
        print("There was nothing to do.")


def _collected(found: dict[str, int]) -> list[str]:
    """A line for everything that was done."""
    lines = {
        "deleted": "deleted: {} chunks that nobody refers to, {}",
        "promised": "forgotten: {} chunks that were never uploaded, {}",
        "orphans": "deleted: {} stored objects that no chunk is of, {}",
        "doomed": "found: {} more chunks that nobody refers to, {}; they go in an hour or later",
        "revived": "kept: {} chunks that are referred to again, {}",
        "versions": "deleted: {} old versions",
        "files": "deleted: {} files that were in the trash for long enough",
        "uploads": "ended: {} uploads that nobody went on with",
        "changes": "deleted: {} old changes of the feed",
    }
    return [
        text.format(f"{found[name]:,}", size_text(found.get(f"{name}_bytes", 0)))
        for name, text in lines.items()
        if found[name]
    ]


@admin.command
def fsck(
    *,
    data: flags.Data,
    read_data: Annotated[bool, _Flag, Parameter(help="Read every stored byte, too.")] = False,
    repair: Annotated[
        bool, _Flag, Parameter(help="Set right what follows from the rest of the data.")
    ] = False,
    json: flags.Json = False,
) -> int:
    """Check every reference in the data, and that every stored object is there.

    Changes nothing without --repair. Exit code 1: something is wrong and was not repaired."""
    with _Ticker("checked") as ticker:
        options = {"read_data": read_data, "repair": repair, "progress": ticker.tick}
        report = ask("check", absolute(data), **options)
    if json:
        print_plain(report)
    else:
        _show_report(report)
    return 0 if report["ok"] else 1


def _show_report(report: dict[str, Any]) -> None:
    for finding in report["findings"]:
        print(_finding(finding))
    checked = report["checked"]
    read = f", {size_text(checked['bytes'])} read" if checked["bytes"] else ""
    counts = ", ".join(f"{checked[name]:,} {name}" for name in list(checked)[:-1])
    print(f"Checked {counts}{read}: {_verdict(report)}")


def _finding(finding: dict[str, Any]) -> str:
    """`anna:/docs/a.txt version V: what is wrong; what to do`."""
    where = finding["account"] or ""
    if finding["path"] is not None:
        where += f":{finding['path']}"
    if finding["version"] is not None:
        where += f" version {finding['version']}"
    todo = "repaired" if finding["repaired"] else finding["todo"]
    return listing.printable(f"{where or 'database'}: {finding['what']}; {todo}")


def _verdict(report: dict[str, Any]) -> str:
    wrong = sum(not finding["repaired"] for finding in report["findings"])
    repaired = len(report["findings"]) - wrong
    said = [f"{repaired} repaired"] if repaired else []
    said += [f"{wrong} wrong"] if wrong else []
    return ", ".join(said) if said else "nothing is wrong."


# --- backup and restore -------------------------------------------------------------------------


@admin.command
def backup(
    dest: Annotated[str, Parameter(name="DEST")], /, *, data: flags.Data, json: flags.Json = False
) -> int:
    """Copy everything to DEST; into the same DEST again, only what is new.

    Exit code 1: made, but objects are missing or damaged in the server's data."""
    with _Ticker("in the backup") as ticker:
        made = ask("back_up", absolute(data), absolute(dest), ticker.tick)
    if json:
        print_plain(made)
        return 1 if made["lost"] else 0
    for lost in made["lost"][:_SHOWN_LOST]:
        print(f"not backed up: {lost} is missing or damaged", file=sys.stderr)
    print(
        f"The backup in {dest} has {made['objects']:,} objects, {size_text(made['bytes'])};"
        f" {made['copied']:,} are new, {made['removed']:,} old ones were removed."
    )
    if made["lost"]:
        print(
            f"nearline: {len(made['lost']):,} objects could not be backed up;"
            " run `nearline admin fsck --read-data` to see which files need them",
            file=sys.stderr,
        )
    return 1 if made["lost"] else 0


@admin.command
def restore(
    source: Annotated[str, Parameter(name="SRC")],
    /,
    *,
    data: flags.Data,
    json: flags.Json = False,
) -> int:
    """Make a new data directory of a backup, and check it to the last byte.

    Start the server on it afterwards: clients notice and resync by themselves. Exit code 1:
    restored, but not all of it is whole."""
    with _Ticker("restored and read") as ticker:
        done = ask("restore", absolute(source), absolute(data), ticker.tick)
    if json:
        print_plain(done)
    else:
        print(f"{data} is as it was at {times.local(done['at_ns'])}.")
        _show_report(done["checked"])
        print(f"Its keys are those of the backup. {_KEYS_TODO.format(data)}")
    return 0 if done["checked"]["ok"] else 1


# --- keys ---------------------------------------------------------------------------------------


@keys.command
def rotate(
    *,
    data: flags.Data,
    now: Annotated[
        bool, _Flag, Parameter(help="End at once what was signed before; clients ask again.")
    ] = False,
    json: flags.Json = False,
) -> None:
    """Make new signing keys; a running server takes them up by itself within seconds.

    URLs that were signed before stay good until they expire, an hour at most. With --now they end
    at once: for keys that somebody else may have, as from a backup. Cursors stay good."""
    made = ask("rotate_keys", absolute(data), overlap=not now)
    if json:
        print_plain(made)
        return
    print(f"URLs are signed with new keys; that of the edge is called {made['edge']}.")
    if now:
        print("What was signed before is good no more.")
    else:
        print(
            f"What was signed before is good until {times.local(made['until_ns'])} at the latest."
        )


# --- audit --------------------------------------------------------------------------------------


@admin.command
def audit(
    *,
    data: flags.Data,
    since: Annotated[
        str | None, Parameter(help="Not older than this: 7d, or a local time as it is printed.")
    ] = None,
    account: Annotated[
        str | None, Parameter(help="Only what this account did or had done.")
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="One JSON object a line.")] = False,
) -> None:
    """Show who did what, with which device, and when; oldest first."""
    from msgspec.json import encode

    from mount.process import embedded

    for row in embedded.read_audit(absolute(data), _moment(since), account):
        if json:
            print(encode(row).decode())
            continue
        who = row["account"] or "(operator)"
        device = f" ({row['device']})" if row["device"] else ""
        detail = " ".join(f"{name}={_short(value)}" for name, value in row["detail"].items())
        line = [times.local(row["at_ns"]), f"{who}{device}", row["action"], row["subject"] or "-"]
        print(listing.printable(listing.GAP.join([*line, detail]).rstrip()))


def _short(value: Any) -> str:
    from msgspec import json

    return value if isinstance(value, str) and " " not in value else json.encode(value).decode()


def _moment(since: str | None) -> int | None:
    """Nanoseconds since 1970 of a duration ago, or of a local time."""
    if since is None:
        return None
    found = times.seconds_meant(since)
    if found:
        return found[0] * 10**9
    return time.time_ns() - times.duration(since) * 10**9


# --- progress -----------------------------------------------------------------------------------


class _Ticker:
    """A line on the terminal that counts objects and bytes; nothing where there is no terminal."""

    def __init__(self, done: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._done, self._clock = done, clock
        self._shown = 0.0
        self._on_terminal = sys.stderr.isatty()

    def __enter__(self) -> _Ticker:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr)

    def tick(self, objects: int, stored: int) -> None:
        now = self._clock()
        if self._on_terminal and now - self._shown > 0.2:
            self._shown = now
            read = f", {size_text(stored)}" if stored else ""
            print(f"\r{objects:,} objects {self._done}{read}\x1b[K", end="", file=sys.stderr)
