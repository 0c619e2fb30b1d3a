"""How many bits per second one client can take from us, from whatever it tells: Google congestion control in form.

Transport-wide feedback gives delay (``sfu.estimator_delay``, ``sfu.estimator_rate``) and loss (``sfu.estimator_loss``),
and the lower of the two counts. A client that sends none may send REMB, its own estimate; one that sends neither has
receiver reports, whose loss bounds a rate only after there was much of it. No clock of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from orama.sfu.departures import Arrived
from orama.sfu.estimator_delay import DelayTrend, Usage
from orama.sfu.estimator_loss import LITTLE, MUCH, LossBound
from orama.sfu.estimator_rate import STANDING, RateControl, Throughput

#: Bits per second: what a client is believed to take at first, and the least and the most that it is ever believed to.
START, LOWEST, HIGHEST = 800_000, 100_000, 30_000_000
#: Seconds that a limit counts as seen, after the rate fell or a probe found no more.
SEEN = 30.0
#: Seconds without transport-wide feedback after which REMB and reports count again.
SILENCE = 5.0
#: Seconds without a new REMB, while reports come, after which the last one says no more than what to begin with.
REMB_AGE = 10.0
#: Seconds after a decrease in which nothing is tried.
CALM = 2.0
#: A probe that gets less than this part of itself through has met the limit.
FOUND = 0.85
#: Seconds without a word after which what was sent meanwhile counts for nothing.
GAP = 1.5
#: Seconds of a round trip that nobody has measured.
ROUND_TRIP = 0.1


class Estimator:
    """The estimate for one client.

    :param start: bits per second to begin with, as far as something is known.
    :param highest: bits per second that are never exceeded.
    """

    __slots__ = (
        "_control",
        "_fed",
        "_highest",
        "_limited",
        "_loss",
        "_remb",
        "_remb_at",
        "_start",
        "_throughput",
        "_trend",
    )

    def __init__(self, start: float = START, highest: float = HIGHEST) -> None:
        self._highest = highest
        self._start = min(max(start, LOWEST), highest)
        self._trend = DelayTrend()
        self._throughput = Throughput()
        self._control = RateControl(self._start, min(LOWEST, highest))
        self._loss = LossBound(min(LOWEST, highest))
        self._remb: float | None = None
        self._remb_at = float("-inf")
        self._fed: float | None = None
        self._limited = float("-inf")

    # -- what is known ------------------------------------------------------------------------------

    @property
    def bitrate(self) -> float | None:
        """Bits per second on the wire; None while the client has told nothing."""
        if self._fed is not None:
            rate = min(self._control.rate, self._loss.rate)
        elif self._remb is not None:
            rate = self._remb
        elif self._loss.rate < float("inf"):
            rate = self._loss.rate
        else:
            return None
        return max(min(LOWEST, self._highest), min(rate, self._highest))

    @property
    def throughput(self) -> float | None:
        """Bits per second that have arrived lately, None while unknown."""
        return self._throughput.value

    @property
    def queueing(self) -> float:
        """Seconds that packets wait on the way, beyond the least of the last seconds."""
        return self._trend.queueing

    @property
    def lost(self) -> float:
        """The part of the packets that was lost lately."""
        return self._loss.lost

    @property
    def told(self) -> bool:
        """Whether transport-wide feedback comes."""
        return self._fed is not None

    def limited(self, now: float) -> bool:
        """Whether the estimate is what the link takes, seen lately, and not merely as far as we have got."""
        if self._fed is None:
            # REMB is a limit. Loss alone shows only that less is better: what is paused for that could prove nothing.
            return self._remb is not None
        return now - self._limited < SEEN

    @property
    def inherent(self) -> float:
        """The part that the link loses at any rate."""
        return self._loss.inherent

    @property
    def overused(self) -> bool:
        """Whether the queue grows, or is long."""
        return self._trend.usage is Usage.OVER or self._trend.queueing > STANDING

    def calm(self, now: float) -> bool:
        """Whether more may be tried now: no queue and no loss was just seen."""
        decreased = max(self._control.decreased, self._loss.decreased)
        told = self._fed is not None and now - self._fed < GAP
        return told and not self.overused and now - decreased > CALM and self._loss.lost <= MUCH

    # -- what the client tells ------------------------------------------------------------------------

    def feedback(self, arrivals: Sequence[Arrived], late: int, round_trip: float | None, now: float) -> None:
        """Transport-wide feedback, matched with what was sent (25 µs for 17 packets of 8 runs)."""
        gap = self._fed is not None and now - self._fed > GAP
        self._fed = now
        trend, loss = self._trend, self._loss
        if gap:
            # The path was away, and may be another now: what was lost meanwhile tells of neither.
            trend.restart()
            loss.restart()
            self._throughput.clear()
            return
        for each in arrivals:
            if each.received:
                trend.add(each.sent, each.first, each.last)
        loss.add(arrivals, late)
        self._throughput.add(arrivals)
        throughput = self._throughput.value
        control = self._control
        before = control.decreased, loss.decreased
        usage, queueing = trend.judge(now), trend.queueing
        if throughput is not None and (usage is Usage.OVER or queueing > STANDING):
            throughput = max(throughput, self._throughput.latest or 0.0)
        control.update(usage, throughput, queueing, ROUND_TRIP if round_trip is None else round_trip, now)
        loss.update(min(control.rate, loss.rate), throughput, queueing, now)
        if before != (control.decreased, loss.decreased):
            self._limited = now
            trend.forget()

    def remb(self, bitrate: float, now: float) -> None:
        """The client's own estimate."""
        self._remb, self._remb_at = bitrate, now
        if self._fed is not None and now - self._fed > SILENCE:
            self._fed = None

    def reported(self, lost: float, sent: float, now: float) -> None:
        """A receiver report: a part of *lost* of what was sent at *sent* bits per second.

        Counts only where there is nothing better.
        """
        if self._remb is not None and now - self._remb_at > REMB_AGE:
            # Nobody stands by it any more, and a client that gets no video would not say another.
            self._loss.rate, self._remb = min(self._loss.rate, self._remb), None
        if self._remb is not None or (self._fed is not None and now - self._fed < SILENCE):
            return
        before = self._loss.decreased
        self._loss.verdict(lost, min(self._loss.rate, sent), None, now)
        if before != self._loss.decreased:
            self._limited = now
        elif self._loss.rate > 2 * max(sent, LOWEST):
            self._loss.rate = float("inf")

    def unfed(self, now: float) -> None:
        """Transport-wide feedback has ended though there was something to tell: from now on reports count."""
        if self._fed is not None and now - self._fed > SILENCE:
            self._loss.rate, self._fed = min(self._loss.rate, self._control.rate), None

    def probed(self, rate: float, wanted: float, now: float) -> None:
        """A probe at *wanted* bits per second got *rate* through."""
        # Without a queue or a loss it was we who did not send enough.
        limit = rate < FOUND * wanted and (self.overused or self._loss.lost > LITTLE)
        if limit:
            self._limited = now
        if self._trend.usage is not Usage.OVER and rate > (self.bitrate or 0.0):
            self._control.proved(rate, limit)
            self._loss.proved(rate)
