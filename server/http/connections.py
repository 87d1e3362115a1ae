"""Connections: how many there may be, and which is cut.

Knows: whose a connection is, what makes one leave for another. Must not know: what is spoken over
it and when its peer holds it up (`protocols`), how it was accepted (`accept`).

- places: so many connections in all, of one address, and of one account (`slots`). A connection is
  counted from the moment it is accepted, by its address; from this machine, by the user whose it
  is; from a trusted proxy, in all only. One that has shown a good token counts for the account.
  Where there is no place, the connection of a stranger that has waited longest for its peer goes,
  and if none is idle, that whose body has been coming for longest, then that which has asked for
  longest without showing any right.
- what is left of a connection: over TLS it has buffers of half a megabyte, which the system is to
  have back when enough have ended (`memory`).

Concurrency: everything on the event loop. `Connections.sweep` looks at every connection once a
second (`main.Server` calls it), instead of a timer for each request.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from server import memory
from server.addresses import TrustedProxies, is_loopback, limited_as
from server.http.peer_users import Address, PeerUsers, UserOf
from server.http.rate_limits import SharedBytes
from server.http.recent_tokens import RecentTokens
from server.http.slots import Slots
from server.metrics import Metrics
from server.settings import Tunables

# After so many connections the system is given back what they had,.
ENDED = 64
# But no more often than so: nobody is answered meanwhile, for up to a tenth of a second.
GIVE_BACK_SECONDS = 5.0


class Watched:
    """A connection that can be counted, and say whether its peer holds it up."""

    token: str | None = None
    """What its last request showed to be its right."""

    def held_up(self, now: float, tunables: Tunables) -> str | None:
        """Why to cut it at `now`, in seconds of `time.monotonic`; None: there is no reason to."""
        raise NotImplementedError

    def waits_for_peer(self) -> bool:
        """True if nothing would be lost that the server does for it."""
        raise NotImplementedError

    def is_sending(self) -> bool:
        """True if a body comes that would have to be sent again."""
        return False

    def shows_nothing(self) -> bool:
        """True if what it asks for needs no right, such as a login, which may be held back."""
        return False

    def abort(self) -> None:
        """End it at once, whatever waits to be sent."""
        raise NotImplementedError


class Connections:
    """Every open connection of one server, and the limits on them. `user_of` tells users of this
    machine apart."""

    def __init__(
        self,
        tunables: Tunables,
        metrics: Metrics,
        recent_tokens: RecentTokens,
        user_of: UserOf | None = None,
    ) -> None:
        self.tunables = tunables
        self._metrics, self._recent_tokens = metrics, recent_tokens
        self._user_of = user_of or PeerUsers().of
        self._proxies = TrustedProxies(tunables.trusted_proxies)
        self.behind = SharedBytes(tunables.body_memory_bytes // 8)
        each = tunables.connections_per_address, tunables.connections_per_account
        self._slots: Slots[Watched] = Slots(tunables.connections, *each)
        self._open: set[Watched] = set()
        self._ended, self._given_back = 0, -GIVE_BACK_SECONDS
        metrics.connections.set_function(lambda: self._slots.taken)

    @property
    def taken(self) -> int:
        """The number of connections."""
        return self._slots.taken

    def enter(self, connection: Watched, there: Address, here: Address) -> bool:
        """Count a connection between two addresses; False, and it is not counted, if there are too
        many, and every one of them is of use to somebody."""
        holder = self._holder(there, here)
        while (crowd := self._slots.in_the_way(holder)) is not None:
            leaving = _first_to_leave(list(crowd))
            if leaving is None:
                self.cut("too_many")
                return False
            self._end(leaving, "made_room")
        self._slots.take(connection, holder)
        self._open.add(connection)
        return True

    def _holder(self, there: Address, here: Address) -> Hashable | None:
        """The holder of the places that a connection takes. All addresses of this machine are free
        for all its users to come from, so their user alone counts, if that is known."""
        address = there[0]
        if self._proxies.trusts(address):
            return None
        user = self._user_of(there, here) if is_loopback(address) else None
        return limited_as(address) if user is None else user

    def succeed(self, old: Watched, new: Watched) -> bool:
        """`new` takes over the connection and the place of `old`; False if that had none any
        more."""
        if old not in self._open:
            return False
        self._slots.succeed(old, new)
        self._open.discard(old)
        self._open.add(new)
        return True

    def leave(self, connection: Watched) -> None:
        if connection in self._open:
            self._slots.leave(connection)
            self._open.remove(connection)
            self._ended += 1

    def recognise(self, connection: Watched) -> None:
        """Count a connection for its account, as soon as its token has proved to be good."""
        if connection.token is not None and self._slots.is_stranger(connection):
            holder = self._recent_tokens.of(connection.token)
            if holder is not None:
                self._slots.recognise(connection, holder.account)

    def served(self, connection: Watched) -> None:
        """A request of it has been answered."""
        self.recognise(connection)
        self._slots.served(connection)

    def cut(self, why: str) -> None:
        """A connection is refused or ended because of `why`."""
        self._metrics.cut.labels(why).inc()

    def sweep(self, now: float) -> None:
        """Cut the connections whose peers hold them up at `now`, in seconds of
        `time.monotonic`, and let go of what is left of those that ended."""
        if self._ended >= ENDED and now - self._given_back >= GIVE_BACK_SECONDS:
            self._ended, self._given_back = 0, now
            memory.give_back()
        for connection in list(self._open):
            why = connection.held_up(now, self.tunables)
            if why is not None:
                self._end(connection, why)
            else:
                self.recognise(connection)

    def _end(self, connection: Watched, why: str) -> None:
        self.cut(why)
        self.leave(connection)
        connection.abort()


# Who makes room: the first for whom the first of these holds that holds for anybody.
_LEAVING: tuple[Callable[[Watched], bool], ...] = (
    lambda guest: guest.waits_for_peer(),
    lambda guest: guest.is_sending(),
    lambda guest: guest.shows_nothing(),
)


def _first_to_leave(guests: Sequence[Watched]) -> Watched | None:
    found = (guest for may_leave in _LEAVING for guest in guests if may_leave(guest))
    return next(found, None)
