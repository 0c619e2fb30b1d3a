"""A node that waits for what it needs: it says what for, and goes on by itself."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from orama.boot import FIRST_PAUSE, LONGEST_PAUSE, wait_for_database, wait_for_prerequisites
from orama.cluster.prerequisites import Prerequisite
from orama.errors import StartError, Unavailable
from tests.store.memory import MemoryDatabase, Store

SERVICES = ("SFU of tenant", "TURN of tenant")
AWAY = Unavailable("store_unavailable", "database rqlite 10.0.0.1: connection refused")


class SlowDatabase(MemoryDatabase):
    """A database that has to be asked several times.

    :param remote: whether it is another process.
    """

    def __init__(self, store: Store, errors: Sequence[Exception], *, remote: bool = True) -> None:
        super().__init__(store)
        self.errors = list(errors)
        self.tries = 0
        self._remote = remote

    @property
    def remote(self) -> bool:
        return self._remote

    def start(self) -> Deferred[None]:
        self.tries += 1
        return fail(self.errors.pop(0)) if self.errors else succeed(None)


class BootTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = Store()
        self.addCleanup(self.store.close)
        self.told: list[str] = []
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def warnings(self) -> list[str]:
        return [
            event["log_format"].format(**event) for event in self.events if event["log_level"].name in ("warn", "error")
        ]

    def waiting(self, work: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work)

    def for_database(self, database: SlowDatabase) -> Deferred[None]:
        return self.waiting(wait_for_database(self.clock, database, self.told.append, SERVICES))

    def test_there(self) -> None:
        """What is there is not waited for, and nothing is said."""
        self.successResultOf(self.for_database(SlowDatabase(self.store, ())))
        self.assertEqual((self.told, self.warnings()), ([], []))

    def test_comes_late(self) -> None:
        """A database that is away is waited for, with one warning that names it and what waits; then it goes on."""
        database = SlowDatabase(self.store, [AWAY] * 3)
        waiting = self.for_database(database)
        self.assertNoResult(waiting)
        self.assertEqual(self.told, [f"waiting: {AWAY.message}"])
        self.clock.pump([FIRST_PAUSE, 2 * FIRST_PAUSE])
        self.assertNoResult(waiting)
        self.clock.advance(4 * FIRST_PAUSE)
        self.successResultOf(waiting)
        (warning,) = self.warnings()
        for word in (AWAY.message, *SERVICES):
            self.assertIn(word, warning)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_pauses(self) -> None:
        """It is asked less and less often, but every five seconds at least."""
        database = SlowDatabase(self.store, [AWAY] * 1000)
        self.for_database(database)
        for pause in (0.5, 1.0, 2.0, 4.0, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE):
            tries = database.tries
            self.clock.advance(pause - 0.1)
            self.assertEqual(database.tries, tries)
            self.clock.advance(0.1)
            self.assertEqual(database.tries, tries + 1)
        self.assertEqual(len(self.warnings()), 1)

    def test_another_reason(self) -> None:
        """When something else is the matter that is said, too."""
        other = Unavailable("store_unavailable", "database rqlite 10.0.0.1: no leader")
        waiting = self.for_database(SlowDatabase(self.store, [AWAY, other, other]))
        for _ in range(10):
            self.clock.advance(1.0)
        self.successResultOf(waiting)
        self.assertEqual(len(self.warnings()), 2)
        self.assertEqual(self.told[1], f"waiting: {other.message}")

    def test_refused(self) -> None:
        """A database that cannot be used at all stops the start, also after some waiting."""
        waiting = self.for_database(SlowDatabase(self.store, [AWAY, StartError("database: it is of a later version")]))
        self.clock.advance(FIRST_PAUSE)
        self.assertIn("later version", str(self.failureResultOf(waiting, StartError).value))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_local(self) -> None:
        """A database on this machine that does not answer is not waited for."""
        waiting = self.for_database(SlowDatabase(self.store, [AWAY], remote=False))
        self.assertIn(AWAY.message, str(self.failureResultOf(waiting, StartError).value))
        self.assertEqual(self.told, [])

    def test_prerequisites(self) -> None:
        """What WebRTC needs beside is waited for by name, until all of it answers."""
        found = {"rqlite": True, "olric": False}

        async def probe() -> Sequence[Prerequisite]:
            return [Prerequisite(name, ok, required=True, detail=f"{name}: no answer") for name, ok in found.items()]

        waiting = self.waiting(wait_for_prerequisites(self.clock, probe, self.told.append, SERVICES))
        self.assertNoResult(waiting)
        (warning,) = self.warnings()
        self.assertIn("olric", warning.lower())
        self.assertNotIn("rqlite", warning.lower())
        found["olric"] = True
        self.clock.advance(FIRST_PAUSE)
        self.successResultOf(waiting)

    def test_nobody_waits_any_more(self) -> None:
        """A node that is stopped while it waits leaves nothing behind."""
        waiting = self.for_database(SlowDatabase(self.store, [AWAY] * 9))
        waiting.cancel()
        self.failureResultOf(waiting)
        self.clock.advance(LONGEST_PAUSE)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])
