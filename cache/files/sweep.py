"""Programs that open files one after the other, directory by directory: how far ahead of them files
are wanted.

Knows: places of files in a directory, in readdir order and by name. Must not know: the database,
the network, what is in a file, who opens. Pure.

tar, cp -r, rsync, grep -r, a checkout or a shell's `*` open files in one of two orders: as readdir
gave them, or by name. A directory in which `STEPS` opens in a row went forward, never over more
than `GAP` places (from its front, too), is *swept*: the files behind are wanted, ever more of them
up to `MAX_AHEAD`. Who sweeps one directory comes to another one next, so the sweep goes on there at
the first look or open that comes soon after; `asked` tells what directories were thought to be
these, and a file that was not asked for begins a window anew, where it is.

One open, or several here and there, want nothing. Memory is bounded: the directories that were
looked at last.

Concurrency: of one task.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

STEPS = 2
GAP = 8
FIRST_AHEAD = 16
MAX_AHEAD = 96
# Opens, anywhere.
SOON = 4
MAX_DIRECTORIES = 64
NO_MORE = 1 << 30

Order = Literal["readdir", "name"]
ORDERS: tuple[Order, ...] = ("readdir", "name")


class Place(NamedTuple):
    """Where a file is in its directory: behind every file of a smaller cookie in readdir order,
    and of a smaller name by name."""

    cookie: int
    name: str


FRONT = Place(0, "")

# How many entries of the directory lie behind the first place up to the second, it included; None:
# more than `GAP`, or the second is not behind the first.
Distance = Callable[[Order, Place, Place], int | None]


@dataclass
class Window:
    """Files asked for ahead of one sweep, in whatever directories: up to `place` of `directory`, of
    which about `left` were not opened yet. `size`: how many to have asked for."""

    directory: int
    place: Place
    size: int = FIRST_AHEAD
    left: int = 0


class Wanted(NamedTuple):
    """`most` files behind the place of the window, in that order, and in the directories that
    follow."""

    window: Window
    order: Order
    most: int


@dataclass
class _Sweep:
    """Of one directory."""

    last: Place
    at: int  # the number of the open that was its last
    window: Window | None = None
    steps: dict[Order, int] = field(default_factory=lambda: dict.fromkeys(ORDERS, 0))

    @property
    def order(self) -> Order | None:
        """In which order it is swept, if it is."""
        return next((item for item in ORDERS if self.steps[item] >= STEPS), None)


class Sweeps:
    """Directories by inode number."""

    def __init__(self) -> None:
        self._sweeps: OrderedDict[int, _Sweep] = OrderedDict()
        self._expected: OrderedDict[int, Window] = OrderedDict()  # directories that may be next
        self._opens = 0
        self._latest: _Sweep | None = None  # a sweep that was the last to go on

    def opened(
        self, directory: int, place: Place, distance: Distance, *, asked: bool
    ) -> Wanted | None:
        """A file of the directory is read for the first time since it was opened; `asked`: it had
        been asked for."""
        self._opens += 1
        sweep = self._sweeps.get(directory) or self._begin(directory, FRONT)
        gone = self._step(sweep, place, distance)
        self._sweeps.move_to_end(directory)
        if sweep.order is None:
            sweep.window = None
            return None
        self._latest = sweep
        if sweep.window is None:
            sweep.window = Window(directory, place)
        elif not asked:
            sweep.window = Window(directory, place, sweep.window.size)
        else:
            sweep.window.left = max(0, sweep.window.left - gone)
        return self._wanted(sweep)

    def entered(self, directory: int) -> Wanted | None:
        """Somebody looks through the directory. Who has just swept another one comes to its first
        files."""
        if not self._goes_on() or directory in self._sweeps:
            return None
        return self._wanted(self._begin(directory, FRONT))

    def asked(
        self,
        window: Window,
        directory: int,
        place: Place | None,
        count: int,
        passed: Iterable[int] = (),
    ) -> None:
        """`count` files were asked for, up to `place` of `directory` (None: there is nothing behind
        them), on the way through directories `passed`."""
        window.directory, window.place = directory, place or window.place
        window.left = window.left + count if place is not None else NO_MORE
        for item in passed:
            self._expected[item] = window
        while len(self._expected) > MAX_DIRECTORIES:
            self._expected.popitem(last=False)

    def _wanted(self, sweep: _Sweep) -> Wanted | None:
        window, order = sweep.window, sweep.order
        if window is None or order is None or window.left > window.size // 2:
            return None
        wanted = Wanted(window, order, window.size - window.left)
        window.size = min(MAX_AHEAD, window.size * 2)
        return wanted

    def _goes_on(self) -> bool:
        """True if a sweep has gone on a moment ago."""
        return self._latest is not None and self._opens - self._latest.at <= SOON

    def _begin(self, directory: int, place: Place) -> _Sweep:
        sweep = self._sweeps[directory] = _Sweep(place, self._opens)
        latest, window = self._latest, self._expected.pop(directory, None)
        if latest is not None and latest.window is not None and self._goes_on():
            sweep.steps = dict(latest.steps)
            sweep.window = window or Window(directory, place, latest.window.size)
        while len(self._sweeps) > MAX_DIRECTORIES:
            self._sweeps.popitem(last=False)
        return sweep

    def _step(self, sweep: _Sweep, place: Place, distance: Distance) -> int:
        """The number of places that the open went forward."""
        gone = {order: distance(order, sweep.last, place) for order in ORDERS}
        for order, steps in gone.items():
            sweep.steps[order] = sweep.steps[order] + 1 if steps else 0
        sweep.last, sweep.at = place, self._opens
        return 0 if sweep.order is None else gone[sweep.order] or 0
