"""Places for connections: who has one, and who makes room when there is none.

Knows: strangers, of whom one address may have so many, and known guests, of whom one account may;
that strangers never have all places. Must not know: sockets, tokens, what an address is made of.
Pure.

A guest begins as a stranger. Whoever can do no more than open connections thus takes places from
other strangers only: from those who have been served least lately, and of its own address first.

Concurrency: each object belongs to one thread, the event loop's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

# One place in so many is never a stranger's: whoever is known comes in when strangers have taken
# all that they can have.
RESERVED_PART = 4


class Slots(Generic[T]):
    """`total` places, `per_address` for the strangers of one address, `per_account` for the known
    guests of one account."""

    def __init__(self, total: int, per_address: int, per_account: int) -> None:
        self._total, self._per_address, self._per_account = total, per_address, per_account
        self._for_strangers = total - total // RESERVED_PART
        # Both in order of when a guest came or was last served.
        self._strangers: OrderedDict[T, Hashable] = OrderedDict()
        self._from: dict[Hashable, OrderedDict[T, None]] = {}
        self._known: dict[T, Hashable | None] = {}  # the account; None: of nobody's share
        self._of_account: Counter[Hashable] = Counter()

    @property
    def taken(self) -> int:
        return len(self._strangers) + len(self._known)

    def in_the_way(self, address: Hashable | None) -> Iterable[T] | None:
        """None: there is a place for one more from `address` (None: from a trusted proxy). Else the
        strangers of whom one would have to leave before, who was served least lately first."""
        if address is not None and len(self._from.get(address, ())) >= self._per_address:
            return self._from[address]
        is_full = self.taken >= self._total
        if is_full or (address is not None and len(self._strangers) >= self._for_strangers):
            return self._strangers
        return None

    def take(self, guest: T, address: Hashable | None) -> None:
        """A place for `guest`, for whom nobody is `in_the_way`: a stranger's, or, from a trusted
        proxy (None), one of nobody's share."""
        if address is None:
            self._known[guest] = None
            return
        self._strangers[guest] = address
        self._from.setdefault(address, OrderedDict())[guest] = None

    def is_stranger(self, guest: T) -> bool:
        return guest in self._strangers

    def recognise(self, guest: T, account: Hashable) -> None:
        """A stranger is known to be of `account` now. When that has its share already, it stays a
        stranger."""
        if guest in self._strangers and self._of_account[account] < self._per_account:
            self._drop_stranger(guest)
            self._known[guest] = account
            self._of_account[account] += 1

    def served(self, guest: T) -> None:
        """A stranger has just been served: it is the last to make room."""
        address = self._strangers.get(guest)
        if address is not None:
            self._strangers.move_to_end(guest)
            self._from[address].move_to_end(guest)

    def succeed(self, old: T, new: T) -> None:
        """`new` has the place of `old` from now on, if that had one."""
        if old in self._strangers:
            self.take(new, self._drop_stranger(old))
        elif old in self._known:
            self._known[new] = self._known.pop(old)

    def leave(self, guest: T) -> None:
        """Give back the place of `guest`, if it has one."""
        if guest in self._strangers:
            self._drop_stranger(guest)
        elif (account := self._known.pop(guest, None)) is not None:
            self._of_account[account] -= 1
            if not self._of_account[account]:
                del self._of_account[account]

    def _drop_stranger(self, guest: T) -> Hashable:
        address = self._strangers.pop(guest)
        del self._from[address][guest]
        if not self._from[address]:
            del self._from[address]
        return address
