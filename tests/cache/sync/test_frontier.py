"""Which directories are listed ahead of who walks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache.sync.frontier import Frontier


def tree(frontier: Frontier) -> None:
    """1 holds 2, 3, 4; 2 holds 5 and 6, 3 holds 7: these are not listed, nor is 4."""
    frontier.listed(1, [2, 3, 4])
    frontier.listed(2, [5, 6])
    frontier.listed(3, [7])


def test_what_is_below_comes_breadth_first() -> None:
    frontier = Frontier()
    tree(frontier)
    assert frontier.next_after(1, 10) == [4, 5, 6, 7]
    assert frontier.next_after(1, 2) == [4, 5]
    assert frontier.next_after(2, 10) == [5, 6]
    assert frontier.next_after(7, 10) == []


def test_neighbours_come_once_another_one_was_visited() -> None:
    frontier = Frontier()
    tree(frontier)
    assert frontier.next_after(5, 10) == []
    frontier.visit(5)
    frontier.visit(5)
    assert frontier.next_after(5, 10) == []  # the same one again is no walk
    frontier.visit(2)
    assert frontier.next_after(3, 10) == [7, 4]  # and what is before it is not wanted


def test_what_is_listed_to_the_bottom_is_forgotten() -> None:
    frontier = Frontier()
    tree(frontier)
    for number in (5, 6, 7, 4):
        frontier.listed(number, [])
    assert frontier.next_after(1, 10) == []
    assert not frontier._open
    assert set(frontier._parent) <= {1}


@given(st.data())
def test_a_walk_meets_every_directory_once(data: st.DataObject) -> None:
    """Whatever the tree is, and in whatever order answers come: from the top everything that is
    unlisted is found, and nothing that is listed."""
    holds = {1: list[int]()}
    for number in range(2, data.draw(st.integers(2, 30))):
        holds[data.draw(st.sampled_from(sorted(holds)))].append(number)
        holds[number] = []
    frontier, listed = Frontier(), [1]
    frontier.listed(1, holds[1])
    while wanted := frontier.next_after(1, 100):
        unlisted = {below for one in listed for below in holds[one]} - set(listed)
        assert set(wanted) == unlisted
        one = data.draw(st.sampled_from(wanted))
        listed.append(one)
        frontier.listed(one, holds[one])
    assert sorted(listed) == sorted(holds)
    assert not frontier._open


def test_memory_is_bounded_by_forgetting() -> None:
    frontier = Frontier(most=10)
    frontier.listed(1, range(2, 10))
    frontier.listed(2, range(10, 16))
    assert frontier.next_after(1, 10) == []
    assert frontier.next_after(2, 10) == list(range(10, 16))
    assert len(frontier._parent) == 6
