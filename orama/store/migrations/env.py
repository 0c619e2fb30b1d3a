"""What Alembic runs for each upgrade: :mod:`orama.store.upgrade` hands it an open connection.

The connection is in a transaction already; whoever opened it commits.
"""

from __future__ import annotations

from alembic import context

from orama.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
