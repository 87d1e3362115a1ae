"""A disk after the power was lost: pure; a record in, files and directories out.

Knows: what file systems promise about what was synced, and how little about the rest. Must not
know: what the files are for, how they were recorded.

Two models of names:

- `ordered` is ext4 with its journal. Changes of names and truncations reach the disk in order, so
  some first part of them is there. The part reaches at least to the last one that concerned a file
  or directory when that was synced: an fsync of a new file keeps its name, too.
- `harsh` is what POSIX leaves open. Only an fsync of a directory keeps names in it; each change
  that was not synced is there or not, whatever became of the ones before. Blocks that were never
  written may hold what was on the disk before.

Bytes are alike in both: of what was written since the file was last synced, each unit (a sector or
a page) is as it was at any one moment since then, units independently of each other: so a write may
be there, be missing, or be torn. The size is any between the smallest and the largest that is
possible; what no write filled is zeros. Neither model is kinder than a real disk needs to be: a
rename over a file does not write back what is renamed, and `survival` below 1 means nothing.

Invariant: the outcome depends on the events, the loss, and the random numbers only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from tests.power.record import (
    ROOT,
    Event,
    Linked,
    Made,
    Moved,
    Named,
    Removed,
    Resized,
    Synced,
    Wrote,
)

SECTOR, PAGE = 512, 4096

Tree = dict[str, bytes | None]  # by path; None is a directory


@dataclass(frozen=True)
class Loss:
    """A way to lose power. `survival` is about how much of what was not synced is there."""

    names: Literal["ordered", "harsh"]
    unit: int
    survival: float

    @classmethod
    def any(cls, random: Random) -> Loss:
        return cls(
            "ordered" if random.random() < 0.6 else "harsh",
            random.choice((SECTOR, PAGE)),
            random.choice((0.0, 0.1, 0.5, 0.9, 0.98, 1.0)),
        )


@dataclass
class _File:
    kind: str
    kept: bytearray = field(default_factory=bytearray)  # what was there at the last sync
    since: list[tuple[int, Wrote | Resized]] = field(default_factory=list)  # numbered


@dataclass
class _Pending:
    """The events, sorted into what is safe and what is not."""

    files: dict[int, _File] = field(default_factory=lambda: {ROOT: _File("directory")})
    changes: list[tuple[int, Named | Resized]] = field(default_factory=list)  # in order
    safe: set[int] = field(default_factory=set)  # numbers of changes that are there in any case
    loose: set[int] = field(default_factory=set)  # those that are not
    floor: int = 0  # `ordered`: so many of `changes` are there in any case


def survivors(events: Sequence[Event], loss: Loss, random: Random) -> Tree:
    """One possible content of the disk when power was lost after `events`."""
    pending = _sort(events, loss)
    there = _changes_there(pending, loss, random)
    names = _names([change for number, change in pending.changes if number in there])
    bodies = {
        ino: _body(file, there, loss, random)
        for ino, file in pending.files.items()
        if file.kind == "file"
    }
    return dict(_walk(ROOT, "", names, pending.files, bodies, set()))


def _sort(events: Sequence[Event], loss: Loss) -> _Pending:
    pending = _Pending()
    last: dict[int, int] = {}  # by inode: how many changes there were after its last one
    for number, event in enumerate(events):
        match event:
            case Synced(ino):
                _sync(pending, ino)
                _keep_changes(pending, ino, last.get(ino, 0), loss)
            case Wrote():
                pending.files[event.ino].since.append((number, event))
            case _:
                if isinstance(event, Resized):
                    pending.files[event.ino].since.append((number, event))
                elif isinstance(event, Made):
                    pending.files[event.ino] = _File(event.kind)
                pending.changes.append((number, event))
                pending.loose.add(number)
                for ino in _concerned(event):
                    last[ino] = len(pending.changes)
    return pending


def _concerned(change: Named | Resized) -> set[int]:
    """The inodes whose fsync keeps a change, when changes are ordered."""
    match change:
        case Resized(ino):
            return {ino}
        case Moved(ino, parent, _, new_parent, _):
            return {ino, parent, new_parent}
        case _:
            return {change.ino, change.parent}


def _sync(pending: _Pending, ino: int) -> None:
    file = pending.files[ino]
    for number, event in file.since:
        if isinstance(event, Resized):
            pending.safe.add(number)
            pending.loose.discard(number)
        _apply(file.kept, event)
    file.since.clear()


def _keep_changes(pending: _Pending, ino: int, upto: int, loss: Loss) -> None:
    if loss.names == "ordered":
        for number, _ in pending.changes[pending.floor : upto]:
            pending.safe.add(number)
            pending.loose.discard(number)
        pending.floor = max(pending.floor, upto)
    elif pending.files[ino].kind == "directory":
        by_number = dict(pending.changes)
        for number in sorted(pending.loose):
            change = by_number[number]
            if not isinstance(change, Resized) and ino in _directories(change):
                pending.safe.add(number)
                pending.loose.discard(number)


def _directories(change: Named) -> set[int]:
    if isinstance(change, Moved):
        return {change.parent, change.new_parent}
    return {change.parent}


def _changes_there(pending: _Pending, loss: Loss, random: Random) -> set[int]:
    """The numbers of the changes that reached the disk."""
    numbers = [number for number, _ in pending.changes]
    if loss.names == "ordered":
        cut = _moment(len(numbers) - pending.floor, loss, random) + pending.floor
        return set(numbers[:cut])
    return pending.safe | {
        item for item in sorted(pending.loose) if random.random() < loss.survival
    }


def _moment(latest: int, loss: Loss, random: Random) -> int:
    """0 is the last that was synced, `latest` is now."""
    if random.random() < loss.survival:
        return latest
    return random.randrange(latest) if latest and loss.survival else 0


# Names.


Names = dict[int, dict[str, int]]


def _names(changes: Sequence[Named | Resized]) -> Names:
    names: Names = {ROOT: {}}
    for change in changes:
        match change:
            case Made(ino, parent, name) | Linked(ino, parent, name):
                names.setdefault(parent, {})[name] = ino
            case Removed(ino, parent, name):
                _drop(names, parent, name, ino)
            case Moved(ino, parent, name, new_parent, new_name):
                _drop(names, parent, name, ino)
                names.setdefault(new_parent, {})[new_name] = ino
    return names


def _drop(names: Names, parent: int, name: str, ino: int) -> None:
    if names.get(parent, {}).get(name) == ino:
        del names[parent][name]


def _walk(
    directory: int,
    path: str,
    names: Names,
    files: dict[int, _File],
    bodies: dict[int, bytes],
    seen: set[int],
) -> Iterator[tuple[str, bytes | None]]:
    """Every path with its content. A directory that lost its place is out of reach, as in
    lost+found; one that would have two places has the first."""
    seen.add(directory)
    for name, ino in sorted(names.get(directory, {}).items()):
        below = f"{path}/{name}" if path else name
        kind = files[ino].kind
        if kind == "file":
            yield below, bodies[ino]
        elif kind == "directory" and ino not in seen:
            yield below, None
            yield from _walk(ino, below, names, files, bodies, seen)


# Bytes.


def _apply(body: bytearray, event: Wrote | Resized) -> None:
    if isinstance(event, Resized):
        del body[event.size :]
        body.extend(bytes(event.size - len(body)))
        return
    if len(body) < event.offset:
        body.extend(bytes(event.offset - len(body)))
    body[event.offset : event.offset + len(event.data)] = event.data


def _body(file: _File, there: set[int], loss: Loss, random: Random) -> bytes:
    """Each unit at a moment of its own, cut to a size."""
    if not file.since:
        return bytes(file.kept)
    size = _size(file, there, loss, random)
    body = bytearray(file.kept[:size])
    body.extend(bytes(size - len(body)))
    for unit, events in sorted(_by_unit(file, loss.unit).items()):
        start = unit * loss.unit
        if start < size:
            part = _unit(file, start, events, there, loss, random)
            body[start : start + loss.unit] = part[: size - start]
    return bytes(body)


def _size(file: _File, there: set[int], loss: Loss, random: Random) -> int:
    low = high = len(file.kept)
    for number, event in file.since:
        if isinstance(event, Wrote):
            high = max(high, event.offset + len(event.data))
        elif number in there:
            low = high = event.size
        elif loss.names == "ordered":
            break  # what came after it needs it
    if random.random() < loss.survival or low == high:
        return high
    if not loss.survival:
        return low
    between = random.randint(low, high)
    return random.choice((low, between, max(low, between // loss.unit * loss.unit)))


def _by_unit(file: _File, unit: int) -> dict[int, list[tuple[int, Wrote | Resized]]]:
    """Writes and resizes of each unit since the last sync."""
    top = max((e.offset + len(e.data) for _, e in file.since if isinstance(e, Wrote)), default=0)
    units = -(-max(top, len(file.kept)) // unit)
    found: dict[int, list[tuple[int, Wrote | Resized]]] = {}
    for number, event in file.since:
        if isinstance(event, Resized):
            touched = range(event.size // unit, units)
        else:
            touched = range(event.offset // unit, -(-(event.offset + len(event.data)) // unit))
        for item in touched:
            found.setdefault(item, []).append((number, event))
    return found


def _unit(
    file: _File,
    start: int,
    events: list[tuple[int, Wrote | Resized]],
    there: set[int],
    loss: Loss,
    random: Random,
) -> bytes:
    first, last = _possible(events, there, loss)
    moment = first + _moment(last - first, loss, random)
    stop = start + loss.unit
    part = bytearray(file.kept[start:stop].ljust(loss.unit, b"\0"))
    if not moment and start >= len(file.kept) and loss.names == "harsh" and random.random() < 0.5:
        return random.randbytes(loss.unit)  # what was on the disk before
    for _, event in events[:moment]:
        if isinstance(event, Resized):
            keep = max(0, event.size - start)
            part[keep:] = bytes(loss.unit - keep)
        else:
            low, high = max(event.offset, start), min(event.offset + len(event.data), stop)
            part[low - start : high - start] = event.data[low - event.offset : high - event.offset]
    return bytes(part)


def _possible(
    events: list[tuple[int, Wrote | Resized]], there: set[int], loss: Loss
) -> tuple[int, int]:
    """The first and the last moment the unit can be at: a truncation that is there cuts off what
    was before it; one that is not there kept what came after it off the disk."""
    first, last = 0, len(events)
    for at, (number, event) in enumerate(events):
        if isinstance(event, Wrote):
            continue
        if number in there:
            first = at + 1
        elif loss.names == "ordered":
            last = at
            break
    return first, max(first, last)
