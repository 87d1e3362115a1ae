"""Checks of a file's name and numbers that need no database.

Knows: the limits of names, modes, ids, times, targets and attributes. Must not know: the tree.
Every function raises `errors.Refused` and returns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from remote.protocol.errors import BadName, BadRequest, NameTooLong, Refused, TooLarge
from remote.protocol.messages import MAX_NAME_BYTES, MAX_XATTR_BYTES, SHARED_NAME, Create

MAX_TARGET_BYTES = 4095
MAX_XATTRS_TOTAL = 1024 * 1024
# Of a file that who does not own the drive whole may give further names: its owner's next move of
# the file looks at each.
MAX_NAMES_BY_OTHERS = 1000
# Names of all files of a drive that have several, while others than its owner may make more: the
# owner's next move of a directory may look at each, in one operation.
MAX_NAMED_TWICE = 3000
_INT64 = 1 << 63
_DEVICE_KINDS = ("char", "block")


def check_name(name: str, *, at_root: bool) -> None:
    """1 to 255 bytes of UTF-8 without `/` and NUL, not `.` or `..`, not a reserved name."""
    check_length(name)
    if name in ("", ".", "..") or "/" in name:
        raise Refused(BadName(message=f"{name!r} cannot be a file's name"))
    if at_root and name == SHARED_NAME:
        raise Refused(BadName(message=f"{name!r} at the root is where shared files appear"))


def check_length(name: str) -> None:
    """At most 255 bytes and no NUL, which not every database can be asked for: before anything is
    said about a name, or looked for by it."""
    if _utf8_length(name) > MAX_NAME_BYTES:
        raise Refused(NameTooLong(message=f"a name has at most {MAX_NAME_BYTES} bytes of UTF-8"))
    if "\0" in name:
        raise Refused(BadName(message=f"{name!r} cannot be a file's name"))


def check_numbers(
    *, mode: int = 0, uid: int = 0, gid: int = 0, mtime_ns: int = 0, rdev: int = 0
) -> None:
    if not 0 <= mode <= 0o7777:
        raise Refused(BadRequest(message="mode is permission bits only (07777)"))
    if not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32):
        raise Refused(BadRequest(message="uid and gid have 32 bits"))
    if not (-_INT64 <= mtime_ns < _INT64 and 0 <= rdev < _INT64):
        raise Refused(BadRequest(message="mtime_ns and rdev have 64 bits"))


def check_create(op: Create) -> None:
    """The fields of a create fit its kind."""
    check_numbers(mode=op.mode, uid=op.uid, gid=op.gid, mtime_ns=op.mtime_ns, rdev=op.rdev)
    if (op.kind == "file") != (op.content is not None):
        raise Refused(BadRequest(message="a regular file, and nothing else, comes with content"))
    if (op.kind == "symlink") != (op.target is not None):
        raise Refused(BadRequest(message="a symlink, and nothing else, has a target"))
    if op.target is not None:
        check_target(op.target)
    if op.rdev and op.kind not in _DEVICE_KINDS:
        raise Refused(BadRequest(message="only device nodes have rdev"))
    check_xattrs(op.xattrs)


def check_target(target: str) -> None:
    if not target or "\0" in target or _utf8_length(target) > MAX_TARGET_BYTES:
        raise Refused(BadRequest(message=f"a target has 1 to {MAX_TARGET_BYTES} bytes, no NUL"))


def check_xattrs(xattrs: Mapping[str, bytes]) -> None:
    total = 0
    for name, value in xattrs.items():
        check_length(name)
        if not name or "\0" in name:
            raise Refused(BadName(message=f"{name!r} cannot be an attribute's name"))
        if len(value) > MAX_XATTR_BYTES:
            raise Refused(TooLarge(message=f"an attribute has at most {MAX_XATTR_BYTES} bytes"))
        total += len(value)
    if total > MAX_XATTRS_TOTAL:
        raise Refused(TooLarge(message=f"attributes of a file add up to {MAX_XATTRS_TOTAL} bytes"))


def _utf8_length(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise Refused(BadName(message="a name must be valid UTF-8")) from None
