"""The simulated disk: kind where file systems are, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.power.disk import PAGE, SECTOR, Loss, Tree, survivors
from tests.power.record import (
    ROOT,
    Event,
    Linked,
    Made,
    Moved,
    Removed,
    Resized,
    Synced,
    Wrote,
)

SEEDS = range(200)


def outcomes(events: Sequence[Event], names: str, unit: int = PAGE) -> list[Tree]:
    losses = [Loss(names, unit, survival) for survival in (0.0, 0.3, 0.7)]  # type: ignore[arg-type]  # a literal
    return [survivors(events, loss, Random(seed)) for loss in losses for seed in SEEDS]


def contents(events: Sequence[Event], names: str, path: str, unit: int = PAGE) -> set[bytes | None]:
    """The contents that `path` may have; None among them when it may be missing."""
    return {tree.get(path) for tree in outcomes(events, names, unit)}


def test_without_a_sync_anything_may_be_gone_and_zeros_may_stand_for_bytes() -> None:
    events: list[Event] = [Made(2, ROOT, "a", "file"), Wrote(2, 0, b"x" * 100)]
    found = contents(events, "ordered", "a")
    assert {None, b"", b"x" * 100} <= found
    assert any(item and set(item) == {0} for item in found)


def test_an_fsync_of_a_file_keeps_bytes_and_size_and_in_ordered_the_name() -> None:
    events: list[Event] = [Made(2, ROOT, "a", "file"), Wrote(2, 0, b"x" * 100), Synced(2)]
    assert contents(events, "ordered", "a") == {b"x" * 100}
    assert contents(events, "harsh", "a") == {b"x" * 100, None}


def test_an_fsync_of_a_directory_keeps_its_names_and_nobodys_bytes() -> None:
    events: list[Event] = [Made(2, ROOT, "a", "file"), Wrote(2, 0, b"x" * 100), Synced(ROOT)]
    for model in ("ordered", "harsh"):
        found = contents(events, model, "a")
        assert None not in found
        assert b"" in found


def test_an_fsync_of_a_directory_does_not_keep_its_own_name_in_harsh() -> None:
    events: list[Event] = [
        Made(2, ROOT, "d", "directory"),
        Made(3, 2, "a", "file"),
        Synced(3),
        Synced(2),
    ]
    assert all("d/a" in tree for tree in outcomes(events, "ordered"))
    assert any("d" not in tree for tree in outcomes(events, "harsh"))


def test_what_is_written_after_a_sync_is_not_covered_by_it() -> None:
    events: list[Event] = [
        Made(2, ROOT, "a", "file"),
        Wrote(2, 0, b"x" * 10),
        Synced(2),
        Synced(ROOT),
        Wrote(2, 0, b"y" * 10),
    ]
    assert contents(events, "harsh", "a") == {b"x" * 10, b"y" * 10}


def test_a_write_is_torn_at_units() -> None:
    old, new = b"x" * PAGE * 2, b"y" * PAGE * 2
    events: list[Event] = [
        Made(2, ROOT, "a", "file"),
        Wrote(2, 0, old),
        Synced(2),
        Wrote(2, 0, new),
    ]
    pages = contents(events, "ordered", "a", PAGE)
    assert pages == {old, new, old[:PAGE] + new[PAGE:], new[:PAGE] + old[PAGE:]}
    sectors = contents(events, "ordered", "a", SECTOR)
    assert len(sectors) > 20
    for item in sectors:
        assert item is not None
        assert all(len(set(item[at : at + SECTOR])) == 1 for at in range(0, len(item), SECTOR))


def test_a_unit_may_be_at_any_moment_between_two_writes() -> None:
    events: list[Event] = [
        Made(2, ROOT, "a", "file"),
        Wrote(2, 0, b"aa"),
        Synced(2),
        Wrote(2, 0, b"b"),
        Wrote(2, 1, b"c"),
    ]
    assert contents(events, "ordered", "a") == {b"aa", b"ba", b"bc"}


def test_renames_are_ordered_or_not() -> None:
    events: list[Event] = [
        Made(2, ROOT, "a", "file"),
        Made(3, ROOT, "b", "file"),
        Synced(ROOT),
        Moved(2, ROOT, "a", ROOT, "c"),
        Moved(3, ROOT, "b", ROOT, "d"),
    ]
    seen = {frozenset(tree) for tree in outcomes(events, "ordered")}
    assert seen == {frozenset(item) for item in ("ab", "cb", "cd")}
    seen = {frozenset(tree) for tree in outcomes(events, "harsh")}
    assert seen == {frozenset(item) for item in ("ab", "cb", "cd", "ad")}


def test_a_rename_over_a_file_leaves_one_of_the_two_and_no_more_of_its_bytes_than_was_synced() -> (
    None
):
    events: list[Event] = [
        Made(2, ROOT, "a", "file"),
        Wrote(2, 0, b"old"),
        Synced(2),
        Synced(ROOT),
        Made(3, ROOT, "t", "file"),
        Wrote(3, 0, b"new"),
        Moved(3, ROOT, "t", ROOT, "a"),
    ]
    found = contents(events, "ordered", "a")
    assert {b"old", b"new", b"", b"\0\0\0"} <= found
    assert None not in found


def test_a_removed_file_may_be_back_with_what_was_synced() -> None:
    events: list[Event] = [
        Made(2, ROOT, "a", "file"),
        Wrote(2, 0, b"x"),
        Synced(2),
        Removed(2, ROOT, "a"),
    ]
    assert contents(events, "ordered", "a") == {None, b"x"}
    assert contents([*events, Synced(ROOT)], "ordered", "a") == {None}


def test_a_truncation_that_is_there_takes_what_was_before_it() -> None:
    events: list[Event] = [
        Made(2, ROOT, "a", "file"),
        Wrote(2, 0, b"x" * 10),
        Synced(2),
        Resized(2, 0),
        Wrote(2, 4, b"y"),
    ]
    assert contents(events, "ordered", "a") <= {
        b"x" * 10, b"", b"\0", b"\0\0", b"\0\0\0", b"\0\0\0\0", b"\0\0\0\0\0", b"\0\0\0\0y",
    }  # fmt: skip
    assert {b"x" * 10, b"", b"\0\0\0\0y"} <= contents(events, "ordered", "a")
    assert contents([*events, Synced(2)], "ordered", "a") == {b"\0\0\0\0y"}


def test_full_survival_is_what_the_files_held() -> None:
    events: list[Event] = [
        Made(2, ROOT, "d", "directory"),
        Made(3, 2, "a", "file"),
        Wrote(3, 5, b"x"),
        Linked(3, ROOT, "b"),
        Resized(3, 8),
    ]
    body = b"\0\0\0\0\0x\0\0"
    for model in ("ordered", "harsh"):
        loss = Loss(model, PAGE, 1.0)
        assert survivors(events, loss, Random(1)) == {"d": None, "d/a": body, "b": body}


# Whatever is done.

NAMES = "abc"


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events as a file system would record them: each is possible after those before it."""
    events: list[Event] = []
    names: dict[str, int] = {}
    for number in range(draw(st.integers(1, 40))):
        name = draw(st.sampled_from(NAMES))
        ino = names.get(name)
        what = draw(st.sampled_from(("write", "write", "sync", "resize", "move", "remove", "dir")))
        if what == "dir":
            events.append(Synced(ROOT))
        elif ino is None:
            names[name] = number + 2
            events.append(Made(number + 2, ROOT, name, "file"))
        elif what == "write":
            stamp = bytes([number + 1]) * draw(st.integers(1, 3 * SECTOR))
            events.append(Wrote(ino, draw(st.integers(0, 3 * SECTOR)), stamp))
        elif what == "sync":
            events.append(Synced(ino))
        elif what == "resize":
            events.append(Resized(ino, draw(st.integers(0, 4 * SECTOR))))
        elif what == "remove":
            events.append(Removed(names.pop(name), ROOT, name))
        else:
            new = draw(st.sampled_from([item for item in NAMES if item != name]))
            names[new] = names.pop(name)
            events.append(Moved(ino, ROOT, name, ROOT, new))
    return events


