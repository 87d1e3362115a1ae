"""Golden vectors: what the format is, byte for byte.

A failure here means that two versions of Nearline would no longer agree on the name of the same
content, or on a signature. That is a format change: it needs a new tag and new vectors, and is not
to be made by editing a file in `golden/`. To see what the code makes now:

    python -m tests.remote.test_golden

The inputs are made from seeds: the BLAKE3 extended output of the seed's text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from remote.protocol.bundle import bundle_of
from remote.protocol.chunking import cut
from remote.protocol.codec import encode_chunk
from remote.protocol.content import HOLE, Manifest, Piece, fingerprint
from remote.protocol.ids import uuid7
from remote.protocol.signing import canned_policy, sign_get, sign_put, verify_get

GOLDEN = Path(__file__).parent / "golden"
MIB = 1 << 20


def noise(seed: str, size: int) -> bytes:
    return blake3(seed.encode()).digest(length=size)


def text(seed: str, size: int) -> bytes:
    """Hexadecimal noise: it compresses to a little over a half."""
    return noise(seed, -(-size // 2)).hex().encode()[:size]


INPUTS = {
    "one byte": b"x",
    "one block": noise("one block", 256 * 1024),
    "a block and a byte": noise("a block and a byte", 256 * 1024 + 1),
    "noise": noise("noise", 8 * MIB + 123),
    "text": text("text", 3 * MIB + 7),
    "text among noise": noise("a", 300_000) + text("b", 600_000) + noise("c", 300_000),
    "zeros": bytes(5 * MIB),
}


def content_vectors() -> dict[str, Any]:
    return {name: content_vector(data) for name, data in INPUTS.items()}


def content_vector(data: bytes) -> dict[str, Any]:
    """`data` as a version: its boundaries at the default average, and how each chunk is named and
    stored."""
    chunks, position = [], 0
    for length in cut(data, MIB, final=True):
        chunks.append(chunk_vector(data[position : position + length]))
        position += length
    pieces = [Piece(bytes.fromhex(item["id"]), item["length"]) for item in chunks]
    named = fingerprint(Manifest(len(data), MIB, pieces)).hex()
    return {"size": len(data), "blake3": blake3(data).hexdigest(), "fingerprint": named,
            "chunks": chunks}  # fmt: skip


def chunk_vector(data: bytes) -> dict[str, Any]:
    descriptor, body = encode_chunk(data)
    return {
        "id": descriptor.id.hex(),
        "length": descriptor.length,
        "codec": descriptor.codec,
        "block_hashes_blake3": blake3(descriptor.block_hashes).hexdigest(),
        "stored_lengths": descriptor.stored_lengths,
        "stored_sha256": hashlib.sha256(body).hexdigest(),
    }


def bundle_vectors() -> dict[str, Any]:
    """Bundles of small chunks, with the whole of their tails."""
    small = {"one byte": b"x", "noise": noise("part", 3000), "text": text("part", 5000)}
    named = {name: [data] for name, data in small.items()}
    named |= {"three": list(small.values()), "turned round": list(reversed(small.values()))}
    return {name: bundle_vector(parts) for name, parts in named.items()}


def bundle_vector(parts: list[bytes]) -> dict[str, Any]:
    encoded = [encode_chunk(data) for data in parts]
    bundle = bundle_of([item.descriptor for item in encoded])
    body = b"".join(bytes(item.body) for item in encoded) + bundle.tail
    return {
        "id": bundle.id.hex(),
        "offsets": list(bundle.offsets),
        "length": bundle.length,
        "tail": bundle.tail.hex(),
        "sha256": hashlib.sha256(body).hexdigest(),
    }


def boundary_vectors() -> dict[str, list[int]]:
    data = noise("boundaries", 4 * MIB)
    return {str(average): cut(data, average, final=True) for average in (65536, 262144, MIB)}


SECRET = noise("secret", 32)
KEY = ec.derive_private_key(int.from_bytes(noise("key", 31), "big"), ec.SECP256R1())
URL = "https://edge.example:8443/blobs/0a/0a1b2c"


def signature_vectors() -> dict[str, Any]:
    put = sign_put(
        SECRET, path="/blobs/0a/0a1b2c", length=1234, sha256=noise("sha", 32), expires=1_900_000_000
    )
    return {
        "put_query": put,
        "get_policy": canned_policy(URL, 1_900_000_000),
        "get_key": KEY.private_numbers().private_value.to_bytes(32, "big").hex(),
    }  # fmt: skip


def message_vectors() -> dict[str, str]:
    """The packed form of the structures that are kept for ever."""
    manifest = Manifest(300, 65536, [Piece(b"c" * 32, 100), Piece(HOLE, 150), Piece(b"d" * 32, 50)])
    return {
        "manifest_msgpack": msgspec.msgpack.encode(manifest).hex(),
        "manifest_fingerprint": fingerprint(manifest).hex(),
        "descriptor_msgpack": msgspec.msgpack.encode(encode_chunk(b"x").descriptor).hex(),
        "uuid7": uuid7(1_700_000_000_123_456_789, bytes(range(10))),
    }


VECTORS = {
    "content": content_vectors,
    "bundles": bundle_vectors,
    "boundaries": boundary_vectors,
    "signatures": signature_vectors,
    "messages": message_vectors,
}


@pytest.mark.parametrize("name", VECTORS)
def test_golden(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert VECTORS[name]() == golden


def test_a_chunk_id_by_the_book() -> None:
    """docs/protocol.md in four lines, without `content`: tag, block size, length, block hashes."""
    length = 256 * 1024 + 1
    data = INPUTS["a block and a byte"]
    named = blake3(b"nearline chunk v1\x00")
    named.update((256 * 1024).to_bytes(4, "big") + length.to_bytes(8, "big"))
    named.update(blake3(data[:-1]).digest() + blake3(data[-1:]).digest())
    assert encode_chunk(data).descriptor.id == named.digest()


def test_a_bundle_id_by_the_book() -> None:
    """docs/on-disk-formats.md, without `bundle`: the tag and the index, which is before the trailer
    of twelve bytes."""
    golden = json.loads((GOLDEN / "bundles.json").read_text())["three"]
    tail = bytes.fromhex(golden["tail"])
    index, size, magic = tail[:-12], tail[-12:-8], tail[-8:]
    assert (int.from_bytes(size, "big"), magic) == (len(index), b"NLBUNDL1")
    assert blake3(b"nearline bundle v1\x00" + index).hexdigest() == golden["id"]


def test_a_signed_url_of_the_past_still_verifies() -> None:
    """ECDSA signatures are not repeatable, so one is kept: whoever verifies must accept it."""
    url = (GOLDEN / "signed_url.txt").read_text().strip()
    assert verify_get({"KGOLDEN": KEY.public_key()}, url, 1_899_999_999) == URL


def test_a_signed_url_verifies_by_the_book() -> None:
    """Only the standard's steps, nothing of `signing`: what nginx and CloudFront do."""
    url, _, query = (GOLDEN / "signed_url.txt").read_text().strip().partition("?")
    fields = dict(pair.split("=") for pair in query.split("&"))
    policy = (
        '{"Statement":[{"Resource":"' + url + '","Condition":{"DateLessThan":'
        '{"AWS:EpochTime":' + fields["Expires"] + "}}}]}"
    )
    plain = fields["Signature"].replace("-", "+").replace("_", "=").replace("~", "/")
    der = base64.b64decode(plain)
    KEY.public_key().verify(der, policy.encode(), ec.ECDSA(hashes.SHA256()))
    assert fields["Hash-Algorithm"] == "SHA256"


if __name__ == "__main__":
    for name, make in VECTORS.items():
        print(name, json.dumps(make(), indent=1))
    print(sign_get(KEY, "KGOLDEN", URL, 1_900_000_000))
