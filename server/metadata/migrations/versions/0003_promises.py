"""Sums of what is promised to uploads, kept instead of computed.

Revision ID: 0003
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.String(length=32)


def upgrade() -> None:
    _add_columns()
    _add_tables()
    _fill()


def _add_columns() -> None:
    added: dict[str, list[sa.Column[Any]]] = {
        "drives": [
            sa.Column("unshown_bytes", sa.BigInteger(), nullable=False, server_default="0"),
            sa.Column("promised_chunks", sa.BigInteger(), nullable=False, server_default="0"),
        ],
        "chunks": [sa.Column("unshown", sa.Integer(), nullable=False, server_default="0")],
    }
    for table, columns in added.items():
        for column in columns:
            op.add_column(table, column)
    op.create_index(op.f("ix_uploads_device"), "uploads", ["device"], unique=False)


def _add_tables() -> None:
    op.create_table(
        "uploaders",
        sa.Column("drive", ID, nullable=False),
        sa.Column("holder", ID, nullable=False),
        sa.Column("sessions", sa.BigInteger(), nullable=False),
        sa.Column("asked_chunks", sa.BigInteger(), nullable=False),
        sa.Column("asked_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["drive"], ["drives.id"]),
        sa.PrimaryKeyConstraint("drive", "holder"),
        sqlite_with_rowid=False,
    )


_LEASED = (
    "EXISTS (SELECT 1 FROM upload_chunks WHERE upload_chunks.drive = chunks.drive"
    " AND upload_chunks.chunk = chunks.id AND upload_chunks.proven {})"
)
_PENDING = "FROM chunks WHERE chunks.drive = drives.id AND chunks.state = 'pending'"


def _fill() -> None:
    """The sums over rows that were there before."""
    op.execute(
        "UPDATE chunks SET unshown = 1 WHERE state = 'pending'"
        f" AND {_LEASED.format('= 0')} AND NOT {_LEASED.format('<> 0')}"
    )
    op.execute(
        "UPDATE drives SET unshown_bytes ="
        f" (SELECT COALESCE(SUM(stored_length), 0) {_PENDING} AND chunks.unshown = 1),"
        f" promised_chunks = (SELECT COUNT(*) {_PENDING} AND chunks.unshown = 0)"
    )
    op.execute(
        "INSERT INTO uploaders (drive, holder, sessions, asked_chunks, asked_bytes)"
        " SELECT uploads.drive, CASE WHEN devices.folder IS NULL THEN devices.account"
        " ELSE devices.id END, COUNT(*), COALESCE(SUM(asked.chunks), 0),"
        " COALESCE(SUM(asked.bytes), 0)"
        " FROM uploads JOIN devices ON devices.id = uploads.device LEFT JOIN"
        " (SELECT upload_chunks.version, COUNT(*) AS chunks, SUM(chunks.length) AS bytes"
        " FROM upload_chunks JOIN chunks ON chunks.drive = upload_chunks.drive"
        " AND chunks.id = upload_chunks.chunk WHERE upload_chunks.proven = 0"
        " GROUP BY upload_chunks.version) AS asked ON asked.version = uploads.version"
        " GROUP BY 1, 2"
    )
