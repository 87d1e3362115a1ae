"""One device's connection to its drive: `cache.device` and every part of `remote`, put together.

Knows: who needs whom, in which order things start and end, who waits for the server. Must not know:
FUSE requests (`operations`), the control socket and signals (`daemon`).

Concurrency: everything on the trio thread.

Why one class: it is wiring. Most methods are what one part is given to reach another, and have a
few lines.
"""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from cache.blocks.cache import BlockCache
from cache.blocks.reader import Reader
from cache.device import Device
from cache.files.layers import stored_bytes
from cache.files.next_files import NextFiles
from cache.files.spool import Spool
from cache.metadata.damage import DamagedState
from cache.metadata.invalidation import Invalidator
from cache.metadata.manifests import Manifests
from cache.metadata.reserve import RESERVE_BYTES, START_BYTES
from cache.metadata.tree import HISTORY, ROOT, Node
from cache.recovery.opening import open_database
from cache.recovery.power_loss import recover
from mount.config import MountConfig
from mount.session.backpressure import Backpressure
from mount.session.interrupts import InterruptibleReader, Interrupts
from mount.session.old_versions import Versions
from mount.session.quota import AccountWatch
from mount.session.relogin import Relogin
from mount.session.symlinks import Symlinks
from mount.session.transfer_limits import TransferLimits
from remote.feed.subscriber import Subscriber
from remote.http.api import ApiClient
from remote.protocol.chunking import DEFAULT_AVERAGE, min_size
from remote.protocol.errors import NearlineError, Refused, Unreachable
from remote.protocol.ids import FileId
from remote.protocol.messages import VersionsPage
from remote.transfer.download import Downloader
from remote.transfer.read_retry import ReadRetries, RetriedReads
from remote.transfer.throttle import DOWNLOAD_PORTIONS_PER_SECOND, Throttle

log = structlog.get_logger(__name__)

# What `df` shows where there is no limit.
NO_QUOTA_BYTES = 1 << 46
# Bytes; shorter ones are stored with what is around them.
MIN_HOLE = min_size(DEFAULT_AVERAGE)
# The block cache leaves at least this much of the disk to others.
MIN_FREE_BYTES = 1 << 30


