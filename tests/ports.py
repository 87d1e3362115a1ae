"""Ports for servers that tests start.

Knows: how Linux and macOS choose ports by themselves. Must not know: who listens there.
"""

from __future__ import annotations

import atexit
import socket

_kept: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens, and that is nobody else's until this process
    ends: a server may come, go and come again there.

    A socket that is bound to it and does not listen keeps it. Whoever connects is refused, as at
    any free port; whoever asks the system for a port is given another one, and so is a client for
    its own end of a connection. Without that a port that is free now may be a client's when the
    server comes (or even the other end of a client's own connection to it). A server that sets
    SO_REUSEADDR, as all do that want to come back, listens there all the same (socket(7))."""
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    _kept.append(keeper)
    port: int = keeper.getsockname()[1]
    return port


@atexit.register
def _let_go() -> None:
    for keeper in _kept:
        keeper.close()
