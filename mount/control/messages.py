"""Messages between a command and a running mount, over the control socket.

Knows: the shape of requests and answers, how they are framed, and where the socket is; those about
sharing, history, trash and devices are in `account_messages`. Must not know: how an answer is found
(`server`), how it is shown (`cli`).

A connection carries one request and its answers, each one line of JSON: any number of `Progress`,
then exactly one of `Failed` and `Reply`. `Status` is also what `nearline status --json` prints: a
stable schema, to which fields are added and never removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, json

from mount.control.account_messages import AccountAnswer, AccountRequest
from mount.options import MAX_TRANSFERS
from remote.protocol.sizes import MIN_RATE

SOCKET_NAME = "control.sock"
# sockaddr_un.sun_path holds 108 bytes with its NUL on Linux and 104 on macOS (unix(7)).
MAX_SOCKET_PATH = 103
MAX_REQUEST_BYTES = 64 * 1024


# --- requests -----------------------------------------------------------------------------------


class StatusRequest(Struct, frozen=True, tag="status"): ...


class FlushRequest(Struct, frozen=True, tag="flush"):
    """Answer when the server has everything, with `Progress` until then; `Failed` with kind
    `timeout` after `timeout` seconds, and with `unless_offline` when it cannot be reached."""

    timeout: float | None = None
    unless_offline: bool = False


class RetryRequest(Struct, frozen=True, tag="retry"):
    """Try again what was refused for good at `path` and below it ("" is everything); answer when
    the server has decided. `Failed` with kind `timeout` after `timeout` seconds."""

    path: str = ""
    timeout: float | None = None


class StopRequest(Struct, frozen=True, tag="stop"):
    """Unmount and end; with `flush` only after the server has everything."""

    flush: bool = True


class PinRequest(Struct, frozen=True, tag="pin"):
    """Fetch `path` (relative to the mount's root, "" is the root) and keep it."""

    path: str


class UnpinRequest(Struct, frozen=True, tag="unpin"):
    path: str


class WarmRequest(Struct, frozen=True, tag="warm"):
    """Fetch `path` into the cache once, without keeping it there."""

    path: str


class CacheStatsRequest(Struct, frozen=True, tag="cache_stats"): ...


class CacheClearRequest(Struct, frozen=True, tag="cache_clear"):
    """Drop every clean block that is not pinned."""


Rate = Annotated[int, Meta(ge=MIN_RATE)]  # bytes a second


class LimitRequest(Struct, frozen=True, kw_only=True, tag="limit"):
    """Limit what is moved from now on, as `TransferLimits` says; what is left out stays."""

    up: Rate | UnsetType | None = UNSET
    down: Rate | UnsetType | None = UNSET
    transfers: Annotated[int, Meta(ge=1, le=MAX_TRANSFERS)] | UnsetType = UNSET


Request = (
    StatusRequest
    | FlushRequest
    | RetryRequest
    | StopRequest
    | PinRequest
    | UnpinRequest
    | WarmRequest
    | CacheStatsRequest
    | CacheClearRequest
    | LimitRequest
    | AccountRequest
)


# --- answers ------------------------------------------------------------------------------------


class Progress(Struct, frozen=True, kw_only=True, tag="progress"):
    """Progress of a flush, pin or warm. `reason` says why nothing moves, when nothing does."""

    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    state: str = "working"
    reason: str | None = None


class Done(Struct, frozen=True, tag="done"):
    message: str = ""


class Failed(Struct, frozen=True, tag="failed"):
    message: str
    kind: Literal["failed", "timeout", "usage"] = "failed"


class JournalStatus(Struct, frozen=True):
    """Local changes that the server does not have yet."""

    operations: int = 0
    bytes: int = 0


class UploadStatus(Struct, frozen=True):
    path: str
    bytes_done: int
    bytes_total: int
    error: str | None = None


class RefusedStatus(Struct, frozen=True):
    """A change that was refused for good. It stays in the journal with its bytes. `since_ns` is
    when it was made, `waiting` how many changes cannot be sent before it."""

    path: str
    operation: str
    error: str
    since_ns: int = 0
    waiting: int = 0
    advice: str = ""


class CacheStatus(Struct, frozen=True):
    bytes: int = 0
    limit: int = 0


class TransferredStatus(Struct, frozen=True):
    """Since the mount started."""

    downloaded_bytes: int = 0
    uploaded_bytes: int = 0
    requests: int = 0


class FeedStatus(Struct, frozen=True):
    """`lag_seconds` is how long ago the mount last knew that it had every change; None: never."""

    mode: Literal["push", "poll", "down"] = "down"
    lag_seconds: float | None = None


class LimitsStatus(Struct, frozen=True, kw_only=True):
    """The limits of the mount, and how much of them is used now. Sizes in bytes; the last three are
    those of `TransferLimits`."""

    memory_bytes: int = 0
    memory_limit: int | None = None
    open_files: int = 0
    open_files_limit: int = 0
    dirty_bytes: int = 0
    dirty_limit: int = 0
    upload_limit: int | None = None
    download_limit: int | None = None
    transfers: int = MAX_TRANSFERS


class Status(Struct, frozen=True, kw_only=True, tag="status"):
    """`state`: `online` or `offline`, with `reason` for the latter; the command itself adds
    `dead` for a mount whose process is gone. Times in seconds, sizes in bytes."""

    state: Literal["online", "offline", "dead"]
    reason: str | None = None
    mountpoint: str
    url: str
    account: str
    pid: int
    state_dir: str = ""
    cache_dir: str = ""
    journal: JournalStatus = JournalStatus()
    uploads: list[UploadStatus] = []
    refused: list[RefusedStatus] = []
    quarantined: list[str] = []  # directories with state that was damaged
    cache: CacheStatus = CacheStatus()
    transferred: TransferredStatus = TransferredStatus()
    feed: FeedStatus = FeedStatus()
    limits: LimitsStatus = LimitsStatus()
    versions: dict[str, str] = {}
    metrics_port: int | None = None
    kernel_requests: dict[str, int] = {}  # by name, since the mount started


class CacheStats(Struct, frozen=True, kw_only=True, tag="cache_stats"):
    """The block cache: `bytes` of `limit` used by `blocks`, `pinned_chunks` are never evicted;
    `hits`, `misses` and `evicted` count blocks since the mount started."""

    bytes: int = 0
    limit: int = 0
    blocks: int = 0
    pinned_chunks: int = 0
    hits: int = 0
    misses: int = 0
    evicted: int = 0


class TransferLimits(Struct, frozen=True, kw_only=True, tag="transfer_limits"):
    """Contents of files may be moved at `up` and `down` bytes a second, None: without a limit;
    `transfers` large ones are on their way at once, in each direction."""

    up: int | None
    down: int | None
    transfers: int


Reply = Done | Status | CacheStats | TransferLimits | AccountAnswer
Answer = Progress | Failed | Reply


_requests: json.Decoder[Request] = json.Decoder(Request)
_answers: json.Decoder[Answer] = json.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """One line, its newline included. JSON itself never contains a raw newline."""
    return json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises `msgspec.DecodeError` when the line is not a request."""
    return _requests.decode(line)


def decode_answer(line: bytes) -> Answer:
    """Raises `msgspec.DecodeError` when the line is not an answer."""
    return _answers.decode(line)


def socket_path(state_dir: Path) -> Path:
    """Where the mount with this state directory listens: in it, where nobody else can put anything.
    It may be longer than a Unix socket's path can be: see `reachable`."""
    return state_dir / SOCKET_NAME


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """The address for bind(2) and connect(2) of the socket `path`, good until the block ends: the
    path, or when it is too long for them, its directory by a descriptor and the name in it. So no
    socket needs a short directory that all users share. Raises OSError."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        yield os.fspath(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
