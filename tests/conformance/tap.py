"""Results in the output of a test file of pjdfstest (TAP), counted. Pure.

Invariant: a test that was planned and said nothing has failed, so a script that dies is not a
script that passes. `TODO` tests are not failures, as `prove` has it: the suite marks with it what
it knows that Linux does otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLAN = re.compile(r"^1\.\.(\d+)")
_LINE = re.compile(r"^(not )?ok (\d+)(.*)")


@dataclass(frozen=True)
class Counted:
    """One test file: how many tests, which of them failed, and what each of those said."""

    planned: int
    failed: dict[int, str]
    todo: frozenset[int]  # what the suite knows that Linux does otherwise

    @property
    def passed(self) -> int:
        return self.planned - len(self.failed)


def count(output: str) -> Counted:
    """Read the output of a test file. Without a plan it is one test, which failed."""
    plan, said, failed, todo = None, set(), {}, set()
    for line in output.splitlines():
        if found := _PLAN.match(line):
            plan = int(found[1])
        elif found := _LINE.match(line):
            number = int(found[2])
            said.add(number)
            if found[1] and "# TODO" in found[3]:
                todo.add(number)
            elif found[1]:
                failed[number] = found[3].strip(" -")
    if plan is None:
        return Counted(1, {1: "no plan: the script did not run"}, frozenset())
    missing = set(range(1, plan + 1)) - said
    failed |= dict.fromkeys(missing, "said nothing: the script ended early")
    unplanned = {number: "was not planned" for number in said if number > plan}
    return Counted(max(plan, *said, 0), failed | unplanned, frozenset(todo))


def unexpected(
    failed: dict[str, frozenset[int]], known: dict[str, frozenset[int]]
) -> tuple[list[str], list[str]]:
    """(failures that are not known, known ones that did not happen), as "FILE NUMBER"."""
    seen = {f"{file} {number}" for file, numbers in failed.items() for number in numbers}
    told = {f"{file} {number}" for file, numbers in known.items() for number in numbers}
    return sorted(seen - told), sorted(told - seen)
