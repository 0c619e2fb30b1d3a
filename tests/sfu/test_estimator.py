"""The estimate of what a subscriber's link takes, over links in virtual time."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.bandwidth import MOST_STATUSES, Bandwidth
from orama.sfu.departures import OVERHEAD
from orama.sfu.estimator import HIGHEST, LOWEST, START, Estimator
from orama.sfu.estimator_delay import DelayTrend, Usage
from orama.sfu.estimator_loss import LossBound
from orama.wire.transport_cc import TransportFeedback
from tests.sfu.links import Link, Receiver


class Flow:
    """Audio, video that fills the estimate in frames that leave at once, and the padding that is asked for."""

    def __init__(self, link: Link, limit: float = 20e6) -> None:
        self.link, self.limit = link, limit
        self.bandwidth = Bandwidth(0.0)
        self.bandwidth.wanted = limit
        self.receiver = Receiver(link, lambda body, now: self._told(body, now))
        self.estimates: list[tuple[float, float]] = []
        self.padded = 0
        self._number = self._tick = self._frame = self._voice = 0

    def _told(self, body: bytes, now: float) -> None:
        self.bandwidth.feedback(body, 2 * self.link.delay, now)

    def _send(self, count: int, size: int, now: float) -> None:
        self.bandwidth.departures.left(self._number & 0xFFFF, count, count * size, now)
        for _ in range(count):
            self.receiver.take(self._number, size + OVERHEAD, now)
            self._number += 1

    def run(self, start: float, end: float) -> None:
        """Everything that happens from *start* to *end*, in steps of 5 ms."""
        for step in range(round(start * 200), round(end * 200)):
            now = step / 200
            if now * 50 >= self._voice:
                self._voice += 1
                self._send(1, 80, now)
            if now * 30 >= self._frame:
                self._frame += 1
                rate = min(self.limit, self.bandwidth.estimator.bitrate or START) - 50 * 8 * (80 + OVERHEAD)
                octets = max(200.0, rate / 240 * self.link.random.uniform(0.7, 1.3))
                count = int(octets / 1100) + 1
                self._send(count, max(1, int(octets / count) - OVERHEAD), now)
            if now * 20 >= self._tick:
                self._tick += 1
                padding = self.bandwidth.padding(now)
                self.padded += padding
                if padding:
                    self._send(padding // 1100 + 1, 1000, now)
                self.estimates.append((now, self.bandwidth.estimator.bitrate or 0.0))
            self.receiver.run(now)

    def mean(self, start: float, end: float) -> float:
        found = [estimate for time, estimate in self.estimates if start <= time < end]
        return sum(found) / len(found)


class ConvergenceTests(SynchronousTestCase):
    def converges(self, rate: float, delay: float, jitter: float, loss: float) -> None:
        flow = Flow(Link(Random(7), rate, delay, jitter, loss))
        flow.run(0, 24)
        found = flow.mean(14, 24) / rate
        self.assertTrue(0.8 <= found <= 1.2, f"{found:.2f} of {rate:.0f} bit/s, {delay} s, {jitter} s, {loss}")

    def test_rates_and_delays(self) -> None:
        """Within 20 % of the link, from 200 kbit/s to 5 Mbit/s and from no delay to 200 ms."""
        for rate in (200e3, 1e6, 5e6):
            for delay in (0.0, 0.05, 0.2):
                self.converges(rate, delay, 0.0, 0.0)

    def test_jitter(self) -> None:
        """10 ms of jitter, which puts packets out of order too, change nothing."""
        for rate in (200e3, 1e6, 5e6):
            self.converges(rate, 0.05, 0.01, 0.0)

    def test_random_loss(self) -> None:
        """A link that loses 2 or 5 % at any rate is used all the same."""
        for rate in (200e3, 1e6, 5e6):
            for loss in (0.02, 0.05):
                self.converges(rate, 0.02, 0.01, loss)

    def test_the_link_changes(self) -> None:
        """A link that falls to a fifth is followed within 2 s, one that comes back within 20."""
        link = Link(Random(3), 3e6, 0.03)
        flow = Flow(link)
        flow.run(0, 12)
        link.rate = 600e3
        flow.run(12, 22)
        self.assertLess(flow.mean(14, 22), 1.2 * 600e3)
        self.assertGreater(flow.mean(16, 22), 0.8 * 600e3)
        link.rate = 3e6
        flow.run(22, 46)
        self.assertGreater(flow.mean(42, 46), 0.8 * 3e6)

    def test_a_link_without_a_queue(self) -> None:
        """Where too much is dropped at once, and delay tells nothing, loss does."""
        flow = Flow(Link(Random(3), 700e3, 0.03, queue=0.03))
        flow.run(0, 24)
        self.assertTrue(0.6 <= flow.mean(14, 24) / 700e3 <= 1.2, flow.mean(14, 24) / 700e3)

    def test_a_link_that_loses_nothing(self) -> None:
        """Behind a relay's TCP connection nothing is lost, all waits, and comes in clumps: delay alone tells."""
        for rate in (300e3, 2e6):
            link = Link(Random(3), rate, 0.03, queue=60.0)
            link.clump = 0.02
            flow = Flow(link)
            flow.run(0, 24)
            found = flow.mean(14, 24) / rate
            self.assertTrue(0.7 <= found <= 1.2, found)
            self.assertLess(link.waiting(24), 1.0)

    def test_what_is_not_used(self) -> None:
        """A sender that has little to send learns of no more than that, and does not pad for nothing."""
        flow = Flow(Link(Random(3), 50e6, 0.03), limit=200e3)
        flow.run(0, 20)
        self.assertLess(flow.mean(15, 20), 2 * START)
        self.assertEqual(flow.padded, 0)

    def test_probes_know_a_fast_link_soon(self) -> None:
        """While more is wanted a fast link is known to be fast within 3 s, for a second's worth of padding at most."""
        flow = Flow(Link(Random(3), 50e6, 0.03), limit=4e6)
        flow.run(0, 5)
        self.assertGreater(flow.mean(3, 5), 3.5e6)
        self.assertLess(flow.padded, 4e6 / 8)

    def test_two_links_are_two(self) -> None:
        """A narrow link of one subscriber says nothing of another's."""
        narrow, wide = Flow(Link(Random(1), 300e3, 0.05)), Flow(Link(Random(2), 4e6, 0.05))
        for start in range(20):
            narrow.run(start, start + 1)
            wide.run(start, start + 1)
        self.assertLess(narrow.mean(14, 20), 1.2 * 300e3)
        self.assertGreater(wide.mean(14, 20), 0.8 * 4e6)


