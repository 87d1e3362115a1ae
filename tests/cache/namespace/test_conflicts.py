"""The rule book of refusals, and names for what lost."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.namespace import conflicts
from cache.namespace.conflicts import Verdict, conflicted_name, verdict
from remote.protocol.errors import (
    RULES,
    AnyProblem,
    Exists,
    NotEmpty,
    NotFound,
    OtherReach,
    Retry,
    Stale,
    TooLarge,
)
from remote.protocol.messages import Op
from tests.amounts import amount

KINDS = [one.__struct_config__.tag for one in get_args(Op)]
FINAL = [kind for kind in get_args(AnyProblem) if RULES[kind].retry is Retry.NEVER]


@pytest.mark.parametrize(
    ("kind", "problem", "expected"),
    [
        ("create", Exists(), Verdict.ASIDE),
        ("create", Exists(taken="file"), Verdict.ANEW),
        ("create", Exists(taken="version"), Verdict.ANEW),
        ("write", Exists(taken="version"), Verdict.ANEW),
        ("create", NotFound(), Verdict.RESCUE),
        ("create", TooLarge(), Verdict.KEEP),
        ("rename", Exists(), Verdict.ASIDE),
        ("rename", Stale(), Verdict.DROP),
        ("write", NotFound(), Verdict.RECREATE),
        ("write", TooLarge(), Verdict.KEEP),
        ("link", OtherReach(), Verdict.KEEP),
        ("rename", OtherReach(), Verdict.KEEP),
        ("replace", OtherReach(), Verdict.DROP),
        ("exchange", OtherReach(), Verdict.DROP),
        ("unlink", NotEmpty(), Verdict.DROP),
        ("setattr", NotFound(), Verdict.DROP),
    ],
)
def test_rules(kind: str, problem: AnyProblem, expected: Verdict) -> None:
    assert verdict(kind, problem, directory=False) is expected


def test_two_directories_of_one_name_are_one() -> None:
    assert verdict("create", Exists(), directory=True) is Verdict.ADOPT


def test_no_move_of_a_directory_waits_behind_one_that_is_the_owners_to_make() -> None:
    assert verdict("rename", OtherReach(), directory=True) is Verdict.DROP


def test_a_directory_whose_id_is_taken_is_no_other_directory() -> None:
    assert verdict("create", Exists(taken="file"), directory=True) is Verdict.ANEW


@pytest.mark.parametrize("kind", ["create", "write"])
@pytest.mark.parametrize("problem", FINAL)
def test_what_carries_bytes_is_never_dropped(kind: str, problem: type[AnyProblem]) -> None:
    assert verdict(kind, problem(), directory=False) is not Verdict.DROP


def test_every_rule_is_for_an_operation_and_a_final_refusal_that_there_are() -> None:
    """A rule for a misspelt one would never be used, and the operation kept for ever."""
    assert {kind for kind, _ in conflicts._RULES} <= set(KINDS)
    assert {problem for _, problem in conflicts._RULES} <= set(FINAL)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_rule_is_kept(kind: str) -> None:
    assert verdict(kind, TooLarge(), directory=False) is Verdict.KEEP


text = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=90)
names = text.map(lambda name: name.encode()[:255].decode(errors="ignore")).filter(bool)


@settings(max_examples=amount(300, 20), deadline=None)
@given(names, st.text(max_size=120), st.integers(1, 9999))
def test_a_conflicted_name_is_a_name(name: str, device: str, number: int) -> None:
    found = conflicted_name(name, device.encode(errors="ignore").decode(), "2026-01-02", number)
    assert 0 < len(found.encode()) <= 255
    assert not {"/", "\0"} & set(found)
    assert found not in (name, ".", "..")


@settings(max_examples=amount(100, 10), deadline=None)
@given(names, st.integers(1, 50), st.integers(51, 9999))
def test_numbers_make_names_differ(name: str, one: int, other: int) -> None:
    day = "2026-01-02"
    assert conflicted_name(name, "laptop", day, one) != conflicted_name(name, "laptop", day, other)


def test_the_suffix_stays_at_the_end() -> None:
    found = conflicted_name("report.final.odt", "laptop", "2026-01-02", 1)
    assert found == "report.final (conflicted copy, laptop 2026-01-02).odt"
    assert conflicted_name(".profile", "laptop", "2026-01-02", 2).startswith(".profile (conflicted")
