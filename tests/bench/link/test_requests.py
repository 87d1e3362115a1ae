"""Requests are counted however the bytes are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bench.link.requests import HEAD_LIMIT, Requests

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
PLAIN = [
    (GET, 1),
    (b"PUT /b HTTP/1.1\r\ncontent-length: 12\r\n\r\nGET / HTTP/1", 1),
    (
        b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;x=y\r\nGET /\r\nA\r\n0123456789\r\n0\r\n\r\n",
        1,
    ),
    (b"PROPFIND /d HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 1),
]


@given(
    st.lists(st.sampled_from(PLAIN), max_size=6),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_the_count_does_not_depend_on_the_cuts(
    messages: list[tuple[bytes, int]], cuts: list[int]
) -> None:
    whole = b"".join(data for data, _ in messages)
    requests, edges = Requests(), sorted({0, len(whole), *(c for c in cuts if c < len(whole))})
    for start, end in itertools.pairwise(edges):
        requests.feed(whole[start:end])
    assert requests.count == len(messages)
    assert not requests.lost


@given(st.binary(max_size=300), st.integers(1, 50))
def test_whatever_comes_no_byte_is_an_exception(data: bytes, size: int) -> None:
    requests = Requests()
    for at in range(0, len(data), size):
        requests.feed(data[at : at + size])


def test_what_is_upgraded_is_not_looked_at_any_more() -> None:
    requests = Requests()
    requests.feed(b"GET /live HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    requests.feed(GET)
    assert requests.count == 1
    assert requests.lost


def test_what_is_no_http_counts_nothing_and_is_not_kept() -> None:
    requests = Requests()
    requests.feed(b"*1\r\n$4\r\nPING\r\n\r\n" + GET)
    assert (requests.count, requests.lost) == (0, True)
    endless = Requests()
    for _ in range(3):
        endless.feed(b"x" * HEAD_LIMIT)
    assert (endless.count, endless.lost) == (0, True)


def test_a_wrong_length_loses_the_rest() -> None:
    for head in (b"Content-Length: many\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nmany\r\n"):
        requests = Requests()
        requests.feed(b"PUT / HTTP/1.1\r\n" + head + GET)
        assert (requests.count, requests.lost) == (1, True)
