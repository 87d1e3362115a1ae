"""The HTTP client: one method per endpoint.

Knows: routes and their messages. Must not know: when to try again (callers decide, with `backoff`),
what a change means, where bytes are kept. `ApiClient` is put together from rooms of their own:
`transport` (one request), `account_api` (sharing, links, trash, devices), `data` (bytes by
signed URLs), `websocket` (the WebSocket).

Two connection pools: the API's, and the data path's to blob store and edge, so that bulk bytes
never keep a small question waiting. The token goes to the API only; a signed URL is its own
permission.

What is raised, always from `errors`:
- `Refused` carries the server's `Problem`. `ProtocolError`: an answer that is not of this protocol.
- `Unreachable`: no usable answer; whether the request was carried out is unknown. Two kinds of it
  have names of their own: `Truncated` and `NoWebSocket`.
- `UrlRefused`: blob store or edge did not take the signed URL.

Concurrency: any number of tasks of one trio run may call any method (see `transport`).
"""

from __future__ import annotations

from collections.abc import Sequence

from remote.http.account_api import AccountEndpoints
from remote.http.data import Buffer, DataPath, Truncated
from remote.http.transport import InsecureUrl, Timeouts, Transferred, check_url
from remote.http.websocket import Hints, Live, NoWebSocket
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import (
    Applied,
    ApplyReply,
    ApplyRequest,
    ChangesPage,
    ChildrenPage,
    CompleteUpload,
    FileReply,
    ListReply,
    ListRequest,
    LocateReply,
    LocateRequest,
    LocateSeveral,
    LocateSeveralReply,
    LoginReply,
    LoginRequest,
    Me,
    StartBundle,
    StartBundleReply,
    StartUploads,
    StartUploadsReply,
    VersionsPage,
)

__all__ = ["ApiClient", "Buffer", "Hints", "InsecureUrl", "NoWebSocket", "Timeouts"]
__all__ += ["Transferred", "Truncated", "check_url"]

# The server may answer a long poll this much later than asked.
_POLL_GRACE_SECONDS = 10.0


class ApiClient(Live, DataPath, AccountEndpoints):
    """A server, as `token` sees it. Use as an async context manager, under trio.

    `insecure`, `pin` and what is raised: see `transport.Transport`.
    """

    # --- session --------------------------------------------------------------------------------

    async def login(self, request: LoginRequest) -> LoginReply:
        return await self._call("POST", "/v1/login", LoginReply, request)

    async def me(self) -> Me:
        return await self._call("GET", "/v1/me", Me)

    # --- reading --------------------------------------------------------------------------------

    async def file(
        self, file: FileId, version: VersionId | None = None, manifest: bool = False
    ) -> FileReply:
        """Metadata of `file`; with `manifest` also that of `version`, or of the current one."""
        asked = {"version": version, "manifest": "true" if manifest else None}
        return await self._call("GET", f"/v1/files/{file}", FileReply, params=asked)

    async def children(
        self, directory: FileId, cursor: str | None = None, limit: int | None = None
    ) -> ChildrenPage:
        path = f"/v1/files/{directory}/children"
        asked = {"cursor": cursor, "limit": limit}
        return await self._call("GET", path, ChildrenPage, params=asked)

    async def list_several(self, directories: Sequence[FileId]) -> ListReply:
        """Complete listings of some of `directories`, from the front: see `ListReply`."""
        request = ListRequest(directories=list(directories))
        return await self._call("POST", "/v1/listings", ListReply, request)

    async def versions(self, file: FileId, cursor: str | None = None) -> VersionsPage:
        path = f"/v1/files/{file}/versions"
        return await self._call("GET", path, VersionsPage, params={"cursor": cursor})

    async def locate_several(self, request: LocateSeveral) -> LocateSeveralReply:
        path = "/v1/chunks/locate-several"
        return await self._call("POST", path, LocateSeveralReply, request)

    async def locate(self, request: LocateRequest) -> LocateReply:
        return await self._call("POST", "/v1/chunks/locate", LocateReply, request)

    # --- uploads --------------------------------------------------------------------------------

    async def start_uploads(self, request: StartUploads) -> StartUploadsReply:
        return await self._call("POST", "/v1/files", StartUploadsReply, request)

    async def start_bundle(self, request: StartBundle) -> StartBundleReply:
        return await self._call("POST", "/v1/bundles", StartBundleReply, request)

    async def complete(self, version: VersionId, request: CompleteUpload) -> Applied:
        return await self._call("POST", f"/v1/uploads/{version}/complete", Applied, request)

    # --- changes --------------------------------------------------------------------------------

    async def apply(self, request: ApplyRequest) -> ApplyReply:
        return await self._call("POST", "/v1/changes/apply", ApplyReply, request)

    async def changes(self, cursor: str | None) -> ChangesPage:
        """The changes after `cursor` (None: from the beginning, which may answer `reset`)."""
        return await self._call(
            "GET", "/v1/changes", ChangesPage, params={"cursor": cursor}, for_feed=True
        )

    async def wait(self, cursor: str, timeout_s: float) -> ChangesPage:
        """As `changes`, but when there are none the server waits up to `timeout_s` for one."""
        return await self._call(
            "GET",
            "/v1/changes/wait",
            ChangesPage,
            params={"cursor": cursor, "timeout": timeout_s},
            read_longer=timeout_s + _POLL_GRACE_SECONDS,
            for_feed=True,
        )
