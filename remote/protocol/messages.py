"""The v1 messages. The same types are JSON and MessagePack; the server's OpenAPI is made from them.

Knows: the shape of every request, reply and tree operation. Must not know: transport, storage,
policy. docs/protocol.md says in prose what is only named here. Sharing, links, history, trash and
devices have their messages in `account_messages`.

Conventions: times are integer nanoseconds since 1970 UTC; sizes are bytes; ids of files, versions
and operations are 32 hex digits; chunk ids and hashes are raw bytes (base64 in JSON). A record
(`FileRecord`, `EntryRecord`) always tells the whole state *after* a change, with the drive
sequence number `rev` of the change that made it, so applying one twice, or an older one after a
newer one, is recognised and harmless.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from remote.protocol.bundle import MAX_PARTS
from remote.protocol.content import Descriptor, Manifest
from remote.protocol.errors import AnyProblem
from remote.protocol.ids import ChunkId, DriveId, FileId, HexId, VersionId

MAX_BATCH = 1000
MAX_WHOLE = 100  # versions located in one request
MAX_WHOLE_CHUNKS = 16  # located of each of them
MAX_SENT_AS = 4
MAX_NAME_BYTES = 255
# Of the directory at a drive's top in which every device shows what others share with the account;
# nothing else has that name there.
SHARED_NAME = "Shared"
# Of directories in each other.
MAX_LEVELS = 1000
# Of a directory's path from its drive's root, a slash before each name.
MAX_PATH_BYTES = 65536
# Of one file. Whoever touches it looks at what is above each.
MAX_NAMES = 10_000
MAX_XATTR_BYTES = 65536
SIGNED_URL_SECONDS = 300

# Of an entry, 1 to 255 bytes of UTF-8: checked with its operation and not with the message, so that
# one name that cannot be does not refuse a whole batch.
Name = str
Kind = Literal["file", "directory", "symlink", "fifo", "socket", "char", "block"]
Role = Literal["owner", "editor", "viewer"]
Scope = Literal["full", "read"]
Nanoseconds = int


# --- records: the state of the tree -------------------------------------------------------------


class FileRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file's state after change `rev`. `mode` holds the permission bits only (07777). `version`
    is the current uploaded version of a regular file. `links` is the number of entries naming the
    file; 0 means it is gone from the tree (trash). `made_under` is of a symlink that somebody made
    who does not own the drive whole: `ids.mark_of` the topmost directory that they reached."""

    id: FileId
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: Nanoseconds
    ctime_ns: Nanoseconds
    size: int = 0
    links: int = 1
    version: VersionId | None = None
    target: str | None = None
    rdev: int = 0
    xattrs: dict[str, bytes] = {}
    made_under: bytes = b""
    rev: int


class EntryRecord(Struct, frozen=True, kw_only=True):
    """Name `name` in directory `parent` means `file` after change `rev`; None: the name is gone."""

    parent: FileId
    name: str
    file: FileId | None
    rev: int


class Change(Struct, frozen=True, kw_only=True):
    """One mutation of drive `drive`, as the records it left behind; atomic for readers. Of another
    account's drive, a reader gets the records at and below what is shared; what left that appears
    as deleted (`links` 0)."""

    drive: DriveId
    seq: int
    at_ns: Nanoseconds
    device: str
    files: list[FileRecord]
    entries: list[EntryRecord]


# --- session ------------------------------------------------------------------------------------


class LoginRequest(Struct, forbid_unknown_fields=True):
    account: Annotated[str, Meta(min_length=1, max_length=255)]
    password: Annotated[str, Meta(min_length=1, max_length=1024)]
    device: Annotated[str, Meta(min_length=1, max_length=255)]


class LoginReply(Struct):
    token: str
    account: str
    device_id: HexId


class Me(Struct, kw_only=True):
    """The account of the token, where its drive starts, and the cursor of this moment. The `root`
    of a token for a single folder is that folder."""

    account: str
    device_id: HexId
    drive: DriveId
    root: FileId
    cursor: str
    seq: int
    used_bytes: int
    quota_bytes: int | None
    now_ns: Nanoseconds
    scope: Scope = "full"
    reserved_bytes: int = 0


# --- reading the tree ---------------------------------------------------------------------------


class Child(Struct, frozen=True):
    entry: EntryRecord
    file: FileRecord


