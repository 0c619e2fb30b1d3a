"""How long packets are in this process."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Fabric
from orama.sfu.transit import BOUNDS, Transit


class TransitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 5.0
        self.fabric = Fabric(Clock(), seconds=lambda: self.now)
        self.noted: list[tuple[float, int]] = []
        self.fabric.transit = lambda seconds, bursts: self.noted.append((round(seconds, 6), bursts))

    def flush(self) -> None:
        self.now += 0.002

    def test_drain(self) -> None:
        """A drain of sockets is timed from its beginning until its last flush, once, however many there are."""
        self.fabric.begin(self.now)
        self.now += 0.001
        self.fabric.later(self.flush)
        self.fabric.later(lambda: self.flush())
        self.fabric.begin()
        self.fabric.end()
        self.assertEqual(self.noted, [])
        self.fabric.end()
        self.assertEqual(self.noted, [(0.005, 2)])

    def test_nothing_to_time(self) -> None:
        """What brings nothing about is not timed, nor what leaves without having come: ticks and timers."""
        self.fabric.begin(self.now)
        self.fabric.end()
        self.fabric.begin()
        self.fabric.later(self.flush)
        self.fabric.end()
        self.fabric.later(self.flush)
        self.assertEqual(self.noted, [])

    def test_histogram(self) -> None:
        """Buckets hold what took up to their bound, each with those below it."""
        transit = Transit()
        transit.note(BOUNDS[0], 2)
        transit.note(0.0004, 1)
        transit.note(7.0, 1)
        found = {labels.get("le", name[-3:]): value for name, labels, value in transit.samples()}
        self.assertEqual((found["0.0001"], found["0.0002"], found["0.0005"], found["0.1"]), (2, 2, 3, 3))
        self.assertEqual((found["+Inf"], found["unt"]), (4, 4))
        self.assertAlmostEqual(found["sum"], 7.0006)
