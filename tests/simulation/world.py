"""Time, and the links through which everything goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Generic, TypeVar

from attrs import define
from twisted.internet.task import Clock

from orama.net.fabric import Fabric
from orama.sfu.counters import MediaCounters

#: What arrives within it is read by one wake-up.
WAKE = 0.001


T = TypeVar("T")


class World:
    """A clock that jumps from one event to the next, and what all clients share.

    :ivar now: seconds; ``clock`` has the same.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.now = self.clock.rightNow
        self.fabric = Fabric(self.clock)
        self.counters = MediaCounters()
        # (time, order, event, seconds to the next of its kind, 0 without)
        self._events: list[tuple[float, int, Callable[[], None], float]] = []
        self._order = count()

    def at(self, time: float, event: Callable[[], None]) -> None:
        heappush(self._events, (time, next(self._order), event, 0.0))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.now + seconds, event)

    def every(self, seconds: float, event: Callable[[], None], first: float = 0.0) -> None:
        """From *first* seconds on, for ever."""
        heappush(self._events, (self.now + first, next(self._order), event, seconds))

    def run(self, until: float) -> None:
        """All that happens up to *until*.

        The clock of Twisted is set, not advanced: sorting what waits in it took a tenth of a call, and nothing does but
        what is asked for outside of a drain.
        """
        events, clock, order = self._events, self.clock, self._order
        while events and events[0][0] <= until:
            time, _, event, period = heappop(events)
            if time > self.now:
                self.now = clock.rightNow = time
            if clock.calls:
                clock.advance(0)
            event()
            if period:
                heappush(events, (self.now + period, next(order), event, period))
        self.now = clock.rightNow = max(until, self.now)
        clock.advance(0)


@define
class Path:
    """What a link does to packets."""

    #: Seconds; *jitter* is added evenly, so packets may overtake each other.
    delay: float = 0.02
    jitter: float = 0.0
    #: Share that is lost one by one.
    loss: float = 0.0
    #: Chance of a packet to begin a burst of losses, and of one in it to end it.
    bursts: float = 0.0
    burst_end: float = 0.3
    #: Bits a second, None without a bound; what waits longer than *queue* seconds is dropped.
    rate: float | None = None
    queue: float = 0.3
    duplicates: float = 0.0


class Link(Generic[T]):
    """One way between a client and the SFU, for items of any kind, each of which is a packet.

    :ivar sent: packets, of which *lost* did not arrive by chance and *dropped* did not fit.
    """

    def __init__(self, world: World, path: Path, deliver: Callable[[list[T]], None]) -> None:
        self.path = path
        self.sent = self.lost = self.dropped = 0
        self._world = world
        self._deliver = deliver
        self._under_way: list[tuple[float, int, Sequence[T]]] = []
        self._order = count()
        self._free = 0.0
        self._bursting = False
        self._wake_at = float("inf")

    @property
    def path(self) -> Path:
        return self._path

    @path.setter
    def path(self, path: Path) -> None:
        self._path = path
        # Nothing happens to single packets: a burst goes as one.
        self._even = not (path.bursts or path.loss or path.jitter or path.duplicates or path.rate is not None)

    def send(self, burst: Sequence[T], sizes: Sequence[int]) -> None:
        """Packets that leave together, with their bytes."""
        self.sent += len(burst)
        if self._even and not self._bursting:
            self._put(self._world.now + self._path.delay, burst)
            return
        for packet, size in zip(burst, sizes, strict=True):
            self._send(packet, size)

    def _put(self, arrival: float, burst: Sequence[T]) -> None:
        heappush(self._under_way, (arrival, next(self._order), burst))
        if arrival < self._wake_at:
            self._wake_at = arrival
            self._world.at(arrival, self._wake)

    def _send(self, packet: T, size: int) -> None:
        path, random, now = self._path, self._world.random, self._world.now
        if path.bursts:
            self._bursting = random.random() >= path.burst_end if self._bursting else random.random() < path.bursts
        if self._bursting or (path.loss and random.random() < path.loss):
            self.lost += 1
            return
        arrival = now
        if path.rate is not None:
            start = max(now, self._free)
            if start - now > path.queue:
                self.dropped += 1
                return
            # 28 bytes of UDP and IP, 4 of ChannelData.
            arrival = self._free = start + (size + 32) * 8 / path.rate
        arrival += path.delay
        if path.jitter:
            arrival += random.random() * path.jitter
        self._put(arrival, (packet,))
        if path.duplicates and random.random() < path.duplicates:
            self._put(arrival + random.random() * 0.05, (packet,))

    def _wake(self) -> None:
        until, under_way = self._world.now + WAKE, self._under_way
        arrived: list[T] = []
        while under_way and under_way[0][0] <= until:
            arrived += heappop(under_way)[2]
        self._wake_at = float("inf")
        if arrived:
            self._deliver(arrived)
        if under_way and under_way[0][0] < self._wake_at:
            self._wake_at = under_way[0][0]
            self._world.at(self._wake_at, self._wake)

    def heal(self) -> None:
        """From now on nothing is lost."""
        self.path = Path(delay=self.path.delay)
        self._bursting = False
