"""One request and its answer: bodies in and out, errors as Problems, in JSON or MessagePack.

Knows: content types, statuses of refusals. Must not know: what any endpoint does.

The answer comes in what `Accept` prefers of the two, else in the request's own content type, else
in JSON. Every refusal is a `Problem` with the status of `errors.RULES`; what is not foreseen is
logged with its traceback and answered 500 with a Problem that tells nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar, cast

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from remote.protocol.errors import (
    RULES,
    BadRequest,
    NotFound,
    Problem,
    Refused,
    TooLarge,
    Unavailable,
)
from server.changes.fanout import News
from server.http.bearer import check_present, token_of
from server.http.bodies import GONE_STATUS, ClientGone, TooSlow, body_of
from server.http.problems import JSON, MSGPACK, MSGPACK_NAMES, headers_for, wants_msgpack
from server.http.redaction import shown_path
from server.permissions.caller import Caller
from server.service import Service

log = structlog.get_logger("nearline.api")

_INLINE_BYTES = 64 * 1024

T = TypeVar("T")
AnyRequest = Request[Any, Any, Any]
Reply = Response[bytes]

_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode


def service_of(request: Any) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def token_in(request: Any) -> str | None:
    """The bearer token of the Authorization header, the only place it may be in."""
    return token_of(request.headers.get("authorization"))


async def body(request: AnyRequest, kind: type[T], *, public: bool = False) -> T:
    """The request's body as a `kind`. Raises `Refused(BadRequest)`.

    Unless the endpoint is `public`, who has no good token can neither make the server take in a
    body nor learn what is wrong with one: that is answered `Unauthorized`.
    """
    if not public:
        check_present(token_in(request))
        await _vouch(request)
    raw = await request.body()
    try:
        if len(raw) <= _INLINE_BYTES:
            return cast("T", _decode(raw, _content_type(request), kind))
        service, decode = service_of(request), partial(_decode, raw, _content_type(request), kind)
        whose = service.whose(token_in(request))
        return cast("T", await asyncio.wrap_future(service.reads.submit_for(whose, decode)))
    except Refused:
        if not public:
            await _authenticate(request)
        raise


async def _vouch(request: AnyRequest) -> None:
    """Have the body taken as that of a good token: one that was good a moment ago does for a small
    body, one that is good now for any. Raises `Refused`."""
    arriving = body_of(cast(Any, request.scope))
    if arriving.length and (not arriving.is_trusted or arriving.length > _INLINE_BYTES):
        arriving.trust(await _authenticate(request))


async def _authenticate(request: AnyRequest) -> str:
    """The account that asks. Raises `Refused(Unauthorized)`."""
    return await service_of(request).read(token_in(request), lambda _conn, caller: caller.account)


def reply(request: Any, message: object, status: int = 200) -> Reply:
    if wants_msgpack(request.headers.get("accept", ""), _content_type(request)):
        return Response(_to_msgpack(message), media_type=MSGPACK, status_code=status)
    return Response(_to_json(message), media_type=JSON, status_code=status)


async def published(
    request: AnyRequest, work: Callable[[Connection, Caller], tuple[Sequence[News], T]]
) -> T:
    """Commit `work`, then tell those whom it concerns."""
    service = service_of(request)
    news, answer = await service.write(token_in(request), work)
    for each in news:
        service.fanout.publish(each)
    return answer


def _decode(raw: bytes, content_type: str, kind: Any) -> Any:
    if content_type not in (JSON, *MSGPACK_NAMES):
        raise Refused(BadRequest(message=f"send {JSON} or {MSGPACK}, not {content_type!r}"))
    try:
        return _decoder(kind, content_type != JSON).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(BadRequest(message=str(error) or type(error).__name__)) from error


@lru_cache(maxsize=64)
def _decoder(kind: Any, msgpack: bool) -> Any:
    return msgspec.msgpack.Decoder(kind) if msgpack else msgspec.json.Decoder(kind)


def _content_type(request: Any) -> str:
    value: str = request.headers.get("content-type", "")
    return value.partition(";")[0].strip().lower()


# --- refusals -----------------------------------------------------------------------------------


def _refusal(request: AnyRequest, problem: Problem, status: int) -> Reply:
    kind = str(type(problem).__struct_config__.tag)
    service_of(request).metrics.refusals.labels(kind).inc()
    answer = reply(request, problem, status)
    answer.headers.update(headers_for(problem))
    return answer


def on_refused(request: AnyRequest, error: Exception) -> Reply:
    assert isinstance(error, Refused)
    return _refusal(request, error.problem, RULES[type(error.problem)].status)


def on_http(request: AnyRequest, error: Exception) -> Reply:
    """What the framework refuses: no such route, wrong method, body too large."""
    assert isinstance(error, HTTPException)
    return _refusal(request, _problem_for(error.status_code, error.detail), error.status_code)


def on_too_slow(request: AnyRequest, error: Exception) -> Reply:
    problem = Unavailable(message="the request's body did not arrive in time; send it again")
    return _refusal(request, problem, 408)


def on_gone(request: AnyRequest, error: Exception) -> Reply:
    """Nobody reads it; the log and the metrics have the status."""
    problem = Unavailable(message="the client went away before its request had arrived")
    return _refusal(request, problem, GONE_STATUS)


def on_busy(request: AnyRequest, error: Exception) -> Reply:
    """The database could not be had (locked by a backup, disk full): the request may be sent
    again."""
    log.error("database_unavailable", error=str(getattr(error, "orig", error)))
    problem = Unavailable(message="the server's database is busy; try later")
    return _refusal(request, problem, 503)


def on_unforeseen(request: AnyRequest, error: Exception) -> Reply:
    log.error("request_failed", path=shown_path(request.scope["path"]), exc_info=error)
    problem = Unavailable(message="the server failed; its log says why")
    return _refusal(request, problem, 500)


def _problem_for(status: int, detail: str) -> Problem:
    if status == 404:
        return NotFound(message="there is no such endpoint")
    if status == 413:
        return TooLarge(message="the request's body is too large")
    if status >= 500:
        return Unavailable(message="the server failed; its log says why")
    return BadRequest(message=detail)


HANDLERS: dict[int | type[Exception], Any] = {
    Refused: on_refused,
    HTTPException: on_http,
    TooSlow: on_too_slow,
    ClientGone: on_gone,
    OperationalError: on_busy,
    Exception: on_unforeseen,
}
