"""What happens in a worker's rooms on its way to the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import Unavailable
from orama.outward import AT_ONCE, MOST, Outward
from orama.sfu.occurrences import Occurrence


class Node:
    """The node, as far as it is told.

    :ivar silent: it takes what it is told, and does not answer until :meth:`answer`.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.sizes: list[int] = []
        self.away = self.silent = False
        self._waiting: list[Deferred[Any]] = []

    async def post(self, address: str, body: Mapping[str, Any]) -> Any:
        assert (address, body["namespace"]) == ("worker/occurrences", "demo")
        if self.away:
            raise Unavailable("node_unreachable", "nobody is there")
        self.told += [each["id"] for each in body["occurrences"]]
        self.sizes.append(len(body["occurrences"]))
        if self.silent:
            waiting: Deferred[Any] = Deferred()
            self._waiting.append(waiting)
            await waiting
        return {}

    def answer(self) -> None:
        for each in self._waiting:
            each.callback(None)


def occurred(number: int) -> Occurrence:
    return Occurrence(f"ev_{number}", "participant_joined", 2.0, "demo", "r", 1.0, {"peer_id": "p"})


class OutwardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.node, self.wanted = Clock(), Node(), True
        attachment: Any = self.node
        self.outward = Outward(self.clock, "demo", attachment, lambda: self.wanted)

    def names(self, count: int, first: int = 0) -> list[str]:
        return [f"ev_{number}" for number in range(first, first + count)]

    def test_at_once(self) -> None:
        """The node is told in the next turn of the reactor, in order, so many in one message and not more."""
        for number in range(AT_ONCE + 1):
            self.outward.note(occurred(number))
        self.assertEqual(self.node.told, [])
        self.clock.advance(0)
        self.assertEqual((self.node.told, self.node.sizes), (self.names(AT_ONCE + 1), [AT_ONCE, 1]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_wants_it(self) -> None:
        """Where nobody is to be told nothing is kept."""
        self.wanted = False
        self.outward.note(occurred(0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_away(self) -> None:
        """While the node is away events wait, the latest of them; when it is back it is told of each once."""
        self.node.away = True
        for number in range(MOST + 5):
            self.outward.note(occurred(number))
            self.clock.advance(0)
        self.node.away = False
        self.outward.tell()
        self.assertEqual(self.node.told, self.names(MOST, 5))
        self.outward.tell()
        self.assertEqual(len(self.node.told), MOST)

    def test_what_comes_meanwhile(self) -> None:
        """What happens while the node is being told is told after that, and stopping waits for it."""
        self.node.silent = True
        self.outward.note(occurred(0))
        self.clock.advance(0)
        self.outward.note(occurred(1))
        self.clock.advance(0)
        self.assertEqual(self.node.told, ["ev_0"])
        stopped = Deferred.fromCoroutine(self.outward.stop())
        self.assertNoResult(stopped)
        self.node.silent = False
        self.node.answer()
        self.successResultOf(stopped)
        self.assertEqual(self.node.told, ["ev_0", "ev_1"])

    def test_travels_whole(self) -> None:
        """An event is told as it is."""
        self.assertEqual(Occurrence(**asdict(occurred(1))), occurred(1))
