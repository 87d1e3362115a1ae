"""Links: a secret in a URL that shows one file, or a directory and what is below it.

Knows: who makes, lists and revokes them; when one opens; what is inside one; how downloads are
counted. Must not know: HTTP, pages, passwords' hashing, signed URLs, how a way is found (`way`).

Invariants:
- The secret is 256 random bits, told once; only its SHA-256 is stored, and it is looked up by that.
- A link reaches its file and what is below it at this moment. Nothing about that is believed later:
  every function here asks the tree anew, so what was moved out, or into the trash, is out of reach.
- The link's own file is called by the entry that the link was made to, as that is called by now
  (`Mutation.follow`), or was called last: never by another name that the file has.
- A link that was revoked, has expired, is used up, or whose file is in the trash or of a locked
  account is None, exactly like one that never was.
- `downloads` never goes over `max_downloads`: it is compared and counted in one statement.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update

from remote.protocol.account_messages import LinkInfo, LinksReply, MakeLink
from remote.protocol.errors import BadRequest, NotFound, Refused, TooLarge
from server.accounts import accounts
from server.accounts.accounts import new_id
from server.drive.sharing import given_as, shared_entry
from server.links import way
from server.links.way import Places, Step
from server.metadata.schema import links
from server.permissions import access, audit
from server.permissions.caller import Caller

# Links of one drive that are good at a time: they are told as one list.
MAX_LINKS = 1000
LINKABLE = ("directory", "file")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_LATEST_NS = 1 << 63
# Characters. Fewer than of an account's: it opens one folder to read, the secret in the link's URL
# has to be known first, and people tell it over the telephone.
SHORTEST_PASSWORD = 4

_BY_SECRET = select(links).where(links.c.secret_sha256 == bindparam("hashed"))
_BY_ID = select(links).where(links.c.id == bindparam("link"))
_COUNT = (
    update(links)
    .where(
        links.c.id == bindparam("link"),
        links.c.revoked_ns.is_(None),
        or_(links.c.expires_ns.is_(None), links.c.expires_ns > bindparam("now")),
        or_(links.c.max_downloads.is_(None), links.c.downloads < links.c.max_downloads),
    )
    .values(downloads=links.c.downloads + 1)
)


class Inside(NamedTuple):
    """A file that a link reaches, and the way to it; the first step is the link's own file, the
    last one the file itself."""

    row: Row[Any]
    way: tuple[Step, ...]

    @property
    def name(self) -> str:
        return self.way[-1].name


# --- for the drive's owner ----------------------------------------------------------------------


def check_make(
    conn: Connection, caller: Caller, file: str, wanted: MakeLink, now_ns: int
) -> Row[Any]:
    """The row of `file` if `caller` may make this link to it now. Raises `Refused`."""
    row = access.require(conn, caller, file, "owner")
    access.require_whole(caller)
    if row.kind not in LINKABLE:
        raise Refused(BadRequest(message=f"a {row.kind} has no link; make one to what holds it"))
    if row.id == row.root:
        raise Refused(BadRequest(message="the whole drive has no link; make one to a directory"))
    if row.links == 0:
        raise Refused(NotFound(message="the file is in the trash; restore it first"))
    if wanted.password is not None and len(wanted.password) < SHORTEST_PASSWORD:
        least = f"{SHORTEST_PASSWORD} characters or more"
        raise Refused(BadRequest(message=f"a link's password has {least}; choose a longer one"))
    if wanted.expires_ns is not None and not now_ns < wanted.expires_ns < _LATEST_NS:
        raise Refused(BadRequest(message="a link expires in the future; check expires_ns"))
    return row


def make(
    conn: Connection,
    caller: Caller,
    file: str,
    wanted: MakeLink,
    password: str | None,
    now_ns: int,
) -> tuple[LinkInfo, str]:
    """A new link to `file` and its secret. `password` is the Argon2id hash of `wanted.password`.

    Raises `Refused` with what `check_make` does, or TooLarge.
    """
    row = check_make(conn, caller, file, wanted, now_ns)
    _check_room(conn, row.drive, now_ns)
    secret = secrets.token_urlsafe(32)
    made = {
        "id": new_id(now_ns),
        "secret_sha256": _hash(secret),
        "file": file,
        "drive": row.drive,
        "created_by": caller.account,
        "created_ns": now_ns,
        "expires_ns": wanted.expires_ns,
        "password": password,
        "max_downloads": wanted.max_downloads,
        "downloads": 0,
    } | shared_entry(conn, file, wanted.entry)
    conn.execute(insert(links), made)
    audit.note(
        conn,
        caller,
        "link_make",
        made["id"],
        now_ns,
        file=file,
        expires_ns=wanted.expires_ns,
        has_password=password is not None,
        max_downloads=wanted.max_downloads,
    )
    return _told(conn.execute(_BY_ID, {"link": made["id"]}).one()), secret


def list_links(conn: Connection, caller: Caller, file: str | None, now_ns: int) -> LinksReply:
    """The caller's links that have neither been revoked nor expired, newest first: those to `file`
    itself, or (None) of the whole drive."""
    access.require_whole(caller)
    query = _good(caller.drive, now_ns)
    if file is not None:
        query = query.where(links.c.file == access.require(conn, caller, file, "owner").id)
    found = conn.execute(query.order_by(links.c.created_ns.desc(), links.c.id.desc())).all()
    return LinksReply([_told(row) for row in found])


def revoke(conn: Connection, caller: Caller, link: str, now_ns: int) -> None:
    """From now on the link is unknown. Doing it twice is no error. Raises `Refused`."""
    access.require_whole(caller)
    row = conn.execute(_BY_ID, {"link": link}).first()
    if row is None or row.drive != caller.drive:
        raise Refused(NotFound(message=f"you have no link {link}"))
    if row.revoked_ns is None:
        conn.execute(update(links).where(links.c.id == link).values(revoked_ns=now_ns))
        audit.note(conn, caller, "link_revoke", link, now_ns, file=row.file)


def _good(drive: str, now_ns: int) -> Any:
    alive = or_(links.c.expires_ns.is_(None), links.c.expires_ns > now_ns)
    return select(links).where(links.c.drive == drive, links.c.revoked_ns.is_(None), alive)


def _check_room(conn: Connection, drive: str, now_ns: int) -> None:
    count = select(func.count()).select_from(_good(drive, now_ns).subquery())
    if conn.execute(count).scalar_one() >= MAX_LINKS:
        raise Refused(TooLarge(message=f"a drive has at most {MAX_LINKS} links; revoke some"))


def _told(row: Row[Any]) -> LinkInfo:
    return LinkInfo(
        id=row.id,
        file=row.file,
        name=_name(row),
        created_ns=row.created_ns,
        expires_ns=row.expires_ns,
        has_password=row.password is not None,
        max_downloads=row.max_downloads,
        downloads=row.downloads,
        was=given_as(row),
    )


def _name(link: Row[Any]) -> str:
    return str(link.name or link.file)


# --- for whoever has the URL --------------------------------------------------------------------


def open_link(conn: Connection, secret: str, now_ns: int, places: Places) -> Row[Any] | None:
    """The link that `secret` opens at this moment."""
    if not _SECRET.fullmatch(secret):
        return None
    row = conn.execute(_BY_SECRET, {"hashed": _hash(secret)}).first()
    if row is None or not _is_open(conn, row, now_ns, places):
        return None
    used_up = row.max_downloads is not None and row.downloads >= row.max_downloads
    return None if used_up else row


def still_serves(conn: Connection, link: str, now_ns: int, places: Places) -> Row[Any] | None:
    """The link with id `link`, for a download that was begun through it: it may be used up by now,
    but not revoked, expired or in the trash."""
    row = conn.execute(_BY_ID, {"link": link}).first()
    return row if row is not None and _is_open(conn, row, now_ns, places) else None


def renew_password(conn: Connection, link: Row[Any], hashed: str) -> None:
    """Store `hashed`, of the same password as the hash in the row `link`; nothing if that is there
    no more."""
    same = (links.c.id == link.id) & (links.c.password == link.password)
    conn.execute(update(links).where(same).values(password=hashed))


def _is_open(conn: Connection, row: Row[Any], now_ns: int, places: Places) -> bool:
    if row.revoked_ns is not None or (row.expires_ns is not None and row.expires_ns <= now_ns):
        return False
    file = access.find(conn, row.file)
    if file is None or accounts.is_locked(conn, file.owner):
        return False
    return way.find(conn, file, file.root, places) is not None


def inside(conn: Connection, link: Row[Any], file: str, places: Places) -> Inside | None:
    """`file` as the link reaches it at this moment; None: it does not.

    Of a file with several names one inside counts, that by which it was found last: a name that it
    has elsewhere in the drive is not told.
    """
    row = access.find(conn, file)
    if row is None:
        return None
    if file == link.file:
        return Inside(row, (Step(file, _name(link)),))
    found = way.find(conn, row, link.file, places)
    return None if found is None else Inside(row, (Step(link.file, _name(link)), *found))


def begin_download(conn: Connection, link: Row[Any], now_ns: int) -> bool:
    """Count a download; False: the link is used up, expired or revoked by now.

    In a write transaction.
    """
    return conn.execute(_COUNT, {"link": link.id, "now": now_ns}).rowcount == 1


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
