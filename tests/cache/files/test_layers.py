"""Layer stacks against a bytearray: whatever is written, cut off, frozen and committed, a planned
read finds the bytes, and what is reported as changed is all that changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.files.layers import (
    BASE,
    ZERO,
    Layer,
    changed_ranges,
    hole_ranges,
    plan_read,
    stored_bytes,
)
from tests.amounts import amount

SIZE = 60
edits = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE), st.integers(1, 20)),
        st.tuples(st.just("truncate"), st.integers(0, SIZE), st.just(0)),
        st.tuples(st.sampled_from(("freeze", "commit")), st.just(0), st.just(0)),
    ),
    max_size=14,
)


@dataclass
class Stack:
    """Layers as `Contents` handles them, without a database or files."""

    base: bytes
    now: bytearray = field(init=False)
    layers: list[Layer] = field(default_factory=list)
    stored: dict[int, bytearray] = field(default_factory=dict)
    snapshot: bytes = b""
    marks: int = 0

    def __post_init__(self) -> None:
        self.now = bytearray(self.base)

    def top(self) -> Layer:
        if not self.layers or self.layers[0].frozen:
            layer = Layer(id=len(self.stored) + 1, ino=7, below=len(self.now), size=len(self.now))
            self.layers.insert(0, layer)
            self.stored[layer.id] = bytearray(2 * SIZE)
        return self.layers[0]

    def write(self, at: int, length: int) -> None:
        self.marks += 1
        data, layer = bytes([self.marks]) * length, self.top()
        self.now.extend(bytes(max(0, at + length - len(self.now))))
        self.now[at : at + length] = data
        self.stored[layer.id][at : at + length] = data
        layer.extents.add(at, at + length)
        layer.size = len(self.now)

    def truncate(self, size: int, _: int) -> None:
        layer = self.top()
        self.now = self.now[:size].ljust(size, b"\0")
        layer.extents.cut(size)
        layer.below, layer.size = min(layer.below, size), size

    def freeze(self, *_: int) -> None:
        if len(self.layers) == 1 and not self.layers[0].frozen:
            self.layers[0].version, self.snapshot = "v", bytes(self.now)

    def commit(self, *_: int) -> None:
        if self.layers and self.layers[-1].frozen:
            self.layers.pop()
            self.base = self.snapshot

    def read(self, layers: list[Layer], offset: int, length: int) -> bytes:
        found = b""
        for source, at, size in plan_read(layers, len(self.base), offset, length):
            assert at == offset + len(found)
            whole = {BASE: self.base, ZERO: bytes(2 * SIZE)}.get(source)
            found += bytes((whole if whole is not None else self.stored[source])[at : at + size])
        return found


@settings(max_examples=amount(400, 80), deadline=None)
@given(st.integers(0, SIZE), edits, st.integers(0, SIZE), st.integers(0, SIZE))
def test_a_read_finds_what_was_written(
    base: int, edits: list[tuple[str, int, int]], offset: int, length: int
) -> None:
    stack = Stack(b"\xff" * base)
    for name, at, size in edits:
        getattr(stack, name)(at, size)
        length = max(0, min(length, len(stack.now) - offset))
        assert stack.read(stack.layers, offset, length) == stack.now[offset : offset + length]
        if stack.layers and stack.layers[-1].frozen:
            frozen = stack.layers[-1:]
            assert stack.read(frozen, 0, len(stack.snapshot)) == stack.snapshot


@settings(max_examples=amount(400, 80), deadline=None)
@given(st.integers(0, SIZE), edits)
def test_every_change_is_reported_and_holes_are_zeros(
    base: int, edits: list[tuple[str, int, int]]
) -> None:
    stack = Stack(b"\xff" * base)
    for name, at, size in edits:
        getattr(stack, name)(at, size)
    if len(stack.layers) != 1:
        return
    layer, old, new = stack.layers[0], stack.base, bytes(stack.now)
    changed = {at for low, high in changed_ranges(layer) for at in range(low, high)}
    both = range(min(len(old), len(new)))
    assert {at for at in both if old[at] != new[at]} <= changed
    assert set(range(len(old), len(new))) <= changed
    holes = [at for low, high in hole_ranges(layer) for at in range(low, high)]
    assert set(holes) <= changed
    assert all(new[at] == 0 for at in holes)


@settings(max_examples=amount(400, 80), deadline=None)
@given(st.integers(0, SIZE), edits)
def test_never_less_is_stored_than_was_written(
    base: int, edits: list[tuple[str, int, int]]
) -> None:
    stack = Stack(b"\xff" * base)
    for name, at, size in edits:
        getattr(stack, name)(at, size)
        told = stored_bytes(stack.layers, len(stack.base) - stack.base.count(0), len(stack.now))
        assert len(stack.now) - stack.now.count(0) <= told <= len(stack.now)


def test_truncating_to_a_huge_size_costs_nothing() -> None:
    layer = Layer(id=1, ino=7, below=10, size=10**15)
    assert plan_read([layer], 10, 0, 10**15) == [(BASE, 0, 10), (ZERO, 10, 10**15 - 10)]
    assert changed_ranges(layer) == [(10, 10**15)] == hole_ranges(layer)
    assert stored_bytes([layer], 10, 10**15) == 10