def boot_id() -> str:
    """Names the running kernel's boot, so that a cache written without sync is not trusted after
    another one. Where there is no such file every start counts as a new boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return f"start-{time.time_ns()}"


class Session(Device):
    """Open with `Session(config, token, ...)`, run with `run`, end with `close`."""

    def __init__(
        self,
        config: MountConfig,
        token: str,
        invalidator: Invalidator,
        in_use: Callable[[int], bool],
    ) -> None:
        self.config = config
        self.client = ApiClient(
            config.url,
            token,
            insecure=config.insecure,
            pin=config.pin,
            on_refused_token=self._token_refused,
        )
        self.retries = ReadRetries()
        self._reads = reads = RetriedReads(self.client, self.retries)
        spool_dir = config.state_dir / "spool"
        boot = boot_id()
        db = open_database(config.state_dir / "tree.sqlite", spool_dir, boot)
        if db.lost_power:
            recover(db, spool_dir)
        manifests = Manifests(db)
        self.blocks = BlockCache.open(
            config.cache_dir / "blocks",
            config.cache_size,
            boot_id=boot,
            min_free_bytes=MIN_FREE_BYTES,
        )
        upload = Throttle(config.upload_limit)
        download = Throttle(config.download_limit, portions_per_second=DOWNLOAD_PORTIONS_PER_SECOND)
        self.client.upload_pace = upload
        downloader = Downloader(reads, throttle=download, retries=self.retries)
        self.interrupts = Interrupts()
        self.reader = Reader(self.blocks, downloader, manifests)
        self._invalidator = invalidator
        super().__init__(
            db,
            Spool(spool_dir, START_BYTES if db.holds_reserve else RESERVE_BYTES),
            manifests,
            InterruptibleReader(self.reader, self.interrupts),
            invalidator,
            in_use,
            send=self.client,
            read=reads,
            keep_manifest=self.reader.keep_manifest,
            keep_plain=self.reader.put_plain,
            require_online=self.require_online,
            on_reachable=self._reachability_changed,
            name=platform.node() or "another device",
            keep_copies=config.on_conflict == "copy",
            has_asker=True,  # mount.fuse.writeback
        )
        self.transfer_limits = TransferLimits(upload, self.sender, downloader, config.transfers)
        self.symlinks = Symlinks(self.tree, inside=config.symlinks == "inside")
        self.relogin = Relogin(config, self.client, self.db, self.merge.adopt, self._token_taken)
        self.subscriber = Subscriber(self.client, self.merge, on_change=self._online_changed)
        self.versions = Versions(self.db, self.tree, self._versions_of)
        self.next_files = NextFiles(self.tree, self.reader)
        self.account = AccountWatch(self.refresh_account, self.journal, self.contents)
        self.back = trio.Event()  # set, and replaced, when a host can be reached again
        self.backpressure = Backpressure(
            config.dirty_limit,
            self.tree,
            self.journal,
            self.contents,
            self.replayer,
            self.require_online,
            self._is_out_of_touch,
        )

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the state usable. Without the network that works if there was a mount before;
        raises NearlineError (the first contact failed) or ValueError (another drive's state). At
        the first start the top is listed, so that something can be made in it whatever becomes of
        the server from then on."""
        if self.tree.find(ROOT) is None:
            self.merge.adopt(await self.client.me())
            await self.listing.list_directory(ROOT)
        self.versions.sweep()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Talk to the server until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.reader.run)
            nursery.start_soon(self.client.connectivity.run, self._connectivity_changed)
            nursery.start_soon(self._while_whole, self.db.tend)
            nursery.start_soon(self._while_whole, self.contents.sync_in_background)
            nursery.start_soon(self._while_whole, self.collector.run)
            nursery.start_soon(self._begin, nursery)
            nursery.start_soon(self._list_root)
            nursery.start_soon(self._while_whole, self.listing.run)
            nursery.start_soon(self._while_whole, self.next_files.run)
            nursery.start_soon(self.interrupts.run)
            nursery.start_soon(self.account.run)
            task_status.started()

    async def _begin(self, nursery: trio.Nursery) -> None:
        """Do what a long journal makes long: the mount is in use meanwhile."""
        await self._while_whole(self.journal.load)
        nursery.start_soon(self._while_whole, self.subscriber.run)
        nursery.start_soon(self._while_whole, self.replayer.run)
        await self._while_whole(self._tidy)

    async def _tidy(self) -> None:
        """Delete what is useless, once it is known that the rows which say so are whole; and what
        becomes so, until cancelled."""
        await self.db.examine()
        if self.db.damage is not None:
            return
        try:
            self.collector.sweep()
            await self.manifests.prune()
            await self.contents.tidy()
        except DamagedState:
            raise
        except OSError as error:  # a full disk: it stays until the next start
            log.warning("not_tidied_up", why=str(error))
        await self.manifests.tend()

    async def _while_whole(self, part: Callable[[], Awaitable[None]]) -> None:
        """Run `part`, which works on the state by itself, until that is found to be damaged: the
        mount goes on with everything that can be read, and the next one salvages it."""
        try:
            await part()
        except* DamagedState as error:
            log.error("resting_until_it_is_salvaged", part=part.__qualname__, why=str(error))

    @property
    def trouble(self) -> str | None:
        """Why something does not go on, for people to read."""
        damage = self.db.damage
        return str(DamagedState(damage).strerror) if damage else self.replayer.waiting_because

    async def _list_root(self) -> None:
        """The top of the drive is there offline even if nobody has looked at it."""
        try:
            await self.ensure_listed(ROOT)
        except (NearlineError, OSError) as error:  # OSError: a full disk, or damage that is told
            log.info("root_not_listed_yet", why=str(error))

    def forget_attributes(self, ino: int) -> None:
        self._invalidator.forget_attributes(ino)

    def look_up_again(self, ino: int) -> None:
        """The kernel has dropped its inode of a file, and makes another one from an answer that was
        on its way to somebody meanwhile. The size in that may be from before what was written
        through the first one, and with the write-back cache the kernel asks for a size only once
        (`fuse_change_attributes_i` in Linux): it shall not keep what it makes."""
        node = self.tree.find(ino)
        if node is not None and node.is_regular:
            for parent, name in self.tree.names(ino):
                self._invalidator.forget_entry(parent, name)

    def close(self) -> None:
        self.blocks.close()
        clean = False
        try:
            self.contents.close()
            clean = True
        except OSError as error:
            log.error("not_everything_is_safe_from_power_loss", why=str(error))
        self.spool.close()
        self.db.close(clean=clean)

    def _reachability_changed(self) -> None:
        self.backpressure.reachability_changed()
        if self.subscriber.is_offline and self.replayer.reachable:
            self.subscriber.poke()  # its own next try may be far away

    def _online_changed(self) -> None:
        if not self.subscriber.online:
            self.replayer.lost_touch()
        self.backpressure.reachability_changed()
        self.retries.down(self.subscriber.is_offline)
        log.info("feed", mode=self.subscriber.mode, why=self.subscriber.reason)
        if self.subscriber.online:
            self._try_again()

    def _connectivity_changed(self, origin: str) -> None:
        """A host became silent, or is no longer, or may be."""
        silence = self.client.connectivity.silence(origin)
        if origin == self.client.origin and silence is None:
            self.subscriber.poke()  # it knows for certain, and its own next try may be far away
        if silence is None:
            self._try_again()
        self.backpressure.reachability_changed()

    async def _token_refused(self, refused: Refused) -> bool:
        """True if the mount has another token now. The feed finds out too: its socket stays open
        when a token expires, and nobody may think that the mount is online."""
        if self.subscriber.online:
            self.subscriber.poke()
        return await self.relogin.refused(refused)

    def _token_taken(self) -> None:
        self.subscriber.poke()
        self._try_again()

    def _try_again(self) -> None:
        """Let what failed for want of a server, or of a login, wait no longer."""
        self.replayer.retry_now()
        self.back.set()
        self.back = trio.Event()

    async def refresh_account(self) -> None:
        """Quota and use, for statfs; keeps what was known when the server cannot be reached, or the
        disk is full."""
        try:
            self.merge.adopt(await self.client.me())
        except NearlineError as error:
            log.info("account_not_refreshed", why=str(error))

    # --- directories and versions on demand -------------------------------------------------------

    def stored_bytes(self, node: Node) -> int:
        """Bytes of a node that are not holes, as far as known: never too few."""
        if not node.is_regular or node.size < MIN_HOLE:
            return node.size
        base = node.base_size - (self.manifests.hole_bytes(node.version) if node.version else 0)
        if node.size <= base:
            return node.size
        return stored_bytes(self.contents.stack(node.ino), base, node.size)

    async def ensure_listed(self, ino: int) -> None:
        """Return when every entry of the directory is in the tree. Raises NearlineError, and
        InterruptedError when the caller is told to end."""
        node = self.tree.node(ino)
        if node.drive == HISTORY:
            await self.versions.look_again(node)
            return
        if node.is_directory and node.listed is None and node.live:
            with self.interrupts.watched():
                await self.listing.list_directory(ino)

    async def visit_directory(self, ino: int) -> None:
        """`ensure_listed` for somebody who will look through the directory."""
        await self.ensure_listed(ino)
        self.listing.visit(ino)
        self.next_files.entered(ino)

    def in_doubt(self, ino: int) -> bool:
        """True when what is known of the directory's names is not all, or not believed any more.
        Then it is listed soon, without anybody waiting for that: what is known is answered
        meanwhile, also while the server is out of reach."""
        if self.tree.is_listed(ino):
            return False
        self.listing.doubt(ino)
        return True

    async def _versions_of(self, file: FileId, cursor: str | None) -> VersionsPage:
        self.require_online()
        with self.interrupts.watched():
            return await self._reads.versions(file, cursor)

    @property
    def offline_because(self) -> str | None:
        """Why the server cannot be reached, if that is known."""
        if self.subscriber.is_offline:
            return self.subscriber.reason or "no answer from the server"
        return self.client.connectivity.silence(self.client.origin)

    def _is_out_of_touch(self) -> bool:
        """True if it is known that nothing can be sent either."""
        is_silent = self.client.connectivity.silence(self.client.origin) is not None
        return is_silent or (self.subscriber.is_offline and not self.replayer.reachable)

    def require_online(self) -> None:
        """Fail at once while it is known that the server cannot be reached."""
        if (why := self.offline_because) is not None:
            raise Unreachable(f"offline: {why}")

    # --- durability -------------------------------------------------------------------------------

    async def sync_file(self, ino: int) -> None:
        """Keep fsync's promise: on this machine's disk; with --sync=remote, on the server. Raises
        InterruptedError when the caller is told to end: the server will have it all the same."""
        await self.contents.sync(ino)
        await self._until_sent(ino)

    async def sync_directory(self, ino: int) -> None:
        """The same for a directory and the names in it."""
        await self.db.sync()
        await self._until_sent(ino)

    async def _until_sent(self, ino: int) -> None:
        if self.config.sync == "remote":
            with self.interrupts.watched():
                await self.backpressure.until_sent(self.tree.node(ino))

    def check_quota(self, ino: int) -> None:
        """Raise OSError (EDQUOT) while the drive has no room for the bytes that were written into
        the inode. They are kept, and sent when there is room."""
        full = self.replayer.full_drives.is_full(self.tree.node(ino).drive)
        if full and self.contents.stack(ino):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def usage(self) -> tuple[int, int]:
        """Bytes used and quota of the account as last told, what waits here included; without a
        quota the drive seems as large as `NO_QUOTA_BYTES`."""
        self.account.asked()
        used, quota = self.db.meta("used_bytes"), self.db.meta("quota_bytes")
        here = self.contents.dirty_bytes
        return int(str(used or 0)) + here, NO_QUOTA_BYTES if quota is None else int(str(quota))

    def status_of(self, ino: int) -> str:
        """`user.nearline.status` of one inode."""
        node = self.tree.node(ino)
        ops = [op for op in self.journal.of_file(node.file) if op.ino == ino]
        if any(op.refused for op in ops):
            return "error"
        if any(op.key in self.uploader.progress for op in ops):
            return "uploading"
        if ops or self.contents.stack(ino):
            return "pending"
        if node.is_regular and node.version is not None:
            here = self.reader.cached_bytes(node.version)
            return "synced" if here == node.base_size or node.base_size == 0 else "online-only"
        return "synced"
