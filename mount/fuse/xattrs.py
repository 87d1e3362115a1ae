"""Extended attributes: what may be asked, and what it is answered with.

Knows: namespaces, names, limits, the attribute that is the mount's own. Must not know: requests
(`operations`), how attributes are stored and sent (`edits`).

Only `user.` is kept. Everything else is ENOTSUP, for reading too: that is what tells `ls`, `cp` and
`rsync` once and for all that there are neither ACLs nor capabilities here. The kernel has looked
before us at what it looks at everywhere: the length of names (ERANGE) and values (E2BIG), and that
only regular files and directories have such attributes (EPERM). It holds the file's lock while it
asks for a change, so what pyfuse3 asks first for XATTR_CREATE and XATTR_REPLACE is still so then.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from cache.metadata.tree import Tree
from cache.namespace.edits import Edits

NAMESPACE = b"user."
STATUS = "user.nearline.status"
# The server's limit, and the most that listxattr(2) can return.
MAX_VALUES_BYTES = 1 << 20
MAX_NAMES_BYTES = 1 << 16


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def decode(name: bytes) -> str:
    """The attribute's name. Raises ENOTSUP outside `user.`, EINVAL for `user.` alone, EILSEQ for
    what is not UTF-8."""
    if not name.startswith(NAMESPACE):
        raise fail(errno.ENOTSUP)
    if name == NAMESPACE:
        raise fail(errno.EINVAL)
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise fail(errno.EILSEQ) from None


def decode_settable(name: bytes) -> str:
    """As `decode`, of an attribute that is to be changed: EPERM for the mount's own."""
    text = decode(name)
    if text == STATUS:
        raise fail(errno.EPERM)
    return text


def check_room(sizes: Mapping[str, int], name: str, size: int) -> None:
    """Raise ENOSPC if a file whose attributes have `sizes` cannot have `name` with `size` bytes."""
    after = {**sizes, name: size}
    names = sum(len(item.encode()) + 1 for item in after)
    if names > MAX_NAMES_BYTES or sum(after.values()) > MAX_VALUES_BYTES:
        raise fail(errno.ENOSPC)


class ExtendedAttributes:
    """Those of every file of the mount, but for the mount's own."""

    def __init__(self, tree: Tree, edits: Edits) -> None:
        self._tree, self._edits = tree, edits

    def get(self, ino: int, name: str) -> bytes:
        value = self._tree.xattr(ino, name)
        if value is None:
            raise fail(errno.ENODATA)
        return value

    def set(self, ino: int, name: bytes, value: bytes) -> None:
        text = decode_settable(name)
        check_room(self._tree.xattr_sizes(ino), text, len(value))
        self._edits.set_xattr(ino, text, value)

    def remove(self, ino: int, name: bytes) -> None:
        text = decode_settable(name)
        self.get(ino, text)
        self._edits.set_xattr(ino, text, None)

    def names(self, ino: int) -> list[bytes]:
        return [name.encode() for name in self._tree.xattr_sizes(ino)]
