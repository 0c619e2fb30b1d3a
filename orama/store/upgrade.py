"""Bringing a database to the version of the tables that this program knows, and no further back.

Runs on the store's own thread inside one transaction, so that an upgrade that fails leaves nothing.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from threading import Lock

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from orama.errors import StartError

#: Alembic keeps the upgrade that runs in module globals: one at a time in a process.
_one_at_a_time = Lock()
#: Any number that nobody else takes ("orama" in ASCII): the nodes of a cluster start together.
POSTGRES_LOCK = 0x6F72616D61


def upgrade(connection: Connection) -> None:
    """Create or upgrade the tables.

    :raises StartError: a newer program has been here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK})
    with as_file(files("orama.store") / "migrations") as folder, _one_at_a_time:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.attributes["connection"] = connection
        script = ScriptDirectory.from_config(config)
        known = {revision.revision for revision in script.walk_revisions()}
        current = set(MigrationContext.configure(connection).get_current_heads())
        if current - known:
            newer = ", ".join(sorted(current - known))
            raise StartError(
                f"the database is of a newer version ({newer}) than this program knows "
                f"({script.get_current_head()}); start the newer program"
            )
        if current != set(script.get_heads()):
            command.upgrade(config, "head")
