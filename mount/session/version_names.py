"""Versions of a file as people see them: their names in the mount, and which one somebody means.

Pure. Knows: ids, times and names of versions. Must not know: who asks the server, the kernel, what
a person types beyond an id or a time (`mount.cli` reads that).

A version is named by the moment at which the server got it, in UTC, and by the end of its id, plus
the file's extension, so that a program opens it as what it is:
`2026-11-22T15.04.05Z-1a2b3c4d.txt`. The end, because an id begins with the time of its birth
(`remote.protocol.ids`): what is saved within a minute begins alike, and only the end is random.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from remote.protocol.ids import VersionId
from remote.protocol.messages import MAX_NAME_BYTES, VersionInfo

SHORT = 8
MIN_GIVEN = 6
_SECOND_NS = 1_000_000_000
_MAX_EXTENSION_BYTES = 32

# Behind a file's name: the directory of its versions.
SUFFIX = "@@"
_VERSION_PATH = re.compile(rf"(?P<file>.+){SUFFIX}/[^/]*Z-(?P<id>[0-9a-f]{{8,32}})(\.[^/]*)?", re.S)


class NoSuchVersion(LookupError):
    """No version, or more than one, is meant. The text says which and what to do."""


def short_id(version: VersionId) -> str:
    """The part of a name that tells versions of a file apart."""
    return version[-SHORT:]


def version_name(name: str, version: VersionInfo) -> str:
    """The name of `version` among the versions of a file called `name`."""
    return f"{_moment(version)}-{short_id(version.id)}{_extension(name)}"


def version_names(name: str, versions: Iterable[VersionInfo]) -> dict[str, VersionInfo]:
    """Every version by its name. Ids are made by clients, so two may end alike in one second: the
    later ones in the list get their whole id."""
    named: dict[str, VersionInfo] = {}
    for version in versions:
        own = version_name(name, version)
        if own in named:
            own = f"{_moment(version)}-{version.id}{_extension(name)}"
        named[own] = version
    return named


def named_in(path: str) -> tuple[str, VersionId] | None:
    """The file's path and the (end of the) id in the path of a version; None for another path."""
    match = _VERSION_PATH.fullmatch(path)
    return None if match is None else (match["file"], match["id"])


def newest_first(versions: Iterable[VersionInfo]) -> list[VersionInfo]:
    """Those that are whole, the one made last first."""
    whole = (item for item in versions if item.status == "uploaded")
    return sorted(whole, key=lambda item: (item.created_ns, item.current), reverse=True)


def before_current(versions: Sequence[VersionInfo]) -> VersionInfo:
    """The newest version before the current one; of a file that has no current one, the newest.
    Raises `NoSuchVersion`."""
    ordered = newest_first(versions)
    at = next((index for index, one in enumerate(ordered) if one.current), -1)
    if at + 1 < len(ordered):
        return ordered[at + 1]
    raise NoSuchVersion("there is no version before this one; `nearline log` lists what there is")


def by_id(versions: Sequence[VersionInfo], said: str) -> VersionInfo:
    """The version whose id is, begins with, or ends with `said`. Raises `NoSuchVersion`."""
    if len(said) < MIN_GIVEN:
        raise NoSuchVersion(f"{said!r} is too short; give {MIN_GIVEN} or more digits of the id")
    meant = [item for item in newest_first(versions) if item.id.endswith(said)]
    meant = meant or [item for item in newest_first(versions) if item.id.startswith(said)]
    return _only(meant, said)


def by_second(versions: Sequence[VersionInfo], seconds: Iterable[int], said: str) -> VersionInfo:
    """The version made in one of these seconds since 1970. Raises `NoSuchVersion`."""
    wanted = set(seconds)
    made = [item for item in newest_first(versions) if item.created_ns // _SECOND_NS in wanted]
    return _only(made, said)


def _only(meant: list[VersionInfo], said: str) -> VersionInfo:
    if not meant:
        raise NoSuchVersion(f"there is no version {said}; `nearline log` lists what there is")
    if len(meant) > 1:
        ids = ", ".join(item.id for item in meant[:4])
        raise NoSuchVersion(f"{said} means {len(meant)} versions ({ids}); give a whole id")
    return meant[0]


def _moment(version: VersionInfo) -> str:
    """In whole seconds, without `:`, which other systems do not take in names."""
    made = datetime.fromtimestamp(version.created_ns // _SECOND_NS, UTC)
    return made.strftime("%Y-%m-%dT%H.%M.%SZ")


def _extension(name: str) -> str:
    stem, dot, last = name.rpartition(".")
    if not stem.strip(".") or not last or len(last.encode()) > _MAX_EXTENSION_BYTES:
        return ""
    return dot + last


def restored_name(name: str, number: int) -> str:
    """The name of a file that comes back where its own is taken; at most 255 bytes of UTF-8.
    `number` counts from 1."""
    mark = " (restored)" if number == 1 else f" (restored {number})"
    extension = _extension(name)
    stem = name.removesuffix(extension)
    room = MAX_NAME_BYTES - len((mark + extension).encode())
    return stem.encode()[:room].decode(errors="ignore") + mark + extension
