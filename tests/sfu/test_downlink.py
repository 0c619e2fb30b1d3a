"""One subscription: its numbers, its beginning, its NACKs, its layers."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from orama.errors import BadRequest
from orama.sfu.downlink import Downlink
from orama.sfu.qualities import Quality
from orama.sfu.values import (
    AUDIO_LEVEL,
    DEPENDENCY_DESCRIPTOR,
    MID,
    RID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    Codec,
    Downlinked,
    Uplinked,
)
from orama.wire.rtcp import (
    FullIntraRequest,
    Nack,
    PictureLoss,
    ReceiverReport,
    ReportBlock,
    SenderReport,
    SourceDescription,
)
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import (
    CM,
    EXTENSIONS,
    KEY,
    OPUS,
    VIDEO_FEEDBACK,
    VP8,
    Client,
    Room,
    Source,
    camera,
    downlinked,
    microphone,
)

NTP = 1 << 32


class DownlinkTestCase(SynchronousTestCase):
    """Alice publishes a camera, Bob gets it under SSRC 5000 with RTX under 5001."""

    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()
        self.alice.publish(camera(ssrcs=((1, 11),)), microphone())
        self.source = Source(self.alice, 1, rtx=(11, 97))

    def subscribe(self, client: Client | None = None, **values: object) -> None:
        (client or self.bob).media.subscribe(self.alice.media.tracks["camera"], downlinked(camera(), **values))  # type: ignore[arg-type]

    def payloads(self, client: Client | None = None, ssrc: int = 5000) -> dict[int, bytes]:
        """Outgoing number → payload, as a receiver sorts them."""
        return {packet.sequence_number: packet.payload for packet in (client or self.bob).of(ssrc)}

    def dropped(self, reason: str) -> int:
        return self.room.counters.dropped[reason]


class BeginningTests(DownlinkTestCase):
    def test_waits_for_a_keyframe(self) -> None:
        """Nothing goes out before a keyframe, which is asked for at once and again until it comes."""
        self.subscribe()
        self.alice.send(*self.source.frame())
        self.room.wait(1.6)
        self.assertEqual(self.bob.rtp, [])
        self.assertIn(len(self.alice.take(PictureLoss)), (3, 4))
        self.alice.send(*self.source.frame(), *self.source.frame(key=True), *self.source.frame())
        self.assertEqual(len(self.bob.rtp), 6)
        self.room.wait(2)
        self.assertEqual(self.alice.take(PictureLoss), [])

    def test_audio_begins_at_once(self) -> None:
        """Audio has no keyframes."""
        self.bob.media.subscribe(self.alice.media.tracks["microphone"], downlinked(microphone(), 7000))
        source = Source(self.alice, 2, 111, mid="1")
        self.alice.send(source.packet(b"opus"))
        self.assertEqual([packet.payload for packet in self.bob.of(7000)], [b"opus"])

    def test_waits_for_keys(self) -> None:
        """Before the subscriber's keys nothing is sent or asked; with them it begins (the answer may come later)."""
        late = self.room.client(secure=False)
        self.subscribe(late)
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(1)
        self.assertEqual((late.bursts, self.alice.take(PictureLoss)), ([], []))
        self.assertEqual(self.alice.media.tracks["camera"].streams[""].listeners, ())
        late.secure()
        self.room.wait(0.05)
        self.assertEqual(len(self.alice.take(PictureLoss)), 1)
        self.alice.send(*self.source.frame(key=True))
        self.assertEqual(len(late.rtp), 3)

    def test_a_keyframe_that_comes_late(self) -> None:
        """A keyframe whose first packet came by RTX is sent with all that followed it meanwhile, in order and once."""
        self.subscribe()
        self.alice.send(*self.source.frame())
        self.source.history.clear()
        key, after = self.source.frame(key=True), self.source.frame()
        self.alice.send(*key[1:], *after)
        self.assertEqual(self.bob.rtp, [])
        self.room.wait(0.05)
        self.alice.send(key[0], *self.source.frame())
        payloads = [packet.payload for packet in self.bob.of(5000)]
        self.assertEqual(payloads, [packet.payload for packet in self.source.history.values()])

    def test_a_keyframe_from_before_the_pause(self) -> None:
        """After a pause an older keyframe that comes only now is no beginning: what follows it has been sent."""
        self.subscribe()
        self.alice.send(*self.source.frame())
        lost = self.source.frame(key=True)
        self.alice.send(*lost[1:], *self.source.frame(key=True), *self.source.frame())
        self.assertEqual(len(self.bob.rtp), 6)
        self.alice.media.tracks["camera"].muted = True
        self.room.wait(0.5)
        self.alice.media.tracks["camera"].muted = False
        self.alice.send(lost[0])
        self.assertEqual(len(self.bob.rtp), 6)
        self.alice.send(*self.source.frame(key=True))
        self.assertEqual(len(self.bob.rtp), 9)

    def test_first_frame_is_measured(self) -> None:
        """From the start of a subscription to its first keyframe, once; not of a track that was muted meanwhile."""
        measured: list[float] = []
        self.room.counters.first_frame = measured.append
        self.subscribe()
        self.room.wait(0.3)
        self.alice.send(*self.source.frame(key=True), *self.source.frame(key=True))
        self.assertApproximates(measured.pop(), 0.3, 0.001)
        carol = self.room.client()
        self.subscribe(carol)
        track = self.alice.media.tracks["camera"]
        track.muted = True
        self.room.wait(5)
        track.muted = False
        self.alice.send(*self.source.frame(key=True))
        self.assertEqual((measured, len(carol.rtp)), ([], 3))

    def test_late_subscriber(self) -> None:
        """Who comes later begins with the next keyframe, in numbers and times of their own."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        carol = self.room.client()
        self.subscribe(carol)
        self.alice.send(*self.source.frame(), *self.source.frame(key=True))
        self.assertEqual((len(self.bob.rtp), len(carol.rtp)), (9, 3))
        self.assertNotEqual(self.bob.rtp[-1].sequence_number, carol.rtp[-1].sequence_number)
        self.assertNotEqual(self.bob.rtp[-1].timestamp, carol.rtp[-1].timestamp)

    def test_one_send_for_one_burst(self) -> None:
        """All that one wake-up brought for a subscriber leaves in one call, equal sizes in order."""
        self.subscribe()
        self.alice.send(*self.source.frame(20, key=True), *self.source.frame(10))
        self.assertEqual(self.bob.bursts, [30])

    def test_large_bursts(self) -> None:
        """More than the queue holds goes out in several sends, in order."""
        self.subscribe()
        self.alice.send(*self.source.frame(700, key=True))
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 700)))
        self.assertEqual([packet.payload for packet in self.bob.rtp], [p.payload for p in self.source.history.values()])
        self.assertLessEqual(max(self.bob.bursts), 128)


class NumberTests(DownlinkTestCase):
    def test_reordering_keeps_places(self) -> None:
        """Packets in any order get the numbers of their places, also across both wraps."""
        self.subscribe()
        random = Random(3)
        self.source.sequence = 65_000
        self.alice.send(*self.source.frame(key=True))
        first = self.bob.rtp[0].sequence_number
        for _ in range(300):
            made = self.source.frame(5)
            random.shuffle(made)
            self.alice.send(*made)
        expected = {(number - 65_000 + first) & 0xFFFF: p.payload for number, p in self.source.history.items()}
        self.assertEqual(self.payloads(), expected)

    def test_losses_leave_holes(self) -> None:
        """What was lost on the way up has a number that stays free, and goes out under it when it comes late."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        made = self.source.frame(5)
        self.alice.send(*made[:2], *made[3:])
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        first = numbers[0]
        self.assertEqual(numbers, [first + each for each in (0, 1, 2, 3, 4, 6, 7)])
        self.alice.send(self.source.again(1005))
        self.assertEqual(self.bob.rtp[-1].sequence_number, first + 5)
        self.assertEqual(self.bob.rtp[-1].payload, made[2].payload)

    def test_before_the_beginning(self) -> None:
        """What comes late from before the first keyframe has no place and is dropped."""
        self.subscribe()
        before = self.source.frame()
        self.alice.send(before[2], *self.source.frame(key=True))
        self.alice.send(*before[:2])
        self.assertEqual(len(self.bob.rtp), 3)
        self.assertEqual(self.dropped("too_late"), 2)

    def test_long_holes_begin_anew(self) -> None:
        """After a hole of thousands it goes on at the next number with a keyframe; rounds stay in step for ever."""
        self.subscribe()
        for _ in range(8):
            self.alice.send(*self.source.frame(key=True))
            self.source.sequence += 20_000
            self.alice.send(*self.source.frame())
            self.room.wait(0.6)
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 24)))

    def test_timestamps_keep_their_steps(self) -> None:
        """Timestamps are moved by one random offset and wrap."""
        self.subscribe()
        self.source.timestamp = 0xFFFFFFFF - 5000
        self.alice.send(*(self.source.frame(1, key=True) + self.source.frame(1) + self.source.frame(1)))
        stamps = [packet.timestamp for packet in self.bob.rtp]
        self.assertEqual([(b - a) & 0xFFFFFFFF for a, b in pairwise(stamps)], [3000, 3000])
        self.assertNotEqual(stamps[0], next(iter(self.source.history.values())).timestamp)

    def test_marker(self) -> None:
        """The marker bit goes through, in every payload type."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        self.assertEqual([packet.marker for packet in self.bob.rtp], [False, False, True])

    def test_an_ssrc_used_again(self) -> None:
        """A later subscription under the same SSRC goes on where the first ended: no index protects two packets."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        self.bob.media.unsubscribe("camera")
        self.alice.send(*self.source.frame(key=True))
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 6)))

    def test_one_ssrc_for_two(self) -> None:
        """Two subscriptions of one client cannot share an SSRC, of media or of RTX."""
        self.subscribe()
        track = self.alice.media.tracks["microphone"]
        for ssrc in (5000, 5001):
            self.assertRaises(ValueError, self.bob.media.subscribe, track, downlinked(microphone(), ssrc))


