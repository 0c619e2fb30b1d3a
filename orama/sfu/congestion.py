"""What tells a publisher how fast it may send: transport-wide arrival times, or REMB where those are unknown.

``Arrivals`` is the receiving side of draft-holmer-rmcat-transport-wide-cc-extensions-01: the publisher's
own estimator does the rest. ``LossEstimate`` is the fallback for clients that know REMB alone: up while little is
lost, down when much is. Without either a browser stays at 300 kbit/s.
"""

from __future__ import annotations

from orama.wire.rtp import nearest
from orama.wire.transport_cc import TICK, TICKS_PER_REFERENCE, TransportFeedback

#: Seconds between two feedbacks at least. Ticks come every 50 ms, some a little early; at that pace Chromium is at full
#: rate within a second.
INTERVAL = 0.045
#: Feedback is sent early when this many arrivals wait, so that one message stays below an MTU.
MOST_WAITING = 300
#: Arrivals of the last message that are said again when one before them comes late.
REPORTED = 300

#: Numbers that did not come of which one feedback speaks; a sender that skips more gets silence about them, since
#: every number costs 0.3 µs to write down.
MOST_MISSING = 2048

#: REMB: where it starts and its borders, bits per second.
REMB_START, REMB_LOWEST, REMB_HIGHEST = 1_000_000, 100_000, 5_000_000


class Arrivals:
    """Arrival times by transport-wide sequence number, until they are reported.

    ``waiting`` is written by the media path: ``waiting[sequence] = now``. Keyed by the 16-bit number it is
    bounded by itself.
    """

    __slots__ = ("_count", "_highest", "_last", "_reported", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, float] = {}
        self._last = float("-inf")
        self._count = 0
        self._highest: int | None = None
        self._reported: dict[int, float] = {}

    def due(self, now: float) -> bool:
        return bool(self.waiting) and (now - self._last >= INTERVAL or len(self.waiting) >= MOST_WAITING)

    def feedback(self, sender_ssrc: int, media_ssrc: int, now: float) -> list[TransportFeedback]:
        """Everything that waits, as few messages as it takes."""
        self._last = now
        waiting, self.waiting = self.waiting, {}
        if not waiting:
            return []
        if self._highest is None:
            self._highest = next(iter(waiting)) - 1
        times = {nearest(sequence, self._highest): time for sequence, time in waiting.items()}
        base, top = min(times), max(times)
        if base <= self._highest:
            # A late one: what was reported around it is said again, or it would look lost.
            times = {each: time for each, time in self._reported.items() if each > base} | times
        elif base <= self._highest + MOST_MISSING // 2:
            base = self._highest + 1  # numbers skipped between two messages are losses
        self._highest = max(top, self._highest)
        arrived = sorted(times.items())
        self._reported = dict(arrived[-REPORTED:])
        messages: list[TransportFeedback] = []
        missing = MOST_MISSING
        while arrived:
            message, arrived = self._message(sender_ssrc, media_ssrc, base, arrived, missing)
            missing -= message.deltas.count(None)
            messages.append(message)
            base = arrived[0][0] if arrived else base
        return messages

    def _message(
        self, sender_ssrc: int, media_ssrc: int, base: int, arrived: list[tuple[int, float]], missing: int
    ) -> tuple[TransportFeedback, list[tuple[int, float]]]:
        """One message from the front of *arrived* that leaves out *missing* at most, and what did not fit into it."""
        clock = int(arrived[0][1] / TICK) // TICKS_PER_REFERENCE
        last, taken = clock * TICKS_PER_REFERENCE, 0
        deltas: list[int | None] = []
        expected = base
        for sequence, time in arrived:
            ticks = int(time / TICK)
            missing -= sequence - expected
            if not -32768 <= ticks - last <= 32767 or missing < 0:
                break
            deltas += [None] * (sequence - expected)
            deltas.append(ticks - last)
            expected, last, taken = sequence + 1, ticks, taken + 1
        reference = clock & 0xFFFFFF
        message = TransportFeedback(
            sender_ssrc,
            media_ssrc,
            base & 0xFFFF,
            reference - (reference >> 23 << 24),
            self._count & 0xFF,
            tuple(deltas),
        )
        self._count += 1
        return message, arrived[taken:]


class LossEstimate:
    """Bits per second for REMB, from the loss that our own reports state."""

    __slots__ = ("bitrate", "highest")

    def __init__(self, highest: int = REMB_HIGHEST) -> None:
        self.highest = highest
        self.bitrate = min(REMB_START, highest)

    def update(self, fraction_lost: float) -> None:
        """Once a report: half of the loss down above 10 %, 8 % up below 2 %."""
        if fraction_lost > 0.1:
            self.bitrate = max(min(REMB_LOWEST, self.highest), int(self.bitrate * (1 - fraction_lost / 2)))
        elif fraction_lost < 0.02:
            self.bitrate = min(self.highest, int(self.bitrate * 1.08))
