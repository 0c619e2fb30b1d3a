"""SQLAlchemy on rqlite: ``rqlite+pyrqlite://[user:password@]host:port[,host2:port2…]/[?level=linearizable]``.

The published dialect (sqlalchemy-rqlite 2.0 on pyrqlite 2.2.3) understands the same URL, but was found to

- paste parameters into the text of statements, at each ``?`` and ``:name`` that it finds there, those inside of quotes
  among them, so that ordinary values break statements and hostile ones can write them;
- raise one plain ``Error`` for all that goes wrong, where we live by ``IntegrityError``;
- wait for ever, follow only redirects that rqlite 8 does not send, and know no other node when its own is gone;
- have no way to execute several statements as one;
- ask for the interfaces of SQLAlchemy 1.

So the dialect here, under the same name, is SQLAlchemy's own for SQLite on a driver of ours. Times and dates are no
types that it can store: nothing here does.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any, Literal

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

from orama.errors import StartError
from orama.store import rqlite_driver
from orama.store.rqlite_cluster import DEFAULT_PORT, Address, Cluster

BACKEND = "rqlite"
_MORE_HOSTS = re.compile(r"(rqlite(?:\+\w+)?://(?:[^/?#]*@)?[^/?#,]*),([^/?#]*)(.*)", re.DOTALL)


class RqliteDialect(SQLiteDialect):
    """SQLite's, without what needs a connection that is a session."""

    driver = "pyrqlite"
    supports_statement_cache = True
    insert_returning = update_returning = delete_returning = False
    use_insertmanyvalues = False
    default_paramstyle = "qmark"

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        return rqlite_driver

    @classmethod
    def get_pool_class(cls, _url: URL) -> type[QueuePool]:
        return QueuePool

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        """One Cluster for all connections of an engine."""
        unknown = set(url.query) - {"host", "level"}
        if unknown:
            raise ArgumentError(f"rqlite has no option {', '.join(sorted(unknown))}")
        level = url.query.get("level", "weak")
        if level not in rqlite_driver.LEVELS:
            raise ArgumentError(f"level is one of {', '.join(rqlite_driver.LEVELS)}")
        password = None if url.password is None else str(url.password)
        return [], {"cluster": Cluster(addresses(url), url.username, password), "level": level}

    def _get_server_version_info(self, _connection: object) -> tuple[int, ...]:
        return rqlite_driver.sqlite_version_info

    def get_default_isolation_level(self, _connection: object) -> Literal["SERIALIZABLE"]:
        return "SERIALIZABLE"

    def get_isolation_level(self, _connection: object) -> Literal["SERIALIZABLE"]:
        return "SERIALIZABLE"

    def set_isolation_level(self, _connection: object, _level: object) -> None:
        pass

    def do_ping(self, _connection: object) -> bool:
        return True

    def is_disconnect(self, _error: object, _connection: object, _cursor: object) -> bool:
        """The driver connects anew by itself."""
        return False


registry.register(BACKEND, __name__, "RqliteDialect")
registry.register(f"{BACKEND}.{RqliteDialect.driver}", __name__, "RqliteDialect")


def parse(text: str) -> URL:
    """The URL *text*; rqlite's may name several nodes, separated by commas.

    :raises ArgumentError: it cannot be read.
    """
    several = _MORE_HOSTS.fullmatch(text)
    try:
        if several is None:
            return make_url(text)
        url = make_url(several[1] + several[3])
        return url.update_query_pairs([("host", host) for host in several[2].split(",")], append=True)
    except ValueError:  # a port that is none; the text holds the password
        raise ArgumentError("the URL cannot be read") from None


def addresses(url: URL) -> tuple[Address, ...]:
    """The nodes that *url* names.

    :raises ArgumentError: one of them is no host and port.
    """
    more = url.query.get("host", ())
    try:
        rest = [Address.parse(host) for host in ((more,) if isinstance(more, str) else more)]
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    return (Address(url.host or "localhost", url.port or DEFAULT_PORT), *rest)


def driver_connection(connection: Connection) -> rqlite_driver.Connection:
    """The driver's connection below *connection*."""
    found = connection.connection.dbapi_connection
    assert isinstance(found, rqlite_driver.Connection)
    return found


def check_foreign_keys(connection: Connection) -> None:
    """Each node applies every statement to its own SQLite, and one that does not mind foreign keys keeps other rows.

    :raises StartError: one runs without them.
    """
    connection.exec_driver_sql("SELECT 1")
    for address, status in driver_connection(connection).nodes():
        try:
            enforced = status["store"]["db_conf"]["fk_constraints"]
        except (LookupError, TypeError):
            continue
        if not enforced:
            raise StartError(f"database rqlite {address} does not enforce foreign keys: start rqlited with -fk")
