"""Which hosts are this machine. Pure: nothing is resolved.

Knows: addresses, and the names that RFC 6761 (section 6.3) keeps for loopback. Must not know: what
follows from it (`http://` to this machine needs the server's key, to another one `--insecure`).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """True if `host` (a name or an address, without brackets and port) is this machine by its
    name. `localhost` and every name below it are; whoever resolves `nas.localhost` to another
    machine meets somebody without the key."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_on_this_machine(url: str) -> bool:
    """True if the host of `url` is this machine."""
    return is_loopback(urlsplit(url).hostname or "")
