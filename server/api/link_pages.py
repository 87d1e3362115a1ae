"""What a link's URL shows, without a token.

    GET  /s/SECRET                    its file or directory
    POST /s/SECRET                    its password
    GET  /s/SECRET/FILE               a file or directory inside it
    GET  /s/SECRET/FILE/download      to the signed URL of the file's content
    GET  /s/SECRET/DIRECTORY/zip      to that of the directory's archive

HEAD of a download is led to a URL that has no bytes, and is not counted.

Knows: which page answers what, the cookie. Must not know: what a link reaches (`links`), how pages
look (`pages`).

Whatever does not work is answered with one page that tells no reason. Nothing is written for a
request before the link is known to be good and its password, if it has one, to be proven.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from litestar import Response, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath, FromQuery
from sqlalchemy import Connection, Row

from remote.protocol.errors import Problem, Refused
from server.accounts import accounts
from server.addresses import limited_as
from server.api.exchange import AnyRequest, service_of
from server.http import head
from server.http.problems import headers_for
from server.links import html as pages
from server.links import links, listing_page
from server.links.links import Inside
from server.links.signing import COOKIE_SECONDS, ZIP, Wanted
from server.links.zip import MAX_MEMBERS
from server.permissions import audit
from server.pools import STRANGERS
from server.service import Service

Page = Response[bytes]
Link = Row[Any]
T = TypeVar("T")

COOKIE = "nearline-link"
_HTML = "text/html"
_FORM = "application/x-www-form-urlencoded"
_FORM_BYTES = 16 * 1024


@get("/s/{secret:str}")
async def top(
    request: AnyRequest, secret: FromPath[str], after: FromQuery[str | None] = None
) -> Page:
    places = service_of(request).library.places

    def look(conn: Connection, link: Link) -> Page:
        return _shown(conn, link, secret, link.file, after, places)

    return await _visit(request, secret, look)


@get("/s/{secret:str}/{file_id:str}")
async def below(
    request: AnyRequest,
    secret: FromPath[str],
    file_id: FromPath[str],
    after: FromQuery[str | None] = None,
) -> Page:
    places = service_of(request).library.places

    def look(conn: Connection, link: Link) -> Page:
        return _shown(conn, link, secret, file_id, after, places)

    return await _visit(request, secret, look)


@get("/s/{secret:str}/{file_id:str}/download")
async def download(request: AnyRequest, secret: FromPath[str], file_id: FromPath[str]) -> Page:
    places = service_of(request).library.places

    def look(conn: Connection, link: Link) -> Begin:
        row = _inside(conn, link, file_id, places).row
        if row.kind != "file":
            raise _Closed
        return Begin(link, Wanted(link.id, file_id, row.version))

    return await _visit(request, secret, look)


@get("/s/{secret:str}/{file_id:str}/zip")
async def archive(request: AnyRequest, secret: FromPath[str], file_id: FromPath[str]) -> Page:
    counts, places = service_of(request).counts, service_of(request).library.places

    def look(conn: Connection, link: Link) -> Page | Begin:
        row = _inside(conn, link, file_id, places).row
        if row.kind != "directory":
            raise _Closed
        if counts.below(conn, file_id, row.drive, MAX_MEMBERS) > MAX_MEMBERS:
            return _page(pages.too_many_page(MAX_MEMBERS), 409)
        return Begin(link, Wanted(link.id, file_id, ZIP))

    return await _visit(request, secret, look)


@post("/s/{secret:str}", request_max_body_size=_FORM_BYTES)
async def unlock(request: AnyRequest, secret: FromPath[str]) -> Page:
    service, here, form = service_of(request), f"/s/{secret}", await request.body()
    places = service.library.places
    link = await _off_loop(
        service, lambda conn: links.open_link(conn, secret, time.time_ns(), places)
    )
    if link is None:
        return _page(pages.gone_page(), 404)
    if link.password is None:
        return _redirect(here)
    given = _field(form, request.headers.get("content-type", ""), "password")
    try:
        return await _try(service, here, link, _address(request), given)
    except Refused as refused:
        return _too_many(here, refused.problem)


async def _try(service: Service, here: str, link: Link, address: str, given: str) -> Page:
    """Answer the password `given`. Raises `Refused(RateLimited)`."""
    tried = await service.tries.begin(("link", link.id), address)
    holder, check = limited_as(address), accounts.check_password
    checked = await service.desk.run("visit", holder, check, link.password, given)
    await _note(service, link, address, checked.is_right)
    if not checked.is_right:
        return _page(pages.password_page(here, "This is not the password."), 403)
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


def _too_many(here: str, problem: Problem) -> Page:
    fault = problem.message[:1].upper() + problem.message[1:] + "."
    refused = _page(pages.password_page(here, fault), 429)
    refused.headers.update(headers_for(problem))
    return refused


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
    request: AnyRequest, secret: str, look: Callable[[Connection, Link], Page | Begin]
) -> Page:
    """Answer with what `look` says of the link that `secret` opens, in one snapshot."""
    service = service_of(request)
    cookie = request.cookies.get(COOKIE)

    def work(conn: Connection) -> Page | Begin:
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
            return await _begin(service, seen, _address(request))
    except _Closed:
        return _page(pages.gone_page(), 404)
    except _Locked:
        return _page(pages.password_page(f"/s/{secret}"), 403)
    return seen


async def _begin(service: Service, begin: Begin, address: str) -> Page:
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
    action = "link_open" if right else "link_refused"

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
    conn: Connection, link: Link, secret: str, file: str, after: str | None, places: links.Places
) -> Page:
    html = listing_page.page(conn, link, secret, file, after, places)
    if html is None:
        raise _Closed
    return _page(html)


def _inside(conn: Connection, link: Link, file: str, places: links.Places) -> Inside:
    found = links.inside(conn, link, file, places)
    if found is None:
        raise _Closed
    return found


# --- answers ------------------------------------------------------------------------------------


def _page(html: bytes, status: int = 200) -> Page:
    return Response(html, media_type=_HTML, status_code=status, headers=dict(pages.HEADERS))


def _redirect(url: str) -> Page:
    return Response(b"", status_code=303, headers=pages.HEADERS | {"location": url})


def _unlocked(service: Service, here: str, link: str, password: str) -> Page:
    """Back to the link, with a cookie that only its own URL is sent."""
    answer = _redirect(here)
    proof = service.links.cookie(link, password, time.time_ns())
    answer.set_cookie(
        Cookie(
            key=COOKIE,
            value=proof,
            max_age=COOKIE_SECONDS,
            path=here,
            secure=service.settings.public_url.startswith("https:"),
            httponly=True,
            samesite="strict",
        )
    )
    return answer


def _field(form: bytes, content_type: str, name: str) -> str:
    """One field of a form; empty if it is not there. The framework's parser would keep it in a
    cache, and this is a password."""
    if content_type.partition(";")[0].strip().lower() != _FORM:
        return ""
    try:
        fields = parse_qsl(form.decode("ascii"), max_num_fields=8)
    except ValueError:  # not ASCII, or too many fields: no browser's doing
        return ""
    return dict(fields).get(name, "")


def _address(request: AnyRequest) -> str:
    return request.client.host if request.client is not None else ""
