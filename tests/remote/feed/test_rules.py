"""The rules of the change feed: what a hint, a page and a failure lead to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.feed.rules import (
    Apply,
    Ignore,
    Pull,
    Reset,
    on_hint,
    on_page,
    poll_interval,
    retry_delay,
)
from remote.protocol.errors import (
    Forbidden,
    OutOfStep,
    RateLimited,
    Refused,
    Unauthorized,
    Unreachable,
)
from remote.protocol.messages import Change, ChangesPage, Hint
from tests.amounts import amount


def change(seq: int) -> Change:
    return Change(drive="d" * 32, seq=seq, at_ns=seq, device="other", files=[], entries=[])


def hint(since: int, to: int, *, carries: bool = True) -> Hint:
    changes = [change(seq) for seq in range(since + 1, to + 1)] if carries else []
    return Hint(since=f"c{since}", cursor=f"c{to}", seq=to, changes=changes)


def test_what_a_hint_means() -> None:
    assert on_hint("c5", 5, hint(5, 7)) == Apply([change(6), change(7)], "c7", 7)
    assert on_hint("c5", 5, hint(5, 7, carries=False)) == Pull()
    assert on_hint("c5", 5, hint(6, 7)) == Pull()
    assert on_hint("c5", 5, hint(4, 7)) == Pull()
    assert on_hint("c5", 5, hint(5, 5)) == Ignore()
    assert on_hint("c5", 5, hint(3, 4)) == Ignore()
    assert on_hint(None, -1, hint(0, 1)) == Pull()


def page(cursor: str, **more: bool) -> ChangesPage:
    return ChangesPage(cursor=cursor, seq=7, changes=[change(7)], **more)


def test_what_a_page_means() -> None:
    assert on_page("c6", 6, page("c7")) == Apply([change(7)], "c7", 7)
    assert on_page("c6", 6, page("c7", reset=True)) == Reset("c7", 7)
    assert on_page("c7", 7, page("c7", reset=True)) == Reset("c7", 7)
    assert on_page("c7", 7, ChangesPage(cursor="c7", seq=7, changes=[])) == Ignore()
    with pytest.raises(OutOfStep):
        on_page("c7", 7, ChangesPage(cursor="c7", seq=7, changes=[], more=True))
    with pytest.raises(OutOfStep):
        on_page("c7", 7, page("c7"))


def test_a_page_of_the_past_is_not_taken_but_a_new_epoch_is() -> None:
    with pytest.raises(OutOfStep, match="went back"):
        on_page("c9", 9, page("c7"))
    assert on_page("c9", 9, page("c7", reset=True)) == Reset("c7", 7)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4), st.booleans()), max_size=30),
    st.integers(0, 12),
)
@settings(deadline=None, max_examples=amount(200, 40))
def test_no_order_of_hints_skips_a_change(sent: list[tuple[int, int, bool]], head: int) -> None:
    """Lost, repeated, late and overlapping hints: what is applied is 1, 2, 3, ... without a gap."""
    seq, applied = 0, []
    for since, length, carries in sent:
        match on_hint(f"c{seq}", seq, hint(since, since + length, carries=carries)):
            case Apply(changes, _, new_seq):
                applied += [item.seq for item in changes]
                seq = new_seq
            case Pull():
                until = max(head, since + length)  # the feed holds at least what was hinted at
                applied += range(seq + 1, until + 1)
                seq = max(seq, until)
    assert applied == list(range(1, seq + 1))


def test_polls_and_retries_are_spaced() -> None:
    assert [poll_interval(n) for n in range(6)] == [5, 10, 20, 40, 60, 60]
    assert retry_delay(Unreachable("x"), 0, 0.5) == 0.25
    assert retry_delay(Unreachable("x"), 99, 0.5) == 30
    assert retry_delay(Refused(Unauthorized()), 0, 0.0) == 30
    assert retry_delay(Refused(Forbidden()), 0, 1.0) == 60
    assert retry_delay(Refused(RateLimited(retry_after_seconds=90.0)), 0, 0.5) == 90.25
