"""What left, matched with what the client says arrived."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.departures import AGE, MOST_DOUBTFUL, MOST_RUNS, OVERHEAD, Departures
from orama.wire.transport_cc import TICK, TransportFeedback


def feedback(base: int, *deltas: int | None, reference: int = 100) -> TransportFeedback:
    return TransportFeedback(1, 2, base & 0xFFFF, reference, 0, deltas)


class DepartureTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.departures = Departures()

    def test_times(self) -> None:
        """A run has the time it left at, and those at which its first and its last packet came."""
        self.departures.left(65534, 4, 4000, 10.0)
        ((run,), late) = self.departures.matched(feedback(65534, 40, 4, 4, 8))
        start = 100 * 0.064
        self.assertEqual((run.sent, run.received, run.lost, late), (10.0, 4, 0, 0))
        self.assertApproximates(run.first, start + 40 * TICK, 1e-9)
        self.assertApproximates(run.last, start + 56 * TICK, 1e-9)
        self.assertEqual(run.octets, 4000 + 4 * OVERHEAD)
        self.assertEqual((self.departures.under_way, len(self.departures)), (0, 0))

    def test_messages_that_split_a_run(self) -> None:
        """Each message speaks of its part, and together they speak of every packet and byte."""
        self.departures.left(10, 5, 5000, 10.0)
        ((first,), _) = self.departures.matched(feedback(10, 1, None))
        self.assertEqual((first.received, first.lost), (1, 1))
        self.assertEqual(self.departures.under_way, 3 * (1000 + OVERHEAD))
        ((second,), _) = self.departures.matched(feedback(12, 1, 1, 1))
        self.assertEqual((second.received, second.octets), (3, 3 * (1000 + OVERHEAD)))
        self.assertEqual(self.departures.under_way, 0)

    def test_message_that_was_lost(self) -> None:
        """Packets that no message speaks of are neither lost nor under way any more."""
        self.departures.left(10, 3, 300, 10.0)
        self.departures.left(13, 3, 300, 10.1)
        ((run,), _) = self.departures.matched(feedback(14, 1, 1))
        self.assertEqual((run.sent, run.received, run.lost), (10.1, 2, 0))
        self.assertEqual(self.departures.under_way, 0)

    def test_late_packets(self) -> None:
        """One that was called lost and comes late is said so, once."""
        self.departures.left(10, 3, 300, 10.0)
        ((run,), _) = self.departures.matched(feedback(10, 1, None, 1))
        self.assertEqual(run.lost, 1)
        self.departures.left(13, 1, 100, 10.1)
        _, late = self.departures.matched(feedback(11, 1, 1, 1))
        self.assertEqual(late, 1)
        _, late = self.departures.matched(feedback(11, 1, 1, 1))
        self.assertEqual(late, 0)

    def test_runs_of_one_drain(self) -> None:
        """What left for several subscriptions at one time is one group for the estimators."""
        self.departures.left(1, 2, 200, 10.0)
        self.departures.left(3, 2, 200, 10.0002)
        self.departures.left(5, 1, 100, 10.02)
        arrivals, _ = self.departures.matched(feedback(1, 1, 1, 1, 1, 80))
        self.assertEqual([each.received for each in arrivals], [4, 1])

    def test_reference_wraps(self) -> None:
        """The 24 bits of the reference time wrap and arrivals go on."""
        self.departures.left(1, 1, 100, 10.0)
        self.departures.left(2, 1, 100, 10.1)
        ((before,), _) = self.departures.matched(feedback(1, 4, reference=0x7FFFFF))
        ((after,), _) = self.departures.matched(feedback(2, 4, reference=-0x800000))
        self.assertApproximates(after.first - before.first, 0.064, 1e-9)

    def test_bounded(self) -> None:
        """Without any feedback no more than the limit is kept, and what is under way is what is kept."""
        for number in range(3 * MOST_RUNS):
            self.departures.left(number & 0xFFFF, 1, 100, number / 100)
        self.assertEqual(len(self.departures), MOST_RUNS)
        self.assertEqual(self.departures.under_way, MOST_RUNS * (100 + OVERHEAD))

    def test_age(self) -> None:
        """What no feedback has named for seconds is not under way any more."""
        self.departures.left(1, 1, 100, 10.0)
        self.departures.left(2, 1, 100, 14.0)
        self.departures.expire(10.0 + AGE + 0.1)
        self.assertEqual(self.departures.under_way, 100 + OVERHEAD)

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.lists(st.none() | st.integers(-9, 300), min_size=1))))
    def test_any_feedback(self, said: list[tuple[int, list[int | None]]]) -> None:
        """Whatever a client says of whatever numbers, the books stay sound and small."""
        departures = Departures()
        for number, (base, deltas) in enumerate(said):
            departures.left(number * 10, 10, 1000, number / 10)
            for each in departures.matched(feedback(base, *deltas))[0]:
                self.assertLessEqual(each.received + each.lost, 10)
            self.assertGreaterEqual(departures.under_way, 0)
            self.assertLessEqual(len(departures._doubtful), MOST_DOUBTFUL)
