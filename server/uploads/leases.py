"""Leases: what an upload session holds of a drive's chunks, and which it may refer to.

Knows: the states of a chunk, promises, possession. Must not know: sessions' life (`uploads`), how
bytes arrive (`edge`, `arrivals`), what a version is for (`versions`).

A row in `upload_chunks` is a lease: what it names is not collected. A chunk that the drive does not
have is promised: a `pending` row, its room reserved. A chunk that is `deleting` is as good as gone,
and needed; nobody revives it.

Two devices may store one chunk differently (compressors differ), and one of them may lie about how.
The first promise is in `chunks`; a lease that differs in anything carries its own descriptor;
`arrivals` and `verification` decide.

Possession: who does not own the drive may refer to a chunk only if they can read it (an uploaded
version of the very file refers to it) or have sent its bytes (`proven`). Everything else looks to
them as if it were not there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    Boolean,
    Connection,
    Row,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    union,
    update,
)

from remote.protocol.content import BadContent, Descriptor, check_descriptor
from remote.protocol.errors import BadUpload, Refused
from remote.protocol.messages import ChunkTicket, PresignedPut
from server.metadata.records import slices
from server.metadata.schema import chunks, devices, upload_chunks, uploads, version_chunks, versions
from server.permissions import access
from server.permissions.caller import Caller
from server.uploads import quota
from server.uploads.quota import Amount, Budget, Sums

# States of a chunk that the drive has.
THERE = ("uploaded", "doomed")

# (drive, descriptor, version for whose upload the PUT shows possession).
Sign = Callable[[str, Descriptor, str | None], PresignedPut]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Descriptor).decode


class Upload(NamedTuple):
    """A live session of the caller's: what leases hang on. `holder` is whose promises they are (see
    `uploaders`); none is named where nothing is leased."""

    version: str
    file: str
    drive: str
    holder: str = ""


_KNOWN = select(
    chunks.c.id,
    chunks.c.state,
    chunks.c.descriptor,
    chunks.c.device,
    chunks.c.verified_ns,
    chunks.c.stored_length,
    chunks.c.unshown,
).where(chunks.c.drive == bindparam("drive"), chunks.c.id.in_(bindparam("ids", expanding=True)))
_chunk_of_lease = (upload_chunks.c.drive == chunks.c.drive) & (upload_chunks.c.chunk == chunks.c.id)
_LEASED = (
    select(chunks.c.id, chunks.c.state, upload_chunks.c.proven)
    .join_from(upload_chunks, chunks, _chunk_of_lease)
    .where(upload_chunks.c.version == bindparam("version"))
    .order_by(chunks.c.id)
)
_READABLE = (
    select(version_chunks.c.chunk)
    .join(versions, versions.c.id == version_chunks.c.version)
    .where(
        versions.c.file == bindparam("file"),
        versions.c.status == "uploaded",
        version_chunks.c.drive == bindparam("drive"),
        version_chunks.c.chunk.in_(bindparam("ids", expanding=True)),
    )
)
_SENT = (
    select(upload_chunks.c.chunk)
    .join(uploads, uploads.c.version == upload_chunks.c.version)
    .join(devices, uploads.c.device == devices.c.id)
    .where(
        upload_chunks.c.version == bindparam("version"),
        upload_chunks.c.drive == bindparam("drive"),
        upload_chunks.c.chunk.in_(bindparam("ids", expanding=True)),
        upload_chunks.c.proven != 0,
        devices.c.account == bindparam("account"),
        or_(bindparam("any_device", type_=Boolean), uploads.c.device == bindparam("device")),
        uploads.c.expires_ns > bindparam("now"),
    )
)
_SHOWN = union(_READABLE, _SENT)
_of_versions = upload_chunks.c.version.in_(bindparam("versions", expanding=True))
_holder = case((devices.c.folder.is_(None), devices.c.account), else_=devices.c.id)
# What `uploaders.sessions` should be.
SESSIONS = (
    select(uploads.c.drive, _holder.label("holder"), func.count().label("sessions"))
    .join(devices, uploads.c.device == devices.c.id)
    .group_by(uploads.c.drive, _holder)
)
# What `uploaders.asked_chunks` and `asked_bytes` should be; no row: 0.
ASKED = (
    select(
        uploads.c.drive,
        _holder.label("holder"),
        func.count().label("chunks"),
        func.sum(chunks.c.length).label("bytes"),
    )
    .join_from(upload_chunks, chunks, _chunk_of_lease)
    .join(uploads, uploads.c.version == upload_chunks.c.version)
    .join(devices, uploads.c.device == devices.c.id)
    .where(upload_chunks.c.proven == 0)
    .group_by(uploads.c.drive, _holder)
)
_HOLDERS = SESSIONS.where(uploads.c.version.in_(bindparam("versions", expanding=True)))
_ASKED = ASKED.where(_of_versions)
_PROMISED = (
    select(chunks.c.drive, chunks.c.id)
    .join_from(upload_chunks, chunks, _chunk_of_lease)
    .where(_of_versions, chunks.c.state == "pending")
    .distinct()
)
_unheld = ~exists().where(
    upload_chunks.c.drive == chunks.c.drive, upload_chunks.c.chunk == chunks.c.id
) & ~exists().where(
    # A bad object was taken away from under a version: the row stays until it is back.
    version_chunks.c.drive == chunks.c.drive,
    version_chunks.c.chunk == chunks.c.id,
)
_PROMISE_OF = (
    select(func.coalesce(upload_chunks.c.descriptor, chunks.c.descriptor))
    .join_from(upload_chunks, chunks, _chunk_of_lease)
    .join(uploads, uploads.c.version == upload_chunks.c.version)
    .where(
        upload_chunks.c.version == bindparam("version"),
        upload_chunks.c.drive == bindparam("drive"),
        upload_chunks.c.chunk == bindparam("chunk"),
        uploads.c.expires_ns > bindparam("now"),
    )
)


class ChunkState(NamedTuple):
    """A chunk as a drive knows it, as in `chunks`."""

    state: str
    descriptor: bytes
    stored_length: int
    unshown: int


class Leasing:
    """Leases taken by one caller in one write transaction, many uploads at a time.

    What `load` has read is not asked for again, `write_out` writes what is taken. A refusal leaves
    nothing behind here; of `budget` whoever called gives back what it counted.
    """

    def __init__(self, conn: Connection, caller: Caller, budget: Budget, sign: Sign) -> None:
        self._conn, self._caller, self._budget, self._sign = conn, caller, budget, sign
        self._states: dict[tuple[str, bytes], ChunkState | None] = {}
        self._promised: list[dict[str, object]] = []
        self._shown: list[dict[str, object]] = []
        self._revived: list[dict[str, object]] = []
        self._dropped: list[dict[str, object]] = []
        self._taken: list[dict[str, object]] = []

    def load(self, drive: str, ids: Iterable[bytes]) -> None:
        """Read what the drive knows of these chunks."""
        wanted = dict.fromkeys(id for id in ids if (drive, id) not in self._states)
        self._states.update(dict.fromkeys((drive, id) for id in wanted))
        for id, row in known_chunks(self._conn, drive, wanted).items():
            known = ChunkState(row.state, row.descriptor, row.stored_length, row.unshown)
            self._states[drive, id] = known

    def take(
        self, upload: Upload, descriptors: Sequence[Descriptor], now_ns: int, *, is_new: bool
    ) -> list[ChunkTicket]:
        """Lease these chunks, or the same again: a ticket for each, with a fresh URL where needed.
        `is_new`: the upload leases nothing yet.

        Raises `Refused` with BadUpload, QuotaExceeded or RateLimited.
        """
        wanted, drive = _checked(descriptors), upload.drive
        self.load(drive, wanted)
        known = {id: row for id in wanted if (row := self._states[drive, id]) is not None}
        fresh = [descriptor for id, descriptor in wanted.items() if id not in known]
        owner = access.owns_drive(self._caller, drive)
        shown = None
        if not owner:
            shown = possessed(self._conn, self._caller, upload, list(wanted), now_ns)
        before = set[bytes]() if is_new else _unproven(self._conn, upload, wanted)
        now = set[bytes]() if shown is None else wanted.keys() - shown
        asked = Amount.of(wanted[id].length for id in now - before)
        self._budget.take(drive, upload.holder, Amount.of(d.stored_length for d in fresh), asked)
        answered = Amount.of(wanted[id].length for id in before - now)
        self._budget.answered(drive, upload.holder, answered)
        self._promise(drive, fresh, now_ns)
        if owner:
            self._show(drive, {id: row for id, row in known.items() if row.unshown})
        self._keep(drive, {id: row for id, row in known.items() if row.state == "doomed"})
        self._record(upload, wanted, known, shown, is_new=is_new)
        there = {id for id, row in known.items() if row.state in THERE}
        there = there if shown is None else there & shown
        proof = None if shown is None else upload.version
        return [
            ChunkTicket(id=item.id, state="uploaded")
            if item.id in there
            else ChunkTicket(id=item.id, state="needed", put=self._sign(drive, item, proof))
            for item in descriptors
        ]

    def write_out(self) -> None:
        """Write what was taken. The sessions' rows are there."""
        for statement, rows in (
            (insert(chunks), self._promised),
            (_SHOW, self._shown),
            (_REVIVE, self._revived),
            (_DROP, self._dropped),
            (insert(upload_chunks), self._taken),
        ):
            if rows:
                self._conn.execute(statement, rows)
                rows.clear()

    def forget(self) -> None:
        """Somebody else has changed chunks, after `write_out` or an undone savepoint."""
        self._states.clear()

    def _promise(self, drive: str, fresh: Sequence[Descriptor], now_ns: int) -> None:
        unshown = int(not access.owns_drive(self._caller, drive))
        for item in fresh:
            encoded = _encode(item)
            known = ChunkState("pending", encoded, item.stored_length, unshown)
            self._states[drive, item.id] = known
            row = {"drive": drive, "id": item.id, "length": item.length, "sha256": item.sha256}
            row |= {"created_ns": now_ns, "device": self._caller.device}
            self._promised.append(row | known._asdict())

    def _show(self, drive: str, rows: dict[bytes, ChunkState]) -> None:
        """The drive's owner promises these pending chunks too, which only others had."""
        for id, row in rows.items():
            self._states[drive, id] = row._replace(unshown=0)
            self._shown.append({"d": drive, "i": id})
        unshown = sum(row.stored_length for row in rows.values())
        self._budget.change(drive, Sums(unshown=-unshown, promised=len(rows)))

    def _keep(self, drive: str, rows: dict[bytes, ChunkState]) -> None:
        """Revive chunks that garbage collection was about to delete."""
        for id, row in rows.items():
            self._states[drive, id] = row._replace(state="uploaded")
            self._revived.append({"d": drive, "i": id})

    def _record(
        self,
        upload: Upload,
        wanted: dict[bytes, Descriptor],
        known: dict[bytes, ChunkState],
        shown: set[bytes] | None,
        *,
        is_new: bool,
    ) -> None:
        """The leases, each with its own descriptor where its bytes are awaited and the chunk's says
        otherwise."""
        if not is_new:
            self._dropped += [{"v": upload.version, "i": id} for id in wanted]
        for id, descriptor in wanted.items():
            row, proven = known.get(id), shown is None or id in shown
            own = None
            if row is not None and not (proven and row.state in THERE):
                encoded = _encode(descriptor)
                own = encoded if encoded != row.descriptor else None
            lease = {"version": upload.version, "drive": upload.drive, "chunk": id}
            self._taken.append(lease | {"descriptor": own, "proven": int(proven)})


