"""The options of a mount. Each is declared once, as a field of `Options`.

Knows: the options of mount(8) and our own: how each is said, read and described, and its default.
The flags of `nearline mount` (`mount.cli.flags`), what `-o`, fstab and mount(8) hand over, and the
values of a `MountConfig` follow from the declaration; a test compares the user guide's table with
it. Must not know: which URL is mounted where, what an option does.

Invariants: an option that nobody knows is an error that names it; every path is absolute; a later
option wins over an earlier one, and a flag over both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from mount.failures import UsageFailure
from remote.protocol import sizes

Sync = Literal["local", "remote"]
OnConflict = Literal["history", "copy"]
Symlinks = Literal["all", "inside"]
LogLevel = Literal["debug", "info", "warning", "error"]

GIB = 1 << 30
# The largest user or group; the number above means "nobody in particular" to chown(2).
MAX_ID = (1 << 32) - 2
MAX_TRANSFERS = 16

# --- how values are read ------------------------------------------------------------------------

Reader = Callable[[str, str], object]  # (name, what was said) -> value; raises UsageFailure


def absolute(path: str | Path) -> Path:
    """`path` with ~ expanded and made absolute, without looking at the file system under it."""
    return Path(path).expanduser().absolute()


def size(text: str) -> int:
    """Bytes, as in `remote.protocol.sizes.parse_size`. Raises `UsageFailure`."""
    try:
        return sizes.parse_size(text)
    except ValueError as error:
        raise UsageFailure(str(error)) from error


def _text(_name: str, value: str) -> str:
    return value


def _path(_name: str, value: str) -> Path:
    return absolute(value)


def _size(_name: str, value: str) -> int:
    return size(value)


def _rate(name: str, value: str) -> int | None:
    try:
        return sizes.parse_rate(value)
    except ValueError as error:
        raise UsageFailure(f"{name}: {error}") from error


def _number(largest: int, base: int = 10, least: int = 0) -> Reader:
    kind = f"a number from {least} to {largest}" if least else f"a number up to {largest}"
    if base == 8:
        kind = "an octal number such as 022"

    def read(name: str, value: str) -> int:
        try:
            number = int(value, base)
        except ValueError:
            number = -1
        if not least <= number <= largest:
            raise UsageFailure(f"option {name}={value}: the value must be {kind}")
        return number

    return read


def _one_of(literal: object) -> Reader:
    choices = get_args(literal)

    def read(name: str, value: str) -> str:
        if value not in choices:
            raise UsageFailure(f"{name}={value} is not possible; choose {' or '.join(choices)}")
        return value

    return read


# --- the options --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """The way to say a field of `Options`. `name` is that of `-o`; one with `help` is a flag of
    `nearline mount` too, of the same name or of `flag_name`. Without `read` it takes no value, and
    `off` takes it back."""

    name: str
    read: Reader | None = None
    help: str = ""
    flag_name: str = ""
    off: str = ""

    @property
    def flag(self) -> str:
        return f"--{self.flag_name or self.name}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that were asked for, or the defaults. Sizes in bytes, limits of transfers in
    bytes a second, where None means none. `account` None: the only one there is; `state_dir` and
    `cache_dir` None: places of the mount's own. `uid`, `gid` and `umask` override what the drive
    says about every file; None means the drive's own.
    `metrics_port` None means no metrics endpoint. `fuse_options`: what FUSE or the kernel carries
    out, by mount(8)'s names."""

    account: Annotated[
        str | None, Option("account", _text, "The account; needed when you have several.")
    ] = None
    state_dir: Annotated[
        Path | None, Option("state", _path, "Where tree, journal and spool live.")
    ] = None
    cache_dir: Annotated[Path | None, Option("cache", _path, "Where the block cache lives.")] = None
    cache_size: Annotated[int, Option("cache-size", _size, "Such as 20GiB, the default.")] = (
        20 * GIB
    )
    upload_limit: Annotated[
        int | None, Option("upload-limit", _rate, "Bytes a second at most, such as 2M; or off.")
    ] = None
    download_limit: Annotated[
        int | None, Option("download-limit", _rate, "Bytes a second at most, such as 2M; or off.")
    ] = None
    transfers: Annotated[
        int,
        Option(
            "transfers",
            _number(MAX_TRANSFERS, least=1),
            "How many large transfers at once at most, each way.",
        ),
    ] = MAX_TRANSFERS
    sync: Annotated[
        Sync,
        Option(
            "sync",
            _one_of(Sync),
            "Whether fsync and close wait for this disk or for the server.",
        ),
    ] = "local"
    on_conflict: Annotated[
        OnConflict,
        Option(
            "on-conflict",
            _one_of(OnConflict),
            "Whether an overtaken version is also left as a copy.",
        ),
    ] = "history"
    symlinks: Annotated[
        Symlinks,
        Option(
            "symlinks",
            _one_of(Symlinks),
            "Which targets of symlinks that others made are shown.",
        ),
    ] = "all"
    read_only: Annotated[
        bool, Option("ro", help="Refuse every change.", flag_name="read-only", off="rw")
    ] = False
    insecure: Annotated[
        bool,
        Option("insecure", help="Allow plain HTTP, whoever may be listening or answering."),
    ] = False
    noxattr: Annotated[bool, Option("noxattr")] = False
    dirty_limit: Annotated[int, Option("dirty-limit", _size)] = 10 * GIB
    uid: Annotated[int | None, Option("uid", _number(MAX_ID))] = None
    gid: Annotated[int | None, Option("gid", _number(MAX_ID))] = None
    umask: Annotated[int | None, Option("umask", _number(0o777, base=8))] = None
    log_level: Annotated[LogLevel, Option("log-level", _one_of(LogLevel))] = "info"
    metrics_port: Annotated[int | None, Option("metrics-port", _number(65535))] = None
    fuse_options: frozenset[str] = frozenset()


