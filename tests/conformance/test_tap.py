"""Counting what pjdfstest says, and holding it against what is known."""

from __future__ import annotations

from tests.conformance.tap import count, unexpected


def test_passed_failed_and_todo_are_told_apart() -> None:
    said = count(
        "1..4\nok 1\nnot ok 2 - tried 'x', expected 0, got EPERM\nok 3\nnot ok 4 # TODO no\n"
    )
    assert (said.planned, said.passed, said.todo) == (4, 3, {4})
    assert said.failed == {2: "tried 'x', expected 0, got EPERM"}


def test_a_script_that_ends_early_has_failed() -> None:
    assert set(count("1..3\nok 1\n").failed) == {2, 3}
    assert count("").failed
    assert count("ok 1\n").failed


def test_a_test_beyond_the_plan_has_failed() -> None:
    assert set(count("1..1\nok 1\nok 2\n").failed) == {2}


def test_a_new_failure_and_a_known_one_that_passes_are_both_told() -> None:
    failed = {"link/00": frozenset({1, 2})}
    known = {"link/00": frozenset({2}), "open/01": frozenset({7})}
    assert unexpected(failed, known) == (["link/00 1"], ["open/01 7"])
    assert unexpected(failed, failed) == ([], [])
