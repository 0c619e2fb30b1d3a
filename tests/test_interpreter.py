"""How Python is set (``orama.interpreter``)."""

from __future__ import annotations

import gc
import sys

from twisted.trial.unittest import SynchronousTestCase

from orama import interpreter


class InterpreterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        self.addCleanup(gc.unfreeze)

    def test_settled(self) -> None:
        """What is there is not looked through for cycles, and threads wait for each other a tenth of what is usual."""
        interpreter.settle()
        self.assertGreater(gc.get_freeze_count(), 1000)
        self.assertEqual(sys.getswitchinterval(), 0.0005)
