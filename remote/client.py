"""The HTTP client: one method per endpoint, and the data path beside it.

Knows: routes, MessagePack over HTTP, how transport trouble maps to `errors`. Must not know: when to
try again (callers decide, with `backoff`), what a change means, where bytes are kept.

Two connection pools: the API's, and the data path's to blob store and edge, so that bulk bytes
never keep a small question waiting. The token goes to the API only; a signed URL is its own
permission.

What is raised, always from `errors`:
- `Refused` carries the server's `Problem`. `ProtocolError`: an answer that is not of this protocol.
- `Unreachable`: no usable answer; whether the request was carried out is unknown. Two kinds of it
  have names of their own here: `Truncated` and `NoWebSocket`.
- `UrlRefused`: blob store or edge did not take the signed URL.

Concurrency: any number of tasks of one trio run may call any method. The only shared state is the
counters of `Transferred`, changed between awaits only.
"""

from __future__ import annotations

import copy
import functools
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, cast

import httpcore
import httpx
import httpx_ws
import msgspec
import wsproto.utilities

from remote.errors import (
    AnyProblem,
    NearlineError,
    ProtocolError,
    Refused,
    Unreachable,
    UrlRefused,
)
from remote.ids import FileId, VersionId
from remote.wire import (
    Applied,
    ApplyReply,
    ApplyRequest,
    ChangesPage,
    ChildrenPage,
    CompleteUpload,
    FileReply,
    FingerprintReply,
    Hint,
    LocateReply,
    LocateRequest,
    LoginReply,
    LoginRequest,
    Me,
    PresignedPut,
    StartUploads,
    StartUploadsReply,
    UploadState,
    UrlsRequest,
    VersionsPage,
)

Buffer: TypeAlias = bytes | bytearray | memoryview
Params: TypeAlias = Mapping[str, str | float | None]
T = TypeVar("T", bound=msgspec.Struct)

MSGPACK = "application/msgpack"
USER_AGENT = "nearline/1"

API_CONNECTIONS = 16
DATA_CONNECTIONS = 16
KEEPALIVE_SECONDS = 30.0

# One write to the socket: large enough to be rare, small enough that the copy stays in cache.
_PUT_SLICE = 256 * 1024

# How much httpx-ws reads from the socket at a time (it calls this the message size).
_READ_SIZE = 64 * 1024

# The server may answer a long poll this much later than asked.
_POLL_GRACE_SECONDS = 10.0

_AGAIN_LATER = frozenset({408, 409, 425, 429})
_SIGN_AGAIN = frozenset({401, 403, 404, 410})
_SESSION_ERRORS = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpx_ws.HTTPXWSException,
    wsproto.utilities.ProtocolError,
)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)", re.ASCII)


class InsecureUrl(ValueError):
    """A URL that would send tokens or content unencrypted to another machine."""


class NoWebSocket(Unreachable):
    """The change feed answers, but not as a WebSocket: a proxy that passes none, or a refusal."""


class Truncated(Unreachable):
    """An object was not as long as it must be. Refetch; when it stays so, it is corrupt."""


