"""One RTP stream of a publisher: an SSRC with its RTX, as it arrives (RFC 3550, 4588).

Puts numbers in order, keeps packets for a second sending, asks for what is missing and for keyframes,
and knows who listens. A simulcast track has one for each layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from orama.sfu.allowance import Allowance
from orama.sfu.keyframes import KeyframeRequests, Throttle
from orama.sfu.loss import MissingPackets
from orama.sfu.packet import Packet
from orama.sfu.qualities import OVERHEAD, Meter, total
from orama.sfu.red import Primaries, carried, is_red
from orama.sfu.reports import Reception, StreamClock
from orama.sfu.retransmission import PacketStore
from orama.sfu.scalability import Layering, examine
from orama.sfu.tally import Received
from orama.wire.rtcp import ReportBlock
from orama.wire.video import Keyframe, descriptor, detector

if TYPE_CHECKING:
    from orama.sfu.downlink import Downlink
    from orama.sfu.track import Track

#: The index of the first packet lies a round above zero, so that late ones before it stay positive.
_ROUND = 0x10000
#: Seconds between two sender reports that are passed on; browsers send one a second.
REPORT_PAUSE = 0.2
#: Keyframes whose place is remembered: as many as are asked for while packets are kept.
KEYFRAMES = 8
#: A dependency descriptor of more bytes brings a structure, and takes up to 2 ms to read; so many of them are read a
#: second, and at once. Browsers send one with each keyframe.
LONG, STRUCTURES, MOST_STRUCTURES = 16, 10, 20
#: Packets at the end of a stream that are looked through for one that says something.
NEWEST = 16


class Publisher(Protocol):
    """Whom a stream asks; ``sfu.uplink`` is it."""

    def ask_keyframe(self, stream: Stream) -> None: ...


class Stream:
    """What arrives under one SSRC.

    :ivar rid: simulcast rid, empty without.
    :ivar listeners: downlinks that forward it or wait for its next keyframe; replaced, never changed in place.
    :ivar highest: extended sequence number of the newest packet.
    """

    def __init__(self, track: Track, rid: str, ssrc: int, publisher: Publisher) -> None:
        self.track = track
        self.rid = rid
        self.ssrc = ssrc
        self.rtx_ssrc: int | None = None
        self.listeners: tuple[Downlink, ...] = ()
        self.store = PacketStore(track.kind)
        #: What those get who do not take RED; None where there never was any.
        self.primaries: Primaries | None = None
        self.missing = MissingPackets()
        self.requests = KeyframeRequests()
        self.tally = Received()
        #: Each of the publisher's sender reports becomes one for every listener.
        self.passes_reports = Throttle(REPORT_PAUSE)
        self.clock: StreamClock | None = None
        self.reception: Reception | None = None
        self.highest = -1
        #: Indexes of the first packets of the newest keyframes, in order.
        self.keyframes: deque[int] = deque(maxlen=KEYFRAMES)
        self.last_arrival = float("-inf")
        #: Bits per second by kind of packet; None is the kind of a stream without layers.
        self.meter = Meter()
        self._octets = self._measured = 0
        #: Seconds from one frame to the next, lately.
        self.pace = 0.0
        self._last_frame = 0.0
        self._structures = Allowance(STRUCTURES, MOST_STRUCTURES, 0.0)
        #: Whether its dependency descriptors say where keyframes are.
        self._described = False
        #: Its layers, as the last keyframe said; None without.
        self.layering: Layering | None = None
        self._publisher = publisher
        #: Of the newest frame; −1 before there is one.
        self.last_timestamp = -1
        self.configure()

    def configure(self) -> None:
        """Take over what negotiation says of the track now."""
        codecs = self.track.codecs
        self.rates = {codec.payload_type: codec.clock_rate for codec in codecs}
        self.rate = codecs[0].clock_rate if codecs else 90000
        self.mimes = {codec.payload_type: codec.mime.lower() for codec in codecs}
        found = {codec.payload_type: detector(codec.mime) for codec in codecs}
        self._detectors = {number: detect for number, detect in found.items() if detect is not None}
        inner = {codec.payload_type: inside for codec in codecs if is_red(codec) and (inside := carried(codec, codecs))}
        if inner and self.primaries is None:
            self.primaries = Primaries(self.store)
        if self.primaries is not None:
            self.primaries.inner = {number: codec.payload_type for number, codec in inner.items()}
        self._nack = {codec.payload_type for codec in codecs if "nack" in codec.feedback}

    def accept(
        self,
        sequence: int,
        timestamp: int,
        second: int,
        payload: bytes,
        header: bytes,
        found: Mapping[int, tuple[int, int]],
        now: float,
    ) -> Packet | None:
        """Take one packet, RTX undone, padding removed; None when it is a duplicate or too late.

        :param second: the header's second byte, marker and payload type.
        :param found: where the extension elements lie in *header*.
        """
        reception = self.reception
        if reception is None:
            reception = self.reception = Reception(sequence)
            self.highest = _ROUND + sequence - 1
        highest, payload_type, track = self.highest, second & 0x7F, self.track
        index = highest + ((sequence - highest + 0x8000) & 0xFFFF) - 0x8000
        if index <= highest and (index <= highest - self.store.size or self.store.seen(index)):
            return None
        reception.received += 1
        self._octets += len(payload)
        self.last_arrival = now
        level, dependency, orientation, extended = None, b"", b"", False
        if found:
            place = found.get(track.level_id)
            if place is not None and place[1] == place[0] + 1:
                level, extended = header[place[0]], True
                track.level.heard(level, now)
            place = found.get(track.descriptor_id)
            if place is not None:
                dependency, extended = header[place[0] : place[1]], True
            place = found.get(track.orientation_id)
            if place is not None and place[1] == place[0] + 1:
                orientation, extended = header[place[0] : place[1]], True
        keyframe = 0
        detect = self._detectors.get(payload_type)
        if dependency:
            keyframe = descriptor(dependency)
            if keyframe:
                self._described = True
        if detect is not None and not keyframe and not (dependency and self._described):
            # Where descriptors say it they alone do: under end-to-end encryption a payload says anything.
            keyframe = detect(payload)
        marker = second & 0x80
        packet = Packet(
            index, timestamp, marker, payload_type, payload, keyframe, now, level, dependency, orientation, extended
        )
        self.store.add(packet)
        if keyframe or self.layering is not None:
            self._place(packet, index > highest, now)
        if index > highest:
            self.highest = index
            if index > highest + 1 and self.listeners and payload_type in self._nack:
                self._gap(highest + 1, index, now)
            if timestamp != self.last_timestamp:
                self.last_timestamp = timestamp
                self.pace += (min(now - self._last_frame, 1.0) - self.pace) / 4
                self._last_frame = now
                reception.frame(timestamp, now, self.rates.get(payload_type, self.rate))
        elif self.missing:
            self.missing.came(index)
        if keyframe:
            self.requests.satisfied()
            if keyframe == Keyframe.START:
                self.missing.forget_before(index)
                if not self.keyframes or index > self.keyframes[-1]:
                    self.keyframes.append(index)
                    self.tally.keyframes += 1
        return packet

    def _place(self, packet: Packet, newest: bool, now: float) -> None:
        """Find out where among the layers the packet stands, and count it there."""
        if len(packet.descriptor) > LONG and not self._structures.take(1, now):
            return
        if newest and packet.keyframe == Keyframe.START:
            self.layering = examine(packet, self.mimes.get(packet.payload_type, ""), self.layering)
        if self.layering is not None:
            self.meter.add(self.layering.read(packet), len(packet.payload) + OVERHEAD)

    def _gap(self, start: int, end: int, now: float) -> None:
        if not self.missing.gap(start, end, now):
            self.request_keyframe(now)

    def request_keyframe(self, now: float) -> None:
        """Somebody needs a keyframe of this stream."""
        if self.track.kind == "video" and self.requests.ask(now):
            self._publisher.ask_keyframe(self)

    def reached(self, round_trip: float) -> None:
        """It takes *round_trip* seconds to the publisher and back."""
        self.missing.interval = round_trip
        self.requests.reached(round_trip)

    def tick(self, now: float) -> None:
        """Timed work of this stream but for NACKs, which the uplink gathers."""
        self._measure(now)
        self.store.expire(self.highest, now)
        if self.listeners and self.requests.due(now):
            self._publisher.ask_keyframe(self)

    def _measure(self, now: float) -> None:
        if self.reception is not None:
            packets, self._measured = self.reception.received - self._measured, self.reception.received
            octets, self._octets = self._octets, 0
            if self.layering is None:
                self.meter.add(None, octets + packets * OVERHEAD)
        self.meter.turn(now)

    @property
    def expected(self) -> int:
        """How many packets there should have been from the first to the newest."""
        return 0 if self.reception is None else self.highest - _ROUND - self.reception.base + 1

    def qualities(self) -> tuple[tuple[int, int, float], ...]:
        """What the stream can be had in: spatial and temporal layer, bits per second."""
        if self.layering is not None:
            return tuple(self.layering.rates(self.meter.rates))
        return ((0, 0, total(self.meter.rates)),)

    def newest(self) -> Packet | None:
        """The newest packet that is not mere padding, of the last few."""
        found = (self.store.get(index) for index in range(self.highest, self.highest - NEWEST, -1))
        return next((packet for packet in found if packet is not None and packet.payload), None)

    def block(self, now: float) -> ReportBlock | None:
        """What to say of it in a receiver report; None before its first packet."""
        if self.reception is None:
            return None
        return self.reception.block(self.ssrc, self.highest - _ROUND, self.clock, now)

    def listen(self, downlink: Downlink) -> None:
        if downlink not in self.listeners:
            self.listeners += (downlink,)

    def ignore(self, downlink: Downlink) -> None:
        self.listeners = tuple(each for each in self.listeners if each is not downlink)

    def close(self) -> None:
        self.listeners = ()
        self.store.clear()
        self.missing.clear()