# The options of ours, and their types, by the fields that they set.
OPTIONS: dict[str, Option] = {}
TYPES: dict[str, Any] = {}
for _field, _hint in get_type_hints(Options, include_extras=True).items():
    if get_origin(_hint) is Annotated:
        TYPES[_field], OPTIONS[_field] = get_args(_hint)
_FIELDS = {option.name: name for name, option in OPTIONS.items()}
_OFF = {option.off: name for name, option in OPTIONS.items() if option.off}

# Options that FUSE or the kernel carries out; handed on as they are.
FUSE_FLAGS = frozenset(
    {"allow_other", "allow_root", "default_permissions", "noexec", "nosuid", "nodev"}
    | {"suid", "dev", "sync", "dirsync"}
)
# FUSE's default is without these, for root too.
ROOT_FLAGS = frozenset({"suid", "dev"})
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
# What mount(8)'s options about who may mount ask for besides.
_IMPLIED = {
    "user": ("noexec", "nosuid", "nodev"),
    "users": ("noexec", "nosuid", "nodev"),
    "owner": ("nosuid", "nodev"),
    "group": ("nosuid", "nodev"),
}


# --- from words to options ----------------------------------------------------------------------


def parse_options(strings: Iterable[str], *, sloppy: bool = False) -> Options:
    """Read `-o` strings as mount(8) users write them.

    Raises `UsageFailure` naming the option that is unknown or has a value it cannot have. With
    `sloppy` (mount(8)'s -s) unknown options are passed over."""
    options = Options()
    for name, value in _split(strings):
        options = _take(options, name, value, sloppy)
    return options


def with_flags(options: Options, flags: Mapping[str, str | bool | None]) -> Options:
    """`options`, overridden by the flags of `nearline mount`, which are named by their fields. None
    and False say nothing. Raises `UsageFailure` for a value that an option cannot have."""
    said: dict[str, Any] = {
        name: _read(OPTIONS[name], value)
        for name, value in flags.items()
        if value is not None and value is not False
    }
    return replace(options, **said)


def _read(option: Option, value: str | bool) -> object:
    return value if option.read is None else option.read(option.name, str(value))


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
    if name in _OFF and value is None:
        return _with(options, _OFF[name], False)
    option = OPTIONS[_FIELDS[name]] if name in _FIELDS else None
    if option is not None and option.read is None and value is None:
        return _with(options, _FIELDS[name], True)
    if option is not None and option.read is not None:
        if not value:
            raise UsageFailure(f"option {name!r} needs a value; write {name}=VALUE")
        return _with(options, _FIELDS[name], option.read(name, value))
    if sloppy:
        return options
    raise UsageFailure(f"unknown mount option {name!r}; see `nearline mount --help`")


def _with(options: Options, name: str, value: object) -> Options:
    said: dict[str, Any] = {name: value}
    return replace(options, **said)


def _take_flag(options: Options, name: str) -> Options:
    """One flag of FUSE, or the opposite of one."""
    flags = options.fuse_options - {_OPPOSITES.get(name)} | ({name} & FUSE_FLAGS)
    return replace(options, fuse_options=flags)
