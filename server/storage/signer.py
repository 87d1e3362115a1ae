"""Signed URLs of this server: where they point, how long they live, and reading them back.

Knows: the paths of the blob store and the edge, the keys, the public origin. Must not know: who
may have a URL (its callers have checked), HTTP messages.

Concurrency: any thread. The caches only save work; a lost update costs one signature. Keys change
as a whole (`_Made`): a request goes on with those that it began with.
"""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from typing import Any, NamedTuple

from remote.protocol import signing
from remote.protocol.messages import PresignedPut
from server.settings import Settings
from server.storage.blobs import BlobKey, Head
from server.storage.keys import Keys

_PATH = re.compile(r"/(?:blobs|chunks)/([0-9a-f]{32})/([0-9a-f]{64})", re.ASCII)
# GET URLs made within so many seconds for one chunk are the same string, so that signing here and
# verifying at the edge can be cached. They live up to that much shorter than configured.
_GET_STEP = 30


class Permit(NamedTuple):
    """A PUT may make object `key`, and shows possession for the upload of version `proof`."""

    key: BlobKey
    proof: str | None


class _Made:
    """GET URLs as some keys sign and verify them."""

    def __init__(self, keys: Keys, origin: str) -> None:
        self.keys, self._origin = keys, origin
        self._edges, self._until = keys.edges, keys.until
        self.signed = lru_cache(maxsize=16384)(self._sign)
        self.verified = lru_cache(maxsize=16384)(self._verify)

    def _sign(self, key: BlobKey, expires: int) -> str:
        url = f"{self._origin}/chunks/{key.drive}/{key.chunk.hex()}"
        return signing.sign_get(self.keys.edge, self.keys.edge_id, url, expires)

    def _verify(self, target: str) -> tuple[BlobKey, int]:
        """Check the signature at the last moment at which it could be good; `check_get` compares
        the expiry with the clock."""
        url = self._origin + target
        expires = signing.expires_of(url) or 0
        resource = signing.verify_get(self._edges, url, expires - 1, self._until)
        return _key(resource[len(self._origin) :]), expires


class UrlSigner:
    def __init__(self, keys: Keys, settings: Settings) -> None:
        self._origin = settings.public_url
        self._put_seconds = settings.tunables.put_url_seconds
        self._get_seconds = settings.tunables.get_url_seconds
        self.use(keys)

    def use(self, keys: Keys) -> None:
        """Sign and verify with these from the next request on."""
        self._made = _Made(keys, self._origin)

    def put(self, key: BlobKey, head: Head, now_ns: int, proof: str | None = None) -> PresignedPut:
        """Permission to PUT the object `key`, which will be as `head` says; `proof`: the version
        for whose upload that shows possession."""
        path = f"/blobs/{key.drive}/{key.chunk.hex()}"
        length, sha256 = head.length, head.sha256
        expires = now_ns // 10**9 + self._put_seconds
        query = signing.sign_put(
            self._made.keys.put,
            path=path,
            length=length,
            sha256=sha256,
            expires=expires,
            proof=proof,
        )
        headers = {
            "Content-Length": str(length),
            "If-None-Match": "*",
            "x-amz-checksum-sha256": base64.b64encode(sha256).decode(),
        }
        url = f"{self._origin}{path}?{query}"
        return PresignedPut(url=url, headers=headers, expires_ns=expires * 10**9)

    def get(self, key: BlobKey, now_ns: int) -> tuple[str, int]:
        """(URL, expiry in ns) that permits GETs of a stored object."""
        now = now_ns // 10**9
        expires = now - now % _GET_STEP + self._get_seconds
        return self._made.signed(key, expires), expires * 10**9

    def check_put(self, target: str, length: int, sha256: bytes, now_ns: int) -> Permit:
        """The permission of a PUT to raw request target `target`. Raises `signing.BadSignature`."""
        path, _, query = target.partition("?")
        what: dict[str, Any] = {"path": path, "query": query, "length": length, "sha256": sha256}
        refused = signing.BadSignature("there is no key")
        for secret, until in reversed(self._made.keys.puts):
            try:
                proof = signing.verify_put(secret, **what, now=now_ns // 10**9, until=until)
            except signing.BadSignature as error:
                refused = error  # the newest key, which comes last, knows best what is wrong
            else:
                return Permit(_key(path), proof)
        raise refused

    def check_get(self, target: str, now_ns: int) -> BlobKey:
        """The object that a GET of raw request target `target` may have.

        Raises `signing.BadSignature`.
        """
        key, expires = self._made.verified(target)
        signing.check_time(expires, now_ns // 10**9)
        return key


def _key(path: str) -> BlobKey:
    match = _PATH.fullmatch(path)
    if match is None:
        raise signing.BadSignature("the URL names no stored object")
    return BlobKey(match[1], bytes.fromhex(match[2]))