class ExtensionTests(DownlinkTestCase):
    def extensions(self, published: dict[str, int], accepted: dict[str, int], *items: tuple[int, bytes]) -> RtpPacket:
        """What a packet with *items* becomes."""
        codec = Codec(96, "video/VP8", 90000)
        self.alice.publish(Uplinked("camera", "0", "video", (codec,), published))
        self.subscribe(extensions=accepted)
        self.alice.send(RtpPacket(96, 1, 1, 1, KEY, extensions=((4, b"0"), *items)))
        return self.bob.rtp[-1]

    def test_none_negotiated(self) -> None:
        """Nothing negotiated, nothing written, not even an empty block."""
        self.assertEqual(self.extensions(EXTENSIONS, {}, (3, b"\0\1")).extensions, ())
        self.assertEqual(self.bob.rtp[-1].payload, KEY)

    def test_mid_is_the_subscribers(self) -> None:
        """MID is that of the subscriber's m-line."""
        self.assertEqual(self.extensions(EXTENSIONS, {MID: 9}, (3, b"\0\1")).extensions, ((9, b"7"),))

    def test_only_what_both_know(self) -> None:
        """Orientation and descriptor go through under the subscriber's ids; what one side lacks does not."""
        published = {**EXTENSIONS, VIDEO_ORIENTATION: 5, DEPENDENCY_DESCRIPTOR: 12}
        packet = self.extensions(published, {MID: 9, VIDEO_ORIENTATION: 6}, (5, b"\1"), (12, b"\x80\0\1"))
        self.assertEqual(packet.extensions, ((9, b"7"), (6, b"\1")))

    def test_long_descriptor(self) -> None:
        """A descriptor of a keyframe, 20 bytes, takes the two-byte form, and the others with it."""
        long = bytes.fromhex("800001800214eaa860414d1410208427013f00ef")
        published = {**EXTENSIONS, DEPENDENCY_DESCRIPTOR: 12}
        accepted = {MID: 9, DEPENDENCY_DESCRIPTOR: 13, TRANSPORT_CC: 3}
        packet = self.extensions(published, accepted, (12, long))
        self.assertEqual(packet.extensions, ((9, b"7"), (13, long), (3, b"\0\1")))

    def test_audio_level_and_rid(self) -> None:
        """The level goes through, the publisher's rid never."""
        self.alice.publish(Uplinked("microphone", "1", "audio", (OPUS,), {AUDIO_LEVEL: 1, MID: 4, RID: 10}))
        self.bob.media.subscribe(
            self.alice.media.tracks["microphone"],
            downlinked(microphone(), 7000, extensions={AUDIO_LEVEL: 2, MID: 9, RID: 10}),
        )
        self.alice.send(RtpPacket(111, 1, 1, 2, b"opus", extensions=((4, b"1"), (10, b"x"), (1, b"\x85"))))
        self.assertEqual(self.bob.rtp[-1].extensions, ((9, b"7"), (2, b"\x85")))

    def test_transport_numbers_are_ours(self) -> None:
        """One count for all packets to a client, whatever the subscription, RTX included, wrapping."""
        self.subscribe(extensions={TRANSPORT_CC: 3})
        self.bob.media.subscribe(
            self.alice.media.tracks["microphone"], downlinked(microphone(), 7000, extensions={TRANSPORT_CC: 3})
        )
        self.bob.media._outbox.transport_sequence = 0xFFFE
        audio = Source(self.alice, 2, 111, mid="1")
        self.alice.send(*self.source.frame(2, key=True), audio.packet(b"opus"), *self.source.frame(1))
        self.bob.send_rtcp(Nack(9, 5000, (self.bob.of(5000)[0].sequence_number,)))
        numbers = [int.from_bytes(dict(packet.extensions)[3], "big") for packet in self.bob.rtp]
        self.assertEqual(numbers, [0xFFFF, 0, 1, 2, 3])


