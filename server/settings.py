"""The settings of an operator, and the places of things under the data directory.

Knows: names, defaults and limits of settings. Must not know: what is done with them.

The configuration file is TOML with the field names of `Tunables` as keys; unknown keys are refused
so that a typo is not a silently ignored limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from remote.protocol.messages import SIGNED_URL_SECONDS
from remote.protocol.signing import LONGEST_SECONDS
from server.addresses import TrustedProxies

_UrlSeconds = Annotated[int, msgspec.Meta(ge=30, le=LONGEST_SECONDS)]


class BadSettings(ValueError):
    """The configuration cannot be used; the message says which part and what to write instead."""


class Tunables(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that may stand in the configuration file.

    Seconds, bytes and counts. `get_url_seconds` is how long a signed GET lives, `put_url_seconds`
    how long a presigned PUT may be begun, `upload_days` how long an upload session and its leases
    live after they were last used, `pending_limit_bytes` how much may be promised to the uploads
    into one drive at a time, `pending_limit_chunks` how many sessions and chunks that have not come
    one uploader may have in a drive at a time, `collect_seconds` how often the server collects
    garbage by itself (0: never). Overwritten versions and the trash are kept for `keep_days`, the
    newest `keep_versions` of a file whatever their age; an account may have its own. `content_url`
    is another origin of this server, from which alone the downloads of links are served then, so
    that what is downloaded has nothing in common with the pages.

    An account may share `share_miss_burst` times with names that are no account's, and then once in
    `share_miss_seconds`; with somebody who has shared nothing with it `stranger_burst` times, and
    then once in `stranger_seconds`.

    Limits are generous: they are for programs gone wild and for attackers. Rates are requests a
    second, above a burst; who exceeds one is first slowed down, then refused. `refusal_rate` and
    `refusal_burst` are of answers to one address that refuse it something; `refused_seconds` is how
    long an answer is held back that tells a client to come again later. `visitor_rate` is that
    of visits to links, pages and downloads, from one address; `link_rate` that of one link, from
    all addresses together. `head_seconds` is how long a request's head may take, `body_seconds` how
    long nothing of a body may arrive, `body_floor` how many bytes a second of one must arrive on
    average after that, `body_total_seconds` how long a whole one may take, `body_limit` how large
    one may be that is no chunk, `body_memory_bytes` how much of all bodies is held at a time,
    `send_seconds` how long a client may take nothing of an answer. `sockets_per_account` counts
    open change feeds. `metrics_token` is asked for at /metrics and /schema if it is set; the server
    is not ready with less than `min_free_bytes` of disk. Requests above `slow_seconds` are logged
    as such.
    """

    public_url: str | None = None
    content_url: str | None = None
    get_url_seconds: _UrlSeconds = SIGNED_URL_SECONDS
    put_url_seconds: _UrlSeconds = 900
    upload_days: Annotated[int, msgspec.Meta(ge=1, le=90)] = 7
    pending_limit_bytes: Annotated[int, msgspec.Meta(ge=1 << 28)] = 1 << 36
    pending_limit_chunks: Annotated[int, msgspec.Meta(ge=10)] = 20_000
    keep_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 30
    keep_versions: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10
    body_limit: Annotated[int, msgspec.Meta(ge=65536)] = 16 * 1024 * 1024
    login_burst: Annotated[int, msgspec.Meta(ge=1)] = 10
    login_seconds_per_try: Annotated[float, msgspec.Meta(gt=0)] = 6.0
    share_miss_burst: Annotated[int, msgspec.Meta(ge=1)] = 20
    share_miss_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    stranger_burst: Annotated[int, msgspec.Meta(ge=1)] = 50
    stranger_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    wait_seconds: Annotated[float, msgspec.Meta(gt=0, le=300)] = 60.0
    collect_seconds: Annotated[float, msgspec.Meta(ge=0)] = 3600.0

    tls_cert: str | None = None
    tls_key: str | None = None
    trusted_proxies: tuple[str, ...] = ()

    account_rate: Annotated[float, msgspec.Meta(gt=0)] = 500.0
    account_burst: Annotated[int, msgspec.Meta(ge=1)] = 5000
    address_rate: Annotated[float, msgspec.Meta(gt=0)] = 1000.0
    address_burst: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    refusal_rate: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    refusal_burst: Annotated[int, msgspec.Meta(ge=1)] = 1000
    refused_seconds: Annotated[float, msgspec.Meta(ge=0, le=10)] = 1.0
    visitor_rate: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    visitor_burst: Annotated[int, msgspec.Meta(ge=1)] = 100
    link_rate: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    link_burst: Annotated[int, msgspec.Meta(ge=1)] = 1000
    connections: Annotated[int, msgspec.Meta(ge=1)] = 2000
    connections_per_address: Annotated[int, msgspec.Meta(ge=1)] = 100
    connections_per_account: Annotated[int, msgspec.Meta(ge=1)] = 500
    head_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    head_bytes: Annotated[int, msgspec.Meta(ge=4096)] = 32 * 1024
    head_lines: Annotated[int, msgspec.Meta(ge=16)] = 100
    body_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    body_floor: Annotated[float, msgspec.Meta(gt=0)] = 1024.0
    body_total_seconds: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    body_memory_bytes: Annotated[int, msgspec.Meta(ge=1 << 23)] = 192 * 1024 * 1024
    send_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    keep_alive_seconds: Annotated[int, msgspec.Meta(ge=1)] = 75

    sockets_per_account: Annotated[int, msgspec.Meta(ge=1)] = 64
    socket_ping_seconds: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    socket_max_age_seconds: Annotated[float, msgspec.Meta(gt=0)] = 6 * 3600.0

    metrics_token: Annotated[str, msgspec.Meta(min_length=16)] | None = None
    min_free_bytes: Annotated[int, msgspec.Meta(ge=0)] = 512 * 1024 * 1024
    slow_seconds: Annotated[float, msgspec.Meta(gt=0)] = 5.0


