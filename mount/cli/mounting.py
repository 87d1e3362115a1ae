"""`mount`, `umount`, `flush`, `retry`: a mount's life, and what it has sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mount import credentials, mountinfo
from mount.cli import flags
from mount.config import MountConfig, make_config, normal_url
from mount.failures import Failure, UsageFailure
from mount.options import Options, absolute, parse_options, with_flags
from mount.process import preflight


@flags.of_options
def mount(
    url: Annotated[str, Parameter(name="URL")],
    directory: Annotated[str, Parameter(name="DIR")],
    /,
    *,
    options: flags.MountOptions = None,
    foreground: Annotated[bool, Parameter(negative="", help="Stay here, log here.")] = False,
    **said: str | bool | None,
) -> None:
    """Mount the drive of an account at DIR. Returns when the mount is usable."""
    start(url, directory, with_flags(parse_options(options or []), said), foreground=foreground)


def start(url: str, directory: str, options: Options, *, foreground: bool) -> None:
    """Check, then mount here or in a process of its own."""
    url = normal_url(url)
    where = resolve_mountpoint(directory)
    if foreground:
        config = _checked(url, where, options, foreground=True)
        token = credentials.load(url, config.account)
        _stay(credentials.trusting(config), token)
    else:
        _leave(url, where, options)


def resolve_mountpoint(directory: str) -> Path:
    """`directory` without symbolic links above its last part: as the kernel will name the mount.
    The last part is not looked at when it is a mount already, which may be dead or hang, or when
    autofs waits there."""
    path = Path(os.path.abspath(absolute(directory)))
    parent = path.parent.resolve()
    here = parent / path.name
    if mountinfo.mounted_at(here) is not None or mountinfo.is_trigger(here):
        return here
    return here.resolve() if here.is_symlink() else here


def _checked(url: str, where: Path, options: Options, *, foreground: bool) -> MountConfig:
    """The configuration, or the first thing that is wrong with it, before anything is asked."""
    draft = make_config(url, where, options.account or "", options, foreground=foreground)
    preflight.check_url(draft)
    preflight.check_mountpoint(where)
    preflight.check_fuse()
    account = credentials.account_for(url, options.account)
    config = make_config(url, where, account, options, foreground=foreground)
    preflight.check_local(config)
    return config


def _leave(url: str, where: Path, options: Options) -> None:
    """Mount in a process of its own, which loads while we check."""
    from mount.process import launch

    with launch.launched() as started:
        config = _checked(url, where, options, foreground=False)
        token = credentials.load(url, config.account)
        started.order(launch.Orders(credentials.trusting(config), token))
        started.wait(config.state_dir / launch.LOG_NAME)


def _stay(config: MountConfig, token: str) -> None:
    from mount.process import daemon_main, processes

    daemon_main.run_mount(config, token, ready=lambda: processes.sd_notify("READY=1"))


def umount(
    directory: Annotated[str, Parameter(name="DIR")],
    /,
    *,
    timeout: flags.Timeout = None,
    now: Annotated[
        bool, Parameter(negative="", help="Do not wait: the next mount uploads the rest.")
    ] = False,
) -> None:
    """Wait until the server has everything, then unmount DIR.

    After --timeout seconds it stays mounted, and the exit code is 1."""
    from mount.process import unmount
    from mount.progress import View

    if timeout is not None and now:
        raise UsageFailure("--now does not wait, so it has no --timeout; give one of the two")
    mountpoint = resolve_mountpoint(directory)
    os.chdir("/")  # called inside the mount, this command would itself keep it busy
    with View("umount") as view:
        note = unmount.unmount(mountpoint, timeout=timeout, now=now, on_progress=view)
    if note:
        print(f"{directory}: {note}")


def flush(
    directory: Annotated[str, Parameter(name="DIR")],
    /,
    *,
    timeout: flags.Timeout = None,
    unless_offline: flags.UnlessOffline = False,
) -> None:
    """Return when the server has everything; exit code 1 after --timeout seconds."""
    from mount.process import registry, unmount
    from mount.progress import View

    record, below = registry.live(Path(directory))
    if below and not Path(directory).exists():
        raise Failure(f"{directory} does not exist; give the directory of the mount")
    with View("flush") as view:
        unmount.flush(record, timeout=timeout, on_progress=view, unless_offline=unless_offline)


def retry(
    path: Annotated[str | None, Parameter(name="PATH")] = None,
    /,
    *,
    timeout: flags.Timeout = None,
) -> None:
    """Try again what was refused at PATH and below it; without PATH, everything in the mount.

    Returns when the server has decided. Exit code 1 when it refused again, or after --timeout."""
    from mount.cli import target
    from mount.control import client, messages
    from mount.progress import View

    record, below = (target.chosen(None), "") if path is None else target.at(path)
    with View("retry") as view:
        done = client.ask(
            Path(record.control),
            messages.RetryRequest(below, timeout),
            on_progress=view,
            line_timeout=None,
        )
    assert isinstance(done, messages.Done)
    print(done.message)
