"""The server's own TLS.

Knows: certificate files and what protocol versions are good enough. Must not know: sockets, HTTP.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import structlog

from server.settings import BadSettings

log = structlog.get_logger("nearline.server")


class Tls(NamedTuple):
    """The TLS of a server. `only`: it speaks nothing else."""

    context: ssl.SSLContext
    only: bool


class Certificate:
    """A certificate chain and its key in PEM files, as a TLS context for servers.

    Raises `BadSettings` if they cannot be used.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self.context = self._load()

    def reload(self) -> None:
        """Use what the files hold now for new connections; if that cannot be used, go on with what
        there was, and say so in the log."""
        try:
            self._load()
            self.context.load_cert_chain(self._cert, self._key)
        except (BadSettings, OSError) as error:
            log.error("certificate_not_reloaded", error=str(error))
        else:
            log.info("certificate_reloaded", file=str(self._cert))

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            message = f"cannot use the certificate {self._cert} with the key {self._key}: {reason}"
            raise BadSettings(
                f"{message}; both are PEM files, the key without a password"
            ) from error
        return context


def _no_password() -> str:
    raise ValueError("the key has a password")
