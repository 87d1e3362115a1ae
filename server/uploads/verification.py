"""Verifies that a stored object really is what its chunk's id says.

Knows: how an object is taken apart and checked, and what a verdict means for the chunk. Must not
know: when and in which thread this happens (`reception`), who may have the chunk (`access`).

The edge checks the SHA-256 and length that an uploader announced, in a bundle those of each part;
that the bytes are the chunk only reading them tells: each block is decoded within its declared
bound and hashed, and the hashes give the id. Until then the chunk is for the device that uploaded
it: nobody else is given it, and nobody else's version may refer to it (`doubtful`, and
`arrivals.unready` for commits).

A verdict is about one stay of one object: it counts only while the row still has the `uploaded_ns`
that was read before the object was; a bad one also only while the chunk is still in the bundle that
was read, or in none. A bad object is taken away and its chunk is `pending` again, to be uploaded
anew, also under the versions that refer to it. So it is with one that is missing; should it come
back (its disk was not mounted), `reception` finds it when it is asked for, a bundle too: its chunks
keep their places. The parts of a bundle are judged one by one; the object stays for those that are
good.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, and_, bindparam, or_, select, true, update

from remote.protocol.codec import decode_block
from remote.protocol.content import BadContent, Descriptor, block_count, check_descriptor
from server.metadata.records import slices
from server.metadata.schema import chunks, upload_chunks
from server.permissions import audit
from server.storage.blobs import BlobKey, BlobMissing, BlobStore, Head
from server.storage.places import COLUMNS, Place, place_of
from server.uploads import bundles, quota
from server.uploads.leases import THERE, known_chunks
from server.uploads.quota import Sums

PIECE = 1024 * 1024

_decode = msgspec.msgpack.Decoder(Descriptor).decode


class Checker:
    """Takes an object in, in pieces of any size, and says whether it is what `descriptor` says.
    Memory: one stored block. Raises `BadContent` as soon as it is not."""

    def __init__(self, descriptor: Descriptor) -> None:
        check_descriptor(descriptor)
        self._descriptor = descriptor
        self._blocks = block_count(descriptor.length)
        self._block = 0
        self._part = bytearray()
        self._length = 0
        self._hasher = hashlib.sha256()

    def feed(self, piece: bytes | memoryview) -> None:
        self._hasher.update(piece)
        self._length += len(piece)
        rest = memoryview(piece)
        while rest:
            if self._block == self._blocks:
                raise BadContent(f"more came than {self._descriptor.stored_length} bytes")
            rest = self._take(rest)

    def _take(self, rest: memoryview) -> memoryview:
        """Use up to one block of `rest`; what remains of it."""
        need = self._descriptor.stored_lengths[self._block] - len(self._part)
        if len(rest) < need:
            self._part += rest
            return rest[len(rest) :]
        block: bytearray | memoryview = rest[:need]
        if self._part:
            self._part += rest[:need]
            block = self._part
        decode_block(self._descriptor, self._block, block)
        self._part = bytearray()
        self._block += 1
        return rest[need:]

    def head(self) -> Head:
        """Length and SHA-256 of what came."""
        return Head(self._length, self._hasher.digest())

    def finish(self) -> None:
        """All has come."""
        if self._block < self._blocks:
            raise BadContent(f"{self._length} bytes, not {self._descriptor.stored_length}")
        if self._hasher.digest() != self._descriptor.sha256:
            raise BadContent("the object does not have the SHA-256 of its descriptor")


def check_object(blobs: BlobStore, key: BlobKey, descriptor: Descriptor) -> None:
    """Read a stored object back. Raises `BadContent`, `BlobMissing` or OSError."""
    checker = Checker(descriptor)
    with blobs.open(key) as reader:
        while piece := reader.read(PIECE):
            checker.feed(piece)
    checker.finish()


def check_place(blobs: BlobStore, place: Place, descriptor: Descriptor) -> None:
    """Read a chunk back where it is stored. Raises `BadContent`, `BlobMissing` or OSError."""
    if place.key.chunk == descriptor.id:
        check_object(blobs, place.key, descriptor)
        return
    checker = Checker(descriptor)
    checker.feed(blobs.read(*place))
    checker.finish()


# --- verdicts -----------------------------------------------------------------------------------


class Suspect(NamedTuple):
    """A chunk to look at where it is, and how it may be stored: as its row says, or as a lease with
    the same SHA-256 says (whoever promised it first may have lied about how the bytes divide)."""

    key: BlobKey
    place: Place
    uploaded_ns: int
    descriptors: tuple[bytes, ...]

    @property
    def is_alone(self) -> bool:
        """True if the chunk is an object of its own."""
        return self.place.key == self.key


class Verdict(NamedTuple):
    """`found` is the descriptor that is true; None: the object is bad, and `why`. `rotten`: the
    disk has spoiled what was good when it came, as far as an object of the chunk's own tells.
    `is_gone`: there is no object."""

    suspect: Suspect
    found: bytes | None
    why: str = ""
    rotten: bool = False
    is_gone: bool = False


_ROW = select(
    *COLUMNS,
    chunks.c.sha256,
    chunks.c.descriptor,
    chunks.c.uploaded_ns,
).where(
    chunks.c.drive == bindparam("drive"),
    chunks.c.id.in_(bindparam("ids", expanding=True)),
    chunks.c.state.in_(THERE),
    chunks.c.verified_ns.is_(None),
)
_PROMISES = select(upload_chunks.c.chunk, upload_chunks.c.descriptor).where(
    upload_chunks.c.drive == bindparam("drive"),
    upload_chunks.c.chunk.in_(bindparam("ids", expanding=True)),
    upload_chunks.c.descriptor.is_not(None),
)
# Spelt out: an IN list cannot be executed for many rows at once.
_there = or_(*(chunks.c.state == state for state in THERE))
_this_stay = (
    (chunks.c.drive == bindparam("d"))
    & (chunks.c.id == bindparam("i"))
    & (chunks.c.uploaded_ns == bindparam("u"))
    & _there
    & chunks.c.verified_ns.is_(None)
)
_GOOD = update(chunks).where(_this_stay).values(verified_ns=bindparam("now"))
_FOUND = update(chunks).where(_this_stay).values(descriptor=bindparam("found"))
_GONE = (
    update(chunks)
    .where(_this_stay, chunks.c.bundle.is_not_distinct_from(bindparam("b")))
    .values(state="pending", uploaded_ns=None, doomed_ns=None, verified_ns=None, copied=0)
)
_BAD = _GONE.values(bundle=None, bundle_offset=None)


def doubtful(
    conn: Connection, drive: str, ids: Iterable[bytes], device: str | None
) -> list[BlobKey]:
    """Those of `ids` that may not be given to `device` (None: to nobody) before they are verified.

    What is not stored at all (a bad object was taken away) is among them: asking for it to be
    verified is answered `unavailable`.
    """
    anothers = (
        true() if device is None else or_(chunks.c.device.is_(None), chunks.c.device != device)
    )
    unverified = and_(chunks.c.verified_ns.is_(None), anothers)
    wanted = select(chunks.c.id).where(
        chunks.c.drive == drive, or_(unverified, chunks.c.state.not_in(THERE))
    )
    found: list[BlobKey] = []
    for some in slices(ids):
        rows = conn.execute(wanted.where(chunks.c.id.in_(some))).scalars()
        found += [BlobKey(drive, id) for id in rows]
    return found


def any_doubtful(conn: Connection, keys: Iterable[BlobKey]) -> bool:
    """True if one of `keys` may not be given to everybody."""
    return any(doubtful(conn, drive, ids, None) for drive, ids in _by_drive(keys).items())


def pending(conn: Connection, keys: Iterable[BlobKey]) -> list[BlobKey]:
    """Those of `keys` that no event has reported as stored."""
    return [
        BlobKey(drive, row.id)
        for drive, ids in _by_drive(keys).items()
        for row in known_chunks(conn, drive, ids).values()
        if row.state == "pending"
    ]


def suspects(conn: Connection, keys: Iterable[BlobKey]) -> list[Suspect]:
    """Objects to be looked at to verify `keys`; those that are verified already are left out."""
    return [
        suspect
        for drive, ids in _by_drive(keys).items()
        for some in slices(ids)
        for suspect in _suspects(conn, {"drive": drive, "ids": some})
    ]


def _by_drive(keys: Iterable[BlobKey]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for key in keys:
        found.setdefault(key.drive, []).append(key.chunk)
    return found


def _suspects(conn: Connection, where: dict[str, object]) -> Iterator[Suspect]:
    promised: dict[bytes, list[bytes]] = {}
    for chunk, encoded in conn.execute(_PROMISES, where):
        promised.setdefault(chunk, []).append(encoded)
    for row in conn.execute(_ROW, where):
        others = [item for item in promised.get(row.id, ()) if _decode(item).sha256 == row.sha256]
        descriptors = tuple(dict.fromkeys([row.descriptor, *others]))
        yield Suspect(BlobKey(row.drive, row.id), place_of(row), row.uploaded_ns, descriptors)


def judge(blobs: BlobStore, suspect: Suspect) -> Verdict:
    """Read the object. Raises OSError, which is no verdict."""
    why = ""
    try:
        for encoded in suspect.descriptors:
            try:
                check_place(blobs, suspect.place, _decode(encoded))
            except BadContent as error:
                why = why or str(error)
            else:
                return Verdict(suspect, encoded)
        head = blobs.head(suspect.key) if suspect.is_alone else None
    except BlobMissing:
        return Verdict(suspect, None, "the object is missing", is_gone=True)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return Verdict(suspect, None, f"the disk cannot read it: {error}", rotten=True)
    expected = _decode(suspect.descriptors[0]).sha256
    return Verdict(suspect, None, why, rotten=head is not None and head.sha256 != expected)


def record(conn: Connection, verdicts: Sequence[Verdict], now_ns: int) -> list[Verdict]:
    """Write verdicts down. Returns the bad ones that count: their objects are to be removed."""
    good = [item for item in verdicts if item.found is not None]
    other = [item for item in good if item.found != item.suspect.descriptors[0]]
    if other:
        conn.execute(_FOUND, [_stay(item.suspect) | {"found": item.found} for item in other])
    if good:
        conn.execute(_GOOD, [_stay(item.suspect) | {"now": now_ns} for item in good])
    return [item for item in verdicts if item.found is None and _condemn(conn, item, now_ns)]


def _condemn(conn: Connection, verdict: Verdict, now_ns: int) -> bool:
    key, place = verdict.suspect.key, verdict.suspect.place
    bundle, length = None if verdict.suspect.is_alone else place.key.chunk, place.length
    condemn = _GONE if verdict.is_gone else _BAD
    if conn.execute(condemn, _stay(verdict.suspect) | {"b": bundle}).rowcount != 1:
        return False
    if bundle is not None:
        bundles.note_emptied(conn, key.drive, [bundle], now_ns)
    quota.change(conn, key.drive, Sums(used=-length, reserved=length, promised=1))
    chunk = key.chunk.hex()
    audit.note(conn, None, "chunk_bad", chunk, now_ns, drive=key.drive, why=verdict.why)
    return True


def remove(conn: Connection, blobs: BlobStore, verdict: Verdict) -> None:
    """Take a bad object away, in a write transaction after that of its verdict: then a crash in
    between leaves an object that nobody believes, and never a version without its object.

    What the disk has spoiled is set aside for people to look at; what came bad is deleted. A bundle
    goes when no chunk is in it any more.
    """
    key, place = verdict.suspect.key, verdict.suspect.place
    if not verdict.suspect.is_alone:
        stored = bundles.delete_unused(conn, place.key)
        if stored is not None:
            _take_away(blobs, place.key, rotten=blobs.head(place.key) != stored)
        return
    state = select(chunks.c.state).where(chunks.c.drive == key.drive, chunks.c.id == key.chunk)
    if conn.execute(state).scalar() not in (None, "pending"):
        return
    _take_away(blobs, key, rotten=verdict.rotten)


def _take_away(blobs: BlobStore, key: BlobKey, *, rotten: bool) -> None:
    if rotten:
        blobs.set_aside(key)
    else:
        blobs.delete(key)


def _stay(suspect: Suspect) -> dict[str, object]:
    return {"d": suspect.key.drive, "i": suspect.key.chunk, "u": suspect.uploaded_ns}
