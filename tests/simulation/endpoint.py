"""A client: what a browser does between its encoder and the wire, and between the wire and its decoder."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from attrs import define, field

from orama.net.fabric import Burst
from orama.sfu.media import PeerMedia
from orama.sfu.track import Track
from orama.sfu.values import (
    AUDIO_LEVEL,
    MID,
    REPAIRED_RID,
    RID,
    TRANSPORT_CC,
    Codec,
    Downlinked,
    Uplinked,
)
from orama.wire import rtcp, rtp
from orama.wire.rtcp import Nack, PictureLoss, ReceiverEstimate, ReceiverReport, ReportBlock, RtcpPacket, SenderReport
from orama.wire.transport_cc import TICK, TICKS_PER_REFERENCE, TransportFeedback
from tests.simulation.ciphers import Ciphers, Clear
from tests.simulation.flow import Flow
from tests.simulation.receiver import Receiver
from tests.simulation.sources import Encoding, Microphone, Sent, Shape
from tests.simulation.watch import TRANSPORT, Landing, Watch
from tests.simulation.world import Link, Path, World

EXTENSIONS = {AUDIO_LEVEL: 1, TRANSPORT_CC: 3, MID: 4, RID: 10, REPAIRED_RID: 11}
FEEDBACK = frozenset({"nack", "nack pli", "ccm fir", "transport-cc"})
VIDEO = {
    "vp8": Codec(96, "video/VP8", 90000, rtx_payload_type=97, feedback=FEEDBACK),
    "vp9": Codec(98, "video/VP9", 90000, fmtp="profile-id=0", rtx_payload_type=99, feedback=FEEDBACK),
}
OPUS = Codec(111, "audio/opus", 48000, 2, "minptime=10;useinbandfec=1", feedback=frozenset({"transport-cc"}))
RED = Codec(63, "audio/red", 48000, 2, "111/111", feedback=frozenset({"transport-cc"}))
RIDS = ("q", "h", "f")

#: Seconds between two looks at what is missing.
WORK = 0.04
#: Share of audio packets after which padding comes, and its bytes.
PADDED, PADDING = 0.01, bytes(99) + b"\x64"
#: RTP packets that a publisher can send again.
HISTORY = 600

_header = struct.Struct("!BBHIIHH")

#: What a client sends: a protected packet, what it carries where it is RTP, and its transport-wide number.
Up: TypeAlias = tuple[bytes, Sent | None, int]
#: What it gets, decrypted and parsed where the SFU let go of it.
Down: TypeAlias = Landing | Sequence[RtcpPacket]


@define(eq=False)
class Lane:
    """One outgoing RTP stream and its repairs."""

    ssrc: int
    rtx_ssrc: int
    payload_type: int
    rtx_payload_type: int
    #: Extension elements of every packet, and of every repair.
    elements: bytes
    rtx_elements: bytes
    rtx_index: int
    rate: int
    history: dict[int, Sent] = field(factory=dict)
    sent: int = 0
    octets: int = 0
    timestamp: int = 0


class Endpoint:
    """A client and the ``PeerMedia`` at the other end of its connection.

    :param work: seconds between two looks at what is missing, and two transport-wide feedbacks.
    """

    def __init__(
        self,
        world: World,
        watch: Watch,
        name: str,
        ciphers: Ciphers | None = None,
        up: Path | None = None,
        down: Path | None = None,
        work: float = WORK,
    ) -> None:
        self.world, self.watch, self.name = world, watch, name
        self.media = PeerMedia(world.clock, world.random, self._transmit, world.fabric.later, world.counters)
        self.ciphers = Clear() if ciphers is None else ciphers
        self.up: Link[Up] = Link(world, up or Path(), self._at_sfu)
        self.down: Link[Down] = Link(world, down or Path(), self._arrived)
        self.uplinks: list[Uplinked] = []
        self.lanes: dict[int, Lane] = {}
        self.encodings: dict[str, list[Encoding]] = {}
        self.microphones: dict[str, Microphone] = {}
        self.active: dict[str, Callable[[], bool]] = {}
        self.receivers: dict[int, Receiver] = {}
        self.flows: dict[str, Flow] = {}
        self.round_trip = 0.1
        #: Of what its own rate control allows, bits a second for all layers; None without a bound.
        self.target = 1.0
        self.secured = self.closed = self.ticking = False
        self._mids = -1
        self._acknowledges = False
        #: Whether it says REMB where it has no transport-wide numbers; else it has nothing but reports.
        self.estimates = True
        #: Round trip as the SFU has it, at the last ticks.
        self.round_trips: deque[float] = deque(maxlen=3)
        self._transport = world.random.getrandbits(16)
        self._arrivals: dict[int, float] = {}
        self._feedback_count = 0
        self._sent_at: dict[int, float] = {}
        self._smallest_delay = float("inf")
        world.every(0.05, self._tick, world.random.random() * 0.05)
        world.every(work, self._work, world.random.random() * work)
        world.every(1.0, self._report, 0.1 + world.random.random() * 0.5)

    # ---- joining

    def secure(self) -> None:
        self.secured = True
        for flow in self.flows.values():
            flow.cuts.append(self.world.now)  # it begins now
        self._locally(lambda: self.ciphers.secure(self.media))

    def _locally(self, action: Callable[[], None]) -> None:
        self.world.fabric.begin()
        action()
        self.world.fabric.end()
        self.watch.look()

    def camera(self, track_id: str, shape: Shape) -> None:
        """Publish a camera and let it run."""
        codec = VIDEO[shape.codec]
        random, mid = self.world.random, self._new_mid()
        layers = 1 if shape.scalable else len(shape.bitrates)
        rids = RIDS[:layers] if layers > 1 else ()
        encodings, pairs = [], []
        for layer in range(layers):
            ssrc, rtx_ssrc = random.getrandbits(32), random.getrandbits(32)
            first = random.choice((1000, random.getrandbits(16), 65_400))
            encodings.append(Encoding(shape, layer, ssrc, random, first, random.getrandbits(32)))
            names = b"" if not rids else _element(10, rids[layer].encode())
            repaired = b"" if not rids else _element(11, rids[layer].encode())
            own = _element(4, mid.encode())
            assert codec.rtx_payload_type is not None
            self.lanes[ssrc] = Lane(
                ssrc,
                rtx_ssrc,
                codec.payload_type,
                codec.rtx_payload_type,
                own + names,
                own + repaired,
                random.getrandbits(15),
                90000,
            )
            pairs.append((ssrc, rtx_ssrc))
        self.encodings[track_id] = encodings
        self._publish(Uplinked(track_id, mid, "video", (codec,), EXTENSIONS, () if rids else tuple(pairs), rids))
        for encoding in encodings:
            self.world.every(
                1 / shape.fps, lambda encoding=encoding: self._film(track_id, encoding), random.random() / shape.fps
            )  # type: ignore[misc]

    def microphone(self, track_id: str, redundant: bool = False, seconds: float = 0.02) -> None:
        """Publish a microphone with frames of so many *seconds*, and let it run."""
        random, mid = self.world.random, self._new_mid()
        ssrc = random.getrandbits(32)
        first = random.choice((7, random.getrandbits(16), 65_400))
        microphone = Microphone(ssrc, random, first, random.getrandbits(32), redundant, round(seconds * 48000))
        self.microphones[track_id] = microphone
        self.lanes[ssrc] = Lane(ssrc, 0, 63 if redundant else 111, 0, _element(4, mid.encode()), b"", 0, 48000)
        codecs = (RED, OPUS) if redundant else (OPUS, RED)
        self._publish(Uplinked(track_id, mid, "audio", codecs, EXTENSIONS, ((ssrc, None),)))
        self.world.every(seconds, lambda: self._speak(track_id, microphone), random.random() * seconds)

    def _new_mid(self) -> str:
        self._mids += 1
        return str(self._mids)

    def _publish(self, uplinked: Uplinked) -> None:
        self.uplinks.append(uplinked)

        def publish() -> None:
            self.media.publish(self.uplinks)
            # Nothing is encrypted end to end, so that sound may be sent twice.
            self.media.tracks[uplinked.track_id].opaque = False

        self._locally(publish)

    def withdraw(self, track_id: str) -> None:
        """Stop publishing a track; its subscriptions end."""
        self.uplinks = [each for each in self.uplinks if each.track_id != track_id]
        self.encodings.pop(track_id, None)
        self.microphones.pop(track_id, None)
        self.watch.withdrawn(track_id)
        self._locally(lambda: self.media.publish(self.uplinks))

    def subscribe(self, track: Track, takes_red: bool = True, transport: bool = False) -> None:
        """As the agreement of an offer does."""
        track_id, random = track.track_id, self.world.random
        ssrc, rtx_ssrc = random.getrandbits(32), random.getrandbits(32)
        codecs: tuple[Codec, ...]
        if track.kind == "video":
            codecs = (
                Codec(
                    120, track.codecs[0].mime, 90000, fmtp=track.codecs[0].fmtp, rtx_payload_type=121, feedback=FEEDBACK
                ),
            )
        else:
            codecs = (
                Codec(109, "audio/opus", 48000, 2),
                *((Codec(61, "audio/red", 48000, 2, "109/109"),) if takes_red else ()),
            )
        extensions = {MID: 9, AUDIO_LEVEL: 2, **({TRANSPORT_CC: TRANSPORT} if transport else {})}
        downlinked = Downlinked(
            track_id,
            f"s{len(self.flows)}",
            track.kind,
            codecs,
            ssrc,
            rtx_ssrc if track.kind == "video" else None,
            "pub",
            extensions,
        )
        self._acknowledges |= transport
        flow = Flow(self.watch, self, track_id, track.kind, ssrc, downlinked.rtx_ssrc)
        self.flows[track_id] = flow
        self.receivers[ssrc] = Receiver(flow, last_decoded=self.world.now)

        def subscribe() -> None:
            self.media.subscribe(track, downlinked)
            flow.downlink = self.media._downlinks[track_id]
            self.watch.add(flow)

        self._locally(subscribe)

    def unsubscribe(self, track_id: str) -> None:
        flow = self.flows.pop(track_id, None)
        if flow is not None:
            self._locally(lambda: self.media.unsubscribe(track_id))
            flow.end()
            self.receivers.pop(flow.ssrc)

    def set_layer(self, track_id: str, layer: str) -> None:
        self._locally(lambda: self.media.set_layer(track_id, layer))

    def only_report(self) -> None:
        """From now on tell nothing but what receiver reports say."""
        self._acknowledges = self.estimates = False

    def close(self) -> None:
        self.closed = True
        for track_id in [each.track_id for each in self.uplinks]:
            self.watch.withdrawn(track_id)
        self._locally(self.media.close)
        for flow in self.flows.values():
            flow.end()
        self.flows.clear()
        self.receivers.clear()

    # ---- up: media

    def _film(self, track_id: str, encoding: Encoding) -> None:
        if not self.secured or self.closed or encoding not in self.encodings.get(track_id, ()):
            return
        encoding.scale = self.target
        lane = self.lanes[encoding.ssrc]
        self._leave([self._send(lane, sent, b"") for sent in encoding.frame(self.world.now)])

    def _speak(self, track_id: str, microphone: Microphone) -> None:
        if not self.secured or self.closed or track_id not in self.microphones:
            return
        own = bytes((0x10, microphone.level))
        sent = microphone.frame(self.world.now)
        if sent is not None:
            self._leave([self._send(self.lanes[microphone.ssrc], sent, own)])
        if self.world.random.random() < PADDED:
            self._leave([self._send(self.lanes[microphone.ssrc], microphone.padding(self.world.now), own)])

    def _leave(self, packets: Sequence[Up]) -> None:
        self.up.send(packets, [len(packet) for packet, _, _ in packets])

    def _send(self, lane: Lane, sent: Sent, own: bytes) -> Up:
        self.watch.publish(sent)
        lane.history[sent.index & 0xFFFF] = sent
        lane.history.pop(sent.index - HISTORY & 0xFFFF, None)
        lane.sent += 1
        lane.octets += len(sent.payload)
        lane.timestamp = sent.timestamp
        second = lane.payload_type | (0x80 if sent.marker else 0)
        return self._packet(second, sent.index, sent.timestamp, lane.ssrc, lane.elements + own, sent.payload, sent)

    def _again(self, lane: Lane, sent: Sent) -> Up:
        lane.rtx_index += 1
        second = lane.rtx_payload_type | (0x80 if sent.marker else 0)
        payload = (sent.index & 0xFFFF).to_bytes(2, "big") + sent.payload
        return self._packet(second, lane.rtx_index, sent.timestamp, lane.rtx_ssrc, lane.rtx_elements, payload, sent)

    def _packet(
        self, second: int, index: int, timestamp: int, ssrc: int, elements: bytes, payload: bytes, sent: Sent
    ) -> Up:
        self._transport = (self._transport + 1) & 0xFFFF
        self._sent_at[self._transport] = self.world.now
        body = elements + b"\x31" + self._transport.to_bytes(2, "big")
        body += bytes(-len(body) % 4)
        first = 0x90
        if not payload:
            first, payload = 0xB0, PADDING
        head = _header.pack(first, second, index & 0xFFFF, timestamp, ssrc, 0xBEDE, len(body) // 4)
        return self.ciphers.protect(head + body + payload), sent, self._transport

    def _at_sfu(self, packets: list[Up]) -> None:
        if self.closed:
            return
        self.world.fabric.begin()
        if self.secured:
            self.watch.reaching(self, packets)
        self.media.receive([memoryview(packet) for packet, _, _ in packets], self.world.now)
        self.world.fabric.end()
        self.watch.look()

    # ---- up: control

    def _control(self, packets: Sequence[RtcpPacket]) -> None:
        protected = self.ciphers.protect_rtcp(rtcp.serialize(packets))
        self.up.send([(protected, None, 0)], [len(protected)])

    def _report(self) -> None:
        """Reports, once a second."""
        if self.closed:
            return
        now = self.world.now
        blocks = []
        for receiver in self.receivers.values():
            if receiver.first >= 0:
                middle, arrival = receiver.last_report
                delay = int((now - arrival) * 65536) if middle else 0
                ssrc, highest = receiver.flow.ssrc, receiver.highest & 0xFFFFFFFF
                fraction, lost = receiver.lost()
                blocks.append(ReportBlock(ssrc, fraction, lost, highest, 0, middle, delay))
        if blocks:
            self._control((ReceiverReport(1, tuple(blocks[:31])),))
        if blocks and self.estimates and not self._acknowledges:
            # An estimator of the receiving side that is always right.
            rate = 5_000_000 if self.down.path.rate is None else int(0.9 * self.down.path.rate)
            self._control((ReceiverEstimate(1, rate, tuple(block.ssrc for block in blocks[:31])),))
        for lane in self.lanes.values():
            if lane.sent:
                ntp = int((now + 2_208_988_800) * (1 << 32))
                self._control((SenderReport(lane.ssrc, ntp, lane.timestamp, lane.sent, lane.octets),))

    def _work(self) -> None:
        """Ask for what is missing, say what has arrived."""
        if self.closed:
            return
        now = self.world.now
        for ssrc, receiver in self.receivers.items():
            if receiver.flow.kind == "video" and (asked := receiver.due(now, self.round_trip)):
                self._control((Nack(1, ssrc, tuple(index & 0xFFFF for index in sorted(asked))),))
            if receiver.stuck(now):
                self._control((PictureLoss(1, ssrc),))
        if self._arrivals and self._acknowledges:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Transport-wide feedback about everything since the last one."""
        arrivals, self._arrivals = self._arrivals, {}
        reference = next(iter(arrivals))
        times = sorted((rtp.nearest(number, reference), time) for number, time in arrivals.items())
        base, clock = times[0][0], int(min(time for _, time in times) / TICK) // TICKS_PER_REFERENCE
        deltas: list[int | None] = []
        last = clock * TICKS_PER_REFERENCE
        for number, time in times:
            deltas += [None] * (number - base - len(deltas))
            ticks = int(time / TICK)
            deltas.append(ticks - last)
            last = ticks
        self._feedback_count = (self._feedback_count + 1) & 0xFF
        self._control((TransportFeedback(1, 1, base & 0xFFFF, clock, self._feedback_count, tuple(deltas)),))

    # ---- down

    def _tick(self) -> None:
        if not self.closed:
            self.ticking = True
            self._locally(lambda: self.media.tick(self.world.now))
            self.ticking = False
            self.round_trips.append(self.media._round_trip.value or 0.1)

    def _transmit(self, packets: Burst) -> None:
        """The SFU has sent: look at each packet as it leaves, and put it on the link."""
        watch, ciphers = self.watch, self.ciphers
        # What it is in now is what these packets are of.
        watch.look()
        found: list[Down] = []
        sizes: list[int] = []
        for packet in packets:
            data = bytes(packet)
            control = 192 <= data[1] <= 223
            plain = watch.decrypt(ciphers.unprotect_rtcp if control else ciphers.unprotect, data)
            if plain is None:
                continue
            down = watch.control(self, plain) if control else watch.sending(self, plain)
            if down is not None:
                found.append(down)
                sizes.append(len(plain))
        self.down.send(found, sizes)

    def _arrived(self, packets: list[Down]) -> None:
        now = self.world.now
        for each in packets:
            if isinstance(each, Landing):
                self._landed(each, now)
            else:
                for packet in each:
                    self._obey(packet, now)

    def _landed(self, packet: Landing, now: float) -> None:
        if packet.transport is not None:
            self._arrivals[packet.transport] = now
        receiver = self.receivers.get(packet.flow.ssrc)
        if receiver is None or packet.padding:
            return
        index = rtp.nearest(packet.number, receiver.highest if receiver.first >= 0 else packet.flow.highest)
        receiver.take(index, packet.sent, now)

    def _obey(self, packet: RtcpPacket, now: float) -> None:
        if isinstance(packet, Nack):
            lane = self.lanes.get(packet.media_ssrc)
            if lane is not None and lane.rtx_ssrc:
                kept = [lane.history[number] for number in packet.sequence_numbers if number in lane.history]
                self._leave([self._again(lane, sent) for sent in kept])
        elif isinstance(packet, PictureLoss):
            for encoding in self._encodings():
                if encoding.ssrc == packet.media_ssrc:
                    encoding.wants_key = True
        elif isinstance(packet, TransportFeedback):
            self._adapt(packet)
        elif isinstance(packet, SenderReport) and packet.ssrc in self.receivers:
            self.receivers[packet.ssrc].last_report = (packet.ntp_time >> 16 & 0xFFFFFFFF, now)

    def _encodings(self) -> Iterator[Encoding]:
        for each in self.encodings.values():
            yield from each

    def _adapt(self, feedback: TransportFeedback) -> None:
        """A rate control of the simplest kind: down when packets are lost or queue, else slowly up."""
        time = feedback.reference_time * TICKS_PER_REFERENCE * TICK
        lost, delays = 0, []
        for offset, delta in enumerate(feedback.deltas):
            number = feedback.base_sequence + offset & 0xFFFF
            if delta is None:
                lost += 1
                continue
            time += delta * TICK
            sent_at = self._sent_at.pop(number, None)
            if sent_at is not None:
                delays.append(time - sent_at)
        if not delays:
            return
        # The reference time wraps, so only differences say something.
        self._smallest_delay = min(self._smallest_delay, min(delays))
        queued = sum(delays) / len(delays) - self._smallest_delay
        if queued > 0.1 or lost > 0.15 * len(feedback.deltas) + 1:
            self.target = max(0.1, self.target * 0.85)
        else:
            self.target = min(1.0, self.target * 1.02)


def _element(identifier: int, value: bytes) -> bytes:
    return bytes((identifier << 4 | len(value) - 1,)) + value
