"""Findings about this machine: what keeps Nearline from working, and what to do about it.

Knows: each thing that a mount needs from its surroundings. Must not know: how a mount uses it.
Each check answers `Finding`s and never raises for what it looks for; the network is asked once per
login. `judge_clock` and `judge_space` are pure.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from cache.metadata import damage
from cache.recovery import quarantine
from mount import credentials, mountinfo
from mount.config import needs_insecure, needs_pin
from mount.control import client
from mount.credentials import Login
from mount.failures import Failure
from mount.process import detached_mounts, fstab, preflight, registry
from mount.process.directories import existing
from mount.progress import human_seconds
from remote.protocol.hosts import is_on_this_machine
from remote.protocol.sizes import size_text

Level = Literal["ok", "warn", "fail"]

# Signed URLs live for minutes (wire.SIGNED_URL_SECONDS); half of one is where it begins to hurt.
SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS = 30.0, 150.0
# Below this a journal cannot take in even one ordinary folder; below the second nothing works.
SPACE_WARN_BYTES, SPACE_FAIL_BYTES = 2 << 30, 100 << 20
ASK_SECONDS = 10.0
REFUSALS_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One line of the report. `advice` is what to do, for anything but `ok`."""

    level: Level
    what: str
    advice: str = ""

    def line(self) -> str:
        return f"{self.level:<4}  {self.what}" + (f"; {self.advice}" if self.advice else "")


def examine() -> Iterator[Finding]:
    """Every check, in the order in which a mount needs them."""
    yield from check_fuse()
    yield check_allow_other()
    yield from check_disks()
    yield from check_fstab()
    yield from check_servers(credentials.logins())
    yield from check_mounts()
    yield from check_states()


def check_fuse() -> Iterator[Finding]:
    """/dev/fuse and fusermount3."""
    if sys.platform != "linux":
        yield Finding("fail", "this system has no FUSE that Nearline can use", "mount on Linux")
        return
    yield _fuse_device()
    program = shutil.which("fusermount3")
    if program:
        yield Finding("ok", f"fusermount3 is {program}")
    else:
        level: Level = "warn" if os.getuid() == 0 else "fail"
        yield Finding(level, "fusermount3 is missing", "run `apt install fuse3` as root")


def _fuse_device() -> Finding:
    device = preflight.FUSE_DEVICE
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return Finding("fail", f"you may not open {device}", f"run `chmod 666 {device}` as root")
    except OSError as error:
        advice = "run `modprobe fuse` as root, or give the container the device"
        return Finding("fail", f"{device} does not open ({error.strerror})", advice)
    return Finding("ok", f"{device} opens")


def check_allow_other() -> Finding:
    """Find out whether people who are not root may share their mounts with others (`-o
    allow_other`)."""
    if preflight.user_allow_other():
        return Finding("ok", f"{preflight.FUSE_CONF} has user_allow_other")
    if os.getuid() == 0:
        return Finding("ok", "root may use allow_other")
    return Finding(
        "warn",
        "-o allow_other is not for you",
        f"if others shall see your mount, add the line user_allow_other to {preflight.FUSE_CONF}",
    )


def check_fstab() -> Iterator[Finding]:
    """Lines that let a boot wait, or fail, for a server."""
    for line in fstab.lines():
        if missing := fstab.missing(line):
            what = f"{fstab.FSTAB}: the line of {line.mountpoint} is without {missing}"
            yield Finding("warn", what, fstab.ADVICE)


def check_disks() -> Iterator[Finding]:
    """Room for state and cache, wherever this user's mounts have them: one line per file system."""
    records = registry.all_records()
    states = [platformdirs.user_state_path("nearline"), *(Path(r.state_dir) for r in records)]
    caches = [platformdirs.user_cache_path("nearline"), *(Path(r.cache_dir) for r in records)]
    for kind, paths in (("state", states), ("cache", caches)):
        by_device = {existing(path).stat().st_dev: path for path in reversed(paths)}
        for path in reversed(by_device.values()):
            yield judge_space(kind, path, shutil.disk_usage(existing(path)).free)


def judge_space(kind: str, path: Path, free: int) -> Finding:
    what = f"{size_text(free)} free for {kind} in {path}"
    if free < SPACE_FAIL_BYTES:
        return Finding("fail", what, f"make room, or give another --{kind} directory")
    if free < SPACE_WARN_BYTES:
        return Finding("warn", what, "make room before you copy much into the mount")
    return Finding("ok", what)


def check_servers(logins: list[Login]) -> Iterator[Finding]:
    """Each server that this user is logged in to: there, same time, token valid."""
    if not logins:
        yield Finding("warn", "you are not logged in anywhere", "run `nearline login` or `up`")
    for login in logins:
        try:
            token = credentials.load(login.url, login.account)
            pin = credentials.certificate(login.url)
        except Failure as error:
            yield Finding("fail", str(error))
            continue
        if needs_pin(login.url) and pin is None:
            yield _unknown_key(login)
        else:
            yield from check_server(login, token, pin)


def _unknown_key(login: Login) -> Finding:
    """Such a server is not asked: it may be anybody."""
    what = f"the key of {login.url} is not known, so another program could answer there"
    return Finding("warn", what, f"run `nearline login {login.url} --account {login.account}`")


