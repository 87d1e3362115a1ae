"""Who made a name, and under what a symlink was made.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of names and symlinks that are there nobody knows who made them: null, as if the owner had.
    Nothing of them is taken away; `shares` tells which names reach further."""
    op.add_column("entries", sa.Column("made_by", sa.String(length=32)))
    op.add_column("files", sa.Column("made_under", sa.LargeBinary(length=8)))
    several = sa.text("links > 1")
    op.create_index(
        "ix_files_linked",
        "files",
        ["drive"],
        unique=False,
        sqlite_where=several,
        postgresql_where=several,
    )
