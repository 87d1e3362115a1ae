"""The walks' judge, asked about identities."""

from __future__ import annotations

from tests.model.reference import Reference, View


def view(**ids: str) -> View:
    """Empty files at the top, of these identities."""
    return {
        f"/{name}": ("file", 0o644, file, 0, b"", 1, {}, 0, 0, None) for name, file in ids.items()
    }


def judged(agreed: View, now: View, *last_seen: View, touched: dict[int, str]) -> set[str]:
    reference = Reference()
    reference.touched(0, "a", "b")  # before: one was renamed to the other
    reference.agree(agreed)
    for who, path in touched.items():
        reference.touched(who, path)
    return set(reference.surprises(list(last_seen or (agreed, agreed)), now))


def test_an_identity_that_nobody_has_seen_is_a_surprise() -> None:
    assert judged(view(a="1"), view(a="2"), touched={}) == {"/a"}
    assert judged(view(a="1"), view(a="2"), touched={0: "a"}) == {"/a"}
    assert judged(view(a="1", c="3"), view(a="1", c="2"), touched={0: "a", 1: "c"}) == {"/c"}


def test_a_name_may_take_its_identity_back_from_what_nobody_touched() -> None:
    before, after = view(b="1"), view(a="1", b="2")
    assert judged(before, after, after, before, touched={0: "a"}) == set()
    assert judged(before, view(a="1", b="3"), after, before, touched={0: "a"}) == {"/b"}


def test_what_another_is_at_work_with_may_not_be_taken_back() -> None:
    before, wanted = view(b="1"), view(a="1", b="2")
    assert judged(before, view(a="3", b="1"), wanted, before, touched={0: "a", 1: "b"}) == set()
