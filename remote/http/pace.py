"""The pace of a body that is sent: by portions, each of which is taken before it is sent.

Knows: what a sender asks. Must not know: who answers (`remote.transfer.throttle`), and why.

What is waited for in `take` is no peer, so no timeout may count it.
"""

from __future__ import annotations

from typing import Protocol


class Pace(Protocol):
    async def take(self, most: int, /) -> int:
        """Return when some of `most` bytes may be sent; how many, at least 1."""
        ...


class _AtOnce:
    async def take(self, most: int, /) -> int:
        return most


AT_ONCE: Pace = _AtOnce()
