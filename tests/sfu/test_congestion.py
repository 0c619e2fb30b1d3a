"""Transport-wide arrival times, as the publisher's estimator reads them."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.congestion import (
    INTERVAL,
    MOST_MISSING,
    MOST_WAITING,
    REMB_HIGHEST,
    REMB_LOWEST,
    REMB_START,
    REPORTED,
    Arrivals,
    LossEstimate,
)
from orama.wire.rtcp import parse
from orama.wire.transport_cc import TICK, TransportFeedback


def times(messages: list[TransportFeedback]) -> dict[int, float | None]:
    """What the messages say: 16-bit number → seconds (modulo the reference time's wrap), None for lost."""
    said: dict[int, float | None] = {}
    for message in messages:
        (again,) = parse(message.serialize())
        assert again == message
        clock = message.reference_time * 0.064
        for offset, delta in enumerate(message.deltas):
            number = (message.base_sequence + offset) & 0xFFFF
            if delta is None:
                said[number] = None
            else:
                clock += delta * TICK
                said[number] = clock
    return said


class ArrivalTests(SynchronousTestCase):
    def test_reports_times(self) -> None:
        """Every arrival is reported within a quarter of a millisecond, losses between them as lost."""
        arrivals = Arrivals()
        arrivals.waiting.update({10: 100.0, 11: 100.001, 14: 100.25, 13: 100.26})
        said = times(arrivals.feedback(1, 2, 100.3))
        self.assertEqual(said.keys(), set(range(10, 15)))
        self.assertIsNone(said[12])
        for number, expected in ((10, 100.0), (11, 100.001), (13, 100.26), (14, 100.25)):
            self.assertApproximates(said[number] or 0, expected, TICK)

    def test_losses_between_messages(self) -> None:
        """Numbers skipped between two messages are reported by the second."""
        arrivals = Arrivals()
        arrivals.waiting.update({10: 100.0})
        arrivals.feedback(1, 2, 100.0)
        arrivals.waiting.update({15: 100.1})
        (message,) = arrivals.feedback(1, 2, 100.1)
        self.assertEqual((message.base_sequence, len(message.deltas), message.feedback_count), (11, 5, 1))

    def test_gaps_without_end(self) -> None:
        """A sender that skips thousands of numbers is told of its arrivals, and of no more losses than the limit."""
        arrivals = Arrivals()
        arrivals.waiting.update({0: 100.0})
        arrivals.feedback(1, 2, 100.0)
        sent = [number * 1000 for number in range(1, 33)]
        arrivals.waiting.update(dict.fromkeys(sent, 100.1))
        said = times(arrivals.feedback(1, 2, 100.1))
        self.assertEqual({number for number, time in said.items() if time is not None}, set(sent))
        self.assertLessEqual(sum(time is None for time in said.values()), MOST_MISSING)

    def test_late_packets(self) -> None:
        """One that comes after its message is reported then, and those around it do not become losses."""
        arrivals = Arrivals()
        arrivals.waiting.update({10: 100.0, 12: 100.0, 13: 100.0})
        self.assertIsNone(times(arrivals.feedback(1, 2, 100.0))[11])
        arrivals.waiting.update({11: 100.1, 14: 100.1})
        said = times(arrivals.feedback(1, 2, 100.1))
        self.assertEqual(set(said), {11, 12, 13, 14})
        self.assertNotIn(None, said.values())

    def test_wrap(self) -> None:
        """The numbers wrap at 2¹⁶ and nothing is lost by that."""
        arrivals = Arrivals()
        for start in range(65000, 3 * 65536, 50):
            arrivals.waiting.update({(start + each) & 0xFFFF: 100.0 for each in range(50)})
            (message,) = arrivals.feedback(1, 2, 100.0)
            self.assertEqual((message.base_sequence, len(message.deltas)), (start & 0xFFFF, 50))
            self.assertNotIn(None, message.deltas)

    def test_pace(self) -> None:
        """Every 50 ms when something waits, sooner when much does, never when nothing does."""
        arrivals = Arrivals()
        self.assertFalse(arrivals.due(100.0))
        arrivals.waiting[1] = 100.0
        self.assertTrue(arrivals.due(100.0))
        arrivals.feedback(1, 2, 100.0)
        arrivals.waiting[2] = 100.0
        self.assertFalse(arrivals.due(100.0 + INTERVAL - 0.01))
        self.assertTrue(arrivals.due(100.0 + INTERVAL + 0.001))
        arrivals.waiting.update(dict.fromkeys(range(MOST_WAITING), 100.0))
        self.assertTrue(arrivals.due(100.001))

    def test_bounded(self) -> None:
        """Messages fit into a datagram at a sane rate, and what is remembered is bounded."""
        arrivals = Arrivals()
        for start in range(0, 20_000, MOST_WAITING):
            arrivals.waiting.update({(start + each) & 0xFFFF: 100.0 + each / 1e4 for each in range(MOST_WAITING)})
            for message in arrivals.feedback(1, 2, 100.0):
                self.assertLess(len(message.serialize()), 1200)
        self.assertLessEqual(len(arrivals._reported), REPORTED)
        self.assertEqual(arrivals.waiting, {})

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.integers(0, 0xFFFF),
        st.lists(st.tuples(st.integers(1, 9000), st.floats(0, 30)), min_size=1, max_size=30),
    )
    def test_any_arrivals(self, start: int, steps: list[tuple[int, float]]) -> None:
        """Whatever comes whenever, each message can be written, and each arrival is in one."""
        arrivals, number, now = Arrivals(), start, 100.0
        for step, pause in steps:
            number, now = (number + step) & 0xFFFF, now + pause
            arrivals.waiting[number] = now
            if pause > 15:
                said = times(arrivals.feedback(1, 2, now))
                self.assertApproximates(said[number] or 0, now, 2 * TICK)
        times(arrivals.feedback(1, 2, now))
        self.assertEqual(arrivals.waiting, {})


class LossEstimateTests(SynchronousTestCase):
    def test_goes_up_and_down(self) -> None:
        """Up by 8 % while nothing is lost, down by half the loss above 10 %, within its borders."""
        estimate = LossEstimate()
        estimate.update(0.0)
        self.assertEqual(estimate.bitrate, int(REMB_START * 1.08))
        estimate.update(0.05)
        self.assertEqual(estimate.bitrate, int(REMB_START * 1.08))
        estimate.update(0.5)
        self.assertEqual(estimate.bitrate, int(int(REMB_START * 1.08) * 0.75))
        for _ in range(100):
            estimate.update(0.9)
        self.assertEqual(estimate.bitrate, REMB_LOWEST)
        for _ in range(100):
            estimate.update(0.0)
        self.assertEqual(estimate.bitrate, REMB_HIGHEST)

    def test_highest(self) -> None:
        """A limit of the operator's holds from the start and after losses, however low it is."""
        for highest in (50_000, 400_000):
            estimate = LossEstimate(highest)
            for lost in (0.0, 0.5, 0.0, 0.0, 0.0):
                estimate.update(lost)
                self.assertLessEqual(estimate.bitrate, highest)
