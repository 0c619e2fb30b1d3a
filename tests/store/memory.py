"""The database for histories: SQLite in memory, asked in the calling thread, that fails when it is told to.

Several nodes share a :class:`Store`, each through a :class:`MemoryDatabase` of its own, which can be cut off, and can
die with its node between any two writes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, create_engine, event
from sqlalchemy.pool import StaticPool
from twisted.internet.defer import Deferred, execute, fail, succeed

from orama.errors import Unavailable
from orama.store.database import Database
from orama.store.tables import metadata

T = TypeVar("T")


class Fault(Enum):
    """What becomes of a write, and of who has asked for it."""

    #: Nothing is written, and whoever asks is told that the database is away.
    REFUSED = "refused"
    #: It is written, and whoever asks is told that the database is away.
    LOST = "lost"
    #: The node dies before it is written, or after.
    DIES_BEFORE = "dies before"
    DIES_AFTER = "dies after"


class Store:
    """The tables."""

    def __init__(self) -> None:
        self._engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        event.listen(self._engine, "connect", _connected)
        event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        metadata.create_all(self._engine)

    def run(self, work: Callable[[Connection], T]) -> T:
        """*work* in a transaction."""
        with self._engine.begin() as connection:
            return work(connection)

    def close(self) -> None:
        self._engine.dispose()


def _connected(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")


class MemoryDatabase(Database):
    """One node's way to *store*.

    :ivar away: nobody answers.
    :ivar writes: how many there were.
    :ivar died: called when it is told to die with its node.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.writes = 0
        self.died: Callable[[], object] = lambda: None
        self._faults: dict[int, Fault] = {}
        self._dead = False
        self._waiting: list[Deferred[Any]] = []

    def fault(self, after: int, fault: Fault) -> None:
        """The write after the next *after* ones fails."""
        self._faults[self.writes + after] = fault

    def no_faults(self) -> None:
        self._faults.clear()

    def kill(self) -> None:
        """Whoever waits for an answer waits for ever."""
        self._dead = True
        self.died()

    def close(self) -> None:
        """It is over: coroutines of the dead may end, and can do no harm."""
        self._dead, self.away = False, True
        self._waiting.clear()

    def start(self) -> Deferred[None]:
        return fail(_no_answer()) if self.away else succeed(None)

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def transact(self, work: Callable[[Connection], T]) -> Deferred[T]:
        raise NotImplementedError("not all databases have transactions")

    def read(self, work: Callable[[Connection], T]) -> Deferred[T]:
        if self._dead:
            return self._never()
        return fail(_no_answer()) if self.away else execute(self._store.run, work)

    def write(self, *statements: Executable) -> Deferred[list[int]]:
        if self._dead:
            return self._never()
        if self.away:
            return fail(_no_answer())
        fault = self._faults.pop(self.writes, None)
        self.writes += 1
        if fault is Fault.REFUSED:
            return fail(_no_answer())
        if fault is Fault.DIES_BEFORE:
            self.kill()
            return self._never()
        kept = {"preserve_rowcount": True}
        done = execute(
            self._store.run,
            lambda connection: [connection.execute(each, execution_options=kept).rowcount for each in statements],
        )
        if fault is None:
            return done
        done.addErrback(lambda failure: None)  # nobody hears of it
        if fault is Fault.LOST:
            return fail(_no_answer())
        self.kill()
        return self._never()

    def _never(self) -> Deferred[Any]:
        self._waiting.append(Deferred())
        return self._waiting[-1]


def _no_answer() -> Unavailable:
    return Unavailable("store_unavailable", "the database does not answer")
