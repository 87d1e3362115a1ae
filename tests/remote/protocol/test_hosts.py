from __future__ import annotations

import pytest

from remote.protocol.hosts import is_loopback, is_on_this_machine


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("nas.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("192.168.1.5", False),
        ("::", False),
        ("", False),
    ],
)
def test_which_hosts_are_this_machine(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


def test_of_a_url_only_the_host_counts() -> None:
    assert is_on_this_machine("http://[::1]:8750/path")
    assert is_on_this_machine("http://Nas.localhost")
    assert not is_on_this_machine("http://nas.example/?at=localhost")
    assert not is_on_this_machine("http://localhost@nas.example/")
