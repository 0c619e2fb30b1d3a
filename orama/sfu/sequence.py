"""How the numbers of a publisher's streams become the numbers of one subscription, and back.

Within a span both count alike, so a late packet still has its place; a new span begins at the next free
number whenever another stream, or the same one after a pause, goes on. Nothing is ever sent twice under one number.
"""

from __future__ import annotations

from attrs import define

from orama.sfu.packet import Packet
from orama.sfu.projection import Projection
from orama.sfu.stream import Stream

#: Spans that are remembered for NACKs; layers do not switch oftener than keyframes come.
SPANS = 16


@define(eq=False)
class Span:
    """A stretch of one stream."""

    stream: Stream
    #: First index in the subscription's space, and in the stream's.
    start: int
    origin: int
    #: Added to the stream's index, and to its timestamps (modulo 2³²).
    shift: int
    turn: int
    #: What stands between the stream and the subscription; None where the whole stream is forwarded as it came.
    projection: Projection | None = None
    #: How far the stream had come when this ended, by its own index; -1 before that.
    left: int = -1

    def place(self, index: int) -> int | None:
        """The stream's index of what was sent under *index*; None when nobody knows any more."""
        number = index - self.shift
        return number if self.projection is None else self.projection.opened(number)

    def packet(self, index: int) -> Packet | None:
        """What was sent under *index*, as it was sent; None when it was not, or has gone."""
        place = self.place(index)
        stored = None if place is None else self.stream.store.get(place)
        if stored is None or self.projection is None:
            return stored
        return self.projection.again(stored, index - self.shift)


class Numbering:
    """The spans of one subscription, the last one current.

    :ivar highest: the highest index given out in this SSRC's space; the SRTP packet index too (RFC 3711, 3.3.1). An
        SSRC that is used again must go on from here, because one index never protects two packets.
    :ivar timestamp: of the newest packets, and :ivar:`time` when they went.
    """

    __slots__ = ("_spans", "highest", "time", "timestamp")

    def __init__(self, highest: int) -> None:
        self.highest = highest
        self.timestamp = 0
        self.time = 0.0
        #: A tuple, for there is seldom a new one: an empty deque takes 760 bytes, and each subscription has two.
        self._spans: tuple[Span, ...] = ()

    def begin(self, stream: Stream, origin: int, turn: int) -> Span:
        """The packet *origin* of *stream* gets the next number."""
        start = self.highest + 1
        span = Span(stream, start, origin, start - origin, turn)
        self._spans = (*self._spans[1 - SPANS :], span)
        return span

    def left(self, stream: Stream) -> int:
        """How far *stream* had come when its last stretch ended; -1 without one."""
        return max((span.left for span in self._spans if span.stream is stream), default=-1)

    def find(self, index: int) -> Span | None:
        """The span in which *index* was given out."""
        if index > self.highest:
            return None
        for span in reversed(self._spans):
            if index >= span.start:
                return span
        return None
