"""Accounts can be locked and removed.

Revision ID: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("accounts", sa.Column("locked_ns", sa.BigInteger()))
    op.add_column("accounts", sa.Column("removed_ns", sa.BigInteger()))
