"""The media path of one client, sans-IO: protected packets in, protected packets out.

``receive`` takes what the client sent, ``transmit`` gets what goes to it. Between them lie SRTP, the
client's published tracks (``sfu.uplink``), and its subscriptions to the tracks of others (``sfu.downlink``).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime

from orama.errors import BadRequest
from orama.net.fabric import Buffer, Burst
from orama.sfu import srtp
from orama.sfu.allocator import Share
from orama.sfu.allowance import Allowance
from orama.sfu.counters import MediaCounters
from orama.sfu.downlink import Downlink
from orama.sfu.layers import LAYERS
from orama.sfu.outbox import Outbox
from orama.sfu.red import Losses
from orama.sfu.reports import RoundTrip
from orama.sfu.sequence import Numbering
from orama.sfu.sharing import Sharing
from orama.sfu.succession import RandomBits
from orama.sfu.tally import READING
from orama.sfu.track import Track
from orama.sfu.uplink import Uplink
from orama.sfu.values import Downlinked, SrtpKeys, Uplinked
from orama.wire import rtcp

__all__ = ["MediaStats", "PeerMedia", "RandomBits", "Track"]

#: Bytes of the longest packet that is looked at: more than any path of a WebRTC client takes.
LONGEST = 2048
#: Sequence numbers a second that a client may ask for again, and at once (libwebrtc's list holds 1000).
NACK_RATE, MOST_NACKED = 5000, 2000


@frozen
class MediaStats:
    """One client's media at this moment; counts are totals since the start."""

    #: Seconds, None before the first receiver report.
    round_trip: float | None
    packets_received: int
    packets_sent: int
    #: What the client says it lost of its present subscriptions.
    packets_lost: int
    #: Bits per second on the wire that the client is believed to take; None while nothing says so.
    estimate: float | None = None
    #: Track id → what of each video subscription its bandwidth is enough for; empty while all of everything is sent.
    shares: Mapping[str, Share] = field(factory=dict)


