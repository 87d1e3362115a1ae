"""The server's secrets: made at first start, kept in DATA/keys, readable by their owner only.

Knows: which keys exist and how they are stored. Must not know: what is signed with them.

    edge.pem      ECDSA P-256: signs GET URLs. nginx or CloudFront are given the public half.
    put.secret    HMAC: signs PUT URLs, which only this server verifies.
    cursor.secret HMAC: authenticates feed cursors.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server import datadir


@dataclass(frozen=True)
class Keys:
    edge: ec.EllipticCurvePrivateKey
    edge_id: str
    put: bytes
    cursor: bytes


class BadKey(RuntimeError):
    """A key file is damaged or of another kind; restore it, or remove it to make a new one."""


def load_keys(directory: Path) -> Keys:
    """The keys in `directory`, made there if they are missing. Raises `BadKey`."""
    datadir.make(directory)
    pem = _load(directory / "edge.pem", _new_edge_key)
    try:
        edge = serialization.load_pem_private_key(pem, password=None)
    except ValueError as error:
        raise BadKey(f"{directory / 'edge.pem'}: {error}") from error
    if not isinstance(edge, ec.EllipticCurvePrivateKey):
        raise BadKey(f"{directory / 'edge.pem'} is not an elliptic curve key")
    put = _load(directory / "put.secret", lambda: secrets.token_bytes(32))
    cursor = _load(directory / "cursor.secret", lambda: secrets.token_bytes(32))
    return Keys(edge, _key_id(edge.public_key()), put, cursor)


def _new_edge_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _key_id(public: ec.EllipticCurvePublicKey) -> str:
    """The key's name in URLs: a key made anew has a new name, so old URLs fail cleanly."""
    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "K" + hashlib.sha256(der).hexdigest()[:15].upper()


def _load(path: Path, make: Callable[[], bytes]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    return write_private(path, make())


def write_private(path: Path, data: bytes) -> bytes:
    """Write `data` to `path`, mode 0600, so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    temporary.rename(path)
    return data
