"""The tables, with the meaning of every column.

Knows: names, types, keys and indexes. Must not know: who reads or writes them, SQLite or
PostgreSQL. The migrations must produce exactly this (a test compares them).

Conventions: ids of accounts, devices, drives, files and versions are 32 hex digits; chunk ids and
hashes are raw bytes; `*_ns` are nanoseconds since 1970 UTC; text compares by code point, as SQLite
does by itself and PostgreSQL does with collation "C".

Invariants:
- A drive's rows in `changes` have consecutive `seq`, and `drives.head_seq` is the last of them.
- `files.links` is the number of `entries` rows naming the file (1 for a drive's root, which has
  none); 0 exactly when `trashed_ns` is set.
- A directory's `below_levels` is at least one more than that of each directory in it; its
  `below_bytes` likewise with the name there and a slash.
- No id is in `files` and in `retired`.
- A chunk with a `bundle` is `uploaded`, `doomed` or `deleting`, or `pending` because the object was
  not there when it was looked at; and the bundle has a row.
- A `versions` row with status `uploaded` has all its chunks in `version_chunks`, and each of those
  in `chunks` with state `uploaded`.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    event,
    text,
)

metadata = MetaData()

Id = String(32)
Name = Text().with_variant(Text(collation="C"), "postgresql")

accounts = Table(
    "accounts",
    metadata,
    Column("id", Id, primary_key=True),
    # As the person writes it, and how it appears under Shared/.
    Column("name", Name, nullable=False),
    # The name case-folded: two accounts never differ by case only.
    Column("name_key", Name, nullable=False, unique=True),
    # Argon2id in PHC string format.
    Column("password", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    # Upper limit of drives.used_bytes + reserved_bytes; null: none.
    Column("quota_bytes", BigInteger),
    # How long, and at least how many, overwritten versions of a file are kept, and how long the
    # trash is; null: as the server's settings say.
    Column("keep_days", Integer),
    Column("keep_versions", Integer),
    # Since when it is refused everywhere; null: it is not.
    Column("locked_ns", BigInteger),
    # When it was removed: locked for good, its drive emptied, its name given to nobody; null: it
    # was not.
    Column("removed_ns", BigInteger),
)

devices = Table(
    "devices",
    metadata,
    Column("id", Id, primary_key=True),
    Column("account", Id, ForeignKey("accounts.id"), nullable=False, index=True),
    # What the person called it at login; shown in histories.
    Column("name", Text, nullable=False),
    # SHA-256 of the 256-bit random token: a copy of the database logs nobody in.
    Column("token_sha256", LargeBinary(32), nullable=False, unique=True),
    # "full" or "read".
    Column("scope", String(16), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    # From then on the token is refused; null: never.
    Column("expires_ns", BigInteger),
    # When it was revoked; null: it was not.
    Column("revoked_ns", BigInteger),
    # The token reaches this directory and what is below it, and nothing else; null: everything its
    # account reaches. No foreign key: when the directory is deleted for good the token is revoked,
    # and the row stays.
    Column("folder", Id, index=True),
    # After a rotation: the token before, which is good until then; 0: the new one has been used,
    # and who still has this one has a copy.
    Column("old_sha256", LargeBinary(32), unique=True, index=True),
    Column("old_until_ns", BigInteger),
    # About when it was last used (to the hour).
    Column("seen_ns", BigInteger),
    # With a `folder`: drives.head_seq when the token was made. Changes up to it are not told.
    Column("since_seq", BigInteger, nullable=False, server_default=text("0")),
)

drives = Table(
    "drives",
    metadata,
    Column("id", Id, primary_key=True),
    Column("owner", Id, ForeignKey("accounts.id"), nullable=False, unique=True),
    # files.id of the directory everything hangs from. No foreign key: each row needs the other.
    Column("root", Id, nullable=False),
    # Sequence number of the drive's last change. Its row lock orders the drive's commits.
    Column("head_seq", BigInteger, nullable=False),
    # Random; made anew when the database is restored from a backup, so that old cursors are
    # recognised.
    Column("epoch", String(16), nullable=False),
    # Sum of chunks.stored_length over the drive's chunks that are uploaded or doomed.
    Column("used_bytes", BigInteger, nullable=False),
    # The same sum over those that are pending: room promised to uploads.
    Column("reserved_bytes", BigInteger, nullable=False, server_default=text("0")),
    # Changes up to this sequence number have been pruned: an older cursor is answered `reset`.
    Column("floor_seq", BigInteger, nullable=False, server_default=text("0")),
    # The part of reserved_bytes that is of chunks.unshown.
    Column("unshown_bytes", BigInteger, nullable=False, server_default=text("0")),
    # How many chunks are pending and not unshown.
    Column("promised_chunks", BigInteger, nullable=False, server_default=text("0")),
    # Sequence number of the last change after which something was below another directory than
    # before. What is below what is worked out once for each (changes.nesting).
    Column("moved_seq", BigInteger, nullable=False, server_default=text("0")),
)

files = Table(
    "files",
    metadata,
    Column("id", Id, primary_key=True),
    Column("drive", Id, ForeignKey("drives.id"), nullable=False, index=True),
    # wire.Kind.
    Column("kind", String(16), nullable=False),
    # Permission bits (07777) only.
    Column("mode", Integer, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("gid", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    # Server clock at the last change of anything about the file.
    Column("ctime_ns", BigInteger, nullable=False),
    # Bytes of the current version, or of the symlink's target.
    Column("size", BigInteger, nullable=False),
    Column("links", Integer, nullable=False),
    # Current version of a regular file.
    Column("version", Id),
    # What a symlink points to.
    Column("target", Text),
    Column("rdev", BigInteger, nullable=False),
    # drives.head_seq of the last change to this row.
    Column("rev", BigInteger, nullable=False),
    # When the last entry went; null while the file is in the tree.
    Column("trashed_ns", BigInteger),
    # Where that last entry was, for putting it back. Null although trashed: there is nothing to
    # put back, because the content went on as another file's (a Replace).
    Column("trashed_parent", Id),
    Column("trashed_name", Name),
    # Of a symlink that somebody made who does not own the drive whole: ids.mark_of the topmost
    # directory that they reached then. Null: its owner made it, or it is from before this was kept.
    Column("made_under", LargeBinary(8)),
    # The files of a drive that have several names.
    Index(
        "ix_files_linked",
        "drive",
        sqlite_where=text("links > 1"),
        postgresql_where=text("links > 1"),
    ),
    # How far the directories below a directory reach at most: levels, and bytes of the longest path
    # from it, a slash before each name (drive.depth). 0 for all else.
    Column("below_levels", Integer, nullable=False, server_default=text("0")),
    Column("below_bytes", BigInteger, nullable=False, server_default=text("0")),
    # The trash of a drive by time; nothing of a file in the tree is in it.
    Index(
        "ix_files_trash",
        "drive",
        "trashed_ns",
        sqlite_where=text("trashed_ns IS NOT NULL"),
        postgresql_where=text("trashed_ns IS NOT NULL"),
    ),
    # What was deleted from a directory of the drive.
    Index(
        "ix_files_trashed_place",
        "drive",
        "trashed_parent",
        "trashed_ns",
        sqlite_where=text("trashed_parent IS NOT NULL"),
        postgresql_where=text("trashed_parent IS NOT NULL"),
    ),
)

retired = Table(
    "retired",
    metadata,
    # files.id of a file that was deleted for good. Rows stay: what once named a file may still be
    # written down somewhere, and must never mean another one.
    Column("id", Id, primary_key=True),
    sqlite_with_rowid=False,
)

entries = Table(
    "entries",
    metadata,
    Column("parent", Id, ForeignKey("files.id"), nullable=False),
    Column("name", Name, nullable=False),
    Column("file", Id, ForeignKey("files.id"), nullable=False, index=True),
    # drives.head_seq of the change that gave the name this meaning.
    Column("rev", BigInteger, nullable=False),
    # accounts.id of who made it without owning the drive whole (a grantee; a token for a single
    # folder). Null: the owner did, or it is from before this was kept.
    Column("made_by", Id),
    PrimaryKeyConstraint("parent", "name"),
    sqlite_with_rowid=False,
)

xattrs = Table(
    "xattrs",
    metadata,
    Column("file", Id, ForeignKey("files.id"), nullable=False),
    Column("name", Name, nullable=False),
    Column("value", LargeBinary, nullable=False),
    PrimaryKeyConstraint("file", "name"),
    sqlite_with_rowid=False,
)

versions = Table(
    "versions",
    metadata,
    # No foreign key: a file may be born by the commit of its first version. A version is in the
    # history of more than one file after a Replace.
    Column("file", Id, nullable=False),
    # Chosen by the client.
    Column("id", Id, nullable=False, index=True),
    Column("drive", Id, ForeignKey("drives.id"), nullable=False),
    # "uploading" or "uploaded".
    Column("status", String(16), nullable=False),
    Column("size", BigInteger, nullable=False),
    # MessagePack of content.Manifest; null while uploading.
    Column("manifest", LargeBinary),
    # content.fingerprint of the manifest; null while uploading.
    Column("fingerprint", LargeBinary(32)),
    Column("mtime_ns", BigInteger, nullable=False),
    # Server clock at begin of the upload, then at commit.
    Column("created_ns", BigInteger, nullable=False),
    Column("device", Id, ForeignKey("devices.id"), nullable=False),
    # The version the writer started from; null: none.
    Column("base", Id),
    # When another version became the file's current one; null: it is the current one.
    Column("superseded_ns", BigInteger),
    # The older version of the file that this one brought back; null: it came from a writer.
    Column("restored_from", Id),
    PrimaryKeyConstraint("file", "id"),
    Index("ix_versions_fingerprint", "drive", "fingerprint"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("drive", Id, ForeignKey("drives.id"), nullable=False),
    Column("id", LargeBinary(32), nullable=False),
    # "pending": somebody may be uploading it. "uploaded": the object is in the blob store.
    # "doomed": garbage collection found no reference and will delete it unless revived.
    # "deleting": the object is being deleted: as good as gone, and to be uploaded again.
    Column("state", String(16), nullable=False),
    # Plain bytes.
    Column("length", BigInteger, nullable=False),
    # Bytes and SHA-256 of the stored object, as `descriptor` says.
    Column("stored_length", BigInteger, nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),
    # MessagePack of content.Descriptor: of the stored object once uploaded, of the first promise
    # before that.
    Column("descriptor", LargeBinary, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("uploaded_ns", BigInteger),
    Column("doomed_ns", BigInteger),
    # devices.id of who uploaded it: the only one that is given it before it is verified.
    Column("device", Id),
    # When the stored object was read back and found to be what `id` says; null: not yet.
    Column("verified_ns", BigInteger),
    # 1: pending, and only who does not own the drive has asked for it: what it takes is counted by
    # what they asked for (`uploaders`), which must not depend on what the drive has.
    Column("unshown", Integer, nullable=False, server_default=text("0")),
    # bundles.id of the object that it is part of, and where its stored bytes begin there; null: it
    # is an object of its own, or is not stored. Of a pending chunk: where it was, to be looked for.
    Column("bundle", LargeBinary(32)),
    Column("bundle_offset", BigInteger),
    # 1: beside its place in a bundle it stands alone too, as a copy for those who may not read its
    # neighbours.
    Column("copied", Integer, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("drive", "id"),
    Index(
        "ix_chunks_bundle",
        "drive",
        "bundle",
        sqlite_where=text("bundle IS NOT NULL"),
        postgresql_where=text("bundle IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
)

bundles = Table(
    "bundles",
    metadata,
    # A stored object with several small chunks in it. A row is there once the object is, and until
    # after it was deleted.
    Column("drive", Id, ForeignKey("drives.id"), nullable=False),
    # bundle.Bundle.id; never that of a chunk.
    Column("id", LargeBinary(32), nullable=False),
    # Bytes of the object: all that was ever in it, and its index.
    Column("length", BigInteger, nullable=False),
    # Of the object.
    Column("sha256", LargeBinary(32), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    # Since when no chunk is in it; null: some are. It is deleted when every URL has expired that
    # was signed before.
    Column("emptied_ns", BigInteger),
    # 1: the object is being deleted. No chunk may be put into it.
    Column("deleting", Integer, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("drive", "id"),
    sqlite_with_rowid=False,
)

version_chunks = Table(
    "version_chunks",
    metadata,
    # versions.id; what locate authorises by and garbage collection counts by.
    Column("version", Id, nullable=False),
    Column("drive", Id, nullable=False),
    Column("chunk", LargeBinary(32), nullable=False),
    PrimaryKeyConstraint("version", "chunk"),
    ForeignKeyConstraint(["drive", "chunk"], ["chunks.drive", "chunks.id"]),
    Index("ix_version_chunks_chunk", "drive", "chunk"),
    sqlite_with_rowid=False,
)

uploads = Table(
    "uploads",
    metadata,
    Column("version", Id, primary_key=True),
    Column("file", Id, nullable=False),
    Column("drive", Id, ForeignKey("drives.id"), nullable=False),
    Column("device", Id, ForeignKey("devices.id"), nullable=False, index=True),
    Column("created_ns", BigInteger, nullable=False),
    # From then on the session is unknown and its leases protect nothing. Moved on by every use.
    Column("expires_ns", BigInteger, nullable=False, index=True),
)

uploaders = Table(
    "uploaders",
    metadata,
    # What one uploader has under way in a drive; there is a row while there are sessions.
    Column("drive", Id, ForeignKey("drives.id"), nullable=False),
    # accounts.id whose sessions these are; of a token for a single folder, its devices.id.
    Column("holder", Id, nullable=False),
    # How many there are in `uploads`.
    Column("sessions", BigInteger, nullable=False),
    # How many of their leases in `upload_chunks` are not proven, and the plain bytes of those.
    Column("asked_chunks", BigInteger, nullable=False),
    Column("asked_bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("drive", "holder"),
    sqlite_with_rowid=False,
)

upload_chunks = Table(
    "upload_chunks",
    metadata,
    # A row is a lease: the chunk must not be collected while the session lives.
    Column("version", Id, ForeignKey("uploads.version", ondelete="CASCADE"), nullable=False),
    Column("drive", Id, nullable=False),
    Column("chunk", LargeBinary(32), nullable=False),
    # MessagePack of this uploader's content.Descriptor where it stores the chunk otherwise than
    # chunks.descriptor says (another compressor); null: the same.
    Column("descriptor", LargeBinary),
    # 1: the uploader has shown that it has the bytes, or may know that they are there. Only then
    # may a version refer to the chunk. Always 1 for the drive's owner.
    Column("proven", Integer, nullable=False, server_default=text("1")),
    PrimaryKeyConstraint("version", "chunk"),
    ForeignKeyConstraint(["drive", "chunk"], ["chunks.drive", "chunks.id"]),
    Index("ix_upload_chunks_chunk", "drive", "chunk"),
    sqlite_with_rowid=False,
)

# Of rows in `changes`: in a grant topic. Written literally, so that the index is used.
OF_A_PART = "topic > 'grant/'"

changes = Table(
    "changes",
    metadata,
    # "drive/ID" for its owner's devices; "grant/DRIVE/FILE" for the grantees of a shared file and
    # for tokens of a single folder, whose `payload` tells only what is at or below that file.
    Column("topic", String(80), nullable=False),
    # drives.head_seq of the drive the change is of: consecutive in a drive topic, with gaps in a
    # grant topic.
    Column("seq", BigInteger, nullable=False),
    Column("drive", Id, ForeignKey("drives.id"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    # devices.id of who made it.
    Column("device", Id, nullable=False),
    # MessagePack of wire.Change.
    Column("payload", LargeBinary, nullable=False),
    PrimaryKeyConstraint("topic", "seq"),
    # For pruning the grant topics of a drive; it costs nothing where nothing is shared.
    Index(
        "ix_changes_parts",
        "drive",
        "seq",
        sqlite_where=text(OF_A_PART),
        postgresql_where=text(OF_A_PART),
    ),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("device", Id, ForeignKey("devices.id"), nullable=False),
    # Chosen by the client for one operation.
    Column("key", Id, nullable=False),
    Column("at_ns", BigInteger, nullable=False, index=True),
    # MessagePack of the answer: wire.Applied or a Problem that will not change.
    Column("result", LargeBinary, nullable=False),
    PrimaryKeyConstraint("device", "key"),
    sqlite_with_rowid=False,
)

grants = Table(
    "grants",
    metadata,
    Column("file", Id, ForeignKey("files.id"), nullable=False),
    Column("account", Id, ForeignKey("accounts.id"), nullable=False),
    # "editor" or "viewer".
    Column("role", String(16), nullable=False),
    # accounts.id of who gave it.
    Column("granted_by", Id, ForeignKey("accounts.id"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    # drives.head_seq when it was given. Changes up to it are not told: what left before is not the
    # grantee's to know.
    Column("since_seq", BigInteger, nullable=False, server_default=text("0")),
    # The entry that was shared (a directory and a name in it), wherever it was moved since; once it
    # is gone, where it was last. Of the file's names this one alone is told. Null: not known.
    Column("place", Id),
    Column("name", Name),
    # The same entry as it was when it was shared. Null: not known.
    Column("given_place", Id),
    Column("given_name", Name),
    PrimaryKeyConstraint("file", "account"),
    Index("ix_grants_account", "account", "file"),
    # What is shared of a drive: its owner has given all of it.
    Index("ix_grants_given", "granted_by", "file"),
    sqlite_with_rowid=False,
)

links = Table(
    "links",
    metadata,
    Column("id", Id, primary_key=True),
    # SHA-256 of the secret part of the URL, which is shown once.
    Column("secret_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("file", Id, ForeignKey("files.id"), nullable=False, index=True),
    Column("drive", Id, ForeignKey("drives.id"), nullable=False, index=True),
    # accounts.id of who made it.
    Column("created_by", Id, ForeignKey("accounts.id"), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    # From then on the link is unknown; null: never.
    Column("expires_ns", BigInteger),
    # Argon2id in PHC string format; null: none is asked for.
    Column("password", Text),
    # How many downloads may be begun in all; null: any number.
    Column("max_downloads", Integer),
    Column("downloads", Integer, nullable=False),
    Column("revoked_ns", BigInteger),
    # As in `grants`: the entry that the link was made to, as it is and as it was then.
    Column("place", Id),
    Column("name", Name),
    Column("given_place", Id),
    Column("given_name", Name),
)

audit = Table(
    "audit",
    metadata,
    # The order in which things happened. Rows are never changed or deleted (triggers refuse).
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at_ns", BigInteger, nullable=False, index=True),
    # accounts.id and devices.id of who did it; null: an operator, or the server by itself.
    Column("account", Id, index=True),
    Column("device", Id),
    # What was done: an operation's tag, or one of audit.Action.
    Column("action", String(32), nullable=False),
    # The file, grantee, link, device or account that it was done to.
    Column("subject", String(64)),
    # JSON object with the rest, never a secret.
    Column("detail", Text, nullable=False),
)

# For SQLite; elsewhere the server's role is not given these rights (docs/admin-guide.md).
AUDIT_IS_APPEND_ONLY = tuple(
    f"CREATE TRIGGER audit_no_{what.lower()} BEFORE {what} ON audit"
    " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    for what in ("UPDATE", "DELETE")
)

for _statement in AUDIT_IS_APPEND_ONLY:
    event.listen(audit, "after_create", DDL(_statement).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]
