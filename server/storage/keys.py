"""The server's secrets: made at first start, kept in DATA/keys, readable by their owner only.

Knows: which keys exist, how they are stored and exchanged. Must not know: what is signed with them.

    edge.pem      ECDSA P-256: signs GET URLs. nginx or CloudFront are given the public half.
    put.secret    HMAC: signs PUT URLs and the cookies of links, which only this server verifies.
    cursor.secret HMAC: authenticates feed cursors.
    server.pem    the server's own certificate and its key: see `http.certificate`.

    edge-MOMENT.pub, put-MOMENT.secret, cursor-MOMENT.secret    what was there before a rotation

A rotation makes all three anew. MOMENT is when it was, in unix seconds: URLs that were signed
before are verified until the last of them has expired, and cursors for as long as the feed itself
is kept. After that the file means nothing any more, and the next rotation removes it. Of the edge's
key only the public half is kept. Each step leaves keys that work, so a rotation that was
interrupted is begun again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from remote.protocol.signing import LONGEST_SECONDS, SKEW_SECONDS
from server import datadir
from server.durable import write_private

# How long a running server may take to notice a rotation; it signs as before meanwhile.
NOTICE_SECONDS = 60
URL_SECONDS = LONGEST_SECONDS + SKEW_SECONDS + NOTICE_SECONDS
# How long a cursor from before a rotation is taken: as long as a change is kept (`gc`). Older ones
# are refused, and their clients begin from a listing, as they would have had to anyway.
CURSOR_SECONDS = 90 * 86_400

_SECRET_BYTES = 32
_PAST = re.compile(r"(edge|put|cursor)-([0-9]{1,15})\.(?:pub|secret)")


@dataclass(frozen=True)
class Keys:
    """The keys that sign, and those from before rotations that still verify: of URLs each with the
    latest expiry (unix seconds) that it was ever signed for."""

    edge: ec.EllipticCurvePrivateKey
    edge_id: str
    put: bytes
    cursor: bytes
    past_edges: tuple[tuple[ec.EllipticCurvePublicKey, int], ...] = ()
    past_puts: tuple[tuple[bytes, int], ...] = ()
    past_cursors: tuple[bytes, ...] = ()

    @property
    def edges(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """The keys that verify GET URLs, by key id."""
        past = {key_id(public): public for public, _ in self.past_edges}
        return past | {self.edge_id: self.edge.public_key()}

    @property
    def until(self) -> dict[str, int]:
        """The ids of edge keys from before, with the latest expiry of each."""
        past = {key_id(public): until for public, until in self.past_edges}
        return {id: until for id, until in past.items() if id != self.edge_id}

    @property
    def puts(self) -> tuple[tuple[bytes, int | None], ...]:
        """The keys that verify PUT URLs and cookies, the one that signs first."""
        return ((self.put, None), *self.past_puts)


class BadKey(RuntimeError):
    """A key file is damaged or of another kind; restore it, or remove it to make a new one."""


def load_keys(directory: Path, now: int) -> Keys:
    """The keys in `directory`, made there if they are missing, as they are good at `now` (unix
    seconds). Raises `BadKey`."""
    datadir.make(directory)
    _check_place(directory)
    edge = _private(directory / "edge.pem")
    past = [item for item in _past(directory) if item.ends > now]
    return Keys(
        edge,
        key_id(edge.public_key()),
        _secret(directory / "put.secret"),
        _secret(directory / "cursor.secret"),
        tuple((_public(item.path), item.ends) for item in past if item.kind == "edge"),
        tuple((_secret(item.path), item.ends) for item in past if item.kind == "put"),
        tuple(_secret(item.path) for item in past if item.kind == "cursor"),
    )


def rotate_keys(directory: Path, now: int, *, overlap: bool = True) -> Keys:
    """Make every key anew. What was signed before stays good for as long as it was signed for, or
    without `overlap` ends at once; but for cursors, with which nothing is to be had. Raises
    `BadKey`."""
    before = load_keys(directory, now)
    for item in _past(directory):
        if item.ends <= now or not (overlap or item.kind == "cursor"):
            item.path.unlink()
    write_private(directory / f"cursor-{now}.secret", before.cursor)
    if overlap:
        write_private(directory / f"edge-{now}.pub", _public_pem(before.edge))
        write_private(directory / f"put-{now}.secret", before.put)
    write_private(directory / "edge.pem", _new_edge_key())
    write_private(directory / "put.secret", _new_secret())
    write_private(directory / "cursor.secret", _new_secret())
    return load_keys(directory, now)


def _check_place(directory: Path) -> None:
    """Root makes and removes files there for the user whose data it is, and in no place that a link
    of theirs leads to. Raises `BadKey`."""
    owner = directory.parent.stat().st_uid
    if os.geteuid() != 0 or owner == 0:
        return
    if directory.is_symlink() or directory.stat().st_uid != owner:
        raise BadKey(f"{directory} is no directory of user {owner}, whose data it is in")


class _Past(NamedTuple):
    """A file with a key from before a rotation, which verifies nothing from `ends` on."""

    path: Path
    kind: str
    ends: int


def _past(directory: Path) -> list[_Past]:
    """Of every rotation, the newest first."""
    found = []
    for path in directory.iterdir():
        match = _PAST.fullmatch(path.name)
        if match is not None:
            lasts = CURSOR_SECONDS if match[1] == "cursor" else URL_SECONDS
            found.append(_Past(path, match[1], int(match[2]) + lasts))
    return sorted(found, key=lambda each: each.ends, reverse=True)


# --- the edge's key -----------------------------------------------------------------------------


def key_id(public: ec.EllipticCurvePublicKey) -> str:
    """The key's name in URLs: a key made anew has a new name, so old URLs fail cleanly."""
    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "K" + hashlib.sha256(der).hexdigest()[:15].upper()


def _new_edge_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _private(path: Path) -> ec.EllipticCurvePrivateKey:
    pem = kept(path, _new_edge_key)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except ValueError as error:
        raise BadKey(f"{path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadKey(f"{path} is not an elliptic curve key")
    return key


def _public(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(_read(path))
    except ValueError as error:
        raise BadKey(f"{path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadKey(f"{path} is not an elliptic curve key")
    return key


# --- files --------------------------------------------------------------------------------------


def _new_secret() -> bytes:
    return secrets.token_bytes(_SECRET_BYTES)


def _secret(path: Path) -> bytes:
    """Whoever knew that one is empty, or nearly, could sign with it."""
    secret = kept(path, _new_secret)
    if len(secret) != _SECRET_BYTES:
        raise BadKey(
            f"{path} has {len(secret)} bytes, not {_SECRET_BYTES}; restore it from a backup, or"
            " remove it: then what it signed is refused"
        )
    return secret


def kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of the private file `path`; that of `make`, if there was none. Raises
    `BadKey`."""
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    return write_private(path, make())


def _read(path: Path) -> bytes:
    """The content of a key file. It may have been put there by the user that the server runs as,
    and root's command copies it for them: so no link of theirs is followed, to no file that is not
    theirs. Raises `BadKey`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise BadKey(f"{path} is a link; put the file itself there") from error
    with os.fdopen(fd, "rb") as file:
        found, owner = os.fstat(fd), path.parent.stat().st_uid
        if not stat.S_ISREG(found.st_mode) or (os.geteuid() == 0 and found.st_uid != owner):
            raise BadKey(f"{path} is no file of user {owner}, whose keys these are; remove it")
        return file.read()
