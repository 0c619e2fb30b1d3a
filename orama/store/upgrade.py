"""Bringing a database to the version of the tables that this program knows, and no further back.

An upgrade that fails or is cut off leaves nothing: on SQLite and PostgreSQL it is one transaction on the store's own
thread. rqlite has none that stays open, so Alembic writes the statements down there, and they are sent as one request
that rqlite executes wholly or not at all. Programs that start together wait for each other: SQLite and PostgreSQL by a
lock; on rqlite the request begins with a statement that fails unless the version still is what the others are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from threading import Lock

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from orama.errors import StartError
from orama.store import rqlite

#: Alembic keeps the upgrade that runs in module globals: one at a time in a process.
_one_at_a_time = Lock()
#: Any number that nobody else takes ("orama" in ASCII): the nodes of a cluster start together.
POSTGRES_LOCK = 0x6F72616D61
#: Fails (version_num is NOT NULL) unless the version is what is put in.
_GUARD = (
    "INSERT INTO alembic_version (version_num) SELECT NULL "
    "WHERE NOT EXISTS (SELECT 1 FROM alembic_version WHERE version_num = '{}')"
)


def upgrade(connection: Connection) -> None:
    """Create or upgrade the tables.

    :raises StartError: a newer program has been here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK})
    with _configured(connection) as config:
        script = ScriptDirectory.from_config(config)
        while (current := _version(connection, script)) != script.get_current_head():
            if not isinstance(connection.dialect, rqlite.RqliteDialect):
                command.upgrade(config, "head")
                return
            try:
                _execute(connection, statements(config, current))
            except OperationalError:
                raise
            except DBAPIError:
                connection.rollback()
                if _version(connection, script) == current:
                    raise  # otherwise another node was faster
            else:
                return


def statements(config: Config, version: str | None) -> list[str]:
    """What leads from *version* (None: an empty database) to the head, written down."""
    output = _Statements()
    config.attributes["output"] = output
    command.upgrade(config, f"{version or 'base'}:head", sql=True)
    guard = [] if version is None else [_GUARD.format(version)]
    return guard + output.taken


class _Statements:
    """What Alembic takes for a file: it writes one statement, or one comment, at a time."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def write(self, written: str) -> None:
        statement = written.strip().removesuffix(";")
        if statement and not statement.startswith("--"):
            self.taken.append(statement)

    def flush(self) -> None:
        pass


@contextmanager
def _configured(connection: Connection) -> Iterator[Config]:
    with as_file(files("orama.store") / "migrations") as folder, _one_at_a_time:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.attributes["connection"] = connection
        yield config


def _version(connection: Connection, script: ScriptDirectory) -> str | None:
    """The version of the database; None when it is empty."""
    known = {revision.revision for revision in script.walk_revisions()}
    current = set(MigrationContext.configure(connection).get_current_heads())
    if current - known:
        newer = ", ".join(sorted(current - known))
        raise StartError(
            f"the database is of a newer version ({newer}) than this program knows "
            f"({script.get_current_head()}); start the newer program"
        )
    return next(iter(current), None)


def _execute(connection: Connection, script: list[str]) -> None:
    """All of *script*, or nothing."""
    rqlite.driver_connection(connection).gather()
    for statement in script:
        connection.exec_driver_sql(statement)
    connection.commit()
