"""Packets kept for a second sending: one store per stream of a publisher, and who got what how often.

The store holds each payload once, however many subscribers there are; a subscriber keeps nothing but
the tries of what it asked for (RFC 4585 NACK, answered by RFC 4588 RTX in ``sfu.repairs``).
"""

from __future__ import annotations

from orama.sfu.packet import Packet

#: Packets kept: about two seconds of video at 4 Mbit/s, two seconds of audio. Powers of two.
#: With payloads of at most 1500 bytes that bounds a video stream's store to 1.5 MB.
VIDEO_PACKETS, AUDIO_PACKETS = 1024, 128
#: Seconds that they are kept.
VIDEO_AGE, AUDIO_AGE = 2.0, 1.0
#: Seconds between two looks at what is too old; each takes 3 µs.
EXPIRY = 0.2
#: Packets before the first of a stream that may come after it: a keyframe's beginning, overtaken by the rest.
REORDERED = 64
#: How often one packet is re-sent to one subscriber, and how soon again at the earliest.
RESENDS = 3
PAUSE = 0.1
#: Numbers whose tries one subscriber's record remembers.
REMEMBERED = 1024


class PacketStore:
    """The last packets of one stream, by extended sequence number."""

    __slots__ = ("_age", "_due", "_first", "_mask", "_oldest", "_slots", "size")

    def __init__(self, kind: str) -> None:
        self.size = VIDEO_PACKETS if kind == "video" else AUDIO_PACKETS
        self._age = VIDEO_AGE if kind == "video" else AUDIO_AGE
        self._mask = self.size - 1
        self._slots: list[Packet | None] = [None] * self.size
        # Everything below is gone and cannot come any more; the first that was here at the last expiry.
        self._oldest = self._first = -1
        # Before that nothing gets too old.
        self._due = float("-inf")

    def __len__(self) -> int:
        return sum(packet is not None for packet in self._slots)

    def add(self, packet: Packet) -> None:
        """Keep it, in place of the one that lies a whole store behind."""
        self._slots[packet.index & self._mask] = packet

    def get(self, index: int) -> Packet | None:
        packet = self._slots[index & self._mask]
        return packet if packet is not None and packet.index == index else None

    def seen(self, index: int) -> bool:
        """Whether it is here, or older than what has been let go: then a second one is never taken for new."""
        packet = self._slots[index & self._mask]
        return index < self._oldest or (packet is not None and packet.index == index)

    def expire(self, highest: int, now: float) -> None:
        """Let go of what is too old, and may have been for a moment; *highest* is the newest index added."""
        if now < self._due:
            return
        at = max(self._oldest, self._first - REORDERED, highest - self._mask)
        while at <= highest:
            packet = self._slots[at & self._mask]
            if packet is not None:
                if now - packet.time < self._age:
                    self._due = max(packet.time + self._age, now + EXPIRY)
                    break
                self._slots[at & self._mask] = None
                self._oldest = at + 1
            at += 1
        else:
            self._oldest = at
        self._first = at

    def clear(self) -> None:
        self._slots = [None] * self.size


class Resends:
    """How often one subscriber was sent a packet again."""

    __slots__ = ("_tries",)

    def __init__(self) -> None:
        # outgoing index → (times sent again, when last)
        self._tries: dict[int, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._tries)

    def allows(self, index: int, now: float, round_trip: float | None) -> bool:
        """Whether it may be sent again now; true counts it."""
        tries, last = self._tries.get(index, (0, float("-inf")))
        pause = PAUSE if round_trip is None else min(PAUSE, 2 * round_trip)
        if tries >= RESENDS or now - last < pause:
            return False
        if tries == 0 and len(self._tries) >= REMEMBERED:
            del self._tries[next(iter(self._tries))]
        self._tries[index] = (tries + 1, now)
        return True
