"""The client at the other end, and the clients for whom proxies may speak."""

from __future__ import annotations

from typing import Any

import pytest

from server.addresses import TrustedProxies, client_of, is_loopback, limited_as


def placed(proxies: list[str], peer: str | None, *headers: tuple[str, str]) -> dict[str, Any]:
    scope: dict[str, Any] = {
        "type": "http",
        "scheme": "http",
        "client": None if peer is None else (peer, 1234),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    TrustedProxies(proxies).place(scope)
    return scope


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "9.9.9.9, 1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "1.2.3.4, 10.0.0.7", "1.2.3.4"),
        ("10.0.0.1", "1.2.3.4:5555", "1.2.3.4"),
        ("10.0.0.1", "[2001:db8::1]:5555", "2001:db8::1"),
        ("::ffff:10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "10.0.0.7", "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4, nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("8.8.8.8", "1.2.3.4", "8.8.8.8"),
        ("127.0.0.1", "1.2.3.4", "127.0.0.1"),
        (None, "1.2.3.4", ""),
    ],
)
def test_only_named_proxies_speak_for_others(peer: str, forwarded: str, client: str) -> None:
    assert client_of(placed(["10.0.0.0/8"], peer, ("x-forwarded-for", forwarded))) == client


def test_several_headers_are_one_list() -> None:
    headers = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]
    assert client_of(placed(["10.0.0.1"], "10.0.0.1", *headers)) == "2.2.2.2"


def test_nobody_is_trusted_unless_named() -> None:
    scope = placed([], "127.0.0.1", ("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"))
    assert (client_of(scope), scope["scheme"]) == ("127.0.0.1", "http")


def test_the_scheme_comes_from_the_proxy_too() -> None:
    told = ("x-forwarded-proto", "https")
    assert placed(["10.0.0.1"], "10.0.0.1", told)["scheme"] == "https"
    assert placed(["10.0.0.1"], "10.0.0.1", told, told)["scheme"] == "http"
    assert placed(["10.0.0.1"], "10.0.0.2", told)["scheme"] == "http"
    assert placed(["10.0.0.1"], "10.0.0.1", ("x-forwarded-proto", "gopher"))["scheme"] == "http"


@pytest.mark.parametrize("wrong", ["host.example", "10.0.0.1/8", "10.0.0.0/33", ""])
def test_what_is_no_network_is_said_so(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"address|network|host bits"):
        TrustedProxies([wrong])


def test_an_ipv6_client_counts_by_its_network() -> None:
    assert limited_as("2001:db8:1:2:3::4") == limited_as("2001:db8:1:2:9::9") == "2001:db8:1:2::/64"
    assert limited_as("2001:db8:1:3::1") != limited_as("2001:db8:1:2::1")
    assert limited_as("::ffff:1.2.3.4") == limited_as("1.2.3.4") == "1.2.3.4"
    assert limited_as("testclient") == "testclient"


def test_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.168.1.1")
