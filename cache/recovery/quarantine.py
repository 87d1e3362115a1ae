"""Where damaged state is put aside: one directory for each time, beside the state, never deleted.

Knows: what is in such a directory. Must not know: what damage is (`metadata.damage`, which has the
mark that names such a directory), what the rows are for.

    STATE/quarantine-MOMENT/   the database as it was found, its log, the spool files (hard links
                               to those that go on being used), and report.json

Order, so that a crash at any moment leaves everything findable: first the directory is made whole
under another name, then the mark names it, then the state is replaced, then the mark goes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from cache.metadata.durable import copy_private, sync_directory, sync_file, write_durably

REPORT = "report.json"


class Report(Struct, frozen=True):
    """An account of damage, and of what became of it. `torn`: tables that lacked rows. `recovered`:
    files at the top of the drive that were made of dirty bytes without a name. `lost`: files that
    read as EIO, because their dirty bytes are not in the state any more."""

    why: str
    rows: dict[str, int] = {}
    torn: list[str] = []
    recovered: list[str] = []
    lost: list[str] = []
    kept: list[str] = []  # spool files that are in the quarantine only


def reports(state: Path) -> Iterator[tuple[Path, Report]]:
    """Every quarantine in a state directory, the oldest first."""
    for directory in sorted(state.glob("quarantine-*")):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            yield (
                directory,
                msgspec.json.decode((directory / REPORT).read_bytes(), type=Report),
            )


def write_report(directory: Path, report: Report) -> None:
    write_durably(directory / REPORT, msgspec.json.format(msgspec.json.encode(report)))


def take_in(database: Path, spool: Path | None) -> Path:
    """Make a quarantine of a database, its log and its spool, all of which stay in place too.
    Returns its directory. Raises OSError (a full disk), with the state as it was."""
    directory = _fresh(database.parent)
    part = directory.with_name(f".{directory.name}.part")
    part.mkdir(mode=0o700)
    for file in (database, Path(f"{database}-wal")):
        if file.exists():
            _copy(file, part / file.name)
    if spool is not None and spool.is_dir():
        (part / spool.name).mkdir(mode=0o700)
        for layer in layer_files(spool).values():
            with contextlib.suppress(OSError):  # without hard links it is moved, if not needed
                os.link(layer, part / spool.name / layer.name)
        sync_directory(part / spool.name)
    sync_directory(part)
    part.rename(directory)
    sync_directory(database.parent)
    return directory


def layer_files(spool: Path) -> dict[int, Path]:
    """The files that are ours, by layer."""
    names = os.listdir(spool) if spool.is_dir() else []
    found = {}
    for name in names:
        number, _, kind = name.partition(".")
        if kind == "layer" and number.isdecimal() and (spool / name).is_file():
            found[int(number)] = spool / name
    return found


def leave_only(spool: Path, needed: set[int], directory: Path) -> list[str]:
    """Spool files that no layer names are in the quarantine only; their names."""
    gone = []
    for number, file in layer_files(spool).items():
        if number not in needed:
            kept = directory / spool.name / file.name
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            file.rename(kept)  # onto its own link nothing happens
            file.unlink(missing_ok=True)
            gone.append(file.name)
    return sorted(gone)


def _fresh(state: Path) -> Path:
    stamp = time.strftime("%Y-%m-%dT%H.%M.%SZ", time.gmtime())
    number, directory = 1, state / f"quarantine-{stamp}"
    while directory.exists() or directory.with_name(f".{directory.name}.part").exists():
        number += 1
        directory = state / f"quarantine-{stamp}-{number}"
    return directory


def _copy(file: Path, target: Path) -> None:
    """The database's bytes as they are now; SQLite must not find two names of one database."""
    copy_private(file, target)
    sync_file(target)
