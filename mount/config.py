"""`MountConfig`: one mount as it was asked for.

Knows: what a server's URL is like, and where state and cache live by default. Must not know: how
options are said (`options`), whether a directory exists, who is mounted where (`registry`,
`preflight`), the token (`credentials`).

Invariants: every path in a `MountConfig` is absolute; the same (url, mountpoint) always gets the
same default directories.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mount.failures import UsageFailure
from mount.options import Options
from remote.protocol.hosts import is_on_this_machine


@dataclass(frozen=True, kw_only=True)
class MountConfig(Options):
    """One mount: `Options` in which nothing is left open. `pin` is the certificate (PEM) of a
    server on this machine that is spoken to by an http URL."""

    url: str
    mountpoint: Path
    account: str = field()  # without a default, which `Options` has
    state_dir: Path = field()
    cache_dir: Path = field()
    foreground: bool = False
    pin: str | None = None


def normal_url(url: str) -> str:
    """`url` in the one form that names a server: scheme, lower-case host, port, no last slash.

    Raises `UsageFailure` when it is not an http or https URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageFailure(f"{url!r} is not a URL ({error}); write it like https://host") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageFailure(f"{url!r} is not the URL of a server; write it like https://host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageFailure(f"the server's URL is only scheme, host and port; give no more: {url!r}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port in (None, {"http": 80, "https": 443}[parts.scheme]) else f"{host}:{port}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"


def needs_pin(url: str) -> bool:
    """True if any program on this machine could answer there, so that the server has to show its
    key."""
    return urlsplit(url).scheme == "http" and is_on_this_machine(url)


def needs_insecure(url: str) -> bool:
    """True if the token would travel in the clear: http to another machine."""
    return urlsplit(url).scheme == "http" and not is_on_this_machine(url)


def short_hash(*parts: str) -> str:
    """16 hex digits that name `parts`."""
    return hashlib.blake2b("\x00".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def default_state_dir(url: str, mountpoint: Path) -> Path:
    """Where the tree, journal and spool of this mount live unless `--state` says otherwise."""
    from platformdirs import user_state_path  # here: `config` is imported by every command

    return user_state_path("nearline") / "mounts" / short_hash(str(mountpoint), url)


def default_cache_dir(url: str, mountpoint: Path) -> Path:
    """Where the rebuildable block cache of this mount lives unless `--cache` says otherwise."""
    from platformdirs import user_cache_path

    return user_cache_path("nearline") / "mounts" / short_hash(str(mountpoint), url)


def make_config(
    url: str, mountpoint: Path, account: str, options: Options, *, foreground: bool = False
) -> MountConfig:
    """The `MountConfig` that `options` ask for, with every default filled in. Raises `UsageFailure`
    when `url` is none of a server."""
    url = normal_url(url)
    asked: dict[str, Any] = {item.name: getattr(options, item.name) for item in fields(Options)}
    asked |= {
        "account": account,
        "state_dir": options.state_dir or default_state_dir(url, mountpoint),
        "cache_dir": options.cache_dir or default_cache_dir(url, mountpoint),
        "fuse_options": options.fuse_options | ({"ro"} if options.read_only else frozenset()),
    }
    return MountConfig(url=url, mountpoint=mountpoint, foreground=foreground, **asked)
