"""The limits of what a mount moves: how fast, and how much at once, for all of it together.

Knows: who has to be told of each limit. Must not know: how one is kept (`remote.transfer`), who
asks for it.

Concurrency: trio thread only, without checkpoints.
"""

from __future__ import annotations

import structlog

from remote.transfer.download import Downloader
from remote.transfer.limits import at_once
from remote.transfer.throttle import Throttle
from remote.transfer.upload import Sender

log = structlog.get_logger(__name__)


class TransferLimits:
    """Bytes a second each way, None: without a limit; and large transfers at once, each way."""

    def __init__(
        self, upload: Throttle, sender: Sender, downloader: Downloader, transfers: int
    ) -> None:
        self._upload, self._sender, self._downloader = upload, sender, downloader
        self.transfers = transfers
        self._deal_out()

    @property
    def up(self) -> int | None:
        return self._upload.rate

    @property
    def down(self) -> int | None:
        return self._downloader.throttle.rate

    def change(self, up: int | None, down: int | None, transfers: int) -> None:
        """Go on so, also with what is under way."""
        if (up, down, transfers) == (self.up, self.down, self.transfers):
            return
        if up != self.up:
            self._upload.change(up)
        if down != self.down:
            self._downloader.throttle.change(down)
        self.transfers = transfers
        self._deal_out()
        log.info("transfers_limited", up=up, down=down, transfers=transfers)

    def _deal_out(self) -> None:
        """A PUT that is begun must not be too slow for the server; a GET is begun anew for each
        portion."""
        self._sender.places.change(at_once(self.transfers, self.up))
        self._downloader.connections.change(self.transfers)
