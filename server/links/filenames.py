"""Names of files where they leave Nearline's hands: on a page, in a header, in an archive.

Knows: which characters of a name would do something to whoever reads it. Must not know: files,
pages, archives. Pure.

A name is any UTF-8 without `/` and NUL. Control characters, line separators and the controls of
writing direction could forge what a reader sees; a backslash or a drive letter could lead an
unpacker on Windows out of its directory.
"""

from __future__ import annotations

import re
from urllib.parse import quote

_UNSEEN = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_NOT_SHOWN = re.compile(f"[{_UNSEEN}]")
_NOT_SAVED = re.compile(rf"[{_UNSEEN}\\/]")
_NOT_PLAIN = re.compile(r"[^ !#$&+\-.^_`|~0-9A-Za-z()\[\]{},;=@\']")
_DRIVE_LETTER = re.compile(r"^([A-Za-z]):")


def shown(name: str) -> str:
    """`name` for people to read; what cannot be seen becomes a replacement character."""
    return _NOT_SHOWN.sub("\ufffd", name)


def saved(name: str) -> str:
    """`name` as a browser may save it: one component, and what one sees is what it is."""
    return _DRIVE_LETTER.sub(r"\1_", _NOT_SAVED.sub("_", name))


def packed(name: str, file: str) -> str:
    """`name` as a component of a path in an archive. One that had to be altered gets the end of
    the id of `file` too, so that two that become alike do not overwrite each other."""
    safe = saved(name)
    return safe if safe == name else f"{safe} ({file[-8:]})"


def disposition(name: str) -> str:
    """The Content-Disposition of a download to be saved as `name` (RFC 6266, RFC 8187)."""
    name = saved(name)
    plain = _NOT_PLAIN.sub("_", name)
    if plain == name:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
