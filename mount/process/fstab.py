"""Our lines in /etc/fstab, and what is missing in them.

Knows: fstab(5), and systemd.mount(5): a line without `_netdev` whose type systemd does not know as
a network's is mounted before there is a network, and local-fs.target needs it: without `nofail`
the boot ends in the emergency shell when it fails. Must not know: how such a line is mounted.

mount(8) does not hand its helpers `_netdev` and `nofail`, so the file itself is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mount import mountinfo

FSTAB = Path("/etc/fstab")
TYPES = frozenset({"nearline", mountinfo.FSTYPE})
WANTED = ("_netdev", "nofail")
ADVICE = (
    "add _netdev, or systemd mounts it before there is a network; and nofail, or a server that is "
    "away at the first mount stops the boot; best with noauto,x-systemd.automount"
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Line:
    """A file system of ours in fstab."""

    mountpoint: Path
    options: frozenset[str]


def parse(text: str) -> Iterator[Line]:
    """Our lines in the text of an fstab."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3 and not fields[0].startswith("#") and fields[2] in TYPES:
            options = fields[3] if len(fields) > 3 else "defaults"
            place = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[1])
            yield Line(Path(place), frozenset(options.split(",")))


def missing(line: Line) -> str:
    """Which of the options that a boot needs are not there, as words; "" for a good line. One that
    is only mounted when somebody asks needs none."""
    if "noauto" in line.options and "x-systemd.automount" not in line.options:
        return ""
    return " and ".join(option for option in WANTED if option not in line.options)


def lines() -> list[Line]:
    """Our lines of this machine."""
    try:
        return list(parse(FSTAB.read_text(errors="surrogateescape")))
    except OSError:  # there need be none
        return []


def warning(mountpoint: Path) -> str:
    """The warning when `mountpoint` is mounted as fstab has it; "" for nothing."""
    for line in lines():
        if line.mountpoint == mountpoint and (without := missing(line)):
            return f"the line of {mountpoint} in {FSTAB} is without {without}; {ADVICE}"
    return ""
