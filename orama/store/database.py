"""The database: plain functions of a SQLAlchemy ``Connection``, run on threads of its own.

Nothing above ever holds a connection, and the reactor's own thread pool, which resolves names, is
left alone. What is to hold on every database is written by ``write``: statements that are executed all
or not at all. A function given to ``transact`` runs in one transaction (it returns and is committed, or
raises and has done nothing) on SQLite and PostgreSQL only; on rqlite each of its statements stands for
itself. SQLite runs in WAL mode, so that readers and the one writer do not wait for each other.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, Executable, create_engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import StaticPool
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from orama.errors import StartError, Unavailable
from orama.store import rqlite
from orama.store.upgrade import upgrade

#: Threads, and connections: each thread holds at most one.
POOL_SIZE = 4
#: How long SQLite waits for another writer, milliseconds.
BUSY_TIMEOUT = 10_000
#: How long to wait for a PostgreSQL server that does not answer: seconds to connect, milliseconds for what was sent.
_POSTGRES = {"connect_timeout": 10, "tcp_user_timeout": 10_000, "keepalives_idle": 5, "keepalives_interval": 2}
#: SQLSTATE classes of a server that goes away, starts, or has no room: it may be asked again.
_AWAY_STATES = ("08", "53", "57P")
#: While connecting there is no SQLSTATE. What a server says that answers, and when it only has to be given time.
_REFUSED = "FATAL:"
_SOON = ("starting up", "shutting down", "recovery", "not yet accepting", "too many", "connection slots")
#: SQLSTATE of a transaction that lost against another and can begin anew: serialization failure, deadlock.
_AT_ODDS = ("40001", "40P01")
#: How often a transaction begins that loses, and the mean pause before the second time, seconds; it doubles.
_WRITE_ATTEMPTS, _WRITE_PAUSE = 20, 0.005
#: Execution option of a connection that only reads.
_READS = "orama_reads"

T = TypeVar("T")
_chance = random.SystemRandom()
_log = Logger()


class Database:
    """:param url: any SQLAlchemy URL; it may hold a password, so it is shown to nobody."""

    def __init__(self, url: str, reactor: IReactorFromThreads, pool_size: int = POOL_SIZE) -> None:
        self._url = url
        self._reactor = reactor
        self._pool_size = pool_size
        self._engine: Engine | None = None
        self._threads: ThreadPool | None = None
        self._running = 0
        self._idle: Deferred[None] | None = None

    @property
    def remote(self) -> bool:
        """Whether it is another process, which may be away."""
        return not self._url.startswith("sqlite")

    def start(self) -> Deferred[None]:
        """Connect and bring the tables up to date.

        Fails with StartError when the database cannot be used, or with Unavailable when it does not answer: then it
        can be tried again. Either says why on one line.
        """
        try:
            url = rqlite.parse(self._url)
            engine = _engine(url, self._pool_size)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            return fail(StartError(f"database: {_one_line(error)}"))
        except OSError as error:
            return fail(StartError(f"database: {error.filename}: {error.strerror}"))
        self._engine = engine
        size = 1 if isinstance(engine.pool, StaticPool) else self._pool_size
        self._threads = ThreadPool(minthreads=0, maxthreads=size, name="store")
        self._threads.start()

        def failed(failure: Failure) -> Deferred[None]:
            return self.stop().addCallback(lambda _: failure)

        return self._defer(_upgrade, engine, url).addErrback(failed)

    def stop(self) -> Deferred[None]:
        """Let what runs finish, then let go of the threads and the connections."""
        threads, self._threads = self._threads, None
        engine, self._engine = self._engine, None

        def finished(_: object) -> None:
            if threads is not None:
                threads.stop()
            if engine is not None:
                engine.dispose()

        return self._when_idle().addCallback(finished)

    def transact(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """Run *work* in a transaction that may write; on rqlite, without one.

        Fails with whatever *work* raised (``IntegrityError`` among it), or with Unavailable when the
        database does not answer.
        """
        return self._submit(work, {})

    def write(self, *statements: Executable) -> Deferred[list[int]]:
        """Execute *statements* in their order, all of them or none, as if nobody else wrote meanwhile.

        Fires with the number of rows that each has inserted, changed or deleted. A condition on what stands in the
        database goes into the statements: into ``where``, or into the ``select`` of an ``insert().from_select()``.

        Fails with ``IntegrityError`` when a constraint says no; then nothing was written. Fails with Unavailable when
        the database does not answer; then it may have been written all the same.
        """
        if self._engine is None:
            return fail(_closed())
        return self._defer(_write, self._engine, statements)

    def read(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """Run *work*, which only reads: it then waits for no writer."""
        return self._submit(work, {_READS: True})

    def _submit(self, work: Callable[[Connection], T], options: dict[str, Any]) -> Deferred[T]:
        if self._engine is None:
            return fail(_closed())
        return self._defer(_run, self._engine, work, options)

    def _defer(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Run *function* on a thread. Who cancels the Deferred stops waiting; the thread goes on."""
        assert self._threads is not None
        answer: Deferred[T] = Deferred()
        self._running += 1

        def done(result: Any) -> None:
            self._running -= 1
            if isinstance(result, Failure):
                answer.errback(result)
            else:
                answer.callback(result)
            if self._running == 0 and self._idle is not None:
                idle, self._idle = self._idle, None
                idle.callback(None)

        deferToThreadPool(self._reactor, self._threads, function, *arguments).addBoth(done)
        return answer

    def _when_idle(self) -> Deferred[None]:
        if self._running == 0:
            return succeed(None)
        if self._idle is None:
            self._idle = Deferred()
        idle: Deferred[None] = Deferred()
        self._idle.chainDeferred(idle)
        return idle


