"""Ids are UUIDv7: they sort by time and never carry more than they were given."""

from __future__ import annotations

import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.protocol.ids import HexId, uuid7

moments = st.integers(0, (1 << 48) * 1_000_000 - 1)
randoms = st.binary(min_size=10, max_size=10)


@given(moments, randoms)
def test_an_id_is_a_uuid_of_version_7(now_ns: int, random: bytes) -> None:
    made = uuid7(now_ns, random)
    parsed = uuid.UUID(made)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == now_ns // 1_000_000
    assert msgspec.convert(made, HexId) == made


@given(moments, moments, randoms, randoms)
def test_ids_sort_by_millisecond(a: int, b: int, first: bytes, second: bytes) -> None:
    if a // 1_000_000 < b // 1_000_000:
        assert uuid7(a, first) < uuid7(b, second)


@given(moments, randoms, randoms)
def test_randomness_makes_ids_differ(now_ns: int, first: bytes, second: bytes) -> None:
    """74 of the 80 bits are used: those under the version and variant are not."""
    used = (((1 << 12) - 1) << 68) | ((1 << 62) - 1)
    same = int.from_bytes(first, "big") & used == int.from_bytes(second, "big") & used
    assert (uuid7(now_ns, first) == uuid7(now_ns, second)) == same


@pytest.mark.parametrize("length", [0, 9, 11])
def test_the_amount_of_randomness_is_fixed(length: int) -> None:
    with pytest.raises(ValueError, match="10 random bytes"):
        uuid7(0, bytes(length))


@pytest.mark.parametrize("wrong", ["", "A" * 32, "a" * 31, "a" * 33, "g" * 32, "../" + "a" * 29])
def test_what_is_no_id_is_refused(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, HexId)
