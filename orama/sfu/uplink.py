"""What one client publishes: its streams told apart, put in order, reported on (RFC 3550, 8852, 9143, 4588).

Plain packets come in bursts from ``sfu.srtp``; what is new leaves in runs, one stream each, to that stream's
downlinks. A stream is known by its SSRC: from the SDP, or learned from the MID, RID and repaired-RID extensions, or
from a payload type that only one m-line has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.sfu.congestion import REMB_HIGHEST, Arrivals, LossEstimate
from orama.sfu.counters import MediaCounters
from orama.sfu.excess import Excess
from orama.sfu.keyframes import Throttle
from orama.sfu.packet import MAX_PAYLOAD, Packet
from orama.sfu.qualities import total
from orama.sfu.reports import StreamClock
from orama.sfu.stream import Stream
from orama.sfu.track import Track
from orama.sfu.values import MID, REPAIRED_RID, RID, TRANSPORT_CC, Uplinked
from orama.wire.rtcp import FullIntraRequest, Nack, PictureLoss, ReceiverEstimate, SenderReport, reports
from orama.wire.rtcp import serialize as compound
from orama.wire.rtp import Layouts

#: Packets that go to the downlinks together: what one GSO send takes.
RUN = 64
#: A repair of a packet that is so far ahead repairs nothing of this stream.
AHEAD = 256
#: Seconds between two receiver reports.
REPORT_INTERVAL = 1.0

_fixed = Struct("!BBHII").unpack_from
_log = Logger()


class Uplink:
    """The publishing half of one client.

    :param ssrc: ours, in the reports that the client gets.
    :param send: takes plain RTCP for the client.
    :param max_bitrate: bits per second that REMB allows at most, 0 for the usual limit.
    """

    def __init__(
        self,
        clock: IReactorTime,
        ssrc: int,
        send: Callable[[bytes], None],
        counters: MediaCounters,
        max_bitrate: int = 0,
    ) -> None:
        self.tracks: dict[str, Track] = {}
        self.packets_received = 0
        self._clock = clock
        self._ssrc = ssrc
        self._send = send
        self._counters = counters
        self._streams: dict[int, Stream] = {}
        self._repairs: dict[int, Stream] = {}
        self._arrivals = Arrivals()
        self._estimate = LossEstimate(max_bitrate or REMB_HIGHEST)
        self._layouts = Layouts()
        self._reports = Throttle(REPORT_INTERVAL)
        self._excess = Excess(max_bitrate) if max_bitrate else None
        self._fir_number = 0
        self._mid_id = self._rid_id = self._repaired_rid_id = self._transport_id = 0

    def publish(self, published: Sequence[Uplinked]) -> None:
        """The whole set as negotiated now."""
        kept = {uplinked.track_id for uplinked in published}
        for track_id in [each for each in self.tracks if each not in kept]:
            self._end(self.tracks.pop(track_id))
        identifiers: dict[str, int] = {}
        for uplinked in published:
            identifiers.update(uplinked.extensions)  # one numbering in a bundle (RFC 8843, 14.4.2)
            track = self.tracks.get(uplinked.track_id)
            if track is None:
                track = self.tracks[uplinked.track_id] = Track(uplinked, self._clock, self)
            else:
                track.configure(uplinked)
            if not uplinked.rids:
                for rid, (ssrc, rtx_ssrc) in zip(track.rids, uplinked.ssrcs, strict=False):
                    self._bind(track, rid, ssrc, rtx_ssrc)
        self._mid_id = identifiers.get(MID, 0)
        self._rid_id = identifiers.get(RID, 0)
        self._repaired_rid_id = identifiers.get(REPAIRED_RID, 0)
        # Who numbers its packets and reads no feedback of that kind gets REMB.
        read = any("transport-cc" in codec.feedback for each in published for codec in each.codecs)
        self._transport_id = identifiers.get(TRANSPORT_CC, 0) if read else 0

    def receive(self, plain: Sequence[tuple[bytes, bytes]], now: float) -> None:
        """Take a burst of (header, payload), in order."""
        streams, arrivals, transport_id = self._streams, self._arrivals.waiting, self._transport_id
        counters, dropped, elements = self._counters, self._counters.dropped, self._layouts.elements
        run: list[Packet] = []
        current: Stream | None = None
        size = 0
        for header, payload in plain:
            size += len(payload) + len(header)
            first, second, sequence, timestamp, ssrc = _fixed(header)
            found = elements(header)
            place = found.get(transport_id)
            if place is not None and place[1] - place[0] >= 2:
                arrivals[header[place[0]] << 8 | header[place[0] + 1]] = now
            if first & 0x20 and payload:
                payload = payload[: max(0, len(payload) - payload[-1])]
            stream = streams.get(ssrc)
            if stream is None:
                stream = self._repairs.get(ssrc) or self._learn(ssrc, second & 0x7F, header, found)
                if stream is None:
                    dropped["unknown_source"] += 1
                    continue
            repaired = ssrc != stream.ssrc
            if repaired:
                original = stream.track.repairs.get(second & 0x7F)
                if original is None or len(payload) < 2:
                    dropped["padding"] += 1  # a probe: RTX without an original
                    continue
                sequence, payload, second = payload[0] << 8 | payload[1], payload[2:], second & 0x80 | original
                if stream.reception is None or AHEAD < (sequence - stream.highest) & 0xFFFF < 0x8000:
                    dropped["stray_repair"] += 1
                    continue
            if len(payload) > MAX_PAYLOAD:
                dropped["too_long"] += 1
                continue
            packet = stream.accept(sequence, timestamp, second, payload, header, found, now)
            if packet is None:
                dropped["duplicate"] += 1
                continue
            if repaired:
                counters.recovered += 1
                stream.tally.recovered += 1
            if stream is not current or len(run) == RUN:
                if current is not None:
                    self._forward(current, run, now)
                current, run = stream, []
            run.append(packet)
        if current is not None:
            self._forward(current, run, now)
        counters.received += len(plain)
        counters.received_bytes += size
        self.packets_received += len(plain)
        if self._arrivals.due(now):
            self._feedback(now)
        self._nack(now)

    def _forward(self, stream: Stream, run: list[Packet], now: float) -> None:
        packets: Sequence[Packet] = run
        gate = stream.track.gate
        if gate is not None:
            packets = gate(stream, run, now)
            if not packets:
                self._counters.dropped["muted" if stream.track.muted else "not_loudest"] += len(run)
                return
        for downlink in stream.listeners:
            try:
                downlink.forward(stream, packets, now)
            except Exception:  # the other subscribers are somebody else
                _log.failure("forwarding to a subscriber failed: the subscription ends")
                downlink.close()

    def report(self, report: SenderReport, now: float) -> None:
        """The client's sender report: kept, and told to those who get the stream."""
        stream = self._streams.get(report.ssrc)
        if stream is None or not report.ntp_time:
            return
        stream.clock = StreamClock(report.ntp_time, report.rtp_time, now)
        if stream.passes_reports.allows(now):
            for downlink in stream.listeners:
                downlink.report(stream, now)

    def ask_keyframe(self, stream: Stream) -> None:
        """Send PLI, or FIR where only that was negotiated."""
        feedback = {each for codec in stream.track.codecs for each in codec.feedback}
        request: PictureLoss | FullIntraRequest
        if "ccm fir" in feedback and "nack pli" not in feedback:
            self._fir_number = (self._fir_number + 1) & 0xFF
            request = FullIntraRequest(self._ssrc, ((stream.ssrc, self._fir_number),))
        else:
            request = PictureLoss(self._ssrc, stream.ssrc)
        self._counters.keyframe_requests += 1
        stream.tally.keyframe_requests += 1
        self._send(request.serialize())

    def tick(self, now: float, round_trip: float | None) -> None:
        """Timed work: feedback, NACK, reports, what is too old, layers that stopped."""
        for stream in self._streams.values():
            if round_trip is not None:
                stream.reached(round_trip)
            stream.tick(now)
        for track in self.tracks.values():
            track.tick(now)
        self._nack(now)
        if self._arrivals.due(now):
            self._feedback(now)
        if self._reports.allows(now):
            self._report(now)
            if self._excess is not None:
                self._compare(self._excess, now)

    def close(self) -> None:
        for track in self.tracks.values():
            self._end(track)
        self.tracks.clear()

    # -- telling streams apart ---------------------------------------------------------------------

    def _learn(self, ssrc: int, payload_type: int, header: bytes, found: dict[int, tuple[int, int]]) -> Stream | None:
        """Whose SSRC this is (RFC 9143, 9.2; RFC 8852, 3); None when nothing says so."""
        mid = self._text(header, found, self._mid_id)
        rid = self._text(header, found, self._rid_id)
        repaired_rid = self._text(header, found, self._repaired_rid_id)
        candidates = [
            track
            for track in self.tracks.values()
            if (track.mid == mid or not mid)
            and (payload_type in track.repairs or any(payload_type == codec.payload_type for codec in track.codecs))
        ]
        if len(candidates) != 1:
            return None
        track = candidates[0]
        repair = payload_type in track.repairs
        layer = (repaired_rid or rid if repair else rid) if len(track.rids) > 1 else ""
        if layer not in track.rids:
            return None
        if not repair:
            return self._bind(track, layer, ssrc, None)
        stream = track.streams.get(layer)
        if stream is not None:
            if stream.rtx_ssrc is not None:
                self._repairs.pop(stream.rtx_ssrc, None)
            stream.rtx_ssrc = ssrc
            self._repairs[ssrc] = stream
        return stream

    @staticmethod
    def _text(header: bytes, found: dict[int, tuple[int, int]], identifier: int) -> str:
        start, end = found.get(identifier, (0, 0))
        return bytes(header[start:end]).decode("ascii", "replace")

    def _bind(self, track: Track, rid: str, ssrc: int, rtx_ssrc: int | None) -> Stream:
        """From now on *ssrc* is layer *rid* of *track*."""
        stream = track.streams.get(rid)
        if stream is None or stream.ssrc != ssrc:
            if stream is not None:
                self._unbind(stream)
                rtx_ssrc = rtx_ssrc or stream.rtx_ssrc
            taken = self._streams.get(ssrc)
            if taken is not None and taken.track.streams.get(taken.rid) is taken:
                del taken.track.streams[taken.rid]
                for downlink in taken.listeners:
                    downlink.lost(taken)
            stream = Stream(track, rid, ssrc, self)
            self._streams[ssrc] = stream
            self._repairs.pop(ssrc, None)
            track.add(stream)
            track.aim(self._clock.seconds())
        if rtx_ssrc is not None and rtx_ssrc not in self._streams:
            stream.rtx_ssrc = rtx_ssrc
            self._repairs[rtx_ssrc] = stream
        return stream

    def _unbind(self, stream: Stream) -> None:
        for routes, ssrc in ((self._streams, stream.ssrc), (self._repairs, stream.rtx_ssrc)):
            if ssrc is not None and routes.get(ssrc) is stream:
                del routes[ssrc]

    def _end(self, track: Track) -> None:
        for stream in track.streams.values():
            self._unbind(stream)
        track.close()

    # -- what the client is told ------------------------------------------------------------------

    def _nack(self, now: float) -> None:
        for stream in self._streams.values():
            asked = stream.missing.due(now)
            if asked:
                self._counters.nacks_sent += len(asked)
                stream.tally.nacks += len(asked)
                numbers = tuple(index & 0xFFFF for index in asked)
                self._send(Nack(self._ssrc, stream.ssrc, numbers).serialize())

    def _feedback(self, now: float) -> None:
        media = next(iter(self._streams), 0)
        for message in self._arrivals.feedback(self._ssrc, media, now):
            self._send(message.serialize())

    def _compare(self, excess: Excess, now: float) -> None:
        """See who sends more than was asked for, once a second."""
        rates = {
            track.track_id: sum(total(stream.meter.rates) for stream in track.streams.values())
            for track in self.tracks.values()
            if track.kind == "video"
        }
        for track_id in excess.look(rates, now):
            self._counters.excessive += 1
            _log.warn(
                "track {track_id} sends {bitrate:.0f} bit/s where {limit} were asked for",
                track_id=track_id,
                bitrate=rates[track_id],
                limit=excess.limit,
            )

    def _report(self, now: float) -> None:
        blocks = [block for stream in self._streams.values() if (block := stream.block(now)) is not None]
        if not blocks:
            return
        for report in reports(self._ssrc, blocks):
            self._send(report.serialize())
        limited = [
            stream.ssrc
            for stream in self._streams.values()
            if any("goog-remb" in codec.feedback for codec in stream.track.codecs)
        ]
        lost = max(block.fraction_lost for block in blocks) / 256
        if limited and not self._transport_id:
            self._estimate.update(lost)
            self._send(compound((ReceiverEstimate(self._ssrc, self._estimate.bitrate, tuple(limited)),)))