def tickets(conn: Connection, version: str) -> list[ChunkTicket]:
    """Which of the chunks that an upload leases are there for it. No URLs."""
    return [
        ChunkTicket(id=row.id, state="uploaded" if row.state in THERE and row.proven else "needed")
        for row in conn.execute(_LEASED, {"version": version})
    ]


def possessed(
    conn: Connection, caller: Caller, upload: Upload, ids: Sequence[bytes], now_ns: int
) -> set[bytes]:
    """Those of `ids` that the caller can read in the upload's file or has sent for the upload."""
    here: dict[str, object] = {"version": upload.version, "file": upload.file}
    here |= {"drive": upload.drive, "account": caller.account, "now": now_ns}
    # What the account's other devices may know of, a token for a single folder may not.
    here |= {"device": caller.device, "any_device": caller.folder is None}
    found: set[bytes] = set()
    for some in slices(ids):
        found.update(conn.execute(_SHOWN, here | {"ids": some}).scalars())
    return found


def promise_of(
    conn: Connection, version: str, drive: str, chunk: bytes, now_ns: int
) -> Descriptor | None:
    """The form in which the upload of `version` said it would store a chunk; None: it leases no
    such chunk."""
    here = {"version": version, "drive": drive, "chunk": chunk, "now": now_ns}
    found = conn.execute(_PROMISE_OF, here).scalar()
    return None if found is None else _decode(found)


