"""Runs migrations on the connection that `db.Database.migrate` gives, inside its transaction."""

from __future__ import annotations

from alembic import context

from server.metadata.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
