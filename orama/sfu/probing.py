"""Finding out whether a client's link takes more than is sent: clusters of padding (draft-ietf-rmcat-gcc-02, 6).

What was never sent was never measured. While a better quality is wanted than the estimate allows, padding fills up what
is sent to a higher rate for a fifth of a second, and the feedback says what came of it. At first each cluster goes for
twice what has got through, so that a fast link is known within two seconds; later for half as much again.
"""

from __future__ import annotations

from collections.abc import Sequence

from orama.sfu.departures import Arrived
from orama.sfu.estimator import FOUND

#: Seconds that a cluster lasts, and a tick; packets that it needs.
DURATION, TICK, FEWEST = 0.2, 0.05, 5
#: Factors over what is known, at first and later.
DOUBLE, STEP = 2.0, 1.5
#: Seconds between clusters while each finds more; after one that met a limit, at least and at most.
SOON, PAUSE, LONGEST_PAUSE = 0.2, 4.0, 16.0
#: Seconds after a cluster that found neither what it went for nor a limit.
AGAIN = 2.0
#: Seconds after the end of a cluster when it is given up.
PATIENCE = 1.0
#: Bytes of padding in one tick.
MOST_PADDING = 48_000
#: Below this the packets of a cluster are too few to tell.
LOWEST_TARGET = 150_000


class Prober:
    """Decides when to probe, how much padding to send, and what was found.

    :ivar target: bits per second of the cluster under way, 0 between clusters.
    """

    __slots__ = (
        "_base",
        "_ended",
        "_first",
        "_last",
        "_next",
        "_octets",
        "_packets",
        "_pause",
        "_sent",
        "_starting",
        "_time",
        "target",
    )

    def __init__(self) -> None:
        self.target = 0.0
        self._time = 0.0
        self._ended: float | None = None
        self._base = 0
        self._next = float("-inf")
        self._pause = PAUSE
        self._starting = True
        self._clear()

    def _clear(self) -> None:
        # When the first and the last packet arrived, when the last left, and what arrived.
        self._first: float | None = None
        self._last = self._sent = 0.0
        self._octets = self._packets = 0

    def consider(self, wanted: float, estimate: float, throughput: float | None, total: int, now: float) -> None:
        """Begin a cluster when it is time.

        :param wanted: bits per second that would be of use.
        :param total: bytes sent so far.
        """
        if self.target or now < self._next or wanted <= estimate:
            return
        known = min(estimate, max(throughput or 0.0, LOWEST_TARGET / DOUBLE)) if self._starting else estimate
        target = min(wanted, known * (DOUBLE if self._starting else STEP))
        self.target = max(target, LOWEST_TARGET)
        self._time, self._ended, self._base = now, None, total
        self._clear()

    def padding(self, total: int, now: float) -> int:
        """Bytes of padding to send in this tick; *total* bytes were sent so far."""
        if not self.target or self._ended is not None:
            return 0
        elapsed = now - self._time
        if elapsed >= DURATION:
            self._ended = now
            return 0
        # What this tick begins it also fills: a cluster of four ticks has four parts.
        due = self.target / 8 * (elapsed + TICK) - (total - self._base)
        return min(MOST_PADDING, max(0, int(due)))

    def feedback(self, arrivals: Sequence[Arrived], now: float) -> float | None:
        """Take acknowledgements; bits per second when the cluster is over and says something."""
        if not self.target:
            return None
        over = False
        for each in arrivals:
            if each.sent < self._time:
                continue
            if self._ended is not None and each.sent >= self._ended:
                over = True
                break
            if not each.received:
                continue
            if self._first is None:
                self._first = each.first
            self._octets += each.octets
            self._packets += each.received
            self._last = each.last
            self._sent = each.sent
        if over or (self._ended is not None and now > self._ended + PATIENCE):
            return self.found
        return None

    @property
    def found(self) -> float:
        """Bits per second of the cluster that have got through so far."""
        if self._first is None or self._packets < FEWEST:
            return 0.0
        # What a tick sends counts for the whole of it.
        paced = (self._sent + TICK if self._ended is None else self._ended) - self._time
        return self._octets * 8 / max(paced, self._last - self._first, TICK)

    def end(self, rate: float, met: bool, now: float) -> None:
        """The cluster is over, or is given up: *rate* bits per second got through.

        :param met: whether a queue was seen: this was too much.
        """
        if rate >= FOUND * self.target and not met:
            self._pause = PAUSE
            self._next = now + SOON
        elif met:
            self._starting = False
            self._next = now + self._pause
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        else:
            self._next = now + AGAIN
        self.target = 0.0
        self._clear()

    def late(self, now: float) -> bool:
        """Whether a cluster is over for which no feedback came."""
        return self._ended is not None and bool(self.target) and now > self._ended + PATIENCE
