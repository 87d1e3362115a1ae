"""Asking a person before what cannot be undone."""

from __future__ import annotations

import sys

from mount.failures import UsageFailure


def agreed(question: str) -> bool:
    """True if the person says yes. Raises `UsageFailure` where there is no terminal to ask on."""
    if not sys.stdin.isatty():
        raise UsageFailure("there is no terminal to ask on; say --yes if that is meant")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
