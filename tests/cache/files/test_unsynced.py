"""Which bytes a power loss may take: parts, digests, and what is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache.files.unsynced import UNKNOWN, Part, UnsyncedRanges, digest, survivors
from cache.metadata.intervals import IntervalSet, Range

SIZE = 60
steps = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "cut", "sync")),
        st.integers(0, SIZE),
        st.integers(1, 20),
    ),
    max_size=12,
)


def parts(unsynced: UnsyncedRanges) -> list[Range]:
    return sorted((part.start, part.stop) for part in unsynced)


@given(steps)
def test_parts_are_what_was_new_since_the_last_sync_and_their_digests_are_right(
    steps: list[tuple[str, int, int]],
) -> None:
    unsynced, extents = UnsyncedRanges(), IntervalSet()
    file, new = bytearray(SIZE + 20), set[int]()  # bytes; positions that are not synced
    table: dict[int, Part] = {}
    for number, (name, at, length) in enumerate(steps, 1):
        if name == "write":
            data = bytes([number]) * length
            gaps = extents.gaps(at, at + length)
            change = unsynced.wrote(at, data, gaps, digest(data))
            extents.add(at, at + length)
            file[at : at + length] = data
            new |= {item for low, high in gaps for item in range(low, high)}
        elif name == "cut":
            extents.cut(at)
            change = unsynced.cut(at)
            new = {item for item in new if item < at}
        else:
            change = unsynced.synced(unsynced.writes)
            new = set()
        for part in change.gone:
            del table[part.start]
        table |= {part.start: part for part in change.come}
        assert sorted(table.values()) == sorted(unsynced)
        assert {item for part in unsynced for item in range(*part[:2])} == new
        assert sum(stop - start for start, stop in parts(unsynced)) == len(new)
        for start, stop, told, _ in unsynced:
            assert told in (UNKNOWN, digest(file[start:stop]))


def test_a_sync_ends_with_what_was_written_before_it_began() -> None:
    unsynced = UnsyncedRanges()
    unsynced.wrote(0, b"early", [(0, 5)], digest(b"early"))
    begun = unsynced.writes
    unsynced.wrote(10, b"late", [(10, 14)], digest(b"late"))
    unsynced.wrote(0, b"E", [], digest(b"E"))  # over what the sync may have seen before
    assert [part[:2] for part in unsynced.synced(begun).gone] == [(1, 5)]
    assert parts(unsynced) == [(0, 1), (10, 14)]


def left(size: int, safe: int, *lost: Range) -> tuple[list[Range], int]:
    extents, size = survivors(IntervalSet([(0, 10), (20, 40)]), size, safe, list(lost))
    return list(extents), size


def test_a_file_ends_where_its_bytes_are_gone() -> None:
    assert left(40, 0) == ([(0, 10), (20, 40)], 40)
    assert left(40, 0, (25, 30)) == ([(0, 10), (20, 25)], 25)
    assert left(40, 0, (25, 30), (0, 5)) == ([], 0)
    assert left(50, 40, (20, 40)) == ([(0, 10)], 50)  # synced size: what is below shows again
    assert left(40, 30, (20, 40)) == ([(0, 10)], 30)
