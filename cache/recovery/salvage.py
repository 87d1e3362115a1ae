"""Rows out of a damaged state database, and a new database out of rows.

Knows: where rows are looked for, and which of them may be believed. Must not know: what makes them
consistent (`mending`), when and where databases are put aside (`opening`).

Rows are taken from the pages that the tables' trees reach. Behind a damaged page the tree does not
say any more which pages follow: then every page that belongs to nothing is looked at, and is taken
for the table whose rows it fits. Of the journal and the layers only if the list of free pages is
whole: what was deleted long ago must not be sent again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cache.metadata.durable import sync_file
from cache.metadata.schema import SCHEMA, SCHEMA_VERSION
from cache.recovery.row_checks import MASTER, SEQUENCE, TABLES, Row, Table
from cache.recovery.sqlite_pages import Cell, Image, Page

NEVER_STALE = frozenset({"op", "layer", "extent", "unsettled"})
ALL_LAYERS = 1 << 62


@dataclass
class Found:
    """`torn`: tables that lack rows. `doubtful`: from which to which layer extents may lack.
    `highest`: ids given so far, by table. `owners`: inodes by layer, as the index has them.
    `is_cut`: it is a state from before the end, because the
    end of the log is gone."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})
    torn: set[str] = field(default_factory=set)
    doubtful: list[tuple[int, int]] = field(default_factory=list)
    highest: dict[str, int] = field(default_factory=dict)
    owners: dict[int, int] = field(default_factory=dict)
    is_cut: bool = False


def read(image: Image) -> Found:
    """Every row that can still be read."""
    found, used = Found(), set[int]()
    roots, others, is_whole = _roots(image, used)
    for name, table in TABLES.items():
        if name in roots:
            _read_table(image, roots[name], name, table, found, used)
        elif not is_whole or name not in ("share", "unsettled"):  # of later schemas
            found.torn.add(name)
            found.doubtful += [(0, ALL_LAYERS)] * (name == "extent")
    _read_sequence(image, roots, used, found)
    if found.torn:
        for root in others.values():
            used |= {page.number for page in image.walk(root) if page is not None}
        _read_owners(image, others.get("layer_ino", 0), found)
        _read_lost_pages(image, found, used)
    return found


def _roots(image: Image, used: set[int]) -> tuple[dict[str, int], dict[str, int], bool]:
    """Root pages of the tables, those of the indexes, and whether all are known."""
    roots, others, is_whole = dict[str, int](), dict[str, int](), True
    for page in image.walk(1):
        if page is None:
            is_whole = False
            continue
        used.add(page.number)
        for row in _fitting(page, MASTER):
            if row is None:
                is_whole = False
            elif row["type"] == "table":
                roots[row["name"]] = row["rootpage"]
            else:
                others[row["name"]] = row["rootpage"]
    return roots, others, is_whole


def _fitting(page: Page, table: Table) -> Iterator[Row | None]:
    """A row, or None for one that is damaged, by cell."""
    for cell in page.cells:
        yield None if cell.values is None else table.fit(cell.rowid, cell.values)


def _read_table(
    image: Image, root: int, name: str, table: Table, found: Found, used: set[int]
) -> None:
    rows, last, in_hole = found.rows[name], 0, False
    for page in image.walk(root):
        fitting = [None] if page is None else list(_fitting(page, table))
        if page is not None and (not fitting or any(row is not None for row in fitting)):
            used.add(page.number)
        for row in fitting:
            if row is None:
                found.torn.add(name)
                in_hole = True
                continue
            rows.append(row)
            if name == "extent":
                found.doubtful += [(last, row["layer"])] * in_hole
                last, in_hole = row["layer"], False
    if name == "extent" and in_hole:
        found.doubtful.append((last, ALL_LAYERS))


def _read_sequence(image: Image, roots: dict[str, int], used: set[int], found: Found) -> None:
    for page in image.walk(roots.get("sqlite_sequence", 0)):
        if page is not None:
            used.add(page.number)
            for row in _fitting(page, SEQUENCE):
                if row is not None:
                    found.highest[row["name"]] = row["seq"]


def _read_owners(image: Image, root: int, found: Found) -> None:
    for page in image.walk(root):
        for cell in [] if page is None else page.cells:
            match cell.values:
                case (int(ino), int(layer)):
                    found.owners[layer] = ino


def _read_lost_pages(image: Image, found: Found, used: set[int]) -> None:
    free = image.free_pages()
    tables = {
        name: TABLES[name] for name in found.torn if free is not None or name not in NEVER_STALE
    }
    for number in range(2, image.page_count + 1):
        if number not in used and number not in (free or ()):
            with contextlib.suppress(ValueError, IndexError):
                _read_lost_page(image.page(number).cells, tables, found)


def _read_lost_page(cells: Iterable[Cell], tables: dict[str, Table], found: Found) -> None:
    read = [cell for cell in cells if cell.values is not None]
    best: tuple[str, list[Row]] = ("", [])
    for name, table in tables.items():
        fits = [table.fit(cell.rowid, cell.values or ()) for cell in read]
        rows = [row for row in fits if row is not None]
        if len(rows) > len(best[1]):
            best = (name, rows)
    if best[0]:
        found.rows[best[0]] += best[1]


def write(path: Path, rows: dict[str, list[Row]], highest: dict[str, int]) -> None:
    """A new database of `rows`, on the disk when this returns. Of two rows with one key the first
    counts."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};")
        for name, some in rows.items():
            for row in some:
                columns, marks = ", ".join(row), ", ".join("?" * len(row))
                db.execute(
                    f"INSERT OR IGNORE INTO {name} ({columns}) VALUES ({marks})",
                    tuple(row.values()),
                )
        db.execute("DELETE FROM sqlite_sequence")
        db.executemany("INSERT INTO sqlite_sequence VALUES (?, ?)", highest.items())
        db.execute("COMMIT")
    sync_file(path)
