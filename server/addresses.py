"""The client at the other end: the peer of the connection, or the one for whom a trusted proxy
speaks.

Knows: the X-Forwarded-For and X-Forwarded-Proto headers, addresses and networks. Must not know:
what addresses are used for. Pure.

Anybody can send these headers, so they count only on connections from a proxy that the operator
named; then the client is the last address in X-Forwarded-For that is not itself such a proxy,
because everything before it was written by the client.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from typing import Any

from remote.protocol import hosts

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The proxies named by `networks`: addresses, or networks such as 10.0.0.0/8. Raises ValueError
    for what is neither."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(item) for item in networks]

    def trusts(self, address: str) -> bool:
        parsed = parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def place(self, scope: MutableMapping[str, Any]) -> None:
        """Put the client's own address and scheme into an ASGI `scope`, if a proxy tells them."""
        peer = scope.get("client")
        if not self._networks or peer is None or not self.trusts(peer[0]):
            return
        forwarded = _values(scope, b"x-forwarded-for")
        client = self._last_untrusted(",".join(forwarded)) if forwarded else None
        if client is not None:
            scope["client"] = (client, 0)
        told = _values(scope, b"x-forwarded-proto")
        if len(told) == 1 and told[0] in ("http", "https"):
            is_socket = scope["type"] == "websocket"
            scope["scheme"] = told[0].replace("http", "ws") if is_socket else told[0]

    def _last_untrusted(self, forwarded: str) -> str | None:
        """The client; None when the header does not tell one, and the proxy itself has to do."""
        for item in reversed(forwarded.split(",")):
            parsed = parse(item)
            if parsed is None:
                return None
            if not self.trusts(str(parsed)):
                return str(parsed)
        return None


def parse(text: str) -> Address | None:
    """The address in `text`, which may have a port; IPv4 inside IPv6 is taken out."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def client_of(scope: MutableMapping[str, Any]) -> str:
    """The address that a request came from, for limits and logs; "" if there is none. `place` has
    to have been there before."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def limited_as(address: str) -> str:
    """The part of `address` that limits count: an IPv6 client has a whole /64 to come from."""
    return _network_of(address, 64)


def site_of(address: str) -> str:
    """The part of an address that a second limit counts: many who come by IPv6 have a whole /48,
    which is 65,536 networks. An IPv4 address is its own site."""
    return _network_of(address, 48)


@lru_cache(maxsize=4096)  # several times for each request
def _network_of(address: str, bits: int) -> str:
    parsed = parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, bits), strict=False))
    return str(parsed) if parsed is not None else address


def is_loopback(address: str) -> bool:
    parsed = parse(address)
    return parsed is not None and hosts.is_loopback(str(parsed))


def _values(scope: MutableMapping[str, Any], name: bytes) -> list[str]:
    found: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return [value.decode("latin-1").strip() for value in found]
