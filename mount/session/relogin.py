"""Going on with another login of the account when the server does not accept the mount's token.

Knows: which kept login this mount may go on with, and how it becomes that device. Must not know:
how a login is made (`cli`), what waits in the journal, the wire.

A mount stays the device that it is for as long as its token is good: after a login on the same
machine too. When the token is refused (revoked, expired, unknown to a server that was restored from
a backup), the login that is kept for the same account at the same URL is read again, and taken if
it reaches the same drive from the same folder and may do no less: the journal and the tree belong
to that. What was sent as the device before is still answered: the server is told (`Merge.devices`).

Concurrency: `refused` is called by one request at a time (`remote.http.transport`).
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from cache.metadata.database import Database
from mount import credentials
from mount.config import MountConfig
from mount.failures import Failure
from remote.http.api import ApiClient
from remote.protocol.errors import Refused, Unauthorized
from remote.protocol.messages import Me

log = structlog.get_logger(__name__)

STAYS = "goes on with its own token, which the server accepts"
KEPT = "goes on with the login that is kept, which the server accepts"


class Relogin:
    """`adopt` keeps who the mount is; `taken` is called when it goes on as another device."""

    def __init__(
        self,
        config: MountConfig,
        client: ApiClient,
        db: Database,
        adopt: Callable[[Me], None],
        taken: Callable[[], None],
    ) -> None:
        self._config, self._client, self._db = config, client, db
        self._adopt, self._taken = adopt, taken

    async def check(self) -> str:
        """Ask the server whether it accepts this mount, as which it goes on: in words. They do not
        say when it became that: who asks may come after a request that was refused. Raises
        Refused when neither the mount's token nor the kept one will do, and `Unreachable`."""
        kept = await self._kept()
        if kept is not None and kept != self._client.token and await self._is_renewed(kept):
            self._client.use_token(kept)
        await self._client.me()  # refused, it takes the kept one (`refused`)
        return KEPT if self._client.token == await self._kept() else STAYS

    async def _is_renewed(self, kept: str) -> bool:
        """True if it is a token of this very device, of a rotation."""
        try:
            me = await self._client.with_token(kept).me()
        except Refused:
            return False
        return str(self._db.meta("device") or "").split()[:1] == [me.device_id]

    async def refused(self, refused: Refused) -> bool:
        """The server does not accept the token: whether the mount now has another. Raises Refused
        that says why the kept login will not do, and what the server raises."""
        kept = await self._kept()
        if kept is None or kept == self._client.token:
            return False
        try:
            me = await self._client.with_token(kept).me()
        except Refused as error:
            log.info("the_kept_token_is_refused_too", why=str(error))
            return False
        if (why := self._unfit(me)) is not None:
            raise Refused(Unauthorized(message=f"{refused}; {why}")) from refused
        self._adopt(me)
        self._client.use_token(kept)
        log.info("goes_on_with_the_token_of_another_login", device=me.device_id)
        self._taken()
        return True

    async def _kept(self) -> str | None:
        url, account = self._config.url, self._config.account
        try:
            return await trio.to_thread.run_sync(credentials.kept, url, account)
        except (Failure, OSError) as error:
            log.info("the_kept_token_cannot_be_read", why=str(error))
            return None

    def _unfit(self, me: Me) -> str | None:
        """Why the journal and the tree of this mount are not for that login."""
        again = f"log in with the password of {self._config.account}"
        if me.drive != self._db.meta("drive"):
            return (
                f"the login that is kept for {self._config.account} is of another drive, which this"
                " mount does not touch; what it has not sent stays here"
            )
        if me.root != self._db.meta("root"):
            return f"the login that is kept reaches another folder than this mount shows; {again}"
        if me.scope == "read" and self._db.meta("scope") != "read":
            return f"the login that is kept may only read; {again}"
        return None
