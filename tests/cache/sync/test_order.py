"""The waiting order, against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache.sync.order import Order

KEYS = ("a", "b", "c")
some_keys = st.sets(st.sampled_from(KEYS))


class Lines(RuleBasedStateMachine):
    """Places come and go anywhere. `told` is who waits by what was returned alone."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.told = Order(), set[int]()
        self.there: dict[int, tuple[set[str], set[str]]] = {}

    def waits(self, place: int) -> bool:
        wrote, read = self.there[place]
        before = [keys for one, keys in self.there.items() if one < place]
        return any(wrote & (w | r) or read & w for w, r in before)

    @rule(place=st.integers(0, 12), wrote=some_keys, read=some_keys)
    def come(self, place: int, wrote: set[str], read: set[str]) -> None:
        if place not in self.there:
            self.there[place] = wrote, read - wrote
            waiting = self.order.add(place, wrote, read - wrote)
            assert place not in waiting
            assert len(set(waiting)) == len(waiting)
            assert not self.told & set(waiting)
            self.told |= set(waiting)
            if self.waits(place):
                self.told.add(place)

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        if self.there:
            place = data.draw(st.sampled_from(sorted(self.there)))
            wrote, read = self.there.pop(place)
            self.told.discard(place)
            freed = self.order.remove(place, wrote, read)
            assert len(set(freed)) == len(freed)
            assert set(freed) <= self.told
            self.told -= set(freed)

    @invariant()
    def those_wait_that_have_to(self) -> None:
        waiting = {place for place in self.there if self.waits(place)}
        assert waiting == self.told
        assert waiting == {place for place in self.there if not self.order.is_free(place)}

    def teardown(self) -> None:
        for place, (wrote, read) in self.there.items():
            self.order.remove(place, wrote, read)
        assert not self.order._lines
        assert not self.order._behind


TestLines = Lines.TestCase


@given(st.integers(1, 30))
def test_who_needs_one_directory_waits_for_nobody_and_is_waited_for(count: int) -> None:
    """As many files made in it, before its attributes are set."""
    order = Order()
    for place in range(count):
        assert order.add(place, {f"file {place}"}, {"directory"}) == []
        assert order.is_free(place)
    order.add(count, {"directory"}, set())
    for place in range(count):
        assert not order.is_free(count)
        freed = order.remove(place, {f"file {place}"}, {"directory"})
        assert freed == ([count] if place == count - 1 else [])
    assert order.is_free(count)


def test_what_is_taken_away_in_part_holds_back_in_the_other_part() -> None:
    order = Order()
    order.add(1, {"file"}, {"directory"})
    order.add(2, {"directory"}, set())
    order.add(3, {"file"}, set())
    assert order.remove(1, (), {"directory"}) == [2]
    assert not order.is_free(3)
    assert order.add(1, (), {"directory"}) == [2]
