"""What waits to be sent to one client until the current drain ends."""

from __future__ import annotations

from collections.abc import Callable

from orama.net.fabric import Buffer, Burst
from orama.sfu.counters import MediaCounters
from orama.sfu.departures import Departures
from orama.sfu.srtp import Sender

#: Packets that wait at most: two full GSO sends.
MOST = 128


def _nowhere(_: Burst) -> None:
    """The client is gone."""


def _nothing() -> None:
    """Nothing waits."""


class Outbox:
    """The queue towards one client.

    The media path appends to what :meth:`room` gives it.

    :ivar transport_sequence: the last transport-wide sequence number given to a packet.
    :ivar repairs: bytes of repairs that may go before the next tick, infinite while nothing is known of the link.
    :ivar repaired: bytes of repairs that ever went.
    :ivar departures: hears of each run that gets such numbers; None while nobody asks.
    """

    __slots__ = (
        "_counters",
        "_later",
        "_transmit",
        "closed",
        "departures",
        "flush",
        "queue",
        "repaired",
        "repairs",
        "sender",
        "transport_sequence",
    )

    def __init__(
        self,
        transmit: Callable[[Burst], None],
        later: Callable[[Callable[[], None]], None],
        counters: MediaCounters,
    ) -> None:
        self._transmit = transmit
        self._later = later
        self._counters = counters
        #: Bound once: the fabric knows flushes by identity, and binding takes 0.03 µs.
        self.flush = self._flush
        self.queue: list[Buffer] = []
        self.sender: Sender | None = None
        self.transport_sequence = 0
        self.departures: Departures | None = None
        self.repairs = float("inf")
        self.repaired = 0
        self.closed = False

    @property
    def crowded(self) -> bool:
        """Whether so much is under way to the client that video is held back."""
        departures = self.departures
        return departures is not None and departures.under_way > departures.most

    def room(self, count: int) -> list[Buffer]:
        """The queue, to which *count* packets may be added, at most ``MOST``."""
        queue = self.queue
        if not queue:
            self._later(self.flush)
        elif len(queue) + count > MOST:
            self._flush()
            self._later(self.flush)
            queue = self.queue
        return queue

    def rtcp(self, packet: bytes) -> None:
        """Protect a plain RTCP packet and queue it; without keys it is lost."""
        if self.sender is None or self.closed:
            return
        self.room(1).append(self.sender.protect_rtcp(packet))
        self._counters.rtcp_sent += 1

    def _flush(self) -> None:
        if self.queue:
            queue, self.queue = self.queue, []
            self._transmit(queue)

    def close(self) -> None:
        self.closed = True
        # Whoever it spoke through holds it, and it held itself.
        self._transmit, self.flush = _nowhere, _nothing
        self.sender = None
        self.queue.clear()
