"""What must hold of every packet, whatever happens on the links.

``Watch`` sees what reaches the SFU and what leaves it, decrypted. What is wrong is written down in ``violations``,
since the media path goes on after an exception. The rules of one subscription are those of ``flow``.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from orama.wire import rtcp, rtp
from orama.wire.rtcp import Nack, PictureLoss, RtcpPacket
from orama.wire.transport_cc import TransportFeedback
from tests.simulation.ciphers import Refused
from tests.simulation.flow import Flow
from tests.simulation.sources import Sent

if TYPE_CHECKING:
    from tests.simulation.endpoint import Endpoint
    from tests.simulation.world import World

#: What the documentation says, and not what the code has: NACK after 20 ms, then ever later by a quarter, at most
#: 400 ms, five times.
FIRST, FACTOR, LONGEST, TRIES = 0.02, 1.25, 0.4, 5
#: Keyframe requests to one source, after an answer and before.
ANSWERED, UNANSWERED = 0.5, 0.2
#: Violations after which a run is told from no further.
MOST = 20

_fixed = struct.Struct("!BBHII")
_origin = struct.Struct("!II")

#: Id of the transport-wide number in what clients get.
TRANSPORT = 5


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


@frozen(eq=False)
class Landing:
    """An RTP packet on its way to a client, as its headers say: *sent* is what it carries, None when it is empty."""

    flow: Flow
    number: int
    sent: Sent | None
    #: The transport-wide number, None without; of padding it is all that there is.
    transport: int | None
    padding: bool


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
        self._alive: dict[Flow, None] = {}
        self.incoming: defaultdict[int, Incoming] = defaultdict(Incoming)
        self._layouts = rtp.Layouts()
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
        return self.published[_origin.unpack_from(payload, len(payload) - 8)]

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
        self._alive[flow] = None

    def look(self) -> None:
        """See which subscriptions have been paused, or have begun anew: nothing outside says so."""
        for flow in self._alive:
            if flow.downlink._span is not flow.span:
                flow.looked()

    def ended(self, flow: Flow) -> None:
        del self._alive[flow]

    # ---- what reaches the SFU

    def reaching(self, endpoint: Endpoint, packets: Sequence[tuple[bytes, Sent | None, int]]) -> None:
        """Each with what it carries and its transport-wide number."""
        now, arrived = self.world.now, self.arrived[endpoint]
        for _, sent, number in packets:
            if sent is None:
                continue
            arrived.setdefault(number, now)
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

    def decrypt(self, unprotect: Callable[[bytes], bytes], data: bytes) -> bytes | None:
        try:
            return unprotect(data)
        except Refused as error:
            self.wrong(f"a packet that the client refuses: {error}, {data[:12].hex()}")
            return None

    def control(self, endpoint: Endpoint, plain: bytes) -> Sequence[RtcpPacket]:
        packets = rtcp.parse(plain)
        for packet in packets:
            if isinstance(packet, Nack):
                self._nacked(endpoint, packet)
            elif isinstance(packet, PictureLoss):
                self._wished(packet.media_ssrc)
            elif isinstance(packet, TransportFeedback):
                reported, arrived = self.reported[endpoint], self.arrived[endpoint]
                for number, delta in enumerate(packet.deltas, packet.base_sequence):
                    if delta is not None:
                        reported.add(number & 0xFFFF)
                        if number & 0xFFFF not in arrived:
                            self.wrong(f"{endpoint.name} hears that {number & 0xFFFF} has come, and it has not")
        return packets

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

    def sending(self, endpoint: Endpoint, plain: bytes) -> Landing | None:
        first, second, number, timestamp, ssrc = _fixed.unpack_from(plain)
        flow = self.flows.get(ssrc)
        start = rtp.header_length(plain)
        payload = plain[start:]
        place = self._layouts.elements(plain[:start]).get(TRANSPORT)
        transport = None if place is None else plain[place[0]] << 8 | plain[place[0] + 1]
        if flow is None or flow.endpoint is not endpoint:
            self.wrong(f"{endpoint.name} gets the unknown SSRC {ssrc}")
            return None
        if first & 0x20:
            if ssrc == flow.ssrc:
                self.wrong(f"{flow} gets padding among its packets")
            return Landing(flow, number, None, transport, True)
        repair = ssrc != flow.ssrc
        if repair:
            number, payload = payload[0] << 8 | payload[1], payload[2:]
        sent = None
        if len(payload) < 8:
            flow.blank(number, not repair)
        else:
            sent = self.known(payload)
            (flow.repairing if repair else flow.sending)(number, timestamp, bool(second & 0x80), payload, sent)
        return Landing(flow, number, sent, transport, False)

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
