"""One request to the server: pools, token, MessagePack, what transport trouble is called.

Knows: how a request is sent, named and answered, and which of `errors` each kind of trouble is.
Must not know: any endpoint (`api`, `account_api`), signed URLs (`data`), WebSockets
(`websocket`), when to try again.

Every request carries an `X-Request-Id` of its own; the server logs it, and so is it here when the
request failed or was slow. Logged are method and path: never a query, a header or a body, so no
token, cursor or signature.

Concurrency: any number of tasks of one trio run may send. Shared are the counters of `Transferred`
and the token, changed between awaits only.
"""

from __future__ import annotations

import copy
import errno
import functools
import os
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar, cast
from urllib.request import getproxies

import msgspec
import structlog
import trio

from remote.http.connectivity import Connectivity, origin_of
from remote.http.lazy_import import Late
from remote.protocol.certificates import trusting
from remote.protocol.errors import (
    AnyProblem,
    Busy,
    NearlineError,
    ProtocolError,
    Refused,
    Silent,
    Unauthorized,
    Unreachable,
)
from remote.protocol.hosts import is_loopback, is_on_this_machine

if TYPE_CHECKING:
    import httpx

    from remote.http import carriers, pinned_tls
else:
    httpx, pinned_tls = Late("httpx"), Late("remote.http.pinned_tls")
    carriers = Late("remote.http.carriers")

log = structlog.get_logger(__name__)

Params: TypeAlias = Mapping[str, str | float | None]
T = TypeVar("T", bound=msgspec.Struct)

MSGPACK = "application/msgpack"
USER_AGENT = "nearline/1"
REQUEST_ID = "X-Request-Id"

API_CONNECTIONS = 16
DATA_CONNECTIONS = 48  # what downloads (`transfer.download`) and uploads have under way together
KEEPALIVE_SECONDS = 30.0

# A request that took longer than this is worth a line in the log.
SLOW_SECONDS = 5.0

# How long a probe of a silent host waits. One that takes longer is found by the change feed.
PROBE_SECONDS = 10.0

# What the system says when there is nobody there; see connect(2).
_NOBODY = frozenset(
    {
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
    }
)

AGAIN_LATER = frozenset({408, 409, 425, 429})


class InsecureUrl(ValueError):
    """A URL that would send tokens or content unencrypted to another machine, or to whichever
    program on this one has the port."""


@dataclass(slots=True)
class Transferred:
    """Traffic over the network: HTTP requests made, and bytes of bodies each way."""

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


class _Open(NamedTuple):
    api: httpx.AsyncClient
    data: httpx.AsyncClient
    direct: carriers.Direct | None  # None: a proxy is in between


class Pools:
    """The connections to one server, opened when the first of them is needed."""

    def __init__(
        self, base_url: str, user_agent: str, timeouts: Timeouts, pin: str | None = None
    ) -> None:
        self._base_url, self._user_agent, self._timeouts = base_url, user_agent, timeouts
        self._pin = pin
        self._opening = trio.Lock()
        self._open: _Open | None = None

    async def api(self) -> httpx.AsyncClient:
        return (await self._opened()).api

    async def data(self) -> httpx.AsyncClient:
        return (await self._opened()).data

    async def carrier(self, url: httpx.URL) -> carriers.Carrier:
        """The carrier for the bodies of `url`."""
        opened = await self._opened()
        if opened.direct is None or url.userinfo:
            return carriers.ByHttpx(opened.data)
        return opened.direct

    async def _opened(self) -> _Open:
        if self._open is not None:
            return self._open
        async with self._opening:
            if self._open is None:
                # In a thread: it loads the HTTP libraries and the system's certificates.
                self._open = await trio.to_thread.run_sync(self._make, abandon_on_cancel=True)
        return self._open

    def _make(self) -> _Open:
        # A proxy from the environment must not get between us and our own machine.
        trust_env = not is_loopback(httpx.URL(self._base_url).host)
        # One context for all: loading the system's certificates takes tens of ms.
        context = httpx.create_ssl_context()
        trusted = None if self._pin is None else trusting(self._pin)
        make: Callable[..., httpx.AsyncClient] = functools.partial(
            httpx.AsyncClient,
            headers={"User-Agent": self._user_agent},
            verify=context,
            timeout=self._timeouts.as_httpx(),
            trust_env=trust_env,
        )
        for_api, for_data = _pool(API_CONNECTIONS), _pool(DATA_CONNECTIONS)
        return _Open(
            make(base_url=self._base_url, limits=for_api, mounts=_mounts(trusted, for_api)),
            make(limits=for_data, mounts=_mounts(trusted, for_data)),
            None if trust_env and has_proxy() else self._direct(context, trusted),
        )

    def _direct(self, context: ssl.SSLContext, trusted: ssl.SSLContext | None) -> carriers.Direct:
        context.set_alpn_protocols(["http/1.1"])
        return carriers.Direct(
            self._user_agent,
            carriers.StallTimeouts(
                self._timeouts.connect, self._timeouts.read, self._timeouts.write
            ),
            {"https": context, "http": trusted},
            frozenset() if trusted is None else frozenset({"http"}),
            connections=DATA_CONNECTIONS,
            keepalive=KEEPALIVE_SECONDS,
        )

    async def close(self) -> None:
        if self._open is None:
            return
        for client in (self._open.api, self._open.data):
            await client.aclose()
        if self._open.direct is not None:
            self._open.direct.close()


