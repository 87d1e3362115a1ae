"""Links, audit, retention, quota reservations, verification, scoped and rotated tokens.

Revision ID: 0002
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from server.metadata.schema import AUDIT_IS_APPEND_ONLY, OF_A_PART

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.String(length=32)


def upgrade() -> None:
    _add_columns()
    _add_tables()
    _fill()


def _add_columns() -> None:
    added: dict[str, list[sa.Column[Any]]] = {
        "accounts": [
            sa.Column("keep_days", sa.Integer()),
            sa.Column("keep_versions", sa.Integer()),
        ],
        "devices": [
            sa.Column("folder", ID),
            sa.Column("old_sha256", sa.LargeBinary(length=32)),
            sa.Column("old_until_ns", sa.BigInteger()),
            sa.Column("seen_ns", sa.BigInteger()),
            sa.Column("since_seq", sa.BigInteger(), nullable=False, server_default="0"),
        ],
        "drives": [
            sa.Column("reserved_bytes", sa.BigInteger(), nullable=False, server_default="0"),
            sa.Column("floor_seq", sa.BigInteger(), nullable=False, server_default="0"),
        ],
        "versions": [
            sa.Column("superseded_ns", sa.BigInteger()),
            sa.Column("restored_from", ID),
        ],
        "chunks": [sa.Column("device", ID), sa.Column("verified_ns", sa.BigInteger())],
        "grants": [sa.Column("since_seq", sa.BigInteger(), nullable=False, server_default="0")],
        "upload_chunks": [
            sa.Column("proven", sa.Integer(), nullable=False, server_default="1"),
        ],
    }
    for table, columns in added.items():
        for column in columns:
            op.add_column(table, column)
    op.create_index(op.f("ix_devices_folder"), "devices", ["folder"], unique=False)
    op.create_index(op.f("ix_devices_old_sha256"), "devices", ["old_sha256"], unique=True)
    op.create_index(op.f("ix_files_trashed_parent"), "files", ["trashed_parent"], unique=False)
    in_trash = sa.text("trashed_ns IS NOT NULL")
    op.create_index(
        "ix_files_trash",
        "files",
        ["drive", "trashed_ns"],
        unique=False,
        sqlite_where=in_trash,
        postgresql_where=in_trash,
    )
    of_a_part = sa.text(OF_A_PART)
    op.create_index(
        "ix_changes_parts",
        "changes",
        ["drive", "seq"],
        unique=False,
        sqlite_where=of_a_part,
        postgresql_where=of_a_part,
    )


def _add_tables() -> None:
    op.create_table(
        "links",
        sa.Column("id", ID, nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("file", ID, nullable=False),
        sa.Column("drive", ID, nullable=False),
        sa.Column("created_by", ID, nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger()),
        sa.Column("password", sa.Text()),
        sa.Column("max_downloads", sa.Integer()),
        sa.Column("downloads", sa.Integer(), nullable=False),
        sa.Column("revoked_ns", sa.BigInteger()),
        sa.ForeignKeyConstraint(["created_by"], ["accounts.id"]),
        sa.ForeignKeyConstraint(["drive"], ["drives.id"]),
        sa.ForeignKeyConstraint(["file"], ["files.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("secret_sha256"),
    )
    op.create_index(op.f("ix_links_file"), "links", ["file"], unique=False)
    op.create_index(op.f("ix_links_drive"), "links", ["drive"], unique=False)
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("account", ID),
        sa.Column("device", ID),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=64)),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_audit_account"), "audit", ["account"], unique=False)
    op.create_index(op.f("ix_audit_at_ns"), "audit", ["at_ns"], unique=False)
    if op.get_bind().dialect.name == "sqlite":
        for statement in AUDIT_IS_APPEND_ONLY:
            op.execute(statement)


def _fill() -> None:
    """What the new columns say of rows that were there before."""
    op.execute(
        "UPDATE versions SET superseded_ns = created_ns WHERE status = 'uploaded' AND NOT EXISTS"
        " (SELECT 1 FROM files WHERE files.id = versions.file AND files.version = versions.id)"
    )
    op.execute(
        "UPDATE drives SET reserved_bytes = (SELECT COALESCE(SUM(stored_length), 0) FROM chunks"
        " WHERE chunks.drive = drives.id AND chunks.state = 'pending')"
    )
