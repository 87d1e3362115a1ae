"""The rule book for local operations that the server refused for good. Pure.

The table is the rule book; docs/semantics.md shows it to people. Tenets: bytes are never dropped;
the operation that cannot lose anything gives way; what nobody can decide is kept and shown.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Iterator

from remote.protocol.errors import (
    Exists,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    OtherReach,
    Problem,
    Stale,
    WouldLoop,
)

_MARK = re.compile(r" \(conflicted copy, [^()]* \d{4}-\d\d-\d\d(?: (\d+))?\)(?=(\.[^.]*)?$)")


class Verdict(enum.Enum):
    DROP = "drop"  # the other device's change stands; take over the server's state
    ASIDE = "aside"  # the name is taken: go on under a conflicted name
    ANEW = "anew"  # the id that was chosen here is taken: go on under another id
    ADOPT = "adopt"  # both made the same directory: it is one directory
    RESCUE = "rescue"  # its directory is gone: make that anew, or go on at the top
    REBUILD = "rebuild"  # the directory it goes to is gone: make that anew, or drop
    RECREATE = "recreate"  # the file is gone: bring it back, because it was changed here
    APART = "apart"  # a name is not taken back: what was made under it is a file of its own
    KEEP = "keep"  # refused for good: kept, shown in status, never retried by itself


_RULES: dict[tuple[str, type[Problem]], Verdict] = {
    ("create", Exists): Verdict.ASIDE,
    ("create", NotFound): Verdict.RESCUE,
    ("link", Exists): Verdict.ASIDE,
    ("rename", Exists): Verdict.ASIDE,
    ("write", NotFound): Verdict.RECREATE,
    ("replace", NotFound): Verdict.DROP,
    ("replace", Stale): Verdict.DROP,
    ("replace", OtherReach): Verdict.DROP,
    ("retake", Exists): Verdict.APART,
    ("retake", NotFound): Verdict.APART,
    ("retake", Stale): Verdict.APART,
    ("link", NotFound): Verdict.REBUILD,
    ("rename", NotFound): Verdict.REBUILD,
    ("rename", Stale): Verdict.DROP,
    ("rename", NotEmpty): Verdict.DROP,
    ("rename", WouldLoop): Verdict.DROP,
    ("exchange", NotFound): Verdict.DROP,
    ("exchange", Stale): Verdict.DROP,
    ("exchange", WouldLoop): Verdict.DROP,
    ("exchange", OtherReach): Verdict.DROP,
    ("unlink", NotFound): Verdict.DROP,
    ("unlink", Stale): Verdict.DROP,
    ("unlink", NotEmpty): Verdict.DROP,
    ("unlink", IsADirectory): Verdict.DROP,
    ("unlink", NotADirectory): Verdict.DROP,
    ("setattr", NotFound): Verdict.DROP,
    ("setxattr", NotFound): Verdict.DROP,
}


def verdict(kind: str, problem: Problem, *, directory: bool) -> Verdict:
    """The way out for a refused operation of this kind."""
    if kind in ("create", "write") and isinstance(problem, Exists) and problem.taken != "name":
        return Verdict.ANEW
    if kind == "create" and directory and isinstance(problem, Exists):
        return Verdict.ADOPT
    if kind == "rename" and directory and isinstance(problem, OtherReach):
        return Verdict.DROP  # every later move of a directory would wait behind it
    return _RULES.get((kind, type(problem)), Verdict.KEEP)


def conflicted_name(name: str, device: str, day: str, number: int) -> str:
    """The name a conflict loser gets beside the winner. A conflicted copy that loses again has
    another number, not another mark."""
    name = _MARK.sub("", name) or name
    device = device.replace("/", "-").replace("\0", "-").encode()[:64].decode(errors="ignore")
    return marked_name(name, f"conflicted copy, {device} {day}", number)


def conflicted_names(name: str, device: str, day: str) -> Iterator[str]:
    """The names to try, in turn. A conflicted copy that loses again goes on from its own number:
    the names before may be taken too, where this device cannot see it."""
    mark = _MARK.search(name)
    lost = 0 if mark is None else int(mark[1] or 1)
    return (conflicted_name(name, device, day, number) for number in itertools.count(lost + 1))


def marked_name(name: str, mark: str, number: int) -> str:
    """`name` with a mark before its extension; at most 255 bytes of UTF-8."""
    again = f" {number}" if number > 1 else ""
    mark = f" ({mark}{again})"
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > 16:
        stem, dot, suffix = name, "", ""
    room = 255 - len((mark + dot + suffix).encode())
    stem = stem.encode()[: max(1, room)].decode(errors="ignore")
    return f"{stem}{mark}{dot}{suffix}"