def has_proxy() -> bool:
    """True if the environment names one, for whatever host: httpx knows for which."""
    return not getproxies().keys().isdisjoint(("http", "https", "all"))


def _mounts(
    trusted: ssl.SSLContext | None, limits: httpx.Limits
) -> dict[str, httpx.AsyncBaseTransport]:
    """The transports for http:// that do not go as httpx would have them."""
    return {} if trusted is None else {"http://": pinned_tls.PinnedTransport(trusted, limits)}


class Transport:
    """A server, as `token` sees it. Use as an async context manager, under trio.

    `pin` is the certificate (PEM) of a server on this machine: http:// goes over TLS to the holder
    of its key, and to nobody else. `insecure`: http:// is plain HTTP.

    Raises `InsecureUrl` for an http:// `base_url` unless it is of this machine and `pin` is given,
    or `insecure`; `ValueError` for what is no http(s) URL.

    `on_refused_token` is asked, by one request at a time, when the server does not accept the
    token; it answers whether it has called `use_token` with another one.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        insecure: bool = False,
        pin: str | None = None,
        user_agent: str = USER_AGENT,
        timeouts: Timeouts | None = None,
        transferred: Transferred | None = None,
        on_refused_token: Callable[[Refused], Awaitable[bool]] | None = None,
    ) -> None:
        pin = None if insecure else pin
        self._is_pinned = pin is not None
        check_url(base_url, insecure=insecure, pinned=self._is_pinned)
        self.base_url = base_url.rstrip("/")
        self.transferred = transferred if transferred is not None else Transferred()
        self._token = token
        self._on_refused_token = on_refused_token
        self._taking = trio.Lock()
        self._insecure = insecure
        self._timeouts = timeouts or Timeouts()
        self._pools = Pools(self.base_url, user_agent, self._timeouts, pin)
        self.origin = origin_of(self.base_url)
        self.connectivity = Connectivity(self._is_heard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._pools.close()

    def with_token(self, token: str | None) -> Self:
        """The same server, pools and counters as another device; close only the original."""
        other = copy.copy(self)
        other.use_token(token)
        other._on_refused_token = None
        return other

    @property
    def token(self) -> str | None:
        """As whose device requests are made."""
        return self._token

    def use_token(self, token: str | None) -> None:
        """Go on as the device of `token`, from the next request."""
        self._token = token

    async def _call(
        self,
        method: str,
        path: str,
        reply: type[T],
        body: msgspec.Struct | None = None,
        *,
        params: Params | None = None,
        read_longer: float = 0.0,
        for_feed: bool = False,
    ) -> T:
        """Ask, and decode the answer as `reply`. A parameter that is None is left out. `for_feed`:
        see `Connectivity.asking`."""
        ask = functools.partial(self._send_once, method, path, body, params, read_longer, for_feed)
        response = await self._as_device(ask)
        try:
            return cast(T, decoder(reply).decode(response.content))
        except msgspec.DecodeError as error:
            raise ProtocolError(f"the answer of {self.base_url} is not v1: {error}") from None

    async def _send(
        self, method: str, path: str, body: msgspec.Struct | None = None
    ) -> httpx.Response:
        """Send a request and return its answer if it is a good one."""
        return await self._as_device(
            functools.partial(self._send_once, method, path, body, None, 0.0, False)
        )

    async def _as_device(self, ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """A token that was exchanged while the request was under way may have ended meanwhile,
        which is no refusal of this device: it is sent once more with the new one. So it is when
        another login was kept since (`on_refused_token`)."""
        token = self._token
        try:
            return await ask()
        except Refused as error:
            if not isinstance(error.problem, Unauthorized):
                raise
            if token == self._token and not await self._has_another(error):
                raise
            return await ask()

    async def _has_another(self, refused: Refused) -> bool:
        if self._on_refused_token is None:
            return False
        token = self._token
        async with self._taking:  # one at a time: the others go on with what it found
            return token != self._token or await self._on_refused_token(refused)

    async def _send_once(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | None,
        params: Params | None,
        read_longer: float,
        for_feed: bool,
    ) -> httpx.Response:
        content = None if body is None else msgspec.msgpack.encode(body)
        headers = self._headers() | ({} if content is None else {"Content-Type": MSGPACK})
        given = {name: value for name, value in (params or {}).items() if value is not None}
        noted = self._noted(method, path, headers[REQUEST_ID], SLOW_SECONDS + read_longer)
        with self.connectivity.asking(self.origin, for_feed=for_feed), noted:
            api = await self._pools.api()
            with transport_errors(self.base_url):
                response = await api.request(
                    method,
                    path,
                    content=content,
                    params=given,
                    headers=headers,
                    timeout=self._timeouts.as_httpx(read_longer),
                )
            self.connectivity.heard(self.origin)
            self.transferred.requests += 1
            self.transferred.uploaded_bytes += len(content or b"")
            self.transferred.downloaded_bytes += response.num_bytes_downloaded
            if not response.is_success:
                raise self._refusal(response)
        return response

    async def _is_heard(self, origin: str) -> bool:
        """True if anything answers there, whatever it says: nothing is sent but the question."""
        data = await self._pools.data()
        try:
            with transport_errors(origin):
                await data.head(f"{origin}/", timeout=PROBE_SECONDS)
        except (Unreachable, ProtocolError) as error:
            return not isinstance(error, Silent)
        return True

    @contextmanager
    def _noted(self, method: str, path: str, request_id: str, slow_after: float) -> Iterator[None]:
        """Log the request if it fails or takes longer than `slow_after` seconds. `path` is without
        a query."""
        asked = {"id": request_id, "method": method, "path": path}
        began = time.monotonic()
        try:
            yield
        except NearlineError as error:
            log.info("request_failed", **asked, ms=_ms_since(began), why=str(error))
            raise
        if time.monotonic() - began > slow_after:
            log.info("request_was_slow", **asked, ms=_ms_since(began))

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": MSGPACK, REQUEST_ID: new_request_id()}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _refusal(self, response: httpx.Response) -> NearlineError:
        is_msgpack = response.headers.get("Content-Type", "").startswith(MSGPACK)
        decode = decoder(AnyProblem).decode if is_msgpack else json_decoder(AnyProblem).decode
        try:
            return Refused(decode(response.content))
        except msgspec.DecodeError:
            pass  # not a Problem: something else than a Nearline server answered
        answered = f"{self.base_url} answered {response.status_code} {response.reason_phrase}"
        if is_later(response.status_code):
            return Busy(answered, response.status_code, retry_after(response.headers))
        return ProtocolError(f"{answered}: is a Nearline server there?")


def new_request_id() -> str:
    return secrets.token_hex(8)


def is_later(status: int) -> bool:
    """True if the same request may be answered otherwise after a while."""
    return status >= 500 or status in AGAIN_LATER


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3). A date in it is read by the clock of
    who sent it (`Date`), because ours may be wrong."""
    said = headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        until, now = (parsedate_to_datetime(text) for text in (said, headers.get("Date", "")))
        return (until - now).total_seconds()
    except (TypeError, ValueError):  # no date, or only one of them has a time zone
        return None


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)


