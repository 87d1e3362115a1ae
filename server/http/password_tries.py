"""Trying passwords: what a try counts for, before anything is hashed.

Knows: addresses, and by any name what a password opens (an account, a link). Must not know: which
of those there are, passwords, HTTP.

A try counts four times. For its address and what it is to open, for its address, and for its IPv6
site: whoever has used these up is refused until there is another. And for what it is to open, over
all addresses: that is a bound on guessing by many machines together, and may shut out nobody who
knows the password. So
- who comes from where the password was known before, or a good token came from, is not counted;
- others wait for their turn, at most `LONGEST_SECONDS`;
- when more wait than have a turn within that, each site still has `HEARD` tries that are heard
  after waiting as long. Only what tried and failed so often is refused.

So a guesser has one try in some seconds, and a few more for each site it comes from.

Concurrency: the event loop. What is known is forgotten with the process, and what was unused for
longest when it is too much: both cost only waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple

from remote.protocol.errors import RateLimited, Refused
from server.addresses import limited_as, site_of
from server.http.rate_limits import TokenBuckets
from server.settings import Tunables

# Clients give up a request after 30 s without a byte.
LONGEST_SECONDS = 10.0
HEARD = 3
_HEARD_SECONDS = 86_400.0
_MAX_HEARD = 50_000
_MAX_HOMES = 20_000

Counted = tuple[tuple[TokenBuckets, Hashable], ...]


class Try(NamedTuple):
    """A try that may be made. `at_home`: from where the password was known before; `counted` is
    given back if it is right."""

    what: Hashable
    address: str
    at_home: bool
    counted: Counted


class PasswordTries:
    def __init__(
        self,
        tunables: Tunables,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        burst, seconds = tunables.login_burst, tunables.login_seconds_per_try
        self._each = TokenBuckets(burst, seconds)
        self._addresses = TokenBuckets(10 * burst, seconds / 10)
        self._sites = TokenBuckets(40 * burst, seconds / 40)
        self._shared = TokenBuckets(2 * burst, seconds)
        self._heard = TokenBuckets(HEARD, _HEARD_SECONDS, _MAX_HEARD)
        self._homes: OrderedDict[tuple[Hashable, str], None] = OrderedDict()
        self._clock, self._sleep = clock, sleep

    async def begin(self, what: Hashable, address: str) -> Try:
        """A try from `address` to open `what`, when it may be made. Raises `Refused(RateLimited)`.

        Whether there is such a thing as `what` must not matter to who calls this.
        """
        client, site = limited_as(address), site_of(address)
        own: Counted = ((self._each, (what, client)), (self._addresses, client))
        if site != client:
            own += ((self._sites, site),)
        for buckets, key in own:
            _check(buckets.take(key, self._clock()))
        if (what, client) in self._homes:
            return Try(what, address, True, own)
        booked, seconds = self._shared.book(what, self._clock(), LONGEST_SECONDS)
        if booked:
            own += ((self._shared, what),)
        else:
            _check(self._heard.take((what, site), self._clock()) and seconds)
            seconds = LONGEST_SECONDS
        if seconds:
            await self._sleep(seconds)
        return Try(what, address, False, own)

    def was_right(self, tried: Try) -> None:
        """The password was right: the try does not count, and who comes from there is at home."""
        for buckets, key in tried.counted:
            buckets.give_back(key, self._clock())
        self.is_home(tried.what, tried.address)

    def is_home(self, what: Hashable, address: str) -> None:
        """Somebody who may open `what` is at `address`."""
        key = what, limited_as(address)
        self._homes[key] = None
        self._homes.move_to_end(key)
        while len(self._homes) > _MAX_HOMES:
            self._homes.popitem(last=False)


def _check(wait: float) -> None:
    if wait:
        message = f"too many wrong passwords; try again in {max(1.0, wait):.0f} s"
        raise Refused(RateLimited(message=message, retry_after_seconds=round(wait, 3)))
