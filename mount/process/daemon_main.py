"""The mount's process from the outside: orders, lock, records, log, and an ending in one line.

Knows: what must be true before and after `daemon.run`. Must not know: what happens inside it.

Order matters: the state is locked before anything is written in it; the registry knows the mount
before the kernel does, so that a crash at any moment leaves something that `nearline umount` can
find; the state gets its identity only when a mount with it begins to answer. A start that fails
takes back what it made.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # structlog would load it, for colours on a terminal; a start is quicker without.
    sys.modules["rich"] = None  # type: ignore[assignment]  # documented: an import of it fails

import errno
import faulthandler
import os
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path

import structlog
import trio
from msgspec import json, structs

from cache.metadata.damage import is_damage, note_damage
from cache.recovery.opening import NewerState
from mount import logs, mountinfo
from mount.config import MountConfig
from mount.control.messages import socket_path
from mount.failures import Failure, Unexpected, advised
from mount.process import launch, memory, preflight, processes, registry
from mount.process.directories import Directories
from remote.protocol import errors

log = structlog.get_logger(__name__)

STDERR_NAME = "mount.stderr"
MAX_OPEN_FILES = 65536


def main(argv: list[str]) -> int:
    """`python -m mount.process.daemon_main FD`: orders come on standard input, the outcome goes
    to FD."""
    answer = int(argv[1])
    os.set_inheritable(answer, False)
    memory.keep_little()
    try:
        _load()
        memory.keep_what_is_loaded()
        orders = launch.decode_orders(sys.stdin.buffer.read())
        if orders.parent is not None:
            processes.die_with_parent(orders.parent)

        def usable() -> None:
            launch.leave_group()
            _tell(answer, launch.Outcome())

        run_mount(orders.config, orders.token, ready=usable)
    except Failure as error:
        _tell(answer, launch.Outcome(str(error), error.exit_code))
        return error.exit_code
    return 0


def _load() -> None:
    """Import what `run` needs while the command that started us is still checking."""
    try:
        import mount.daemon  # noqa: F401  # for its effect on sys.modules
        import remote.http.api  # noqa: F401  # likewise
    except ImportError as error:
        raise Failure(f"the installation is not whole ({error}); run `make setup` again") from error


def _tell(answer: int, outcome: launch.Outcome) -> None:
    """Answer once; nobody listening any more is not our concern."""
    try:
        os.write(answer, json.encode(outcome) + b"\n")
        os.close(answer)
    except OSError as error:
        log.debug("nobody_waits_for_the_outcome", error=str(error))


def run_mount(config: MountConfig, token: str, *, ready: Callable[[], None]) -> None:
    """Mount, call `ready` when it is usable, and return when it has been unmounted.

    Raises `Failure`. Everything else that goes wrong is logged whole and becomes one."""
    # For good: what this process makes is its own, never its callers', whose files are rows and
    # spool files here. Their umask is the kernel's business.
    os.umask(0o077)
    _allow_many_files()
    with Directories(config) as directories:
        started = False

        def answering() -> None:
            nonlocal started
            preflight.remember_identity(config)
            started = True
            directories.started()

        _redirect(config)
        for directory in directories.made_private:
            log.warning("made_private_others_could_read_it", directory=str(directory))
        try:
            _run_recorded(config, token, answering, ready)
        except Unexpected:
            raise  # its log is needed
        except Failure:
            if not started and preflight.identity(config.state_dir) is None:
                directories.take_back()
            raise


def _allow_many_files() -> None:
    """A shell's limit of 1,024 descriptors is for programs that might use select(2). Each file that
    is open in the mount or waits to be sent takes one here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    wanted = MAX_OPEN_FILES if unlimited else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _redirect(config: MountConfig) -> None:
    """Log lines to the log, and what the interpreter itself says as it dies to a file beside it."""
    if config.foreground:
        logs.configure(config.log_level, None)
        return
    logs.configure(config.log_level, config.state_dir / launch.LOG_NAME)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    last_words = os.open(config.state_dir / STDERR_NAME, flags, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, last_words), (2, last_words)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(last_words)
    faulthandler.enable()


