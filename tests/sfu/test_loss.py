"""NACK towards a publisher: when, how often, and when no more."""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.loss import FACTOR, MOST, TRIES, MissingPackets


class MissingTests(SynchronousTestCase):
    def test_waits_for_reordering(self) -> None:
        """Nothing is asked within 20 ms; what came meanwhile is never asked."""
        missing = MissingPackets()
        self.assertTrue(missing.gap(10, 13, 1.0))
        self.assertEqual(missing.due(1.01), [])
        self.assertFalse(missing.came(11))
        self.assertEqual(missing.due(1.02), [10, 12])
        self.assertTrue(missing.came(10))
        self.assertEqual(len(missing), 1)

    def test_five_tries_ever_later(self) -> None:
        """Five tries, each gap a quarter longer than the one before, at most 400 ms, then it is given up."""
        missing, times, now = MissingPackets(), [], 1.0
        missing.gap(10, 11, now)
        while now < 10:
            if missing.due(now):
                times.append(now)
            now += 0.001
        self.assertEqual(len(times), TRIES)
        gaps = [later - sooner for sooner, later in pairwise(times)]
        for sooner, later in pairwise(gaps):
            self.assertApproximates(later / sooner, FACTOR, 0.03)
        self.assertEqual(len(missing), 0)

    def test_gaps_are_limited(self) -> None:
        """With a long round trip the gaps stay at 400 ms."""
        missing, times, now = MissingPackets(), [], 1.0
        missing.interval = 0.35
        missing.gap(10, 11, now)
        while now < 10:
            if missing.due(now):
                times.append(now)
            now += 0.01
        self.assertLessEqual(max(b - a for a, b in pairwise(times)), 0.411)

    def test_not_across_a_keyframe(self) -> None:
        """What was lost before a keyframe is not asked for any more."""
        missing = MissingPackets()
        missing.gap(10, 12, 1.0)
        missing.gap(20, 22, 1.0)
        missing.forget_before(15)
        self.assertEqual(missing.due(2.0), [20, 21])

    def test_outages_are_given_up(self) -> None:
        """A gap of hundreds is not worth asking for, and memory stays bounded."""
        missing = MissingPackets()
        self.assertTrue(missing.gap(0, MOST, 1.0))
        self.assertFalse(missing.gap(MOST, MOST + 1, 1.0))
        self.assertEqual((len(missing), missing.due(9.0)), (0, []))
