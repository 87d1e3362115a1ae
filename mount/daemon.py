"""One mount, from mounting to unmounted: kernel, session, control socket, signals.

Knows: the order of starting and ending, and what the control socket may ask. Must not know: how
requests are carried out (`filesystem`, `session`), how the process was started (`daemon_main`).

Starting: what somebody else could keep from us (the socket, the port of the metrics) is taken
before there is a mount. A start that fails later unmounts: nobody has written anything yet, because
the kernel gets no answer before `answering` has been called.

A mount is usable once the kernel has the attributes of its top. Until then they are those of a
directory that nobody but root may use, and Linux drops an answer with better ones when it is told,
between question and answer, that attributes have changed (the `attr_version` of fs/fuse/inode.c):
the first program gets EACCES. What is known of the top does change then, because it is listed. So
somebody looks at it before the kernel is told of anything, and before anybody hears of the mount.

Ending: `umount` (the command, or umount(8)) makes the kernel write back everything and end the FUSE
loop; then the rest is cancelled. SIGTERM and SIGINT unmount the same way, lazily if something is
still open or shows it elsewhere; the journal stays for the next mount. Should the loop itself fail,
the mountpoint stays mounted and failing (ENOTCONN), so that nobody writes into the empty directory
under it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pyfuse3
import structlog
import trio
from msgspec import UNSET

from cache.recovery import quarantine
from mount import holders, mountinfo
from mount.config import MountConfig
from mount.control import messages, refusals
from mount.control.account_messages import AccountAnswer, AccountRequest
from mount.control.context import CommandContext
from mount.control.pins import Pins
from mount.control.server import Report, listening, serve_control
from mount.failures import Failure
from mount.fuse import fusectl, handshake, next_request
from mount.fuse.attributes import Ownership
from mount.fuse.invalidator import KernelInvalidator, LookupCounts
from mount.fuse.operations import FileSystem
from mount.fuse.turns import Turns, readable
from mount.fuse.writeback import WriteBack
from mount.session.session import Session

log = structlog.get_logger(__name__)

REPORT_SECONDS = 0.2
SYNC_SECONDS = 20.0
# Handled at once; each that waits costs some KiB, and must not starve others.
MAX_REQUESTS = 8192


async def run(
    config: MountConfig, token: str, *, answering: Callable[[], None], ready: Callable[[], None]
) -> None:
    """Mount, call `answering` before the kernel gets its first answer and `ready` when the folder
    can be used, return when it has been unmounted."""
    lookups = LookupCounts()
    invalidator = KernelInvalidator(lookups)
    session = Session(config, token, invalidator, lookups.in_use)
    try:
        async with session.client, _listening(config) as doors:
            await session.start()
            owner = Ownership.of(config.uid, config.gid, config.umask, os.getuid(), os.getgid())
            filesystem = FileSystem(session, lookups, owner)
            at = config.mountpoint
            pyfuse3.init(filesystem, str(at), _fuse_options(config))
            stays = False  # the mountpoint, answering ENOTCONN: see the header

            def usable() -> None:
                nonlocal stays
                ready()
                stays = True

            try:
                with next_request.read_at_once():
                    filesystem.direct_writes = await handshake.agree()
                    if (device := handshake.find_device()) is not None:
                        filesystem.turns = Turns(readable(device))
                    with _tended(at):
                        await _serve(
                            config, session, invalidator, filesystem, doors, answering, usable
                        )
                stays = False
            finally:
                pyfuse3.close(unmount=not stays and mountinfo.mounted_at(at) is not None)
    finally:
        session.close()


@dataclass(frozen=True)
class _Doors:
    """Where this mount can be asked about itself."""

    control: trio.SocketListener
    metrics: list[trio.SocketListener]


@contextlib.asynccontextmanager
async def _listening(config: MountConfig) -> AsyncIterator[_Doors]:
    async with (
        listening(messages.socket_path(config.state_dir)) as control,
        AsyncExitStack() as stack,
    ):
        metrics: list[trio.SocketListener] = []
        if config.metrics_port is not None:
            from mount.metrics import open_metrics  # only when asked for: it costs start-up time

            metrics = await open_metrics(config.metrics_port)
        for listener in metrics:
            await stack.enter_async_context(listener)
        yield _Doors(control, metrics)


@contextlib.contextmanager
def _tended(mountpoint: Path) -> Iterator[None]:
    """With the kernel's settings for it, and somebody who cleans up after us if need be."""
    mount = mountinfo.mounted_at(mountpoint)
    if mount is None:
        yield
        return
    fusectl.allow_many_requests(mount)
    with fusectl.guarded(mount):
        yield