class PeerMedia:
    """What one client sends and receives.

    :param random: where SSRCs, first numbers and timestamp offsets come from.
    :param transmit: gets protected packets for this client; the views are good until it returns.
    :param later: ``Fabric.later``: runs a flush once when the current drain ends.
    :param max_bitrate: bits per second that REMB allows the client at most, 0 for the usual limit.
    :param estimates: whether what the client gets follows an estimate of what its link takes.
    :param max_estimate: bits per second that such an estimate never exceeds, 0 for the usual limit.
    """

    def __init__(
        self,
        clock: IReactorTime,
        random: RandomBits,
        transmit: Callable[[Burst], None],
        later: Callable[[Callable[[], None]], None],
        counters: MediaCounters,
        max_bitrate: int = 0,
        estimates: bool = True,
        max_estimate: int = 0,
    ) -> None:
        self._clock = clock
        self._random = random
        self._counters = counters
        self._outbox = Outbox(transmit, later, counters)
        self._receiver: srtp.Receiver | None = None
        self._uplink = Uplink(clock, random.getrandbits(32), self._outbox.rtcp, counters, max_bitrate)
        self._downlinks: dict[str, Downlink] = {}
        self._by_ssrc: dict[int, Downlink] = {}
        # SSRC → the last index that it was used with, of subscriptions that have ended: see Numbering.highest.
        self._used: dict[int, int] = {}
        self._round_trip = RoundTrip()
        self._losses = Losses()
        now = clock.seconds()
        self._sharing = (
            Sharing(self._outbox, self._downlinks, self._round_trip, counters, now, max_estimate) if estimates else None
        )
        self._nacks = Allowance(NACK_RATE, MOST_NACKED, clock.seconds())
        self._packets_sent = 0
        self._read_at = clock.seconds()
        self._closed = False
        #: Tracks that the client publishes, by track id.
        self.tracks: dict[str, Track] = self._uplink.tracks

    # -- what the session decides -------------------------------------------------------------------

    def secure(self, keys: SrtpKeys) -> None:
        """DTLS is up: from now on packets can be read and written, and subscriptions begin."""
        self.protect(srtp.receiver(keys, self._counters.dropped), srtp.sender(keys))

    def protect(self, receiver: srtp.Receiver, sender: srtp.Sender) -> None:
        """The same with what reads and writes packets."""
        if self._closed:
            return
        self._receiver = receiver
        self._outbox.sender = sender
        now = self._clock.seconds()
        for downlink in self._downlinks.values():
            downlink.start(now)

    def publish(self, tracks: Sequence[Uplinked]) -> None:
        """The whole set of m-lines on which the client sends now; what is missing from it ends."""
        if not self._closed:
            self._uplink.publish(tracks)

    def subscribe(self, track: Track, downlinked: Downlinked) -> None:
        """Forward *track* of another client to this one; again for the same track replaces the m-line's values.

        :raises ValueError: an SSRC of another subscription of this client.
        """
        if self._closed or track.closed:
            return
        known = self._downlinks.get(downlinked.track_id)
        if known is not None:
            if known.track is track and (known.ssrc, known.rtx_ssrc) == (downlinked.ssrc, downlinked.rtx_ssrc):
                known.configure(downlinked)
                return
            known.close()
        taken = {ssrc for each in self._downlinks.values() for ssrc in (each.ssrc, each.rtx_ssrc)}
        if downlinked.ssrc in taken or (downlinked.rtx_ssrc is not None and downlinked.rtx_ssrc in taken):
            # Two streams under one SSRC would protect two packets with one index.
            raise ValueError("this SSRC belongs to another subscription of the client")
        downlink = Downlink(
            track,
            downlinked,
            self._outbox,
            self._numbering(downlinked.ssrc),
            self._numbering(downlinked.rtx_ssrc) if downlinked.rtx_ssrc is not None else Numbering(0),
            self._random,
            self._round_trip,
            self._counters,
            self._ended,
        )
        self._downlinks[downlinked.track_id] = downlink
        self._by_ssrc[downlink.ssrc] = downlink
        downlink.repeat(self._losses.many)
        downlink.start(self._clock.seconds())

    def show(self, track_id: str, track: Track) -> None:
        """Forward *track* in place of what is forwarded there: the same SSRC, numbers and time go on."""
        downlink = self._downlinks.get(track_id)
        if downlink is not None and downlink.track is not track:
            downlink.show(track, self._clock.seconds())
            if self._sharing is not None:
                self._sharing.renew()

    def subscribed(self) -> set[str]:
        """Track ids of the subscriptions."""
        return set(self._downlinks)

    def unsubscribe(self, track_id: str) -> None:
        """Stop; nothing happens when there is no such subscription."""
        downlink = self._downlinks.get(track_id)
        if downlink is not None:
            downlink.close()

    def retain(self, ssrcs: Container[int]) -> None:
        """Negotiation may come back to these SSRCs of ended subscriptions, and to no others."""
        self._used = {ssrc: highest for ssrc, highest in self._used.items() if ssrc in ssrcs}

    def set_layer(self, track_id: str, layer: str, priority: int = 0) -> None:
        """Choose the simulcast layer: ``low``, ``mid``, ``high`` or ``auto``; nothing without such a subscription.

        :raises BadRequest: no such layer.
        """
        if layer not in LAYERS:
            raise BadRequest("invalid_layer", f"layer is one of {', '.join(LAYERS)}")
        downlink = self._downlinks.get(track_id)
        if downlink is not None:
            other = layer != downlink.choice.layer
            downlink.ask(layer, priority, self._clock.seconds())
            if other and self._sharing is not None:
                self._sharing.asked(track_id)

    def close(self) -> None:
        """End every subscription from and to this client; later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        for downlink in list(self._downlinks.values()):
            downlink.close()
        self._uplink.close()
        self._outbox.close()
        self._receiver = None

    # -- the way of a packet ----------------------------------------------------------------------

    def receive(self, packets: Burst, now: float) -> None:
        """Take protected RTP and RTCP as the client sent them; never raises for bad packets."""
        receiver = self._receiver
        if receiver is None:
            self._counters.dropped["no_keys"] += len(packets)
            return
        media: list[Buffer] = []
        control: list[Buffer] = []
        for packet in packets:
            size = len(packet)
            if size > LONGEST:
                self._counters.dropped["too_long"] += 1
            else:  # RFC 5761, 4: a second byte of 192 to 223 is RTCP
                (control if size > 1 and 192 <= packet[1] <= 223 else media).append(packet)
        if media:
            self._uplink.receive(receiver.unprotect(media), now)
        for packet in control:
            plain = receiver.unprotect_rtcp(packet)
            if plain is not None:
                self._receive_rtcp(plain, now)

    def _receive_rtcp(self, plain: bytes, now: float) -> None:
        self._counters.rtcp_received += 1
        try:
            received = rtcp.parse(plain, transport_wide=False)
        except rtcp.RtcpError:
            self._counters.dropped["malformed_rtcp"] += 1
            return
        for each in received:
            match each:
                case rtcp.SenderReport():
                    self._uplink.report(each, now)
                    self._reported(each.blocks, now)
                case rtcp.ReceiverReport():
                    self._reported(each.blocks, now)
                case rtcp.Nack():
                    if (downlink := self._by_ssrc.get(each.media_ssrc)) is not None:
                        self._nacked(downlink, each.sequence_numbers, now)
                case rtcp.PictureLoss():
                    if (downlink := self._by_ssrc.get(each.media_ssrc)) is not None:
                        downlink.wish(now)
                case rtcp.FullIntraRequest():
                    for ssrc, _ in each.requests:
                        if (downlink := self._by_ssrc.get(ssrc)) is not None:
                            downlink.wish(now)
                case rtcp.ReceiverEstimate() if self._sharing is not None:
                    self._sharing.remb(each.bitrate, now)
                case rtcp.Unknown(kind=rtcp.RTPFB, count=rtcp.TRANSPORT_CC) if self._sharing is not None:
                    self._sharing.feedback(each.body, now)
                case _:
                    pass

    def _nacked(self, downlink: Downlink, numbers: Sequence[int], now: float) -> None:
        granted = self._nacks.take(len(numbers), now)
        if granted < len(numbers):
            self._counters.dropped["nack_limit"] += len(numbers) - granted
        downlink.nack(numbers[:granted], now)

    def _reported(self, blocks: Sequence[rtcp.ReportBlock], now: float) -> None:
        for block in blocks:
            if (downlink := self._by_ssrc.get(block.ssrc)) is not None:
                downlink.reported(block, now)
                # Of pictures too: they share the line, and reports of them come oftener.
                if self._losses.reported(block.fraction_lost / 256, now):
                    for each in self._downlinks.values():
                        each.repeat(self._losses.many)
        if self._sharing is not None and blocks:
            self._sharing.reported(blocks, self._by_ssrc)

    # -- time ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Timed work; call it every 50 ms."""
        if self._closed:
            return
        self._uplink.tick(now, self._round_trip.value)
        for downlink in self._downlinks.values():
            downlink.tick(now)
        if now - self._read_at >= READING:
            self._read_at = now
            for downlink in self._downlinks.values():
                downlink.read(now)
        if self._sharing is not None:
            self._sharing.tick(now)

    def subscriptions(self) -> Iterable[Downlink]:
        """What the client gets, each on its way to it."""
        return self._downlinks.values()

    @property
    def estimate(self) -> float | None:
        """Bits per second on the wire that the client is believed to take; None while nothing says so."""
        return None if self._sharing is None else self._sharing.estimate

    def stats(self) -> MediaStats:
        return MediaStats(
            round_trip=self._round_trip.value,
            packets_received=self._uplink.packets_received,
            packets_sent=self._packets_sent + sum(each.packets_sent for each in self._downlinks.values()),
            packets_lost=sum(each.packets_lost for each in self._downlinks.values()),
            estimate=self.estimate,
            shares=dict(self._sharing.shares) if self._sharing is not None else {},
        )

    def _numbering(self, ssrc: int) -> Numbering:
        # A first number below 2¹⁵, so that the receiver's guess of the rollover counter is right (RFC 3711, 3.3.1).
        return Numbering(self._used[ssrc] if ssrc in self._used else self._random.getrandbits(14))

    def _ended(self, downlink: Downlink) -> None:
        self._packets_sent += downlink.packets_sent
        self._used[downlink.ssrc] = downlink.numbering.highest
        if downlink.rtx_ssrc is not None:
            self._used[downlink.rtx_ssrc] = downlink.repairs.numbering.highest
        if self._by_ssrc.get(downlink.ssrc) is downlink:
            del self._by_ssrc[downlink.ssrc]
        for track_id, each in list(self._downlinks.items()):
            if each is downlink:
                del self._downlinks[track_id]