def end(conn: Connection, ended: Iterable[str]) -> None:
    """End the upload sessions of these versions: their leases, and the promises that nobody else
    leases. What was stored is left to garbage collection; what is still coming finds no row
    (`arrivals`)."""
    for some in slices(ended):
        _end(conn, some)


def _end(conn: Connection, ended: Sequence[str]) -> None:
    these = {"versions": ended}
    promised: defaultdict[str, list[bytes]] = defaultdict(list)
    for row in conn.execute(_PROMISED, these):
        promised[row.drive].append(row.id)
    asked = {(row.drive, row.holder): row for row in conn.execute(_ASKED, these)}
    for row in conn.execute(_HOLDERS, these).all():
        more = asked.get((row.drive, row.holder))
        amount = quota.NONE if more is None else Amount(more.chunks, more.bytes)
        quota.release(conn, row.drive, row.holder, row.sessions, amount)
    uploading = versions.c.id.in_(ended) & (versions.c.status == "uploading")
    conn.execute(delete(versions).where(uploading))
    conn.execute(delete(uploads).where(uploads.c.version.in_(ended)))
    for drive, ids in promised.items():
        for some in slices(ids):
            _forget_promises(conn, drive, some)


def _forget_promises(conn: Connection, drive: str, ids: Sequence[bytes]) -> None:
    """Those of `ids` that are promised to nobody any more."""
    mine = (chunks.c.drive == drive) & chunks.c.id.in_(ids) & (chunks.c.state == "pending")
    gone = delete(chunks).where(mine, _unheld)
    rows = conn.execute(gone.returning(chunks.c.stored_length, chunks.c.unshown)).all()
    quota.change(conn, drive, -Sums.of_pending(rows))


