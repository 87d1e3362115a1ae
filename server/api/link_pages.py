"""The pages and downloads behind a link's URL, without a token.

    GET  /s/SECRET                    its file or directory
    POST /s/SECRET                    its password
    GET  /s/SECRET/FILE               a file or directory inside it
    GET  /s/SECRET/FILE/download      to the signed URL of the file's content
    GET  /s/SECRET/DIRECTORY/zip      to that of the directory's archive

HEAD of a download is led to a URL that has no bytes, and is not counted.

Knows: which page answers what, the cookie. Must not know: what a link reaches (`links`), how pages
look (`html`).

Whatever does not work is answered with one page that tells no reason. Nothing is written for a
request before the link is known to be good and its password, if it has one, to be proven.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from sqlalchemy import Connection, Row

from remote.protocol.errors import Problem, Refused
from server.accounts import accounts
from server.addresses import limited_as
from server.api.endpoint import get, post
from server.api.exchange import Request, Response
from server.http import head
from server.http.problems import headers_for
from server.links import html, links, listing_page
from server.links.links import Inside
from server.links.signing import COOKIE_SECONDS, ZIP, Wanted
from server.links.way import Places
from server.links.zip import MAX_MEMBERS
from server.permissions import audit
from server.pools import STRANGERS
from server.service import Service

Link = Row[Any]
T = TypeVar("T")

COOKIE = "nearline-link"
_HTML = "text/html; charset=utf-8"
_FORM = "application/x-www-form-urlencoded"
_FORM_BYTES = 16 * 1024


@get("/s/{secret}")
async def top(request: Request, secret: str, after: str | None = None) -> Response:
    places = request.service.library.places

    def look(conn: Connection, link: Link) -> Response:
        return _shown(conn, link, secret, link.file, after, places)

    return await _visit(request, secret, look)


@get("/s/{secret}/{file_id}")
async def below(request: Request, secret: str, file_id: str, after: str | None = None) -> Response:
    places = request.service.library.places

    def look(conn: Connection, link: Link) -> Response:
        return _shown(conn, link, secret, file_id, after, places)

    return await _visit(request, secret, look)


@get("/s/{secret}/{file_id}/download")
async def download(request: Request, secret: str, file_id: str) -> Response:
    places = request.service.library.places

    def look(conn: Connection, link: Link) -> Begin:
        row = _inside(conn, link, file_id, places).row
        if row.kind != "file":
            raise _Closed
        return Begin(link, Wanted(link.id, file_id, row.version))

    return await _visit(request, secret, look)


@get("/s/{secret}/{file_id}/zip")
async def archive(request: Request, secret: str, file_id: str) -> Response:
    counts, places = request.service.counts, request.service.library.places

    def look(conn: Connection, link: Link) -> Response | Begin:
        row = _inside(conn, link, file_id, places).row
        if row.kind != "directory":
            raise _Closed
        if counts.below(conn, file_id, row.drive, MAX_MEMBERS) > MAX_MEMBERS:
            return _page(html.too_many_page(MAX_MEMBERS), 409)
        return Begin(link, Wanted(link.id, file_id, ZIP))

    return await _visit(request, secret, look)


@post("/s/{secret}")
async def unlock(request: Request, secret: str) -> Response:
    service, here, form = request.service, f"/s/{secret}", await request.form(_FORM_BYTES)
    places = service.library.places
    link = await _off_loop(
        service, lambda conn: links.open_link(conn, secret, time.time_ns(), places)
    )
    if link is None:
        return _page(html.gone_page(), 404)
    if link.password is None:
        return _redirect(here)
    given = _field(form, request.header(b"content-type"), "password")
    try:
        return await _try(service, here, link, request.address, given)
    except Refused as error:
        return _too_many(here, error.problem)


async def _try(service: Service, here: str, link: Link, address: str, given: str) -> Response:
    """Answer the password `given`. Raises `Refused(RateLimited)`."""
    tried = await service.tries.begin(("link", link.id), address)
    holder, check = limited_as(address), accounts.check_password
    checked = await service.desk.run("visit", holder, check, link.password, given)
    await _note(service, link, address, checked.is_right)
    if not checked.is_right:
        return _page(html.password_page(here, "This is not the password."), 403)
    service.tries.was_right(tried)
    if checked.renewed is not None:
        await _renew(service, link, checked.renewed)
    return _unlocked(service, here, link.id, checked.renewed or link.password)


async def _renew(service: Service, link: Link, hashed: str) -> None:
    """Keep another hash of the link's password. Cookies are bound to the one before: who has one
    is asked for the password once more."""

    def work() -> None:
        with service.db.write() as conn:
            links.renew_password(conn, link, hashed)

    await asyncio.wrap_future(service.writes.submit_for(STRANGERS, work))


def _too_many(here: str, problem: Problem) -> Response:
    fault = problem.message[:1].upper() + problem.message[1:] + "."
    page = _page(html.password_page(here, fault), 429)
    return page._replace(headers={**page.headers, **headers_for(problem)})


# --- visits -------------------------------------------------------------------------------------


class Begin(NamedTuple):
    """A download that may begin: it is to be counted, and its URL signed."""

    link: Link
    wanted: Wanted


class _Closed(LookupError):
    """The link, or this part of it, does not work."""


class _Locked(LookupError):
    """The link asks for its password first."""


async def _visit(
    request: Request, secret: str, look: Callable[[Connection, Link], Response | Begin]
) -> Response:
    """Answer with what `look` says of the link that `secret` opens, in one snapshot."""
    service, cookie = request.service, _cookie(request.header(b"cookie"))

    def work(conn: Connection) -> Response | Begin:
        now_ns = time.time_ns()
        link = links.open_link(conn, secret, now_ns, service.library.places)
        if link is None:
            raise _Closed
        password = link.password
        if password is not None and not service.links.proves(cookie, link.id, password, now_ns):
            raise _Locked
        return look(conn, link)

    try:
        seen = await _off_loop(service, work)
        if isinstance(seen, Begin) and head.is_head(request.scope):
            return _redirect(service.links.content_url(seen.wanted.to_look(), time.time_ns()))
        if isinstance(seen, Begin):
            return await _begin(service, seen, request.address)
    except _Closed:
        return _page(html.gone_page(), 404)
    except _Locked:
        return _page(html.password_page(f"/s/{secret}"), 403)
    return seen


async def _begin(service: Service, begin: Begin, address: str) -> Response:
    """Count the download and lead to its content. Raises `_Closed`: somebody had the last one."""
    link, wanted = begin
    noted = link.max_downloads is not None or _may_note(service, link, address)

    def count() -> bool:
        now_ns = time.time_ns()
        with service.db.write() as conn:
            counted = links.begin_download(conn, link, now_ns)
            if counted and noted:
                about = {"file": wanted.file, "address": address}
                audit.note(conn, None, "link_download", link.id, now_ns, **about)
        return counted

    if not await asyncio.wrap_future(service.writes.submit_for(STRANGERS, count)):
        raise _Closed
    return _redirect(service.links.content_url(wanted, time.time_ns()))


async def _note(service: Service, link: Link, address: str, right: bool) -> None:
    """Write down that somebody tried a password."""
    if not _may_note(service, link, address):
        return
    action: audit.Action = "link_open" if right else "link_refused"

    def note() -> None:
        with service.db.write() as conn:
            audit.note(conn, None, action, link.id, time.time_ns(), address=address)

    await asyncio.wrap_future(service.writes.submit_for(STRANGERS, note))


def _may_note(service: Service, link: Link, address: str) -> bool:
    bucket = (link.id, limited_as(address))
    return service.links.notes.take(bucket, time.monotonic()) == 0


async def _off_loop(service: Service, work: Callable[[Connection], T]) -> T:
    def job() -> T:
        with service.db.read() as conn:
            return work(conn)

    return await asyncio.get_running_loop().run_in_executor(service.visits, job)


# --- what there is to see -----------------------------------------------------------------------


def _shown(
    conn: Connection, link: Link, secret: str, file: str, after: str | None, places: Places
) -> Response:
    listing = listing_page.page(conn, link, secret, file, after, places)
    if listing is None:
        raise _Closed
    return _page(listing)


def _inside(conn: Connection, link: Link, file: str, places: Places) -> Inside:
    found = links.inside(conn, link, file, places)
    if found is None:
        raise _Closed
    return found


# --- answers ------------------------------------------------------------------------------------


def _page(shown: bytes, status: int = 200) -> Response:
    return Response(shown, _HTML, status, html.HEADERS)


def _redirect(url: str) -> Response:
    return Response(status=303, headers=html.HEADERS | {"location": url})


def _unlocked(service: Service, here: str, link: str, password: str) -> Response:
    """Back to the link, with a cookie that only its own URL is sent."""
    proof = service.links.cookie(link, password, time.time_ns())
    given = [f"{COOKIE}={proof}", "HttpOnly", f"Max-Age={COOKIE_SECONDS}", f"Path={here}"]
    given += ["SameSite=strict"]
    given += ["Secure"] if service.settings.public_url.startswith("https:") else []
    answer = _redirect(here)
    return answer._replace(headers={**answer.headers, "set-cookie": "; ".join(given)})


def _cookie(header: str) -> str | None:
    """The value that a browser was given at `_unlocked`, from its Cookie header."""
    pairs = (item.strip().partition("=") for item in header.split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), None)


def _field(form: bytes, content_type: str, name: str) -> str:
    """One field of a form; empty if it is not there."""
    if content_type.partition(";")[0].strip().lower() != _FORM:
        return ""
    try:
        fields = parse_qsl(form.decode("ascii"), max_num_fields=8)
    except ValueError:  # not ASCII, or too many fields: no browser's doing
        return ""
    return dict(fields).get(name, "")