class ChildrenPage(Struct, kw_only=True):
    """A page of a directory, read at drive sequence `as_of`. `next` asks for the following page."""

    directory: FileRecord
    children: list[Child]
    as_of: int
    next: str | None = None


class ListRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Directories to list, the most wanted first."""

    directories: Annotated[list[FileId], Meta(min_length=1, max_length=MAX_BATCH)]


class Listed(Struct, frozen=True, kw_only=True):
    """A directory with all its entries by name (code point order), as of drive sequence `as_of`."""

    directory: FileRecord
    children: list[Child]
    as_of: int


class ListReply(Struct, kw_only=True):
    """Those that were asked for, from the front, until the answer was full: at least one, if the
    caller may see it, it is a directory, and its entries fit. What is not here is not told why."""

    listed: list[Listed]


class VersionInfo(Struct, kw_only=True):
    """`device` and `account` are the names of who wrote it. `base` is the version it was made
    from: where that is not the one before in the list, this one won over that."""

    id: VersionId
    file: FileId
    size: int
    mtime_ns: Nanoseconds
    created_ns: Nanoseconds
    device: str
    status: Literal["uploading", "uploaded"]
    account: str = ""
    base: VersionId | None = None
    restored_from: VersionId | None = None
    current: bool = False


class VersionsPage(Struct, kw_only=True):
    versions: list[VersionInfo]
    next: str | None = None


class FileReply(Struct, kw_only=True):
    file: FileRecord
    role: Role
    manifest: Manifest | None = None


class FingerprintReply(Struct, kw_only=True):
    file: FileId
    version: VersionId
    manifest: Manifest


# --- reading content ----------------------------------------------------------------------------


class Span(Struct, frozen=True):
    offset: Annotated[int, Meta(ge=0)]
    length: Annotated[int, Meta(ge=1)]


class LocateRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Where are these chunks of this version? `chunks` names them; `span` asks instead for the
    chunks under a byte range, for a reader that has no manifest yet and wants it (`manifest`). With
    `bundles` they may be told as parts of a larger object (`Located.offset`)."""

    file: FileId
    version: VersionId
    chunks: Annotated[list[ChunkId], Meta(max_length=MAX_BATCH)] = []
    span: Span | None = None
    manifest: bool = False
    bundles: bool = False


class WholeVersion(Struct, frozen=True):
    file: FileId
    version: VersionId


class Located(Struct, frozen=True, kw_only=True):
    """A signed GET of an object with one stored chunk in it, which begins at byte `offset`, and how
    to take it apart. Chunks with the same `url` are in the same object."""

    descriptor: Descriptor
    url: str
    expires_ns: Nanoseconds
    offset: int = 0


