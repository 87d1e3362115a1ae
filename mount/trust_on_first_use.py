"""The first meeting with a server on this machine: from then on its key is known.

Knows: how a certificate is asked for before anything is sent, and compared with what is known.
Must not know: passwords, tokens, where certificates are kept.

As with ssh, the key that is seen first is believed, and its fingerprint shown: `nearline serve`
prints the same. From then on another key is refused, until a person says that it is the right one.
"""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from mount.failures import Failure
from remote.protocol.certificates import fingerprint

ASK_SECONDS = 10.0


def certificate_of(url: str) -> str:
    """The certificate (PEM) that is shown at `url`, whoever shows it. Nothing but the beginning of
    a TLS handshake is sent. Raises `Failure`."""
    parts = urlsplit(url)
    where = (parts.hostname or "", parts.port or 80)
    try:
        return ssl.get_server_certificate(where, timeout=ASK_SECONDS)
    except ssl.SSLError as error:
        raise Failure(
            f"what answers at {url} shows no key; check that it is a Nearline server and of this "
            "version, or give --insecure if a proxy is there that you trust"
        ) from error
    except OSError as error:
        raise Failure(
            f"cannot connect: {url}: {error.strerror or error}; "
            "check the URL and that the server runs"
        ) from error


def accepted(url: str, shown: str, known: str | None, wanted: str | None) -> str:
    """The fingerprint of the certificate `shown`, if it is to be believed: it is the `known` one,
    it has the `wanted` fingerprint, or it is the first of this server. Raises `Failure`."""
    name = fingerprint(shown)
    if wanted is not None:
        if wanted.strip() != name:
            raise Failure(
                f"{url} has the key {name}, not {wanted.strip()}; another program answers there, "
                "or compare again with what `nearline serve` prints"
            )
        return name
    if known is not None and shown != known:
        raise Failure(
            f"{url} had the key {fingerprint(known)} and now has {name}: another program answers "
            "there, or the server was made anew; if `nearline serve` prints the new one, "
            f"add --fingerprint {name}"
        )
    return name
