"""The INIT exchange, read and amended."""

import struct

import pytest

from mount.handshake import HANDLE_KILLPRIV_V2, amended, offered

OTHER = 0b1011


def asked(flags: int, opcode: int = 26) -> bytes:
    head = struct.pack("=IIQQIIII", 104, opcode, 2, 0, 0, 0, 0, 0)
    return head + struct.pack("=IIII", 7, 45, 131072, flags).ljust(64, b"\0")


def answer(flags: int = OTHER, *, size: int = 64, error: int = 0) -> bytes:
    body = struct.pack("=IIII", 7, 38, 131072, flags).ljust(size, b"x")
    return struct.pack("=IiQ", 16 + len(body), error, 2) + body


KNOWN = asked(HANDLE_KILLPRIV_V2 | OTHER)


def test_the_kernel_says_whether_it_knows_the_word() -> None:
    assert offered(KNOWN)
    assert not offered(asked(OTHER))
    assert not offered(asked(HANDLE_KILLPRIV_V2, opcode=1))
    assert not offered(KNOWN[:50])


def test_one_bit_of_the_answer_is_added_and_nothing_else_changes() -> None:
    assert amended(KNOWN, answer()) == answer(OTHER | HANDLE_KILLPRIV_V2)
    said_already = answer(OTHER | HANDLE_KILLPRIV_V2)
    assert amended(KNOWN, said_already) == said_already


@pytest.mark.parametrize(
    "answered",
    [answer(size=24), answer(size=80), answer(error=-71), answer()[:20], b"", answer()[:-1]],
)
def test_an_answer_that_is_not_understood_is_passed_on_as_it_is(answered: bytes) -> None:
    assert amended(KNOWN, answered) == answered


def test_a_kernel_that_does_not_know_the_word_is_not_told_it() -> None:
    assert amended(asked(OTHER), answer()) == answer()
