"""Sizes, and bytes a second, as people write and read them, on every command line and page.

Knows: decimal and binary units. Must not know: who asks, or how a wrong one is told.
"""

from __future__ import annotations

import re
from decimal import Decimal

_LETTERS = ["", "K", "M", "G", "T", "P"]
_SIZE = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?) *(?P<unit>[KMGTP]?)(?P<binary>i?B?)", re.I)
_UNITS = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]

# Bytes a second. The longest chunk (16 MiB) shall arrive within what a server allows a body.
MIN_RATE = 8 * 1024


def parse_size(text: str) -> int:
    """Bytes in `20GiB`, `500M`, `1.5 TB` or `4096`. `GB` is 10**9, `G` and `GiB` are 2**30.

    Raises ValueError with a line for a person when `text` is no size, or nothing."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it like 20GiB or 500M")
    base = 1000 if match["binary"].upper() == "B" else 1024
    size = int(Decimal(match["number"]) * base ** _LETTERS.index(match["unit"].upper()))
    if size <= 0:
        raise ValueError(f"{text!r} is not a usable size; it must be more than nothing")
    return size


def parse_rate(text: str) -> int | None:
    """Bytes a second in `2M` or `500kB`, as in `parse_size`; None for `off`: without a limit.

    Raises ValueError with a line for a person when `text` is neither, or too little."""
    if text.strip().lower() == "off":
        return None
    try:
        rate = parse_size(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not a limit; write it like 2M, in bytes a second, or off"
        ) from error
    if rate < MIN_RATE:
        raise ValueError(f"{text!r} is too little for a limit; give 8K or more, or off")
    return rate


def rate_text(rate: int | None) -> str:
    """`rate` bytes a second, as 1.5 MB/s; None is off."""
    return "off" if rate is None else f"{size_text(rate)}/s"


def size_text(count: float) -> str:
    """`count` bytes in decimal units with three digits: 999 bytes, 1.5 kB, 23.4 MB, 234 MB."""
    if count == 1:
        return "1 byte"
    amount, unit = float(count), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    if unit == 0:
        return f"{count:.0f} bytes"
    return f"{amount:.{0 if amount >= 99.95 else 1}f} {_UNITS[unit]}"
