"""What must hold of every packet, whatever happens on the links.

``Watch`` sees what reaches the SFU and what leaves it, decrypted. What is wrong is written down in ``violations``,
since the media path goes on after an exception. ``Flow`` is one subscription: its rules are checked as packets leave,
and those about a whole stream at the end.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import pylibsrtp
from attrs import define, field, frozen

from orama.wire import rtcp, rtp
from orama.wire.rtcp import Nack, PictureLoss
from orama.wire.transport_cc import TransportFeedback
from tests.simulation.sources import Sent

if TYPE_CHECKING:
    from tests.simulation.endpoint import Endpoint
    from tests.simulation.world import World

#: What the documentation says, and not what the code has: NACK after 20 ms, then ever later by a quarter, at most
#: 400 ms, five times; a packet three times more, and not within 100 ms; the rest of a picture for 200 ms after a mute.
FIRST, FACTOR, LONGEST, TRIES = 0.02, 1.25, 0.4, 5
PAUSE, RESENDS = 0.1, 3
FALL = 0.2
#: Keyframe requests to one source, after an answer and before.
ANSWERED, UNANSWERED = 0.5, 0.2
#: A packet that comes so much later than the one after it (seconds) may be given up.
TOO_LATE = 0.8
#: Violations after which a run is told from no further.
MOST = 20

_fixed = struct.Struct("!BBHII")


@define(eq=False)
class Incoming:
    """What a stream of a publisher looks like from the SFU."""

    highest: int = -1
    #: Index of the newest keyframe that has begun to arrive, and when.
    key: int = -1
    key_at: float = float("-inf")
    #: index → when it was seen to be missing; index → times at which it was asked for, with the round trip then.
    discovered: dict[int, float] = field(factory=dict)
    asked: defaultdict[int, list[tuple[float, float]]] = field(factory=lambda: defaultdict(list))
    wished: float = float("-inf")


class Watch:
    """The rules, and what is known of every packet."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[str] = []
        #: (SSRC, index) → what was sent; SSRC → its packets in order; SSRC → track id.
        self.published: dict[tuple[int, int], Sent] = {}
        self.streams: defaultdict[int, list[Sent]] = defaultdict(list)
        self.owners: dict[int, str] = {}
        self._overtaken: dict[int, dict[int, float]] = {}
        self.muted: set[str] = set()
        #: By the SSRC of packets, and of repairs.
        self.flows: dict[int, Flow] = {}
        self.incoming: defaultdict[int, Incoming] = defaultdict(Incoming)
        #: Protected packet → what it carries, and its transport-wide number.
        self.carried: dict[bytes, tuple[Sent, int]] = {}
        self.arrived: defaultdict[Endpoint, dict[int, float]] = defaultdict(dict)
        self.reported: defaultdict[Endpoint, set[int]] = defaultdict(set)

    def wrong(self, what: str) -> None:
        if len(self.violations) < MOST:
            self.violations.append(f"{self.world.now - 1000:.3f} s: {what}")

    # ---- what publishers do

    def publish(self, sent: Sent) -> None:
        self.published[sent.ssrc, sent.index] = sent
        self.streams[sent.ssrc].append(sent)

    def known(self, payload: bytes) -> Sent:
        """The packet whose payload this is; the SFU cannot make one up."""
        ssrc, index = struct.unpack("!II", payload[-8:])
        return self.published[ssrc, index]

    def mute(self, track_id: str, muted: bool) -> None:
        if muted:
            self.muted.add(track_id)
        else:
            self.muted.discard(track_id)
        for flow in self.of(track_id):
            flow.cut(muted)

    def withdrawn(self, track_id: str) -> None:
        for flow in self.of(track_id):
            flow.end()

    def of(self, track_id: str) -> list[Flow]:
        return [flow for ssrc, flow in self.flows.items() if flow.track_id == track_id and ssrc == flow.ssrc]

    def add(self, flow: Flow) -> None:
        for ssrc in (flow.ssrc, flow.rtx_ssrc):
            if ssrc is not None:
                self.flows[ssrc] = flow

    # ---- what reaches the SFU

    def reaching(self, endpoint: Endpoint, packets: list[bytes]) -> None:
        now = self.world.now
        for packet in packets:
            found = self.carried.get(packet)
            if found is None:
                continue
            sent, number = found
            self.arrived[endpoint].setdefault(number, now)
            if sent.arrived is not None:
                continue
            sent.arrived = now
            stream = self.incoming[sent.ssrc]
            if stream.highest < 0:
                stream.highest = sent.index
            for missing in range(stream.highest + 1, sent.index):
                stream.discovered[missing] = now
            stream.highest = max(stream.highest, sent.index)
            if sent.starts and sent.index > stream.key:
                stream.key, stream.key_at = sent.index, now

    # ---- what leaves it

    def decrypt(self, unprotect: Callable[[bytes], bytes], data: bytes) -> bytes:
        try:
            return unprotect(data)
        except pylibsrtp.Error as error:
            self.wrong(f"a packet that SRTP refuses: {error}, {data[:12].hex()}")
            return data

    def control(self, endpoint: Endpoint, plain: bytes) -> None:
        for packet in rtcp.parse(plain):
            if isinstance(packet, Nack):
                self._nacked(endpoint, packet)
            elif isinstance(packet, PictureLoss):
                self._wished(packet.media_ssrc)
            elif isinstance(packet, TransportFeedback):
                for offset, delta in enumerate(packet.deltas):
                    number = packet.base_sequence + offset & 0xFFFF
                    if delta is not None:
                        self.reported[endpoint].add(number)
                        if number not in self.arrived[endpoint]:
                            self.wrong(f"{endpoint.name} hears that {number} has come, and it has not")

    def _nacked(self, endpoint: Endpoint, packet: Nack) -> None:
        now, stream = self.world.now, self.incoming[packet.media_ssrc]
        round_trip = min(endpoint.round_trips, default=0.1)
        for number in packet.sequence_numbers:
            index = rtp.nearest(number, stream.highest)
            sent, asked = self.published.get((packet.media_ssrc, index)), stream.asked[index]
            label = f"NACK of {packet.media_ssrc}/{index}"
            if sent is None:
                self.wrong(f"{label}: never sent")
            elif sent.arrived is not None and sent.arrived < now - 1e-6:
                self.wrong(f"{label}: it is here")
            if index < stream.key and stream.key_at < now - 1e-6:
                self.wrong(f"{label}: from before a keyframe")
            if not asked and now < stream.discovered.get(index, now) + FIRST - 1e-6:
                self.wrong(f"{label}: after {now - stream.discovered[index]:.4f} s")
            if asked:
                last, then = asked[-1]
                pause = min(LONGEST, max(FIRST, min(then, round_trip)) * FACTOR ** (len(asked) - 1))
                if now - last < 0.7 * pause:
                    self.wrong(f"{label}: try {len(asked) + 1} after {now - last:.4f} s instead of {pause:.4f}")
            asked.append((now, round_trip))
            if len(asked) > TRIES:
                self.wrong(f"{label}: try {len(asked)}")

    def _wished(self, ssrc: int) -> None:
        now, stream = self.world.now, self.incoming[ssrc]
        least = ANSWERED if stream.key_at > stream.wished else UNANSWERED
        if now - stream.wished < least - 1e-6:
            self.wrong(f"a keyframe of {ssrc} is asked for {now - stream.wished:.3f} s after the last time")
        stream.wished = now

    def sending(self, endpoint: Endpoint, plain: bytes) -> None:
        first, second, number, timestamp, ssrc = _fixed.unpack_from(plain)
        flow = self.flows.get(ssrc)
        payload = plain[rtp.header_length(plain) :]
        if flow is None or flow.endpoint is not endpoint:
            self.wrong(f"{endpoint.name} gets the unknown SSRC {ssrc}")
        elif first & 0x20:
            if ssrc == flow.ssrc:
                self.wrong(f"{flow} gets padding among its packets")
        elif len(payload) < 10:
            flow.blank(number if ssrc == flow.ssrc else int.from_bytes(payload[:2], "big"), ssrc == flow.ssrc)
        elif ssrc == flow.ssrc:
            flow.sending(number, timestamp, bool(second & 0x80), payload)
        else:
            flow.repairing(number, timestamp, bool(second & 0x80), payload)

    # ---- the end

    def overtaken(self, sent: Sent) -> float:
        """When the first packet came that had left after it."""
        known = self._overtaken.get(sent.ssrc)
        if known is None:
            known = self._overtaken[sent.ssrc] = {}
            soonest = float("inf")
            for each in reversed(self.streams[sent.ssrc]):
                known[each.index] = soonest
                soonest = soonest if each.arrived is None else min(soonest, each.arrived)
        return known[sent.index]

    def finish(self) -> None:
        for ssrc, flow in self.flows.items():
            if ssrc == flow.ssrc:
                flow.finish()
        for endpoint, arrived in self.arrived.items():
            late = self.world.now - 0.2
            silent = [
                number for number, when in arrived.items() if when < late and number not in self.reported[endpoint]
            ]
            if silent and not endpoint.closed:
                self.wrong(f"{endpoint.name} never hears of {len(silent)} packets that came, {silent[:5]}")