@dataclass(slots=True)
class Transferred:
    """What went over the network: HTTP requests made, and bytes of bodies each way."""

    requests: int = 0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds without progress after which a request is given up. There is no limit on the whole:
    a slow transfer that moves is not interrupted."""

    connect: float = 10.0
    read: float = 30.0
    write: float = 30.0

    def as_httpx(self, read_longer: float = 0.0) -> httpx.Timeout:
        # No limit on the wait for a free connection: the requests ahead have limits of their own.
        read = self.read + read_longer
        return httpx.Timeout(connect=self.connect, read=read, write=self.write, pool=None)


class ApiClient:
    """A server, as `token` sees it. Use as an async context manager, under trio.

    Raises `InsecureUrl` for an http:// `base_url` whose host is not loopback, unless `insecure`;
    `ValueError` for what is no http(s) URL.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        insecure: bool = False,
        user_agent: str = USER_AGENT,
        timeouts: Timeouts | None = None,
        transferred: Transferred | None = None,
    ) -> None:
        check_url(base_url, insecure=insecure)
        self.base_url = base_url.rstrip("/")
        self.transferred = transferred if transferred is not None else Transferred()
        self._token = token
        self._insecure = insecure
        self._timeouts = timeouts or Timeouts()
        make = functools.partial(
            httpx.AsyncClient,
            # One context for both pools: loading the system's certificates takes tens of ms.
            verify=httpx.create_ssl_context(),
            timeout=self._timeouts.as_httpx(),
            # A proxy from the environment must not get between us and our own machine.
            trust_env=not _is_loopback(httpx.URL(base_url).host),
        )
        self._api = make(
            base_url=self.base_url,
            headers={"User-Agent": user_agent},
            limits=_pool(API_CONNECTIONS),
        )
        self._data = make(headers={"User-Agent": user_agent}, limits=_pool(DATA_CONNECTIONS))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._api.aclose()
        await self._data.aclose()

    def with_token(self, token: str | None) -> ApiClient:
        """The same server, pools and counters as another device; close only the original."""
        other = copy.copy(self)
        other._token = token
        return other

    # --- session --------------------------------------------------------------------------------

    async def login(self, request: LoginRequest) -> LoginReply:
        return await self._call("POST", "/v1/login", LoginReply, request)

    async def me(self) -> Me:
        return await self._call("GET", "/v1/me", Me)

    # --- reading --------------------------------------------------------------------------------

    async def file(
        self, file: FileId, version: VersionId | None = None, manifest: bool = False
    ) -> FileReply:
        """Metadata of `file`; with `manifest` also that of `version`, or of the current one."""
        asked = {"version": version, "manifest": "true" if manifest else None}
        return await self._call("GET", f"/v1/files/{file}", FileReply, params=asked)

    async def children(
        self, directory: FileId, cursor: str | None = None, limit: int | None = None
    ) -> ChildrenPage:
        path = f"/v1/files/{directory}/children"
        asked = {"cursor": cursor, "limit": limit}
        return await self._call("GET", path, ChildrenPage, params=asked)

    async def versions(self, file: FileId, cursor: str | None = None) -> VersionsPage:
        path = f"/v1/files/{file}/versions"
        return await self._call("GET", path, VersionsPage, params={"cursor": cursor})

    async def by_fingerprint(self, fingerprint: bytes) -> FingerprintReply:
        """A file of one's own drive with this content (`content.fingerprint`)."""
        path = f"/v1/files/by-fingerprint/{fingerprint.hex()}"
        return await self._call("GET", path, FingerprintReply)

    async def locate(self, request: LocateRequest) -> LocateReply:
        return await self._call("POST", "/v1/chunks/locate", LocateReply, request)

    # --- uploads --------------------------------------------------------------------------------

    async def start_uploads(self, request: StartUploads) -> StartUploadsReply:
        return await self._call("POST", "/v1/files", StartUploadsReply, request)

    async def upload_state(self, version: VersionId) -> UploadState:
        return await self._call("GET", f"/v1/uploads/{version}", UploadState)

    async def upload_urls(self, version: VersionId, request: UrlsRequest) -> UploadState:
        return await self._call("POST", f"/v1/uploads/{version}/urls", UploadState, request)

    async def abandon_upload(self, version: VersionId) -> None:
        await self._send("DELETE", f"/v1/uploads/{version}")

    async def complete(self, version: VersionId, request: CompleteUpload) -> Applied:
        return await self._call("POST", f"/v1/uploads/{version}/complete", Applied, request)

    # --- changes --------------------------------------------------------------------------------

    async def apply(self, request: ApplyRequest) -> ApplyReply:
        return await self._call("POST", "/v1/changes/apply", ApplyReply, request)

    async def changes(self, cursor: str | None) -> ChangesPage:
        """The changes after `cursor` (None: from the beginning, which may answer `reset`)."""
        return await self._call("GET", "/v1/changes", ChangesPage, params={"cursor": cursor})

    async def wait(self, cursor: str, timeout_s: float) -> ChangesPage:
        """As `changes`, but when there are none the server waits up to `timeout_s` for one."""
        return await self._call(
            "GET",
            "/v1/changes/wait",
            ChangesPage,
            params={"cursor": cursor, "timeout": timeout_s},
            read_longer=timeout_s + _POLL_GRACE_SECONDS,
        )

    @asynccontextmanager
    async def live(self, cursor: str, *, ping_seconds: float = 20.0) -> AsyncIterator[Hints]:
        """A WebSocket of hints from `cursor` on; `async for` over what it gives.

        A peer that does not answer a ping within `ping_seconds` is gone. Raises `NoWebSocket` when
        the server, or something before it, answers the upgrade with anything else; the reason is
        then found by asking `changes`, which answers with a `Problem`.
        """
        where = f"the change feed of {self.base_url}"
        session: AbstractAsyncContextManager[httpx_ws.AsyncWebSocketSession] = httpx_ws.aconnect_ws(
            f"{self.base_url}/v1/changes/live",
            self._api,
            params={"cursor": cursor},
            headers=self._headers(),
            max_message_size_bytes=_READ_SIZE,
            keepalive_ping_interval_seconds=ping_seconds,
            keepalive_ping_timeout_seconds=ping_seconds,
        )
        try:
            with _transport_errors(where):
                async with session as opened:
                    self.transferred.requests += 1
                    yield Hints(opened, where, self.transferred)
        except httpx_ws.WebSocketUpgradeError as error:
            status = error.response.status_code
            raise NoWebSocket(f"{where} gave no WebSocket but answered {status}") from None
        except BaseExceptionGroup as group:
            # httpx-ws runs a nursery of its own, which wraps whatever ends the session.
            cause = _cause_of(group, where)
            if cause is group:
                raise
            raise cause from group

    # --- the data path --------------------------------------------------------------------------

    async def put_chunk(self, put: PresignedPut, body: Buffer) -> None:
        """Store `body` where `put` says. That it is there already is success."""
        check_url(put.url, insecure=self._insecure)
        view = memoryview(body).cast("B")
        headers = {**put.headers, "Content-Length": str(len(view))}
        where = f"upload to {httpx.URL(put.url).host}"
        with _transport_errors(where):
            response = await self._data.put(put.url, content=self._slices(view), headers=headers)
        self.transferred.requests += 1
        if not (response.is_success or response.status_code == 412):
            raise _data_refusal(response.status_code, where)

    async def _slices(self, view: memoryview) -> AsyncIterator[bytes]:
        for start in range(0, len(view), _PUT_SLICE):
            part = view[start : start + _PUT_SLICE]
            self.transferred.uploaded_bytes += len(part)
            # h11 only measures and joins what it is given: a view does, and saves a copy.
            yield cast(bytes, part)

    async def get_range(
        self, url: str, start: int, end_exclusive: int, into: bytearray | memoryview
    ) -> int:
        """Read bytes [start, end_exclusive) of the object at `url` to the start of `into`, as they
        come, without another copy; give their number, which is always all of them. On an error
        `into` holds rubbish. Nothing is verified here (`codec.decode_block`)."""
        check_url(url, insecure=self._insecure)
        target = memoryview(into).cast("B")[: end_exclusive - start]
        if not 0 <= start < end_exclusive or len(target) != end_exclusive - start:
            raise ValueError(f"[{start}, {end_exclusive}) does not fit {len(into)} bytes")
        where = f"download from {httpx.URL(url).host}"
        headers = {"Range": f"bytes={start}-{end_exclusive - 1}", "Accept-Encoding": "identity"}
        with _transport_errors(where):
            async with self._data.stream("GET", url, headers=headers) as response:
                self.transferred.requests += 1
                _check_range(response, start, end_exclusive, where)
                await self._fill(response, target, where)
        return len(target)

    async def _fill(self, response: httpx.Response, target: memoryview, where: str) -> None:
        filled = 0
        async for part in response.aiter_raw():
            self.transferred.downloaded_bytes += len(part)
            if filled + len(part) > len(target):
                raise Truncated(f"{where}: more came than the {len(target)} bytes asked for")
            target[filled : filled + len(part)] = part
            filled += len(part)
        if filled != len(target):
            raise Truncated(f"{where}: truncated, {filled} of {len(target)} bytes came")

    # --- one request ----------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        reply: type[T],
        body: msgspec.Struct | None = None,
        *,
        params: Params | None = None,
        read_longer: float = 0.0,
    ) -> T:
        """Ask, and decode the answer as `reply`. A parameter that is None is left out."""
        response = await self._send(method, path, body, params=params, read_longer=read_longer)
        try:
            return cast(T, _decoder(reply).decode(response.content))
        except msgspec.DecodeError as error:
            raise ProtocolError(f"the answer of {self.base_url} is not v1: {error}") from None

    async def _send(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | None = None,
        *,
        params: Params | None = None,
        read_longer: float = 0.0,
    ) -> httpx.Response:
        content = None if body is None else msgspec.msgpack.encode(body)
        headers = self._headers() | ({} if content is None else {"Content-Type": MSGPACK})
        with _transport_errors(self.base_url):
            response = await self._api.request(
                method,
                path,
                content=content,
                params={name: value for name, value in (params or {}).items() if value is not None},
                headers=headers,
                timeout=self._timeouts.as_httpx(read_longer),
            )
        self.transferred.requests += 1
        self.transferred.uploaded_bytes += len(content or b"")
        self.transferred.downloaded_bytes += response.num_bytes_downloaded
        if not response.is_success:
            raise self._refusal(response)
        return response

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": MSGPACK}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _refusal(self, response: httpx.Response) -> NearlineError:
        is_msgpack = response.headers.get("Content-Type", "").startswith(MSGPACK)
        decoder = _decoder(AnyProblem) if is_msgpack else _json_decoder(AnyProblem)
        try:
            return Refused(decoder.decode(response.content))
        except msgspec.DecodeError:
            pass  # not a Problem: something else than a Nearline server answered
        answered = f"{self.base_url} answered {response.status_code} {response.reason_phrase}"
        if response.status_code >= 500 or response.status_code in _AGAIN_LATER:
            return Unreachable(answered)
        return ProtocolError(f"{answered}: is a Nearline server there?")


