"""Operations: what they touch, and which ones depend on which."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.metadata.operations import Body, Op, entry_key, file_key, needed, reads, stuck, writes
from tests.amounts import amount

FILES = ("f1", "f2", "f3", "d1", "d2")
NAMES = ("a", "b")


@st.composite
def operations(draw: st.DrawFn) -> list[Op]:
    made: list[Op] = []
    for seq in range(1, draw(st.integers(1, 9)) + 1):
        kind = draw(st.sampled_from(("create", "write", "rename", "unlink", "setattr")))
        file = draw(st.sampled_from(FILES))
        body = Body(regular=kind == "create" and file.startswith("f"))
        if kind in ("create", "rename", "unlink"):
            body.parent, body.name = (
                draw(st.sampled_from(("d1", "d2"))),
                draw(st.sampled_from(NAMES)),
            )
        if kind == "rename":
            body.new_parent = draw(st.sampled_from(("d1", "d2")))
            body.new_name = draw(st.sampled_from(NAMES))
            body.directory = file.startswith("d")
        refused = "quota" if draw(st.integers(0, 9)) == 0 else None
        ino = draw(st.sampled_from((1, 2, 3)))
        made.append(
            Op(seq=seq, key=str(seq), kind=kind, ino=ino, file=file, body=body, refused=refused)
        )
    return made


def depends(later: Op, earlier: Op) -> bool:
    """They touch a record, and at least one of them changes it."""
    return bool(
        writes(later) & writes(earlier)
        or reads(later) & writes(earlier)
        or writes(later) & reads(earlier)
    )


def must_wait(ops: list[Op], ready: set[int]) -> set[int]:
    """The definition: who is not ready waits, and so does who depends on one that waits."""
    waits: set[int] = set()
    for at, op in enumerate(ops):
        behind = any(depends(op, ops[n]) for n in waits if n < at)
        if op.refused or op.seq not in ready or behind:
            waits.add(at)
    return {ops[at].seq for at in waits}


@settings(max_examples=amount(200, 40), deadline=None)
@given(operations())
def test_stuck_is_what_waits_though_all_is_ready(ops: list[Op]) -> None:
    everything = {op.seq for op in ops}
    assert stuck(ops) == {str(seq) for seq in must_wait(ops, everything)}


@settings(max_examples=amount(200, 40), deadline=None)
@given(operations(), st.integers(1, 9))
def test_what_is_needed_can_be_sent_without_the_rest(ops: list[Op], wanted: int) -> None:
    for op in ops:
        op.origin, op.refused = op.key, None
    first = needed(ops, {str(wanted)})
    rest = [op for op in ops if op.origin not in first]
    left_out = must_wait(ops, {op.seq for op in ops if op not in rest})
    batch = [op for op in ops if op.seq not in left_out]
    assert {op.origin for op in batch} == first
    for spared in first - {str(wanted)}:  # nor is anything in it that need not be
        at = next(n for n, op in enumerate(ops) if op.key == spared)
        later = [op for op in ops[at + 1 :] if op.origin in first]
        same_inode = ops[at].has_content and any(
            op.has_content and op.ino == ops[at].ino for op in later
        )
        assert same_inode or any(depends(op, ops[at]) for op in later)


def test_what_operations_touch() -> None:
    body = Body(parent="d1", name="a", new_parent="d2", new_name="b", other="f2", directory=True)
    op = Op(seq=1, key="k", kind="rename", ino=1, file="f1", body=body)
    files = {file_key("f1"), file_key("f2")}
    assert writes(op) == files | {entry_key("d1", "a"), entry_key("d2", "b"), "D"}
    assert reads(op) == {file_key("d1"), file_key("d2")}
