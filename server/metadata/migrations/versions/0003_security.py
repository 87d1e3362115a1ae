"""Accounts can be locked and removed.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("accounts", sa.Column("locked_ns", sa.BigInteger()))
    op.add_column("accounts", sa.Column("removed_ns", sa.BigInteger()))
