"""The endpoints about people and devices: sharing, links, history, trash, tokens.

Knows: routes and their messages (`account_messages`). Must not know: who may do what. Raises as
`api` says.
"""

from __future__ import annotations

from urllib.parse import quote

from remote.http.transport import Transport
from remote.protocol.account_messages import (
    ChangePassword,
    DevicesReply,
    EmptiedReply,
    EmptyTrash,
    LinkMade,
    LinksReply,
    MakeLink,
    MakeToken,
    PasswordReply,
    SharedReply,
    ShareRequest,
    SharesReply,
    TokenReply,
    TrashPage,
)
from remote.protocol.ids import FileId, HexId


class AccountEndpoints(Transport):
    """The part of `api.ApiClient` that is not about the tree or its bytes."""

    # --- sharing --------------------------------------------------------------------------------

    async def share(self, file: FileId, request: ShareRequest) -> SharesReply:
        return await self._call("POST", f"/v1/files/{file}/share", SharesReply, request)

    async def unshare(self, file: FileId, account: str) -> None:
        """Take back what `account` was given on `file` itself; one's own name is leaving."""
        await self._send("DELETE", f"/v1/files/{file}/share/{quote(account, safe='')}")

    async def shares(self, file: FileId) -> SharesReply:
        return await self._call("GET", f"/v1/files/{file}/shares", SharesReply)

    async def shared(self) -> SharedReply:
        """The files that others share with this account."""
        return await self._call("GET", "/v1/shared", SharedReply)

    # --- links ----------------------------------------------------------------------------------

    async def make_link(self, file: FileId, request: MakeLink) -> LinkMade:
        return await self._call("POST", f"/v1/files/{file}/links", LinkMade, request)

    async def links(self, file: FileId | None = None) -> LinksReply:
        """The links to `file`, or every link of one's own drive."""
        path = "/v1/links" if file is None else f"/v1/files/{file}/links"
        return await self._call("GET", path, LinksReply)

    async def revoke_link(self, link: HexId) -> None:
        await self._send("DELETE", f"/v1/links/{link}")

    # --- the trash ------------------------------------------------------------------------------

    async def trash(
        self,
        parent: FileId | None = None,
        cursor: str | None = None,
        *,
        name: str | None = None,
        ending: str | None = None,
    ) -> TrashPage:
        """The items that were deleted by themselves or, with `parent`, together with that
        directory; called `name` only. Or whatever has an id that ends in `ending`."""
        asked = {"parent": parent, "cursor": cursor, "name": name, "ending": ending}
        return await self._call("GET", "/v1/trash", TrashPage, params=asked)

    async def empty_trash(self, request: EmptyTrash) -> EmptiedReply:
        return await self._call("POST", "/v1/trash/empty", EmptiedReply, request)

    # --- password -------------------------------------------------------------------------------

    async def change_password(self, request: ChangePassword) -> PasswordReply:
        return await self._call("POST", "/v1/password", PasswordReply, request)

    # --- devices --------------------------------------------------------------------------------

    async def devices(self) -> DevicesReply:
        return await self._call("GET", "/v1/devices", DevicesReply)

    async def revoke_device(self, device: HexId) -> None:
        await self._send("DELETE", f"/v1/devices/{device}")

    async def make_token(self, request: MakeToken) -> TokenReply:
        return await self._call("POST", "/v1/devices", TokenReply, request)

    async def rotate(self) -> TokenReply:
        """A new token for this device; this client goes on with the old one until `use_token`."""
        return await self._call("POST", "/v1/devices/rotate", TokenReply)
