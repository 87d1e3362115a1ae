"""Which request targets are let in: one spelling per resource, before anybody decodes anything.

Knows: what a target may look like. Must not know: routes, what is behind them. Pure.

A target that two programs on the way could read differently (a proxy, a CDN, this server) is the
root of most ways around an access check, so none is let in: dot segments, empty segments, encoded
dots, slashes, backslashes and NULs, anything but visible ASCII, a parameter given twice. Our own
clients send none of these; names of files never stand in a path, ids do. The edge checks more
still: a signature is over the exact target.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

# Of path and query together.
MAX_BYTES = 8192

_VISIBLE = re.compile(rb"[\x21-\x7e]*")
_NEVER_ESCAPED = re.compile(rb"%(?:00|2[eEfF]|5[cC])")
_NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DOTS = re.compile(rb"/\.{1,2}(?:/|$)")
_HOST = re.compile(rb"[0-9A-Za-z!$&'()*+,;=\-._~:\[\]@%]*")


def is_origin_form(target: bytes) -> bool:
    """True if the raw `target` begins with a slash and is visible ASCII without a fragment: what
    HTTP parsers and we cannot read differently."""
    return target.startswith(b"/") and b"#" not in target and _VISIBLE.fullmatch(target) is not None


def is_host(value: bytes) -> bool:
    """True if a Host header's value has only what a host may consist of (RFC 3986, section 3.2)."""
    return _HOST.fullmatch(value) is not None


def fault(path: bytes, query: bytes) -> str | None:
    """Why the target `path?query`, as it was sent, is refused; None: it is not."""
    if len(path) + len(query) > MAX_BYTES:
        return f"the address is longer than {MAX_BYTES} bytes"
    return _fault_of_path(path) or _fault_of_query(query)


def _fault_of_path(path: bytes) -> str | None:
    if not is_origin_form(path) or b"\\" in path:
        return "the path must begin with / and be of visible ASCII without \\ and #"
    if b"//" in path or _DOTS.search(path):
        return "the path has an empty segment, or one of dots"
    if _NEVER_ESCAPED.search(path) or _NO_ESCAPE.search(path):
        return "the path has an escape that is not allowed"
    return None


def _fault_of_query(query: bytes) -> str | None:
    if _VISIBLE.fullmatch(query) is None or b"#" in query:
        return "the query must be of visible ASCII without #"
    if b"%00" in query or _NO_ESCAPE.search(query):
        return "the query has an escape that is not allowed"
    names = [unquote_plus(item.partition("=")[0]) for item in query.decode().split("&") if item]
    return "a parameter is given twice" if len(set(names)) != len(names) else None
