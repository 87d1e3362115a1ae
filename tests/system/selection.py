"""Which of many like cases a short run tries. `NEARLINE_FAULTS=all` tries every one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
ALL = os.environ.get("NEARLINE_FAULTS") == "all"


def some(cases: Sequence[T], step: int, first: int = 0) -> list[T]:
    """Every `step`th case from the `first` on; all of them in a long run."""
    return list(cases) if ALL else list(cases[first::step])
