"""The accounts for which tokens stood when they were last used: for limits and log lines, before
and after the database is asked.

Knows: tokens that authenticated a moment ago. Must not know: whether one is still good. Nothing
here lets anybody in (`tokens.authenticate` alone does); the worst that an old entry does is to
charge a request to the account that the token was of.

Concurrency: any thread. Tokens themselves are not kept, their SHA-256 is. Memory is bounded.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import NamedTuple

from server.permissions.caller import Caller

MAX_TOKENS = 10_000


class TokenHolder(NamedTuple):
    """Ids."""

    account: str
    device: str


class RecentTokens:
    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._lock = threading.Lock()  # guards the one below
        self._by_token: OrderedDict[bytes, TokenHolder] = OrderedDict()

    def note(self, token: str | None, caller: Caller) -> None:
        """`token` has just been found to be `caller`'s."""
        key, found = _hash(token or ""), TokenHolder(caller.account, caller.device)
        with self._lock:
            self._by_token[key] = found
            self._by_token.move_to_end(key)
            while len(self._by_token) > self._max_tokens:
                self._by_token.popitem(last=False)

    def forget(self, token: str | None) -> None:
        """`token` has just been refused."""
        with self._lock:
            self._by_token.pop(_hash(token or ""), None)

    def of(self, token: str | None) -> TokenHolder | None:
        if not token:
            return None
        with self._lock:
            return self._by_token.get(_hash(token))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
