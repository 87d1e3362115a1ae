"""Chunks arriving: from a stored object to a chunk that versions may refer to.

Knows: which promise a stored object fulfils. Must not know: how bytes arrive (`edge`), when this is
called (`service`).

A chunk may be promised in several ways (see `leases`). What arrives decides: the descriptor whose
SHA-256 and length the stored object has becomes the chunk's. An object that fulfils no promise, or
whose chunk nobody promises any more, leaves nothing behind.

A bundle is as many arrivals as it has parts, each of which is promised, or not, by itself; parts
that nobody awaits are ignored. The first parts that are adopted make its row, if they are half of
it: else it leaves nothing behind. While it is being deleted nothing is adopted from it.

Events may be late, repeated and out of order, so none is believed by itself: a chunk is marked only
while it is `pending` and, in that very transaction, its object is there; an object is removed only
in a transaction that sees no row, or a `pending` one that it does not fulfil, or one that says that
the chunk is in a bundle and nowhere else. What is `deleting` is none of these: see `gc`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Select, bindparam, select, update

from remote.protocol.bundle import Bundle
from remote.protocol.content import Descriptor
from remote.protocol.messages import Create, Keyed, Write
from server.metadata import operations
from server.metadata.records import slices
from server.metadata.schema import bundles, chunks, drives, files, upload_chunks, uploads
from server.permissions import access
from server.permissions.caller import Caller
from server.storage.blobs import BlobKey, BlobStore, Head
from server.uploads import leases, quota
from server.uploads.bundles import insert_row, note_filled
from server.uploads.leases import THERE, Upload, known_chunks, possessed
from server.uploads.quota import Sums

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Descriptor).decode

_ARRIVED = (
    update(chunks)
    .where(
        chunks.c.drive == bindparam("d"),
        chunks.c.id == bindparam("i"),
        chunks.c.state == "pending",
    )
    .values(
        state="uploaded",
        uploaded_ns=bindparam("now"),
        verified_ns=None,
        unshown=0,
        bundle=bindparam("b"),
        bundle_offset=bindparam("at"),
        copied=0,
    )
)
_ROWS = select(
    chunks.c.id,
    chunks.c.state,
    chunks.c.stored_length,
    chunks.c.unshown,
    chunks.c.sha256,
    chunks.c.bundle,
    chunks.c.copied,
).where(chunks.c.drive == bindparam("drive"), chunks.c.id.in_(bindparam("ids", expanding=True)))
_BUNDLES = select(bundles.c.id, bundles.c.emptied_ns, bundles.c.deleting).where(
    bundles.c.drive == bindparam("drive"), bundles.c.id.in_(bindparam("ids", expanding=True))
)
_COPIED = (
    update(chunks)
    .where(
        chunks.c.drive == bindparam("d"),
        chunks.c.id == bindparam("i"),
        chunks.c.bundle.is_not(None),
    )
    .values(copied=1)
)
_PENDING = select(chunks.c.drive, chunks.c.id).where(
    chunks.c.drive.in_(select(drives.c.id).where(drives.c.owner == bindparam("account"))),
    chunks.c.id.in_(bindparam("ids", expanding=True)),
    chunks.c.state == "pending",
)
_PROMISES = (
    select(upload_chunks.c.descriptor, uploads.c.device)
    .join(uploads, uploads.c.version == upload_chunks.c.version)
    .where(
        upload_chunks.c.drive == bindparam("drive"),
        upload_chunks.c.chunk == bindparam("chunk"),
        upload_chunks.c.descriptor.is_not(None),
    )
)
_ADOPT = (
    update(chunks)
    .where(
        chunks.c.drive == bindparam("d"),
        chunks.c.id == bindparam("i"),
        chunks.c.state == "pending",
    )
    .values(
        state="uploaded",
        uploaded_ns=bindparam("now"),
        sha256=bindparam("s"),
        stored_length=bindparam("l"),
        descriptor=bindparam("how"),
        device=bindparam("by"),
        verified_ns=bindparam("verified"),
        unshown=0,
        bundle=bindparam("b"),
        bundle_offset=bindparam("at"),
        copied=0,
    )
)
_DEVICE = select(uploads.c.device).where(uploads.c.version == bindparam("version"))


class Proof(NamedTuple):
    """The whole bytes of a chunk came for the upload of `version`, and were checked: they are the
    chunk, stored as `descriptor` says."""

    version: str
    descriptor: Descriptor


class Arrival(NamedTuple):
    """A stored object is in the blob store, durably. `made`: it was not there before, and nobody
    else tells of it. `bundle` is what it says that it is, if it has `key`'s id."""

    key: BlobKey
    head: Head
    made: bool = True
    proof: Proof | None = None
    bundle: Bundle | None = None

    def chunks(self) -> list[BlobKey]:
        """Those whose stored bytes may be in it."""
        if self.bundle is None:
            return [self.key]
        return [BlobKey(self.key.drive, part.id) for part in self.bundle.parts]


