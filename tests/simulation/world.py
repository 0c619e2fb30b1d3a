"""Time, and the links through which everything goes."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random

from attrs import define
from twisted.internet.task import Clock

from orama.net.fabric import Fabric
from orama.sfu.counters import MediaCounters

#: What arrives within it is read by one wake-up.
WAKE = 0.001


class World:
    """A clock that jumps from one event to the next, and what all clients share."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.fabric = Fabric(self.clock)
        self.counters = MediaCounters()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    @property
    def now(self) -> float:
        return self.clock.rightNow

    def at(self, time: float, event: Callable[[], None]) -> None:
        heappush(self._events, (time, next(self._order), event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.clock.rightNow + seconds, event)

    def every(self, seconds: float, event: Callable[[], None], first: float = 0.0) -> None:
        """From *first* seconds on, for ever."""

        def again() -> None:
            event()
            self.after(seconds, again)

        self.after(first, again)

    def run(self, until: float) -> None:
        """All that happens up to *until*."""
        events, clock = self._events, self.clock
        while events and events[0][0] <= until:
            time, _, event = heappop(events)
            if time > clock.rightNow:
                clock.advance(time - clock.rightNow)
            event()
        clock.advance(max(0.0, until - clock.rightNow))


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


class Link:
    """One way between a client and the SFU.

    :ivar sent: packets, of which *lost* did not arrive by chance and *dropped* did not fit.
    """

    def __init__(self, world: World, path: Path, deliver: Callable[[list[bytes]], None]) -> None:
        self.path = path
        self.sent = self.lost = self.dropped = 0
        self._world = world
        self._deliver = deliver
        self._under_way: list[tuple[float, int, bytes]] = []
        self._order = count()
        self._free = 0.0
        self._bursting = False
        self._wake_at = float("inf")

    def send(self, packet: bytes) -> None:
        path, random, now = self.path, self._world.random, self._world.clock.rightNow
        self.sent += 1
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
            arrival = self._free = start + (len(packet) + 32) * 8 / path.rate
        arrival += path.delay
        if path.jitter:
            arrival += random.random() * path.jitter
        heappush(self._under_way, (arrival, next(self._order), packet))
        if path.duplicates and random.random() < path.duplicates:
            heappush(self._under_way, (arrival + random.random() * 0.05, next(self._order), packet))
        if arrival < self._wake_at:
            self._wake_at = arrival
            self._world.at(arrival, self._wake)

    def _wake(self) -> None:
        now, under_way = self._world.clock.rightNow, self._under_way
        arrived = []
        while under_way and under_way[0][0] <= now + WAKE:
            arrived.append(heappop(under_way)[2])
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
