"""Names of directory entries, as the kernel gives them.

Knows: which are text, and how long they may be. Must not know: requests, which
are reserved (`edits`).
"""

from __future__ import annotations

import errno
import os


def decode(name: bytes) -> str:
    """A name as text. Raises OSError: EILSEQ for what is not UTF-8, ENAMETOOLONG over 255 bytes."""
    if len(name) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ)) from None
