"""What Alembic runs for each upgrade: :mod:`orama.store.upgrade` hands it an open connection.

The connection is in a transaction already; whoever opened it commits. Where the statements are only to
be written down, they go to ``output``, one a call.
"""

from __future__ import annotations

from alembic import context

from orama.store.tables import metadata

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    target_metadata=metadata,
    output_buffer=attributes.get("output"),
)
with context.begin_transaction():
    context.run_migrations()
