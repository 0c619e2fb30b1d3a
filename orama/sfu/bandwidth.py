"""What one client's link takes, and finding it out: departures, estimate and probes in one place, sans-IO.

``PeerMedia`` hands in what the client says and asks for padding in each tick. Nothing here decides what is forwarded:
that is ``sfu.allocator``.
"""

from __future__ import annotations

from orama.sfu.allowance import Allowance
from orama.sfu.departures import Departures
from orama.sfu.estimator import HIGHEST, START, Estimator
from orama.sfu.probing import Prober
from orama.wire.transport_cc import TransportFeedback, TransportFeedbackError

#: Statuses of feedback a second that one client may have read, and at once: more than any of them is sent packets.
STATUS_RATE, MOST_STATUSES = 20_000, 10_000


class Bandwidth:
    """One client's.

    :ivar departures: to be told of each run that leaves under transport-wide numbers.
    :ivar wanted: bits per second that would be of use; probes go no further.
    """

    __slots__ = ("_statuses", "departures", "estimator", "prober", "wanted")

    def __init__(self, now: float, start: float = START, highest: float = HIGHEST) -> None:
        self.departures = Departures()
        self.estimator = Estimator(start, highest)
        self.prober = Prober()
        self.wanted = 0.0
        self._statuses = Allowance(STATUS_RATE, MOST_STATUSES, now)

    def feedback(self, body: bytes, round_trip: float | None, now: float) -> bool:
        """Take a transport-wide feedback packet without its RTCP header; False when it is malformed or too much.

        Its length says nothing of its work, so the work is what is rationed.
        """
        claimed = TransportFeedback.statuses(body)
        if self._statuses.take(claimed, now) < claimed:
            return False
        try:
            feedback = TransportFeedback.parse(body)
        except TransportFeedbackError:
            return False
        arrivals, late = self.departures.matched(feedback)
        self.estimator.feedback(arrivals, late, round_trip, now)
        prober = self.prober
        if prober.target:
            rate = prober.feedback(arrivals, now)
            met = self.estimator.overused
            if rate is not None or not self.estimator.calm(now):
                rate = prober.found
                self.estimator.probed(rate, prober.target, now)
                prober.end(rate, met, now)
        return True

    def padding(self, now: float) -> int:
        """Bytes of padding to send in this tick, to find out more."""
        estimator, prober, total = self.estimator, self.prober, self.departures.total
        if prober.late(now):
            prober.end(0.0, False, now)
        estimate = estimator.bitrate
        if estimate is None:
            return 0
        if not prober.target and self.wanted > estimate and estimator.calm(now):
            prober.consider(self.wanted, estimate, estimator.throughput, total, now)
        return prober.padding(total, now)
