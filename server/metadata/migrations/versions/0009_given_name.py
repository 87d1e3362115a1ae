"""The name by which a file was given out, as it was then.

Revision ID: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ID = sa.String(length=32)
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Of what was given out before, nobody knows what it was called then: null."""
    for table in ("grants", "links"):
        op.add_column(table, sa.Column("given_place", ID))
        op.add_column(table, sa.Column("given_name", NAME))
