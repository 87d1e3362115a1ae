"""mount/trust_on_first_use.py: whose key is believed."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import trustme

from mount import trust_on_first_use
from mount.failures import Failure
from remote.protocol.certificates import fingerprint

URL = "http://127.0.0.1:1"
ISSUED = trustme.CA().issue_cert("127.0.0.1")
ONE = ISSUED.cert_chain_pems[0].bytes().decode()
OTHER = trustme.CA().cert_pem.bytes().decode()


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A program that takes one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, suppress(OSError):
                answer(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_the_certificate_is_asked_for_and_nothing_is_said() -> None:
    said = []

    def answer(sock: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ISSUED.configure_cert(context)
        with context.wrap_socket(sock, server_side=True) as tls:
            said.append(tls.recv(100))

    with answering(answer) as url:
        shown = trust_on_first_use.certificate_of(url)
    assert fingerprint(shown) == fingerprint(ONE)
    assert said in ([], [b""])


def test_what_shows_no_key_is_said_so() -> None:
    with (
        answering(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as url,
        pytest.raises(Failure, match="shows no key; check"),
    ):
        trust_on_first_use.certificate_of(url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Failure, match="check the URL and that the server runs"):
        trust_on_first_use.certificate_of(f"http://127.0.0.1:{port}")


def test_the_first_key_is_believed_and_then_no_other() -> None:
    name = trust_on_first_use.accepted(URL, ONE, None, None)
    assert name == fingerprint(ONE)
    assert name.startswith("SHA256:")
    assert trust_on_first_use.accepted(URL, ONE, ONE, None) == name
    with pytest.raises(Failure, match=r"now has SHA256:.*add --fingerprint SHA256:"):
        trust_on_first_use.accepted(URL, ONE, OTHER, None)


def test_a_fingerprint_decides() -> None:
    assert trust_on_first_use.accepted(URL, ONE, OTHER, fingerprint(ONE)) == fingerprint(ONE)
    for known in (None, ONE):
        with pytest.raises(Failure, match="another program answers there"):
            trust_on_first_use.accepted(URL, ONE, known, fingerprint(OTHER))
