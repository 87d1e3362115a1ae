"""The server's own certificate, by which clients on its machine know it.

Knows: how it is made and where it is. Must not know: who looks at it, sockets.

    DATA/keys/server.pem      key and certificate, made at the first start
    DATA/server.certificate   the certificate alone, for `nearline up` and for `curl --cacert`
    DATA/server.fingerprint   its name for people: what `nearline login` shows

The last two are there while the server uses it: not when its operator gave another certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from remote.protocol.certificates import fingerprint
from server import datadir
from server.durable import write_private
from server.http.tls import Certificate
from server.settings import BadSettings
from server.storage.keys import BadKey, kept

KEY_NAME = "server.pem"
CERTIFICATE_NAME = "server.certificate"
FINGERPRINT_NAME = "server.fingerprint"

# Good at all times (RFC 5280, 4.1.2.5): clients compare the certificate itself, and a clock that is
# wrong must not keep anybody from their files.
_FROM = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_BEGIN = "-----BEGIN CERTIFICATE-----"


class Identity:
    """A server's key and certificate. `context` is TLS with them, `certificate` PEM."""

    def __init__(self, data_dir: Path) -> None:
        """Those in `data_dir`, made if they are missing. Raises `BadKey`."""
        directory = data_dir / "keys"
        datadir.make(directory)
        file = directory / KEY_NAME
        pem = kept(file, _new).decode("ascii", "replace")
        self.certificate = pem[pem.find(_BEGIN) :] if _BEGIN in pem else ""
        try:
            self.context = Certificate(file, file).context
            self.fingerprint = fingerprint(self.certificate)
        except (BadSettings, ValueError) as error:
            raise BadKey(
                f"{file} is no key with its certificate; restore it from a backup, or remove it: "
                "then every device of this machine has to log in again"
            ) from error
        # Nobody resumes sessions: connections are kept instead.
        self.context.num_tickets = 0

    def tell(self, data_dir: Path) -> None:
        """Write down what is public."""
        write_private(data_dir / CERTIFICATE_NAME, self.certificate.encode())
        write_private(data_dir / FINGERPRINT_NAME, self.fingerprint.encode() + b"\n")


def tell_nothing(data_dir: Path) -> None:
    """The server on this data is not known by a certificate of its own."""
    for name in (CERTIFICATE_NAME, FINGERPRINT_NAME):
        (data_dir / name).unlink(missing_ok=True)


def _new() -> bytes:
    # Here, because it is needed once in a server's life: loading it would delay every start.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a Nearline server")])
    here = [x509.IPAddress(ipaddress.ip_address(item)) for item in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *here]), False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return secret + certificate.public_bytes(serialization.Encoding.PEM)
