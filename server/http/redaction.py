"""Keeping secrets out of what is written down, and lines short.

Knows: what secrets look like, and the names under which they travel; how long a path may be. Must
not know: who logs, where to. Pure.

The rule elsewhere is not to log secrets at all. This is the net under it, for what nobody thought
of: the message of somebody else's exception, a header in a traceback, a library's debug line. It
would rather hide too much: whatever has the shape of one of our tokens goes, wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from remote.protocol.log_lines import bounded, shortened

HIDDEN = "[hidden]"

# Of a path: all of ours are shorter.
PATH_BYTES = 200
_LINKS = "/s/"

_NAMES = (
    "authorization|proxy-authorization|cookie|set-cookie|x-amz-signature|signature"
    "|(?:[a-z0-9]+[_-])*(?:token|password|passwd|secret)"
)
_NAME = re.compile(_NAMES, re.IGNORECASE)

_NOT_YET = rf"(?!{re.escape(HIDDEN)})"
_BEARER = rf"\b(bearer|basic)(\s+){_NOT_YET}[^\s'\",;)\]}}]+"
_COOKIES = (
    rf"\b((?:set-)?cookie['\"]?\s*[:,](?!\s*b?['\"]?{re.escape(HIDDEN)})\s*b?['\"]?)[^\r\n'\"]+"
)
_NAMED = (
    rf"((?<![\w-])(?:{_NAMES})\\?['\"]?\s*(?:=|:|,(?=\s*b?['\"]))\s*)"
    rf"(?!{re.escape(HIDDEN)}|(?:bearer|basic)\s)"
    r"(?:b?\\?(?P<quote>['\"]).*?(?P=quote)|[^\s&'\",;)\]}]+)"
)
_LINK = r"(/s/)[A-Za-z0-9_~.%-]{16,}"
_TOKEN = r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"

_RULES = (
    # Authorization: Bearer ..., whatever is around it.
    (re.compile(_BEARER, re.IGNORECASE), rf"\1\2{HIDDEN}"),
    # A whole Cookie header: it has several values.
    (re.compile(_COOKIES, re.IGNORECASE), rf"\1{HIDDEN}"),
    # name=value in URLs and forms, name: value and 'name': 'value' in dumps.
    (re.compile(_NAMED, re.IGNORECASE), rf"\1{HIDDEN}"),
    # The secret of a link for people without an account.
    (re.compile(_LINK), rf"\1{HIDDEN}"),
    # 256 random bits in base64url: a token or a link's secret, wherever it got to.
    (re.compile(_TOKEN), HIDDEN),
)


def shown_path(path: str) -> str:
    """A request's path for the log. The secret of a link is in its URL, so nothing of that is
    written; and nobody chooses how long our lines are."""
    return "/s/[link]" if path.startswith(_LINKS) else shortened(path, PATH_BYTES)


def redact(text: str) -> str:
    """`text` without the secrets in it."""
    for pattern, hidden in _RULES:
        text = pattern.sub(hidden, text)
    return text


def cleaned(value: Any, name: str = "") -> Any:
    """`value`, which goes by `name`, without secrets, in containers too. What is neither text nor
    a container of plain types stays as it is."""
    if name and _NAME.fullmatch(name) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes):
        return redact(value.decode("latin-1"))
    if isinstance(value, Mapping):
        return {key: cleaned(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [cleaned(each) for each in value]
    if isinstance(value, BaseException):
        return redact(repr(value))
    return value


def processor(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """`cleaned`, as structlog wants it, and no value too long. Must stand behind whatever makes
    text of exceptions."""
    return {key: bounded(key, cleaned(value, key)) for key, value in event.items()}