class CodecTests(DownlinkTestCase):
    def test_no_codec_in_common(self) -> None:
        """A subscriber that lacks the publisher's codec gets nothing, asks for nothing, and it is counted."""
        self.subscribe(codecs=(Codec(98, "video/VP9", 90000),))
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(1)
        self.assertEqual((self.bob.rtp, self.dropped("codec")), ([], 3))
        self.assertEqual(self.alice.take(PictureLoss), [])

    def test_a_codec_for_a_while(self) -> None:
        """A publisher that sends another codec for a long time and comes back is seen again."""
        codecs = (VP8, Codec(98, "video/VP9", 90000, feedback=VIDEO_FEEDBACK))
        self.alice.publish(camera(ssrcs=((1, 11),)), Uplinked("both", "3", "video", codecs, EXTENSIONS))
        self.bob.media.subscribe(
            self.alice.media.tracks["both"], Downlinked("both", "8", "video", (VP8,), 8000, None, "c", {})
        )
        source = Source(self.alice, 3, mid="3")
        self.alice.send(*source.frame(key=True))
        source.payload_type = 98
        for _ in range(20):
            self.alice.send(*source.frame(2000))
        source.payload_type = 96
        self.alice.send(*source.frame(key=True))
        numbers = [packet.sequence_number for packet in self.bob.of(8000)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 6)))


