"""Ids that are never free again, feeds and trash bound to their drive, the names that were shared.

Revision ID: 0007
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

from server.metadata.schema import OF_A_PART

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ID = sa.String(length=32)
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "retired",
        sa.Column("id", ID, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    _index_the_trash()
    _retire_what_is_still_spoken_of()
    _end_tokens_of_folders_that_are_gone()
    _bind_topics_to_their_drive()
    for table in ("grants", "links"):
        op.add_column(table, sa.Column("place", ID))
        op.add_column(table, sa.Column("name", NAME))
        _remember_names(table)


def _index_the_trash() -> None:
    op.drop_index(op.f("ix_files_trashed_parent"), "files")
    has_a_place = sa.text("trashed_parent IS NOT NULL")
    op.create_index(
        "ix_files_trashed_place",
        "files",
        ["drive", "trashed_parent", "trashed_ns"],
        unique=False,
        sqlite_where=has_a_place,
        postgresql_where=has_a_place,
    )


def _retire_what_is_still_spoken_of() -> None:
    """Of files that were deleted for good before, those that something still names."""
    op.execute(
        "INSERT INTO retired SELECT named.id FROM ("
        f"SELECT substr(topic, 7) AS id FROM changes WHERE {OF_A_PART}"
        " UNION SELECT folder FROM devices WHERE folder IS NOT NULL"
        " UNION SELECT trashed_parent FROM files WHERE trashed_parent IS NOT NULL"
        ") AS named WHERE named.id NOT IN (SELECT id FROM files)"
    )


def _end_tokens_of_folders_that_are_gone() -> None:
    """Also of those whose folder's id is another account's by now."""
    op.execute(
        f"UPDATE devices SET revoked_ns = {time.time_ns()}"
        " WHERE folder IS NOT NULL AND revoked_ns IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM files JOIN drives ON files.drive = drives.id"
        " WHERE files.id = devices.folder AND drives.owner = devices.account)"
    )


def _bind_topics_to_their_drive() -> None:
    """`grant/FILE` becomes `grant/DRIVE/FILE`. The table is made anew: SQLite widens no column."""
    op.drop_index("ix_changes_parts", "changes")
    op.rename_table("changes", "changes_before")
    op.create_table(
        "changes",
        sa.Column("topic", sa.String(length=80), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("drive", ID, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("device", ID, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["drive"], ["drives.id"]),
        sa.PrimaryKeyConstraint("topic", "seq"),
    )
    op.execute(
        f"INSERT INTO changes SELECT CASE WHEN {OF_A_PART}"
        " THEN 'grant/' || drive || '/' || substr(topic, 7) ELSE topic END,"
        " seq, drive, at_ns, device, payload FROM changes_before"
    )
    op.drop_table("changes_before")
    of_a_part = sa.text(OF_A_PART)
    op.create_index(
        "ix_changes_parts",
        "changes",
        ["drive", "seq"],
        unique=False,
        sqlite_where=of_a_part,
        postgresql_where=of_a_part,
    )


def _remember_names(table: str) -> None:
    """Those that have been told so far: the first in the alphabet; of what is in the trash, the
    last one that it had."""
    op.execute(
        f"UPDATE {table} SET name = (SELECT min(name) FROM entries"
        f" WHERE entries.file = {table}.file)"
    )
    op.execute(
        f"UPDATE {table} SET place = (SELECT min(parent) FROM entries"
        f" WHERE entries.file = {table}.file AND entries.name = {table}.name)"
        " WHERE name IS NOT NULL"
    )
    op.execute(
        f"UPDATE {table} SET"
        f" place = (SELECT trashed_parent FROM files WHERE files.id = {table}.file),"
        f" name = (SELECT trashed_name FROM files WHERE files.id = {table}.file)"
        " WHERE name IS NULL"
    )