def check_server(login: Login, token: str, pin: str | None = None) -> Iterator[Finding]:
    """Ask the server who we are, and compare its clock with ours in the middle of the exchange.
    `pin` is the certificate of a server on this machine."""
    import trio

    from mount import logs
    from remote.http.api import ApiClient
    from remote.protocol import errors
    from remote.protocol.messages import Me

    async def ask() -> tuple[Me, float]:
        insecure = needs_insecure(login.url)
        async with ApiClient(login.url, token, insecure=insecure, pin=pin) as api:
            with trio.fail_after(ASK_SECONDS):
                before = time.time()
                me = await api.me()
                return me, (before + time.time()) / 2

    logs.configure_for_a_command()
    try:
        me, here = trio.run(ask)
    except errors.Refused as error:
        again = f"run `nearline login {login.url} --account {login.account}`"
        what = f"{login.url} refuses the token of {login.account}: {error}"
        yield Finding("fail", what, "" if ";" in str(error) else again)
    except (errors.NearlineError, trio.TooSlowError) as error:
        reason = str(error) or f"no answer in {ASK_SECONDS:.0f} s"
        what = f"{login.url} is not reachable: {reason}"
        advice = "" if ";" in reason else "check the network and that the server runs"
        yield Finding("fail", what, advice)
    else:
        yield Finding("ok", f"{login.url} answers and knows {me.account}")
        yield judge_clock(login.url, me.now_ns / 1e9 - here)
    if needs_insecure(login.url):
        yield Finding("warn", f"{login.url} is without TLS", "use an https URL")
    elif is_on_this_machine(login.url):
        yield Finding("ok", f"{login.url} is on this machine")


def judge_clock(url: str, ahead: float) -> Finding:
    """The finding about a server's clock that is `ahead` seconds of ours (behind, if negative)."""
    skew = abs(ahead)
    if skew < SKEW_WARN_SECONDS:
        return Finding("ok", f"the clock agrees with {url}")
    what = f"the clock is {human_seconds(skew)} {'behind' if ahead > 0 else 'ahead of'} {url}"
    level: Level = "fail" if skew >= SKEW_FAIL_SECONDS else "warn"
    return Finding(level, what, "set both clocks, for example with `timedatectl set-ntp true`")


def check_mounts() -> Iterator[Finding]:
    """Mounts whose process is gone."""
    for record in registry.all_records():
        if said := detached_mounts.described(record):
            yield Finding("warn", said)
        elif record.alive:
            yield Finding("ok", f"{record.mountpoint} is mounted (process {record.pid})")
            yield from check_refusals(record)
            yield check_token(record)
        elif mountinfo.mounted_at(Path(record.mountpoint)) is not None:
            what = f"the process of the mount at {record.mountpoint} is gone"
            yield Finding("fail", what, f"run `nearline umount {record.mountpoint}`")


def check_token(record: registry.Record) -> Finding:
    """Ask whether the server accepts the mount's token, which need not be the kept one."""
    try:
        return Finding(
            "ok",
            f"the mount at {record.mountpoint} {client.check_token(Path(record.control))}",
        )
    except (client.NotAnswering, client.MountRefused) as error:
        what = f"the mount at {record.mountpoint} does not know that its token is good: {error}"
        again = f"run `nearline login {record.url} --account {record.account}`"
        return Finding("fail", what, "" if ";" in str(error) else again)


def check_states() -> Iterator[Finding]:
    """Damaged state: still to be salvaged, or put aside when it was."""
    for state in sorted({Path(record.state_dir) for record in registry.all_records()}):
        mark = damage.marked(state)
        if mark is not None:
            what = f"the state in {state} is damaged ({mark.why})"
            yield Finding("fail", what, "unmount with `nearline umount --now`, and mount again")
        for directory, report in quarantine.reports(state):
            yield judge_quarantine(directory, report)


def judge_quarantine(directory: Path, report: quarantine.Report) -> Finding:
    """State that was put aside. What came back under another name, or not at all, is named."""
    what = f"damaged state was put aside in {directory} ({report.why})"
    advice = []
    if report.recovered:
        advice.append(f"look at {', '.join(report.recovered)} at the top of the drive")
    if report.lost:
        advice.append(f"write again or delete what reads as EIO: {', '.join(report.lost)}")
    return Finding("warn", what, "; ".join([*advice, "delete it when you need nothing of it"]))


def check_refusals(record: registry.Record) -> Iterator[Finding]:
    """The changes that a mount could not send, and never will by itself."""
    try:
        refused = client.status(Path(record.control)).refused
    except (client.NotAnswering, client.MountRefused) as error:
        advice = f"see the log in {record.state_dir}"
        yield Finding("fail", f"the mount at {record.mountpoint} does not answer: {error}", advice)
        return
    for item in refused[:REFUSALS_SHOWN]:
        where = Path(record.mountpoint, item.path)
        behind = f" ({item.waiting} more wait for it)" if item.waiting else ""
        yield Finding("fail", f"{item.operation} of {where}{behind}: {item.error}", item.advice)
    if len(refused) > REFUSALS_SHOWN:
        more = f"{len(refused) - REFUSALS_SHOWN} more changes in {record.mountpoint} were refused"
        yield Finding("fail", more, f"run `nearline status {record.mountpoint}`")
