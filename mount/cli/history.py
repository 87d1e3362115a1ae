"""`log`, `restore`, `trash`: going back."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import App, Parameter

from mount.cli import confirm, flags, listing, target, times
from mount.control.account_messages import (
    Emptied,
    History,
    LogRequest,
    Restored,
    RestoreRequest,
    Trash,
    TrashedFile,
    TrashEmptyRequest,
    TrashRequest,
    TrashRestoreRequest,
    Version,
)
from mount.failures import Failure
from mount.process.registry import Record
from remote.protocol.sizes import size_text

# Things in a deleted folder.
COUNTED = 1000

Said = Annotated[str, Parameter(name="PATH-OR-ID")]
MaybeSaid = Annotated[str | None, Parameter(name="PATH-OR-ID")]


def log(path: flags.Path, /, *, json: flags.Json = False) -> None:
    """The versions of the file PATH, newest first, and where each can be read."""
    record, below = target.at(path)
    found = target.ask(record, LogRequest(below), History, "log")
    if json:
        listing.print_json(found)
        return
    listing.show(
        ["VERSION", "WHEN", "SIZE", "BY", "NOTE", "READ IT AT"],
        [
            [
                item.id[-8:],
                times.local(item.created_ns),
                size_text(item.size),
                f"{item.account} on {item.device}",
                _note(item),
                item.path,
            ]
            for item in found.versions
        ],
        nothing="The server has no version of it yet.",
    )


def _note(one: Version) -> str:
    notes = ["current"] if one.current else []
    if one.restored_from is not None:
        notes.append(f"restored from {one.restored_from[-8:]}")
    if one.overtook is not None:
        notes.append(f"won over {one.overtook[-8:]}")
    return ", ".join(notes)


def restore(
    path: flags.Path,
    /,
    *,
    version: Annotated[
        str | None,
        Parameter(
            help="An id, six or more of its digits, or a time, as `nearline log` shows them."
        ),
    ] = None,
) -> None:
    """Bring the version before the current one of PATH back, or that of --version.

    It becomes a new version: nothing is lost, and restoring again undoes it. A PATH that is not
    there is looked for in the trash."""
    record, below = target.at(path)
    at = [] if version is None else times.seconds_meant(version)
    request = RestoreRequest(path=below, version=version, at=at)
    done = target.ask(record, request, Restored, "restore")
    _tell(done)
    if done.version is not None:
        print(f"{listing.printable(done.path)} is as in version {done.version[-8:]} again.")


def _tell(done: Restored) -> None:
    """Say what came back from the trash. Raises `Failure` when not everything did."""
    if done.files:
        more = f", {done.files} files and folders in all" if done.files > 1 else ""
        print(f"{listing.printable(done.path)} is back{more}.")
    for line in done.left:
        print(f"still in the trash: {listing.printable(line)}", file=sys.stderr)
    if done.left:
        raise Failure(f"{len(done.left)} did not come back; see above, and `nearline trash list`")


trash = App(name="trash", help="What was deleted, and bringing it back.")


@trash.command(name="list")
def list_trash(
    said: MaybeSaid = None, directory: flags.Mount = None, /, *, json: flags.Json = False
) -> None:
    """List the trash, newest first. What was deleted with its folder counts with that.

    With PATH-OR-ID of a folder: what was deleted in it, and with it."""
    record = _mount_of(said, directory)
    said, path = _said_in(record, said)
    request = TrashRequest(said=said, path=path)
    found = target.ask(record, request, Trash, "trash")
    if json:
        listing.print_json(found)
        return
    listing.show(
        ["ID", "DELETED", "KEPT UNTIL", "SIZE", "PATH"],
        [
            [
                item.id[-8:],
                times.local(item.trashed_ns),
                times.local(item.expires_ns),
                _size(item),
                item.path + ("/" if item.kind == "directory" else ""),
            ]
            for item in found.items
        ],
        nothing="The trash is empty.",
    )


def _size(one: TrashedFile) -> str:
    """The server stops counting at `COUNTED`."""
    if one.kind != "directory":
        return size_text(one.size)
    return f"{one.inside} or more inside" if one.inside >= COUNTED else f"{one.inside} inside"


@trash.command(name="restore")
def restore_trashed(
    said: Said,
    directory: flags.Mount = None,
    /,
    *,
    to: Annotated[str | None, Parameter(help="Put it into this folder instead.")] = None,
) -> None:
    """Bring back what was deleted at PATH, or has this ID in the list, with all that was deleted
    with it. One thing can come back out of a deleted folder.

    Where its name is taken by now it gets another one. Where its folder is gone, that is made
    anew."""
    record = _mount_of(said, directory, to)
    request = TrashRestoreRequest(
        said=said,
        path=target.below(record, said),
        to=None if to is None else target.path_in(record, to),
    )
    _tell(target.ask(record, request, Restored, "trash"))


@trash.command(name="empty")
def empty(
    said: MaybeSaid = None,
    directory: flags.Mount = None,
    /,
    *,
    yes: Annotated[bool, Parameter(negative="", help="Do not ask.")] = False,
) -> None:
    """Delete what is in the trash, or only PATH or ID, for good. It cannot be brought back."""
    record = _mount_of(said, directory)
    said, path = _said_in(record, said)
    what = "everything in the trash" if said is None else f"{said} in the trash"
    if not yes and not confirm.agreed(f"Delete {what} of {record.account} for good?"):
        print("Nothing was deleted.")
        return
    request = TrashEmptyRequest(said=said, path=path)
    done = target.ask(record, request, Emptied, "trash")
    print(f"{done.files} files are gone for good.")


def _said_in(record: Record, said: str | None) -> tuple[str | None, str | None]:
    """`said` and the path that it is in the mount. The mount itself means all of its trash."""
    path = None if said is None else target.below(record, said)
    return (None, None) if path == "" else (said, path)


def _mount_of(said: str | None, directory: str | None, to: str | None = None) -> Record:
    """The mount that is named, else what `said` or `to` is a path in, else the obvious one."""
    if directory is None and said is not None and _is_in_a_mount(said):
        return target.at(said)[0]
    return target.chosen(directory or to)


def _is_in_a_mount(path: str) -> bool:
    try:
        target.at(path)
    except Failure:
        return False
    return True
