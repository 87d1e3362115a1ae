"""What a visitor of a link holds for a while: a signed URL of content, and proof of a password.

Knows: the paths under /content, the two signatures, their lives. Must not know: the database, who
may have one (its callers have checked), HTTP messages.

    /content/LINK/FILE/VERSION?...    one version of a file
    /content/LINK/DIRECTORY/zip?...   what is below a directory

The URLs are signed like those of the edge, with its key. A cookie is bound to the link and to the
password hash of that moment, so it proves nothing for another link or after a new password.

Concurrency: any thread; nothing changes after it was made, but `notes`, which is the event loop's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple

from remote import signing
from server.front.limits import TokenBuckets
from server.settings import Settings
from server.storage.keys import Keys

ZIP = "zip"
COOKIE_SECONDS = 3600
_PATH = re.compile(r"/content/([0-9a-f]{32})/([0-9a-f]{32})/([0-9a-f]{32}|zip)", re.ASCII)
_COOKIE = re.compile(r"([1-9][0-9]{0,15})\.([0-9a-f]{64})", re.ASCII)
_COOKIE_TAG = b"nearline link cookie v1"


class Wanted(NamedTuple):
    """What a content URL permits: `version` of `file`, or everything below it (`ZIP`), as far as
    `link` reaches it."""

    link: str
    file: str
    version: str


class LinkSigner:
    """`notes` are audit rows, per (link, address), so that nobody without an account fills the
    log."""

    def __init__(self, keys: Keys, settings: Settings) -> None:
        tunables = settings.tunables
        self.origin = tunables.content_url or settings.public_url
        self.notes = TokenBuckets(20, 60)
        self._seconds = tunables.get_url_seconds
        self._edge, self._edge_id = keys.edge, keys.edge_id
        self._public = {keys.edge_id: keys.edge.public_key()}
        self._cookie = hmac.digest(keys.put, _COOKIE_TAG, hashlib.sha256)

    def content_url(self, wanted: Wanted, now_ns: int) -> str:
        """A URL that permits GETs of `wanted` for minutes."""
        expires = now_ns // 10**9 + self._seconds
        url = f"{self.origin}/content/{wanted.link}/{wanted.file}/{wanted.version}"
        return signing.sign_get(self._edge, self._edge_id, url, expires)

    def check_content(self, target: str, now_ns: int) -> Wanted:
        """What a GET of raw request target `target` may have. Raises `signing.BadSignature`."""
        url = signing.verify_get(self._public, self.origin + target, now_ns // 10**9)
        match = _PATH.fullmatch(url[len(self.origin) :])
        if match is None:
            raise signing.BadSignature("the URL names no content")
        return Wanted(*match.groups())

    def cookie(self, link: str, password: str, now_ns: int) -> str:
        """Proof, for an hour, that its holder knew the password that hashes to `password`."""
        expires = now_ns // 10**9 + COOKIE_SECONDS
        return f"{expires}.{self._mac(link, password, expires)}"

    def proves(self, cookie: str | None, link: str, password: str, now_ns: int) -> bool:
        """Whether `cookie` is such a proof and still good."""
        match = _COOKIE.fullmatch(cookie or "")
        if match is None:
            return False
        expires = int(match[1])
        right = hmac.compare_digest(match[2], self._mac(link, password, expires))
        return right and now_ns // 10**9 < expires

    def _mac(self, link: str, password: str, expires: int) -> str:
        message = f"{link}\n{password}\n{expires}".encode()
        return hmac.new(self._cookie, message, hashlib.sha256).hexdigest()
