"""The promises that people may rely on, told without a word of how they come about.

The top of the drive is divided into territories: names that nothing people did since the last
agreement has connected (a rename, link or exchange connects the places it names; so do hard links).
Of each territory it is known who did anything in it. Then, when all agree again:

- where nobody did anything, everything is as it was;
- where one person did, everything is exactly as that person saw it last: names, kinds, bytes,
  attributes;
- in both cases the identity of what a name means is one that somebody has seen there: a name that
  was left can take its identity back from what is in a territory of its own by now, and that has
  another one then. Should somebody else have been at work there, it may not get it back, and be
  new;
- where several did, the rules of conflicts say what becomes of it; nothing is known but what
  `check_nothing_is_lost` knows: whatever was saved is in the tree or in a history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

View = Mapping[str, tuple[object, ...]]  # by path from the top, beginning with "/"
FILE = 2  # where in a view's tuple the identity is


def top(path: str) -> str:
    return path.lstrip("/").split("/")[0]


class Reference:
    def __init__(self) -> None:
        self._agreed: View = {}
        self._above: dict[str, str] = {}  # union-find over names at the top
        self._ever: dict[str, str] = {}  # the same of all that people ever did
        self._busy: dict[str, set[int]] = {}

    def agree(self, view: View) -> None:
        """All devices show this."""
        self._agreed, self._above, self._busy = view, {}, {}
        places: dict[object, set[str]] = {}
        for path, seen in view.items():
            places.setdefault(seen[FILE], set()).add(top(path))
        for names in places.values():
            self._connect(names)

    def touched(self, who: int, *paths: str) -> None:
        """Somebody does something that names these paths."""
        names = {top(path) for path in paths}
        self._connect(names)
        for name in names:
            self._busy.setdefault(name, set()).add(who)

    def _connect(self, names: Iterable[str]) -> None:
        for above in (self._above, self._ever):
            roots = {_root(above, name) for name in names}
            first = min(roots)
            for root in roots - {first}:
                above[root] = first

    def _root(self, name: str) -> str:
        return _root(self._above, name)

    def surprises(self, last_seen: list[View], now: View) -> dict[str, object]:
        """Paths of territories that at most one person worked in, which are not as that person
        saw them last: (as it should be, as it is)."""
        busy: dict[str, set[int]] = {}
        for name, people in self._busy.items():
            busy.setdefault(self._root(name), set()).update(people)
        wrong: dict[str, object] = {}
        views = [self._agreed, now, *last_seen]
        for name in {top(path) for view in views for path in view}:
            people = busy.get(self._root(name), set())
            if len(people) > 1 or self._may_be_new(name, busy):
                continue
            expected = last_seen[min(people)] if people else self._agreed
            wrong |= differences(_nameless(_below(expected, name)), _nameless(_below(now, name)))
            if not self._may_be_apart(name):
                wrong |= _strangers([self._agreed, *last_seen], _below(now, name))
        return wrong

    def _may_be_apart(self, name: str) -> bool:
        """Several people do something with what this name was ever connected with."""
        place = _root(self._ever, name)
        near = (who for each, who in self._busy.items() if _root(self._ever, each) == place)
        return len(set[int]().union(*near)) > 1

    def _may_be_new(self, name: str, busy: dict[str, set[int]]) -> bool:
        """Conflicted copies and what was rescued: a name nobody gave, while there are disputes."""
        known = name in self._busy or any(top(path) == name for path in self._agreed)
        return not known and any(len(people) > 1 for people in busy.values())


def _root(above: Mapping[str, str], name: str) -> str:
    while name in above:
        name = above[name]
    return name


def _below(view: View, name: str) -> View:
    return {path: seen for path, seen in view.items() if top(path) == name}


def _nameless(view: View) -> View:
    """Without ids."""
    return {path: seen[:FILE] + seen[FILE + 1 :] for path, seen in view.items()}


def _strangers(views: list[View], now: View) -> dict[str, object]:
    """Files, by path, of an identity that nobody has seen there."""
    known = {path: {view[path][FILE] for view in views if path in view} for path in now}
    return {
        path: (known[path], seen[FILE])
        for path, seen in now.items()
        if seen[FILE] not in known[path]
    }


def differences(one: View, other: View) -> dict[str, object]:
    both = one.keys() | other.keys()
    return {p: (one.get(p), other.get(p)) for p in both if one.get(p) != other.get(p)}
