"""The page for a place inside a link.

Knows: URLs below /s/SECRET, listings cut into pages. Must not know: HTTP, passwords, whether the
link is good (its callers have checked), how a page looks.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from remote.protocol.errors import Refused
from server.drive.listing import read_mark, write_mark
from server.links import html, links, tree
from server.links.links import Inside
from server.links.way import Places


def page(
    conn: Connection,
    link: Row[Any],
    secret: str,
    file: str,
    after: str | None,
    places: Places,
) -> bytes | None:
    """The page of a regular file or directory; None: the link does not reach it, or it is neither,
    or `after` is no position in a listing."""
    found = links.inside(conn, link, file, places)
    if found is None:
        return None
    here = _Here(link, f"/s/{secret}", found)
    if found.row.kind == "directory":
        return here.folder(conn, after, places)
    return here.file() if found.row.kind == "file" else None


class _Here:
    """One place, and the URLs around it."""

    def __init__(self, link: Row[Any], base: str, found: Inside) -> None:
        self._link, self._base, self._found = link, base, found
        self._above = [html.Step(step.name, self._url(step.file)) for step in found.way[:-1]]

    def _url(self, file: str) -> str:
        return self._base if file == self._link.file else f"{self._base}/{file}"

    def file(self) -> bytes:
        row = self._found.row
        download = f"{self._base}/{row.id}/download"
        return html.file_page(
            self._found.name,
            self._above,
            row.size,
            row.mtime_ns,
            download,
            self._link.expires_ns,
        )

    def folder(self, conn: Connection, after: str | None, places: Places) -> bytes | None:
        directory = self._found.row.id
        try:
            mark = None if after is None else read_mark(after, str)
        except Refused:
            return None
        rows = tree.listing(conn, directory, mark, tree.PAGE + 1)
        places.note_listed(rows, self._link.file, directory)
        lines = [self._line(row) for row in rows[: tree.PAGE]]
        more = None
        if len(rows) > tree.PAGE:
            more = f"{self._base}/{directory}?after={write_mark(lines[-1].name)}"
        return html.folder_page(
            self._found.name,
            self._above,
            lines,
            f"{self._base}/{directory}/zip",
            more,
            after is not None,
            self._link.expires_ns,
        )

    def _line(self, row: Row[Any]) -> html.Line:
        url = f"{self._base}/{row.id}"
        if row.kind == "file":
            url += "/download"
        return html.Line(row.name, row.kind, row.size, row.mtime_ns, url)