@dataclass(frozen=True)
class Settings:
    """`data_dir` holds everything that must survive; `public_url` is the origin clients use,
    without a trailing slash: signed URLs are made for it, never for a request's Host header."""

    data_dir: Path
    public_url: str
    tunables: Tunables = field(default_factory=Tunables)

    def __post_init__(self) -> None:
        check_origin(self.public_url)
        if self.tunables.body_memory_bytes < 4 * self.tunables.body_limit:
            raise BadSettings("body_memory_bytes: write at least four times body_limit")
        if self.tunables.content_url is not None:
            _check_content_origin(self.tunables.content_url, self.public_url)
        try:
            TrustedProxies(self.tunables.trusted_proxies)
        except ValueError as error:
            message = f"trusted_proxies: {error}; write addresses, or networks like 10.0.0.0/8"
            raise BadSettings(message) from error

    @property
    def database(self) -> Path:
        return self.data_dir / "nearline.sqlite"

    @property
    def blobs(self) -> Path:
        return self.data_dir / "blobs"

    @property
    def keys(self) -> Path:
        return self.data_dir / "keys"


def check_origin(url: str) -> None:
    """Raise `BadSettings` unless `url` is `http(s)://host[:port]` and nothing more."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSettings(f"public URL {url!r}: write http://host:port or https://host")
    if parts.path or parts.query or parts.fragment or parts.username:
        raise BadSettings(f"public URL {url!r}: only scheme, host and port, no path or user")


def _check_content_origin(url: str, public_url: str) -> None:
    check_origin(url)
    if urlsplit(url).netloc.lower() == urlsplit(public_url).netloc.lower():
        raise BadSettings(
            "content_url names the public URL's host; give it another, or leave it out"
        )


def read_config(path: Path | None) -> Tunables:
    """The tunables of the TOML file `path`, or the defaults. Raises `BadSettings`."""
    if path is None:
        return Tunables()
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Tunables)
    except OSError as error:
        raise BadSettings(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise BadSettings(f"{path}: {error}") from error
