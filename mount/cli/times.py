"""Durations and moments as people write and read them. Pure but for the local time zone.

Knows: `7d 12h 30m`, and local times to the second. Must not know: what they are for.
"""

from __future__ import annotations

import re
from datetime import datetime

from mount.failures import UsageFailure

_UNITS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(rf"(?:\s*[0-9]+\s*[{''.join(_UNITS)}])+\s*", re.ASCII)
_PART = re.compile(rf"([0-9]+)\s*([{''.join(_UNITS)}])", re.ASCII)
_MOMENT = "%Y-%m-%d %H:%M:%S"
_SECOND_NS = 1_000_000_000
_LONGEST = 100 * 365 * 86400


def duration(text: str) -> int:
    """Seconds in `7d`, `7d 12h 30m` or `90s`. Raises `UsageFailure`."""
    if _DURATION.fullmatch(text) is None:
        raise UsageFailure(f"{text!r} is not a duration; write it like 7d, 12h or 1d 30m")
    seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= _LONGEST:
        raise UsageFailure(f"{text!r} is not a usable duration; give one of 1s to 100 years")
    return seconds


def local(moment_ns: int) -> str:
    """The moment in local time, to the second."""
    return datetime.fromtimestamp(moment_ns // _SECOND_NS).strftime(_MOMENT)


def seconds_meant(text: str) -> list[int]:
    """The seconds since 1970 that `text`, as `local` writes it, may mean: none when it is no such
    time, two in the hour that comes twice when summer time ends."""
    try:
        moment = datetime.strptime(" ".join(text.replace("T", " ").split()), _MOMENT)
    except ValueError:
        return []
    return sorted({int(moment.replace(fold=fold).timestamp()) for fold in (0, 1)})
