"""server/http/peer_users.py: whose a connection from this machine is."""

from __future__ import annotations

import ctypes
import os
import socket

import pytest

from server.http.peer_users import PeerUsers

NOBODY = 65534


def connection(family: int, host: str, user: int | None = None) -> list[socket.socket]:
    """Listener, client and accepted socket. The client is made as `user`: the user of a socket is
    that of the thread which made it."""
    listener = socket.create_server((host, 0), family=family)
    if user is not None:
        ctypes.CDLL(None).setfsuid(user)
    try:
        client = socket.socket(family)
    finally:
        if user is not None:
            ctypes.CDLL(None).setfsuid(os.geteuid())
    client.connect(listener.getsockname()[:2])
    return [listener, client, listener.accept()[0]]


def asked(users: PeerUsers, sockets: list[socket.socket]) -> int | None:
    accepted = sockets[-1]
    return users.of(accepted.getpeername()[:2], accepted.getsockname()[:2])


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_users_are_told_apart(family: int, host: str) -> None:
    users = PeerUsers()
    wanted = [None, NOBODY, None] if os.geteuid() == 0 else [None]
    for user in wanted:
        sockets = connection(family, host, user)
        assert asked(users, sockets) == (os.geteuid() if user is None else user)
        for item in sockets:
            item.close()
    users.close()


def test_a_connection_that_is_not_there_is_nobodys() -> None:
    users = PeerUsers()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert users.of(("127.0.0.1", port), ("127.0.0.1", port)) is None
    sockets = connection(socket.AF_INET, "127.0.0.1")
    assert asked(users, sockets) == os.geteuid()  # and it goes on afterwards
    for item in sockets:
        item.close()
    users.close()


def test_where_the_kernel_does_not_tell_nobody_is_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    assert PeerUsers().of(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