class Hints:
    """The hints of one WebSocket, as an async iterator. It never just stops: when the socket ends,
    for whatever reason, it raises `Unreachable`."""

    def __init__(
        self, session: httpx_ws.AsyncWebSocketSession, where: str, transferred: Transferred
    ) -> None:
        self._session, self._where, self._transferred = session, where, transferred

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Hint:
        try:
            frame = await self._session.receive_bytes()
        except httpx_ws.WebSocketDisconnect as error:
            raise Unreachable(f"{self._where} closed: {error.reason or error.code}") from None
        except httpx_ws.WebSocketNetworkError:
            raise Unreachable(f"{self._where} broke off") from None
        except httpx_ws.WebSocketInvalidTypeReceived:
            raise ProtocolError(f"{self._where} sent what is no hint") from None
        self._transferred.downloaded_bytes += len(frame)
        try:
            return cast(Hint, _decoder(Hint).decode(frame))
        except msgspec.DecodeError as error:
            raise ProtocolError(f"{self._where} sent what is no hint: {error}") from None


def check_url(url: str, *, insecure: bool = False) -> None:
    """Raise `InsecureUrl` for http:// to another machine unless `insecure`; `ValueError` for what
    is no http(s) URL with a host."""
    if url.startswith("https://") and len(url) > len("https://"):
        return
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    if parsed.scheme == "http" and not (insecure or _is_loopback(parsed.host)):
        host = parsed.host
        raise InsecureUrl(f"http://{host} is not encrypted: use https://, or allow it (--insecure)")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pool(connections: int) -> httpx.Limits:
    return httpx.Limits(
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=KEEPALIVE_SECONDS,
    )


