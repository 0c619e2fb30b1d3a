"""What must hold of one subscription, seen where the SFU lets go of it: as packets leave, and in the end of it all."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import frozen

from orama.wire import rtp
from tests.simulation.sources import Sent

if TYPE_CHECKING:
    from orama.sfu.downlink import Downlink
    from tests.simulation.endpoint import Endpoint
    from tests.simulation.watch import Watch

#: What the documentation says, and not what the code has: a packet three times more, and not within 100 ms; the rest of
#: a picture for 200 ms after a mute.
PAUSE, RESENDS = 0.1, 3
FALL = 0.2
#: A packet that comes so much later than the one after it (seconds) may be given up.
TOO_LATE = 0.8


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
        #: The SFU's side, which is there as soon as there is anything to see.
        self.downlink: Downlink
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

    def looked(self) -> None:
        """It is in another stretch of numbers now, or in None during a pause."""
        self.span = self.downlink._span
        self.cuts.append(self.watch.world.now)

    def end(self) -> None:
        if not self.ended:
            self.cut()
            self.ended = True
            self.watch.ended(self)

    def index_of(self, sent: Sent) -> int | None:
        """Under which number a packet was sent."""
        return self._places.get((sent.ssrc, sent.index))

    # ---- as packets leave

    def sending(self, number: int, timestamp: int, marker: bool, payload: bytes, sent: Sent) -> None:
        now = self.watch.world.now
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

    def repairing(self, number: int, timestamp: int, marker: bool, payload: bytes, sent: Sent) -> None:
        now = self.watch.world.now
        index = rtp.nearest(number, self.highest)
        out = Out(sent, timestamp, marker, payload, now)
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
