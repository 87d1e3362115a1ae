"""The certificate that a server on this machine is known by: pinned.

Knows: how a certificate is named for people, and how TLS is told to trust that one and nothing
else. Must not know: where certificates are kept, HTTP. No I/O.

Another program on this machine may have the port that a server had. It can have neither the
server's key nor, signed by whomever, another certificate that is taken.
"""

from __future__ import annotations

import base64
import hashlib
import ssl


def fingerprint(certificate: str) -> str:
    """`SHA256:` and the Base64 of the hash of a certificate in PEM, as ssh names keys. Raises
    ValueError for what is none."""
    der = ssl.PEM_cert_to_DER_cert(certificate)
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def trusting(certificate: str) -> ssl.SSLContext:
    """TLS for a client that speaks to the holder of this certificate's key only, at whatever
    address. Raises ssl.SSLError for what is no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The certificate itself is the anchor, also one that an authority has signed.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context
