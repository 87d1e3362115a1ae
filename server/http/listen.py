"""Where the server listens, and whether that is safe.

Knows: addresses, sockets, what must be so before anybody but this machine may connect. Must not
know: what is served.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from server.addresses import is_loopback
from server.settings import BadSettings

# Addresses that mean all: nothing that a client could be told.
_ANY = ("0.0.0.0", "::")


class CannotListen(RuntimeError):
    """The address cannot be had."""


@contextlib.contextmanager
def listening(listen: str) -> Iterator[socket.socket]:
    """A socket bound to `listen`, HOST:PORT. Raises `BadSettings`, `CannotListen`."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise BadSettings(f"cannot listen on {listen!r}: write HOST:PORT, such as 127.0.0.1:8750")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, int(port)), family=family, backlog=512)
    except OSError as error:
        raise CannotListen(f"cannot listen on {listen}: {error.strerror or error}") from error
    with sock:
        yield sock


def check_safe(sock: socket.socket, *, tls: bool, proxied: bool, insecure: bool) -> None:
    """Raise `BadSettings` if others than this machine could connect without TLS: passwords, tokens
    and files would be on the network for all to read."""
    address = sock.getsockname()[0]
    if tls or proxied or insecure or is_loopback(address):
        return
    raise BadSettings(
        f"{address} is open to other machines, and there is no TLS: give --tls-cert and --tls-key, "
        "or put a proxy with TLS in front and name it in trusted_proxies, or give --insecure if "
        "you trust everybody on the network"
    )


def public_url(sock: socket.socket, chosen: str | None, *, tls: bool) -> str:
    """The origin that clients use: `chosen`, or where `sock` listens. Raises `BadSettings`."""
    if chosen is not None:
        if tls and not chosen.startswith("https:"):
            raise BadSettings(f"public URL {chosen!r}: this server speaks TLS, write https://...")
        return chosen.rstrip("/")
    host, port = sock.getsockname()[:2]
    if host in _ANY:
        raise BadSettings(
            f"{host} is no address that clients can use: give the URL that they use with "
            "--public-url, such as https://files.example.org"
        )
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{host}:{port}"
