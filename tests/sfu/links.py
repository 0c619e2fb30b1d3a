"""A link in virtual time: rate, queue, delay, jitter and loss, and the receiver's feedback about it."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil
from random import Random

from orama.sfu.congestion import Arrivals

#: Bytes that IP, UDP, ChannelData and SRTP add stand in ``sfu.departures.OVERHEAD``.


class Link:
    """One way. Packets keep their order unless jitter is larger than their distance.

    :ivar rate: bits per second, may be changed at any time.
    :ivar queue: seconds of queue that the link holds; what comes beyond is lost.
    """

    def __init__(
        self,
        random: Random,
        rate: float,
        delay: float = 0.02,
        jitter: float = 0.0,
        loss: float = 0.0,
        queue: float = 0.5,
    ) -> None:
        self.random = random
        self.rate, self.delay, self.jitter, self.loss, self.queue = rate, delay, jitter, loss, queue
        #: Seconds between two deliveries where packets come in clumps, as they do out of a TCP connection.
        self.clump = 0.0
        self.free = 0.0
        self.dropped = 0

    def waiting(self, now: float) -> float:
        """Seconds until the link is free."""
        return max(0.0, self.free - now)

    def send(self, octets: int, now: float) -> float | None:
        """When a packet that enters at *now* arrives; None when it is lost."""
        if self.waiting(now) > self.queue:
            self.dropped += 1
            return None
        self.free = max(self.free, now) + octets * 8 / self.rate
        if self.random.random() < self.loss:
            return None
        arrival = self.free + self.delay + self.random.uniform(0.0, self.jitter)
        return ceil(arrival / self.clump) * self.clump if self.clump else arrival


class Receiver:
    """The far end of a link as a browser is one: arrival times go back as transport-wide feedback."""

    def __init__(self, link: Link, back: Callable[[bytes, float], None], interval: float = 0.1) -> None:
        self.link, self.back, self.interval = link, back, interval
        self.arrivals = Arrivals()
        #: (time, transport-wide number, bytes)
        self._coming: list[tuple[float, int, int]] = []
        self._answers: list[tuple[float, int, bytes]] = []
        self._next = 0.0
        self.octets = 0

    def take(self, number: int, octets: int, now: float) -> None:
        """A packet was put on the link."""
        self.came(number, octets, self.link.send(octets, now))

    def came(self, number: int, octets: int, arrival: float | None) -> None:
        """A packet comes out of the link at *arrival*, or not at all."""
        if arrival is not None:
            heappush(self._coming, (arrival, number & 0xFFFF, octets))

    def run(self, now: float) -> None:
        """Let everything happen that happens until *now*."""
        while self._coming and self._coming[0][0] <= now:
            time, number, octets = heappop(self._coming)
            self.octets += octets
            self.arrivals.waiting[number] = time
        if now >= self._next:
            self._next = now + self.interval
            for message in self.arrivals.feedback(1, 2, now):
                data = message.serialize()
                body = data[4 : -data[-1]] if data[0] & 0x20 else data[4:]
                heappush(self._answers, (now + self.link.delay, len(self._answers), body))
        while self._answers and self._answers[0][0] <= now:
            self.back(heappop(self._answers)[2], now)
