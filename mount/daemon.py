"""One mount, from mounting to unmounted: kernel, session, control socket, signals.

Knows: the order of starting and ending, and what the control socket may ask. Must not know: how
requests are carried out (`filesystem`, `session`), how the process was started (`daemon_main`).

Starting: what somebody else could keep from us (the socket, the port of the metrics) is taken
before there is a mount. A start that fails later unmounts: nobody has written anything yet, because
the kernel gets no answer before the mount is usable.

Ending: `umount` (the command, or umount(8)) makes the kernel write back everything and end the FUSE
loop; then the rest is cancelled. SIGTERM and SIGINT unmount the same way, lazily if something is
still open; the journal stays for the next mount. Should the loop itself fail, the mountpoint stays
mounted and failing (ENOTCONN), so that nobody writes into the empty directory under it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pyfuse3
import structlog
import trio

from cache import quarantine
from mount import connection, handshake, mountinfo
from mount.asked import control_messages as say
from mount.asked import refusals
from mount.asked.account import Account
from mount.asked.account_messages import AccountAnswer, AccountRequest
from mount.asked.control import Report, listening, serve_control
from mount.asked.pins import Pins
from mount.attributes import Ownership
from mount.config import MountConfig
from mount.failures import Failure
from mount.filesystem import FileSystem
from mount.kernel import KernelInvalidator, Lookups
from mount.session import Session
from mount.writeback import WriteBack

log = structlog.get_logger(__name__)

REPORT_SECONDS = 0.2
SYNC_SECONDS = 20.0
MAX_REQUESTS = 8192  # handled at once; each that waits costs some KiB, and must not starve others


async def run(config: MountConfig, token: str, *, ready: Callable[[], None]) -> None:
    """Mount, call `ready` when the folder can be used, return when it has been unmounted."""
    invalidator, lookups = KernelInvalidator(), Lookups()
    session = Session(config, token, invalidator, lookups.in_use)
    try:
        async with session.client, _listening(config) as doors:
            await session.start()
            owner = Ownership.of(config.uid, config.gid, config.umask, os.getuid(), os.getgid())
            filesystem = FileSystem(session, lookups, owner)
            at = config.mountpoint
            kernel = await handshake.connect(filesystem, at, *_fuse_options(config))
            stays = False  # the mountpoint, answering ENOTCONN: see the header

            def usable() -> None:
                nonlocal stays
                ready()
                stays = True

            try:
                with _tended(at):
                    await _serve(config, session, invalidator, filesystem, doors, usable)
                stays = False
            finally:
                kernel.close(unmount=not stays and mountinfo.mounted_at(at) is not None)
    finally:
        session.close()


@dataclass(frozen=True)
class _Doors:
    """Where this mount can be asked about itself."""

    control: trio.SocketListener
    metrics: list[trio.SocketListener]


@contextlib.asynccontextmanager
async def _listening(config: MountConfig) -> AsyncIterator[_Doors]:
    async with listening(say.socket_path(config.state_dir)) as control, AsyncExitStack() as stack:
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
    connection.allow_many_requests(mount)
    with connection.guarded(mount):
        yield


async def _serve(
    config: MountConfig,
    session: Session,
    invalidator: KernelInvalidator,
    filesystem: FileSystem,
    doors: _Doors,
    ready: Callable[[], None],
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        pins = Pins(session)
        account = Account(config, session, invalidator.settled)
        write_back = WriteBack(config.mountpoint, session.tree, session.journal, session.replayer)
        nursery.start_soon(write_back.run)
        handler = Control(config, session, pins, account, write_back, filesystem.requests)
        nursery.start_soon(serve_control, doors.control, handler)
        nursery.start_soon(invalidator.run)
        nursery.start_soon(pins.run)
        nursery.start_soon(_end_on_signal, config)
        if doors.metrics:
            from mount.metrics import serve_metrics

            nursery.start_soon(serve_metrics, doors.metrics, handler.status)
        nursery.start_soon(_raise_read_ahead, config.mountpoint, filesystem.greeted)
        ready()
        log.info("mounted", at=str(config.mountpoint), url=config.url, account=config.account)
        await pyfuse3.main(min_tasks=4, max_tasks=MAX_REQUESTS)
        nursery.cancel_scope.cancel()
    log.info("unmounted", at=str(config.mountpoint))


def _fuse_options(config: MountConfig) -> tuple[set[str], str]:
    """Options and source. The source is the URL, as mount(8) was told: that is how it knows an
    entry of fstab that is mounted already."""
    source = quote(config.url, safe="!#$%&'()*+,-./:;=?@[]_~")
    return {"default_permissions", *config.fuse_options}, source


async def _raise_read_ahead(mountpoint: Path, greeted: trio.Event) -> None:
    """1 MiB of kernel read-ahead instead of 128 KiB: measured 3.5 GB/s instead of 1.0 (DESIGN
    section 8). The kernel lowers it to what it is told at `greeted`, so not before. Root only;
    without it the mount is slower, and right."""
    await greeted.wait()
    found = mountinfo.mounted_at(mountpoint)
    if found is None or os.getuid() != 0:
        return
    knob = Path(f"/sys/class/bdi/{found.device}/read_ahead_kb")
    try:
        await trio.to_thread.run_sync(knob.write_text, "1024")
    except OSError as problem:
        log.info("kernel read-ahead stays small", why=str(problem))


async def _end_on_signal(config: MountConfig) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            log.info("asked to end", signal=signal.Signals(number).name)
            await unmount(config.mountpoint, lazily_if_busy=True)


async def unmount(mountpoint: Path, *, lazily_if_busy: bool) -> None:
    """Have the kernel write everything back and let go. In a child process, because this one must
    answer the writes meanwhile. Raises Failure when something is still open."""
    at = str(mountpoint)
    command = ["umount", at] if os.getuid() == 0 else ["fusermount3", "-u", at]
    result = await trio.run_process(command, check=False, capture_stderr=True)
    if result.returncode == 0:
        return
    why = result.stderr.decode(errors="replace").strip()
    if not lazily_if_busy:
        raise Failure(f"{at} cannot be unmounted ({why}); close what is open there")
    with trio.move_on_after(SYNC_SECONDS):
        await trio.run_process(["sync", "-f", at], check=False, stderr=subprocess.DEVNULL)
    lazy = [command[0], "-l", at] if os.getuid() == 0 else ["fusermount3", "-uz", at]
    await trio.run_process(lazy, check=False, stderr=subprocess.DEVNULL)
    pyfuse3.terminate()


class Control:
    """Implements `control.ControlHandler`."""

    def __init__(
        self,
        config: MountConfig,
        session: Session,
        pins: Pins,
        account: Account,
        write_back: WriteBack,
        requests: Mapping[str, int],
    ) -> None:
        self._config, self._session, self._pins = config, session, pins
        self._account, self._write_back, self._requests = account, write_back, requests

    def status(self) -> say.Status:
        from importlib import metadata  # here and below: a start is quicker without

        session, config = self._session, self._config
        feed, cache, sent = session.subscriber, session.blocks.stats(), session.client.transferred
        offline = feed.known_offline
        return say.Status(
            state="offline" if offline else "online",
            reason=feed.reason if offline else session.trouble,
            mountpoint=str(config.mountpoint),
            url=config.url,
            account=config.account,
            pid=os.getpid(),
            state_dir=str(config.state_dir),
            cache_dir=str(config.cache_dir),
            journal=say.JournalStatus(len(session.journal), session.contents.dirty_bytes),
            uploads=[
                say.UploadStatus(one.path, one.bytes_done, one.bytes_total, one.error)
                for one in session.uploader.progress.values()
            ],
            refused=refusals.described(session),
            quarantined=[str(at) for at, _ in quarantine.reports(config.state_dir)],
            cache=say.CacheStatus(cache.bytes, cache.limit),
            transferred=say.TransferredStatus(
                sent.downloaded_bytes, sent.uploaded_bytes, sent.requests
            ),
            feed=say.FeedStatus(feed.mode, feed.lag_seconds),
            kernel_requests=dict(self._requests),
            limits=self._limits(),
            versions={
                name: metadata.version(name) for name in ("nearline", "pyfuse3", "trio", "lmdb")
            },
            metrics_port=config.metrics_port,
        )

    def _limits(self) -> say.LimitsStatus:
        files, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return say.LimitsStatus(
            memory_bytes=pages * resource.getpagesize(),
            open_files=len(os.listdir("/proc/self/fd")),
            open_files_limit=files,
            dirty_bytes=self._session.contents.dirty_bytes,
            dirty_limit=self._config.dirty_limit,
        )

    async def flush(self, report: Report) -> None:
        """Everything that was written, also what only the kernel has yet, is on the server."""
        at = str(self._config.mountpoint)
        await trio.run_process(["sync", "-f", at], check=False, stderr=subprocess.DEVNULL)
        session = self._session
        files, size = len(session.journal), session.contents.dirty_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, report, files, size)
            await self._write_back.open_files()
            await session.replayer.flush()
            nursery.cancel_scope.cancel()
        if refused := session.journal.refused():
            raise Failure(
                f"{len(refused)} changes were refused by the server and are kept here;"
                " `nearline status` names them and says what to do"
            )

    async def retry(self, path: str, report: Report) -> str:
        return await refusals.retry(self._account, path, report)

    async def _report(self, report: Report, files: int, size: int) -> None:
        session = self._session
        while True:
            left, dirty = len(session.journal), session.contents.dirty_bytes
            sent = sum(one.bytes_done for one in session.uploader.progress.values())
            done = max(0, size - dirty) + sent
            waiting = session.replayer.waiting_because
            offline = session.subscriber.known_offline
            await report(
                say.Progress(
                    files_done=max(0, files - left),
                    files_total=files,
                    bytes_done=min(done, size),
                    bytes_total=size,
                    state="waiting" if offline or waiting else "working",
                    reason=session.subscriber.reason if offline else waiting,
                )
            )
            with trio.move_on_after(REPORT_SECONDS):
                await session.journal.changed.wait()
                await trio.sleep(REPORT_SECONDS)  # a report a change would be too many

    async def stop(self, flush: bool) -> None:
        if flush:
            await self._session.replayer.flush()
        await unmount(self._config.mountpoint, lazily_if_busy=False)

    async def pin(self, path: str, report: Report) -> None:
        await self._pins.pin(path, partial(_report_progress, report))

    async def unpin(self, path: str) -> None:
        await self._pins.unpin(path)

    async def warm(self, path: str, report: Report) -> None:
        await self._pins.warm(path, partial(_report_progress, report))

    async def account(self, request: AccountRequest, report: Report) -> AccountAnswer | say.Done:
        from mount.asked import answers

        return await answers.answer(self._account, request, report)

    def cache_stats(self) -> say.CacheStats:
        stats = self._session.blocks.stats()
        return say.CacheStats(
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
    await report(say.Progress(files_done=files_done, files_total=files_total))