losses = st.builds(
    Loss,
    st.sampled_from(("ordered", "harsh")),
    st.just(SECTOR),
    st.sampled_from((0.0, 0.2, 0.5, 0.9, 1.0)),
)


def plain(events: Sequence[Event]) -> tuple[dict[str, int], dict[int, bytes]]:
    """The names and bodies when nothing is lost: written for this test, in another way."""
    names: dict[str, int] = {}
    bodies: dict[int, bytes] = {}
    for event in events:
        match event:
            case Made(ino, _, name):
                names[name], bodies[ino] = ino, b""
            case Removed(_, _, name):
                del names[name]
            case Moved(ino, _, name, _, new):
                del names[name]
                names[new] = ino
            case Resized(ino, size):
                bodies[ino] = bodies[ino][:size].ljust(size, b"\0")
            case Wrote(ino, at, data):
                old = bodies[ino].ljust(at, b"\0")
                bodies[ino] = old[:at] + data + old[at + len(data) :]
    return names, bodies


@given(histories(), losses, st.integers(0, 1 << 30))
def test_ordered_names_are_those_of_some_moment_and_not_before_a_sync(
    events: list[Event], loss: Loss, seed: int
) -> None:
    tree = survivors(events, loss, Random(seed))
    last = max((at for at, event in enumerate(events) if event == Synced(ROOT)), default=0)
    if loss.names == "ordered":
        moments = range(last, len(events) + 1)
        assert set(tree) in [set(plain(events[:at])[0]) for at in moments]
    if loss.survival == 1.0:
        names, bodies = plain(events)
        assert tree == {name: bodies[ino] for name, ino in names.items()}


@given(histories(), losses, st.integers(0, 1 << 30))
def test_a_file_that_was_synced_last_is_whole_and_no_byte_is_invented(
    events: list[Event], loss: Loss, seed: int
) -> None:
    tree = survivors([*events, Synced(ROOT)], loss, Random(seed))
    names, bodies = plain(events)
    assert set(tree) == set(names)
    for name, ino in names.items():
        body = tree[name]
        assert body is not None
        of_file = [event for event in events if getattr(event, "ino", 0) == ino]
        if isinstance(of_file[-1], Synced):
            assert body == bodies[ino]
        assert len(body) <= most(of_file)
        if loss.names == "ordered":
            check_bytes(body, of_file)


def most(of_file: Sequence[Event]) -> int:
    ends = [e.offset + len(e.data) for e in of_file if isinstance(e, Wrote)]
    return max([0, *ends, *(e.size for e in of_file if isinstance(e, Resized))])


def check_bytes(body: bytes, of_file: Sequence[Event]) -> None:
    writes = {e.data[0]: range(e.offset, e.offset + len(e.data)) for e in of_file
              if isinstance(e, Wrote)}  # fmt: skip
    for at, byte in enumerate(body):
        assert not byte or at in writes[byte]


@given(histories(), losses, st.integers(0, 1 << 30))
def test_the_same_numbers_give_the_same_disk(events: list[Event], loss: Loss, seed: int) -> None:
    one, other = (survivors(events, loss, Random(seed)) for _ in range(2))
    assert one == other
