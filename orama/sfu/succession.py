"""How one stretch of a subscription follows another: after a switch of layers, a pause, or another publisher's stream.

Numbers go on without a hole (``sfu.sequence``), timestamps where the time is, and what codecs and the dependency
descriptor count inside goes on from what was sent last (``sfu.renumbering``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orama.sfu.packet import Packet
from orama.sfu.projection import Projection
from orama.sfu.renumbering import Numbers, follows, numbers
from orama.sfu.sequence import Numbering, Span
from orama.sfu.stream import NEWEST, Stream
from orama.wire.rtp import nearest

#: Seconds by which a keyframe may come after what followed it and still be switched to.
OVERTAKEN = 0.3
#: Largest believable step of the RTP clock when another layer takes over, seconds.
MOST_SKEW = 5.0


class RandomBits(Protocol):
    """``random.SystemRandom()`` in service, ``random.Random(seed)`` in tests."""

    def getrandbits(self, k: int, /) -> int: ...


class Succession:
    """The stretches of one subscription, one after the other.

    :ivar before: what was forwarded before a pause or a loss of the stream; None while something is forwarded.
    """

    __slots__ = ("_numbering", "_random", "_said", "before")

    def __init__(self, numbering: Numbering, random: RandomBits) -> None:
        self._numbering = numbering
        self._random = random
        self.before: Span | None = None
        #: The numbers inside the last packet of that.
        self._said: Numbers | None = None

    def end(self, span: Span) -> None:
        """*span* is over, and nothing follows it yet."""
        self._said = self._last_numbers(span)
        span.left = span.stream.highest
        self.before = span

    def begin(
        self, current: Span | None, stream: Stream, packets: Sequence[Packet], layers: tuple[int, int], now: float
    ) -> tuple[Span, Sequence[Packet]] | None:
        """Start a stretch with the first of *packets*, of video a keyframe; None when it cannot begin there.

        :param current: what is forwarded now, None during a pause.
        :param layers: the highest ones that are wanted within *stream*, spatial and temporal.
        :return: the new stretch, and what is to be sent of it first.
        """
        first, video = packets[0], stream.track.kind == "video"
        if video and first.index <= self._numbering.left(stream):
            return None  # a keyframe that was lost, and comes after the stretch that began with a later one
        other = current is not None and current.stream is not stream
        if video and other and _behind(stream.last_timestamp, first.timestamp) > OVERTAKEN * stream.rate:
            return None  # its layer was away, and what was lost of it comes now: a step back in time, as below
        before, missed = current or self.before, []
        if video and stream.highest - first.index >= len(packets):
            # Its first packet came late, and what follows it is here: else the first picture takes a round trip more.
            kept = [stream.store.get(index) for index in range(first.index + 1, stream.highest + 1)]
            missed = [packet for packet in kept if packet is not None and packet.time < now]
            if stream.track.gate is not None:
                missed = list(stream.track.gate(stream, missed, now))
            if current is not None and any(packet.time < now - OVERTAKEN for packet in missed):
                return None  # a step back in time, while the other layer goes on: there will be another keyframe
        if before is not None and before.stream is not stream:
            before.left = before.stream.highest
        turn = self._turn(before, stream, first, now)
        projection = self._projection(current, before, stream, first, layers) if video else None
        span, self.before = self._numbering.begin(stream, first.index, turn), None
        span.projection = projection
        if stream.clock is not None:
            self._numbering.timestamp = (first.timestamp + turn) & 0xFFFFFFFF
        return span, sorted([*packets, *missed], key=lambda packet: packet.index) if missed else packets

    def _last_numbers(self, span: Span) -> Numbers | None:
        """What the last packet of *span* says inside, None when it has gone."""
        if span.projection is not None:
            return span.projection.last
        highest = self._numbering.highest
        for index in range(highest, highest - NEWEST, -1):
            packet = span.packet(index)
            if packet is not None and packet.payload:
                return numbers(packet, span.stream.mimes.get(packet.payload_type, ""))
        return None

    def _projection(
        self, current: Span | None, before: Span | None, stream: Stream, first: Packet, layers: tuple[int, int]
    ) -> Projection | None:
        """What has to stand between *stream* and the subscriber from *first* on; None where nothing has to."""
        said = self._said if current is None else self._last_numbers(current)
        here = numbers(first, stream.mimes.get(first.payload_type, ""))
        if before is None or said is None:
            said = None
        elif (before.stream is stream and before.projection is None) or said.picture is here.picture is None:
            # A decoder takes a step forward as it is: of the same stream after a pause, and of frame numbers always,
            # which the simulcast layers of a browser share.
            said = None if follows(here, said) else said
        projection = Projection(stream, *layers, first, said)
        if projection.renumbering.moves or (stream.layering is not None and stream.layering.reduces(*layers)):
            return projection
        return None

    def _turn(self, before: Span | None, stream: Stream, packet: Packet, now: float) -> int:
        """What to add to the timestamps of *stream* so that time goes on where it is."""
        if before is None:
            return self._random.getrandbits(32)
        if before.stream is stream:
            return before.turn
        last = self._numbering.timestamp
        timestamp = (last + int(max(0.0, now - self._numbering.time) * stream.rate)) & 0xFFFFFFFF
        ours, theirs = before.stream.clock, stream.clock
        if ours is not None and theirs is not None and before.stream.track is stream.track:
            # Both layers' clocks are known: the same wall-clock time gets the same timestamp.
            exact = ours.rtp_at(theirs.ntp_at(packet.timestamp, stream.rate), stream.rate) + before.turn
            if abs(nearest(exact & 0xFFFFFFFF, timestamp, 32) - timestamp) < MOST_SKEW * stream.rate:
                timestamp = exact & 0xFFFFFFFF
        if nearest(timestamp, last, 32) <= last:
            timestamp = last + 1
        return (timestamp - packet.timestamp) & 0xFFFFFFFF

    def newest_keyframe(self, current: Span | None) -> tuple[Stream | None, int]:
        """The stream of video that goes out, or went last, and the index of its newest keyframe that has gone."""
        span = current or self.before
        if span is None:
            return None, 0
        # One that came during a pause was not sent; a span begins with a keyframe.
        last = span.place(self._numbering.highest) or 0
        newest = next((index for index in reversed(span.stream.keyframes) if index <= last), 0)
        return span.stream, max(newest, span.origin)


def _behind(newest: int, timestamp: int) -> int:
    """How far *timestamp* is behind *newest*, which may have wrapped."""
    return ((newest - timestamp + 0x80000000) & 0xFFFFFFFF) - 0x80000000