async def _serve(
    config: MountConfig,
    session: Session,
    invalidator: KernelInvalidator,
    filesystem: FileSystem,
    doors: _Doors,
    answering: Callable[[], None],
    ready: Callable[[], None],
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        pins = Pins(session)
        context = CommandContext(config, session, invalidator.finish_queued)
        write_back = WriteBack(config.mountpoint, session.tree, session.journal, session.replayer)
        nursery.start_soon(write_back.run)
        mounted = mountinfo.mounted_at(config.mountpoint)
        device = mounted.device if mounted else ""
        handler = Control(config, session, pins, context, write_back, device, filesystem.requests)
        nursery.start_soon(serve_control, doors.control, handler)
        nursery.start_soon(pins.run)
        nursery.start_soon(_end_on_signal, config, device, write_back)
        if doors.metrics:
            from mount.metrics import serve_metrics

            nursery.start_soon(serve_metrics, doors.metrics, handler.status)
        nursery.start_soon(_raise_read_ahead, config.mountpoint, filesystem.greeted)
        answering()
        nursery.start_soon(_begin, config, invalidator, ready)
        await pyfuse3.main(min_tasks=4, max_tasks=MAX_REQUESTS)
        nursery.cancel_scope.cancel()
    log.info("unmounted", at=str(config.mountpoint))


async def _begin(
    config: MountConfig, invalidator: KernelInvalidator, ready: Callable[[], None]
) -> None:
    """Say that the mount is usable once it is, and tell the kernel of changes only then: see the
    header."""
    await _look_at(config.mountpoint)
    ready()
    log.info("mounted", at=str(config.mountpoint), url=config.url, account=config.account)
    await invalidator.run()


async def _look_at(mountpoint: Path) -> None:
    """Have the kernel ask for the attributes of the top. In a child process, which the end of this
    one sets free."""
    command = ["stat", "--", str(mountpoint)]
    try:
        done = await trio.run_process(
            command, check=False, stdout=subprocess.DEVNULL, capture_stderr=True
        )
    except OSError as error:
        log.warning("nobody_could_look_at_the_mount", why=str(error))
        return
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()
        log.warning("nobody_could_look_at_the_mount", why=why)


def _fuse_options(config: MountConfig) -> set[str]:
    """For libfuse, which wants commas escaped. The source is the URL, as mount(8) was told: that is
    how it knows an entry of fstab that is mounted already."""
    source = quote(config.url, safe="!#$%&'()*+,-./:;=?@[]_~").replace(",", "\\,")
    ours = {"default_permissions", f"fsname={source}", "subtype=nearline"}
    return ours | config.fuse_options


async def _raise_read_ahead(mountpoint: Path, greeted: trio.Event) -> None:
    """1 MiB of kernel read-ahead instead of 128 KiB: measured 3.5 GB/s instead of 1.0.
    The kernel lowers it to what it is told at `greeted`, so not before. Root only;
    without it the mount is slower, and right."""
    await greeted.wait()
    found = mountinfo.mounted_at(mountpoint)
    if found is None or os.getuid() != 0:
        return
    knob = Path(f"/sys/class/bdi/{found.device}/read_ahead_kb")
    try:
        await trio.to_thread.run_sync(knob.write_text, "1024")
    except OSError as error:
        log.info("kernel_read_ahead_stays_small", why=str(error))


async def _end_on_signal(config: MountConfig, device: str, write_back: WriteBack) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            log.info("asked_to_end", signal=signal.Signals(number).name)
            await unmount(config.mountpoint, device, hand_over=write_back.hand_over)


async def unmount(
    mountpoint: Path, device: str, *, hand_over: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Have the kernel write everything back and let go. In a child process, because this one must
    answer the writes meanwhile. When something is still open: raises Failure; or with `hand_over`,
    which waits for what the kernel has of open files, lets the mount go from under them. Bind
    mounts of `device` keep the file system going after an ordinary unmounting, too: then it ends
    here."""
    at = str(mountpoint)
    mounted = mountinfo.mounted_at(mountpoint)
    here = mounted is not None and mounted.device == device
    gone = mountinfo.Mounted(0, mountpoint, mountinfo.FSTYPE, "", device)
    mount = mounted if mounted is not None and here else gone
    places = [
        item.place for item in await trio.to_thread.run_sync(holders.elsewhere, mount) if item.place
    ]
    if places:
        await _written_back(hand_over if here else None, places)
    why = "it is not mounted there"
    command = ["umount", at] if os.getuid() == 0 else ["fusermount3", "-u", at]
    if here:
        result = await trio.run_process(command, check=False, capture_stderr=True)
        why = result.stderr.decode(errors="replace").strip()
        if result.returncode == 0 and not places:
            return
        here = result.returncode != 0
    if hand_over is None:
        raise Failure(f"{at} cannot be unmounted ({why}); close what is open there")
    if here:
        await _written_back(hand_over, [])
        lazy = [command[0], "-l", at] if os.getuid() == 0 else ["fusermount3", "-uz", at]
        await trio.run_process(lazy, check=False, stderr=subprocess.DEVNULL)
    pyfuse3.terminate()


async def _written_back(
    hand_over: Callable[[], Awaitable[None]] | None, places: Sequence[Path]
) -> None:
    """Have the kernel hand over what it keeps: of open files by `hand_over`, which waits. What
    shows at `places` alone it can only be asked to begin with."""
    with trio.move_on_after(SYNC_SECONDS):
        if hand_over is not None:
            await hand_over()
        for place in places:
            command = ["sync", "-f", str(place)]
            await trio.run_process(command, check=False, stderr=subprocess.DEVNULL)


class Control:
    """Implements `control.ControlHandler`."""

    def __init__(
        self,
        config: MountConfig,
        session: Session,
        pins: Pins,
        context: CommandContext,
        write_back: WriteBack,
        device: str,
        requests: Mapping[str, int],
    ) -> None:
        self._config, self._session, self._pins = config, session, pins
        self._device, self._requests = device, requests
        self._context, self._write_back = context, write_back

    def status(self) -> messages.Status:
        from importlib import metadata  # here and below: a start is quicker without

        session, config = self._session, self._config
        feed, cache, sent = session.subscriber, session.blocks.stats(), session.client.transferred
        offline = session.offline_because
        return messages.Status(
            state="online" if offline is None else "offline",
            reason=session.trouble if offline is None else offline,
            mountpoint=str(config.mountpoint),
            url=config.url,
            account=config.account,
            pid=os.getpid(),
            state_dir=str(config.state_dir),
            cache_dir=str(config.cache_dir),
            journal=messages.JournalStatus(len(session.journal), session.contents.dirty_bytes),
            uploads=[
                messages.UploadStatus(item.path, item.bytes_done, item.bytes_total, item.error)
                for item in session.uploader.progress.values()
            ],
            refused=refusals.described(session),
            quarantined=[str(at) for at, _ in quarantine.reports(config.state_dir)],
            cache=messages.CacheStatus(cache.bytes, cache.limit),
            transferred=messages.TransferredStatus(
                sent.downloaded_bytes, sent.uploaded_bytes, sent.requests
            ),
            feed=messages.FeedStatus(feed.mode, feed.lag_seconds),
            kernel_requests=dict(self._requests),
            limits=self._limits(),
            versions={
                name: metadata.version(name) for name in ("nearline", "pyfuse3", "trio", "lmdb")
            },
            metrics_port=config.metrics_port,
        )

    def _limits(self) -> messages.LimitsStatus:
        files, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        moving = self._session.transfer_limits
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        return messages.LimitsStatus(
            memory_bytes=resident_pages * resource.getpagesize(),
            open_files=len(os.listdir("/proc/self/fd")),
            open_files_limit=files,
            dirty_bytes=self._session.contents.dirty_bytes,
            dirty_limit=self._config.dirty_limit,
            upload_limit=moving.up,
            download_limit=moving.down,
            transfers=moving.transfers,
        )

    def limit(self, request: messages.LimitRequest) -> messages.TransferLimits:
        limits = self._session.transfer_limits
        limits.change(
            limits.up if request.up is UNSET else request.up,
            limits.down if request.down is UNSET else request.down,
            limits.transfers if request.transfers is UNSET else request.transfers,
        )
        return messages.TransferLimits(up=limits.up, down=limits.down, transfers=limits.transfers)

    async def flush(self, report: Report, unless_offline: bool) -> None:
        """Everything that was written, also what only the kernel has yet, is on the server. With
        `unless_offline`, raises `Failure` when that cannot be reached."""
        # This only begins, for all files at once: syncfs does not wait for a FUSE file system. Of
        # files that nobody has open the kernel has nothing; for the others `open_files` waits.
        at = str(self._config.mountpoint)
        await trio.run_process(["sync", "-f", at], check=False, stderr=subprocess.DEVNULL)
        session = self._session
        files, size = len(session.journal), session.contents.dirty_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, report, files, size)
            await self._write_back.open_files()
            if unless_offline:
                nursery.start_soon(self._give_up, nursery.cancel_scope)
            await session.replayer.flush()
            unless_offline = False
            nursery.cancel_scope.cancel()
        if unless_offline:
            why = session.offline_because or "the server cannot be reached"
            raise Failure(f"the server does not have everything: {why}; the journal keeps the rest")
        if refused := session.journal.refused():
            raise Failure(
                f"{len(refused)} changes were refused by the server and are kept here;"
                " `nearline status` names them and says what to do"
            )

    async def _give_up(self, flushing: trio.CancelScope) -> None:
        await self._session.backpressure.until_given_up()
        flushing.cancel()

    async def retry(self, path: str, report: Report) -> str:
        return await refusals.retry(self._context, path, report)

    async def _report(self, report: Report, files: int, size: int) -> None:
        session = self._session
        while True:
            left, dirty = len(session.journal), session.contents.dirty_bytes
            sent = sum(item.bytes_done for item in session.uploader.progress.values())
            done = max(0, size - dirty) + sent
            waiting = session.replayer.waiting_because
            offline = session.offline_because
            await report(
                messages.Progress(
                    files_done=max(0, files - left),
                    files_total=files,
                    bytes_done=min(done, size),
                    bytes_total=size,
                    state="waiting" if offline or waiting else "working",
                    reason=offline or waiting,
                )
            )
            with trio.move_on_after(REPORT_SECONDS):
                await session.journal.changed.wait()
                await trio.sleep(REPORT_SECONDS)  # a report a change would be too many

    async def stop(self, flush: bool) -> None:
        if flush:
            await self._session.replayer.flush()
        await unmount(self._config.mountpoint, self._device)

    async def pin(self, path: str, report: Report) -> None:
        await self._pins.pin(path, partial(_report_progress, report))

    async def unpin(self, path: str) -> None:
        await self._pins.unpin(path)

    async def warm(self, path: str, report: Report) -> None:
        await self._pins.warm(path, partial(_report_progress, report))

    async def account(
        self, request: AccountRequest, report: Report
    ) -> AccountAnswer | messages.Done:
        from mount.control import dispatch

        return await dispatch.answer(self._context, request, report)

    def cache_stats(self) -> messages.CacheStats:
        stats = self._session.blocks.stats()
        return messages.CacheStats(
            bytes=stats.bytes,
            limit=stats.limit,
            blocks=stats.blocks,
            pinned_chunks=stats.pinned_chunks,
            hits=stats.hits,
            misses=stats.misses,
            evicted=stats.evicted,
        )

    async def cache_clear(self) -> int:
        before = self._session.blocks.stats().bytes
        await self._session.blocks.clear()
        return before - self._session.blocks.stats().bytes


async def _report_progress(report: Report, files_done: int, files_total: int) -> None:
    await report(messages.Progress(files_done=files_done, files_total=files_total))