class TrendTests(SynchronousTestCase):
    def feed(self, trend: DelayTrend, growth: float, count: int = 60, start: float = 0.0) -> Usage:
        usage = Usage.NORMAL
        for number in range(count):
            sent = start + number * 0.02
            arrived = sent + 5 + growth * (sent - start)
            trend.add(sent, arrived, arrived + 0.004)
            if number % 5 == 4:
                usage = trend.judge(sent)
                if usage is Usage.OVER:
                    break
        return usage

    def test_verdicts(self) -> None:
        """A queue that grows by 20 ms each 100 is overuse, one that shrinks is underuse, the rest neither."""
        for growth, verdict in ((0.0, Usage.NORMAL), (0.2, Usage.OVER), (-0.2, Usage.UNDER)):
            self.assertIs(self.feed(DelayTrend(), growth), verdict)

    def test_bursts_of_our_own(self) -> None:
        """Frames of any size that leave at once and are gone before the next are no queue."""
        trend, random = DelayTrend(), Random(5)
        for frame in range(300):
            sent = frame / 30
            trend.add(sent, sent + 5, sent + 5 + random.uniform(0.001, 0.03))
            if frame % 3 == 0:
                self.assertIs(trend.judge(sent), Usage.NORMAL)
        self.assertLess(trend.queueing, 0.001)

    def test_a_clock_that_leaps(self) -> None:
        """An arrival clock that is set anew, or a long silence, begins the trend anew."""
        trend = DelayTrend()
        self.feed(trend, 0.0)
        trend.add(2.0, 500.0, 500.0)
        self.assertIs(self.feed(trend, 0.0, start=3.0), Usage.NORMAL)
        self.assertLess(trend.queueing, 0.001)


