"""One subscriber's bandwidth, from what it tells to what it gets: where estimate, probes, shares and bounds meet.

``PeerMedia`` owns one. It sleeps, and costs nothing, while no video is subscribed to: what remains then is audio, which
is never held back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orama.sfu.allocator import Allocator, Share, Subscription
from orama.sfu.bandwidth import Bandwidth
from orama.sfu.counters import MediaCounters
from orama.sfu.downlink import Downlink
from orama.sfu.estimator import HIGHEST, START
from orama.sfu.estimator_loss import FEWEST
from orama.sfu.outbox import Outbox
from orama.sfu.reports import RoundTrip
from orama.sfu.shaping import bound
from orama.wire.rtcp import ReportBlock

#: Seconds over which the rate of sending is measured for those who tell of nothing but loss.
PACE = 1.0
#: Seconds without any feedback after which departures are not noted any more.
PATIENCE = 10.0
#: Reports without any feedback between them after which feedback counts as ended.
UNFED = 3
#: The part of the estimate that repairs may take where a limit was seen; what is left to the media at least.
REPAIRS, LEAST_MEDIA = 0.25, 0.7
#: The part of the estimate that goes to no better quality after too much was under way, and for how many seconds.
CAUTIOUS, CAUTION = 0.25, 6.0


class Sharing:
    """
    :param downlinks: the subscriptions by track id; the caller keeps it.
    :param highest: bits per second that are sent at most, 0 for the usual limit.
    """

    def __init__(
        self,
        outbox: Outbox,
        downlinks: Mapping[str, Downlink],
        round_trip: RoundTrip,
        counters: MediaCounters,
        now: float,
        highest: float = 0,
    ) -> None:
        self._outbox = outbox
        self._downlinks = downlinks
        self._round_trip = round_trip
        self._counters = counters
        self._bandwidth = Bandwidth(now, START, highest or HIGHEST)
        self._allocator = Allocator()
        self._awake = False
        self._since = now
        self._measured = now
        self._octets = 0
        # Packets that reports spoke of, and how many of them were lost; by SSRC what had been sent at the last report.
        self._reported, self._lost = 0, 0.0
        self._told: dict[int, int] = {}
        # Reports since the last feedback, and bytes that had left under transport-wide numbers by then.
        self._unfed = self._heard = 0
        # Bytes of repairs at the last measure, and bits per second of them.
        self._repaired, self._repairs = 0, 0.0
        self._crowded = float("-inf")

    # -- what is known ------------------------------------------------------------------------------

    @property
    def estimate(self) -> float | None:
        """Bits per second on the wire that the client is believed to take; None while nothing says so."""
        return self._bandwidth.estimator.bitrate if self._awake else None

    @property
    def shares(self) -> Mapping[str, Share]:
        """Track id → what the subscription was given; empty while everything is forwarded."""
        return self._allocator.shares

    # -- what the client tells ------------------------------------------------------------------------

    def feedback(self, body: bytes, now: float) -> None:
        """Transport-wide feedback without its RTCP header."""
        if not self._awake:
            return
        self._outbox.departures = self._bandwidth.departures
        self._unfed, self._heard = 0, self._bandwidth.departures.total
        if not self._bandwidth.feedback(body, self._round_trip.value, now):
            self._counters.dropped["feedback"] += 1

    def remb(self, bitrate: int, now: float) -> None:
        if self._awake:
            self._bandwidth.estimator.remb(bitrate, now)

    def reported(self, blocks: Sequence[ReportBlock], by_ssrc: Mapping[int, Downlink]) -> None:
        """Receiver reports: each counts for as much as was sent since the last, all together until that is enough.

        That one of the five packets a second of a silent microphone is lost says nothing.
        """
        if self._awake and self._bandwidth.departures.total > self._heard:
            # Of what carries no transport-wide numbers, as audio in some clients, feedback is silent.
            self._unfed += 1
        for block in blocks:
            downlink = by_ssrc.get(block.ssrc)
            if downlink is not None and self._awake:
                sent = downlink.packets_sent - self._told.get(block.ssrc, 0)
                self._told[block.ssrc] = downlink.packets_sent
                self._reported += sent
                self._lost += block.fraction_lost / 256 * sent
        if len(self._told) > 2 * len(by_ssrc):
            self._told = {ssrc: sent for ssrc, sent in self._told.items() if ssrc in by_ssrc}

    # -- time ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Share out, probe, set the bound; every 50 ms (3 µs, an allocation once a second 20 for each video)."""
        videos = [each for each in self._downlinks.values() if each.kind == "video"]
        if not videos:
            if self._awake:
                self._sleep()
            return
        bandwidth, allocator = self._bandwidth, self._allocator
        if not self._awake:
            self._awake, self._since = True, now
            self._outbox.departures = bandwidth.departures
        self._measure(now)
        bandwidth.departures.expire(now)
        estimator, departures = bandwidth.estimator, bandwidth.departures
        if not estimator.told and now - self._since > PATIENCE:
            # Nobody reads what is noted; a word of feedback begins it again.
            self._outbox.departures = None
            departures.clear()
        estimate = estimator.bitrate
        if estimate is None:
            departures.most = self._outbox.repairs = float("inf")
            if allocator.shares:
                allocator.release(self._subscriptions(), now)
            return
        limited = estimator.limited(now)
        outbox = self._outbox
        if outbox.crowded and now - self._crowded > CAUTION:
            # More was given than could be sent, whatever the estimate says: less of it for a while.
            self._crowded = now
            allocator.renew()
        # What is sent again is not there for the media.
        share = max(LEAST_MEDIA, 1 - self._repairs / estimate)
        media = estimate * share
        kept = CAUTIOUS * media if now - self._crowded < CAUTION else 0.0
        limit = REPAIRS * estimate / 8 if limited else float("inf")
        outbox.repairs = min(limit / 2, max(0.0, outbox.repairs) + limit / 20)
        if allocator.due(media, self._downlinks.keys(), now):
            allocator.share(self._subscriptions(), media, limited, now, kept)
        # Without feedback nothing would ever end what is under way.
        most = bound(estimate, estimator.throughput, self._round_trip.value, limited)
        departures.most = most if estimator.told else float("inf")
        padded = next((each for each in videos if each.repairs.can_pad), None)
        bandwidth.wanted = 0.0 if padded is None else allocator.wanted / share
        padding = bandwidth.padding(now)
        if padding and padded is not None:
            padded.repairs.pad(padding, now)

    def renew(self) -> None:
        """Share out anew with the next tick: something else is forwarded under an old name."""
        self._allocator.renew()

    def asked(self, key: str) -> None:
        """The client asks for another layer of this subscription: see to it with the next tick."""
        self._allocator.forget(key)

    def _subscriptions(self) -> dict[str, Subscription]:
        return dict(self._downlinks)

    def _measure(self, now: float) -> None:
        """Once a second: what the reports of the last one say of what was sent in it."""
        if now - self._measured < PACE:
            return
        self._repairs = (self._outbox.repaired - self._repaired) * 8 / (now - self._measured)
        self._repaired = self._outbox.repaired
        octets = sum(each.octets_sent for each in self._downlinks.values())
        pace = max(0, octets - self._octets) * 8 / (now - self._measured)
        self._measured, self._octets = now, octets
        if self._unfed >= UNFED:
            self._bandwidth.estimator.unfed(now)
        if self._reported >= FEWEST:
            self._bandwidth.estimator.reported(self._lost / self._reported, pace, now)
            self._reported, self._lost = 0, 0.0

    def _sleep(self) -> None:
        self._awake = False
        self._outbox.departures = None
        self._outbox.repairs = float("inf")
        self._bandwidth.departures.clear()
        self._bandwidth.wanted = 0.0
        self._allocator.shares = {}
