"""What is counted of one stream and of one subscription for those who look on (``sfu.stats``).

What is rare is counted as it happens; packets are counted by the media path itself, and rates are made of two readings
of that, about a second apart.
"""

from __future__ import annotations

from collections import Counter

from orama.sfu.qualities import OVERHEAD

#: Seconds between two readings.
READING = 1.0


class Received:
    """Of a stream of a publisher."""

    __slots__ = ("keyframe_requests", "keyframes", "nacks", "recovered")

    def __init__(self) -> None:
        self.keyframes = 0
        #: PLI or FIR that the publisher was sent.
        self.keyframe_requests = 0
        #: Packets that it was asked for again, and those that came by RTX.
        self.nacks = 0
        self.recovered = 0


class Forwarded:
    """Of a subscription.

    :param total: where the namespace counts what was dropped.
    """

    __slots__ = (
        "_at",
        "_octets",
        "_packets",
        "_total",
        "bitrate",
        "dropped",
        "keyframe_requests",
        "nacks",
        "resends",
        "switches",
    )

    def __init__(self, total: Counter[str]) -> None:
        #: Bits per second, headers included, re-sends not; None before the second reading.
        self.bitrate: float | None = None
        #: Packets that the subscriber asked for again, and those that it got again.
        self.nacks = 0
        self.resends = 0
        self.keyframe_requests = 0
        #: From one layer to another.
        self.switches = 0
        #: Packets that went no further, by reason.
        self.dropped: dict[str, int] = {}
        self._total = total
        self._at: float | None = None
        self._packets = self._octets = 0

    def drop(self, reason: str, packets: int = 1) -> None:
        self._total[reason] += packets
        self.dropped[reason] = self.dropped.get(reason, 0) + packets

    def read(self, packets: int, octets: int, now: float) -> None:
        """So much had been forwarded at *now*; 0.15 µs a second and subscription."""
        if self._at is not None and now > self._at:
            sent = octets - self._octets + (packets - self._packets) * OVERHEAD
            self.bitrate = sent * 8 / (now - self._at)
        self._at, self._packets, self._octets = now, packets, octets
