"""Objects with several small chunks in them.

Revision ID: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ID = sa.String(length=32)
HASH = sa.LargeBinary(length=32)
NONE = sa.text("0")
IN_ONE = sa.text("bundle IS NOT NULL")


def upgrade() -> None:
    """Everything stored before stands alone."""
    op.add_column("chunks", sa.Column("bundle", HASH))
    op.add_column("chunks", sa.Column("bundle_offset", sa.BigInteger))
    op.add_column("chunks", sa.Column("copied", sa.Integer, nullable=False, server_default=NONE))
    op.create_index(
        "ix_chunks_bundle",
        "chunks",
        ["drive", "bundle"],
        sqlite_where=IN_ONE,
        postgresql_where=IN_ONE,
    )
    op.create_table(
        "bundles",
        sa.Column("drive", ID, sa.ForeignKey("drives.id"), nullable=False),
        sa.Column("id", HASH, nullable=False),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("sha256", HASH, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("emptied_ns", sa.BigInteger),
        sa.Column("deleting", sa.Integer, nullable=False, server_default=NONE),
        sa.PrimaryKeyConstraint("drive", "id"),
        sqlite_with_rowid=False,
    )
