"""How much one client may ask for."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.allowance import Allowance


class AllowanceTests(SynchronousTestCase):
    def test_burst_and_rate(self) -> None:
        """What is there at once, then so many a second, and a part of a wish where not all is granted."""
        allowance = Allowance(8, 5, 100.0)
        self.assertEqual([allowance.take(3, 100.0), allowance.take(3, 100.0), allowance.take(1, 100.0625)], [3, 2, 0])
        self.assertEqual([allowance.take(9, 100.375), allowance.take(99, 200.0)], [3, 5])

    def test_clock_set_back(self) -> None:
        """A wall clock that goes back takes nothing away, and time goes on from there."""
        allowance = Allowance(8, 5, 100.0)
        self.assertEqual([allowance.take(5, 100.0), allowance.take(1, 50.0), allowance.take(1, 50.125)], [5, 0, 1])

    def test_all_or_nothing(self) -> None:
        """Something dear is granted whole while anything is left, and the debt is paid before the next."""
        allowance = Allowance(8, 5, 100.0)
        self.assertTrue(allowance.spend(9, 100.0))
        self.assertFalse(allowance.spend(1, 100.25))
        self.assertTrue(allowance.spend(1, 101.0))
