"""One subscription: a track of somebody else on its way to one client (RFC 3550, 2.2; RFC 3711).

Every packet gets this subscription's SSRC, numbers, payload type and extensions, is protected in a send buffer
and queued. NACKs are answered here by RTX (RFC 4588), keyframe requests passed up, sender reports rewritten.
Nothing is decoded, and nothing is forwarded before there are keys, and a keyframe to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Protocol

from orama.sfu.codecs import payload_types
from orama.sfu.counters import MediaCounters
from orama.sfu.extensions import ExtensionBlocks
from orama.sfu.keyframes import Wishes
from orama.sfu.layers import ceiling, choose
from orama.sfu.outbox import MAX_HEADER, Outbox
from orama.sfu.packet import Packet
from orama.sfu.projection import Projection
from orama.sfu.qualities import Quality
from orama.sfu.red import Adapter, adapter
from orama.sfu.renumbering import Numbers, follows, numbers
from orama.sfu.reports import RoundTrip
from orama.sfu.retransmission import Resends
from orama.sfu.selection import ALL
from orama.sfu.sequence import Numbering, Span
from orama.sfu.shaping import LEAST
from orama.sfu.srtp import Seal
from orama.sfu.stream import NEWEST, Stream
from orama.sfu.tally import Forwarded
from orama.sfu.track import Track
from orama.sfu.values import Downlinked
from orama.wire.rtcp import ReportBlock, SenderReport, SourceDescription, serialize
from orama.wire.rtp import nearest, wrap_rtx

#: Packets that may come late: half of the replay window of libsrtp in browsers, which refuses older ones.
LATEST = 512
#: A hole of more packets is no loss to be repaired: what follows it begins anew. Without that bound the subscriber's
#: rollover counter (RFC 3711, 3.3.1) would go wrong for good after a hole of half a round.
FARTHEST = 1024
#: Seconds by which a keyframe may come after what followed it and still be switched to.
OVERTAKEN = 0.3
#: Largest believable step of the RTP clock when another layer takes over, seconds.
MOST_SKEW = 5.0
#: Bytes of one frame that may be under way beside the bound: a screen in full.
MOST_GRANTED = 400_000
#: Packets of padding at once, and the payload of one that is nothing else (RFC 3550, 5.1).
MOST_PADDING, PADDING = 64, bytes(254) + b"\xff"


class RandomBits(Protocol):
    """``random.SystemRandom()`` in service, ``random.Random(seed)`` in tests."""

    def getrandbits(self, k: int, /) -> int: ...


class Downlink:
    """A subscription.

    :param outbox: of the subscriber.
    :param numbering: of the SSRC, which may have been in use before.
    :param ended: called when the subscription is over, whoever ended it.
    """

    def __init__(
        self,
        track: Track,
        downlinked: Downlinked,
        outbox: Outbox,
        numbering: Numbering,
        repair_numbering: Numbering,
        random: RandomBits,
        round_trip: RoundTrip,
        counters: MediaCounters,
        ended: Callable[[Downlink], None],
    ) -> None:
        self.track = track
        self.layer = "auto"
        self.priority = 0
        self.packets_sent = 0
        self.packets_lost = 0
        self._octets = 0
        self._outbox = outbox
        self.numbering = numbering
        self.repair_numbering = repair_numbering
        self._random = random
        self._round_trip = round_trip
        self._counters = counters
        self._ended = ended
        self._resends = Resends()
        self.tally = Forwarded(counters.dropped)
        self._wishes = Wishes()
        #: When it could begin; None for audio, and when its first frame is there or was held up by mute.
        self._started: float | None = None
        self._seal: Seal | None = None
        self._repair_seal: Seal | None = None
        #: What is forwarded now and where its numbers lie; None before the first packet and during a pause.
        self._span: Span | None = None
        #: What was forwarded before a pause or a loss of the stream.
        self._before: Span | None = None
        #: The numbers inside the last packet before that pause.
        self._said: Numbers | None = None
        self._target: Stream | None = None
        #: What :meth:`allow` said: whether anything is forwarded, and up to which layers.
        self._paused = False
        self._allowed: Quality | None = None
        self._adapt: Adapter | None = None
        self._last_timestamp = 0
        self._last_time = 0.0
        #: Whether the last packet ended a frame.
        self._whole = True
        #: Bytes of the frame that is being sent; and of one that was large, which may be under way beside the bound:
        #: without that each large keyframe would end in a pause, and that in the next keyframe.
        self._frame = self._grant = 0
        self.closed = False
        self.configure(downlinked)
        track.join(self)

    def configure(self, downlinked: Downlinked) -> None:
        """Take over what was negotiated for the m-line now; SSRCs stay."""
        self.ssrc = downlinked.ssrc
        self.rtx_ssrc = downlinked.rtx_ssrc
        self._cname = downlinked.cname
        self._accepted = downlinked.codecs
        self._extensions = ExtensionBlocks(downlinked)
        self.match()

    @property
    def kind(self) -> str:
        return self.track.kind

    @property
    def rank(self) -> int:
        return self.track.rank

    @property
    def octets_sent(self) -> int:
        """Bytes of payload that were sent, first sends alone."""
        return self._octets

    def match(self) -> None:
        """Find the subscriber's payload type for each of the publisher's."""
        self._codecs = payload_types(self.track.codecs, self._accepted)
        self._types = {theirs: codec.payload_type for theirs, codec in self._codecs.items()}
        adapt = adapter(self.track.codecs, self._codecs)
        if adapt != self._adapt:
            # A packet that comes late, as it is now, could follow what was made for its number before.
            self.pause()
            self._adapt = adapt

    # -- which stream ------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """There are keys: begin."""
        sender = self._outbox.sender
        if sender is None or self.closed:
            return
        self._seal = sender.stream(self.ssrc)
        self._repair_seal = sender.stream(self.rtx_ssrc) if self.rtx_ssrc is not None else None
        self._target = None
        if self.track.kind == "video" and not self.track.muted:
            self._started = now
        self.aim(now)

    def aim(self, now: float) -> None:
        """Choose the stream to forward; it begins with its next keyframe."""
        if self._seal is None or self._paused:
            return
        self._fit()
        chosen = choose(self.track.places(), self._limit())
        if chosen is None or chosen is self._target:
            return
        current = self._span.stream if self._span is not None else None
        if self._target is not None and self._target is not current:
            self._target.ignore(self)
        self._target = chosen
        chosen.listen(self)
        if self.waiting:
            chosen.request_keyframe(now)

    def _limit(self) -> int:
        """The highest simulcast layer, counted from 0, that the client and the allocator leave."""
        count = len(self.track.rids)
        asked = ceiling(self.layer, count)
        return asked if self._allowed is None or count == 1 else min(asked, self._allowed.spatial)

    def _wanted(self, stream: Stream) -> tuple[int, int]:
        """The highest layers within *stream*, spatial and temporal, that the client and the allocator leave."""
        allowed = self._allowed
        if len(self.track.rids) > 1:
            streams = self.track.places()
            if allowed is None or stream not in streams or streams.index(stream) < allowed.spatial:
                return ALL, ALL
            return self.track.spatial_layers(stream) - 1, allowed.temporal
        count = self.track.spatial_layers(stream)
        asked = ceiling(self.layer, count)
        spatial = asked if asked < count - 1 or self.layer == "low" else ALL
        if allowed is None or spatial < allowed.spatial:
            return spatial, ALL
        return allowed.spatial, allowed.temporal

    def _fit(self) -> None:
        """Leave out of the stream what is not wanted of it."""
        span = self._span
        if span is None or span.stream.layering is None:
            return
        wanted = self._wanted(span.stream)
        if span.projection is None:
            if not span.stream.layering.reduces(*wanted):
                return
            span.projection = Projection(span.stream, *wanted, None, None)
        span.projection.want(*wanted)
        span.projection.look()

    def qualities(self, now: float) -> tuple[Quality, ...]:
        """What of :meth:`Track.qualities` the client wants: nothing above the layer that it has asked for."""
        found = self.track.qualities(now)
        limit = ceiling(self.layer, max(len(self.track.rids), 1 + max((each.spatial for each in found), default=0)))
        return tuple(each for each in found if each.spatial <= limit) or found[:1]

    def allow(self, quality: Quality | None, now: float) -> None:
        """What the subscriber's bandwidth is enough for; without a word everything is.

        None pauses the subscription: nothing is forwarded, and what comes later goes on with the next number and, for
        video, a keyframe. A layer that the client asked for stays a bound beside this one.
        """
        self._paused = quality is None
        if quality is not None:
            self._allowed = quality
            self.aim(now)
        elif self._whole or self._span is None:
            self._stop()
        # Otherwise :meth:`forward` stops where the frame ends.

    def _stop(self) -> None:
        """Forward nothing more, and listen to nobody."""
        if self._span is not None:
            self._span.stream.ignore(self)
        if self._target is not None:
            self._target.ignore(self)
            self._target = None
        self.pause()

    def lost(self, stream: Stream) -> None:
        """The stream is no more; another takes its place when the track says so."""
        if self._span is not None and self._span.stream is stream:
            self.pause()
        if self._target is stream:
            self._target = None

    def show(self, track: Track, now: float) -> None:
        """Forward *track* in place of the one before; the SSRC, its numbers and its time go on.

        What was allowed goes on as well, until the subscriber's bandwidth is shared out anew.
        """
        self.track.part(self)
        self.pause()
        self._target = None
        self.track = track
        self.match()
        track.join(self)
        self.aim(now)

    def pause(self) -> None:
        """What comes next begins a new span, with a keyframe."""
        self._started = None
        if self._span is not None:
            self._said = self._last_numbers(self._span)
            self._span.left = self._span.stream.highest
            self._before, self._span = self._span, None

    @property
    def forwarded(self) -> Stream | None:
        """What goes to the subscriber now; None before a first packet, and during a pause."""
        return None if self._span is None else self._span.stream

    @property
    def shown(self) -> str | None:
        """The layer that goes to the subscriber now: ``low``, ``mid`` or ``high``; None without layers or packets."""
        span, layers, rids = self._span, self.track.layers, self.track.rids
        if span is None or not layers:
            return None
        if len(rids) > 1:
            return layers[rids.index(span.stream.rid)] if span.stream.rid in rids else None
        place = len(layers) - 1 if span.projection is None else span.projection.spatial
        return layers[min(place, len(layers) - 1)]

    @property
    def paused(self) -> bool:
        """Whether the subscriber's bandwidth is not enough for it."""
        return self._paused

    @property
    def allowed(self) -> Quality | None:
        """What the subscriber's bandwidth is enough for; None while nobody has said."""
        return self._allowed

    @property
    def waiting(self) -> bool:
        """A keyframe of the chosen stream is needed and has not come."""
        if self._target is None or self.track.muted or not self._types:
            return False
        span = self._span
        if span is None or span.stream is not self._target:
            return True
        return span.projection is not None and span.projection.waiting

    def _begin(self, stream: Stream, packets: Sequence[Packet], now: float) -> Sequence[Packet]:
        """Start a span at the first packet that can be decoded by itself; what of *packets* is in it."""
        if stream is not self._target:
            return ()
        at, types, video = 0, self._types, self.track.kind == "video"
        while at < len(packets) and (packets[at].payload_type not in types or (video and not packets[at].keyframe)):
            at += 1
        if at == len(packets):
            if self._span is None:
                reason = "no_keyframe_yet" if packets[0].payload_type in types else "codec"
                self.tally.drop(reason, at)
            return ()
        if video and packets[at].index <= self.numbering.left(stream):
            return ()  # a keyframe that was lost, and comes after the stretch that began with a later one
        before, missed = self._span or self._before, []
        if video and stream.highest - packets[at].index >= len(packets) - at:
            # Its first packet came late, and what follows it is here: else the first picture takes a round trip more.
            kept = [stream.store.get(index) for index in range(packets[at].index + 1, stream.highest + 1)]
            missed = [packet for packet in kept if packet is not None and packet.time < now]
            if self.track.gate is not None:
                missed = list(self.track.gate(stream, missed, now))
            if self._span is not None and any(packet.time < now - OVERTAKEN for packet in missed):
                return ()  # a step back in time, while the other layer goes on: there will be another keyframe
        if before is not None and before.stream is not stream:
            before.stream.ignore(self)
            before.left = before.stream.highest
            if before.stream.track is stream.track:
                self.tally.switches += 1
                self._counters.switches += 1
        turn = self._turn(before, stream, packets[at], now)
        projection = self._projection(before, stream, packets[at]) if video else None
        self._span, self._before = self.numbering.begin(stream, packets[at].index, turn), None
        self._span.projection = projection
        if self._started is not None:
            self._counters.first_frame(now - self._started)
            self._started = None
        if stream.clock is not None:
            self._last_timestamp = (packets[at].timestamp + turn) & 0xFFFFFFFF
            self.report(stream, now)
        return sorted([*packets[at:], *missed], key=lambda packet: packet.index) if missed else packets[at:]

    def _last_numbers(self, span: Span) -> Numbers | None:
        """What the last packet of *span* says inside, None when it has gone."""
        if span.projection is not None:
            return span.projection.last
        for index in range(self.numbering.highest, self.numbering.highest - NEWEST, -1):
            packet = span.packet(index)
            if packet is not None and packet.payload:
                return numbers(packet, span.stream.mimes.get(packet.payload_type, ""))
        return None

    def _projection(self, before: Span | None, stream: Stream, first: Packet) -> Projection | None:
        """What has to stand between *stream* and the subscriber from *first* on; None where nothing has to."""
        said = self._said if before is None or before is not self._span else self._last_numbers(before)
        here = numbers(first, stream.mimes.get(first.payload_type, ""))
        if before is None or said is None:
            said = None
        elif (before.stream is stream and before.projection is None) or said.picture is here.picture is None:
            # A decoder takes a step forward as it is: of the same stream after a pause, and of frame numbers always,
            # which the simulcast layers of a browser share.
            said = None if follows(here, said) else said
        wanted = self._wanted(stream)
        projection = Projection(stream, *wanted, first, said)
        if projection.renumbering.moves or (stream.layering is not None and stream.layering.reduces(*wanted)):
            return projection
        return None

    def _turn(self, before: Span | None, stream: Stream, packet: Packet, now: float) -> int:
        """What to add to the timestamps of *stream* so that time goes on where it is."""
        if before is None:
            return self._random.getrandbits(32)
        if before.stream is stream:
            return before.turn
        timestamp = (self._last_timestamp + int(max(0.0, now - self._last_time) * stream.rate)) & 0xFFFFFFFF
        ours, theirs = before.stream.clock, stream.clock
        if ours is not None and theirs is not None and before.stream.track is stream.track:
            # Both layers' clocks are known: the same wall-clock time gets the same timestamp.
            exact = ours.rtp_at(theirs.ntp_at(packet.timestamp, stream.rate), stream.rate) + before.turn
            if abs(nearest(exact & 0xFFFFFFFF, timestamp, 32) - timestamp) < MOST_SKEW * stream.rate:
                timestamp = exact & 0xFFFFFFFF
        if nearest(timestamp, self._last_timestamp, 32) <= self._last_timestamp:
            timestamp = self._last_timestamp + 1
        return (timestamp - packet.timestamp) & 0xFFFFFFFF

    # -- the way of a packet ----------------------------------------------------------------------

    def forward(self, stream: Stream, packets: Sequence[Packet], now: float, adapted: bool = False) -> None:
        """Send a run of packets of one stream on."""
        if self._adapt is not None and not adapted:
            packets = self._adapt(stream, packets)
            if not packets:
                return
        departures = self._outbox.departures
        crowded = self._paused or (departures is not None and departures.under_way > departures.most + self._grant)
        if crowded and self.track.kind == "video":
            packets = self._shed(stream, packets)
            if not packets:
                return
        span = self._span
        if span is None or stream is not span.stream:
            packets = self._begin(stream, packets, now)
            span = self._span
            if not packets or span is None:
                return
        if span.projection is not None:
            packets = span.projection.take(packets)
            if not packets:
                return
        seal, numbering, outbox, extensions = self._seal, self.numbering, self._outbox, self._extensions
        if seal is None:
            return
        used = before = outbox.room(len(packets))
        queue, slots, transport, step = outbox.queue, outbox.slots, outbox.transport_sequence, extensions.step
        highest, shift, turn, origin = numbering.highest, span.shift, span.turn, span.origin
        ssrc, types, varies, block = self.ssrc, self._types, extensions.varies, extensions.plain
        (first, pack, head), octets = _shape(block), 0
        rest: Sequence[Packet] = ()
        for packet in packets:
            second = types.get(packet.payload_type)
            if second is None:
                self.tally.drop("codec")
                continue
            index = packet.index + shift
            if index > highest:
                if index > highest + FARTHEST:
                    rest = packets[packets.index(packet) :]
                    break
                highest = index
            elif packet.index < origin or index <= highest - LATEST:
                self.tally.drop("too_late")
                continue
            if varies:
                own = extensions.of(packet) if packet.extended else extensions.plain
                if own is not block:
                    block = own
                    first, pack, head = _shape(block)
            transport = (transport + step) & 0xFFFF
            slot, payload, timestamp = slots[used], packet.payload, (packet.timestamp + turn) & 0xFFFFFFFF
            pack(slot, 0, first, second | packet.marker, index & 0xFFFF, timestamp, ssrc, block, transport)
            protected = seal(slot, head, payload, index)
            if protected is None:
                self.tally.drop("too_long")
                continue
            queue.append(protected)
            octets += len(payload)
            used += 1
        if highest > numbering.highest:
            numbering.highest = highest
            self._last_timestamp, self._last_time = (packets[-1].timestamp + turn) & 0xFFFFFFFF, now
        if departures is not None and transport != outbox.transport_sequence:
            count = (transport - outbox.transport_sequence) & 0xFFFF
            departures.left((transport - count + 1) & 0xFFFF, count, octets, now)
            self._frame += octets
            if packets[-1].marker:
                self._grant = max(self._grant, self._granted(self._frame))
                self._frame = 0
        outbox.transport_sequence = transport
        self.packets_sent += used - before
        self._octets += octets
        self._counters.forwarded += used - before
        self._counters.forwarded_bytes += octets
        self._whole = packets[-1].marker != 0
        if rest:
            self.pause()
            if span.projection is None:
                span.left = rest[0].index - 1
                self.forward(stream, rest, now, True)
        elif crowded and self._whole and self.track.kind == "video" and self._holds():
            self._hold()

    def _shed(self, stream: Stream, packets: Sequence[Packet]) -> Sequence[Packet]:
        """Too much is under way to the subscriber: what of *packets* ends a frame that has begun, nothing after it."""
        kept = 0
        if self._span is not None and self._span.stream is stream:
            if self._whole:
                self._hold()
            else:
                kept = next((at for at, packet in enumerate(packets, 1) if packet.marker), len(packets))
                if not self._holds(self._frame + sum(len(packet.payload) for packet in packets[:kept])):
                    return packets
        self.tally.drop("congested", len(packets) - kept)
        return packets[:kept]

    def _granted(self, frame: int) -> int:
        """Bytes that may be under way beside the bound for a frame of so many: nothing for one that fits in easily."""
        departures = self._outbox.departures
        large = departures is not None and frame > max(departures.most, LEAST) / 2
        return min(frame + frame // 4, MOST_GRANTED) if large else 0

    def _holds(self, frame: int = 0) -> bool:
        """Whether nothing is to follow a frame of so many bytes, or the last one."""
        departures = self._outbox.departures
        if self._paused or departures is None:
            return self._paused
        return departures.under_way > departures.most + max(self._grant, self._granted(frame))

    def _hold(self) -> None:
        """A frame has ended, and nothing is to follow it for now."""
        if self._paused:
            self._stop()
        else:
            self.pause()

    def _gate(self) -> tuple[Stream | None, int]:
        """The stream that goes out, or went last, and the index of its newest keyframe that has gone."""
        span = self._span or self._before
        if span is None or self.track.kind != "video":
            return None, 0
        # One that came during a pause was not sent; a span begins with a keyframe.
        last = span.place(self.numbering.highest) or 0
        newest = next((index for index in reversed(span.stream.keyframes) if index <= last), 0)
        return span.stream, max(newest, span.origin)

    def nack(self, numbers: Sequence[int], now: float) -> None:
        """The subscriber misses these: send them again by RTX, or not at all."""
        self._counters.nacks_received += len(numbers)
        self.tally.nacks += len(numbers)
        drop = self.tally.drop
        outbox = self._outbox
        if self.kind == "video" and outbox.crowded:
            # Most of it waits in the queue, and the rest would make that longer: the subscriber will ask again.
            drop("congested", len(numbers))
            return
        gated, gate = self._gate()
        for number in numbers:
            index = nearest(number, self.numbering.highest)
            span = self.numbering.find(index)
            place = None if span is None else span.place(index)
            packet = None if span is None else span.packet(index)
            if span is None or place is None or packet is None or place < span.origin:
                drop("resend_gone")
                continue
            if span.stream is gated and place < gate:
                # The subscriber has a keyframe since, with which its decoder begins anew.
                drop("resend_before_keyframe")
                continue
            codec = self._codecs.get(packet.payload_type)
            if codec is None or codec.rtx_payload_type is None or self._repair_seal is None:
                # The same number again would be a replay to SRTP, and under GCM a nonce used twice.
                drop("resend_without_rtx")
            elif outbox.repairs <= 0:
                drop("resend_budget")
            elif self._resends.allows(index, now, self._round_trip.value):
                number, seal = index & 0xFFFF, self._repair_seal
                sent = self._resend(packet, codec.rtx_payload_type, number, span.turn, seal, now)
                self._counters.retransmitted += sent
                self.tally.resends += sent
                outbox.repairs -= len(packet.payload)
                outbox.repaired += len(packet.payload)
            else:
                drop("resend_limit")

    def _resend(self, packet: Packet, payload_type: int, number: int, turn: int, seal: Seal, now: float) -> bool:
        timestamp, block = (packet.timestamp + turn) & 0xFFFFFFFF, self._extensions.of(packet)
        payload, second = wrap_rtx(packet.payload, number), payload_type | packet.marker
        return self._repair(payload, second, timestamp, block, 0, seal, now)

    def _repair(
        self, payload: bytes, second: int, timestamp: int, block: bytes, flag: int, seal: Seal, now: float
    ) -> bool:
        """Send a packet under the SSRC of RTX; *flag* is 0x20 when padding ends it. False when it is too long."""
        outbox, numbering = self._outbox, self.repair_numbering
        numbering.highest += 1
        slot = outbox.slots[outbox.room(1)]
        transport = (outbox.transport_sequence + self._extensions.step) & 0xFFFF
        first, pack, head = _shape(block)
        number = numbering.highest & 0xFFFF
        pack(slot, 0, first | flag, second, number, timestamp, self.rtx_ssrc, block, transport)
        protected = seal(slot, head, payload, numbering.highest)
        if protected is None:
            self.tally.drop("too_long")
            return False
        outbox.queue.append(protected)
        if outbox.departures is not None and self._extensions.step:
            outbox.departures.left(transport, 1, len(payload), now)
        outbox.transport_sequence = transport
        return True

    @property
    def can_pad(self) -> bool:
        """Whether :meth:`pad` can send anything that feedback will speak of."""
        known = any(each.rtx_payload_type is not None for each in self._codecs.values())
        return known and self._repair_seal is not None and self._extensions.step > 0

    def pad(self, octets: int, now: float) -> int:
        """Send about *octets* that only count, under the SSRC of RTX: once more what went out last, else padding alone.

        0 where there is no RTX or no transport-wide number; else the bytes of payload that went.
        """
        seal, types = self._repair_seal, [each.rtx_payload_type for each in self._codecs.values()]
        payload_type = next((each for each in types if each is not None), None)
        if seal is None or payload_type is None or not self._extensions.step or octets <= 0:
            return 0
        sent, packets, index = 0, 0, self.numbering.highest
        while sent < octets and packets < MOST_PADDING:
            packets += 1
            span = self.numbering.find(index)
            packet = None if span is None else span.packet(index)
            codec = None if packet is None else self._codecs.get(packet.payload_type)
            if span is None or packet is None or codec is None or codec.rtx_payload_type is None:
                timestamp, block = self._last_timestamp, self._extensions.plain
                self._repair(PADDING, payload_type, timestamp, block, 0x20, seal, now)
                sent += len(PADDING)
            else:
                self._resend(packet, codec.rtx_payload_type, index & 0xFFFF, span.turn, seal, now)
                sent += len(packet.payload)
            index -= 1
        self._counters.padding += packets
        return sent

    # -- reports and wishes -----------------------------------------------------------------------

    def wish(self, now: float) -> None:
        """The subscriber sent PLI or FIR."""
        self._counters.keyframe_requests_received += 1
        self.tally.keyframe_requests += 1
        source = self._span.stream if self._span is not None else self._target
        if source is not None and self._wishes.allows(now, self.track.subscribers > 1):
            source.request_keyframe(now)

    def report(self, stream: Stream, now: float) -> None:
        """Tell the subscriber the clock of *stream*, in its own numbers, with our own counts."""
        if self._span is None or self._span.stream is not stream or stream.clock is None:
            return
        clock = stream.clock.after(now, stream.rate)
        report = SenderReport(
            self.ssrc,
            clock.ntp_time,
            (clock.rtp_time + self._span.turn) & 0xFFFFFFFF,
            self.packets_sent & 0xFFFFFFFF,
            self._octets & 0xFFFFFFFF,
        )
        self._outbox.rtcp(serialize((report, SourceDescription(((self.ssrc, self._cname),)))))
        self._round_trip.sent(report, now)

    def reported(self, block: ReportBlock, now: float) -> None:
        """The subscriber's report about us."""
        self.packets_lost = block.packets_lost
        self._round_trip.measure(block, now)

    def read(self, now: float) -> None:
        """Make a rate of what was sent since the last time."""
        self.tally.read(self.packets_sent, self._octets, now)

    def tick(self, now: float) -> None:
        """Until a keyframe has come, go on asking for one, unless it would be held back."""
        self._fit()
        if self._grant and not self._outbox.crowded:
            self._grant = 0
        if self.waiting and self._target is not None and not self._outbox.crowded:
            self._target.request_keyframe(now)

    def close(self) -> None:
        """Stop. The SSRC simply falls silent; its m-line says the rest."""
        if self.closed:
            return
        self.closed = True
        self.track.part(self)
        self._span = self._before = self._target = None
        self._ended(self)


#: Writers of a whole header, by length of the extension block; the shortest is none.
_packers = [Struct(f"!BBHII{length}sH").pack_into for length in range(MAX_HEADER - 12)]


def _shape(block: bytes) -> tuple[int, Callable[..., None], int]:
    """First byte, writer and length of a header with this block. Without one the writer's two bytes of
    transport number lie where the payload begins, and are written over."""
    length = len(block)
    return (0x90, _packers[length], 14 + length) if length else (0x80, _packers[0], 12)
