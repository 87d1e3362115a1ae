"""Numbers of tries of what has no end: random walks, examples, interleavings; rows of long tables.

`make test` tries the whole amount, `make quick` a part of it; a variable of the environment says
another number to both (docs/architecture.md has them all).
"""

from __future__ import annotations

import os

IS_QUICK = "NEARLINE_QUICK" in os.environ


def amount(whole: int, quick: int, variable: str = "") -> int:
    """`whole`, in a quick run `quick`, or what the variable says."""
    said = os.environ.get(variable) if variable else None
    return int(said) if said is not None else quick if IS_QUICK else whole
