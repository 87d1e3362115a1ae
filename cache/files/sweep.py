"""Programs that open a directory's files one after the other: which files they come to next.

Knows: places of files in a directory, in readdir order and by name. Must not know: the database,
the network, what is in a file, who opens. Pure.

tar, cp -r, rsync, grep -r, a checkout or a shell's `*` open files in one of two orders: as readdir
gave them, or by name. A directory in which `STEPS` opens in a row went forward, never over more
than `GAP` places, is *swept*: the files behind are wanted, ever more of them up to `MAX_AHEAD`. Who
sweeps one directory comes to the next one: the first look or open in it, soon after, goes on there.

One open, or several here and there, want nothing. Memory is bounded: the directories that were
looked at last.

Concurrency: of one task.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

STEPS = 2
GAP = 8
FIRST_AHEAD = 16
MAX_AHEAD = 64
SOON = 4  # opens, anywhere
MAX_DIRECTORIES = 32
NO_MORE = 1 << 30

Order = Literal["readdir", "name"]
ORDERS: tuple[Order, ...] = ("readdir", "name")


class Place(NamedTuple):
    """Where a file is in its directory: behind every file of a smaller cookie in readdir order,
    and of a smaller name by name."""

    cookie: int
    name: str


FRONT = Place(0, "")


class Wanted(NamedTuple):
    """Up to `most` files of the directory behind `after`, in that order."""

    order: Order
    after: Place
    most: int


@dataclass
class _Sweep:
    last: Place
    at: int  # the number of the open that was its last
    steps: dict[Order, int]
    ahead: int = FIRST_AHEAD  # how many files to have asked for beyond the last open
    left: int = 0  # how many of these are still to be opened, about
    asked: Place | None = None  # the last one of them

    @property
    def order(self) -> Order | None:
        """In which order it is swept, if it is."""
        return next((one for one in ORDERS if self.steps[one] >= STEPS), None)


Distance = Callable[[Order, Place, Place], int | None]
"""How many files of the directory lie behind the first place up to the second, it included; None:
more than `GAP`, or the second is not behind the first."""


class Sweeps:
    """Directories by inode number."""

    def __init__(self) -> None:
        self._sweeps: OrderedDict[int, _Sweep] = OrderedDict()
        self._opens = 0
        self._latest: _Sweep | None = None  # a sweep that was the last to go on

    def opened(self, directory: int, place: Place, distance: Distance) -> Wanted | None:
        """A file of the directory is read for the first time since it was opened."""
        self._opens += 1
        sweep = self._sweeps.get(directory)
        if sweep is None:
            sweep = self._begin(directory, place)
        else:
            self._step(sweep, place, distance)
        self._sweeps.move_to_end(directory)
        order = sweep.order
        if order is None:
            return None
        self._latest = sweep
        if sweep.left > sweep.ahead // 2:
            return None
        wanted = Wanted(order, sweep.asked or place, sweep.ahead - sweep.left)
        sweep.ahead = min(MAX_AHEAD, sweep.ahead * 2)
        return wanted

    def entered(self, directory: int) -> Wanted | None:
        """Somebody looks through the directory. Who has just swept another one comes to its first
        files."""
        if not self._goes_on() or directory in self._sweeps:
            return None
        sweep = self._begin(directory, FRONT)
        assert sweep.order is not None
        return Wanted(sweep.order, FRONT, sweep.ahead)

    def asked(self, directory: int, last: Place | None, count: int) -> None:
        """What `opened` wanted were `count` files, the last of them at `last`; None: there are no
        more."""
        sweep = self._sweeps.get(directory)
        if sweep is not None:
            sweep.asked = last or sweep.asked
            sweep.left = sweep.left + count if last is not None else NO_MORE

    def _goes_on(self) -> bool:
        return self._latest is not None and self._opens - self._latest.at <= SOON

    def _begin(self, directory: int, place: Place) -> _Sweep:
        steps: dict[Order, int] = dict.fromkeys(ORDERS, 0)
        if self._latest is not None and self._goes_on():
            steps = dict(self._latest.steps)
        sweep = self._sweeps[directory] = _Sweep(place, self._opens, steps)
        while len(self._sweeps) > MAX_DIRECTORIES:
            self._sweeps.popitem(last=False)
        return sweep

    def _step(self, sweep: _Sweep, place: Place, distance: Distance) -> None:
        gone = {order: distance(order, sweep.last, place) for order in ORDERS}
        for order, steps in gone.items():
            sweep.steps[order] = sweep.steps[order] + 1 if steps else 0
        swept = sweep.order
        if swept is None:
            sweep.ahead, sweep.left, sweep.asked = FIRST_AHEAD, 0, None
        else:
            sweep.left = max(0, sweep.left - (gone[swept] or 0))
        sweep.last, sweep.at = place, self._opens
