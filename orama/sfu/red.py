"""Redundant audio on its way to subscribers (RFC 2198; RED for Opus as browsers send it).

Who takes RED gets it with the inner payload types that he knows. Who does not gets the primary block of each packet,
and one that was lost on the way up from its copy in the next. What one of these gets is made once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import evolve, frozen

from orama.sfu.packet import Packet
from orama.sfu.retransmission import PacketStore
from orama.sfu.values import Codec
from orama.wire import red
from orama.wire.rtp import nearest

if TYPE_CHECKING:
    from orama.sfu.stream import Stream

MIME = "audio/red"


def is_red(codec: Codec) -> bool:
    return codec.mime.lower() == MIME


def carried(codec: Codec, codecs: Iterable[Codec]) -> Codec | None:
    """The one of *codecs* that *codec*, which is RED, carries: the only payload type in its format parameters."""
    numbers = set(codec.fmtp.strip().split("/"))
    found = [each for each in codecs if numbers == {str(each.payload_type)} and not is_red(each)]
    return found[0] if found else None


def relinked(before: Sequence[Codec], after: Sequence[Codec]) -> tuple[Codec, ...]:
    """*after* with format parameters of RED that name the new payload types; without RED where there is nothing inside.

    :param before: the codecs that *after* has been made of, one each.
    """
    made = []
    for old, new in zip(before, after, strict=True):
        if is_red(new):
            inner = carried(old, before)
            pairs = zip(before, after, strict=True)
            number = next((now.payload_type for was, now in pairs if was is inner), None)
            if number is None:
                continue
            new = evolve(new, fmtp="/".join([str(number)] * len(old.fmtp.split("/"))))
        made.append(new)
    return tuple(made)


class Primaries:
    """One stream as those get it who do not take RED.

    :ivar inner: payload type of RED → of what it carries.
    :ivar recovered: packets that were lost and found again in a later one.
    """

    __slots__ = ("_last", "_made", "_recovered", "_store", "_times", "inner", "malformed", "recovered")

    def __init__(self, store: PacketStore) -> None:
        self.inner: Mapping[int, int] = {}
        self._store = store
        self._last: Sequence[Packet] | None = None
        self._made: Sequence[Packet] = ()
        # Index → what was made for it: if the packet itself comes later it is not sent under the same number. Nor under
        # its own, where padding was lost beside it and the copy had the padding's.
        self._recovered: dict[int, Packet] = {}
        self._times: set[int] = set()
        self.recovered = 0
        self.malformed = 0

    def take(self, packets: Sequence[Packet]) -> Sequence[Packet]:
        """*packets* with primaries alone; those that came too late for their copy are left out."""
        if packets is not self._last:
            made: list[Packet] = []
            for packet in packets:
                self._take(packet, made)
            self._last, self._made = packets, made
        return self._made

    def _take(self, packet: Packet, made: list[Packet]) -> None:
        if self._recovered.get(packet.index, packet) is not packet:
            return
        inner = self.inner.get(packet.payload_type)
        if inner is None:
            made.append(packet)
            return
        if not packet.payload:
            # Padding, with which browsers try how much a link takes: it keeps its number.
            made.append(_with(packet, inner, b""))
            return
        try:
            *copies, primary = red.parse(packet.payload)
        except red.RedError:
            self.malformed += 1
            return
        if primary.payload_type != inner:
            self.malformed += 1
            return
        if packet.timestamp in self._times:
            return
        for before, copy in zip(range(len(copies), 0, -1), copies, strict=True):
            if copy.payload_type == inner and copy.offset and copy.data:
                self._recover(packet, packet.index - before, copy, made)
        made.append(_with(packet, inner, primary.data))

    def _recover(self, packet: Packet, index: int, copy: red.Block, made: list[Packet]) -> None:
        """Take the frame that *index* lost. Copies have no number: they are those of the packets just before."""
        if index in self._recovered or self._store.seen(index):
            return
        timestamp = (packet.timestamp - copy.offset) & 0xFFFFFFFF
        neighbour = self._store.get(index - 1)
        if neighbour is not None and nearest(timestamp, neighbour.timestamp, 32) <= neighbour.timestamp:
            return
        found = Packet(index, timestamp, 0, copy.payload_type, copy.data, 0, packet.time)
        self._recovered[index] = found
        self._times.add(timestamp)
        self.recovered += 1
        made.append(found)
        if len(self._recovered) > self._store.size:
            self._times.discard(self._recovered.pop(min(self._recovered)).timestamp)


def _with(packet: Packet, payload_type: int, payload: bytes) -> Packet:
    # 0.5 µs; attrs.evolve takes four.
    return Packet(
        packet.index,
        packet.timestamp,
        packet.marker,
        payload_type,
        payload,
        0,
        packet.time,
        packet.level,
        packet.descriptor,
        packet.orientation,
        packet.extended,
    )


class Adapter(Protocol):
    """What becomes of a run of a stream's packets before it goes to one subscriber."""

    def __call__(self, stream: Stream, packets: Sequence[Packet]) -> Sequence[Packet]: ...


@frozen
class Stripping:
    """For one who does not take RED."""

    def __call__(self, stream: Stream, packets: Sequence[Packet]) -> Sequence[Packet]:
        return stream.primaries.take(packets) if stream.primaries is not None else packets


@frozen
class Renumbering:
    """For one who takes it, and has another payload type for the codec inside."""

    carrier: int
    theirs: int
    ours: int

    def __call__(self, stream: Stream, packets: Sequence[Packet]) -> Sequence[Packet]:
        return [self._renumbered(packet) for packet in packets]

    def _renumbered(self, packet: Packet) -> Packet:
        if packet.payload_type != self.carrier:
            return packet
        try:
            return _with(packet, self.carrier, red.renumber(packet.payload, {self.theirs: self.ours}))
        except red.RedError:
            return packet  # the subscriber's decoder will say the same


def adapter(published: Sequence[Codec], chosen: Mapping[int, Codec]) -> Adapter | None:
    """What RED of a publisher becomes for a subscriber; None: it stays as it is, or there is none.

    :param chosen: the publisher's payload types → what the subscriber has for them (``codecs.payload_types``).
    """
    carrier = next((codec for codec in published if is_red(codec)), None)
    inner = None if carrier is None else carried(carrier, published)
    if carrier is None or inner is None or inner.payload_type not in chosen:
        return None
    if carrier.payload_type not in chosen:
        return Stripping()
    theirs, ours = inner.payload_type, chosen[inner.payload_type].payload_type
    return None if theirs == ours else Renumbering(carrier.payload_type, theirs, ours)
