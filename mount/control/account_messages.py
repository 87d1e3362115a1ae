"""Messages of the commands about people, history, trash and devices to a running mount.

Knows: the shape of these requests and answers. Must not know: the server's messages (a command must
start at once, and these shapes stay when the wire's change), how an answer is found or shown.
`messages` puts them beside the others.

The answers are what `--json` prints: a stable schema, to which fields are added and never removed
(docs/json-output.md). Paths are relative to the mount's root; times are nanoseconds since 1970 UTC,
sizes are bytes.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Role = Literal["owner", "editor", "viewer"]

# --- sharing ------------------------------------------------------------------------------------


class ShareRequest(Struct, frozen=True, tag="share"):
    path: str
    account: str
    role: Literal["editor", "viewer"]


class UnshareRequest(Struct, frozen=True, tag="unshare"):
    path: str
    account: str


class SharesRequest(Struct, frozen=True, tag="shares"):
    path: str


class SharedRequest(Struct, frozen=True, tag="shared"): ...


class LeaveRequest(Struct, frozen=True, tag="leave"):
    """Give up what `path` (Shared/OWNER/NAME) is."""

    path: str


class Grant(Struct, frozen=True, kw_only=True):
    """`path` is where the grant is, here or above; None: at a place that this mount has not seen.
    It holds for everything below. `was_name` and `was_path` are as of a `Link`."""

    account: str
    role: Role
    path: str | None
    granted_by: str
    at_ns: int
    was_name: str | None = None
    was_path: str | None = None


class Reached(Struct, frozen=True, kw_only=True):
    """`account` reaches something in the folder, called `name`, otherwise than by a grant on it or
    above: `path` is where; None: at a place that this mount has not seen. It is there as part of
    what is shared elsewhere, or shared by itself."""

    account: str
    role: Role
    name: str
    path: str | None


class Shares(Struct, frozen=True, kw_only=True, tag="shares"):
    """`reached` is what remains to somebody when the grants on the folder and above are taken back;
    only its owner is told. `more_reached`: there is more of it."""

    path: str
    owner: str
    grants: list[Grant]
    reached: list[Reached] = []
    more_reached: bool = False


class SharedPlace(Struct, frozen=True, kw_only=True):
    path: str
    owner: str
    role: Role
    kind: str
    size: int


class Shared(Struct, frozen=True, tag="shared"):
    shared: list[SharedPlace]


# --- links --------------------------------------------------------------------------------------


class MakeLinkRequest(Struct, frozen=True, kw_only=True, tag="make_link"):
    path: str
    expires_seconds: int | None = None
    password: str | None = None
    max_downloads: int | None = None


class LinksRequest(Struct, frozen=True, tag="links"):
    """Every link of the drive, or (not None) those to `path` itself."""

    path: str | None = None


class RevokeLinkRequest(Struct, frozen=True, tag="revoke_link"):
    """`id` may be the beginning or the end of one."""

    id: str


class Link(Struct, frozen=True, kw_only=True):
    """The link shows what is called `name`; `path` is None when this mount has not seen it.
    `was_name` is what it was called when the link was made, if that, or its folder, is another now;
    `was_path` is that name in the folder where it was, None when this mount has not seen that."""

    id: str
    name: str
    path: str | None
    created_ns: int
    expires_ns: int | None
    has_password: bool
    max_downloads: int | None
    downloads: int
    was_name: str | None = None
    was_path: str | None = None


class Links(Struct, frozen=True, tag="links"):
    links: list[Link]


class LinkMade(Struct, frozen=True, tag="link_made"):
    """`url` is told this once."""

    link: Link
    url: str


# --- history and trash --------------------------------------------------------------------------


class LogRequest(Struct, frozen=True, tag="log"):
    path: str


class Version(Struct, frozen=True, kw_only=True):
    """`path` is where the version can be read in the mount. `overtook` is a version that this one
    won over without its writer having seen it."""

    id: str
    path: str
    created_ns: int
    mtime_ns: int
    size: int
    account: str
    device: str
    current: bool
    restored_from: str | None
    overtook: str | None


class History(Struct, frozen=True, kw_only=True, tag="history"):
    """Newest first."""

    path: str
    versions: list[Version]


class RestoreRequest(Struct, frozen=True, kw_only=True, tag="restore"):
    """Make a version current again: the one before, or that with the id `version` (or the beginning
    or end of one), or that made in one of the seconds since 1970 `at`, which a person wrote as
    `version`. A path that is not there is looked for in the trash."""

    path: str
    version: str | None = None
    at: list[int] = []


class TrashRequest(Struct, frozen=True, tag="trash"):
    """List what was deleted by itself; or at `path`, or with the id `said`: of a folder
    what is inside."""

    said: str | None = None
    path: str | None = None


class TrashRestoreRequest(Struct, frozen=True, kw_only=True, tag="trash_restore"):
    """Bring back what was deleted at `path`, or has the id `said`, with all that was deleted with
    it; into the directory `to` instead of where it was."""

    said: str
    path: str | None = None
    to: str | None = None


class TrashEmptyRequest(Struct, frozen=True, kw_only=True, tag="trash_empty"):
    """Delete for good what `said` or `path` mean, or (both None) everything."""

    said: str | None = None
    path: str | None = None


class TrashedFile(Struct, frozen=True, kw_only=True):
    """`inside` counts what was deleted together with a directory."""

    id: str
    path: str
    name: str
    kind: str
    size: int
    trashed_ns: int
    expires_ns: int
    inside: int


class Trash(Struct, frozen=True, tag="trash"):
    """Newest first."""

    items: list[TrashedFile]


class Restored(Struct, frozen=True, kw_only=True, tag="restored"):
    """`path` is where it is now. `version` is the one whose content is current again; None: it came
    back from the trash as it was. `files` came back from there; `left` tells what did not, and
    why."""

    path: str
    version: str | None = None
    files: int = 0
    left: list[str] = []


class Emptied(Struct, frozen=True, tag="emptied"):
    files: int


# --- devices ------------------------------------------------------------------------------------


class DevicesRequest(Struct, frozen=True, tag="devices"): ...


class RevokeDeviceRequest(Struct, frozen=True, kw_only=True, tag="revoke_device"):
    """`said` is an id, the beginning or end of one, or a name. The mount's own device only with
    `own_too`."""

    said: str
    own_too: bool = False


class MakeTokenRequest(Struct, frozen=True, kw_only=True, tag="make_token"):
    name: str
    read_only: bool = False
    folder: str | None = None
    expires_seconds: int | None = None


class RotateRequest(Struct, frozen=True, tag="rotate"):
    """Get and keep a new token for this mount's device."""