class NackTests(DownlinkTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.subscribe()
        self.alice.send(*self.source.frame(key=True), *self.source.frame(5))
        self.first = self.bob.rtp[0].sequence_number

    def nack(self, *offsets: int) -> list[RtpPacket]:
        """Ask for packets by place, and take what came under the RTX SSRC."""
        before = len(self.bob.of(5001))
        self.bob.send_rtcp(Nack(9, 5000, tuple((self.first + offset) & 0xFFFF for offset in offsets)))
        return self.bob.of(5001)[before:]

    def test_answered_by_rtx(self) -> None:
        """On the RTX SSRC and type, in numbers of its own, with the original number in front (RFC 4588, 4)."""
        again = self.nack(1, 4)
        originals = self.bob.of(5000)
        self.assertEqual([packet.payload_type for packet in again], [121, 121])
        self.assertEqual(again[1].sequence_number, again[0].sequence_number + 1)
        for packet, original in zip(again, (originals[1], originals[4]), strict=True):
            self.assertEqual(packet.payload[:2], original.sequence_number.to_bytes(2, "big"))
            self.assertEqual(packet.payload[2:], original.payload)
            self.assertEqual((packet.timestamp, packet.marker), (original.timestamp, original.marker))
        self.assertEqual(self.room.counters.retransmitted, 2)

    def test_limits(self) -> None:
        """Not again within 100 ms, at most three times."""
        counts = []
        for _ in range(6):
            counts.append((len(self.nack(1)), len(self.nack(1))))
            self.room.wait(0.15)
        self.assertEqual(counts, [(1, 0)] * 3 + [(0, 0)] * 3)
        self.assertEqual(self.dropped("resend_limit"), 9)

    def test_what_is_not_there(self) -> None:
        """Numbers that were never given out, or whose packets have gone, are counted and not answered."""
        self.assertEqual(self.nack(-5, 8, 2000), [])
        self.room.wait(3)
        self.assertEqual(self.nack(1), [])
        self.assertEqual(self.dropped("resend_gone"), 4)

    def test_not_across_a_keyframe(self) -> None:
        """After a keyframe nothing from before it is sent again: the subscriber's decoder has begun anew."""
        self.alice.send(*self.source.frame(), *self.source.frame(key=True), *self.source.frame())
        numbers = [packet.sequence_number for packet in self.bob.of(5000)]
        self.bob.send_rtcp(Nack(9, 5000, tuple(numbers)))
        again = [int.from_bytes(packet.payload[:2], "big") for packet in self.bob.of(5001)]
        self.assertEqual(again, numbers[-6:])
        self.assertEqual(self.dropped("resend_before_keyframe"), len(numbers) - 6)

    def test_never_without_rtx(self) -> None:
        """Without RTX nothing is ever sent again: that would be one number with other bytes."""
        carol = self.room.client()
        self.subscribe(carol, rtx_ssrc=None, codecs=(Codec(120, "video/VP8", 90000),))
        self.alice.send(*self.source.frame(key=True))
        carol.send_rtcp(Nack(9, 5000, (carol.rtp[1].sequence_number,)))
        self.room.wait(0.1)
        self.assertEqual((len(carol.rtp), self.dropped("resend_without_rtx")), (3, 1))

    def test_what_never_came_up(self) -> None:
        """What the publisher's leg lost cannot be sent again, but goes out once it has been recovered."""
        made = self.source.frame(3)
        self.alice.send(made[0], made[2])
        self.assertEqual(self.nack(9), [])
        self.alice.send(self.source.again(made[1].sequence_number))
        self.assertEqual(self.payloads()[(self.first + 9) & 0xFFFF], made[1].payload)
        self.assertEqual(len(self.nack(9)), 1)

    def test_of_another_client(self) -> None:
        """A NACK for an SSRC that this client does not get is nothing."""
        self.bob.send_rtcp(Nack(9, 4999, (self.first,)))
        self.bob.send_rtcp(Nack(9, 5001, (self.first,)))
        self.assertEqual(self.bob.of(5001), [])

    def test_under_aes_cm(self) -> None:
        """The same with AES128_CM_SHA1_80, whose library refuses numbers that repeat."""
        carol = self.room.client(CM)
        self.subscribe(carol)
        self.alice.send(*self.source.frame(key=True))
        carol.send_rtcp(Nack(9, 5000, (carol.rtp[1].sequence_number,)))
        self.assertEqual(carol.of(5001)[0].payload[2:], carol.of(5000)[1].payload)


class WishTests(DownlinkTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(1)
        self.alice.rtcp.clear()

    def test_passed_up(self) -> None:
        """PLI and FIR of a subscriber become one PLI for the publisher's SSRC, or none if too many."""
        for _ in range(10):
            self.bob.send_rtcp(PictureLoss(9, 5000))
            self.bob.send_rtcp(FullIntraRequest(9, ((5000, 1),)))
        self.room.wait(0.05)
        self.assertEqual([each.media_ssrc for each in self.alice.take(PictureLoss)], [1])  # type: ignore[union-attr]
        self.assertEqual(self.room.counters.keyframe_requests_received, 20)

    def test_one_receiver_too_often(self) -> None:
        """Two wishes of one receiver within 200 ms are one."""
        self.bob.send_rtcp(PictureLoss(9, 5000))
        self.room.wait(0.1)
        self.bob.send_rtcp(PictureLoss(9, 5000))
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(2)
        self.assertEqual(len(self.alice.take(PictureLoss)), 1)

    def test_a_bad_line_is_not_everybodys(self) -> None:
        """A receiver that asks all the time gets three keyframes in ten seconds where another has the stream too."""
        for others in (0, 1):
            if others:
                carol = self.room.client()
                self.subscribe(carol)
                self.alice.send(*self.source.frame(key=True))
                self.room.wait(10)
                self.alice.rtcp.clear()
            for _ in range(16):
                self.bob.send_rtcp(PictureLoss(9, 5000))
                self.alice.send(*self.source.frame(key=True))
                self.room.wait(0.6)
            self.assertEqual(len(self.alice.take(PictureLoss)), 3 if others else 16)

    def test_not_after_the_keyframe(self) -> None:
        """A wish that a keyframe has answered meanwhile is not passed up."""
        self.bob.send_rtcp(PictureLoss(9, 5000))
        self.room.wait(0.25)
        self.bob.send_rtcp(PictureLoss(9, 5000))
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(2)
        self.assertEqual(len(self.alice.take(PictureLoss)), 1)


class MuteTests(DownlinkTestCase):
    def test_video(self) -> None:
        """Nothing while muted; after it a keyframe is asked for and numbers go on without a hole."""
        self.subscribe()
        track = self.alice.media.tracks["camera"]
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(1)
        self.alice.rtcp.clear()
        track.muted = True
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(1)
        self.assertEqual((len(self.bob.rtp), self.dropped("muted")), (3, 3))
        self.assertEqual(self.alice.take(PictureLoss), [])
        track.muted = False
        self.alice.send(*self.source.frame())
        self.room.wait(0.05)
        self.assertEqual((len(self.bob.rtp), len(self.alice.take(PictureLoss))), (3, 1))
        self.alice.send(*self.source.frame(key=True))
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 6)))
        self.assertEqual((self.bob.rtp[3].timestamp - self.bob.rtp[0].timestamp) & 0xFFFFFFFF, 9000)

    def test_audio(self) -> None:
        """Audio goes on with its next packet."""
        self.bob.media.subscribe(self.alice.media.tracks["microphone"], downlinked(microphone(), 7000))
        source, track = Source(self.alice, 2, 111, mid="1"), self.alice.media.tracks["microphone"]
        for muted in (False, True, False):
            track.muted = muted
            self.alice.send(source.packet(b"one"), source.packet(b"two"))
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 4)))


