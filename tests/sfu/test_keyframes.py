"""Wishes for keyframes: throttled, joined, not lost."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.keyframes import PER_SOURCE, KeyframeRequests, Throttle


class ThrottleTests(SynchronousTestCase):
    def test_once_in_an_interval(self) -> None:
        """The first passes, others only after the interval; what did not pass does not prolong it."""
        throttle = Throttle(0.2)
        self.assertEqual([throttle.allows(now) for now in (10.0, 10.1, 10.19, 10.21, 10.3)], [1, 0, 0, 1, 0])


class RequestTests(SynchronousTestCase):
    def test_wishes_are_joined(self) -> None:
        """Many wishes within half a second make one request now and one later."""
        requests = KeyframeRequests()
        self.assertTrue(requests.ask(10.0))
        self.assertEqual([requests.ask(10.0 + step / 100) for step in range(1, 40)], [False] * 39)
        self.assertFalse(requests.due(10.49))
        self.assertTrue(requests.due(10.0 + PER_SOURCE))
        self.assertFalse(requests.due(20.0))

    def test_a_keyframe_answers_them(self) -> None:
        """Once a keyframe has come, an open wish is not sent any more."""
        requests = KeyframeRequests()
        requests.ask(10.0)
        requests.ask(10.1)
        requests.satisfied()
        self.assertFalse(requests.due(11.0))
        self.assertTrue(requests.ask(11.0))
