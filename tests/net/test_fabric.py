"""The fabric: addresses of one process, and flushes at the end of a drain."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import MAX_ROUNDS, Address, AddressInUse, Burst, Fabric

HERE = ("10.0.0.1", 50000)
THERE = ("10.0.0.1", 20000)


class FabricTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.fabric = Fabric(self.clock)

    def test_delivery(self) -> None:
        """Packets for an attached address reach its receiver at once with their source; others are not taken."""
        seen: list[tuple[Burst, Address]] = []
        self.fabric.attach(THERE, lambda packets, source: seen.append((packets, source)))
        self.assertTrue(self.fabric.deliver([b"a", b"b"], HERE, THERE))
        self.assertEqual(seen, [([b"a", b"b"], HERE)])
        self.assertFalse(self.fabric.deliver([b"a"], THERE, HERE))
        self.assertTrue(self.fabric.has(THERE))
        self.fabric.detach(THERE)
        self.fabric.detach(THERE)
        self.assertFalse(self.fabric.deliver([b"a"], HERE, THERE))

    def test_one_receiver(self) -> None:
        """An address has one receiver."""
        self.fabric.attach(HERE, lambda packets, source: None)
        self.assertRaises(AddressInUse, self.fabric.attach, HERE, lambda packets, source: None)

    def test_flush_outside_of_a_drain(self) -> None:
        """Outside of a drain a flush runs once in the next turn, however often it was asked for."""
        ran: list[str] = []

        def flush() -> None:
            ran.append("flush")

        self.fabric.later(flush)
        self.fabric.later(flush)
        self.assertEqual(ran, [])
        self.clock.advance(0)
        self.assertEqual(ran, ["flush"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_flush_in_nested_drains(self) -> None:
        """The outermost drain runs the flushes, in the order in which they were asked for."""
        ran: list[int] = []
        self.fabric.begin()
        self.fabric.later(lambda: ran.append(1))
        self.fabric.begin()
        self.fabric.later(lambda: ran.append(2))
        self.fabric.end()
        self.assertEqual(ran, [])
        self.fabric.end()
        self.assertEqual(ran, [1, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_flush_asks_for_a_flush(self) -> None:
        """A flush that a flush asks for runs before the drain ends; one that never stops waits for the next turn."""
        ran: list[str] = []
        self.fabric.begin()
        self.fabric.later(lambda: self.fabric.later(lambda: ran.append("second")))
        self.fabric.end()
        self.assertEqual(ran, ["second"])

        def forever() -> None:
            ran.append("again")
            self.fabric.later(forever)

        self.fabric.begin()
        self.fabric.later(forever)
        self.fabric.end()
        self.assertEqual(ran.count("again"), MAX_ROUNDS)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_flush_that_fails(self) -> None:
        """A flush that raises is logged, and the others run."""
        ran: list[int] = []

        def fail() -> None:
            raise RuntimeError("by the test")

        self.fabric.begin()
        self.fabric.later(fail)
        self.fabric.later(lambda: ran.append(1))
        self.fabric.end()
        self.assertEqual(ran, [1])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
