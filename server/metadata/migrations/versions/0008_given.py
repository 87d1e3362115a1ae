"""What is shared of a drive is found without looking at each of its files.

Revision ID: 0008
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_grants_given", "grants", ["granted_by", "file"], unique=False)