def _closed() -> Unavailable:
    return Unavailable("store_unavailable", "the database is not open")


def _write(engine: Engine, statements: Sequence[Executable]) -> list[int]:
    """On a thread: *statements* in one transaction.

    rqlite is sent all of them as one. PostgreSQL must be asked for what SQLite does by itself, one writer after the
    other. It may then find out late that two were at odds, and takes one of them back, which begins anew.
    """
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "SERIALIZABLE"
    if engine.url.get_backend_name() == rqlite.BACKEND:
        return _run(engine, lambda connection: _gathered(connection, statements), options)

    def work(connection: Connection) -> list[int]:
        kept = {"preserve_rowcount": True}
        return [connection.execute(statement, execution_options=kept).rowcount for statement in statements]

    for attempt in range(_WRITE_ATTEMPTS):
        if attempt:
            time.sleep(_chance.uniform(0, _WRITE_PAUSE * 2 ** min(attempt, 5)))
        try:
            return _run(engine, work, options)
        except Unavailable as error:
            cause = error.__cause__
            if not isinstance(cause, DBAPIError) or getattr(cause.orig, "sqlstate", None) not in _AT_ODDS:
                raise
    raise Unavailable("store_unavailable", "the database has too many writers")


def _gathered(connection: Connection, statements: Sequence[Executable]) -> list[int]:
    """What is executed here is sent with the commit, which also fills the list."""
    counts = rqlite.driver_connection(connection).gather()
    for statement in statements:
        connection.execute(statement)
    return counts


def _run(engine: Engine, work: Callable[[Connection], T], options: dict[str, Any]) -> T:
    """On a thread: *work* in a transaction of its own."""
    try:
        with engine.connect() as connection, connection.execution_options(**options).begin():
            return work(connection)
    except (OperationalError, InterfaceError) as error:
        if getattr(error.orig, "sqlstate", None) in _AT_ODDS:
            raise Unavailable("store_unavailable", "the database has too many writers") from error
        _log.error("the database does not answer: {reason}", reason=_one_line(error.orig))
        raise Unavailable("store_unavailable", "the database does not answer") from error


def _upgrade(engine: Engine, url: URL) -> None:
    """On a thread: the tables as this program knows them."""
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == rqlite.BACKEND:
                rqlite.check_foreign_keys(connection)
            upgrade(connection)
            connection.commit()
    except (DBAPIError, CommandError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        place = f"{url.host}/{url.database or ''}".rstrip("/") if url.host else url.database
        line = f"database {url.get_backend_name()} {place}: {_one_line(reason)}"
        if _away(url, error):
            raise Unavailable("store_unavailable", line) from error
        raise StartError(line) from error


def _away(url: URL, error: Exception) -> bool:
    """Whether the server cannot be reached or is not ready: nothing that waiting would not mend."""
    if url.get_backend_name() == "sqlite" or not isinstance(error, OperationalError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_AWAY_STATES)
    text = str(error.orig)
    return _REFUSED not in text or any(soon in text for soon in _SOON)


def _engine(url: URL, size: int) -> Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, size)
    arguments: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        arguments = {name: value for name, value in _POSTGRES.items() if name not in url.query}
    # rqlite's driver looks for a node that answers whenever it says something.
    ping = url.get_backend_name() != rqlite.BACKEND
    return create_engine(
        url, pool_size=size, max_overflow=0, pool_pre_ping=ping, hide_parameters=True, connect_args=arguments
    )


def _sqlite(url: URL, size: int) -> Engine:
    """SQLite for several threads. In memory it has one connection: a second would see another database."""
    if url.database in (None, "", ":memory:") or url.query.get("mode") == "memory":
        engine = create_engine(
            url, poolclass=StaticPool, connect_args={"check_same_thread": False}, hide_parameters=True
        )
    else:
        if not str(url.database).startswith("file:"):
            os.close(os.open(str(url.database), os.O_RDWR | os.O_CREAT, 0o600))
        engine = create_engine(url, pool_size=size, max_overflow=0, hide_parameters=True)
    event.listen(engine, "connect", _sqlite_connected)
    event.listen(engine, "begin", _sqlite_begins)
    return engine


def _sqlite_connected(connection: Any, _record: object) -> None:
    """The driver leaves transactions to us: its own never cover DDL and begin too late to wait for a writer."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT}"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begins(connection: Connection) -> None:
    """A writer takes its lock at the start, where it can wait, and not in the middle, where it would fail."""
    reads = connection.get_execution_options().get(_READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:300]
