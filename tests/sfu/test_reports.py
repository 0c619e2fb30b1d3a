"""Receiver reports, clocks and the round trip (RFC 3550, 6.4 and A.3)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.reports import Reception, RoundTrip, StreamClock
from orama.wire.rtcp import ReportBlock, SenderReport

SECOND = 1 << 32


class ReceptionTests(SynchronousTestCase):
    def test_loss(self) -> None:
        """The fraction is of the last interval, the sum of all; duplicates make neither negative fractions."""
        reception = Reception(1000)
        reception.received = 90
        block = reception.block(5, 1099, None, 10.0)
        self.assertEqual((block.ssrc, block.fraction_lost, block.packets_lost), (5, 25, 10))
        reception.received = 190
        block = reception.block(5, 1199, None, 11.0)
        self.assertEqual((block.fraction_lost, block.packets_lost), (0, 10))
        reception.received = 320
        block = reception.block(5, 1299, None, 12.0)
        self.assertEqual((block.fraction_lost, block.packets_lost), (0, -20))
        self.assertEqual(reception.block(5, 1299, None, 13.0).fraction_lost, 0)

    def test_clock_is_returned(self) -> None:
        """LSR is the middle of the NTP time, DLSR the time since it came, in 1/65536 s."""
        clock = StreamClock(0x1111222233334444, 0, 10.0)
        block = Reception(1).block(5, 1, clock, 10.5)
        self.assertEqual((block.last_report, block.delay), (0x22223333, 32768))

    def test_jitter(self) -> None:
        """Even arrival has none; arrival that is 10 ms off every other time has (RFC 3550, A.8)."""
        even, uneven = Reception(0), Reception(0)
        for number in range(200):
            even.frame(number * 3000, 10 + number / 30, 90000)
            uneven.frame(number * 3000, 10 + number / 30 + number % 2 * 0.01, 90000)
        self.assertLess(even.jitter, 1)
        self.assertApproximates(uneven.jitter, 900, 10)

    def test_jitter_over_the_wrap(self) -> None:
        """The timestamp's wrap is no jump."""
        reception = Reception(0)
        for number in range(100):
            reception.frame((0xFFFFFFFF - 90000 + number * 3000) & 0xFFFFFFFF, 10 + number / 30, 90000)
        self.assertLess(reception.jitter, 1)


class ClockTests(SynchronousTestCase):
    def test_there_and_back(self) -> None:
        """RTP time and wall clock turn into each other, before and after the report and across the wrap."""
        clock = StreamClock(1000 * SECOND, 0xFFFFFF00, 10.0)
        self.assertEqual(clock.rtp_at(1001 * SECOND, 90000), (0xFFFFFF00 + 90000) & 0xFFFFFFFF)
        self.assertEqual(clock.ntp_at((0xFFFFFF00 + 90000) & 0xFFFFFFFF, 90000), 1001 * SECOND)
        self.assertEqual(clock.ntp_at(0xFFFFFF00 - 45000, 90000), 1000 * SECOND - SECOND // 2)

    def test_later(self) -> None:
        """A clock goes on by itself."""
        later = StreamClock(1000 * SECOND, 500, 10.0).after(12.5, 48000)
        self.assertEqual((later.ntp_time, later.rtp_time), (1002 * SECOND + SECOND // 2, 500 + 120000))


class RoundTripTests(SynchronousTestCase):
    def test_measured_by_our_reports(self) -> None:
        """Now, less when the report left, less how long the other side kept it."""
        trip = RoundTrip()
        self.assertIsNone(trip.value)
        trip.sent(SenderReport(7, 0x1111222233334444, 0, 0, 0), 10.0)
        trip.measure(ReportBlock(7, last_report=0x22223333, delay=65536), 11.08)
        self.assertAlmostEqual(trip.value or 0, 0.08)

    def test_nonsense_is_ignored(self) -> None:
        """Unknown reports, other streams and delays that cannot be measure nothing."""
        trip = RoundTrip()
        trip.sent(SenderReport(7, 0x1111222233334444, 0, 0, 0), 10.0)
        trip.measure(ReportBlock(7, last_report=0x22223334), 10.1)
        trip.measure(ReportBlock(8, last_report=0x22223333), 10.1)
        trip.measure(ReportBlock(7), 10.1)
        trip.measure(ReportBlock(7, last_report=0x22223333, delay=65536 * 5), 10.1)
        self.assertIsNone(trip.value)

    def test_bounded(self) -> None:
        """However many reports are sent and never answered, few are remembered."""
        trip = RoundTrip()
        for number in range(1000):
            trip.sent(SenderReport(7, number << 16, 0, 0, 0), 10.0)
        self.assertLessEqual(len(trip._sent), 256)
