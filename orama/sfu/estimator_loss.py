"""What loss says about a client's link: the loss part of Google congestion control (draft-ietf-rmcat-gcc-02, 6).

Below 2 % the bound rises, above 10 % it falls. Two things differ from the draft. Between the two it does not stand
still but follows what gets through, since radio links lose so much at any rate; and loss that stays when the rate has
fallen belongs to the link: from then on only what is lost beyond it counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from orama.sfu.departures import Arrived

#: Packets and seconds that one verdict takes at least, and the seconds after which it is given with fewer packets.
FEWEST, INTERVAL, LONGEST = 30, 0.4, 2.0
LITTLE, MUCH = 0.02, 0.10
RISE = 1.05
#: Between little and much: so far beyond what gets through.
BEYOND = 1.1
#: Where so much is lost the rate falls to this part of what gets through, so that the queue empties.
BELOW = 0.95
#: A decrease that should have ended the loss and left more than this part of it shows that it is the link's own.
STAYS = 0.6
#: Loss of its own that a link can have.
MOST_INHERENT = 0.3
#: Seconds of waiting below which a queue counts as empty: what a full one still loses says nothing of the link.
EMPTY = 0.05


class LossBound:
    """Bits per second that loss allows; infinite until there was some.

    :ivar lost: the part of the packets that the last verdict found lost.
    """

    __slots__ = (
        "_before",
        "_inherent",
        "_lost",
        "_lowest",
        "_octets",
        "_since",
        "_total",
        "_until",
        "decreased",
        "lost",
        "rate",
    )

    def __init__(self, lowest: float) -> None:
        self.rate = float("inf")
        self.lost = 0.0
        self.decreased = float("-inf")
        self._lowest = lowest
        self._total = self._lost = self._octets = 0
        #: When the first and the last of them left.
        self._since: float | None = None
        self._until = 0.0
        self._inherent = 0.0
        #: The loss before the last decrease, until the next verdict.
        self._before: float | None = None

    @property
    def inherent(self) -> float:
        """The part of the packets that the link loses at any rate."""
        return self._inherent

    def add(self, arrivals: Sequence[Arrived], late: int) -> None:
        """Packets that feedback named; *late* ones had been called lost."""
        self._lost -= late
        for each in arrivals:
            if each.sent < self.decreased:
                continue  # it left before the rate was lowered
            self._total += each.received + each.lost
            self._lost += each.lost
            self._octets += each.octets
            if self._since is None:
                self._since = each.sent
            self._until = each.sent

    def update(self, rate: float, throughput: float | None, queueing: float, now: float) -> None:
        """Give a verdict when enough packets are there.

        :param rate: at which was to be sent, bits per second.
        :param throughput: what gets through lately, None when unknown.
        :param queueing: seconds that packets wait on the way.
        """
        if self._since is None:
            return
        span, total = self._until - self._since, self._total
        if not ((span >= INTERVAL and total >= FEWEST) or span >= LONGEST):
            return
        lost = max(0.0, self._lost / total)
        # Of just these packets: by now less may be sent.
        throughput = max(throughput or 0.0, self._octets * 8 / span)
        self._since, self._total, self._lost, self._octets = None, 0, 0, 0
        # Chance alone makes as much as that of a loss below 10 % among so few.
        self.verdict(lost, rate, throughput, now, MUCH + 1.5 * math.sqrt(MUCH / total), queueing)

    def verdict(
        self,
        lost: float,
        rate: float,
        throughput: float | None,
        now: float,
        much: float = MUCH,
        queueing: float = 0.0,
    ) -> None:
        """A part of *lost* of what was sent at *rate* since the last verdict is gone."""
        self.lost = lost
        if self._before is not None and queueing < EMPTY:
            if lost > STAYS * self._before:
                self._inherent = min(MOST_INHERENT, lost)
            self._before = None
        if lost < self._inherent:
            self._inherent += 0.2 * (lost - self._inherent)
        beyond = max(0.0, lost - self._inherent) / (1 - self._inherent)
        if beyond > much:
            rate = min(self.rate, rate)
            bound = rate * (1 - beyond / 2) if throughput is None else BELOW * throughput
            self.rate, self.decreased, self._before = max(self._lowest, min(rate, bound)), now, lost
        elif beyond < LITTLE:
            self.rate *= RISE
        elif throughput is not None:
            self.rate = max(self.rate, BEYOND * throughput / (1 - self._inherent))

    def restart(self) -> None:
        """Forget what was counted since the last verdict."""
        self._since, self._total, self._lost, self._octets = None, 0, 0, 0

    def proved(self, rate: float) -> None:
        """A probe got *rate* through."""
        self.rate = max(self.rate, rate)