class ReportTests(DownlinkTestCase):
    def test_mapped(self) -> None:
        """SSRC, RTP time and counts are the subscription's, the wall clock and the name the publisher's."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True, size=100))
        stamp = self.source.timestamp
        self.alice.send_rtcp(SenderReport(1, 77 * NTP, stamp, 999, 999))
        report, names = self.bob.rtcp
        assert isinstance(report, SenderReport)
        self.assertEqual((report.ssrc, report.ntp_time, report.packet_count), (5000, 77 * NTP, 3))
        self.assertEqual(report.rtp_time, self.bob.rtp[0].timestamp)
        self.assertEqual(report.octet_count, sum(len(packet.payload) for packet in self.bob.rtp))
        self.assertEqual(names, SourceDescription(((5000, "publisher"),)))

    def test_told_at_the_beginning(self) -> None:
        """Who begins between two reports of the publisher is told the clock at once, as it is by then."""
        self.alice.send(*self.source.frame(key=True))
        self.alice.send_rtcp(SenderReport(1, 77 * NTP, 1_000_000, 0, 0))
        self.room.wait(0.5)
        self.subscribe()
        self.source.timestamp = 1_045_000 - 3000
        self.alice.send(*self.source.frame(key=True))
        report = next(each for each in self.bob.rtcp if isinstance(each, SenderReport))
        self.assertApproximates(report.ntp_time / NTP, 77.5, 0.001)
        self.assertApproximates((report.rtp_time - self.bob.rtp[0].timestamp + 50) & 0xFFFFFFFF, 50, 50)

    def test_audio_and_video_stay_aligned(self) -> None:
        """What had one wall-clock time at the publisher has one at the subscriber, by its reports."""
        self.subscribe()
        self.bob.media.subscribe(self.alice.media.tracks["microphone"], downlinked(microphone(), 7000))
        audio = Source(self.alice, 2, 111, mid="1", timestamp=4_000_000_000)
        # At wall clock 100 s video is at 500,000 and audio at 4,000,000,000.
        self.alice.send_rtcp(SenderReport(1, 100 * NTP, 500_000, 0, 0))
        self.alice.send(*self.source.frame(key=True))
        self.alice.send(audio.packet(b"opus"))
        self.alice.send_rtcp(SenderReport(1, 103 * NTP, 500_000 + 3 * 90_000, 0, 0))
        self.alice.send_rtcp(SenderReport(2, 104 * NTP, (4_000_000_000 + 4 * 48_000) & 0xFFFFFFFF, 0, 0))
        self.source.timestamp, audio.timestamp = 500_000 + 5 * 90_000 - 3000, 4_000_000_000 + 5 * 48_000
        self.alice.send(*self.source.frame(1))
        self.alice.send(audio.packet(b"opus"))
        reports = {each.ssrc: each for each in self.bob.rtcp if isinstance(each, SenderReport)}

        def wall(ssrc: int, rate: int) -> float:
            report = reports[ssrc]
            distance = (self.bob.of(ssrc)[-1].timestamp - report.rtp_time + (1 << 31)) % (1 << 32) - (1 << 31)
            return report.ntp_time / NTP + distance / rate

        self.assertApproximates(wall(5000, 90_000), 105, 0.001)
        self.assertApproximates(wall(7000, 48_000), 105, 0.001)

    def test_round_trip(self) -> None:
        """The round trip is measured from the subscriber's blocks about our reports."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        self.alice.send_rtcp(SenderReport(1, 0x1111222233334444, 0, 0, 0))
        self.assertIsNone(self.bob.media.stats().round_trip)
        self.room.wait(0.3)
        block = ReportBlock(5000, packets_lost=2, last_report=0x22223333, delay=65536 // 4)
        self.bob.send_rtcp(ReceiverReport(9, (block,)))
        stats = self.bob.media.stats()
        self.assertApproximates(stats.round_trip, 0.05, 0.001)
        self.assertEqual((stats.packets_sent, stats.packets_lost), (3, 2))
        self.assertEqual(self.alice.media.stats().packets_received, 3)


class LayerTests(DownlinkTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice.publish(Uplinked("camera", "0", "video", (VP8,), EXTENSIONS, rids=("l", "m", "h")))
        self.layers = [
            Source(self.alice, 20 + number, rid=rid, sequence=1000 * number, timestamp=1_000_000 * number)
            for number, rid in enumerate(("l", "m", "h"))
        ]
        self.subscribe()

    def play(self, seconds: float, *layers: Source, rate: int = 20) -> None:
        """Send frames; a layer answers each PLI with a keyframe."""
        for _ in range(round(seconds * rate)):
            wanted = {each.media_ssrc for each in self.alice.take(PictureLoss)}  # type: ignore[union-attr]
            for layer in layers:
                self.alice.send(*layer.frame(2, key=layer.ssrc in wanted, ticks=90_000 // rate))
            self.room.wait(1 / rate)

    def seen(self) -> int:
        """Which layer the last packet is of."""
        payload = self.bob.rtp[-1].payload
        return next(n for n, layer in enumerate(self.layers) if payload in {p.payload for p in layer.history.values()})

    def assert_continuous(self) -> None:
        """Numbers without hole or repetition, times that never go back or leap."""
        numbers = [packet.sequence_number for packet in self.bob.of(5000)]
        self.assertEqual([(b - a) & 0xFFFF for a, b in pairwise(numbers)], [1] * (len(numbers) - 1))
        stamps = [packet.timestamp for packet in self.bob.of(5000)]
        steps = [(b - a) & 0xFFFFFFFF for a, b in pairwise(stamps)]
        self.assertLess(max(steps), 90_000)

    def test_best_by_default(self) -> None:
        """It begins with what comes and climbs to the best layer, at keyframes."""
        self.play(1, self.layers[0])
        self.assertEqual(self.seen(), 0)
        self.play(2, *self.layers)
        self.assertEqual(self.seen(), 2)
        self.assert_continuous()

    def test_asked_layers(self) -> None:
        """Each asked layer is switched to at its keyframe, and numbers and times go on."""
        self.play(2, *self.layers)
        for layer, expected in (("low", 0), ("high", 2), ("mid", 1), ("auto", 2), ("low", 0)):
            self.bob.media.set_layer("camera", layer, 1)
            self.play(1.2, *self.layers)
            self.assertEqual(self.seen(), expected)
        self.assert_continuous()
        listening = [len(stream.listeners) for stream in self.alice.media.tracks["camera"].ranked()]
        self.assertEqual(listening, [1, 0, 0])
        self.assertLess(len([each for each in self.bob.rtp if each.payload[:2] == KEY]), 12)

    def test_not_before_the_keyframe(self) -> None:
        """Until the wanted layer brings a keyframe the old one goes on."""
        self.play(2, *self.layers)
        self.bob.media.set_layer("camera", "low")
        for _ in range(5):
            for layer in self.layers:
                self.alice.send(*layer.frame(2))
        self.assertEqual(self.seen(), 2)
        self.alice.send(*self.layers[0].frame(2, key=True))
        self.assertEqual(self.seen(), 0)
        self.alice.send(*self.layers[2].frame(2))
        self.assertEqual(self.seen(), 0)
        self.assert_continuous()

    def test_an_old_keyframe(self) -> None:
        """When a layer was away and all of it comes at once, its old keyframes are no place to switch at:
        time would go back. The next keyframe is."""
        self.play(2, *self.layers)
        self.bob.media.set_layer("camera", "low")
        low = self.layers[0]
        lost = [packet for number in range(20) for packet in low.frame(2, key=number == 0, ticks=4500)]
        self.alice.send(*low.frame(2))
        self.alice.send(*lost)
        self.assertEqual(self.seen(), 2)
        self.alice.send(*low.frame(2, key=True))
        self.assertEqual(self.seen(), 0)
        self.assert_continuous()

    def test_a_layer_that_stops(self) -> None:
        """When the forwarded layer stops the next best takes over, and back when it returns."""
        self.play(2, *self.layers)
        self.play(2, *self.layers[:2])
        self.assertEqual(self.seen(), 1)
        self.play(2, *self.layers)
        self.assertEqual(self.seen(), 2)
        self.assert_continuous()

    def test_times_by_the_clocks(self) -> None:
        """With both layers' reports a switch keeps the wall clock exactly."""
        for number, layer in enumerate(self.layers):
            layer.timestamp = 7_000_000 * number - 3000
            self.alice.send(*layer.frame(1, key=True))
            self.alice.send_rtcp(SenderReport(layer.ssrc, 100 * NTP, 7_000_000 * number, 0, 0))
        self.room.wait(0.1)
        self.bob.media.set_layer("camera", "low")
        for number, layer in enumerate(self.layers):
            layer.timestamp = 7_000_000 * number + 90_000 - 3000
            self.alice.send(*layer.frame(1, key=True))
        low = self.bob.rtp[-1].timestamp
        self.bob.media.set_layer("camera", "high")
        self.room.wait(0.5)
        high = self.layers[2]
        high.timestamp = 14_000_000 + 2 * 90_000 - 3000
        self.alice.send(*high.frame(1, key=True))
        self.assertEqual(self.seen(), 2)
        self.assertEqual((self.bob.rtp[-1].timestamp - low) & 0xFFFFFFFF, 90_000)

    def test_nack_across_a_switch(self) -> None:
        """A packet of the old layer is still sent again after the switch."""
        self.play(2, *self.layers)
        self.bob.media.set_layer("camera", "low")
        old = self.bob.rtp[-1]
        self.play(0.6, *self.layers)
        self.assertEqual(self.seen(), 0)
        self.bob.send_rtcp(Nack(9, 5000, (old.sequence_number,)))
        self.assertEqual(self.bob.of(5001)[-1].payload[2:], old.payload)

    def test_allowed_layers(self) -> None:
        """The lower of what the client asks for and what the allocator leaves."""
        self.play(2, *self.layers)
        downlink = self.bob.media._downlinks["camera"]
        spatial = [quality.spatial for quality in downlink.qualities(self.room.now)]
        self.assertEqual(sorted(spatial), [0, 1, 2])
        for layer, allowed, expected in (("auto", 1, 1), ("low", 1, 0), ("high", 0, 0), ("mid", 2, 1), ("high", 2, 2)):
            self.bob.media.set_layer("camera", layer)
            downlink.allow(Quality(allowed, 0, 0.0), self.room.now)
            self.play(1.2, *self.layers)
            self.assertEqual(self.seen(), expected)
        self.assert_continuous()
        self.bob.media.set_layer("camera", "mid")
        self.assertEqual({quality.spatial for quality in downlink.qualities(self.room.now)}, {0, 1})

    def test_unknown_layer(self) -> None:
        """A layer that there is no name for is refused; a track that is not subscribed is no error."""
        self.assertRaises(BadRequest, self.bob.media.set_layer, "camera", "best", 0)
        self.bob.media.set_layer("nothing", "low", 0)


class AllowanceTests(DownlinkTestCase):
    """What the allocator says."""

    def downlink(self) -> Downlink:
        return self.bob.media._downlinks["camera"]

    def test_paused(self) -> None:
        """Nothing is forwarded in a pause; after it a keyframe is asked for and numbers go on without a hole."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        self.downlink().allow(None, self.room.now)
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(1)
        self.alice.rtcp.clear()
        self.assertEqual((len(self.bob.rtp), self.alice.media.tracks["camera"].streams[""].listeners), (3, ()))
        self.downlink().allow(Quality(0, 0, 1e6), self.room.now)
        self.room.wait(0.05)
        self.assertEqual(len(self.alice.take(PictureLoss)), 1)
        self.alice.send(*self.source.frame(), *self.source.frame(key=True))
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 6)))

    def test_paused_before_the_beginning(self) -> None:
        """A subscription that is paused before its first packet stays silent."""
        self.subscribe()
        self.downlink().allow(None, self.room.now)
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(0.5)
        self.assertEqual(self.bob.rtp, [])

    def test_qualities_of_a_plain_track(self) -> None:
        """One quality with what it takes on the wire, measured over about a second, and none before anything came."""
        self.subscribe()
        self.assertEqual(self.downlink().qualities(self.room.now), ())
        for _ in range(60):
            self.alice.send(*self.source.frame(key=True, size=1000))
            self.room.wait(0.05)
        (quality,) = self.downlink().qualities(self.room.now)
        self.assertEqual((quality.spatial, quality.temporal), (0, 0))
        self.assertApproximates(quality.bitrate, 20 * 3 * 1050 * 8, 15_000)
        self.room.wait(3)
        (quality,) = self.downlink().qualities(self.room.now)
        self.assertLess(quality.bitrate, 100_000)


class EndTests(DownlinkTestCase):
    def test_unsubscribe(self) -> None:
        """Nothing goes out any more, the others are not touched, and nothing is left."""
        carol = self.room.client()
        self.subscribe()
        self.subscribe(carol)
        self.alice.send(*self.source.frame(key=True))
        self.bob.media.unsubscribe("camera")
        self.bob.media.unsubscribe("camera")
        self.alice.send(*self.source.frame())
        self.assertEqual((len(self.bob.rtp), len(carol.rtp)), (3, 6))
        self.assertEqual((self.bob.media._downlinks, self.bob.media._by_ssrc), ({}, {}))
        self.assertEqual(self.alice.media.tracks["camera"].subscribers, 1)
        self.assertEqual(self.bob.media.stats().packets_sent, 3)

    def test_the_subscriber_goes(self) -> None:
        """A closed subscriber takes nothing, and the publisher forgets it."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        self.bob.media.close()
        self.alice.send(*self.source.frame())
        self.bob.media.receive([b"\x80" * 40], self.room.now)
        self.bob.media.tick(self.room.now)
        self.bob.media.secure(self.bob.keys)
        self.assertEqual((len(self.bob.rtp), self.alice.media.tracks["camera"].subscribers), (3, 0))
        self.assertEqual(self.bob.media._outbox.queue, [])

    def test_values_of_the_line_change(self) -> None:
        """Subscribing again for the same track replaces types and extensions, and numbers go on."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        self.subscribe(codecs=(Codec(100, "video/VP8", 90000),), mid="5")
        self.alice.send(*self.source.frame())
        self.assertEqual([packet.payload_type for packet in self.bob.rtp], [120] * 3 + [100] * 3)
        self.assertEqual(self.bob.rtp[-1].extensions, ((9, b"5"),))
        self.assertEqual(self.bob.rtp[3].sequence_number, self.bob.rtp[2].sequence_number + 1)
