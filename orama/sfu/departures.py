"""What left for one client under transport-wide numbers, until feedback says when it arrived.

The sending side of draft-holmer-rmcat-transport-wide-cc-extensions-01. The media path notes a run of packets by one
append; runs are what feedback is matched against and what the estimators (``sfu.estimator``) get: packets of one run
left together.
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate
from typing import cast

from attrs import define

from orama.wire.rtp import nearest
from orama.wire.transport_cc import TICK, TICKS_PER_REFERENCE, TransportFeedback

#: Runs that are remembered, and for how many seconds: what feedback has not named by then, it never will.
MOST_RUNS, AGE = 512, 5.0
#: Bytes on the wire of each packet beside its payload: IPv4, UDP, ChannelData, an RTP header with MID and the
#: transport-wide number, and the tag of SRTP.
OVERHEAD = 20 + 8 + 4 + 28 + 16
#: Packets that were called lost and may still come late.
MOST_DOUBTFUL = 512
#: Seconds within which runs left together: those of one drain, for several subscriptions.
TOGETHER = 0.001
#: So far behind a number is lost for good.
_HOPELESS = 1024
#: Half a round of numbers: feedback about more at once is about nothing that we sent.
_FARTHEST = 0x8000


@define(eq=False)
class Arrived:
    """What one message says of packets that left together. Times are seconds."""

    #: When it left, by our clock.
    sent: float
    #: When the first and the last of it arrived, by the client's clock; meaningless when nothing did.
    first: float
    last: float
    #: Packets that arrived, and that did not.
    received: int
    lost: int
    #: Bytes on the wire of what arrived.
    octets: int


class Departures:
    """Runs that are under way.

    :ivar under_way: bytes on the wire that feedback has said nothing of yet.
    :ivar total: bytes on the wire that ever left.
    :ivar most: bytes under way from which video is held back, infinite while nothing is known of the link.
    """

    __slots__ = ("_clock", "_doubtful", "_runs", "most", "total", "under_way")

    def __init__(self) -> None:
        # (first number, packets, bytes on the wire, time sent)
        self._runs: deque[tuple[int, int, int, float]] = deque()
        self._doubtful: dict[int, None] = {}
        self._clock: int | None = None
        self.under_way = 0
        self.total = 0
        self.most = float("inf")

    def __len__(self) -> int:
        return len(self._runs)

    def left(self, first: int, count: int, octets: int, now: float) -> None:
        """*count* packets from the number *first* left at *now* with *octets* of payload (0.3 µs)."""
        size = octets + count * OVERHEAD
        self._runs.append((first, count, size, now))
        self.under_way += size
        self.total += size
        if len(self._runs) > MOST_RUNS:
            self.under_way -= self._runs.popleft()[2]

    def matched(self, feedback: TransportFeedback) -> tuple[list[Arrived], int]:
        """What *feedback* says, in the order of sending, and how many that were called lost have come after all."""
        runs, deltas, base = self._runs, feedback.deltas, feedback.base_sequence
        reference = feedback.reference_time * TICKS_PER_REFERENCE
        # The reference counts 24 bits of 64 ms, so it wraps after twelve days.
        clock = self._clock = reference if self._clock is None else nearest(reference, self._clock, 32)
        whole = None not in deltas
        steps = cast("tuple[int, ...]", deltas) if whole else [delta or 0 for delta in deltas]
        times = list(accumulate(steps, initial=clock))
        late = self._late(base, deltas) if self._doubtful else 0
        found: list[Arrived] = []
        while runs:
            number, count, size, sent = runs[0]
            start = ((number - base + _FARTHEST) & 0xFFFF) - _FARTHEST
            if start >= len(deltas):
                break
            runs.popleft()
            end = start + count
            if end > len(deltas):  # the rest of the run is another message's
                rest = end - len(deltas)
                part = size * rest // count
                runs.appendleft(((number + count - rest) & 0xFFFF, rest, part, sent))
                size, count, end = size - part, count - rest, len(deltas)
            self.under_way -= size
            if start < 0:  # the message about these was lost on its way to us
                if end <= 0:
                    continue
                size, count, start = size * end // count, end, 0
            if whole:
                came, first, last = count, times[start + 1] * TICK, times[end] * TICK
            else:
                offsets = [each for each in range(start, end) if deltas[each] is not None]
                came = len(offsets)
                if came < count:
                    self._doubt(base, [each for each in range(start, end) if deltas[each] is None])
                    size = size * came // count
                first, last = (times[offsets[0] + 1] * TICK, times[offsets[-1] + 1] * TICK) if came else (0.0, 0.0)
            before = found[-1] if found else None
            if before is not None and came and before.received and sent - before.sent < TOGETHER:
                before.last = last
                before.received += came
                before.lost += count - came
                before.octets += size
            else:
                found.append(Arrived(sent, first, last, came, count - came, size))
        return found, late

    def _doubt(self, base: int, offsets: list[int]) -> None:
        doubtful = self._doubtful
        for offset in offsets:
            doubtful[(base + offset) & 0xFFFF] = None
        while len(doubtful) > MOST_DOUBTFUL:
            del doubtful[next(iter(doubtful))]

    def _late(self, base: int, deltas: tuple[int | None, ...]) -> int:
        """Numbers that an earlier message called lost and this one calls received."""
        doubtful, late = self._doubtful, 0
        for number in list(doubtful):
            offset = (number - base) & 0xFFFF
            if offset >= len(deltas):
                if _HOPELESS < offset < 0x10000 - _HOPELESS:
                    del doubtful[number]
            elif deltas[offset] is not None:
                del doubtful[number]
                late += 1
        return late

    def expire(self, now: float) -> None:
        """Let go of what has got too old."""
        runs = self._runs
        while runs and runs[0][3] < now - AGE:
            self.under_way -= runs.popleft()[2]

    def clear(self) -> None:
        """Nothing is under way any more."""
        self._runs.clear()
        self._doubtful.clear()
        self.under_way = 0