class LossTests(SynchronousTestCase):
    def test_rises_and_falls(self) -> None:
        """More than 10 % lower the bound below what gets through, less than 2 % raise it."""
        bound = LossBound(LOWEST)
        bound.verdict(0.3, 1e6, 0.7e6, 1.0)
        self.assertLess(bound.rate, 0.7e6)
        before = bound.rate
        bound.verdict(0.0, before, before, 2.0)
        self.assertGreater(bound.rate, before)

    def test_loss_that_stays(self) -> None:
        """Loss that a lower rate does not end belongs to the link, and stops lowering the rate."""
        bound = LossBound(LOWEST)
        for second in range(30):
            rate = min(bound.rate, 2e6)
            bound.verdict(0.2, rate, 0.8 * rate, float(second))
        self.assertGreater(bound.rate, 1e6)

    def test_never_below_the_least(self) -> None:
        """Whatever is lost, the bound stays above the least."""
        bound = LossBound(LOWEST)
        for second in range(50):
            bound.verdict(0.2 + 0.015 * second, min(bound.rate, 1e6), None, float(second), queueing=1.0)
        self.assertEqual(bound.rate, LOWEST)


class FallbackTests(SynchronousTestCase):
    def test_nothing_known(self) -> None:
        """Who tells nothing has no estimate, and receiver reports without loss tell nothing."""
        estimator = Estimator()
        self.assertIsNone(estimator.bitrate)
        for second in range(10):
            estimator.reported(0.05, 1e6, float(second))
        self.assertIsNone(estimator.bitrate)

    def test_remb(self) -> None:
        """REMB is taken as it is, within the limits, where nothing better comes."""
        estimator = Estimator(highest=2e6)
        for said, taken in ((500_000, 500_000), (9_000_000, 2_000_000), (10, LOWEST)):
            estimator.remb(said, 1.0)
            self.assertEqual(estimator.bitrate, taken)
        self.assertTrue(estimator.limited(1.0))

    def test_feedback_before_remb(self) -> None:
        """While transport-wide feedback comes REMB counts for nothing; when it has ceased it counts again."""
        estimator = Estimator()
        estimator.feedback((), 0, 0.05, 10.0)
        estimator.remb(300_000, 11.0)
        self.assertEqual(estimator.bitrate, START)
        estimator.remb(300_000, 20.0)
        self.assertEqual(estimator.bitrate, 300_000)

    def test_reports_alone(self) -> None:
        """With reports alone much loss makes a bound below what was sent, which goes when the loss has gone."""
        estimator = Estimator()
        for second in range(6):
            estimator.reported(0.4, 1e6 * 0.8**second, float(second))
        self.assertLess(estimator.bitrate or HIGHEST, 0.8e6)
        for second in range(60):
            estimator.reported(0.0, 0.4e6, 10.0 + second)
        self.assertIsNone(estimator.bitrate)


class RationTests(SynchronousTestCase):
    def test_feedback_that_is_much_work(self) -> None:
        """Messages that claim thousands of statuses are read up to the ration, and no more of them."""
        bandwidth = Bandwidth(100.0)
        body = TransportFeedback(1, 2, 0, 100, 0, (None,) * 2000 + (1,)).serialize()[4:]
        read = sum(bandwidth.feedback(body, None, 100.0) for _ in range(50))
        self.assertEqual(read, MOST_STATUSES // 2001)

    def test_rubbish(self) -> None:
        """What is no feedback is refused and changes nothing."""
        bandwidth = Bandwidth(100.0)
        for body in (b"", b"\0" * 12, b"\xff" * 40):
            self.assertFalse(bandwidth.feedback(body, None, 100.0))
        self.assertIsNone(bandwidth.estimator.bitrate)
