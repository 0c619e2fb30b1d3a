"""A stream as one subscription sees it, where that is not the stream as it came: layers left out, numbers gone on.

Packets come in as the stream keeps them and leave as others with indexes closed up over what was left out, in which
``sfu.downlink`` finds them as it finds those of any stream. What is missing on the publisher's leg keeps its index, so
that it has a place when it comes late; if it then turns out to be of a layer that is left out, an empty packet takes
the place, and the subscriber has nothing to ask for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from attrs import define

from orama.sfu.packet import Packet
from orama.sfu.renumbering import Gaps, Numbers, Renumbering, described, numbers
from orama.sfu.selection import ALL, Selection, Verdict, selection
from orama.sfu.stream import Stream
from orama.wire import dependency, vp8, vp9
from orama.wire.video import PayloadError

#: Frames whose fate is remembered for packets that come late and for NACKs: three seconds of three layers.
FRAMES = 512
#: Changes of what is forwarded that are remembered for frames that come late as a whole.
LEVELS = 16


@define
class Frame:
    """One frame of one spatial layer: its fate, and its picture id without wraps."""

    verdict: Verdict
    picture: int = 0


class Projection:
    """One stretch of *stream* for one subscription.

    :param first: the packet with which the stretch begins, None when it is under way and nothing was left out so far.
    :param last: the numbers in what was sent before it, from which its own go on; None to leave them.
    """

    __slots__ = (
        "_frames",
        "_gaps",
        "_highest",
        "_last",
        "_levels",
        "_mimes",
        "_newest",
        "_rewrites",
        "_selection",
        "_sent",
        "_stream",
        "_tops",
        "_under_way",
        "_wanted",
        "_whole",
        "renumbering",
    )

    def __init__(self, stream: Stream, spatial: int, temporal: int, first: Packet | None, last: Numbers | None) -> None:
        self._stream = stream
        self._mimes = stream.mimes
        self._wanted = (spatial, temporal)
        self._selection: Selection | None = None
        self._gaps = Gaps()
        self._frames: dict[int, Frame] = {}
        # Timestamp → the spatial layer that ends the picture.
        self._tops: dict[int, int] = {}
        # What was forwarded from which index on, and from which picture.
        self._levels: deque[tuple[int, int, tuple[int, ...]]] = deque(maxlen=LEVELS)
        # Up to here, and to the end of that frame, everything was forwarded.
        self._whole = stream.highest if first is None else -1
        self._under_way = stream.last_timestamp if first is None else -1
        self._highest = stream.highest if first is None else first.index - 1
        begin = first if first is not None else stream.newest()
        mime = "" if begin is None else self._mimes.get(begin.payload_type, "")
        self._last = last
        self._newest: Packet | None = None
        #: The index of that, or of the one whose numbers ``_last`` has.
        self._sent = -1 if begin is None or first is not None else begin.index
        begins = Numbers() if begin is None else numbers(begin, mime)
        if first is None:
            self._last = begins
        self.renumbering = Renumbering(begins, last, closes=mime == "video/vp8")
        # VP9's numbers stay as they are where nothing is moved: reading them takes 2 µs a packet.
        self._rewrites = mime == "video/vp8" or self.renumbering.moves

    def want(self, spatial: int, temporal: int) -> None:
        """The highest layers that may be forwarded from now on."""
        if (spatial, temporal) != self._wanted:
            self._wanted = (spatial, temporal)
            if self._selection is not None:
                self._selection.want(spatial, temporal)

    @property
    def last(self) -> Numbers | None:
        """The numbers in the newest packet that was sent; None when nobody knows."""
        newest = self._newest
        return self._last if newest is None else numbers(newest, self._mimes.get(newest.payload_type, ""))

    @property
    def spatial(self) -> int:
        """The highest spatial layer that is forwarded; ``ALL`` where none is left out."""
        return ALL if self._selection is None else self._selection.spatial

    @property
    def waiting(self) -> bool:
        """Whether a layer is wanted to which only a keyframe leads."""
        return self._selection is not None and self._selection.waiting

    def look(self) -> None:
        """Timed work; call it every tick."""
        if self._selection is not None:
            self._selection.look()

    def take(self, packets: Sequence[Packet]) -> Sequence[Packet]:
        """What of a run goes on, with indexes closed up."""
        taken: list[Packet] = []
        for packet in packets:
            newest = packet.index > self._highest
            if newest:
                self._highest = packet.index
            if not packet.payload:
                verdict, frame = _PADDING, None
            else:
                frame = self._frame(packet, newest)
                verdict = frame.verdict
            if newest and not verdict.keep:
                self._gaps.leave_out(packet.index)
                continue
            index = self._gaps.closed(packet.index)
            if index is None:
                continue
            if frame is None or not verdict.keep:
                taken.append(_empty(packet, index))
            else:
                made = self._made(packet, frame, index)
                taken.append(made)
                if index > self._sent:  # it need not be the newest packet: that may have been padding
                    self._newest, self._sent = made, index
        return taken

    def opened(self, index: int) -> int | None:
        """The stream's index of what was sent under *index*; None when nobody knows any more."""
        return self._gaps.opened(index)

    def again(self, packet: Packet, index: int) -> Packet | None:
        """A packet of the stream as it was sent under *index*; None when it was not."""
        if not packet.payload:
            return _empty(packet, index)
        frame = self._frame(packet, False)
        return self._made(packet, frame, index) if frame.verdict.keep else None

    def _frame(self, packet: Packet, newest: bool) -> Frame:
        """The frame of *packet*; at its first packet its fate is decided."""
        place = packet.place
        spatial = 0 if place is None or isinstance(place, vp8.Descriptor) else place.spatial or 0
        name = packet.timestamp << 3 | spatial
        frame = self._frames.get(name)
        if frame is not None:
            return frame
        chosen = self._selection
        if chosen is None or (newest and not chosen.fits(place)):
            chosen = self._selection = selection(place, *self._wanted)
        if packet.timestamp == self._under_way or packet.index <= self._whole:
            verdict = Verdict(True)
        elif newest:
            verdict = chosen.decide(packet)
            if not self._levels or self._levels[-1][2] != chosen.level:
                self._levels.append((packet.index, packet.timestamp, chosen.level))
        else:
            # In the picture of a change the new level counts, also for what has been overtaken in it.
            levels = (
                level
                for start, timestamp, level in reversed(self._levels)
                if start <= packet.index or timestamp == packet.timestamp
            )
            level = next(levels, chosen.level)
            # Before the layers of the stream were known everything was forwarded.
            verdict = chosen.late(packet, level) if len(level) == len(chosen.level) else Verdict(True)
        frame = Frame(verdict)
        found = described(packet, self._mimes.get(packet.payload_type, "")) if self._rewrites else None
        if found is not None and found.picture_id is not None:
            frame.picture = self.renumbering.place(found.picture_id, 15 if found.long else 7)
            if newest and not verdict.keep:
                self.renumbering.leave_out(frame.picture)
        if len(self._frames) >= FRAMES:
            del self._frames[next(iter(self._frames))]
        self._frames[name] = frame
        if verdict.top and spatial > self._tops.get(packet.timestamp, -1):
            # A layer that begins within a picture takes the end of it from the one below.
            if len(self._tops) >= FRAMES:
                del self._tops[next(iter(self._tops))]
            self._tops[packet.timestamp] = spatial
        return frame

    def _made(self, packet: Packet, frame: Frame, index: int) -> Packet:
        """*packet* with the subscription's numbers in it."""
        payload, descriptor, marker = packet.payload, packet.descriptor, packet.marker
        renumbering, verdict, place = self.renumbering, frame.verdict, packet.place
        if self._rewrites:
            found = described(packet, self._mimes.get(packet.payload_type, ""))
            if found is not None and found.size > 1:
                picture, base = renumbering.picture(frame.picture), renumbering.base(found.base or 0)
                if isinstance(found, vp9.Descriptor):
                    payload = vp9.renumbered(payload, found, picture, base)
                else:
                    payload = vp8.renumbered(payload, found, picture, base, renumbering.key(found.key_index or 0))
        if verdict.top and place is not None and not isinstance(place, vp8.Descriptor) and place.last:
            spatial = place.spatial or 0
            marker = 0x80 if self._tops.get(packet.timestamp, spatial) == spatial else 0
        if descriptor and (renumbering.moves or verdict.active is not None):
            descriptor = self._described(packet, verdict.active)
        return Packet(
            index,
            packet.timestamp,
            marker,
            packet.payload_type,
            payload,
            packet.keyframe,
            packet.time,
            packet.level,
            descriptor,
            packet.orientation,
            packet.extended,
        )

    def _described(self, packet: Packet, active: int | None) -> bytes:
        """The dependency descriptor with our frame number and, if not None, these active decode targets."""
        wire, place = packet.descriptor, packet.place
        if len(wire) < 3:
            return wire
        number = self.renumbering.frame(wire[1] << 8 | wire[2])
        if active is not None and place is not None and not isinstance(place, (vp8.Descriptor, vp9.Descriptor)):
            structure = place.layering.structure
            try:
                found = dependency.parse(wire, structure)
            except PayloadError:
                found = None
            if found is not None:
                found.active, found.frame = active, number
                return found.serialize(structure)
        return wire[:1] + number.to_bytes(2, "big") + wire[3:]


_PADDING = Verdict(True)


def _empty(packet: Packet, index: int) -> Packet:
    """A packet that says nothing but that it was there."""
    return Packet(index, packet.timestamp, 0, packet.payload_type, b"", 0, packet.time)
