"""Looks for reference cycles (``orama.garbage``)."""

from __future__ import annotations

import gc
import weakref

from twisted.trial.unittest import SynchronousTestCase

from orama import garbage


class _Knot:
    """Something that holds itself."""

    def __init__(self) -> None:
        self.itself = self


class GarbageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        self.addCleanup(gc.unfreeze)
        garbage.settle()

    def test_frozen(self) -> None:
        """What was there before is not looked at any more."""
        self.assertGreater(gc.get_freeze_count(), 1000)
        self.assertLess(len(gc.get_objects()), 1000)

    def test_seldom(self) -> None:
        """A store of packets that fills and empties causes no look."""
        looks: list[str] = []
        watch = lambda phase, _: looks.append(phase)  # noqa: E731
        gc.callbacks.append(watch)
        self.addCleanup(gc.callbacks.remove, watch)
        for _ in range(20):
            kept = [[number] for number in range(2000)]
            del kept
        self.assertEqual(looks, [])

    def test_cycles(self) -> None:
        """Cycles that are made later go all the same."""
        first = weakref.ref(_Knot())
        for _ in range(garbage.THRESHOLDS[0] + 1):
            _Knot()
        self.assertIsNone(first())