class _Where(NamedTuple):
    """Where the stored bytes of a chunk are: from byte `offset` of a bundle."""

    bundle: bytes | None
    offset: int | None


_ALONE = _Where(None, None)


class _Promise(NamedTuple):
    """A lease: how its chunk would be stored, and by whom."""

    how: bytes
    device: str | None


class _Awaited(NamedTuple):
    """A part of a bundle, `length` bytes of it, that fulfils a `promise` (None: that of the chunk's
    `row`)."""

    key: BlobKey
    row: Any
    length: int
    where: _Where
    promise: _Promise | None


def arrived(
    conn: Connection, blobs: BlobStore, arrivals: Sequence[Arrival], now_ns: int
) -> list[BlobKey]:
    """Mark chunks uploaded whose objects are stored. Returns those that are to be verified."""
    arriving = _Arriving(conn, blobs, now_ns)
    # Bundles come last: of a chunk that has come by itself too, that object is known then.
    new = [item for item in arrivals if item.made and item.bundle is None]
    new += [item for item in arrivals if item.bundle is not None]
    arriving.read(new)
    unverified: list[BlobKey] = []
    for arrival in new:
        uploaded = arriving.accept(arrival)
        if arrival.proof is None:
            unverified += uploaded
    for arrival in arrivals:
        if arrival.proof is not None:
            version, descriptor = arrival.proof
            leases.prove(conn, version, arrival.key.chunk, descriptor.length)
    arriving.write()
    return unverified


