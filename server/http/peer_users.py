"""The user at the other end of a connection from this machine.

Knows: Linux's sock_diag (sock_diag(7)), which finds a socket by its two addresses. Must not know:
what users are told apart for.

The kernel is asked for the one socket by its addresses, which takes some tens of microseconds
however many sockets there are. /proc/net/tcp tells the same, but all of it has to be read, and a
flood of connections makes it long. Elsewhere than on Linux, and where the kernel does not answer,
nobody is told apart.

Concurrency: each object belongs to one thread, the event loop's.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

Address = tuple[str, int]
# The user id of the socket that has the first address and is connected to the second; None: not
# known.
UserOf = Callable[[Address, Address], int | None]

# From linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
# Length, type, flags, sequence number, port.
_HEADER = struct.Struct("=IHHII")
_ANY_COOKIE = b"\xff" * 8
_SOCKET_ID_BYTES = 48
# Of struct inet_diag_msg: four bytes, the socket's id, expires, two queues, and then the user id.
_USER_AT = _HEADER.size + 4 + _SOCKET_ID_BYTES + 12
_ANSWER_BYTES = 8192


class PeerUsers:
    """Asks the kernel. `of` is a `UserOf`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sequence = 0

    def of(self, there: Address, here: Address) -> int | None:
        """The user id of the socket at `there` that is connected to `here`, both numeric."""
        try:
            return self._ask(there, here)
        except OSError:  # no sock_diag in this kernel or sandbox
            self.close()
            return None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, there: Address, here: Address) -> int | None:
        if not hasattr(socket, "AF_NETLINK"):
            return None
        if self._socket is None:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        asked = _question(there, here)
        length = _HEADER.size + len(asked)
        head = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(head + asked)
        # The kernel has answered when `send` returns, so nothing is waited for here.
        answer = self._socket.recv(_ANSWER_BYTES)
        _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
        if sequence != self._sequence:
            raise OSError("sock_diag answered something else")
        if kind != _SOCK_DIAG_BY_FAMILY:  # an error: there is no such socket any more
            return None
        user: int = struct.unpack_from("=I", answer, _USER_AT)[0]
        return user


def _question(there: Address, here: Address) -> bytes:
    """A struct inet_diag_req_v2 for one TCP socket in any state."""
    family = socket.AF_INET6 if ":" in there[0] else socket.AF_INET
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    ports = struct.pack("!HH", there[1], here[1])
    addresses = [socket.inet_pton(family, item[0]).ljust(16, b"\0") for item in (there, here)]
    return request + ports + b"".join(addresses) + struct.pack("=I", 0) + _ANY_COOKIE
