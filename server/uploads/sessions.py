"""Upload sessions: begun, found again, gone on with, abandoned.

Knows: whose a session is, for which drive, and when it is over. Must not know: what it holds
(`leases`), how bytes arrive (`edge`), what a version is for (`versions`).

A session belongs to the account that began it (begun with a token for a single folder: to that
device) and dies `upload_days` after its last use, or with the token for a single folder. From then
on it is unknown to everybody, whether or not its rows are still there. When an account loses a
share in the drive, or the device that began it is revoked, it ends at once, and what it had
promised is free for others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, insert, select, update

from remote.protocol.content import Descriptor
from remote.protocol.errors import (
    AnyProblem,
    Exists,
    Forbidden,
    Refused,
    Unavailable,
    UploadUnknown,
)
from remote.protocol.messages import MAX_BATCH, StartUpload, UploadState
from server.metadata.records import slices
from server.metadata.schema import devices, files, grants, uploads, versions
from server.permissions import access
from server.permissions.caller import Caller
from server.permissions.lineage import Lineage
from server.uploads import leases
from server.uploads.leases import Leasing, Sign, Upload
from server.uploads.quota import Budget

# Uploads whose rows are read and written at once, between two looks at the time.
AHEAD = 50


class Terms(NamedTuple):
    """The terms of leases in one write transaction: for how long, within what, by which URLs."""

    lease_ns: int
    budget: Budget
    sign: Sign


class _Session(NamedTuple):
    """A row of `uploads`, and of the device that began it."""

    version: str
    file: str
    drive: str
    device: str
    created_ns: int
    expires_ns: int
    account: str
    folder: str | None
    token_ends_ns: int | None


_SESSIONS = (
    select(
        *(uploads.c[name] for name in _Session._fields if name in uploads.c),
        devices.c.account,
        devices.c.folder,
        devices.c.expires_ns.label("token_ends_ns"),
    )
    .join(devices, uploads.c.device == devices.c.id)
    .where(uploads.c.version.in_(bindparam("versions", expanding=True)))
)
_COMMITTED = select(versions.c.id, versions.c.file).where(
    versions.c.id.in_(bindparam("versions", expanding=True)), versions.c.status == "uploaded"
)
_USED = (
    update(uploads).where(uploads.c.version == bindparam("v")).values(expires_ns=bindparam("until"))
)

_EDITED = (
    select(grants.c.file)
    .join(files, grants.c.file == files.c.id)
    .where(
        grants.c.account == bindparam("account"),
        grants.c.role == "editor",
        files.c.drive == bindparam("drive"),
        files.c.links > 0,
    )
    .limit(1)
)


def start(
    conn: Connection, caller: Caller, wanted: StartUpload, terms: Terms, now_ns: int
) -> UploadState:
    """Begin or find again the session of one version. Raises `Refused`."""
    found = Starting(conn, caller, terms, now_ns).start([wanted])[0]
    if isinstance(found, UploadState):
        return found
    raise Refused(found)


def start_many(
    conn: Connection,
    caller: Caller,
    wanted: Sequence[StartUpload],
    terms: Terms,
    now_ns: int,
    is_over: Callable[[], bool],
) -> list[UploadState | AnyProblem]:
    """The sessions of as many as there is room and time for, which `is_over` says; at least one, in
    order. All other writers wait while descriptors are taken in."""
    begun: list[UploadState | AnyProblem] = []
    starting = Starting(conn, caller, terms, now_ns)
    for some in slices(_fitting(wanted), AHEAD):
        if begun and is_over():
            break
        begun += starting.start(some, is_over)
        if len(begun) % AHEAD:
            break
    return begun + [_LATER] * (len(wanted) - len(begun))


def _fitting(wanted: Sequence[StartUpload]) -> list[StartUpload]:
    """The first of them, with at most `MAX_BATCH` descriptors; at least one."""
    left, found = MAX_BATCH, list[StartUpload]()
    for item in wanted:
        left -= len(item.descriptors)
        if found and left < 0:
            break
        found.append(item)
    return found


_LATER = Unavailable(message=f"at most {MAX_BATCH} descriptors at a time; send the rest again")


class Starting:
    """Sessions begun and found again, many at a time, in one write transaction of one caller.

    What they need is read for all of them, and `_write_out` writes what they make for all. Each is
    judged by itself, in order; a refusal undoes only what that one did.
    """

    def __init__(self, conn: Connection, caller: Caller, terms: Terms, now_ns: int) -> None:
        self._conn, self._caller, self._terms, self._now_ns = conn, caller, terms, now_ns
        self._leasing = Leasing(conn, caller, terms.budget, terms.sign)
        self._lineage = Lineage(conn)
        self._files: dict[str, Any] = {}
        self._committed: defaultdict[str, list[str]] = defaultdict(list)
        self._sessions: dict[str, _Session] = {}
        self._begun: list[tuple[_Session, str | None]] = []  # and the version it starts from
        self._used: list[dict[str, object]] = []
        self._touched: set[str] = set()

    def start(
        self, wanted: Sequence[StartUpload], is_over: Callable[[], bool] = lambda: False
    ) -> list[UploadState | AnyProblem]:
        """The session of each, or why there is none; of the first of them at least, when `is_over`
        says that there is no time for all."""
        self._load(wanted)
        found: list[UploadState | AnyProblem] = []
        for item in wanted:
            if found and is_over():
                break
            found.append(self._one(item))
        self._write_out()
        return found

    # --- reading ---

    def _load(self, wanted: Sequence[StartUpload]) -> None:
        ids = {id for item in wanted for id in (item.file, item.parent) if id is not None}
        self._files = access.find_all(self._conn, ids)
        self._read_versions([item.version for item in wanted])
        drives = dict.fromkeys([row.drive for row in self._files.values()] + [self._caller.drive])
        if any(not access.owns_drive(self._caller, item) for item in drives):
            self._lineage.learn(list(self._files))
        by_drive: defaultdict[str, list[bytes]] = defaultdict(list)
        for item in wanted:
            row = self._files.get(item.file) or self._files.get(item.parent or "")
            drive = self._caller.drive if row is None else row.drive
            by_drive[drive] += [descriptor.id for descriptor in item.descriptors]
        for drive, chunks in by_drive.items():
            self._leasing.load(drive, chunks)

    def _read_versions(self, versions: Sequence[str]) -> None:
        for some in slices(dict.fromkeys(versions)):
            for id, file in self._conn.execute(_COMMITTED, {"versions": some}):
                self._committed[id].append(file)
            for row in self._conn.execute(_SESSIONS, {"versions": some}):
                self._sessions[row.version] = _Session._make(row)

    # --- one of them ---

    def _one(self, wanted: StartUpload) -> UploadState | AnyProblem:
        session = self._sessions.get(wanted.version)
        is_over = session is not None and session.expires_ns <= self._now_ns
        if is_over or wanted.version in self._touched:
            return self._alone(wanted)
        mark = self._terms.budget.mark()
        try:
            return self._judge(wanted)
        except Refused as error:
            self._terms.budget.undo(mark)
            return _problem(error)

    def _alone(self, wanted: StartUpload) -> UploadState | AnyProblem:
        """One whose session is over, or was made or found earlier in this batch."""
        self._write_out()
        self._read_again(wanted.version)
        self._conn.exec_driver_sql("SAVEPOINT upload")
        try:
            found = self._judge(wanted)
        except Refused as error:
            self._conn.exec_driver_sql("ROLLBACK TO SAVEPOINT upload")
            self._conn.exec_driver_sql("RELEASE SAVEPOINT upload")
            self._read_again(wanted.version)
            return _problem(error)
        self._write_out()
        self._conn.exec_driver_sql("RELEASE SAVEPOINT upload")
        return found

    def _read_again(self, version: str) -> None:
        """When everything is written, or undone by a savepoint."""
        self._leasing.forget()
        self._terms.budget.forget()
        self._committed.pop(version, None)
        self._sessions.pop(version, None)
        self._read_versions([version])

    def _judge(self, wanted: StartUpload) -> UploadState:
        """Nothing is kept of one that is refused, but what `budget` counts."""
        version, now_ns, caller = wanted.version, self._now_ns, self._caller
        drive = self._drive_for(wanted)
        if self._is_committed(wanted):
            return UploadState(version=version, status="uploaded", expires_ns=now_ns, chunks=[])
        session = self._sessions.get(version)
        if session is not None and session.expires_ns <= now_ns:  # in a savepoint of its own
            leases.end(self._conn, [version])
            session = None
        is_new = session is None
        if session is None:
            session = self._begin(wanted, drive)
        elif not _is_of(session, caller) or session.drive != drive:
            message = f"version {version} is being uploaded by another"
            raise Refused(Exists(message=message, taken="version"))
        upload, expires_ns = _upload_of(session, wanted.file, self._terms, now_ns)
        tickets = self._leasing.take(upload, wanted.descriptors, now_ns, is_new=is_new)
        if is_new:
            self._begun.append((session._replace(expires_ns=expires_ns), wanted.base))
        else:
            self._used.append({"v": version, "until": expires_ns})
            if session.file != wanted.file:
                _move(self._conn, version, wanted.file)
        self._touched.add(version)
        return UploadState(
            version=version, status="uploading", expires_ns=expires_ns, chunks=tickets
        )

    def _drive_for(self, wanted: StartUpload) -> str:
        """The drive the version will be in: that of its file, else of the parent it will be born
        in, else the caller's own (the parent may be a directory the server has not heard of
        yet)."""
        place = wanted.file if wanted.file in self._files else wanted.parent
        if place is not None:
            row = self._files.get(place)
            access.check(self._conn, self._caller, place, row, "editor", self._lineage)
            assert row is not None
            return str(row.drive)
        if self._caller.scope != "full":
            raise Refused(Forbidden(message="this token may only read"))
        return self._caller.drive

    def _is_committed(self, wanted: StartUpload) -> bool:
        of = self._committed.get(wanted.version, [])
        if of and wanted.file not in of:
            message = f"version {wanted.version} is of another file"
            raise Refused(Exists(message=message, taken="version"))
        return bool(of)

    def _begin(self, wanted: StartUpload, drive: str) -> _Session:
        caller = self._caller
        holder = caller.account if caller.folder is None else caller.device
        self._terms.budget.begin(drive, holder)
        ends_ns = None
        if caller.folder is not None:
            query = select(devices.c.expires_ns).where(devices.c.id == caller.device)
            ends_ns = self._conn.execute(query).scalar()
        who = (caller.device, self._now_ns, self._now_ns, caller.account, caller.folder, ends_ns)
        return _Session(wanted.version, wanted.file, drive, *who)

    # --- writing ---

    def _write_out(self) -> None:
        if self._begun:
            self._insert()
        if self._used:
            self._conn.execute(_USED, self._used)
            self._used.clear()
        self._leasing.write_out()
        self._terms.budget.write_out()

    def _insert(self) -> None:
        both = ("file", "drive", "device", "created_ns")
        of_versions, of_uploads = list[dict[str, Any]](), list[dict[str, Any]]()
        for session, base in self._begun:
            row = {column: getattr(session, column) for column in both}
            version = {"id": session.version, "status": "uploading", "size": 0, "base": base}
            of_versions.append(row | version | {"mtime_ns": self._now_ns})
            upload = {"version": session.version, "expires_ns": session.expires_ns}
            of_uploads.append(row | upload)
        self._conn.execute(insert(versions), of_versions)
        self._conn.execute(insert(uploads), of_uploads)
        self._begun.clear()


def _problem(refused: Refused) -> AnyProblem:
    assert isinstance(refused.problem, AnyProblem)
    return refused.problem


def extend(
    conn: Connection,
    caller: Caller,
    version: str,
    descriptors: Sequence[Descriptor],
    terms: Terms,
    now_ns: int,
) -> UploadState:
    """Lease more chunks, or the same again: a ticket for each, with a fresh URL where needed."""
    row = session(conn, caller, version, now_ns)
    _check_access(conn, caller, row)
    upload, expires_ns = _upload_of(row, row.file, terms, now_ns)
    leasing = Leasing(conn, caller, terms.budget, terms.sign)
    found = leasing.take(upload, descriptors, now_ns, is_new=False)
    conn.execute(_USED, {"v": version, "until": expires_ns})
    leasing.write_out()
    terms.budget.write_out()
    return UploadState(version=version, status="uploading", expires_ns=expires_ns, chunks=found)


def state(conn: Connection, caller: Caller, version: str, now_ns: int) -> UploadState:
    """Which of the session's chunks are there, for resuming. No URLs."""
    row = session(conn, caller, version, now_ns)
    found = leases.tickets(conn, version)
    return UploadState(version=version, status="uploading", expires_ns=row.expires_ns, chunks=found)


