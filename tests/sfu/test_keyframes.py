"""Wishes for keyframes: throttled, joined, not lost."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.keyframes import MOST, PER_RECEIVER, PER_SOURCE, WHILE, KeyframeRequests, Throttle, Wishes


class ThrottleTests(SynchronousTestCase):
    def test_once_in_an_interval(self) -> None:
        """The first passes, others only after the interval; what did not pass does not prolong it."""
        throttle = Throttle(0.2)
        self.assertEqual([throttle.allows(now) for now in (10.0, 10.1, 10.19, 10.21, 10.3)], [1, 0, 0, 1, 0])


class WishTests(SynchronousTestCase):
    def test_once_in_a_moment(self) -> None:
        """Wishes of one receiver within 200 ms are one."""
        wishes = Wishes()
        self.assertEqual([wishes.allows(now, False) for now in (0.0, 0.19, PER_RECEIVER)], [True, False, True])

    def test_three_in_ten_seconds(self) -> None:
        """A receiver that asks all the time gets three keyframes in ten seconds where others pay for them."""
        wishes, passed = Wishes(), []
        for step in range(3000):
            if wishes.allows(step / 100, True):
                passed.append(step / 100)
        for start in range(20):
            self.assertLessEqual(sum(start <= when < start + WHILE for when in passed), MOST)
        self.assertEqual(len(passed), 9)

    def test_alone(self) -> None:
        """A receiver that nobody shares the stream with asks as often as it needs to."""
        wishes = Wishes()
        self.assertEqual([wishes.allows(now, False) for now in range(8)], [True] * 8)


class RequestTests(SynchronousTestCase):
    def test_wishes_are_joined(self) -> None:
        """Many wishes within half a second make one request now, and one later where no keyframe has come."""
        requests = KeyframeRequests()
        self.assertTrue(requests.ask(10.0))
        self.assertEqual([requests.ask(10.0 + step / 100) for step in range(1, 40)], [False] * 39)
        self.assertFalse(requests.due(10.49))
        self.assertTrue(requests.due(10.0 + PER_SOURCE))
        requests.satisfied()
        self.assertFalse(requests.due(20.0))

    def test_repeated_when_lost(self) -> None:
        """Without an answer a wish is repeated a few times, and then given up."""
        requests = KeyframeRequests()
        self.assertTrue(requests.ask(10.0))
        self.assertEqual([requests.due(10.0 + number) for number in range(1, 6)], [True] * 3 + [False] * 2)

    def test_a_keyframe_answers_them(self) -> None:
        """Once a keyframe has come, an open wish is not sent any more, and further ones do not join it."""
        requests = KeyframeRequests()
        self.assertFalse(requests.waiting)
        requests.ask(10.0)
        requests.ask(10.1)
        self.assertTrue(requests.waiting)
        requests.satisfied()
        self.assertFalse(requests.waiting)
        self.assertFalse(requests.due(11.0))
        self.assertTrue(requests.ask(11.0))

    def test_repeated_after_two_round_trips(self) -> None:
        """A request that is not answered is made again after two round trips, 200 ms to a second."""
        for round_trip, pause in ((0.02, 0.2), (0.3, 0.6), (3.0, 1.0)):
            requests = KeyframeRequests()
            requests.reached(round_trip)
            self.assertTrue(requests.ask(10.0))
            self.assertFalse(requests.ask(10.0 + pause - 0.01))
            self.assertTrue(requests.ask(10.0 + pause + 0.01))
            requests.satisfied()
            self.assertFalse(requests.ask(10.0 + pause + 0.3))
            self.assertTrue(requests.due(10.0 + pause + 0.01 + PER_SOURCE))
