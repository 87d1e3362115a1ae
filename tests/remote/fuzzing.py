"""The effort of fuzz tests: a little, or as many examples as NEARLINE_FUZZ_EXAMPLES says."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.amounts import amount

EXAMPLES = amount(120, 30, "NEARLINE_FUZZ_EXAMPLES")

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` after a few small accidents."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero"]))
        if how == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del found[at : at + draw(st.integers(1, 16))]
        elif how == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif how == "repeat":
            found[at:at] = found[max(0, at - 16) : at]
        elif how == "zero":
            found[at : at + 8] = bytes(len(found[at : at + 8]))
    return bytes(found)
