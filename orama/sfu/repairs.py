"""What goes out under the SSRC of RTX of one subscription (RFC 4588): what the client asked for again, and padding.

A packet is found again by the number that it was sent under. Under its own SSRC nothing is sent twice: the same number
again would be a replay to SRTP, and under GCM a nonce used twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orama.sfu.counters import MediaCounters
from orama.sfu.extensions import ExtensionBlocks, shape
from orama.sfu.outbox import Outbox
from orama.sfu.packet import Packet
from orama.sfu.reports import RoundTrip
from orama.sfu.retransmission import Resends
from orama.sfu.sequence import Numbering
from orama.sfu.srtp import Seal
from orama.sfu.stream import Stream
from orama.sfu.tally import Forwarded
from orama.sfu.values import Codec
from orama.wire.rtp import nearest, wrap_rtx

#: Packets of padding at once, and the payload of one that is nothing else (RFC 3550, 5.1).
MOST_PADDING, PADDING = 64, bytes(254) + b"\xff"


class Repairs:
    """The repairs of one subscription.

    :param sent: the numbers of its own SSRC, under which the first sends went.
    :param numbering: of the SSRC of RTX.
    :ivar resends: what was sent again, and how often.
    """

    __slots__ = (
        "_codecs",
        "_counters",
        "_extensions",
        "_outbox",
        "_round_trip",
        "_seal",
        "_sent",
        "_ssrc",
        "_tally",
        "numbering",
        "resends",
    )

    _extensions: ExtensionBlocks

    def __init__(
        self,
        sent: Numbering,
        numbering: Numbering,
        outbox: Outbox,
        round_trip: RoundTrip,
        counters: MediaCounters,
        tally: Forwarded,
    ) -> None:
        self.numbering = numbering
        self.resends = Resends()
        self._sent = sent
        self._outbox = outbox
        self._round_trip = round_trip
        self._counters = counters
        self._tally = tally
        self._ssrc: int | None = None
        self._codecs: Mapping[int, Codec] = {}
        self._seal: Seal | None = None

    def configure(self, ssrc: int | None, extensions: ExtensionBlocks) -> None:
        """Take over what was negotiated for the m-line now.

        :param ssrc: of RTX, None without.
        """
        self._ssrc = ssrc
        self._extensions = extensions

    def match(self, codecs: Mapping[int, Codec]) -> None:
        """*codecs* has the subscriber's codec for each of the publisher's payload types."""
        self._codecs = codecs

    def start(self) -> None:
        """There are keys."""
        sender = self._outbox.sender
        self._seal = sender.stream(self._ssrc) if sender is not None and self._ssrc is not None else None

    def answer(self, numbers: Sequence[int], video: bool, gated: tuple[Stream | None, int], now: float) -> None:
        """The subscriber misses these: send them again, or not at all.

        :param gated: a stream, and the index before which nothing of it is needed any more.
        """
        self._counters.nacks_received += len(numbers)
        self._tally.nacks += len(numbers)
        drop = self._tally.drop
        outbox = self._outbox
        if video and outbox.crowded:
            # Most of it waits in the queue, and the rest would make that longer: the subscriber will ask again.
            drop("congested", len(numbers))
            return
        stream, gate = gated
        for number in numbers:
            index = nearest(number, self._sent.highest)
            span = self._sent.find(index)
            place = None if span is None else span.place(index)
            packet = None if span is None else span.packet(index)
            if span is None or place is None or packet is None or place < span.origin:
                drop("resend_gone")
                continue
            if span.stream is stream and place < gate:
                # The subscriber has a keyframe since, with which its decoder begins anew.
                drop("resend_before_keyframe")
                continue
            codec = self._codecs.get(packet.payload_type)
            if codec is None or codec.rtx_payload_type is None or self._seal is None:
                drop("resend_without_rtx")
            elif outbox.repairs <= 0:
                drop("resend_budget")
            elif self.resends.allows(index, now, self._round_trip.value):
                sent = self._resend(packet, codec.rtx_payload_type, index & 0xFFFF, span.turn, self._seal, now)
                self._counters.retransmitted += sent
                self._tally.resends += sent
                outbox.repairs -= len(packet.payload)
                outbox.repaired += len(packet.payload)
            else:
                drop("resend_limit")

    def _resend(self, packet: Packet, payload_type: int, number: int, turn: int, seal: Seal, now: float) -> bool:
        timestamp, block = (packet.timestamp + turn) & 0xFFFFFFFF, self._extensions.of(packet)
        payload, second = wrap_rtx(packet.payload, number), payload_type | packet.marker
        return self._send(payload, second, timestamp, block, 0, seal, now)

    def _send(
        self, payload: bytes, second: int, timestamp: int, block: bytes, flag: int, seal: Seal, now: float
    ) -> bool:
        """Send a packet; *flag* is 0x20 when padding ends it. False when it is too long."""
        outbox, numbering = self._outbox, self.numbering
        numbering.highest += 1
        transport = (outbox.transport_sequence + self._extensions.step) & 0xFFFF
        first, pack = shape(block)
        number = numbering.highest & 0xFFFF
        header = pack(first | flag, second, number, timestamp, self._ssrc, block, transport)
        protected = seal(header, payload, numbering.highest)
        if protected is None:
            self._tally.drop("too_long")
            return False
        outbox.room(1).append(protected)
        if outbox.departures is not None and self._extensions.step:
            outbox.departures.left(transport, 1, len(payload), now)
        outbox.transport_sequence = transport
        return True

    @property
    def can_pad(self) -> bool:
        """Whether :meth:`pad` can send anything that feedback will speak of."""
        known = any(each.rtx_payload_type is not None for each in self._codecs.values())
        return known and self._seal is not None and self._extensions.step > 0

    def pad(self, octets: int, now: float) -> int:
        """Send about *octets* that only count: once more what went out last, else padding alone.

        0 where there is no RTX or no transport-wide number; else the bytes of payload that went.
        """
        seal, types = self._seal, [each.rtx_payload_type for each in self._codecs.values()]
        payload_type = next((each for each in types if each is not None), None)
        if seal is None or payload_type is None or not self._extensions.step or octets <= 0:
            return 0
        sent, packets, index = 0, 0, self._sent.highest
        while sent < octets and packets < MOST_PADDING:
            packets += 1
            span = self._sent.find(index)
            packet = None if span is None else span.packet(index)
            codec = None if packet is None else self._codecs.get(packet.payload_type)
            if span is None or packet is None or codec is None or codec.rtx_payload_type is None:
                timestamp, block = self._sent.timestamp, self._extensions.plain
                self._send(PADDING, payload_type, timestamp, block, 0x20, seal, now)
                sent += len(PADDING)
            else:
                self._resend(packet, codec.rtx_payload_type, index & 0xFFFF, span.turn, seal, now)
                sent += len(packet.payload)
            index -= 1
        self._counters.padding += packets
        return sent
