"""Signed URLs permit exactly what was signed; any other spelling, byte or moment is refused."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.signers import CloudFrontSigner  # type: ignore[import-untyped]  # ships no types
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.protocol import signing
from remote.protocol.signing import (
    BadSignature,
    expires_of,
    sign_get,
    sign_put,
    verify_get,
    verify_put,
)
from tests.amounts import amount

SECRET = b"s" * 32
SHA = hashlib.sha256(b"stored object").digest()
PATH = "/blobs/d1/0a1b2c"
KEY = ec.derive_private_key(0xC0FFEE, ec.SECP256R1())
KEYS = {"K1": KEY.public_key()}
URL = "https://edge.example:8443/blobs/d1/0a1b2c"
SIGNED = sign_get(KEY, "K1", URL, 2_000)


def put_is_good(query: str, **changed: object) -> bool:
    what: dict[str, object] = {"path": PATH, "length": 13, "sha256": SHA, "now": 1_000, **changed}
    try:
        verify_put(SECRET, query=query, **what)  # type: ignore[arg-type]  # one dict for all kinds
    except BadSignature:
        return False
    return True


def test_a_put_is_permitted_until_it_expires() -> None:
    query = sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000)
    assert put_is_good(query)
    assert put_is_good(query, now=1_999)
    assert not put_is_good(query, now=2_000)


@pytest.mark.parametrize(
    "changed",
    [{"path": "/blobs/d1/0a1b2d"}, {"length": 14}, {"length": 12}, {"sha256": bytes(32)}],
)
def test_a_put_of_anything_else_is_refused(changed: dict[str, object]) -> None:
    query = sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000)
    assert not put_is_good(query, **changed)


def test_another_secret_does_not_permit_a_put() -> None:
    assert not put_is_good(sign_put(b"other", path=PATH, length=13, sha256=SHA, expires=2_000))


@given(st.data())
@settings(deadline=None, max_examples=amount(150, 30))
def test_any_mutated_put_query_is_refused(data: st.DataObject) -> None:
    query = sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000)
    mutated = data.draw(mutations(query))
    assert mutated == query or not put_is_good(mutated)


def test_for_whose_upload_a_put_shows_possession_is_signed_too() -> None:
    one, other = "1" * 32, "2" * 32
    plain = sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000)
    query = sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000, proof=one)
    what: dict[str, Any] = {"path": PATH, "length": 13, "sha256": SHA, "now": 1_000}
    assert verify_put(SECRET, query=plain, **what) is None
    assert verify_put(SECRET, query=query, **what) == one
    assert not put_is_good(query.replace(one, other))
    assert not put_is_good(query.replace(f"&proof={one}", ""))
    assert not put_is_good(plain.replace("&", f"&proof={one}&"))
    assert not put_is_good(query.replace(f"proof={one}", f"proof={one}&proof={one}"))
    with pytest.raises(BadSignature):
        sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000, proof="1&x=")


def test_a_get_is_permitted_until_it_expires() -> None:
    assert verify_get(KEYS, SIGNED, 1_999) == URL
    with pytest.raises(BadSignature, match="expired"):
        verify_get(KEYS, SIGNED, 2_000)


LONGEST = signing.LONGEST_SECONDS + signing.SKEW_SECONDS


def test_what_would_be_good_for_longer_than_anything_is_refused() -> None:
    assert verify_get(KEYS, SIGNED, 2_000 - 1) == URL
    far = sign_get(KEY, "K1", URL, 10_000)
    assert verify_get(KEYS, far, 10_000 - LONGEST) == URL
    with pytest.raises(BadSignature, match="longer than any"):
        verify_get(KEYS, far, 10_000 - LONGEST - 1)
    query = sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=10_000)
    assert put_is_good(query, now=10_000 - LONGEST)
    assert not put_is_good(query, now=10_000 - LONGEST - 1)


def test_a_key_that_was_rotated_out_signed_nothing_later() -> None:
    assert verify_get(KEYS, SIGNED, 1_000, {"K1": 2_000, "K2": 0}) == URL
    with pytest.raises(BadSignature, match="key of before"):
        verify_get(KEYS, SIGNED, 1_000, {"K1": 1_999})
    query = sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000)
    assert put_is_good(query, until=2_000)
    assert not put_is_good(query, until=1_999)


def test_a_get_url_is_what_the_aws_sdk_makes() -> None:
    """botocore's own signer, given our key, signs the same policy into the same URL."""
    signed_policies: list[bytes] = []

    def sign(policy: bytes) -> bytes:
        signed_policies.append(policy)
        return KEY.sign(policy, ec.ECDSA(hashes.SHA256()))

    theirs = CloudFrontSigner("K1", sign)
    moment = datetime.fromtimestamp(2_000, UTC)
    url = theirs.generate_presigned_url(URL, date_less_than=moment)
    assert signed_policies == [signing.canned_policy(URL, 2_000).encode()]
    ours = [pair.split("=")[0] for pair in SIGNED.split("?")[1].split("&")]
    assert [pair.split("=")[0] for pair in url.split("?")[1].split("&")] == ours[:3]
    assert ours[3:] == ["Hash-Algorithm"]
    policy = theirs.build_policy(URL, moment)
    assert policy == signing.canned_policy(URL, 2_000)


