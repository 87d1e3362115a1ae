"""What one mount was asked to be: `MountConfig`, and the pure parser of `-o` options that makes it.

Knows: the options of mount(8) and our own, their defaults, and where state and cache live by
default. Must not know: whether a directory exists, who is mounted where (`registry`, `preflight`),
the token (`credentials`).

Invariants: every path in a `MountConfig` is absolute; an option that nobody knows is an error that
names it; the same (url, mountpoint) always gets the same default directories.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from mount.failures import UsageFailure
from remote.protocol.hosts import is_on_this_machine

Sync = Literal["local", "remote"]
OnConflict = Literal["history", "copy"]
Symlinks = Literal["all", "inside"]

GIB = 1 << 30
DEFAULT_CACHE_SIZE = 20 * GIB
DEFAULT_DIRTY_LIMIT = 10 * GIB

_UNITS = ["", "K", "M", "G", "T", "P"]
_SIZE = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?) *(?P<unit>[KMGTP]?)(?P<binary>i?B?)", re.I)

# Options that FUSE or the kernel carries out; handed on as they are.
FUSE_FLAGS = frozenset(
    {"allow_other", "allow_root", "default_permissions", "noexec", "nosuid", "nodev"}
    | {"suid", "dev", "sync", "dirsync"}
)
ROOT_FLAGS = frozenset({"suid", "dev"})  # FUSE's default is without, for root too
# Each cancels what an earlier option (or mount(8)'s `user`) asked for.
_OPPOSITES = {
    "exec": "noexec", "suid": "nosuid", "nosuid": "suid", "dev": "nodev", "nodev": "dev",
    "async": "sync",
}  # fmt: skip
# Said to mount(8), fstab tools or systemd, not to us. Access times are not kept by the drive.
_IGNORED = {
    "defaults", "auto", "noauto", "nouser", "nofail", "_netdev", "relatime",
    "norelatime", "atime", "noatime", "strictatime", "nostrictatime", "diratime", "nodiratime",
    "lazytime", "nolazytime", "silent", "loud",
}  # fmt: skip
_IMPLIED = {
    "user": ("noexec", "nosuid", "nodev"),
    "users": ("noexec", "nosuid", "nodev"),
    "owner": ("nosuid", "nodev"),
    "group": ("nosuid", "nodev"),
}
MAX_ID = (1 << 32) - 2  # the one above means "nobody in particular" to chown(2)
_LARGEST = {"uid": MAX_ID, "gid": MAX_ID, "umask": 0o777, "metrics-port": 65535}


@dataclass(frozen=True)
class MountConfig:
    """One mount. Sizes in bytes. `uid`, `gid` and `umask` override what the drive says about every
    file; None means the drive's own. `metrics_port` None means no metrics endpoint. `pin` is the
    certificate (PEM) of a server on this machine that is spoken to by an http URL."""

    url: str
    mountpoint: Path
    account: str
    state_dir: Path
    cache_dir: Path
    cache_size: int = DEFAULT_CACHE_SIZE
    sync: Sync = "local"
    on_conflict: OnConflict = "history"
    symlinks: Symlinks = "all"
    read_only: bool = False
    foreground: bool = False
    insecure: bool = False
    noxattr: bool = False
    dirty_limit: int = DEFAULT_DIRTY_LIMIT
    fuse_options: frozenset[str] = field(default_factory=frozenset)
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    log_level: str = "info"
    metrics_port: int | None = None
    pin: str | None = None


@dataclass(frozen=True)
class Options:
    """What `-o` strings said; None means that nothing was said."""

    account: str | None = None
    state: Path | None = None
    cache: Path | None = None
    cache_size: int | None = None
    sync: Sync | None = None
    on_conflict: OnConflict | None = None
    symlinks: Symlinks | None = None
    read_only: bool | None = None
    insecure: bool | None = None
    noxattr: bool | None = None
    dirty_limit: int | None = None
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    log_level: str | None = None
    metrics_port: int | None = None
    fuse_options: frozenset[str] = frozenset()


def parse_size(text: str) -> int:
    """Bytes in `20GiB`, `500M`, `1.5 TB` or `4096`. `GB` is 10**9, `G` and `GiB` are 2**30."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageFailure(f"{text!r} is not a size; write it like 20GiB or 500M")
    base = 1000 if match["binary"].upper() == "B" else 1024
    size = int(Decimal(match["number"]) * base ** _UNITS.index(match["unit"].upper()))
    if size <= 0:
        raise UsageFailure(f"{text!r} is not a usable size; it must be more than nothing")
    return size


def parse_options(strings: Iterable[str], *, sloppy: bool = False) -> Options:
    """Read `-o` strings as mount(8) users write them; a later option wins over an earlier one.

    Raises `UsageFailure` naming the option that is unknown or has a value it cannot have. With
    `sloppy` (mount(8)'s -s) unknown options are passed over."""
    options = Options()
    for name, value in _split(strings):
        options = _take(options, name, value, sloppy)
    return options


