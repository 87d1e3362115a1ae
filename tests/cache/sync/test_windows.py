"""cache/sync/windows.py: memory is used again when nobody looks into it, and never before."""

from __future__ import annotations

from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from

from cache.sync.windows import SMALL, Window, Windows


class Held(RuleBasedStateMachine):
    """Each window that is held keeps what was written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = Windows()
        self.held: list[tuple[Window, int, list[int]]] = []  # its mark, and holders
        self.marks = 0

    @rule(size=sampled_from([0, 1, SMALL - 1, SMALL, 3 * SMALL + 1, 16 * SMALL]))
    def take(self, size: int) -> None:
        window = self.windows.take(size)
        assert len(window.view) == size
        self.marks = self.marks % 255 + 1
        window.view[:1] = window.view[-1:] = bytes([self.marks])[:size]
        self.held.append((window, self.marks, [1]))

    @precondition(lambda self: self.held)
    @rule(which=integers(0, 99))
    def hold(self, which: int) -> None:
        window, _, holders = self.held[which % len(self.held)]
        window.hold()
        holders[0] += 1

    @precondition(lambda self: self.held)
    @rule(which=integers(0, 99))
    def release(self, which: int) -> None:
        window, _, holders = self.held[which % len(self.held)]
        window.release()
        holders[0] -= 1
        self.held = [item for item in self.held if item[2][0]]

    @rule()
    def rest(self) -> None:
        self.windows.rest()

    @invariant()
    def nobody_wrote_over_it(self) -> None:
        for window, mark, _ in self.held:
            assert set(window.view[:1]) | set(window.view[-1:]) <= {mark}


TestHeld = Held.TestCase


def test_large_memory_is_used_again_until_uploads_rest() -> None:
    windows = Windows()
    first = windows.take(SMALL)
    first.hold()
    first.view[0] = 7
    first.release()
    assert windows.take(SMALL).view[0] == 0  # it is still held
    first.release()
    again = windows.take(SMALL)
    assert again.view[0] == 7
    again.release()
    windows.rest()
    assert windows.take(SMALL).view[0] == 0
