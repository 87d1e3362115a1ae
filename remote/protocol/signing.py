"""Signed URLs: what lets a client move bytes past the API, for minutes and for one object.

Knows: two canonical strings and how they are signed. Must not know: which keys exist, the clock
(`now` and `expires` are unix seconds given as arguments), who is asking, HTTP.

A PUT URL is signed with a secret that only the server has (HMAC-SHA256): the same process issues
and verifies it. Its signature covers method, path, exact length, SHA-256, expiry, and for whose
upload (if any) it is to prove that the sender has the bytes.

A GET URL is CloudFront's canned-policy signed URL (Amazon CloudFront Developer Guide, "Create a
signed URL using a canned policy", with the ECDSA P-256 keys and `Hash-Algorithm=SHA256` of its
current edition), so that the embedded edge, nginx and CloudFront verify the same bytes.

Invariants:
- A URL has one accepted spelling. Parameters come in one order, each once; paths are plain ASCII
  without `%`, `..`, `//`, query or fragment of their own. Anything else is refused unread, so that
  no two programs on the way can disagree about which object was signed.
- An ECDSA signature is accepted only in canonical DER with low s (n - s would verify as well), and
  base64 only in its canonical spelling: a URL cannot be altered in any byte and still be accepted.
- A URL is good while `now < expires`, and only if `expires` is no further off than any that we sign
  (`LONGEST_SECONDS`): one that would be good for years was signed by somebody else who has the key.
  A key that was rotated out has signed nothing that expires later than it says.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

PUT_TAG = b"nearline put v1"

# The order of the group of P-256 (SEC 2 version 2, section 2.4.2).
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

# No URL lives longer, whatever is configured: garbage collection counts on it.
LONGEST_SECONDS = 3600
# So much further away an expiry may look: the clock may have been set back since it was signed.
SKEW_SECONDS = 60

_ECDSA = ec.ECDSA(hashes.SHA256())
_TO_CLOUDFRONT = str.maketrans("+=/", "-_~")
_FROM_CLOUDFRONT = str.maketrans("-_~", "+=/")

_PATH = re.compile(r"/(?:[A-Za-z0-9_.~-]+/)*[A-Za-z0-9_.~-]+", re.ASCII)
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?", re.ASCII)
_PUT_QUERY = re.compile(
    r"expires=([1-9][0-9]{0,15})(?:&proof=([0-9a-f]{32}))?&signature=([0-9a-f]{64})", re.ASCII
)
_PROOF = re.compile(r"[0-9a-f]{32}", re.ASCII)
_GET_QUERY = re.compile(
    r"Expires=([1-9][0-9]{0,15})&Signature=([A-Za-z0-9~_-]+)"
    r"&Key-Pair-Id=([A-Za-z0-9]+)&Hash-Algorithm=SHA256",
    re.ASCII,
)
_KEY_ID = re.compile(r"[A-Za-z0-9]+", re.ASCII)
_EXPIRES = re.compile(r"[?&][Ee]xpires=([1-9][0-9]{0,15})(?:&|$)", re.ASCII)


class BadSignature(ValueError):
    """A URL that was not signed by us, not for this request, or not for this moment."""


# --- PUT: the server's own secret ---------------------------------------------------------------


def sign_put(
    secret: bytes,
    *,
    path: str,
    length: int,
    sha256: bytes,
    expires: int,
    proof: str | None = None,
) -> str:
    """The query string that permits one PUT of `length` bytes hashing to `sha256` at `path`.

    `path` is the absolute path of the URL; `sha256` is the raw 32-byte digest; `expires` is in
    unix seconds. `proof` is the version (32 hex digits) for whose upload the PUT is to show that
    the sender has the bytes. Raises `BadSignature` for what has more than one spelling.
    """
    _check_path(path)
    if proof is not None and not _PROOF.fullmatch(proof):
        raise BadSignature("a version is 32 hex digits")
    signature = _put_mac(secret, path, length, sha256, expires, proof)
    shown = "" if proof is None else f"&proof={proof}"
    return f"expires={expires}{shown}&signature={signature}"


def verify_put(
    secret: bytes,
    *,
    path: str,
    query: str,
    length: int,
    sha256: bytes,
    now: int,
    until: int | None = None,
) -> str | None:
    """The `proof` of a query that permits this very PUT at `now`; raise `BadSignature` if it does
    not. `until`: the secret was rotated out, and what expires later was not signed with it."""
    _check_path(path)
    match = _PUT_QUERY.fullmatch(query)
    if match is None:
        raise BadSignature("the query is not the one that was signed")
    expires, proof = int(match[1]), match[2]
    expected = _put_mac(secret, path, length, sha256, expires, proof)
    if not hmac.compare_digest(expected, match[3]):
        raise BadSignature("the signature does not cover this path, length and hash")
    check_time(expires, now, until)
    return str(proof) if proof is not None else None


def _put_mac(
    secret: bytes, path: str, length: int, sha256: bytes, expires: int, proof: str | None
) -> str:
    if len(sha256) != 32:
        raise BadSignature(f"a SHA-256 has 32 bytes, not {len(sha256)}")
    lines = [PUT_TAG, b"PUT", path.encode("ascii"), b"%d" % length, sha256.hex().encode(),
             b"%d" % expires]  # fmt: skip
    if proof is not None:
        lines.append(b"proof " + proof.encode("ascii"))
    return hmac.new(secret, b"\n".join(lines), hashlib.sha256).hexdigest()


# --- GET: CloudFront's canned policy ------------------------------------------------------------


def canned_policy(url: str, expires: int) -> str:
    """The JSON text whose SHA-256 is signed, without white space, as CloudFront rebuilds it."""
    when = f'{{"DateLessThan":{{"AWS:EpochTime":{expires}}}}}'
    return f'{{"Statement":[{{"Resource":"{url}","Condition":{when}}}]}}'


def sign_get(key: ec.EllipticCurvePrivateKey, key_id: str, url: str, expires: int) -> str:
    """`url` with the parameters that permit its GET until `expires` (unix seconds).

    `url` is absolute, without query or fragment; `key` is on P-256; `key_id` is letters and digits.
    Raises `BadSignature` for a URL that has more than one spelling.
    """
    _check_url(url)
    if not _KEY_ID.fullmatch(key_id):
        raise BadSignature("a key id is letters and digits")
    der = key.sign(canned_policy(url, expires).encode("ascii"), _ECDSA)
    r, s = decode_dss_signature(der)
    low = encode_dss_signature(r, min(s, _P256_ORDER - s))
    signature = base64.b64encode(low).decode("ascii").translate(_TO_CLOUDFRONT)
    return (
        f"{url}?Expires={expires}&Signature={signature}&Key-Pair-Id={key_id}&Hash-Algorithm=SHA256"
    )


def verify_get(
    public_keys: Mapping[str, ec.EllipticCurvePublicKey],
    url: str,
    now: int,
    until: Mapping[str, int] = MappingProxyType({}),
    longest: int = LONGEST_SECONDS,
) -> str:
    """The resource URL that `url` permits to GET at `now`; raise `BadSignature` if it does not.

    `public_keys` maps key ids to P-256 keys. `until` has the ids of those that were rotated out:
    what expires later was not signed with them. One that is over is simply absent.
    """
    resource, _, query = url.partition("?")
    _check_url(resource)
    match = _GET_QUERY.fullmatch(query)
    if match is None:
        raise BadSignature("the query is not that of a signed URL")
    expires = int(match[1])
    public_key = public_keys.get(match[3])
    if public_key is None:
        raise BadSignature(f"no key is called {match[3]}")
    try:
        public_key.verify(
            _canonical_der(match[2]), canned_policy(resource, expires).encode("ascii"), _ECDSA
        )
    except InvalidSignature:
        raise BadSignature("the signature does not cover this URL and expiry") from None
    check_time(expires, now, until.get(match[3]), longest)
    return resource


def check_time(
    expires: int, now: int, until: int | None = None, longest: int = LONGEST_SECONDS
) -> None:
    """Raise `BadSignature` unless something that we signed to end at `expires` is good at `now`.
    `until`: what expires later was not signed with that key. `longest`: seconds that such a thing
    is ever signed for."""
    if now >= expires:
        raise BadSignature(f"the URL expired {now - expires} s ago")
    if expires > now + longest + SKEW_SECONDS:
        raise BadSignature("the URL would be good for longer than any that is signed here")
    if until is not None and expires > until:
        raise BadSignature("the URL is signed with a key of before; ask for a new one")


def expires_of(url: str) -> int | None:
    """When a signed URL (PUT or GET) stops working, in unix seconds; None if it does not say.

    For clients, which hold no key: it plans a renewal and proves nothing.
    """
    match = _EXPIRES.search(url)
    return int(match[1]) if match else None


# --- the one accepted spelling ------------------------------------------------------------------


def _check_path(path: str) -> None:
    if not _PATH.fullmatch(path) or any(part in (".", "..") for part in path.split("/")):
        raise BadSignature("the path is not in its one plain spelling")


def _check_url(url: str) -> None:
    match = _ORIGIN.match(url)
    if match is None:
        raise BadSignature("the URL is not absolute, or its host is not in plain lower case")
    _check_path(url[match.end() :])


def _canonical_der(signature: str) -> bytes:
    """The DER bytes of a signature in CloudFront's base64; raise `BadSignature` if it could be
    spelled otherwise."""
    text = signature.translate(_FROM_CLOUDFRONT)
    try:
        der = base64.b64decode(text, validate=True)
        r, s = decode_dss_signature(der)
    except (binascii.Error, ValueError):
        raise BadSignature("the signature is not base64 of DER") from None
    canonical = base64.b64encode(der).decode("ascii") == text and encode_dss_signature(r, s) == der
    if not canonical or s > _P256_ORDER // 2:
        raise BadSignature("the signature is not in its canonical form")
    return der
