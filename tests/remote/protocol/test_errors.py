"""One table: every problem has a status, an errno and a retry class, and travels by its tag."""

from __future__ import annotations

import errno
from typing import get_args

import msgspec
import pytest

from remote.protocol import errors
from remote.protocol.errors import (
    LONGEST_RETRY_AFTER,
    RULES,
    AnyProblem,
    Busy,
    NearlineError,
    Problem,
    Refused,
    Retry,
    Unreachable,
    believable,
)


def made(kind: type[Problem]) -> Problem:
    extra = {"chunks": [b"c" * 32]} if kind is errors.ChunksMissing else {}
    return kind(message="what to do", **extra)


def test_the_table_is_complete() -> None:
    assert set(RULES) == set(get_args(AnyProblem))
    assert set(RULES) == set(Problem.__subclasses__())


@pytest.mark.parametrize("kind", RULES)
def test_a_problem_travels_both_ways(kind: type[Problem]) -> None:
    problem = made(kind)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(problem), type=AnyProblem) == problem
    assert msgspec.json.decode(msgspec.json.encode(problem), type=AnyProblem) == problem


@pytest.mark.parametrize("kind", RULES)
def test_a_refusal_says_what_its_rule_says(kind: type[Problem]) -> None:
    refused = Refused(made(kind))
    assert str(refused) == "what to do"
    assert (refused.errno, refused.retry) == (RULES[kind].errno, RULES[kind].retry)
    assert refused.errno in errno.errorcode
    assert 400 <= RULES[kind].status < 600


def test_a_refusal_without_a_message_says_its_name() -> None:
    assert str(Refused(errors.Stale())) == "Stale"


def test_tags_are_the_wire_and_do_not_change() -> None:
    tags = sorted(str(kind.__struct_config__.tag) for kind in RULES)
    assert " ".join(tags) == (
        "bad_name bad_request bad_upload chunks_missing exists forbidden is_a_directory"
        " name_too_long not_a_directory not_empty not_found other_reach quota_exceeded"
        " rate_limited stale too_large too_many_links unauthorized unavailable upload_unknown"
        " would_loop"
    )


def test_only_what_a_person_must_mend_is_never_retried() -> None:
    assert RULES[errors.Forbidden].retry is Retry.NEVER
    assert RULES[errors.QuotaExceeded].retry is Retry.LATER
    assert RULES[errors.Unauthorized].retry is Retry.LATER
    assert RULES[errors.RateLimited].retry is Retry.LATER
    assert RULES[errors.ChunksMissing].retry is Retry.REPAIR
    assert RULES[errors.UploadUnknown].retry is Retry.REPAIR
    assert Unreachable.retry is Retry.LATER
    assert errors.UrlRefused.retry is Retry.REPAIR


def test_every_error_has_an_errno() -> None:
    kinds: list[type[NearlineError]] = [NearlineError, *NearlineError.__subclasses__()]
    for kind in kinds:
        assert kind.errno in errno.errorcode


@pytest.mark.parametrize(("said", "believed"), [(7.0, 7.0), (0.0, 0.0), (-3.0, 0.0)])
def test_who_names_a_time_is_asked_again_then(said: float, believed: float) -> None:
    assert Refused(errors.RateLimited(retry_after_seconds=said)).retry_after == believed
    assert Busy("x", 503, said).retry_after == believed


@pytest.mark.parametrize("said", [1e9, float("inf")])
def test_a_time_that_makes_no_sense_stops_nothing_for_ever(said: float) -> None:
    assert Refused(errors.RateLimited(retry_after_seconds=said)).retry_after == LONGEST_RETRY_AFTER
    assert believable(float("nan")) == 0


def test_reads_are_patient_with_what_passes_and_with_nothing_else() -> None:
    patient = {kind for kind, rule in RULES.items() if rule.patience > 0}
    assert patient == {errors.RateLimited, errors.Unavailable}
    assert all(RULES[kind].retry is Retry.LATER for kind in patient)
    assert Unreachable.patience == errors.ProtocolError.patience == errors.CorruptContent.patience
    assert Unreachable("x").patience == 0
    assert Busy("x", 429).patience == Busy("x", 503, 1.0).patience == errors.ANNOUNCED_SECONDS
    assert Busy("x", 500).patience == errors.NOT_NOW_SECONDS
