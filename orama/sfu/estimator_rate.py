"""How fast a client's link takes what is sent: throughput as acknowledged, and the rate that follows the delay.

``Throughput`` measures; ``RateControl`` is the additive increase and multiplicative decrease of
draft-ietf-rmcat-gcc-02, 5.5, with the link-capacity estimate that libwebrtc adds: near to what the link last took the
rate grows slowly, else by 8 % a second.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from orama.sfu.departures import Arrived
from orama.sfu.estimator_delay import Usage

#: Seconds that throughput is measured over, and packets that a measure needs.
SPAN, FEWEST = 0.5, 8
#: Seconds of arrivals that show what the link gives while a queue grows.
LATEST, SHORTEST = 0.12, 0.02
#: What is left of the throughput when the queue grows; growth in a second.
BACKOFF, GROWTH = 0.85, 1.08
#: Beyond what was acknowledged the rate grows to this at most (libwebrtc): an unused rate is no knowledge.
HEADROOM, HEADROOM_BITS = 1.5, 10_000
#: Seconds to wait beside the round trip before the next decrease or step.
RESPONSE = 0.1
#: The longest that a decrease is given to show.
LONGEST_EFFECT = 1.0
PACKET_BITS = 1200 * 8
#: Seconds of waiting from which the queue has to empty before the rate grows, and below which there is none.
STANDING, EMPTY = 0.1, 0.05


class Throughput:
    """Bits per second that arrive, from acknowledgements of the last half second."""

    __slots__ = ("_octets", "_packets", "_runs", "_sent")

    def __init__(self) -> None:
        # (arrival of the last packet, sent, bytes, packets)
        self._runs: deque[tuple[float, float, int, int]] = deque()
        self._octets = 0
        self._packets = 0
        self._sent = 0.0

    def add(self, arrivals: Sequence[Arrived]) -> None:
        """Acknowledgements in the order of sending (0.4 µs a run)."""
        runs = self._runs
        for each in arrivals:
            if each.received:
                runs.append((each.last, each.sent, each.octets, each.received))
                self._octets += each.octets
                self._packets += each.received
        if not runs:
            return
        newest = runs[-1][1]
        while len(runs) > 2 and newest - runs[0][1] > SPAN and self._packets - runs[0][3] >= FEWEST:
            _, _, octets, packets = runs.popleft()
            self._octets -= octets
            self._packets -= packets

    @property
    def value(self) -> float | None:
        """The lower of the paces of sending and of arrival; None while too little is known."""
        runs = self._runs
        if self._packets < FEWEST or len(runs) < 3:
            return None
        # What left first opens the interval: its own bytes were under way before it.
        octets = (self._octets - runs[0][2]) * 8
        sent, arrived = runs[-1][1] - runs[0][1], runs[-1][0] - runs[0][0]
        longest = max(sent, arrived)
        return octets / longest if longest > 0.02 else None

    @property
    def latest(self) -> float | None:
        """Bits per second of the last arrivals alone: what the link gives while packets wait for it.

        Who sends little on the average may still fill a queue by a frame, and then the average is no capacity.
        """
        if not self._runs:
            return None
        end, octets, packets, rate = self._runs[-1][0], 0, 0, None
        for last, _, size, count in reversed(self._runs):
            if end - last >= SHORTEST and packets >= FEWEST // 2:
                # What waited together may come within less than the span, after something large.
                rate = octets * 8 / (end - last)
                if end - last >= LATEST:
                    break
            octets += size
            packets += count
        return rate

    def clear(self) -> None:
        self._runs.clear()
        self._octets = self._packets = 0


class LinkCapacity:
    """Throughput at the times when the link was full: mean and deviation, in kbit/s."""

    __slots__ = ("_deviation", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._deviation = 0.4

    def full(self, throughput: float) -> None:
        """The queue grew at this throughput, bits per second."""
        self._learn(throughput / 1000, 0.05)

    def probed(self, throughput: float) -> None:
        self._learn(throughput / 1000, 0.5)

    def _learn(self, sample: float, weight: float) -> None:
        self.value = sample if self.value is None else (1 - weight) * self.value + weight * sample
        error = self.value - sample
        deviation = (1 - weight) * self._deviation + weight * error * error / max(self.value, 1.0)
        self._deviation = min(2.5, max(0.4, deviation))

    def _reach(self) -> float:
        return 3 * math.sqrt(self._deviation * (self.value or 0.0))

    @property
    def lower(self) -> float:
        return 0.0 if self.value is None else max(0.0, self.value - self._reach()) * 1000

    @property
    def upper(self) -> float:
        return float("inf") if self.value is None else (self.value + self._reach()) * 1000

    def forget(self) -> None:
        self.value = None


class RateControl:
    """A rate that grows while the queue does not.

    :ivar rate: bits per second.
    :ivar decreased: when it was lowered last, minus infinity before.
    """

    __slots__ = ("_changed", "_lowest", "_state", "capacity", "decreased", "rate")

    def __init__(self, rate: float, lowest: float) -> None:
        self.rate = rate
        self.capacity = LinkCapacity()
        self.decreased = float("-inf")
        self._lowest = lowest
        self._changed: float | None = None
        self._state = Usage.NORMAL

    def update(self, usage: Usage, throughput: float | None, queueing: float, round_trip: float, now: float) -> None:
        """Follow the verdict about the queue, in which packets wait *queueing* seconds."""
        elapsed = 0.0 if self._changed is None else min(1.0, now - self._changed)
        self._changed = now
        if usage is Usage.OVER:
            self._decrease(throughput, queueing + round_trip, now)
        elif usage is Usage.NORMAL and queueing < STANDING:
            self._increase(throughput, queueing, round_trip, elapsed)

    def _decrease(self, throughput: float | None, effect: float, now: float) -> None:
        # Before what is in the queue has passed nobody can see what the last decrease did.
        if now - self.decreased < min(LONGEST_EFFECT, effect) + RESPONSE:
            return
        if throughput is None:
            self.rate, self.decreased = max(self._lowest, self.rate / 2), now
            return
        lowered = BACKOFF * throughput
        if lowered > self.rate and self.capacity.value is not None:
            lowered = BACKOFF * self.capacity.value * 1000
        if throughput < self.capacity.lower or throughput > self.capacity.upper:
            self.capacity.forget()
        self.capacity.full(throughput)
        self.rate, self.decreased = max(self._lowest, min(self.rate, lowered)), now

    def _increase(self, throughput: float | None, queueing: float, round_trip: float, elapsed: float) -> None:
        if throughput is not None and throughput > self.capacity.upper:
            self.capacity.forget()
        limit = float("inf") if throughput is None else HEADROOM * throughput + HEADROOM_BITS
        near = self.capacity.value is not None and self.rate > self.capacity.lower
        if near:  # a packet more in each response time
            grown = self.rate + max(4000.0, min(PACKET_BITS, self.rate / 30) / (2 * (round_trip + RESPONSE))) * elapsed
        else:
            grown = max(self.rate * GROWTH**elapsed, self.rate + 1000 * elapsed)
        self.rate = max(self.rate, min(grown, limit))
        if throughput is not None and throughput > self.rate and queueing < EMPTY:
            # We send what there is, not what the rate allows: what goes through without a queue is proof.
            self.rate = throughput

    def proved(self, rate: float, limit: bool) -> None:
        """A probe found that the link takes *rate*, and whether that is its *limit*."""
        if limit:
            self.capacity.probed(rate)
        if rate > self.rate:
            self.rate = rate
