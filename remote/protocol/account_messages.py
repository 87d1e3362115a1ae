"""The v1 messages about sharing, links, trash, devices and tokens.

Knows: their shape. Must not know: transport, storage, policy. The conventions are those of
`messages`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from remote.protocol.ids import FileId, HexId
from remote.protocol.messages import (
    MAX_BATCH,
    FileRecord,
    Name,
    Nanoseconds,
    Role,
    Scope,
    SharedRoot,
)

AccountName = Annotated[str, Meta(min_length=1, max_length=255)]
Password = Annotated[str, Meta(min_length=1, max_length=1024)]

# --- sharing ------------------------------------------------------------------------------------


class Invite(Struct, frozen=True, forbid_unknown_fields=True):
    account: AccountName
    role: Literal["editor", "viewer"]


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """The name of a file by which it is shared, where it has several: that name is told, also after
    its owner has changed it, and no other one ever."""

    parent: FileId
    name: Name


class ShareRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Give each account its role on the file and everything below; a role given before changes.
    All or none. `entry`: the name to tell, else it is the one that the file has had longest; who
    has a role already is told another only if `entry` is given."""

    users: Annotated[list[Invite], Meta(min_length=1, max_length=100)]
    entry: Entry | None = None


class Grant(Struct, frozen=True, kw_only=True):
    """`file` is where the grant is: the file asked about, or a directory above it. `was` is as in
    `LinkInfo`, for the drive's owner."""

    file: FileId
    account: str
    role: Role
    granted_by: str
    at_ns: Nanoseconds
    was: Entry | None = None


class Reached(Struct, frozen=True, kw_only=True):
    """`account` reaches `file`, which is below the directory asked about, under `name` in `parent`:
    by a grant on that file or directory itself, or by one above a name that it has elsewhere."""

    account: str
    role: Role
    file: FileId
    parent: FileId
    name: str


class SharesReply(Struct):
    """The list of who has access. The owner sees every grant at or above the file, and what else is
    reached of what it holds, which remains when those are taken back; others see their own grants.
    `more_reached`: there is more of that than is told."""

    owner: str
    grants: list[Grant]
    reached: list[Reached] = []
    more_reached: bool = False


class SharedReply(Struct):
    """The files that others share with the caller, as in `messages.ChangesPage`."""

    shared: list[SharedRoot]


# --- links --------------------------------------------------------------------------------------


class MakeLink(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A URL that shows the file, or the directory and what is below it, to whoever has it. `entry`
    is as in `ShareRequest`."""

    expires_ns: Nanoseconds | None = None
    password: Password | None = None
    max_downloads: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    entry: Entry | None = None


class LinkInfo(Struct, kw_only=True):
    """`name` is what visitors are told. `was` is the entry that the link was made to, as it was
    then, if its name or its directory is another now."""

    id: HexId
    file: FileId
    name: str
    created_ns: Nanoseconds
    expires_ns: Nanoseconds | None
    has_password: bool
    max_downloads: int | None
    downloads: int
    was: Entry | None = None


class LinkMade(Struct):
    """`url` is shown this once: the server keeps only a hash of its secret."""

    link: LinkInfo
    url: str


class LinksReply(Struct):
    links: list[LinkInfo]


# --- trash --------------------------------------------------------------------------------------


class TrashItem(Struct, kw_only=True):
    """A deleted file. `path` is where it was, as far as that is still known; it is kept until
    `expires_ns`. `inside` counts what was deleted together with a directory, below it at any depth;
    more than 1,000 are told as 1,000."""

    file: FileRecord
    path: str
    parent: FileId | None
    name: str
    trashed_ns: Nanoseconds
    expires_ns: Nanoseconds
    inside: int = 0


class TrashPage(Struct, kw_only=True):
    """Newest first. Without `parent` in the query: what was deleted by itself, and not with its
    directory; with it: what was deleted with that directory (from it, if it is in the tree). With
    `name`: of those, what was called so. With `ending`: whatever has an id that ends so."""

    items: list[TrashItem]
    next: str | None = None


class EmptyTrash(Struct, forbid_unknown_fields=True):
    """Delete for good: these files with what was deleted with them, or (None) everything."""

    files: Annotated[list[FileId], Meta(min_length=1, max_length=MAX_BATCH)] | None = None


class EmptiedReply(Struct):
    """`more`: there is more than one transaction takes; send the same again."""

    files: int
    more: bool


# --- the password -------------------------------------------------------------------------------


class ChangePassword(Struct, kw_only=True, forbid_unknown_fields=True):
    """Another password for one's own account. `revoke_devices` ends every token but the asking
    one; without it all go on."""

    old: Password
    new: Password
    revoke_devices: bool = False


class PasswordReply(Struct):
    """The number of tokens that were ended with the old password."""

    devices_revoked: int


# --- devices and tokens -------------------------------------------------------------------------


class DeviceInfo(Struct, kw_only=True):
    id: HexId
    name: str
    scope: Scope
    folder: FileId | None
    created_ns: Nanoseconds
    expires_ns: Nanoseconds | None
    seen_ns: Nanoseconds | None
    current: bool


class DevicesReply(Struct):
    """Every device of the account whose token is still good."""

    devices: list[DeviceInfo]


class MakeToken(Struct, kw_only=True, forbid_unknown_fields=True):
    """A token for a script or a second machine, weaker than one's own at will."""

    name: Annotated[str, Meta(min_length=1, max_length=255)]
    scope: Scope = "full"
    folder: FileId | None = None
    expires_ns: Nanoseconds | None = None


class TokenReply(Struct):
    """`token` is shown this once. After a rotation the one before is good until this one is used,
    for ten minutes at most."""

    token: str
    device_id: HexId
