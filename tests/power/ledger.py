"""Somebody's work on a folder, and so what may and what must be there after power loss. Pure.

Knows: operations in order, the moments (positions of the record) between which each was carried
out, what an fsync promises. Must not know: how operations are carried out (`workload`), disks.

The rules:

- Names, modes and extended attributes are those of *some moment*: after the first N operations, for
  one N. An operation that began after the power was lost is not among them; everything before an
  fsync (of whatever file or directory) that returned before is.
- The bytes of a file are those of moments since its last promise, each sector at a moment of its
  own, as on any disk; never zeros or bytes that the file did not hold there. A promise is an fsync
  of the file; or that it was renamed over another one, if that rename is there: who saves that way
  finds the old file or the new one.
- A file that was truncated to nothing and written anew is the old one or the new one, in no part
  both. Its size is between the smallest and the largest that it had meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

SECTOR = 512
NEVER = 1 << 62


@dataclass(frozen=True)
class Act:
    """One operation. `file` is the number the ledger gave to the file at `path`."""

    kind: str  # create mkdir write truncate rename unlink rmdir chmod setxattr fsync fsyncdir
    path: str
    file: int = 0
    to: str = ""
    offset: int = 0
    data: bytes = b""
    size: int = 0
    mode: int = 0
    name: str = ""


@dataclass
class Done:
    act: Act
    begin: int
    end: int = NEVER


@dataclass(frozen=True)
class Thing:
    """The meaning of a path: a file by its number, or a directory (0)."""

    file: int
    mode: int
    xattrs: tuple[tuple[str, bytes], ...] = ()


Names = dict[str, Thing]


@dataclass(frozen=True)
class Seen:
    """A thing found at a path; `body` is None for a directory."""

    mode: int
    xattrs: tuple[tuple[str, bytes], ...]
    body: bytes | None


def names_after(names: Names, act: Act) -> Names:
    """The names when `act` has been carried out."""
    after = dict(names)
    match act.kind:
        case "create" | "mkdir":
            after[act.path] = Thing(act.file, act.mode)
        case "unlink" | "rmdir":
            del after[act.path]
        case "rename":
            moved = [path for path in names if path == act.path or _is_below(path, act.path)]
            for path in moved:
                del after[path]
            for path in moved:
                after[act.to + path[len(act.path) :]] = names[path]
        case "chmod":
            after[act.path] = replace(names[act.path], mode=act.mode)
        case "setxattr":
            found = dict(names[act.path].xattrs) | {act.name: act.data}
            after[act.path] = replace(names[act.path], xattrs=tuple(sorted(found.items())))
    return after


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(f"{directory}/")


def body_after(body: bytes, act: Act) -> bytes:
    if act.kind == "truncate":
        return body[: act.size].ljust(act.size, b"\0")
    old = body.ljust(act.offset, b"\0")
    return old[: act.offset] + act.data + old[act.offset + len(act.data) :]


@dataclass
class Ledger:
    acts: list[Done] = field(default_factory=list)
    names: list[Names] = field(default_factory=lambda: [{}])  # names[n]: after the first n acts
    _bodies: dict[tuple[int, int], list[tuple[int, bytes]]] = field(default_factory=dict)

    def begin(self, act: Act, position: int) -> Done:
        done = Done(act, position)
        self.acts.append(done)
        self.names.append(names_after(self.names[-1], act))
        return done

    @property
    def now(self) -> Names:
        return self.names[-1]

    def bodies(self, file: int, upto: int) -> list[tuple[int, bytes]]:
        """(number of acts, body) at each moment of the file among the first `upto` acts."""
        key = file, len(self.acts)
        if key not in self._bodies:
            self._bodies[key] = self._replay(file)
        return [item for item in self._bodies[key] if item[0] <= upto]

    def _replay(self, file: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for number, done in enumerate(self.acts, 1):
            if done.act.file == file:
                if done.act.kind == "create":
                    found.append((number, b""))
                elif done.act.kind in ("write", "truncate"):
                    found.append((number, body_after(found[-1][1], done.act)))
        return found

    def is_known(self, body: bytes, upto: int) -> bool:
        """True if it was, sector by sector, what some file held among the first `upto` acts."""
        files = {done.act.file for done in self.acts[:upto]} - {0}
        histories = [self.bodies(file, upto) for file in files]
        return any(explain(body, item, 0) is None for item in histories if item)

    # --- the rules --------------------------------------------------------------------------------

    def complaint(self, seen: dict[str, Seen], position: int) -> str | None:
        """The fault of a folder after power was lost at `position`; None: it has none."""
        started = sum(done.begin < position for done in self.acts)
        promised = max(
            (n for n, done in enumerate(self.acts, 1) if self._is_promise(done, position)),
            default=0,
        )
        started = max(started, promised)  # an fsync that found nothing to do is no event
        shape = {path: (one.body is None, one.mode, one.xattrs) for path, one in seen.items()}
        moments = [n for n in range(promised, started + 1) if _shape(self.names[n]) == shape]
        if not moments:
            return self._wrong_names(shape, promised, started)
        complaints = [self._wrong_bytes(seen, n, started, position) for n in moments]
        return None if None in complaints else complaints[-1]

    def _is_promise(self, done: Done, position: int) -> bool:
        return done.act.kind in ("fsync", "fsyncdir") and done.end <= position

    def _wrong_names(self, shape: object, promised: int, started: int) -> str:
        least, most = _shape(self.names[promised]), _shape(self.names[started])
        return (
            f"names of no moment from {promised} to {started}: {shape}\n"
            f"at {promised}: {least}\nat {started}: {most}\n"
            f"between: {[_short(done.act) for done in self.acts[promised:started]]}"
        )

    def _wrong_bytes(
        self, seen: dict[str, Seen], moment: int, started: int, position: int
    ) -> str | None:
        for path, thing in self.names[moment].items():
            body = seen[path].body
            if body is not None:
                base = self._base(thing.file, moment, position)
                wrong = explain(body, self.bodies(thing.file, started), base)
                if wrong:
                    acts = [
                        (n, _short(done.act))
                        for n, done in enumerate(self.acts[:started], 1)
                        if done.act.file == thing.file
                    ]
                    return f"{path} (promised: {base}, moment {moment}): {wrong}; acts: {acts}"
        return None

    def _base(self, file: int, moment: int, position: int) -> int:
        """After how many acts the file was promised as it was then, last."""
        found = 0
        for number, done in enumerate(self.acts, 1):
            act = done.act
            if act.file != file:
                continue
            if act.kind == "fsync" and done.end <= position:
                found = number
            over = act.kind == "rename" and act.to in self.names[number - 1]
            if over and number <= moment:
                found = max(found, number)
        return found


def _shape(names: Names) -> dict[str, tuple[bool, int, tuple[tuple[str, bytes], ...]]]:
    return {path: (one.file == 0, one.mode, one.xattrs) for path, one in names.items()}


def _short(act: Act) -> str:
    words = [act.kind, act.path, act.to, act.offset or "", len(act.data) or "", act.size or ""]
    return " ".join(str(word) for word in words if word != "")


# Bytes.


def explain(body: bytes, moments: Sequence[tuple[int, bytes]], base: int) -> str | None:
    """The fault of `body`, of a file that had `moments` (by number of acts) and was promised as it
    was after `base` acts; None: it has none."""
    first = max((at for at, (n, _) in enumerate(moments) if n <= base), default=0)
    possible = [one for _, one in moments[first:]]
    if body in possible:
        return None
    wrong = [_explain_by(body, epoch) for epoch in _epochs(possible)]
    return None if None in wrong else "; or ".join(map(str, wrong))


def _epochs(bodies: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut where the file was truncated to nothing. The empty moment begins the new epoch."""
    begin = 0
    for at, body in enumerate(bodies):
        if not body and at > begin:
            yield bodies[begin:at]
            begin = at
    yield bodies[begin:]


def _explain_by(body: bytes, epoch: Sequence[bytes]) -> str | None:
    sizes = [len(item) for item in epoch]
    if not min(sizes) <= len(body) <= max(sizes):
        return f"{len(body)} bytes, not {min(sizes)} to {max(sizes)}"
    for start in range(0, len(body), SECTOR):
        sector = body[start : start + SECTOR]
        if not any(item[start : start + len(sector)] == sector for item in epoch):
            return f"at {start} of {len(body)}: {sector[:32]!r}... is of no moment"
    return None


def stamped(file: int, number: int, offset: int, length: int) -> bytes:
    """Bytes that say whose they are, which write they are of, and where they belong."""
    lines = range(offset // 16, -(-(offset + length) // 16))
    text = b"".join(b"%3x.%4x.%6x\n" % (file % 4096, number, line) for line in lines)
    return text[offset % 16 :][:length]
