"""One subscription: a track of somebody else on its way to one client (RFC 3550, 2.2; RFC 3711).

Every packet gets this subscription's SSRC, numbers, payload type and extensions, is protected and
queued. Keyframe requests are passed up, sender reports rewritten. What to forward is for ``sfu.choice`` to say, how
it follows what was forwarded before for ``sfu.succession``; ``sfu.repairs`` answers NACKs.
Nothing is decoded, and nothing is forwarded before there are keys, and a keyframe to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orama.sfu.choice import Choice
from orama.sfu.codecs import payload_types
from orama.sfu.counters import MediaCounters
from orama.sfu.extensions import ExtensionBlocks, shape
from orama.sfu.keyframes import Wishes
from orama.sfu.outbox import Outbox
from orama.sfu.packet import Packet
from orama.sfu.qualities import Quality
from orama.sfu.red import REPEATED, Adapter, adapter, repeating
from orama.sfu.repairs import Repairs
from orama.sfu.reports import RoundTrip
from orama.sfu.sequence import Numbering, Span
from orama.sfu.shaping import LEAST
from orama.sfu.srtp import Seal
from orama.sfu.stream import Stream
from orama.sfu.succession import RandomBits, Succession
from orama.sfu.tally import Forwarded
from orama.sfu.track import Track
from orama.sfu.values import Downlinked
from orama.wire.rtcp import ReportBlock, SenderReport, SourceDescription, serialize

#: Packets that may come late: half of the replay window of libsrtp in browsers, which refuses older ones.
LATEST = 512
#: A hole of more packets is no loss to be repaired: what follows it begins anew. Without that bound the subscriber's
#: rollover counter (RFC 3711, 3.3.1) would go wrong for good after a hole of half a round.
FARTHEST = 1024
#: Bytes of one frame that may be under way beside the bound: a screen in full.
MOST_GRANTED = 400_000


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
        self.packets_sent = 0
        self.packets_lost = 0
        self._octets = 0
        self._outbox = outbox
        self.numbering = numbering
        self._round_trip = round_trip
        self._counters = counters
        self._ended = ended
        self.tally = Forwarded(counters.dropped)
        self.choice = Choice(track)
        self.repairs = Repairs(numbering, repair_numbering, outbox, round_trip, counters, self.tally)
        self._succession = Succession(numbering, random)
        self._wishes = Wishes()
        #: When it could begin; None for audio, and when its first frame is there or was held up by mute.
        self._started: float | None = None
        self._seal: Seal | None = None
        #: What is forwarded now and where its numbers lie; None before the first packet and during a pause.
        self._span: Span | None = None
        #: The stream that is forwarded, or will be from its next keyframe on.
        self._target: Stream | None = None
        #: What :meth:`allow` said: whether anything is forwarded.
        self._paused = False
        #: What the codecs of both ends make necessary, and what is done: that, or more where the line loses packets.
        self._fitting: Adapter | None = None
        self._adapt: Adapter | None = None
        self._repeats = False
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
        self.repairs.configure(self.rtx_ssrc, self._extensions)
        self.match()

    @property
    def priority(self) -> int:
        return self.choice.priority

    @property
    def kind(self) -> str:
        return self.track.kind

    @property
    def rank(self) -> int:
        return self.track.rank

    def qualities(self, now: float) -> tuple[Quality, ...]:
        """What the client wants of what the track can be had in."""
        return self.choice.qualities(now)

    @property
    def octets_sent(self) -> int:
        """Bytes of payload that were sent, first sends alone."""
        return self._octets

    def match(self) -> None:
        """Find the subscriber's payload type for each of the publisher's."""
        codecs = payload_types(self.track.codecs, self._accepted)
        self._types = {theirs: codec.payload_type for theirs, codec in codecs.items()}
        self.repairs.match(codecs)
        fitting = adapter(self.track.codecs, codecs)
        if fitting != self._fitting:
            # A packet that comes late, as it is now, could follow what was made for its number before.
            self.pause()
            self._fitting = fitting
        repeats = self._repeats and not self.track.opaque
        again = repeating(self.track.codecs, codecs, fitting) if repeats else None
        if again is not None:
            self._types[REPEATED] = again.carrier
        self._adapt = fitting if again is None else again

    def repeat(self, repeats: bool) -> None:
        """Whether sound goes out twice from now on, to a subscriber that takes RED."""
        if repeats is not self._repeats:
            self._repeats = repeats
            self.match()

    # -- which stream ------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """There are keys: begin."""
        sender = self._outbox.sender
        if sender is None or self.closed:
            return
        self._seal = sender.stream(self.ssrc)
        self.repairs.start()
        self._target = None
        if self.track.kind == "video" and not self.track.muted:
            self._started = now
        self.aim(now)

    def aim(self, now: float) -> None:
        """Choose the stream to forward; it begins with its next keyframe."""
        if self._seal is None or self._paused:
            return
        if self._span is not None:
            self.choice.fit(self._span)
        chosen = self.choice.stream()
        if chosen is None or chosen is self._target:
            return
        current = self._span.stream if self._span is not None else None
        if self._target is not None and self._target is not current:
            self._target.ignore(self)
        self._target = chosen
        chosen.listen(self)
        if self.waiting:
            chosen.request_keyframe(now)

    def ask(self, layer: str, priority: int, now: float) -> None:
        """The client asks for *layer*, one of ``LAYERS``, before what has less priority."""
        self.choice.layer, self.choice.priority = layer, priority
        self.aim(now)

    def allow(self, quality: Quality | None, now: float) -> None:
        """What the subscriber's bandwidth is enough for; without a word everything is.

        None pauses the subscription: nothing is forwarded, and what comes later goes on with the next number and, for
        video, a keyframe. A layer that the client asked for stays a bound beside this one.
        """
        self._paused = quality is None
        if quality is not None:
            self.choice.allowed = quality
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
        self.track = self.choice.track = track
        self.match()
        track.join(self)
        self.aim(now)

    def pause(self) -> None:
        """What comes next begins a new span, with a keyframe."""
        self._started = None
        if self._span is not None:
            self._succession.end(self._span)
            self._span = None

    @property
    def forwarded(self) -> Stream | None:
        """What goes to the subscriber now; None before a first packet, and during a pause."""
        return None if self._span is None else self._span.stream

    @property
    def shown(self) -> str | None:
        """The layer that goes to the subscriber now: ``low``, ``mid`` or ``high``; None without layers or packets."""
        return None if self._span is None else self.choice.shown(self._span)

    @property
    def paused(self) -> bool:
        """Whether the subscriber's bandwidth is not enough for it."""
        return self._paused

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
        before, layers = self._span or self._succession.before, self.choice.within(stream)
        begun = self._succession.begin(self._span, stream, packets[at:], layers, now)
        if begun is None:
            return ()
        self._span, packets = begun
        if before is not None and before.stream is not stream:
            before.stream.ignore(self)
            if before.stream.track is stream.track:
                self.tally.switches += 1
                self._counters.switches += 1
        if self._started is not None:
            self._counters.first_frame(now - self._started)
            self._started = None
        if stream.clock is not None:
            self.report(stream, now)
        return packets

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
        queue, transport, step = outbox.room(len(packets)), outbox.transport_sequence, extensions.step
        highest, shift, turn, origin = numbering.highest, span.shift, span.turn, span.origin
        ssrc, types, varies, block = self.ssrc, self._types, extensions.varies, extensions.plain
        (first, pack), octets, before = shape(block), 0, len(queue)
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
                    first, pack = shape(block)
            transport = (transport + step) & 0xFFFF
            payload, timestamp = packet.payload, (packet.timestamp + turn) & 0xFFFFFFFF
            header = pack(first, second | packet.marker, index & 0xFFFF, timestamp, ssrc, block, transport)
            protected = seal(header, payload, index)
            if protected is None:
                self.tally.drop("too_long")
                continue
            queue.append(protected)
            octets += len(payload)
        sent = len(queue) - before
        if highest > numbering.highest:
            numbering.highest = highest
            numbering.timestamp, numbering.time = (packets[-1].timestamp + turn) & 0xFFFFFFFF, now
        if departures is not None and transport != outbox.transport_sequence:
            count = (transport - outbox.transport_sequence) & 0xFFFF
            departures.left((transport - count + 1) & 0xFFFF, count, octets, now)
            self._frame += octets
            if packets[-1].marker:
                self._grant = max(self._grant, self._granted(self._frame))
                self._frame = 0
        outbox.transport_sequence = transport
        self.packets_sent += sent
        self._octets += octets
        self._counters.forwarded += sent
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

    # -- reports and wishes -----------------------------------------------------------------------

    def nack(self, numbers: Sequence[int], now: float) -> None:
        """The subscriber misses these: send them again by RTX, or not at all."""
        video = self.track.kind == "video"
        gated = self._succession.newest_keyframe(self._span) if video else (None, 0)
        self.repairs.answer(numbers, video, gated, now)

    def wish(self, now: float) -> None:
        """The subscriber sent PLI or FIR."""
        self._counters.keyframe_requests_received += 1
        self.tally.keyframe_requests += 1
        source = self._span.stream if self._span is not None else self._target
        if source is None:
            return
        # A browser repeats its wish until the keyframe is there: that is one wish, however long the keyframe takes.
        if source.requests.waiting or self._wishes.allows(now, self.track.subscribers > 1):
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
        if self._span is not None:
            self.choice.fit(self._span)
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
        self._span = self._succession.before = self._target = None
        self._ended(self)