def test_an_unknown_or_foreign_key_is_refused() -> None:
    with pytest.raises(BadSignature, match="no key"):
        verify_get({}, SIGNED, 1_000)
    other = ec.derive_private_key(0xBEEF, ec.SECP256R1()).public_key()
    with pytest.raises(BadSignature, match="does not cover"):
        verify_get({"K1": other}, SIGNED, 1_000)


def test_the_twin_signature_with_high_s_is_refused() -> None:
    """(r, n - s) verifies whenever (r, s) does: without a rule a URL would have two spellings."""
    r, s = decode_dss_signature(signing._canonical_der(SIGNED.split("Signature=")[1].split("&")[0]))
    twin = encode_dss_signature(r, signing._P256_ORDER - s)
    KEY.public_key().verify(twin, signing.canned_policy(URL, 2_000).encode(), signing._ECDSA)
    text = base64.b64encode(twin).decode().translate(signing._TO_CLOUDFRONT)
    url = f"{URL}?Expires=2000&Signature={text}&Key-Pair-Id=K1&Hash-Algorithm=SHA256"
    with pytest.raises(BadSignature, match="canonical"):
        verify_get(KEYS, url, 1_000)


def rearranged() -> list[str]:
    base, query = SIGNED.split("?")
    expires, signature, key, algorithm = query.split("&")
    return [
        base,
        f"{base}?",
        f"{base}?{signature}&{expires}&{key}&{algorithm}",
        f"{base}?{expires}&{signature}&{key}",
        f"{base}?{query}&{expires}",
        f"{base}?{expires}&{query}",
        f"{base}?{query}&x=1",
        f"{base}?x=1&{query}",
        f"{base}?{query}#fragment",
        f"{base}#fragment?{query}",
        f"{base}?{query}&",
        f"{base}??{query}",
        f"{base}?{query.replace('SHA256', 'SHA1')}",
        f"{base}?{query.replace('Expires=2', 'Expires=02')}",
        f"{base}?{query.replace('Expires=2', 'Expires=%32')}",
        f"{base}?{query.replace('Expires=', 'Expires=+')}",
        f"{base}?{query}\n",
    ]


@pytest.mark.parametrize("url", rearranged())
def test_a_get_url_spelled_otherwise_is_refused(url: str) -> None:
    with pytest.raises(BadSignature):
        verify_get(KEYS, url, 1_000)


@pytest.mark.parametrize(
    "url",
    [
        "https://edge.example/a/../b",
        "https://edge.example/a/./b",
        "https://edge.example/a/%2e%2e/b",
        "https://edge.example/a//b",
        "https://edge.example//a",
        "https://edge.example/a/",
        "https://edge.example",
        "https://edge.example/a?b=c",
        "https://edge.example/a#b",
        "https://EDGE.example/a",
        "https://user@edge.example/a",
        "https://edge.example/a\\b",
        "https://edge.example/a b",
        'https://edge.example/a"b',
        "https://edge.example/é",
        "ftp://edge.example/a",
        "/a",
        "",
    ],
)
def test_a_url_with_two_spellings_is_not_signed(url: str) -> None:
    with pytest.raises(BadSignature):
        sign_get(KEY, "K1", url, 2_000)
    with pytest.raises(BadSignature):
        verify_get(KEYS, url + SIGNED[len(URL) :], 1_000)


@given(st.data())
@settings(deadline=None, max_examples=amount(300, 20))
def test_any_mutated_get_url_is_refused(data: st.DataObject) -> None:
    mutated = data.draw(mutations(SIGNED))
    if mutated == SIGNED:
        return
    with pytest.raises(BadSignature):
        verify_get(KEYS, mutated, 1_000)


@given(st.text(max_size=60), st.integers(min_value=1, max_value=10**12))
@settings(deadline=None, max_examples=amount(100, 20))
def test_what_is_signed_verifies_or_is_refused_at_signing(tail: str, expires: int) -> None:
    url = f"http://127.0.0.1:8000/blobs/{tail}"
    try:
        signed = sign_get(KEY, "K1", url, expires)
    except BadSignature:
        return
    assert verify_get(KEYS, signed, expires - 1) == url
    assert expires_of(signed) == expires


def test_clients_can_read_the_expiry_of_both_kinds() -> None:
    query = sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000)
    assert expires_of(f"https://edge.example{PATH}?{query}") == 2_000
    assert expires_of(SIGNED) == 2_000
    assert expires_of(URL) is None


def mutations(text: str) -> st.SearchStrategy[str]:
    """`text` with one character replaced, inserted, removed, or two neighbours swapped."""
    here = st.integers(min_value=0, max_value=len(text) - 1)
    letter = st.one_of(st.characters(min_codepoint=0x20, max_codepoint=0x7E), st.characters())
    return st.one_of(
        st.builds(lambda i, c: text[:i] + c + text[i + 1 :], here, letter),
        st.builds(lambda i, c: text[:i] + c + text[i:], here, letter),
        st.builds(lambda i: text[:i] + text[i + 1 :], here),
        st.builds(lambda i: text[:i] + text[i : i + 2][::-1] + text[i + 2 :], here),
    )
