"""The first schema: see `server.schema` for what each column means.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.String(length=32)
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("name_key", NAME, nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("quota_bytes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name_key"),
    )
    op.create_table(
        "devices",
        sa.Column("id", ID, nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_index(op.f("ix_devices_account"), "devices", ["account"], unique=False)
    op.create_table(
        "drives",
        sa.Column("id", ID, nullable=False),
        sa.Column("owner", ID, nullable=False),
        sa.Column("root", ID, nullable=False),
        sa.Column("head_seq", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.String(length=16), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["accounts.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner"),
    )
    op.create_table(
        "changes",
        sa.Column("topic", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("drive", ID, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("device", ID, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["drive"], ["drives.id"]),
        sa.PrimaryKeyConstraint("topic", "seq"),
    )
    op.create_table(
        "chunks",
        sa.Column("drive", ID, nullable=False),
        sa.Column("id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("stored_length", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("descriptor", sa.LargeBinary(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("uploaded_ns", sa.BigInteger(), nullable=True),
        sa.Column("doomed_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["drive"], ["drives.id"]),
        sa.PrimaryKeyConstraint("drive", "id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "files",
        sa.Column("id", ID, nullable=False),
        sa.Column("drive", ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("mode", sa.Integer(), nullable=False),
        sa.Column("uid", sa.BigInteger(), nullable=False),
        sa.Column("gid", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("ctime_ns", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("links", sa.Integer(), nullable=False),
        sa.Column("version", ID, nullable=True),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("rdev", sa.BigInteger(), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.Column("trashed_ns", sa.BigInteger(), nullable=True),
        sa.Column("trashed_parent", ID, nullable=True),
        sa.Column("trashed_name", NAME, nullable=True),
        sa.ForeignKeyConstraint(["drive"], ["drives.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_files_drive"), "files", ["drive"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("device", ID, nullable=False),
        sa.Column("key", ID, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.PrimaryKeyConstraint("device", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_idempotency_at_ns"), "idempotency", ["at_ns"], unique=False)
    op.create_table(
        "uploads",
        sa.Column("version", ID, nullable=False),
        sa.Column("file", ID, nullable=False),
        sa.Column("drive", ID, nullable=False),
        sa.Column("device", ID, nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.ForeignKeyConstraint(["drive"], ["drives.id"]),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_index(op.f("ix_uploads_expires_ns"), "uploads", ["expires_ns"], unique=False)
    op.create_table(
        "versions",
        sa.Column("file", ID, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("drive", ID, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=True),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("device", ID, nullable=False),
        sa.Column("base", ID, nullable=True),
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.ForeignKeyConstraint(["drive"], ["drives.id"]),
        sa.PrimaryKeyConstraint("file", "id"),
    )
    op.create_index("ix_versions_fingerprint", "versions", ["drive", "fingerprint"], unique=False)
    op.create_index(op.f("ix_versions_id"), "versions", ["id"], unique=False)
    op.create_table(
        "entries",
        sa.Column("parent", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("file", ID, nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["file"], ["files.id"]),
        sa.ForeignKeyConstraint(["parent"], ["files.id"]),
        sa.PrimaryKeyConstraint("parent", "name"),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_entries_file"), "entries", ["file"], unique=False)
    op.create_table(
        "grants",
        sa.Column("file", ID, nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("granted_by", ID, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"]),
        sa.ForeignKeyConstraint(["file"], ["files.id"]),
        sa.ForeignKeyConstraint(["granted_by"], ["accounts.id"]),
        sa.PrimaryKeyConstraint("file", "account"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_grants_account", "grants", ["account", "file"], unique=False)
    op.create_table(
        "upload_chunks",
        sa.Column("version", ID, nullable=False),
        sa.Column("drive", ID, nullable=False),
        sa.Column("chunk", sa.LargeBinary(length=32), nullable=False),
        sa.Column("descriptor", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["drive", "chunk"], ["chunks.drive", "chunks.id"]),
        sa.ForeignKeyConstraint(["version"], ["uploads.version"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version", "chunk"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_upload_chunks_chunk", "upload_chunks", ["drive", "chunk"], unique=False)
    op.create_table(
        "version_chunks",
        sa.Column("version", ID, nullable=False),
        sa.Column("drive", ID, nullable=False),
        sa.Column("chunk", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(["drive", "chunk"], ["chunks.drive", "chunks.id"]),
        sa.PrimaryKeyConstraint("version", "chunk"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_version_chunks_chunk", "version_chunks", ["drive", "chunk"], unique=False)
    op.create_table(
        "xattrs",
        sa.Column("file", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["file"], ["files.id"]),
        sa.PrimaryKeyConstraint("file", "name"),
        sqlite_with_rowid=False,
    )
