"""Waiting for nodes: for how long, whom to believe, and what whoever waits gets to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.nodes import NodeRecord
from orama.cluster.placement import SFU, TURN, Role
from orama.cluster.settling import AGAIN, BELIEVED, DOWN, UP, Settling
from orama.errors import OramaError, Unavailable
from tests.cluster.world import SETTINGS, World

ROLES = [Role(SFU, 0, "node-1"), Role(SFU, 1, "node-2"), Role(TURN, 0, "node-1")]
UP_NOW = {"sfu_up": True, "turn_up": True, "error": None}
DOWN_NOW = {"sfu_up": False, "turn_up": False, "error": None}


class SettlingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(2)
        self.addCleanup(self.world.close)
        self.world.advance(SETTINGS.cluster.heartbeat)
        self.answers: dict[str, Mapping[str, Any] | Exception] = {"node-1": UP_NOW, "node-2": UP_NOW}
        self.asked: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.settling = Settling(self.world.clock, self.world.node(0).registry, self.ask)

    async def ask(self, node: NodeRecord, namespace: str) -> Mapping[str, Any]:
        self.assertEqual(namespace, "tenant")
        self.asked.append(node.node_id)
        answer = self.answers[node.node_id]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def progress(self, step: str, state: str, text: str) -> None:
        self.told.append((step, state))

    def up(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.settling.up("tenant", ROLES, self.progress))

    def down(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.settling.down("tenant", ROLES, self.progress))

    def seconds(self, waiting: Deferred[None]) -> float:
        """How long it takes, to the quarter of a second; the heart beats meanwhile."""
        over: list[object] = []
        waiting.addBoth(lambda result: over.append(result) or result)
        waited = 0.0
        while not over:
            self.assertLess(waited, 100, "it is waited for ever")
            self.world.advance(AGAIN)
            waited += AGAIN
        return waited

    def refused(self, waiting: Deferred[None]) -> OramaError:
        error: OramaError = self.failureResultOf(waiting, OramaError).value
        return error

    def test_all_there(self) -> None:
        """Every node is asked once, and is a step that begins and ends."""
        self.successResultOf(self.up())
        self.assertEqual(self.asked, ["node-1", "node-2"])
        steps = [f"node {name}" for name in ("node-1", "node-2")]
        self.assertEqual(sorted(self.told), [(step, state) for step in steps for state in ("done", "waiting")])

    def test_not_at_once(self) -> None:
        """A node that is not there yet is asked again until it is: all its roles count."""
        self.answers["node-1"] = {**UP_NOW, "turn_up": False}
        waiting = self.up()
        self.world.advance(AGAIN)
        self.assertNoResult(waiting)
        self.answers["node-1"] = UP_NOW
        self.world.advance(AGAIN)
        self.successResultOf(waiting)
        self.assertEqual(self.asked, ["node-1", "node-2", "node-1", "node-1"])

    def test_only_what_is_wanted(self) -> None:
        """A role that a node has not been given is not waited for."""
        self.answers["node-2"] = {**UP_NOW, "turn_up": False}
        self.successResultOf(self.up())

    def test_error_is_believed_after_some_tries(self) -> None:
        """A node that cannot is given a few tries, and then the error is its own words, with its name."""
        self.answers["node-2"] = {**DOWN_NOW, "error": "no socket"}
        waiting = self.up()
        self.assertEqual(self.seconds(waiting), (BELIEVED - 1) * AGAIN)
        self.assertEqual(self.refused(waiting).message, "node node-2: no socket")
        self.assertEqual(self.asked.count("node-2"), BELIEVED)
        self.assertIn(("node node-2", "failed"), self.told)
        self.assertIn(("node node-1", "done"), self.told)

    def test_error_that_passes(self) -> None:
        """A port that comes free in time is no error."""
        self.answers["node-2"] = {**DOWN_NOW, "error": "no socket"}
        waiting = self.up()
        self.world.advance(AGAIN)
        self.answers["node-2"] = UP_NOW
        self.world.advance(AGAIN)
        self.successResultOf(waiting)

    def test_unreachable(self) -> None:
        """A node that lives and does not answer gets its time, and is named."""
        self.answers["node-2"] = Unavailable("node_unreachable", "node node-2 does not answer")
        waiting = self.up()
        self.assertEqual(self.seconds(waiting), UP)
        self.assertEqual(self.refused(waiting).code, "node_unreachable")

    def test_not_there_in_time(self) -> None:
        """A node that answers and never gets there is named as well."""
        self.answers["node-1"] = DOWN_NOW
        waiting = self.up()
        self.assertEqual(self.seconds(waiting), UP)
        self.assertEqual(self.refused(waiting).message, "node node-1: is not there yet")

    def test_dead(self) -> None:
        """A node that dies is waited for only until it is taken for dead."""
        self.answers["node-2"] = Unavailable("node_unreachable", "node node-2 does not answer")
        self.world.node(1).database.kill()
        waiting = self.up()
        self.assertLess(self.seconds(waiting), 3 * SETTINGS.cluster.heartbeat)
        self.assertEqual(self.refused(waiting).code, "node_unreachable")

    def test_unknown(self) -> None:
        """A node that has been removed is not waited for."""
        settling = Settling(self.world.clock, self.world.node(0).registry, self.ask)
        waiting = Deferred.fromCoroutine(settling.up("tenant", [Role(SFU, 0, "node-9")], self.progress))
        self.assertIn("node-9", self.refused(waiting).message)

    def test_something_unexpected(self) -> None:
        """What has no name of ours comes out as it is, and leaves nothing of the other nodes behind."""
        self.answers.update({"node-1": ValueError("a bug"), "node-2": KeyError("another")})
        self.failureResultOf(self.up(), ValueError)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_down(self) -> None:
        """Down is when nothing runs any more; whoever does not follow in time is waited for no longer."""
        self.answers["node-1"] = DOWN_NOW
        waiting = self.down()
        self.assertNoResult(waiting)
        self.assertEqual(self.seconds(waiting), DOWN)
        self.successResultOf(waiting)
        self.assertIn(("node node-2", "failed"), self.told)
        self.answers["node-2"] = DOWN_NOW
        self.successResultOf(self.down())