def _split(strings: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    for item in ",".join(strings).split(","):
        name, equals, value = item.strip().partition("=")
        if name:
            yield name, value if equals else None


def _take(options: Options, name: str, value: str | None, sloppy: bool) -> Options:
    if (name in _IGNORED and value is None) or name.startswith(("x-", "X-", "comment")):
        return options
    if name == "remount":
        raise UsageFailure("a mount cannot be changed (remount); unmount it, then mount it again")
    if name in _IMPLIED:
        for implied in _IMPLIED[name]:
            options = _take_flag(options, implied)
        return options
    if (name in FUSE_FLAGS or name in _OPPOSITES) and value is None:
        return _take_flag(options, name)
    if name in ("ro", "rw") and value is None:
        return replace(options, read_only=name == "ro")
    if name == "insecure" and value is None:
        return replace(options, insecure=True)
    if name == "noxattr" and value is None:
        return replace(options, noxattr=True)
    if name in _VALUED:
        if not value:
            raise UsageFailure(f"option {name!r} needs a value; write {name}=VALUE")
        return _take_value(options, name, value)
    if sloppy:
        return options
    raise UsageFailure(f"unknown mount option {name!r}; see `nearline mount --help`")


def _take_flag(options: Options, name: str) -> Options:
    """One flag of FUSE, or the opposite of one."""
    flags = options.fuse_options - {_OPPOSITES.get(name)} | ({name} & FUSE_FLAGS)
    return replace(options, fuse_options=flags)


_VALUED = {
    "uid": "uid",
    "gid": "gid",
    "umask": "umask",
    "state": "state",
    "cache": "cache",
    "cache-size": "cache_size",
    "dirty-limit": "dirty_limit",
    "sync": "sync",
    "on-conflict": "on_conflict",
    "symlinks": "symlinks",
    "account": "account",
    "log-level": "log_level",
    "metrics-port": "metrics_port",
}


def _take_value(options: Options, name: str, value: str) -> Options:
    """One `name=value` option of ours, converted."""
    parsed: object
    if name in ("uid", "gid", "metrics-port"):
        parsed = _number(name, value, 10)
    elif name == "umask":
        parsed = _number(name, value, 8)
    elif name in ("state", "cache"):
        parsed = absolute(value)
    elif name in ("cache-size", "dirty-limit"):
        parsed = parse_size(value)
    elif name == "sync":
        parsed = one_of(name, value, get_args(Sync))
    elif name == "on-conflict":
        parsed = one_of(name, value, get_args(OnConflict))
    elif name == "symlinks":
        parsed = one_of(name, value, get_args(Symlinks))
    elif name == "log-level":
        parsed = one_of(name, value, ("debug", "info", "warning", "error"))
    else:
        parsed = value
    return replace(options, **{_VALUED[name]: parsed})  # type: ignore[arg-type]  # typed per name


def _number(name: str, value: str, base: int) -> int:
    try:
        number = int(value, base)
    except ValueError:
        number = -1
    if not 0 <= number <= _LARGEST[name]:
        kind = "an octal number such as 022" if base == 8 else f"a number up to {_LARGEST[name]}"
        raise UsageFailure(f"option {name}={value}: the value must be {kind}")
    return number


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`, else a `UsageFailure` that lists them."""
    if value not in choices:
        raise UsageFailure(f"{name}={value} is not possible; choose {' or '.join(choices)}")
    return value


def absolute(path: str | Path) -> Path:
    """`path` with ~ expanded and made absolute, without looking at the file system under it."""
    return Path(path).expanduser().absolute()


def normal_url(url: str) -> str:
    """`url` in the one form that names a server: scheme, lower-case host, port, no last slash.

    Raises `UsageFailure` when it is not an http or https URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as bad:
        raise UsageFailure(f"{url!r} is not a URL ({bad}); write it like https://host") from bad
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageFailure(f"{url!r} is not the URL of a server; write it like https://host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageFailure(f"the server's URL is only scheme, host and port; give no more: {url!r}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port in (None, {"http": 80, "https": 443}[parts.scheme]) else f"{host}:{port}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"


def needs_pin(url: str) -> bool:
    """Whether any program on this machine could answer there, so that the server has to show its
    key."""
    return urlsplit(url).scheme == "http" and is_on_this_machine(url)


def needs_insecure(url: str) -> bool:
    """Whether the token would travel in the clear: http to another machine."""
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
    """The `MountConfig` that `options` ask for, with every default filled in."""
    url = normal_url(url)
    config = MountConfig(
        url=url,
        mountpoint=mountpoint,
        account=account,
        state_dir=options.state or default_state_dir(url, mountpoint),
        cache_dir=options.cache or default_cache_dir(url, mountpoint),
        foreground=foreground,
        fuse_options=options.fuse_options | ({"ro"} if options.read_only else frozenset()),
    )
    both = set(MountConfig.__dataclass_fields__) & set(Options.__dataclass_fields__)
    names = both - {"account", "fuse_options"}
    given = {name: said for name in names if (said := getattr(options, name)) is not None}
    return replace(config, **given)


def merge(base: Options, flags: Options) -> Options:
    """`base` (the -o strings) overridden by what explicit flags said."""
    said = {
        name: value
        for name in Options.__dataclass_fields__
        if (value := getattr(flags, name)) is not None and name != "fuse_options"
    }
    merged = replace(base, **said)
    return replace(merged, fuse_options=base.fuse_options | flags.fuse_options)
