"""Signed things that a visitor of a link holds for a while: a URL of content, and proof of a
password.

Knows: the paths under /content, the two signatures, their lives. Must not know: the database, who
may have one (its callers have checked), HTTP messages.

    /content/LINK/FILE/VERSION?...    one version of a file
    /content/LINK/DIRECTORY/zip?...   what is below a directory
    .../look?...                      the same, without the bytes: HEAD alone is permitted

The URLs are signed like those of the edge, with its key, but they live for hours: a large download
breaks off, and goes on with the same URL, which was counted when it was made. That they are long
costs little, because the link is asked anew at each request. A cookie is bound to the link and to
the password hash of that moment, so it proves nothing for another link or after a new password.
After a rotation of keys both are good as long as URLs of the edge may be.

Concurrency: any thread; keys change as a whole (`_keys`). `notes` is the event loop's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final, NamedTuple

from remote.protocol import signing
from server.http.rate_limits import TokenBuckets
from server.settings import Settings
from server.storage.keys import Keys

ZIP = "zip"
COOKIE_SECONDS = 3600
# How long a download may go on after its beginning: a URL of content is good for that long.
DOWNLOAD_SECONDS: Final = 6 * 3600
_LOOK = "/look"
_PATH = re.compile(
    rf"/content/([0-9a-f]{{32}})/([0-9a-f]{{32}})/([0-9a-f]{{32}}|zip)({_LOOK})?", re.A
)
_COOKIE = re.compile(r"([1-9][0-9]{0,15})\.([0-9a-f]{64})", re.ASCII)
_COOKIE_TAG = b"nearline link cookie v1"


class Wanted(NamedTuple):
    """The permission in a content URL: `version` of `file`, or everything below it (`ZIP`), as far
    as `link` reaches it. `look`: only what would be sent, no bytes; nobody counts that."""

    link: str
    file: str
    version: str
    look: bool = False

    def to_look(self) -> Wanted:
        return self._replace(look=True)


class LinkSigner:
    """`notes` are audit rows, per (link, address), so that nobody without an account fills the
    log."""

    def __init__(self, keys: Keys, settings: Settings) -> None:
        tunables = settings.tunables
        self.origin = tunables.content_url or settings.public_url
        self.notes = TokenBuckets(20, 60)
        self.use(keys)

    def use(self, keys: Keys) -> None:
        """Sign and verify with these from the next request on."""
        self._keys = keys

    def content_url(self, wanted: Wanted, now_ns: int) -> str:
        """A URL that permits GETs of `wanted` for `DOWNLOAD_SECONDS`."""
        expires = now_ns // 10**9 + DOWNLOAD_SECONDS
        url = f"{self.origin}/content/{wanted.link}/{wanted.file}/{wanted.version}"
        url += _LOOK if wanted.look else ""
        keys = self._keys
        return signing.sign_get(keys.edge, keys.edge_id, url, expires)

    def check_content(self, target: str, now_ns: int) -> Wanted:
        """The permission of a GET of raw request target `target`. Raises `signing.BadSignature`."""
        keys, now = self._keys, now_ns // 10**9
        good = {id: key for id, key in keys.edges.items() if now <= keys.until.get(id, now)}
        longer = DOWNLOAD_SECONDS - signing.LONGEST_SECONDS
        until = {id: end + longer for id, end in keys.until.items()}
        url = signing.verify_get(good, self.origin + target, now, until, DOWNLOAD_SECONDS)
        match = _PATH.fullmatch(url[len(self.origin) :])
        if match is None:
            raise signing.BadSignature("the URL names no content")
        return Wanted(match[1], match[2], match[3], look=match[4] is not None)

    def cookie(self, link: str, password: str, now_ns: int) -> str:
        """Proof, for an hour, that its holder knew the password that hashes to `password`."""
        expires = now_ns // 10**9 + COOKIE_SECONDS
        return f"{expires}.{_mac(self._keys.put, link, password, expires)}"

    def proves(self, cookie: str | None, link: str, password: str, now_ns: int) -> bool:
        """True if `cookie` is such a proof and still good."""
        match = _COOKIE.fullmatch(cookie or "")
        if match is None:
            return False
        expires = int(match[1])
        return any(
            hmac.compare_digest(match[2], _mac(secret, link, password, expires))
            and _is_good(expires, now_ns // 10**9, until)
            for secret, until in self._keys.puts
        )


def _is_good(expires: int, now: int, until: int | None) -> bool:
    """Cookies live as long as the longest URL."""
    try:
        signing.check_time(expires, now, until)
    except signing.BadSignature:
        return False
    return True


def _mac(secret: bytes, link: str, password: str, expires: int) -> str:
    key = hmac.digest(secret, _COOKIE_TAG, hashlib.sha256)
    message = f"{link}\n{password}\n{expires}".encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()