def abandon(conn: Connection, caller: Caller, version: str, now_ns: int) -> None:
    """End the session, its leases and the promises that nobody else leases."""
    session(conn, caller, version, now_ns)
    if caller.scope != "full":
        raise Refused(Forbidden(message="this token may only read"))
    leases.end(conn, [version])


def end_of_account(conn: Connection, drive: str, account: str) -> None:
    """End every session of `account` in `drive`, in which it has less to write by now. What it may
    still do there it begins again."""
    mine = (uploads.c.drive == drive) & (devices.c.account == account)
    _end_all(conn, mine)


def end_of_device(conn: Connection, device: str) -> None:
    """End every session that `device` began. Its account's other devices begin theirs again."""
    _end_all(conn, devices.c.id == device)


def end_of_drive(conn: Connection, drive: Any) -> None:
    """End every session in `drive`, an id or a query for it."""
    _end_all(conn, uploads.c.drive == drive)


def _end_all(conn: Connection, which: ColumnElement[bool]) -> None:
    query = select(uploads.c.version).join(devices, uploads.c.device == devices.c.id)
    leases.end(conn, conn.execute(query.where(which)).scalars().all())


def session(conn: Connection, caller: Caller, version: str, now_ns: int) -> _Session:
    """The caller's own live session. Raises `Refused(UploadUnknown)`."""
    found = conn.execute(_SESSIONS, {"versions": [version]}).first()
    row = None if found is None else _Session._make(found)
    if row is None or not _is_of(row, caller) or row.expires_ns <= now_ns:
        raise Refused(UploadUnknown(message=f"no upload of version {version}; begin it again"))
    return row


