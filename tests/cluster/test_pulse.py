"""The heart: it goes on beating while the database is away, and empties the node once when it is to be empty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.nodes import ACTIVE, DRAINED, DRAINING, Capacity
from orama.cluster.pulse import Pulse
from orama.store import tables
from tests.cluster.world import SETTINGS, World
from tests.store.memory import Fault

BEAT = SETTINGS.cluster.heartbeat


class PulseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(2)
        self.addCleanup(self.world.close)
        self.node, self.other = self.world.nodes.values()
        self.said: list[str] = []
        self.emptying: list[Deferred[None]] = []
        self.pulse = Pulse(
            self.world.clock,
            self.node.registry,
            self.node.reconciler,
            lambda: Capacity(2, 0.5, 1000, 400),
            self.empty,
            lambda: self.said.append("activated"),
        )
        self.pulse.startService()
        self.addCleanup(lambda: self.successResultOf(self.pulse.stopService()) if self.pulse.running else None)

    async def empty(self) -> None:
        self.said.append("empty")
        self.emptying.append(Deferred())
        await self.emptying[-1]

    def beats(self, count: int = 1) -> None:
        for _ in range(count):
            self.world.clock.advance(BEAT)

    def state(self) -> str:
        rows = self.world.rows(tables.nodes)
        return str(next(row.state for row in rows if row.id == self.node.node_id))

    def drain(self, draining: bool) -> None:
        work = self.other.registry.set_draining(self.node.node_id, draining)
        self.successResultOf(Deferred.fromCoroutine(work))

    def logged(self, doing: Callable[[], object]) -> list[str]:
        """Formats of what is logged meanwhile, with the level."""
        events: list[str] = []

        def observer(event: Any) -> None:
            events.append(f"{event['log_level'].name}: {event['log_format']}")

        globalLogPublisher.addObserver(observer)
        try:
            doing()
        finally:
            globalLogPublisher.removeObserver(observer)
        return events

    def test_beats(self) -> None:
        """With every heartbeat the row changes, and says what the machine has."""
        rows = []
        for _ in range(3):
            self.beats()
            rows.append(next(row for row in self.world.rows(tables.nodes) if row.id == self.node.node_id))
        self.assertEqual(len({row.last_seen for row in rows}), 3)
        self.assertEqual((rows[0].load, rows[0].memory_free_mb), (0.5, 400))

    def test_database_away(self) -> None:
        """One line says that the database is away and one that it is back, however long that takes."""
        self.beats()
        self.node.database.away = True
        events = self.logged(lambda: self.beats(5))
        self.assertEqual([event for event in events if event.startswith("warn")], events)
        self.assertEqual(len(events), 1)
        self.assertTrue(self.pulse.away)
        self.node.database.away = False
        self.assertEqual(self.logged(lambda: self.beats(3)), ["info: the database is back"])
        self.assertFalse(self.pulse.away)

    def test_drain(self) -> None:
        """A node that is to be empty is emptied once, and says so when it is."""
        self.drain(True)
        self.beats(3)
        self.assertEqual((self.said, self.state()), (["empty"], DRAINING))
        self.emptying[0].callback(None)
        self.assertEqual(self.state(), DRAINED)
        self.beats(3)
        self.assertEqual(self.said, ["empty"])

    def test_drained_while_the_database_is_away(self) -> None:
        """A node that has become empty while nobody could be told says so afterwards, without emptying it again."""
        self.drain(True)
        self.beats()
        self.node.database.away = True
        self.emptying[0].callback(None)
        self.beats(2)
        self.assertEqual(self.state(), DRAINING)
        self.node.database.away = False
        self.beats(2)
        self.assertEqual((self.said, self.state()), (["empty"], DRAINED))

    def test_drained_and_unheard(self) -> None:
        """One write that is lost is written again."""
        self.drain(True)
        self.beats()
        self.node.database.fault(0, Fault.REFUSED)
        self.emptying[0].callback(None)
        self.assertEqual(self.state(), DRAINING)
        self.beats()
        self.assertEqual((self.said, self.state()), (["empty"], DRAINED))

    def test_activate(self) -> None:
        """Who is taken back into use in the middle of it takes people again, and can be drained anew."""
        self.drain(True)
        self.beats()
        self.drain(False)
        self.beats(2)
        self.assertEqual((self.said, self.state()), (["empty", "activated"], ACTIVE))
        self.drain(True)
        self.beats()
        self.emptying[1].callback(None)
        self.assertEqual((self.said, self.state()), (["empty", "activated", "empty"], DRAINED))
        self.drain(False)
        self.beats()
        self.assertEqual(self.said[3:], ["activated"])

    def test_stop(self) -> None:
        """A heart that has stopped leaves nothing behind, also not a drain that is under way."""
        self.drain(True)
        self.beats()
        self.successResultOf(self.pulse.stopService())
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.state(), DRAINING)