class _Arriving:
    """Of some arrivals: the rows of their chunks, and what is to be written of them."""

    def __init__(self, conn: Connection, blobs: BlobStore, now_ns: int) -> None:
        self._conn, self._blobs, self._now_ns = conn, blobs, now_ns
        self._rows: dict[BlobKey, Any] = {}
        self._bundles: dict[BlobKey, Any] = {}
        self._marked: list[dict[str, object]] = []
        self._sums: defaultdict[str, Sums] = defaultdict(Sums)
        self._done: set[BlobKey] = set()

    def read(self, arrivals: Iterable[Arrival]) -> None:
        known = list(arrivals)
        self._rows = self._found(_ROWS, (key for item in known for key in item.chunks()))
        self._bundles = self._found(_BUNDLES, (item.key for item in known if item.bundle))

    def _found(self, query: Select[Any], keys: Iterable[BlobKey]) -> dict[BlobKey, Any]:
        by_drive: defaultdict[str, dict[bytes, None]] = defaultdict(dict)
        for key in keys:
            by_drive[key.drive][key.chunk] = None
        return {
            BlobKey(drive, row.id): row
            for drive, ids in by_drive.items()
            for some in slices(ids)
            for row in self._conn.execute(query, {"drive": drive, "ids": some})
        }

    def accept(self, arrival: Arrival) -> list[BlobKey]:
        """The chunks that are uploaded by this."""
        found = self._blobs.stat(arrival.key)
        if found is None or found.length != arrival.head.length:
            return []  # taken away since; what is there now has an event of its own
        if arrival.bundle is not None:
            return self._accept_bundle(arrival.key, arrival.head, arrival.bundle)
        return [arrival.key] if self._accept_alone(arrival) else []

    def _accept_alone(self, arrival: Arrival) -> bool:
        key, head, proof = arrival.key, arrival.head, arrival.proof
        row = self._rows.get(key)
        if row is None:
            self._blobs.delete(key)
            return False
        if row.state in THERE and row.bundle is not None and not row.copied:
            self._accept_copy(key, row)
        if row.state != "pending" or key in self._done:
            return False
        done: Sums | None
        if proof is not None:
            done = _adopt_proof(self._conn, key, row, proof, self._now_ns)
        elif head == Head(row.stored_length, row.sha256) and not row.unshown:
            done = self._mark(key, row)  # as it was promised, almost always by the drive's owner
        else:
            done = self._adopt_other(key, row)
        return self._note(key, done)

    def _accept_copy(self, key: BlobKey, row: Any) -> None:
        """A chunk that is in a bundle has come by itself too: as such it serves those who may not
        read the bundle, if it is stored alike."""
        if self._blobs.head(key) == Head(row.stored_length, row.sha256):
            self._conn.execute(_COPIED, {"d": key.drive, "i": key.chunk})
        else:
            self._blobs.delete(key)

    def _accept_bundle(self, key: BlobKey, head: Head, bundle: Bundle) -> list[BlobKey]:
        known = self._bundles.get(key)
        if known is not None and known.deleting:
            return []
        awaited = list(self._awaited(key, bundle))
        if known is None and not _is_worth_its_room(bundle, awaited):
            self._blobs.delete(key)
            return []
        adopted = [part.key for part in awaited if self._note(part.key, self._adopt_part(part))]
        if adopted and known is None:
            insert_row(self._conn, key, head, self._now_ns)
            self._bundles |= self._found(_BUNDLES, [key])
        elif adopted:
            note_filled(self._conn, key)
        return adopted

    def _awaited(self, key: BlobKey, bundle: Bundle) -> Iterator[_Awaited]:
        """The parts that fulfil a promise."""
        for part, offset in zip(bundle.parts, bundle.offsets, strict=True):
            own = BlobKey(key.drive, part.id)
            row = self._rows.get(own)
            if row is None or row.state != "pending" or row.unshown or own in self._done:
                continue
            head = Head(part.stored_length, part.sha256)
            promise = None
            if head != Head(row.stored_length, row.sha256):
                promise = self._promise(own, head)
                if promise is None:
                    continue
            yield _Awaited(own, row, head.length, _Where(key.chunk, offset), promise)

    def _adopt_part(self, part: _Awaited) -> Sums:
        if part.promise is None:
            return self._mark(part.key, part.row, part.where)
        how, device = part.promise
        return _adopt(self._conn, part.key, part.row, how, device, self._now_ns, part.where)

    def _note(self, key: BlobKey, done: Sums | None) -> bool:
        """False: the chunk was not uploaded by this after all."""
        if done is None:
            return False
        self._done.add(key)
        self._sums[key.drive] += done
        return True

    def write(self) -> None:
        if self._marked:
            self._conn.execute(_ARRIVED, self._marked)
        for drive, change in self._sums.items():
            quota.change(self._conn, drive, change)

    def _mark(self, key: BlobKey, row: Any, where: _Where = _ALONE) -> Sums:
        here: dict[str, object] = {"d": key.drive, "i": key.chunk, "now": self._now_ns}
        self._marked.append(here | {"b": where.bundle, "at": where.offset})
        return Sums(used=row.stored_length) - Sums.of_pending([row])

    def _adopt_other(self, key: BlobKey, row: Any) -> Sums | None:
        """The object is not as the first promise said: adopt the lease that it fulfils, or remove
        it.

        What is there is read again: the event may have been of an object that is there no more.
        """
        head = self._blobs.head(key)
        if head == Head(row.stored_length, row.sha256):
            return self._mark(key, row)
        promise = self._promise(key, head)
        if promise is None:
            self._blobs.delete(key)
            return None
        return _adopt(self._conn, key, row, promise.how, promise.device, self._now_ns)

    def _promise(self, key: BlobKey, head: Head | None) -> _Promise | None:
        """The lease that bytes with this `head` fulfil; None: there is none."""
        promises = self._conn.execute(_PROMISES, {"drive": key.drive, "chunk": key.chunk}).all()
        for how, device in promises:
            descriptor = _decode(how)
            if head == Head(descriptor.stored_length, descriptor.sha256):
                return _Promise(how, device)
        return None


