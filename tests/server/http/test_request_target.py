"""Which request targets are let in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.request_target import MAX_BYTES, fault, is_origin_form


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (b"/", b""),
        (b"/v1/me", b""),
        (b"/v1/changes", b"cursor=AbC-_9&limit=3"),
        (b"/chunks/0a/0b", b"Expires=1&Signature=a~b_&Key-Pair-Id=k"),
        (b"/blobs/0a/0b", b"X-Amz-Credential=k%2F2026%2Fx&X-Amz-SignedHeaders=a%3Bb"),
        (b"/v1/files/a%20b", b"q=%C3%A9&empty=&bare"),
        (b"/a.b/..c/c../...", b"x=../.."),
        (b"/" + b"a" * (MAX_BYTES - 1), b""),
    ],
)
def test_what_clients_send_is_let_in(path: bytes, query: bytes) -> None:
    assert fault(path, query) is None


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"*",
        b"v1/me",
        b"http://host/v1/me",
        b"/v1//me",
        b"//v1/me",
        b"/v1/me//",
        b"/.",
        b"/..",
        b"/v1/./me",
        b"/v1/../me",
        b"/v1/me/..",
        b"/v1/%2e%2e/me",
        b"/v1/%2E/me",
        b"/v1/.%2e/me",
        b"/v1%2fme",
        b"/v1%2Fme",
        b"/v1%5cme",
        b"/v1%5Cme",
        b"/v1\\me",
        b"/v1/me%00",
        b"/v1/me%",
        b"/v1/me%2",
        b"/v1/me%zz",
        b"/v1/m\xc3\xa9",
        b"/v1/m e",
        b"/v1/me\t",
        b"/v1/me\x7f",
        b"/v1/me#x",
        b"/" + b"a" * MAX_BYTES,
    ],
)
def test_paths_that_could_be_read_in_two_ways(path: bytes) -> None:
    assert fault(path, b"") is not None


@pytest.mark.parametrize(
    "query",
    [
        b"cursor=a&cursor=b",
        b"cursor=a&cursor=a",
        b"Expires=1&Signature=a&%45xpires=2",
        b"a+b=1&a%20b=2",
        b"a&a",
        b"a=%00",
        b"a=%",
        b"a=\xff",
        b"a= b",
        b"a=b#c",
        b"a=" + b"b" * MAX_BYTES,
    ],
)
def test_queries_that_could_be_read_in_two_ways(query: bytes) -> None:
    assert fault(b"/v1/me", query) is not None


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_whatever_is_let_in_is_plain(path: bytes, query: bytes) -> None:
    if fault(b"/" + path, query) is None:
        whole = b"/" + path + b"?" + query
        assert is_origin_form(whole)
        assert all(0x21 <= byte <= 0x7E for byte in whole)
        assert not {b".", b".."} & set(path.split(b"/"))