def check_url(url: str, *, insecure: bool = False, pinned: bool = False) -> None:
    """Raise `InsecureUrl` for http:// unless `insecure`, or it is to this machine and the server's
    certificate is `pinned`; `ValueError` for what is no http(s) URL with a host. Neither shows the
    URL's query."""
    if url.startswith("https://") and len(url) > len("https://"):
        return
    # No library is loaded to see this.
    if pinned and url.startswith("http://") and is_on_this_machine(url):
        return
    shown = url.partition("?")[0]
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{shown!r} is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{shown!r} is not an http:// or https:// URL")
    if parsed.scheme != "http" or insecure:
        return
    host, is_ours = parsed.host, is_loopback(parsed.host)
    if not is_ours:
        raise InsecureUrl(f"http://{host} is not encrypted: use https://, or allow it (--insecure)")
    if not pinned:
        raise InsecureUrl(
            f"http://{host} may be anybody's on this machine, and the server's key is not known: "
            "run `nearline login`, or allow it (--insecure)"
        )


def _pool(connections: int) -> httpx.Limits:
    return httpx.Limits(
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=KEEPALIVE_SECONDS,
    )


@functools.cache
def decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


@functools.cache
def json_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


# --- trouble, in one line -----------------------------------------------------------------------


@contextmanager
def transport_errors(where: str) -> Iterator[None]:
    """Turn what httpx raises for want of an answer into `Unreachable`."""
    try:
        yield
    except httpx.ConnectError as error:
        kind = Silent if _is_silence(error) else Unreachable
        raise kind(f"cannot connect: {where}: {_why(error)}") from error
    except httpx.TransportError as error:
        kind = Silent if _is_silence(error) else Unreachable
        raise kind(f"{where}: {_why(error)}") from error
    except httpx.DecodingError as error:
        raise ProtocolError(f"{where}: {error}") from error


def _is_silence(error: httpx.HTTPError) -> bool:
    return isinstance(error, httpx.TimeoutException) or any(
        isinstance(cause, socket.gaierror)
        or (isinstance(cause, OSError) and cause.errno in _NOBODY)
        for cause in _causes(error)
    )


def _why(error: httpx.HTTPError) -> str:
    """The root cause, in a few words."""
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    if isinstance(error, pinned_tls.NotThatServer):
        return str(error)
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