def _is_worth_its_room(bundle: Bundle, awaited: Sequence[_Awaited]) -> bool:
    """True if at least half of a bundle is awaited. Only what is awaited counts as used: of many
    bundles that differ in a few bytes each would be kept for those."""
    return 0 < bundle.length - len(bundle.tail) <= 2 * sum(part.length for part in awaited)


def _adopt_proof(conn: Connection, key: BlobKey, row: Any, proof: Proof, now_ns: int) -> Sums:
    """Believe an object that was checked on its way in: it needs no other promise, and no
    verification."""
    device = conn.execute(_DEVICE, {"version": proof.version}).scalar()
    how = _encode(proof.descriptor)
    return _adopt(conn, key, row, how, device, now_ns, verified_ns=now_ns)


def _adopt(
    conn: Connection,
    key: BlobKey,
    row: Any,
    how: bytes,
    device: str | None,
    now_ns: int,
    where: _Where = _ALONE,
    verified_ns: int | None = None,
) -> Sums:
    descriptor = _decode(how)
    stored = {"s": descriptor.sha256, "l": descriptor.stored_length, "how": how, "by": device}
    here = {"d": key.drive, "i": key.chunk, "now": now_ns, "verified": verified_ns}
    here |= {"b": where.bundle, "at": where.offset}
    conn.execute(_ADOPT, here | stored)
    return Sums(used=descriptor.stored_length) - Sums.of_pending([row])


def promised(conn: Connection, account: str, ids: Iterable[bytes]) -> list[BlobKey]:
    """Those chunks of the account's drives that were announced before, and have not arrived as far
    as is noted."""
    rows = (conn.execute(_PENDING, {"account": account, "ids": some}) for some in slices(ids))
    return [BlobKey(row.drive, row.id) for page in rows for row in page]


def chunks_of(ops: Iterable[Keyed]) -> list[bytes]:
    """The chunks that `ops` refer to, as often as they do."""
    contents = (getattr(keyed.op, "content", None) for keyed in ops)
    return [piece.id for item in contents if item is not None for piece in item.manifest.pieces]


class Unready(NamedTuple):
    """Chunks that operations need: `pending` ones that no event has reported, of which the blob
    store may know more; and `doubtful` ones, which another device uploaded and nobody verified."""

    pending: list[BlobKey]
    doubtful: list[BlobKey]


def unready(conn: Connection, ops: Iterable[Keyed], caller: Caller, now_ns: int) -> Unready:
    """Chunks to be looked into before `ops` of `caller` are applied."""
    result = Unready([], [])
    for drive, wanted in _needed(conn, ops, caller, now_ns).items():
        for row in known_chunks(conn, drive, wanted).values():
            if row.state == "pending":
                result.pending.append(BlobKey(drive, row.id))
            # What is older than verification has no device, and is believed as it always was.
            elif (
                row.state in THERE
                and row.verified_ns is None
                and row.device not in (None, caller.device)
            ):
                result.doubtful.append(BlobKey(drive, row.id))
    return result


def _needed(
    conn: Connection, ops: Iterable[Keyed], caller: Caller, now_ns: int
) -> dict[str, set[bytes]]:
    """By drive, the chunks that `ops` refer to and that the caller may know of."""
    withs = [
        (operations.anchor(keyed.op), keyed.op.file, keyed.op.content)
        for keyed in ops
        if isinstance(keyed.op, Create | Write) and keyed.op.content is not None
    ]
    drive_of: dict[str, str] = {}
    for some in slices({anchor for anchor, _, content in withs if content.manifest.pieces}):
        rows = conn.execute(select(files.c.id, files.c.drive).where(files.c.id.in_(some)))
        drive_of |= {row.id: row.drive for row in rows}
    found: dict[str, set[bytes]] = {}
    for anchor, file, content in withs:
        drive, ids = drive_of.get(anchor), {item.id for item in content.manifest.pieces if item.id}
        if drive is None or not ids:
            continue
        if not access.owns_drive(caller, drive):
            upload = Upload(content.version, file, drive)
            ids = possessed(conn, caller, upload, list(ids), now_ns)
        found.setdefault(drive, set()).update(ids)
    return found