def _is_of(row: _Session, caller: Caller) -> bool:
    """True if the session is the caller's. The account's other devices may have shown possession of
    what a token for a single folder must not be told of."""
    if caller.folder is not None and row.device != caller.device:
        return False
    return bool(row.account == caller.account)


def _check_access(conn: Connection, caller: Caller, row: _Session) -> None:
    """A grant may have been revoked since the session began. A file that is yet to be born has no
    role of its own: the commit checks where it is to be."""
    file = access.find(conn, row.file)
    if file is not None and file.drive == row.drive:
        access.require(conn, caller, row.file, "editor")
    elif row.drive != caller.drive and not _edits_in(conn, caller, row.drive):
        raise Refused(UploadUnknown(message="nothing of that drive is shared with you any more"))
    elif caller.scope != "full":
        raise Refused(Forbidden(message="this token may only read"))


def _edits_in(conn: Connection, caller: Caller, drive: str) -> bool:
    """True if there is a place in `drive`, which is another's, where the file could be born."""
    if caller.folder is not None:
        return False
    given = {"account": caller.account, "drive": drive}
    return conn.execute(_EDITED, given).first() is not None


def _move(conn: Connection, version: str, file: str) -> None:
    """The session goes on for another file: that which it was begun for was renamed over it."""
    uploading = (versions.c.id == version) & (versions.c.status == "uploading")
    conn.execute(update(versions).where(uploading).values(file=file))
    conn.execute(update(uploads).where(uploads.c.version == version).values(file=file))


def _upload_of(row: _Session, file: str, terms: Terms, now_ns: int) -> tuple[Upload, int]:
    """The upload on which leases hang, of the session `row`, which is of `file` by now; and how
    long it lives when it is used now."""
    holder, expires_ns = row.account, now_ns + terms.lease_ns
    if row.folder is not None:
        holder = row.device
        expires_ns = min(expires_ns, row.token_ends_ns or expires_ns)
    return Upload(row.version, file, row.drive, holder), expires_ns
