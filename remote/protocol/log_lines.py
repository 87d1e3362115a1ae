"""Limits on the length of what is logged, for client and server. Pure.

Knows: lengths. Must not know: who logs, what. No line of a log is long: whoever chooses a name, or
how many files fail at once, must not choose how much is written.
"""

from __future__ import annotations

from typing import Any

CUT = "[cut]"
VALUE_BYTES = 2000
TRACEBACK_BYTES = 20_000


def shortened(text: str, most: int) -> str:
    """`text`, or the first `most` bytes of it, marked as cut."""
    raw = _too_long(text, most)
    return text if raw is None else raw[:most].decode("utf-8", "ignore") + CUT


def without_its_middle(text: str, most: int) -> str:
    """`text`, or about `most` bytes of it: how it begins and how it ends, where a traceback says
    what happened."""
    raw = _too_long(text, most)
    if raw is None:
        return text
    begin, end = raw[: most // 2], raw[-(most // 2) :]
    return begin.decode("utf-8", "ignore") + CUT + end.decode("utf-8", "ignore")


def _too_long(text: str, most: int) -> bytes | None:
    if len(text) <= most // 4:  # a character has at most four bytes
        return None
    raw = text.encode("utf-8", "replace")
    return raw if len(raw) > most else None


def bounded(name: str, value: Any) -> Any:
    """The value that is logged as `name`, at most `VALUE_BYTES` long, a traceback
    `TRACEBACK_BYTES`."""
    if name == "exception" and isinstance(value, str):
        return without_its_middle(value, TRACEBACK_BYTES)
    if isinstance(value, str):
        return shortened(value, VALUE_BYTES)
    if value is None or isinstance(value, int | float):
        return value
    shown = repr(value)
    return value if _too_long(shown, VALUE_BYTES) is None else shortened(shown, VALUE_BYTES)
