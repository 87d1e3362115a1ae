"""Failures of a command: one line that says what happened and what to do.

    Failure          exit code 1: it did not work
    ├── UsageFailure exit code 2: it was asked wrongly
    └── Unexpected   exit code 1: something nobody foresaw; the log has the details

Knows: exit codes. Must not know: who prints, which command. Invariant: the message has no newline
and reads `what happened; what to do`.
"""

from __future__ import annotations


def advised(said: str, advice: str) -> str:
    """`said; advice`, unless what was said has its advice already."""
    return said if ";" in said else f"{said}; {advice}"


class Failure(Exception):
    """A command failed for a reason that the person can act on. The message is the whole report."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UsageFailure(Failure):
    """The command was given something it cannot mean."""

    exit_code = 2


class Unexpected(Failure):
    """Something failed that nobody foresaw. It has been logged with its traceback."""
