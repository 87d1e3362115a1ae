"""The pages that people without an account see.

Knows: what is on each page and how it is shown (templates, numbers and dates for people). Must not
know: who may see one, the database, HTTP beyond the headers that belong to a page.

Every value goes through the templates' escaping, and every name through `filenames.shown`
and an element of its own writing direction, whatever the owner called the file. There is no script
and nothing from outside; the one style sheet is allowed by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from remote.protocol.sizes import size_text
from server.links.filenames import shown

_TEMPLATES = Path(__file__).parent / "templates"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_css = (_TEMPLATES / "link.css").read_text(encoding="utf-8")
_css_hash = base64.b64encode(hashlib.sha256(_css.encode()).digest()).decode()

# On every page, and on what leads from one to the next.
HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_css_hash}'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex, nofollow",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Step(NamedTuple):
    """A directory above what the page shows."""

    name: str
    url: str


class Line(NamedTuple):
    """An entry of a directory; `url` of a directory is its page, of a file its download."""

    name: str
    kind: str
    size: int
    mtime_ns: int
    url: str


def file_page(
    name: str,
    above: Sequence[Step],
    size: int,
    mtime_ns: int,
    download: str,
    expires_ns: int | None,
) -> bytes:
    return _render(
        "file.html",
        name,
        expires_ns,
        above=above,
        size=size,
        mtime_ns=mtime_ns,
        download=download,
    )


def folder_page(
    name: str,
    above: Sequence[Step],
    lines: Sequence[Line],
    archive: str,
    more: str | None,
    later: bool,
    expires_ns: int | None,
) -> bytes:
    """`more` is the URL of the page after this one; `later`: there was one before it."""
    return _render(
        "folder.html",
        name,
        expires_ns,
        above=above,
        rows=lines,
        archive=archive,
        more=more,
        later=later,
    )


def password_page(action: str, fault: str | None = None) -> bytes:
    """Tells nothing about what is behind it."""
    return _render("password.html", "This link has a password", None, action=action, fault=fault)


def gone_page() -> bytes:
    """One page for every reason, so that it tells none."""
    text = (
        "It may have expired, or been taken back, or not be complete. "
        "Ask whoever sent it to you for another."
    )
    return _render("message.html", "This link does not work", None, text=text)


def too_many_page(limit: int) -> bytes:
    text = (
        f"One zip holds at most {limit:,} files and folders, and here are more. "
        "Go back, open a folder, and download that."
    )
    return _render("message.html", "Too much for one zip", None, text=text)


def when(at_ns: int) -> Markup:
    """Minutes of UTC are enough for people; the element has the second for programs."""
    at = _EPOCH + timedelta(seconds=at_ns // 10**9)
    told = f"{at.year:04d}-{at:%m-%d %H:%M} UTC"
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), told)


def _render(template: str, title: str, expires_ns: int | None, **values: object) -> bytes:
    page = _environment.get_template(template)
    return page.render(title=title, expires_ns=expires_ns, css=Markup(_css), **values).encode()


_environment = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    auto_reload=False,
)
_environment.filters |= {"shown": shown, "size": size_text, "when": when}
