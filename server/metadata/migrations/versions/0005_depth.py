"""How far the directories below each reach, and when something was last moved in a drive.

Revision ID: 0005
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    added: dict[str, list[sa.Column[Any]]] = {
        "files": [
            sa.Column("below_levels", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("below_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        ],
        "drives": [sa.Column("moved_seq", sa.BigInteger(), nullable=False, server_default="0")],
    }
    for table, columns in added.items():
        for column in columns:
            op.add_column(table, column)
    _fill()


def _fill() -> None:
    """How far the directories below each reach, from the entries there are; written out here, since
    a migration speaks of the tables as they were."""
    conn = op.get_bind()
    held = {
        file: (parent, len(name.encode()))
        for file, parent, name in conn.execute(
            sa.text(
                "SELECT entries.file, entries.parent, entries.name FROM entries"
                " JOIN files ON files.id = entries.file WHERE files.kind = 'directory'"
            )
        )
    }
    inner: dict[str, int] = {}
    for parent, _ in held.values():
        inner[parent] = inner.get(parent, 0) + 1
    below: dict[str, tuple[int, int]] = {}
    ready = [file for file in held if file not in inner]
    while ready:  # from the innermost outward: a directory is ready when all in it are done
        file = ready.pop()
        if file not in held:
            continue
        parent, length = held[file]
        levels, size = below.get(file, (0, 0))
        known = below.get(parent, (0, 0))
        below[parent] = (max(known[0], levels + 1), max(known[1], size + 1 + length))
        inner[parent] -= 1
        if not inner[parent]:
            ready.append(parent)
    if below:
        deepen = sa.text(
            "UPDATE files SET below_levels = :levels, below_bytes = :size WHERE id = :id"
        )
        rows = [{"id": id, "levels": each[0], "size": each[1]} for id, each in below.items()]
        conn.execute(deepen, rows)
