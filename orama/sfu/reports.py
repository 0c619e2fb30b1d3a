"""Receiver and sender reports (RFC 3550, 6.4): what we say about a publisher's stream, and clocks.

``Reception`` counts one incoming stream for report blocks; ``StreamClock`` is the relation of its RTP time to
its sender's wall clock; ``RoundTrip`` is measured from the blocks that subscribers send us.
"""

from __future__ import annotations

from attrs import frozen

from orama.wire.rtcp import ReportBlock, SenderReport

#: Sender reports whose answers are awaited.
REPORTS = 256

_SECOND = 1 << 32


@frozen
class StreamClock:
    """A sender report's pair of times, and when it came."""

    ntp_time: int
    rtp_time: int
    arrival: float

    def rtp_at(self, ntp_time: int, rate: int) -> int:
        """RTP time of the stream when its sender's wall clock showed *ntp_time*."""
        return (self.rtp_time + ((ntp_time - self.ntp_time) * rate + _SECOND // 2) // _SECOND) & 0xFFFFFFFF

    def ntp_at(self, rtp_time: int, rate: int) -> int:
        """Wall clock of the sender when its RTP time was *rtp_time*, which is less than 2³¹ away."""
        distance = ((rtp_time - self.rtp_time + 0x80000000) & 0xFFFFFFFF) - 0x80000000
        return self.ntp_time + distance * _SECOND // rate

    def after(self, now: float, rate: int) -> StreamClock:
        """The same clock read at *now*."""
        elapsed = max(0.0, now - self.arrival)
        ntp_time = (self.ntp_time + int(elapsed * _SECOND)) & 0xFFFFFFFFFFFFFFFF
        return StreamClock(ntp_time, (self.rtp_time + int(elapsed * rate)) & 0xFFFFFFFF, now)


class Reception:
    """What came of one stream. The stream itself counts packets; this turns counts into report blocks."""

    __slots__ = ("_expected_before", "_received_before", "_transit", "base", "jitter", "received")

    def __init__(self, base: int) -> None:
        self.base = base
        self.received = 0
        #: In timestamp units (RFC 3550, A.8).
        self.jitter = 0.0
        self._transit: float | None = None
        self._expected_before = 0
        self._received_before = 0

    def frame(self, timestamp: int, now: float, rate: int) -> None:
        """The first packet of a new timestamp came; those after it left with it, so they say nothing."""
        transit = (now * rate - timestamp) % _SECOND
        if self._transit is not None:
            distance = (transit - self._transit + 0x80000000) % _SECOND - 0x80000000
            self.jitter += (abs(distance) - self.jitter) / 16
        self._transit = transit

    def block(self, ssrc: int, highest: int, clock: StreamClock | None, now: float) -> ReportBlock:
        """The report since the last one (RFC 3550, A.3)."""
        expected = highest - self.base + 1
        expected_since, received_since = expected - self._expected_before, self.received - self._received_before
        self._expected_before, self._received_before = expected, self.received
        lost = expected_since - received_since
        fraction = min(255, lost * 256 // expected_since) if expected_since > 0 and lost > 0 else 0
        last, delay = 0, 0
        if clock is not None:
            last = clock.ntp_time >> 16 & 0xFFFFFFFF
            delay = min(0xFFFFFFFF, int(max(0.0, now - clock.arrival) * 65536))
        return ReportBlock(
            ssrc,
            fraction,
            expected - self.received,
            highest & 0xFFFFFFFF,
            min(0xFFFFFFFF, int(self.jitter)),
            last,
            delay,
        )


class RoundTrip:
    """Seconds to one client and back, smoothed; None until the first measure."""

    __slots__ = ("_sent", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        # (ssrc, middle 32 bits of the report's NTP time) → when it was sent; the latest few alone
        self._sent: dict[tuple[int, int], float] = {}

    def sent(self, report: SenderReport, now: float) -> None:
        """Remember that *report* left at *now*."""
        key = (report.ssrc, report.ntp_time >> 16 & 0xFFFFFFFF)
        self._sent.pop(key, None)
        self._sent[key] = now
        if len(self._sent) > REPORTS:
            del self._sent[next(iter(self._sent))]

    def measure(self, block: ReportBlock, now: float) -> None:
        """A report block about one of our streams came."""
        sent = self._sent.get((block.ssrc, block.last_report))
        if sent is None or not block.last_report:
            return
        value = now - sent - block.delay / 65536
        if 0 <= value < 10:
            self.value = value if self.value is None else self.value + (value - self.value) / 4