def _run_recorded(
    config: MountConfig, token: str, answering: Callable[[], None], ready: Callable[[], None]
) -> None:
    record = record_of(config)

    def mounted() -> None:
        nonlocal record
        at = mountinfo.mounted_at(config.mountpoint)
        record = structs.replace(record, device=at.device if at else "")
        registry.put(record)
        ready()

    try:
        registry.put(record)
        trio.run(_session, config, token, answering, mounted)
    except BaseException as error:
        raise explain(error, config) from error
    finally:
        if mountinfo.mounted_at(config.mountpoint) is None:
            registry.remove(record)


def record_of(config: MountConfig) -> registry.Record:
    """This process as the registry knows it."""
    return registry.Record(
        mountpoint=str(config.mountpoint),
        state_dir=str(config.state_dir),
        cache_dir=str(config.cache_dir),
        url=config.url,
        account=config.account,
        pid=os.getpid(),
        started=registry.started_at(os.getpid()),
        control=str(socket_path(config.state_dir)),
    )


async def _session(
    config: MountConfig, token: str, answering: Callable[[], None], ready: Callable[[], None]
) -> None:
    from mount import daemon

    if preflight.identity(config.state_dir) is None:
        await check_server(config, token)
    await daemon.run(config, token, answering=answering, ready=ready)


async def check_server(config: MountConfig, token: str) -> None:
    """Check that the server is there and knows the token: asked at the first mount only, because a
    later one starts without the network."""
    from remote.http.api import ApiClient

    url, insecure, pin = config.url, config.insecure, config.pin
    async with ApiClient(url, token, insecure=insecure, pin=pin) as client:
        await client.me()


def _refused_token(said: str, config: MountConfig) -> str:
    """Why the token is refused, and what to do. Logging in does not help a locked account."""
    if ";" in said:
        return f"the server refused: {said}"
    login = f"nearline login {config.url} --account {config.account}"
    return f"the server does not accept the token; run `{login}`"


def explain(error: BaseException, config: MountConfig) -> BaseException:
    """The one thing to tell about `error`; an exception that is not an error stays what it is."""
    first = _first(error)
    match first:
        case Failure():
            return first
        case errors.Refused(problem=errors.Unauthorized()):
            return Failure(_refused_token(str(first), config))
        case errors.Refused():
            return Failure(f"the server refused: {first}; see `nearline doctor`")
        case errors.Unreachable():
            return Failure(
                advised(str(first), "check the URL and that the server runs (`nearline doctor`)")
            )
        case errors.ProtocolError():
            return Failure(f"{first}; check that {config.url} is a Nearline server")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _no_room(config)
        case sqlite3.OperationalError(sqlite_errorcode=sqlite3.SQLITE_FULL):
            return _no_room(config)
        case NewerState():
            return Failure(str(first))
        case Exception() if is_damage(first):
            note_damage(config.state_dir / "tree.sqlite", str(first))
            return Failure(
                f"the state in {config.state_dir} is damaged ({first}); mount again: what can be"
                " read is salvaged, and everything is kept as it is"
            )
        case RuntimeError() if "fuse_session" in str(first):
            return _no_fuse(config)
        case Exception():
            log.error("the_mount_failed", exc_info=error)
            what = str(first) if isinstance(first, OSError) else f"{type(first).__name__}: {first}"
            return Unexpected(f"the mount failed: {what}; {_where_to_look(config)}")
    return first


def _no_fuse(config: MountConfig) -> Failure:
    """libfuse says on standard error why it, or fusermount3, could not mount."""
    try:
        lines = (config.state_dir / STDERR_NAME).read_text().splitlines()
    except OSError:
        lines = []
    why = f" ({lines[-1]})" if lines else ""
    return Failure(
        f"the system refused the mount{why}; see `nearline doctor`, and in a container add "
        "`--device /dev/fuse --cap-add SYS_ADMIN`"
    )


def _no_room(config: MountConfig) -> Failure:
    return Failure(
        f"no room left on the disk; make room for {config.state_dir} and {config.cache_dir}, "
        "or give other --state and --cache directories"
    )


def _first(error: BaseException) -> BaseException:
    """The first error in a group that is not just another task being cancelled."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _where_to_look(config: MountConfig) -> str:
    return "see the messages above" if config.foreground else f"see {log_path(config)}"


def log_path(config: MountConfig) -> Path:
    return config.state_dir / launch.LOG_NAME


if __name__ == "__main__":
    sys.exit(main(sys.argv))