@frozen(eq=False)
class Out:
    """A packet as it left."""

    sent: Sent
    timestamp: int
    marker: bool
    payload: bytes
    time: float


class Flow:
    """One subscription, seen where the SFU lets go of it."""

    def __init__(
        self, watch: Watch, endpoint: Endpoint, track_id: str, kind: str, ssrc: int, rtx_ssrc: int | None
    ) -> None:
        self.watch, self.endpoint, self.track_id, self.kind = watch, endpoint, track_id, kind
        self.ssrc, self.rtx_ssrc = ssrc, rtx_ssrc
        self.outs: dict[int, Out] = {}
        #: Sent by RTX alone: the SFU had them before the number that they belong to was there.
        self.filled: dict[int, Out] = {}
        self.blanks: set[int] = set()
        self.highest = -1
        self.ended = False
        #: Times of mutes, switches and the end: a frame that one of them cuts need not be whole.
        self.cuts: list[float] = [watch.world.now]
        self.span: object = None
        self._fresh = True
        self._layer = 0
        self._switched_at = 0
        self._key = -1
        self._repairs: defaultdict[int, list[float]] = defaultdict(list)
        self._places: dict[tuple[int, int], int] = {}
        #: Until when the rest of a picture that had begun may pass a mute.
        self._ending = 0.0

    def __str__(self) -> str:
        return f"{self.endpoint.name}←{self.track_id}"

    def wrong(self, what: str) -> None:
        self.watch.wrong(f"{self}: {what}")

    def cut(self, muted: bool = False) -> None:
        """Muted or not any more: it begins anew. A picture that has begun goes on to its end."""
        self.cuts.append(self.watch.world.now)
        self._fresh = True
        self._ending = self.watch.world.now + FALL if muted and self.kind == "video" else 0.0

    def looked(self, span: object) -> None:
        """What the subscription is in: one stretch of numbers, or None during a pause."""
        if span is not self.span:
            self.span = span
            self.cuts.append(self.watch.world.now)

    def end(self) -> None:
        if not self.ended:
            self.cut()
            self.ended = True

    def index_of(self, sent: Sent) -> int | None:
        """Under which number a packet was sent."""
        return self._places.get((sent.ssrc, sent.index))

    # ---- as packets leave

    def sending(self, number: int, timestamp: int, marker: bool, payload: bytes) -> None:
        now, sent = self.watch.world.now, self.watch.known(payload)
        index = rtp.nearest(number, self.highest) if self.outs else number
        if self.ended:
            self.wrong(f"{index} after the end")
        ending = self.track_id in self.watch.muted and now < self._ending and self._begun(sent)
        if self.track_id in self.watch.muted and not ending:
            self.wrong(f"{index} while muted")
        if index in self.outs or index in self.blanks:
            self.wrong(f"{index} twice")
            return
        if (sent.ssrc, sent.index) in self._places:
            self.wrong(f"packet {sent.index} of {sent.ssrc} under two numbers")
        if self.watch.owners.get(sent.ssrc) != self.track_id:
            self.wrong(f"{index} is of another track")
        if payload[-len(sent.payload) + sent.head :] != sent.payload[sent.head :]:
            self.wrong(f"{index} has another content")
        if self.kind == "video":
            if len(payload) != len(sent.payload):
                self.wrong(f"{index} has another length")
            if not ending:
                self._begins(index, sent, now)
        if index in self.filled and self.filled[index].payload != payload:
            self.wrong(f"{index} was something else when it was repaired")
        self.outs[index] = Out(sent, timestamp, marker, payload, now)
        self._places[sent.ssrc, sent.index] = index
        self.highest = max(self.highest, index)

    def blank(self, number: int, first: bool) -> None:
        """An empty packet: the number was kept for one that came late, and was then not to be sent."""
        index = rtp.nearest(number, self.highest)
        if first and (index in self.outs or index in self.blanks):
            self.wrong(f"{index} twice, now empty")
        if not first and index not in self.blanks:
            self.wrong(f"{index} is repaired by nothing")
        self.blanks.add(index)

    def _begun(self, sent: Sent) -> bool:
        """Whether its picture, or one after it, had reached the SFU when the track was muted."""
        began = self._ending - FALL + 1e-6
        later = (each for each in reversed(self.watch.streams[sent.ssrc]) if each.picture >= sent.picture)
        return any(each.arrived is not None and each.arrived <= began for each in later)

    def _begins(self, index: int, sent: Sent, now: float) -> None:
        if self._fresh and not sent.starts:
            self.wrong(f"begins at {index} without a keyframe")
        elif not self._fresh and sent.ssrc != self._layer:
            if index < self._switched_at:
                return
            if not sent.starts:
                self.wrong(f"switches at {index} without a keyframe")
        if self._fresh or sent.ssrc != self._layer:
            self.cuts.append(now)
            self._switched_at = index
        self._fresh, self._layer = False, sent.ssrc
        if sent.starts:
            self._key = max(self._key, index)

    def repairing(self, _: int, timestamp: int, marker: bool, payload: bytes) -> None:
        now, sent = self.watch.world.now, self.watch.known(payload)
        index = rtp.nearest(payload[0] << 8 | payload[1], self.highest)
        out = Out(sent, timestamp, marker, payload[2:], now)
        if self.ended:
            self.wrong(f"repair of {index} after the end")
        before = self.outs.get(index) or self.filled.setdefault(index, out)
        if (before.payload, before.timestamp, before.marker) != (out.payload, timestamp, marker):
            self.wrong(f"repair of {index} differs from it")
        if self.endpoint.ticking:
            return  # nobody has asked: it pads, to find out what the link takes
        times = self._repairs[index]
        round_trip = self.endpoint.media.stats().round_trip
        pause = PAUSE if round_trip is None else min(PAUSE, 2 * round_trip)
        if times and now - times[-1] < pause - 1e-6:
            self.wrong(f"{index} is repaired again after {now - times[-1]:.4f} s")
        times.append(now)
        if len(times) > RESENDS:
            self.wrong(f"{index} is repaired {len(times)} times")
        if (
            index < self._key
            and sent.ssrc == self._layer
            and index in self.outs
            and self.outs[index].time < now - 0.001
        ):
            key = self.outs[self._key]
            if key.time < now - 1e-6 and index > self._switched_at:
                self.wrong(f"{index} is repaired, which is from before a keyframe")

    # ---- at the end

    def finish(self) -> None:
        self.cuts.sort()
        order = sorted(self.outs)
        for one, other in pairwise(order):
            self._step(one, other)
        if self.kind == "video":
            self._frames()
            for one, other in pairwise(order):
                a, b = self.outs[one], self.outs[other]
                if a.sent.codec == b.sent.codec == "vp8":
                    self._vp8(other, a, b, other == one + 1)

    def _cut_between(self, start: float, end: float) -> bool:
        at = bisect_left(self.cuts, start - 0.002)
        return at < len(self.cuts) and self.cuts[at] <= end + 0.002

    def _given_up(self, sent: Sent) -> bool:
        """Whether the SFU could not forward it in its place: it was lost, or came after too long, or after a switch."""
        if sent.arrived is None:
            return True
        after = self.watch.overtaken(sent)
        return sent.arrived > after and (sent.arrived > after + TOO_LATE or self._cut_between(after, sent.arrived))

    def _step(self, one: int, other: int) -> None:
        a, b = self.outs[one], self.outs[other]
        same = a.sent.ssrc == b.sent.ssrc
        holes = sum(index not in self.filled and index not in self.blanks for index in range(one + 1, other))
        if holes:
            lost = 0
            if same:
                # A frame found in the copy of a later packet may have the number of padding that was lost behind it.
                for index in range(a.sent.index + 1, b.sent.index + (3 if self.kind == "audio" else 0)):
                    sent = self.watch.published.get((a.sent.ssrc, index))
                    if sent is None or index == b.sent.index:
                        continue
                    # What came before the beginning is not gone back for.
                    early = sent.arrived is not None and self._cut_between(sent.arrived, max(a.time, b.time))
                    late = (
                        self.kind == "audio" and sent.arrived is not None and sent.arrived > self.watch.overtaken(sent)
                    )
                    lost += early or late or self._given_up(sent)
            if holes > lost:
                self.wrong(f"{holes} numbers after {one} were never used, {lost} packets were lost")
        step = (b.timestamp - a.timestamp) & 0xFFFFFFFF
        if same and step != (b.sent.timestamp - a.sent.timestamp) & 0xFFFFFFFF:
            self.wrong(f"from {one} to {other} time makes a step of {step}")
        elif not same:
            rate = 90000
            if not 0 < step < 0x80000000 or abs(step / rate - (b.sent.time - a.sent.time)) > 1.0:
                self.wrong(f"at the switch from {one} to {other} time makes a step of {step / rate:.3f} s")

    def _vp8(self, index: int, a: Out, b: Out, next_to: bool) -> None:
        """Picture id and TL0PICIDX of neighbours (RFC 7741, 4.2), which are where ``sources`` writes them."""
        step = (b.payload[2] << 8 | b.payload[3]) - (a.payload[2] << 8 | a.payload[3]) & 0x7FFF
        base = b.payload[4] - a.payload[4] & 0xFF
        if (a.sent.ssrc, a.sent.picture) == (b.sent.ssrc, b.sent.picture):
            if step or base:
                self.wrong(f"{index} has another picture id than the packet before it, by {step}/{base}")
        elif not 0 < step < 0x4000 or base >= 0x80:
            self.wrong(f"the picture id goes back at {index}, by {step}/{base}")
        elif next_to and not b.sent.key and a.marker and (step, base) != (1, int(b.sent.temporal == 0)):
            self.wrong(f"the picture id makes a leap at {index}, by {step}/{base}")

    def _frames(self) -> None:
        frames: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
        pictures: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, out in self.outs.items():
            frames[out.sent.ssrc, out.sent.picture, out.sent.spatial].append(index)
            pictures[out.sent.ssrc, out.sent.picture].append(index)
        whole: defaultdict[tuple[int, int], list[Sent]] = defaultdict(list)
        for ssrc in {ssrc for ssrc, _ in pictures}:
            for sent in self.watch.streams[ssrc]:
                whole[ssrc, sent.picture].append(sent)
        times = {}
        for picture, packets in whole.items():
            arrivals = [each.arrived for each in packets if each.arrived is not None]
            times[picture] = (min(arrivals), max(arrivals)) if arrivals else (0.0, 0.0)
        for (ssrc, picture, spatial), indexes in frames.items():
            there = {self.outs[index].sent.number for index in indexes}
            cut = self._cut_between(*times[ssrc, picture])
            for sent in whole[ssrc, picture]:
                if sent.spatial == spatial and sent.number not in there and not cut and not self._given_up(sent):
                    self.wrong(
                        f"picture {picture} of {ssrc}/{spatial} went without packet {sent.number} of {sent.count}"
                    )
            for ref in self.outs[indexes[0]].sent.refs:
                if (ssrc, *ref) not in frames and not cut:
                    needed = [each for each in whole[ssrc, ref[0]] if each.spatial == ref[1]]
                    if not all(self._given_up(each) for each in needed) and not self._cut_between(*times[ssrc, ref[0]]):
                        self.wrong(f"picture {picture} of {ssrc}/{spatial} went without {ref}, which it needs")
        for (ssrc, picture), indexes in pictures.items():
            packets = whole[ssrc, picture]
            if self._cut_between(*times[ssrc, picture]) or any(self._given_up(each) for each in packets):
                continue
            markers = [index for index in indexes if self.outs[index].marker]
            if markers != [max(indexes)]:
                self.wrong(
                    f"picture {picture} of {ssrc} has its markers at {markers}, its packets at {sorted(indexes)}"
                )
