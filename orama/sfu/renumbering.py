"""Numbers that stand inside packets, and how they go on when frames are left out or another stream takes over.

Sequence numbers and VP8's picture ids are closed up over what is left out. Everything else only moves by a constant:
VP9's picture ids, whose differences mean something; TL0PICIDX, since the lowest layer is never left out; KEYIDX; and
the frame numbers of dependency descriptors (RFC 7741, 4.2; RFC 9628, 4.2; AV1 RTP payload format, A.8.3).
"""

from __future__ import annotations

from bisect import bisect_right

from attrs import frozen

from orama.sfu.packet import Packet
from orama.wire import vp8, vp9
from orama.wire.rtp import nearest
from orama.wire.video import PayloadError

#: Stretches between what was left out that are remembered. With every other packet left out that is 512 packets back at
#: the least, which is as late as one may come.
STRETCHES = 512


class Gaps:
    """Numbers closed up over those that were left out."""

    __slots__ = ("_forgotten", "_offsets", "_starts")

    def __init__(self) -> None:
        self._forgotten = False
        # From this number on, so many were left out before.
        self._starts: list[int] = []
        self._offsets: list[int] = []

    def leave_out(self, number: int) -> None:
        """*number* is the newest there is, and is not to be seen."""
        starts, offsets = self._starts, self._offsets
        if starts and starts[-1] == number:
            starts[-1] += 1
            offsets[-1] += 1
            return
        starts.append(number + 1)
        offsets.append(offsets[-1] + 1 if offsets else 1)
        if len(starts) > STRETCHES:
            del starts[: STRETCHES // 2], offsets[: STRETCHES // 2]
            self._forgotten = True

    def closed(self, number: int) -> int | None:
        """What *number* becomes; None when it is too long ago to say."""
        starts = self._starts
        if not starts:
            return number
        place = bisect_right(starts, number) - 1
        if place >= 0:
            return number - self._offsets[place]
        return None if self._forgotten else number

    def opened(self, number: int) -> int | None:
        """The opposite; None when it is too long ago to say."""
        starts, offsets = self._starts, self._offsets
        for place in range(len(starts) - 1, -1, -1):
            if number + offsets[place] >= starts[place]:
                return number + offsets[place]
        return None if self._forgotten else number


@frozen
class Numbers:
    """What stands in one packet; None for what does not."""

    #: The picture id, and how many bits it has.
    picture: int | None = None
    bits: int = 15
    #: TL0PICIDX and KEYIDX.
    base: int | None = None
    key: int | None = None
    #: The frame number of the dependency descriptor.
    frame: int | None = None


def numbers(packet: Packet, mime: str) -> Numbers:
    """Those of *packet*, whose payload is *mime*."""
    frame = int.from_bytes(packet.descriptor[1:3], "big") if len(packet.descriptor) >= 3 else None
    place = described(packet, mime)
    if place is None:
        return Numbers(frame=frame)
    key = place.key_index if isinstance(place, vp8.Descriptor) else None
    return Numbers(place.picture_id, 15 if place.long else 7, place.base, key, frame)


def described(packet: Packet, mime: str) -> vp8.Descriptor | vp9.Descriptor | None:
    """The payload descriptor of *packet*; None where there is none."""
    place = packet.place
    if isinstance(place, (vp8.Descriptor, vp9.Descriptor)):
        return place
    try:
        if mime == "video/vp8":
            return vp8.parse(packet.payload)
        if mime == "video/vp9":
            return vp9.parse(packet.payload, whole=False)
    except PayloadError:  # padding
        pass
    return None


class Renumbering:
    """The numbers of one stretch of a stream for one subscription.

    :param first: of the packet with which it begins.
    :param last: of what was sent before it; they go on from there. None to leave them as they are.
    """

    __slots__ = ("_base", "_closes", "_frame", "_gaps", "_key", "_newest", "_picture", "moves")

    def __init__(self, first: Numbers, last: Numbers | None, closes: bool) -> None:
        self._newest = first.picture or 0
        self._closes = closes
        self._gaps = Gaps()
        self._picture = self._base = self._key = self._frame = 0
        if last is not None:
            self._picture = _step(first.picture, last.picture)
            self._base = _step(first.base, last.base)
            self._key = _step(first.key, last.key)
            self._frame = _step(first.frame, last.frame)
        #: Whether anything is moved from the start.
        self.moves = bool(self._picture or self._base or self._key or self._frame)

    def place(self, picture: int, bits: int) -> int:
        """The picture id without its wraps; *picture* has so many *bits*."""
        found = nearest(picture, self._newest, bits)
        if found > self._newest:
            self._newest = found
        return found

    def leave_out(self, picture: int) -> None:
        """The newest picture is not sent."""
        if self._closes:
            self._gaps.leave_out(picture)

    def picture(self, picture: int) -> int:
        """What to write for the picture at *picture* (see :meth:`place`), not yet cut to its bits."""
        closed = self._gaps.closed(picture)
        return (picture if closed is None else closed) + self._picture

    def base(self, base: int) -> int:
        return base + self._base

    def key(self, key: int) -> int:
        return key + self._key

    def frame(self, frame: int) -> int:
        return frame + self._frame & 0xFFFF


def follows(first: Numbers, last: Numbers) -> bool:
    """Whether each of *first* is a plain step forward from *last*, however many were left out between them."""
    for here, there, bits in ((first.picture, last.picture, last.bits), (first.frame, last.frame, 16)):
        if here is not None and there is not None and not 0 < nearest(here, there, bits) - there < 1 << (bits - 2):
            return False
    return (first.picture is None) == (last.picture is None) and first.bits == last.bits


def _step(first: int | None, last: int | None) -> int:
    """What makes *first* follow upon *last*."""
    return 0 if first is None or last is None else last + 1 - first
