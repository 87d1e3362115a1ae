"""`python -m mount.units.updatedb FILE [--remove]`: keep updatedb out of mounts.

Knows: updatedb.conf(5) of plocate and mlocate: `PRUNEFS = "TYPE ..."` lists types of file systems
that are not walked; `#` begins a comment, the last line wins. Must not know: who runs updatedb.

A nightly walk through a mount of root's would fetch every listing of the drive. A file that is not
there is not made: without updatedb nobody reads it. The rest of the file stays byte by byte, and
another process sees the old file or the new one.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from cache.metadata.durable import write_durably
from mount.mountinfo import FSTYPE

_LINE = re.compile(rb'^([ \t]*PRUNEFS[ \t]*=[ \t]*")([^"\n]*)(")', re.MULTILINE)
_TYPE = FSTYPE.encode()


def with_type(text: bytes) -> bytes:
    """The configuration `text`, with our type among those that are not walked."""
    lines = list(_LINE.finditer(text))
    if not lines:
        newline = b"" if not text or text.endswith(b"\n") else b"\n"
        return text + newline + b'PRUNEFS="' + _TYPE + b'"\n'
    line = lines[-1]
    if _TYPE.lower() in line[2].lower().split():
        return text
    space = b" " if line[2] and not line[2].endswith(b" ") else b""
    return text[: line.end(2)] + space + _TYPE + text[line.end(2) :]


def without_type(text: bytes) -> bytes:
    """The configuration `text` with our type taken out; a line that held nothing else goes too."""

    def less(line: re.Match[bytes]) -> bytes:
        return line[1] + re.sub(rb"(^| +)" + re.escape(_TYPE) + rb"(?= |$)", b"", line[2]) + line[3]

    alone = b'PRUNEFS="' + _TYPE + b'"\n'
    return text.removesuffix(alone) if text.endswith(alone) else _LINE.sub(less, text)


def rewrite(file: Path, *, remove: bool = False) -> bool:
    """Put our type into `file`, or take it out; whether that changed anything."""
    file = Path(os.path.realpath(file))  # a link stays one
    try:
        old = file.read_bytes()
    except FileNotFoundError:
        return False
    new = without_type(old) if remove else with_type(old)
    if new == old:
        return False
    was = file.stat()
    owner = was.st_uid, was.st_gid
    write_durably(file, new, mode=was.st_mode & 0o7777, owner=owner)
    return True


def main() -> int:
    file, remove = Path(sys.argv[1]), "--remove" in sys.argv[2:]
    if rewrite(file, remove=remove):
        print(f"{file}: {FSTYPE} {'taken out of' if remove else 'added to'} PRUNEFS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
