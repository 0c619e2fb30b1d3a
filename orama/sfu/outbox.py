"""What waits to be sent to one client until the current drain ends, and the buffers that it waits in.

Packets are written into slots that are used again after each flush, by whoever is next: the views handed to
``transmit`` are good until it returns.
"""

from __future__ import annotations

from collections.abc import Callable

from orama.net.fabric import Buffer, Burst
from orama.sfu.counters import MediaCounters
from orama.sfu.departures import Departures
from orama.sfu.packet import MAX_PAYLOAD
from orama.sfu.srtp import TAG, Sender

#: Two full GSO sends. A client's slots take 267 KB at most, and only as many are made as were once needed.
MOST = 128
#: Header with the largest extension block that a downlink writes: MID and dependency descriptor of 255 bytes each.
MAX_HEADER = 12 + 4 + 544
#: The two bytes are RTX's original sequence number.
SLOT = MAX_HEADER + 2 + MAX_PAYLOAD + TAG


#: Slots that nobody uses. They are every client's, so that memory is what one drain sends, not what each client has
#: ever been sent at once (34 kB for bursts of 8).
_free: list[memoryview] = []
#: Slots kept for the next drain, 8.5 MB.
MOST_FREE = 4096


class Outbox:
    """The queue towards one client.

    The media path appends to ``queue`` itself, having asked for :meth:`room`; slot *i* belongs to ``queue[i]``.

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
        "slots",
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
        self.slots: list[memoryview] = []
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

    def room(self, count: int) -> int:
        """Make room for *count* more packets (at most ``MOST``); the number of the first free slot."""
        queue, slots = self.queue, self.slots
        used = len(queue)
        if not used:
            self._later(self.flush)
        elif used + count > MOST:
            self._flush()
            self._later(self.flush)
            used = 0
        while len(slots) < used + count:
            slots.append(_free.pop() if _free else memoryview(bytearray(SLOT)))
        return used

    def rtcp(self, packet: bytes) -> None:
        """Protect a plain RTCP packet and queue it; without keys it is lost."""
        if self.sender is None or self.closed:
            return
        self.room(1)
        self.queue.append(self.sender.protect_rtcp(packet))
        self._counters.rtcp_sent += 1

    def _flush(self) -> None:
        if not self.queue:
            return
        try:
            self._transmit(self.queue)
        finally:
            self.queue.clear()
            self._give_back()

    def _give_back(self) -> None:
        if len(_free) < MOST_FREE:
            _free.extend(reversed(self.slots))
        self.slots.clear()

    def close(self) -> None:
        self.closed = True
        self.sender = None
        self.queue.clear()
        self._give_back()