class LocateSeveral(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole of each of several small versions, by one request. `bundles` as in
    `LocateRequest`."""

    versions: Annotated[list[WholeVersion], Meta(min_length=1, max_length=MAX_WHOLE)]
    bundles: bool = False


class LocatedVersion(Struct, frozen=True, kw_only=True, tag="located", tag_field="type"):
    """Its manifest, and its first chunks: all of them, if there are not very many."""

    manifest: Manifest
    chunks: list[Located]


class LocateSeveralReply(Struct, kw_only=True):
    """In the order of the request."""

    found: list[LocatedVersion | AnyProblem]


class LocateReply(Struct, kw_only=True):
    chunks: list[Located]
    manifest: Manifest | None = None


# --- uploads ------------------------------------------------------------------------------------


class StartUpload(Struct, kw_only=True, forbid_unknown_fields=True):
    """Begin (or find again) the upload of version `version` of `file`. A file that does not exist
    yet is authorised by `parent`. Descriptors may be given now or later, page by page, so an
    upload can begin before the file is whole."""

    version: VersionId
    file: FileId
    parent: FileId | None = None
    base: VersionId | None = None
    descriptors: Annotated[list[Descriptor], Meta(max_length=MAX_BATCH)] = []


class StartUploads(Struct, kw_only=True, forbid_unknown_fields=True):
    uploads: Annotated[list[StartUpload], Meta(min_length=1, max_length=MAX_BATCH)]


class PresignedPut(Struct, frozen=True, kw_only=True):
    """PUT the stored object to `url` with exactly these headers before `expires_ns`."""

    url: str
    headers: dict[str, str]
    expires_ns: Nanoseconds


class ChunkTicket(Struct, frozen=True, kw_only=True):
    """The answer for one chunk: the drive has it already, or where to PUT it."""

    id: ChunkId
    state: Literal["needed", "uploaded"]
    put: PresignedPut | None = None


class UploadState(Struct, kw_only=True, tag="upload", tag_field="type"):
    version: VersionId
    status: Literal["uploading", "uploaded"]
    expires_ns: Nanoseconds
    chunks: list[ChunkTicket]


class StartUploadsReply(Struct):
    """One per upload asked for, in order."""

    uploads: list[UploadState | AnyProblem]


class BundlePart(Struct, frozen=True, array_like=True):
    """A chunk that the upload of `version` has announced, stored as it was announced there."""

    version: VersionId
    chunk: ChunkId


class StartBundle(Struct, kw_only=True, forbid_unknown_fields=True):
    """Ask to store chunks that are needed as one object (`bundle`): the parts in order, and the
    SHA-256 of the whole object, with its index."""

    parts: Annotated[list[BundlePart], Meta(min_length=1, max_length=MAX_PARTS)]
    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]


class StartBundleReply(Struct, kw_only=True):
    """`id` is that of the bundle of the parts as they were announced: another than the sender's
    own means that one of them was announced otherwise."""

    id: Annotated[bytes, Meta(min_length=32, max_length=32)]
    put: PresignedPut


class UrlsRequest(Struct, forbid_unknown_fields=True):
    descriptors: Annotated[list[Descriptor], Meta(min_length=1, max_length=MAX_BATCH)]


# --- mutations ----------------------------------------------------------------------------------


class Content(Struct, frozen=True, kw_only=True):
    """A version to make current: every chunk of `manifest` must be in the drive. `base` is the
    version the writer started from; when it is no longer current the last writer wins and the
    overtaken version stays in history."""

    version: VersionId
    base: VersionId | None = None
    manifest: Manifest


class _Op(Struct, frozen=True, kw_only=True, tag_field="op", forbid_unknown_fields=True):
    file: FileId


class Create(_Op, frozen=True, kw_only=True, tag="create"):
    """Make `file` with its first entry. A regular file comes with its content: nobody ever sees
    a placeholder."""

    parent: FileId
    name: Name
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: Nanoseconds
    rdev: int = 0
    target: str | None = None
    xattrs: dict[str, bytes] = {}
    content: Content | None = None


class Write(_Op, frozen=True, kw_only=True, tag="write"):
    """Make a new version of `file` current; `not_found` when it is in the trash."""

    content: Content
    mtime_ns: Nanoseconds


class Link(_Op, frozen=True, kw_only=True, tag="link"):
    parent: FileId
    name: Name


class Rename(_Op, frozen=True, kw_only=True, tag="rename"):
    """Move the entry (`parent`, `name`) of `file` to (`new_parent`, `new_name`). `replaces` is the
    file the sender saw at the new name; that entry is removed (its file goes to trash with its
    last link). Fails `exists` if another file is there by then."""

    parent: FileId
    name: Name
    new_parent: FileId
    new_name: Name
    replaces: FileId | None = None


class Replace(_Op, frozen=True, kw_only=True, tag="replace"):
    """A rename over a regular file that keeps the identity of the name it replaces: `target` (at
    `new_parent`/`new_name`) gets `file`'s current version, mode, owner, mtime and xattrs; the
    entry (`parent`, `name`) is removed. Editors that save by rename keep history and grants. `base`
    is the version of `target` that is meant to be replaced, if the sender says it: another one that
    is current by then is overtaken, as by a write."""

    parent: FileId
    name: Name
    new_parent: FileId
    new_name: Name
    target: FileId
    base: VersionId | None = None


class Retake(_Op, frozen=True, kw_only=True, tag="retake"):
    """Regular file `file`, called `name` in `parent`, takes the free name `new_name` there back; or
    it has both. What it holds, and its attributes, stay at `name` as the new file `backup`, which
    begins a history. Editors that rename the old version away before they make the new one keep
    history, grants and links by that."""

    parent: FileId
    name: Name
    new_name: Name
    backup: FileId


class Exchange(_Op, frozen=True, kw_only=True, tag="exchange"):
    """Swap what two names mean (RENAME_EXCHANGE)."""

    parent: FileId
    name: Name
    other: FileId
    other_parent: FileId
    other_name: Name


class Unlink(_Op, frozen=True, kw_only=True, tag="unlink"):
    """Remove one name of `file` (which must be what the name means). A directory must be empty."""

    parent: FileId
    name: Name


class SetAttr(_Op, frozen=True, kw_only=True, tag="setattr"):
    mode: int | UnsetType = UNSET
    uid: int | UnsetType = UNSET
    gid: int | UnsetType = UNSET
    mtime_ns: Nanoseconds | UnsetType = UNSET


class SetXattr(_Op, frozen=True, kw_only=True, tag="setxattr"):
    """Set extended attribute `name` (1 to 255 bytes of UTF-8) to `value` (at most 64 KiB, checked
    like a `Name`); a `value` of None removes it."""

    name: str
    value: bytes | None


class Revert(_Op, frozen=True, kw_only=True, tag="revert"):
    """Make the content of `version`, an older version of `file`, current again, as the new version
    `as_version`: history is never rewritten. Of the version that is current already, no new one is
    made. `not_found` when the file is in the trash."""

    version: VersionId
    as_version: VersionId
    mtime_ns: Nanoseconds


class Recover(_Op, frozen=True, kw_only=True, tag="recover"):
    """Put `file` back from the trash: where it was, or in `parent`, or under `name`. What a
    directory held when it was deleted is in the trash as files of their own. `not_found` when the
    directory is in the trash too, `exists` when the name is taken, `stale` when the file is not in
    the trash any more. Only for the drive's owner."""

    parent: FileId | None = None
    name: Name | None = None


Op = (
    Create
    | Write
    | Link
    | Rename
    | Replace
    | Retake
    | Exchange
    | Unlink
    | SetAttr
    | SetXattr
    | Revert
    | Recover
)


class Keyed(Struct, frozen=True, kw_only=True):
    """An operation with its idempotency key: the same key always gets the same answer."""

    key: HexId
    op: Op


class ApplyRequest(Struct, forbid_unknown_fields=True):
    """Operations applied in order, each on its own: one refusal does not stop the rest. `sent_as`:
    the devices that the sender was, under which these may have been sent before: what they were
    answered then is the answer. Of other accounts' devices, and for a token that reaches a folder
    only, it says nothing."""

    ops: Annotated[list[Keyed], Meta(min_length=1, max_length=MAX_BATCH)]
    sent_as: Annotated[list[HexId], Meta(max_length=MAX_SENT_AS)] = []


class Applied(Struct, frozen=True, kw_only=True, tag="applied", tag_field="type"):
    """Done. `overtaken` is the version that this write or replace won against, if not `base`."""

    change: Change
    overtaken: VersionId | None = None


class ApplyReply(Struct):
    results: list[Applied | AnyProblem]


class CompleteUpload(Struct, kw_only=True, forbid_unknown_fields=True):
    """Commit one upload by the operation (`create` or `write`) that carries its version."""

    key: HexId
    op: Create | Write


# --- the change feed ----------------------------------------------------------------------------


class SharedRoot(Struct, frozen=True, kw_only=True):
    """A file of another account that is shared with the caller. It appears as Shared/`owner`/`name`
    unless `name` is None: then it is below another one, and only its `role` matters. With another
    `given_ns` it was taken back and given anew: what is known of it may be old."""

    file: FileRecord
    drive: DriveId
    owner: str
    name: str | None
    role: Role
    given_ns: int = 0


class ChangesPage(Struct, kw_only=True):
    """Changes after the cursor asked with, in order within each drive, ending at `cursor`. `more`:
    ask again at once. `reset`: the cursor is of another epoch or too old; forget every listing and
    go on from here. `shared`, if it is there, is everything that is shared with the caller from now
    on: it is sent when the cursor knew otherwise, and is to be applied before `changes`. `seq` is
    of the caller's own drive."""

    cursor: str
    seq: int
    changes: list[Change]
    more: bool = False
    reset: bool = False
    shared: list[SharedRoot] | None = None


class Hint(Struct, kw_only=True, omit_defaults=True):
    """Pushed over the WebSocket. When `since` is the receiver's own cursor it may apply `changes`
    and move to `cursor`; otherwise it pulls. `seq` is of the caller's own drive."""

    since: str
    cursor: str
    seq: int
    changes: list[Change] = []