def let_go(conn: Connection, version: str, limit: int) -> int:
    """Let go of up to `limit` leases of an upload session; how many there were."""
    mine = upload_chunks.c.version == version
    some = conn.execute(select(upload_chunks.c.chunk).where(mine).limit(limit)).scalars().all()
    for part in slices(some):
        those = mine & upload_chunks.c.chunk.in_(part)
        for row in conn.execute(ASKED.where(those)).all():
            quota.release(conn, row.drive, row.holder, asked=Amount(row.chunks, row.bytes))
        conn.execute(delete(upload_chunks).where(those))
    return len(some)


def prove(conn: Connection, version: str, chunk: bytes, length: int) -> None:
    """Whoever uploads `version` has sent a chunk of `length` bytes."""
    if conn.execute(_PROVE, {"v": version, "i": chunk}).rowcount == 1:
        row = conn.execute(_HOLDERS, {"versions": [version]}).one()
        quota.release(conn, row.drive, row.holder, asked=Amount(1, length))


_mine = (chunks.c.drive == bindparam("d")) & (chunks.c.id == bindparam("i"))
_SHOW = update(chunks).where(_mine).values(unshown=0)
_REVIVE = (
    update(chunks).where(_mine, chunks.c.state == "doomed").values(state="uploaded", doomed_ns=None)
)
_DROP = delete(upload_chunks).where(
    upload_chunks.c.version == bindparam("v"), upload_chunks.c.chunk == bindparam("i")
)
_PROVE = (
    update(upload_chunks)
    .where(
        upload_chunks.c.version == bindparam("v"),
        upload_chunks.c.chunk == bindparam("i"),
        upload_chunks.c.proven == 0,
    )
    .values(proven=1)
)


def known_chunks(conn: Connection, drive: str, wanted: Iterable[bytes]) -> dict[bytes, Row[Any]]:
    """Those of `wanted` that the drive knows of: state, descriptor, and who vouches for it."""
    found: dict[bytes, Row[Any]] = {}
    for some in slices(wanted):
        found |= {row.id: row for row in conn.execute(_KNOWN, {"drive": drive, "ids": some})}
    return found


# --- writing ------------------------------------------------------------------------------------


def _checked(descriptors: Iterable[Descriptor]) -> dict[bytes, Descriptor]:
    wanted: dict[bytes, Descriptor] = {}
    for descriptor in descriptors:
        try:
            check_descriptor(descriptor)
        except BadContent as error:
            raise Refused(BadUpload(message=str(error))) from error
        wanted[descriptor.id] = descriptor
    return wanted


def _unproven(conn: Connection, upload: Upload, ids: Iterable[bytes]) -> set[bytes]:
    """Those of `ids` that the upload leases and that were not shown."""
    found: set[bytes] = set()
    for some in slices(ids):
        mine = (upload_chunks.c.version == upload.version) & upload_chunks.c.chunk.in_(some)
        query = select(upload_chunks.c.chunk).where(mine, upload_chunks.c.proven == 0)
        found.update(conn.execute(query).scalars())
    return found
