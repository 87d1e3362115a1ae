"""Lists for people and for programs: aligned columns, or the stable JSON.

Knows: widths, and that a name may hold anything. Must not know: what is listed.

Names come from other people: what is not printable is shown escaped, so that no file, device or
account can move the cursor, change colours or hide itself in somebody's terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

GAP = "  "


def show(headings: Sequence[str], rows: Sequence[Sequence[str]], *, nothing: str) -> None:
    """Print `rows` under `headings`; without rows, what `nothing` says."""
    print("\n".join(aligned(headings, rows)) if rows else nothing)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the columns under each other, as wide as a terminal shows them. Columns without
    anything in them are left out."""
    from rich.cells import cell_len  # here: most commands print no list

    lines = [list(headings)] + [[printable(cell) for cell in row] for row in rows]
    used = [at for at in range(len(headings)) if any(line[at] for line in lines[1:])]
    widths = {at: max(cell_len(line[at]) for line in lines) for at in used}
    return [
        GAP.join(line[at] + " " * (widths[at] - cell_len(line[at])) for at in used).rstrip()
        for line in lines
    ]


def printable(text: str) -> str:
    """`text` with everything that is no plain character escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(item if item.isprintable() else ascii(item)[1:-1] for item in text)


def print_json(answer: Struct) -> None:
    """The fields of `answer`, without the tag that the control socket needs."""
    from msgspec import json, to_builtins

    plain = to_builtins(answer)
    plain.pop("type", None)
    print(json.format(json.encode(plain)).decode())