class ReloadTokenRequest(Struct, frozen=True, tag="reload_token"):
    """Go on with the token that is kept for this mount's account."""


class Device(Struct, frozen=True, kw_only=True):
    """`folder` is the only path that its token reaches; None: everything. `folder_id` is its id,
    also when the mount has not seen the path. `current`: this mount's own."""

    id: str
    name: str
    scope: Literal["full", "read"]
    folder: str | None
    folder_id: str | None
    created_ns: int
    expires_ns: int | None
    seen_ns: int | None
    current: bool


class Devices(Struct, frozen=True, tag="devices"):
    devices: list[Device]


class Token(Struct, frozen=True, kw_only=True, tag="token"):
    """`token` is told this once."""

    id: str
    name: str
    token: str


AccountRequest = (
    ShareRequest
    | UnshareRequest
    | SharesRequest
    | SharedRequest
    | LeaveRequest
    | MakeLinkRequest
    | LinksRequest
    | RevokeLinkRequest
    | LogRequest
    | RestoreRequest
    | TrashRequest
    | TrashRestoreRequest
    | TrashEmptyRequest
    | DevicesRequest
    | RevokeDeviceRequest
    | MakeTokenRequest
    | RotateRequest
    | ReloadTokenRequest
)

AccountAnswer = (
    Shares | Shared | Links | LinkMade | History | Restored | Trash | Emptied | Devices | Token
)