@functools.cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


@functools.cache
def _json_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


# --- blob store and edge ------------------------------------------------------------------------


def _check_range(response: httpx.Response, start: int, end: int, where: str) -> None:
    """Raise unless the answer's body is bytes [start, end), as they are stored."""
    status = response.status_code
    if status == 416:
        raise Truncated(f"{where}: truncated, the object ends before {end}")
    if status not in (200, 206):
        raise _data_refusal(status, where)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise ProtocolError(f"{where}: somebody on the way applied {encoding}")
    if status == 200 and start != 0:
        raise ProtocolError(f"{where}: a range was asked for, the whole was answered")
    if status == 206:
        _check_content_range(response.headers.get("Content-Range", ""), start, end, where)


def _check_content_range(text: str, start: int, end: int, where: str) -> None:
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None or int(match[1]) != start:
        raise ProtocolError(f"{where}: [{start}, {end}) was asked for, {text!r} was answered")
    if int(match[2]) != end - 1:
        raise Truncated(f"{where}: truncated, [{start}, {end}) was asked for, {text} came")


def _data_refusal(status: int, where: str) -> NearlineError:
    if status in _SIGN_AGAIN:
        return UrlRefused(f"{where}: the signed URL was refused ({status})")
    if status >= 500 or status in _AGAIN_LATER:
        return Unreachable(f"{where}: answered {status}")
    return ProtocolError(f"{where}: answered {status}")


# --- transport trouble, in one line -------------------------------------------------------------


@contextmanager
def _transport_errors(where: str) -> Iterator[None]:
    """Turn what httpx raises for want of an answer into `Unreachable`."""
    try:
        yield
    except httpx.ConnectError as error:
        raise Unreachable(f"cannot connect: {where}: {_why(error)}") from error
    except httpx.TransportError as error:
        raise Unreachable(f"{where}: {_why(error)}") from error
    except httpx.DecodingError as error:
        raise ProtocolError(f"{where}: {error}") from error


def _why(error: httpx.HTTPError) -> str:
    """The root cause, in a few words."""
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, socket.gaierror):
            return "the name of the host is not known"
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno).lower()
    return str(error) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and everything it was raised from, nearest first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        if isinstance(seen, BaseExceptionGroup):
            for inner in seen.exceptions:
                yield from _causes(inner)
        seen = seen.__cause__ or seen.__context__


def _cause_of(group: BaseExceptionGroup[BaseException], where: str) -> BaseException:
    """The one error that the end of a WebSocket session stands for; `group` itself if several
    things happened that are not all about the network (a cancellation, a bug)."""
    leaves = list(_leaves(group))
    foreign = [each for each in leaves if not isinstance(each, (*_SESSION_ERRORS, NearlineError))]
    if foreign:
        return foreign[0] if len(leaves) == 1 else group
    named = [each for each in leaves if isinstance(each, NearlineError)]
    return named[0] if named else Unreachable(f"{where} broke off")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each
