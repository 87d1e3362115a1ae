"""Everything that can be wrong before a mount begins, found before anything is made.

Knows: what FUSE, the mountpoint, the URL and the state directory must be like, and what to tell a
person who finds them otherwise. Must not know: the daemon, the journal, what is inside the state.

Nothing here makes or changes anything, except `remember_identity`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from cache.metadata.durable import write_durably
from mount import mountinfo
from mount.config import MountConfig, needs_insecure
from mount.failures import Failure, UsageFailure
from mount.options import ROOT_FLAGS
from mount.process import registry
from mount.process.directories import existing
from remote.protocol.sizes import size_text

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
MIN_FREE_BYTES = 16 << 20


class Identity(Struct, frozen=True):
    """The owner of the state in a state directory. Written when its first mount became usable."""

    url: str
    account: str


def check_local(config: MountConfig) -> None:
    """Raise `Failure` or `UsageFailure` for whatever keeps `config` from being mounted here."""
    check_url(config)
    check_mountpoint(config.mountpoint)
    check_fuse()
    check_allow_other(config)
    check_root_flags(config)
    check_identity(config)
    check_space(config)


def check_url(config: MountConfig) -> None:
    """Refuse to send a token in the clear to another machine."""
    if needs_insecure(config.url) and not config.insecure:
        raise UsageFailure(
            f"{config.url} is without TLS, so anybody on the way could read your files; "
            "use an https URL, or give --insecure if you trust the network"
        )


def check_mountpoint(mountpoint: Path) -> None:
    """An empty directory of ours on which nothing is mounted, or where autofs waits for us: that
    is never looked at, because who looks waits for this mount."""
    mounted = mountinfo.mounted_at(mountpoint)
    if mounted is not None:
        raise Failure(_already_mounted(mountpoint, mounted))
    if mountinfo.is_trigger(mountpoint):
        return
    try:
        entries = os.listdir(mountpoint)
    except FileNotFoundError as error:
        raise Failure(f"{mountpoint} does not exist; run `mkdir -p {mountpoint}`") from error
    except NotADirectoryError as error:
        raise Failure(f"{mountpoint} is not a directory; choose an empty directory") from error
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise Failure(_stale(mountpoint)) from error
        raise Failure(
            f"{mountpoint} cannot be read ({error.strerror}); choose a directory of your own"
        ) from error
    if entries:
        raise Failure(f"{mountpoint} is not empty; choose an empty directory or move its files out")
    if not os.access(mountpoint, os.W_OK):
        raise Failure(f"you may not write to {mountpoint}; choose a directory of your own")


def _already_mounted(mountpoint: Path, mounted: mountinfo.Mounted) -> str:
    record = registry.get(mountpoint)
    if mounted.is_nearline and (record is None or not record.alive):
        return _stale(mountpoint)
    if mounted.is_nearline:
        return f"{mountpoint} is already mounted; run `nearline umount {mountpoint}` first"
    return f"{mounted.fstype} is already mounted at {mountpoint}; choose another directory"


def _stale(mountpoint: Path) -> str:
    return (
        f"{mountpoint} has a mount whose process is gone; run `nearline umount {mountpoint}` "
        "(nothing is lost: its journal is kept), then mount it again"
    )


def check_fuse() -> None:
    """The kernel's FUSE device, and the set-user-id program that mounts for people not root."""
    if sys.platform != "linux":
        raise Failure("mounting needs Linux with FUSE; on this system only the server runs")
    if not FUSE_DEVICE.exists():
        raise Failure(
            "there is no /dev/fuse; run `modprobe fuse` as root, "
            "or in a container start it with `--device /dev/fuse --cap-add SYS_ADMIN`"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise Failure(f"you may not open {FUSE_DEVICE}; run `chmod 666 {FUSE_DEVICE}` as root")
    if os.getuid() != 0 and shutil.which("fusermount3") is None:
        raise Failure("fusermount3 is missing; run `sudo apt install fuse3`")


def check_allow_other(config: MountConfig) -> None:
    """FUSE lets a person who is not root share a mount only if the administrator allowed it."""
    shared = config.fuse_options & {"allow_other", "allow_root"}
    if shared and os.getuid() != 0 and not user_allow_other():
        raise Failure(
            f"{min(shared)} needs the line user_allow_other in {FUSE_CONF}; "
            "ask root to add it, or mount without this option"
        )


def check_root_flags(config: MountConfig) -> None:
    """fusermount3 would only warn, and leave the option out."""
    asked = config.fuse_options & ROOT_FLAGS
    if asked and os.getuid() != 0:
        raise Failure(f"only root may mount with {min(asked)}; mount without this option")
    if config.fuse_options >= {"allow_other", "allow_root"}:
        raise UsageFailure("allow_other and allow_root exclude each other; give one of them")


def user_allow_other() -> bool:
    """True if /etc/fuse.conf has the line `user_allow_other`."""
    try:
        lines = FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)


def _identity_file(state_dir: Path) -> Path:
    return state_dir / "identity.json"


def identity(state_dir: Path) -> Identity | None:
    """The owner of this state; None when no mount with it was ever usable."""
    try:
        return msgspec.json.decode(_identity_file(state_dir).read_bytes(), type=Identity)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise Failure(
            f"{_identity_file(state_dir)} is unreadable ({error}); give another --state directory"
        ) from error


def check_identity(config: MountConfig) -> None:
    """A journal of one account must never be replayed into another."""
    found = identity(config.state_dir)
    if found is not None and found != Identity(config.url, config.account):
        raise Failure(
            f"{config.state_dir} belongs to {found.account} at {found.url}; "
            "give this mount another --state directory"
        )


def check_space(config: MountConfig) -> None:
    """Room to begin with. Only before the first mount: a later one may be what frees the disk, by
    sending what waits in its journal."""
    if identity(config.state_dir) is not None:
        return
    for flag, directory in (("--state", config.state_dir), ("--cache", config.cache_dir)):
        free = shutil.disk_usage(existing(directory)).free
        if free < MIN_FREE_BYTES:
            raise Failure(
                f"only {size_text(free)} are free for {directory}; make room (at least "
                f"{size_text(MIN_FREE_BYTES)}), or give another {flag}"
            )


def remember_identity(config: MountConfig) -> None:
    """From now on this state may start without the server."""
    data = msgspec.json.encode(Identity(config.url, config.account))
    if identity(config.state_dir) is None:
        write_durably(_identity_file(config.state_dir), data)
