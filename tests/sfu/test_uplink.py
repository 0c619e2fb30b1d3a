"""What a client publishes: streams told apart, put in order, reported on."""

from __future__ import annotations

from random import Random

import pylibsrtp
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.values import AUDIO_LEVEL, DEPENDENCY_DESCRIPTOR, MID, REPAIRED_RID, RID, TRANSPORT_CC, Codec, Uplinked
from orama.wire.rtcp import (
    FullIntraRequest,
    Nack,
    PictureLoss,
    ReceiverEstimate,
    ReceiverReport,
    SenderReport,
)
from orama.wire.rtp import RtpPacket
from orama.wire.transport_cc import TransportFeedback
from tests.sfu.clients import (
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

SIMULCAST = {**EXTENSIONS, REPAIRED_RID: 11}


class UplinkTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()

    def subscribe(self, track_id: str = "camera", ssrc: int = 5000) -> None:
        track = self.alice.media.tracks[track_id]
        made = camera(track_id) if track.kind == "video" else microphone(track_id)
        self.bob.media.subscribe(track, downlinked(made, ssrc))

    def dropped(self, reason: str) -> int:
        return self.room.counters.dropped[reason]


class DemultiplexTests(UplinkTestCase):
    def test_by_mid(self) -> None:
        """A new SSRC belongs to the m-line that its MID names, and keeps to it without one (RFC 9143, 9.2)."""
        self.alice.publish(camera("one", "0"), camera("two", "1"))
        first, second = Source(self.alice, 1, mid="0"), Source(self.alice, 2, mid="1")
        self.alice.send(*first.frame(key=True), *second.frame(key=True))
        first.mid = second.mid = ""
        self.alice.send(*second.frame(), *first.frame())
        self.assertEqual(self.alice.media.tracks["one"].streams[""].ssrc, 1)
        self.assertEqual(self.alice.media.tracks["two"].streams[""].ssrc, 2)
        self.assertEqual(self.room.counters.dropped, {})

    def test_by_signalled_ssrc(self) -> None:
        """An SSRC that the SDP named needs no extension; neither does its RTX."""
        self.alice.publish(camera("one", "0", ssrcs=((1, 11),)), camera("two", "1", ssrcs=((2, None),)))
        source = Source(self.alice, 1, mid="", rtx=(11, 97))
        self.alice.send(*source.frame(key=True))
        self.assertEqual(self.alice.media.tracks["one"].streams[""].highest & 0xFFFF, 1002)
        source.frame(1)
        self.alice.send(source.again(1003))
        self.assertEqual(self.alice.media.tracks["one"].streams[""].highest & 0xFFFF, 1003)
        self.assertEqual(self.room.counters.recovered, 1)

    def test_by_payload_type(self) -> None:
        """Without a MID the payload type says whose it is, when only one m-line has it."""
        self.alice.publish(camera(), microphone())
        self.alice.send(RtpPacket(111, 1, 1, 77, b"opus"))
        self.assertEqual(self.alice.media.tracks["microphone"].streams[""].ssrc, 77)
        self.alice.publish(camera("one", "0"), camera("two", "1"))
        self.alice.send(RtpPacket(96, 1, 1, 78, KEY))
        self.assertEqual(self.dropped("unknown_source"), 1)

    def test_unknown(self) -> None:
        """A MID, a rid or a payload type that nobody negotiated is dropped and counted."""
        self.alice.publish(Uplinked("camera", "0", "video", (VP8,), SIMULCAST, rids=("l", "h")))
        for packet in (
            RtpPacket(96, 1, 1, 1, KEY, extensions=((4, b"9"),)),
            RtpPacket(96, 1, 1, 2, KEY, extensions=((4, b"0"), (10, b"x"))),
            RtpPacket(96, 1, 1, 3, KEY, extensions=((4, b"0"),)),
            RtpPacket(50, 1, 1, 4, KEY, extensions=((4, b"0"), (10, b"l"))),
            RtpPacket(97, 1, 1, 5, b"\0\1" + KEY, extensions=((4, b"0"), (11, b"l"))),
        ):
            self.alice.send(packet)
        self.assertEqual(self.dropped("unknown_source"), 5)
        self.assertEqual(self.alice.media.tracks["camera"].streams, {})

    def test_simulcast(self) -> None:
        """Each rid is a stream of its own, and the repaired rid names the stream that RTX repairs (RFC 8852, 3)."""
        self.alice.publish(Uplinked("camera", "0", "video", (VP8,), SIMULCAST, rids=("f", "h", "q")))
        track = self.alice.media.tracks["camera"]
        self.assertEqual((track.rids, track.layers), (("q", "h", "f"), ("low", "mid", "high")))
        for number, rid in enumerate(("q", "h", "f")):
            self.alice.send(*Source(self.alice, 10 + number, rid=rid).frame(key=True))
        self.assertEqual([stream.ssrc for stream in track.ranked()], [10, 11, 12])
        lost = (1003).to_bytes(2, "big") + KEY
        self.alice.send(RtpPacket(97, 1, 1, 21, lost, extensions=((4, b"0"), (11, b"h"))))
        self.assertEqual([stream.highest & 0xFFFF for stream in track.ranked()], [1002, 1003, 1002])

    def test_layers_by_ssrc_alone(self) -> None:
        """Several SSRCs without rids are layers, lowest first."""
        self.alice.publish(camera(ssrcs=((1, 11), (2, 12), (3, 13))))
        track = self.alice.media.tracks["camera"]
        self.assertEqual(track.layers, ("low", "mid", "high"))
        self.assertEqual([stream.ssrc for stream in track.ranked()], [1, 2, 3])

    def test_a_new_ssrc_takes_over(self) -> None:
        """A sender that starts again under another SSRC goes on for its subscribers, with a keyframe."""
        self.alice.publish(camera())
        self.subscribe()
        self.alice.send(*Source(self.alice, 1).frame(key=True))
        self.room.wait(1)
        self.alice.take(PictureLoss)
        after = Source(self.alice, 2, sequence=30_000, timestamp=1)
        self.alice.send(*after.frame())
        self.assertEqual(len(self.bob.rtp), 3)
        self.assertEqual([each.media_ssrc for each in self.alice.take(PictureLoss)], [2])  # type: ignore[union-attr]
        self.alice.send(*after.frame(key=True))
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 6)))
        steps = (self.bob.rtp[3].timestamp - self.bob.rtp[2].timestamp) & 0xFFFFFFFF
        self.assertTrue(80_000 < steps < 100_000, steps)

    def test_sources_are_bounded(self) -> None:
        """A client that changes its SSRC for ever holds one stream per layer."""
        self.alice.publish(camera())
        for ssrc in range(100):
            self.alice.send(*Source(self.alice, ssrc).frame(key=True))
        uplink = self.alice.media._uplink
        self.assertEqual(len(uplink._streams), 1)
        self.assertLessEqual(len(uplink._repairs), 1)


class OrderTests(UplinkTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice.publish(camera(ssrcs=((1, 11),)))
        self.subscribe()
        self.source = Source(self.alice, 1, rtx=(11, 97))
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(0.5)
        self.alice.rtcp.clear()

    def test_duplicates_by_rtx(self) -> None:
        """What came already is not forwarded when it comes again by RTX; padding probes are dropped."""
        before = len(self.bob.rtp)
        self.alice.send(self.source.again(1001), self.source.again(1002))
        self.alice.send(RtpPacket(97, 500, 0, 11, b"", padding=200), RtpPacket(97, 501, 0, 11, b"x"))
        self.assertEqual(len(self.bob.rtp), before)
        self.assertEqual((self.dropped("duplicate"), self.dropped("padding")), (2, 2))

    def test_stray_repairs(self) -> None:
        """RTX of a number far ahead does not drag the stream there, nor does RTX begin a stream."""
        self.alice.send(RtpPacket(97, 600, 0, 11, (20_000).to_bytes(2, "big") + KEY))
        self.alice.send(*self.source.frame())
        self.assertEqual(len(self.bob.rtp), 6)
        self.alice.publish(camera("other", "5", ssrcs=((3, 13),)))
        self.alice.send(RtpPacket(97, 600, 0, 13, (20_000).to_bytes(2, "big") + KEY))
        self.assertIsNone(self.alice.media.tracks["other"].streams[""].reception)
        self.assertEqual(self.dropped("stray_repair"), 2)

    def test_a_copy_after_seconds(self) -> None:
        """A copy that comes when the store has let the first go is no new packet: its number went out already."""
        self.room.wait(5)
        self.alice.send(self.source.again(1001))
        self.assertEqual(self.dropped("duplicate"), 1)

    def test_padding_keeps_its_place(self) -> None:
        """A packet of padding alone on the media SSRC goes on empty, so that the numbers have no hole."""
        padding = self.source.packet(b"")
        self.alice.send(RtpPacket(96, padding.sequence_number, padding.timestamp, 1, b"", padding=100))
        self.alice.send(*self.source.frame(1))
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 5)))
        self.assertEqual(self.bob.rtp[3].payload, b"")

    def test_nack_until_it_comes(self) -> None:
        """A gap is asked for after 20 ms, again later, at most five times; what came is not asked again."""
        lost = self.source.frame(4)
        self.alice.send(lost[0], lost[3])
        self.assertEqual(self.alice.take(Nack), [])
        self.room.wait(0.05)
        (nack,) = self.alice.take(Nack)
        assert isinstance(nack, Nack)
        self.assertEqual((nack.media_ssrc, nack.sequence_numbers), (1, (1004, 1005)))
        self.alice.send(self.source.again(1004))
        asked = []
        for _ in range(100):
            self.room.wait(0.05)
            asked += [each.sequence_numbers for each in self.alice.take(Nack)]  # type: ignore[union-attr]
        self.assertEqual(asked, [(1005,)] * 4)

    def test_no_nack_across_a_keyframe(self) -> None:
        """What was lost before a keyframe is not asked for after it."""
        lost = self.source.frame(4)
        self.alice.send(lost[0], lost[3])
        self.alice.send(*self.source.frame(key=True))
        self.room.wait(1)
        self.assertEqual(self.alice.take(Nack), [])

    def test_no_nack_when_nobody_listens(self) -> None:
        """What nobody gets is not asked for."""
        self.bob.media.unsubscribe("camera")
        lost = self.source.frame(4)
        self.alice.send(lost[0], lost[3])
        self.room.wait(1)
        self.assertEqual(self.alice.take(Nack), [])

    def test_no_nack_without_negotiation(self) -> None:
        """A codec without nack feedback is never asked."""
        self.alice.publish(microphone())
        self.subscribe("microphone", 7000)
        source = Source(self.alice, 2, 111, mid="1")
        self.alice.send(source.packet(b"opus"))
        source.packet(b"lost")
        self.alice.send(source.packet(b"opus"))
        self.room.wait(1)
        self.assertEqual(self.alice.take(Nack), [])

    def test_an_outage_asks_for_a_keyframe(self) -> None:
        """After a hole of hundreds a keyframe is asked for, and no NACK sent."""
        self.source.frame(600)
        self.alice.send(*self.source.frame(1))
        self.room.wait(0.1)
        kinds = {type(each) for each in self.alice.rtcp}
        self.assertIn(PictureLoss, kinds)
        self.assertNotIn(Nack, kinds)


class FeedbackTests(UplinkTestCase):
    def test_receiver_reports(self) -> None:
        """Once a second: loss, highest number as the sender counts it, and its clock (RFC 3550, 6.4)."""
        self.alice.publish(camera(), microphone())
        video, audio = Source(self.alice, 1, sequence=65_530), Source(self.alice, 2, 111, mid="1")
        self.alice.send_rtcp(SenderReport(1, 0x1111222233334444, 0, 0, 0))
        for number in range(20):
            frame = video.frame(2, key=number == 0)
            self.alice.send(frame[0], *([] if number == 5 else [frame[1]]), audio.packet(b"opus"))
        self.alice.send_rtcp(SenderReport(1, 0x1111222233334444, 0, 0, 0))
        self.room.wait(0.5)
        reports = self.alice.take(ReceiverReport)
        assert isinstance(reports[0], ReceiverReport)
        blocks = {block.ssrc: block for block in reports[0].blocks}
        self.assertEqual(set(blocks), {1, 2})
        self.assertEqual((blocks[1].packets_lost, blocks[1].fraction_lost), (1, 256 // 40))
        self.assertEqual(blocks[1].highest_sequence, 65_530 + 39)
        self.assertEqual(blocks[1].last_report, 0x22223333)
        self.assertApproximates(blocks[1].delay / 65536, 0.05, 0.001)
        self.assertEqual((blocks[2].last_report, blocks[2].delay), (0, 0))
        self.room.wait(3)
        self.assertIn(len(self.alice.take(ReceiverReport)), (3, 4))

    def test_transport_feedback(self) -> None:
        """Every packet with a transport-wide number is reported within 100 ms, RTX and padding too."""
        self.alice.publish(camera(ssrcs=((1, 11),)))
        said: set[int] = set()
        last = self.room.now
        for number in range(60):
            items = ((3, number.to_bytes(2, "big")),)
            payload = KEY + bytes(100)
            kind = number % 3
            self.alice.send(
                RtpPacket(96, number, 0, 1, payload, extensions=items)
                if kind < 2
                else RtpPacket(97, number, 0, 11, b"", extensions=items, padding=50)
            )
            self.room.wait(0.05)
            for message in self.alice.take(TransportFeedback):
                assert isinstance(message, TransportFeedback)
                self.assertLess(self.room.now - last, 0.11)
                last = self.room.now
                said.update(message.base_sequence + at for at, each in enumerate(message.deltas) if each is not None)
        self.assertEqual(said, set(range(60)))

    def test_estimates_where_transport_feedback_is_not_known(self) -> None:
        """A client that knows REMB alone gets one a second, for its own SSRCs."""
        codec = Codec(96, "video/VP8", 90000, feedback=frozenset({"nack", "goog-remb"}))
        # That it numbers its packets all the same changes nothing.
        self.alice.publish(Uplinked("camera", "0", "video", (codec,), EXTENSIONS))
        source = Source(self.alice, 1)
        bitrates = []
        for number in range(60):
            self.alice.send(*source.frame(key=number == 0))
            self.room.wait(0.1)
            for each in self.alice.take(ReceiverEstimate):
                assert isinstance(each, ReceiverEstimate)
                self.assertEqual(each.ssrcs, (1,))
                bitrates.append(each.bitrate)
        self.assertTrue(5 <= len(bitrates) <= 7, bitrates)
        self.assertEqual(bitrates, sorted(bitrates))

    def test_no_estimate_beside_transport_feedback(self) -> None:
        """One control loop is enough."""
        codec = Codec(96, "video/VP8", 90000, feedback=frozenset({"goog-remb", "transport-cc"}))
        self.alice.publish(Uplinked("camera", "0", "video", (codec,), EXTENSIONS))
        self.alice.send(*Source(self.alice, 1).frame(key=True))
        self.room.wait(3)
        self.assertEqual(self.alice.take(ReceiverEstimate), [])

    def test_keyframe_requests_are_joined(self) -> None:
        """However many ask, a source gets one request in 500 ms; the last wish is not lost."""
        self.alice.publish(camera())
        self.alice.send(*Source(self.alice, 1).frame(key=True))
        for number in range(5):
            client = self.room.client()
            client.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera(), 6000 + number * 2))
        self.room.wait(2.2)
        self.assertIn(len(self.alice.take(PictureLoss)), (4, 5))

    def test_fir_where_pli_is_not_known(self) -> None:
        """A publisher that negotiated ccm fir alone gets FIR, each with a new number (RFC 5104, 4.3.1)."""
        codec = Codec(96, "video/VP8", 90000, feedback=frozenset({"ccm fir"}))
        self.alice.publish(Uplinked("camera", "0", "video", (codec,), EXTENSIONS))
        self.alice.send(*Source(self.alice, 1).frame())
        self.subscribe()
        self.room.wait(1.2)
        asked = [each.requests for each in self.alice.take(FullIntraRequest)]  # type: ignore[union-attr]
        self.assertEqual(asked[:2], [((1, 1),), ((1, 2),)])


class TrackTests(UplinkTestCase):
    def test_publish_is_the_whole_set(self) -> None:
        """What is missing from the next set ends; what stays stays the same track."""
        self.alice.publish(camera(), microphone())
        track = self.alice.media.tracks["camera"]
        self.subscribe("microphone")
        self.alice.publish(camera())
        self.assertEqual(set(self.alice.media.tracks), {"camera"})
        self.assertIs(self.alice.media.tracks["camera"], track)
        self.assertEqual(self.bob.media._downlinks, {})

    def test_renegotiated_codecs(self) -> None:
        """Payload types that change with an offer are followed, for subscribers too."""
        self.alice.publish(camera())
        self.subscribe()
        source = Source(self.alice, 1)
        self.alice.send(*source.frame(key=True))
        moved = Codec(100, "video/VP8", 90000, rtx_payload_type=101, feedback=VIDEO_FEEDBACK)
        self.alice.publish(Uplinked("camera", "0", "video", (moved,), EXTENSIONS))
        source.payload_type = 100
        self.alice.send(*source.frame())
        self.assertEqual([packet.payload_type for packet in self.bob.rtp], [120] * 6)

    def test_audio_level(self) -> None:
        """The level of a track follows the extension, and a muted or stopped track is silent (RFC 6464)."""
        self.alice.publish(microphone())
        track = self.alice.media.tracks["microphone"]
        source = Source(self.alice, 2, 111, mid="1")
        for _ in range(20):
            self.alice.send(source.packet(b"opus", extensions=((1, b"\x8a"),)))
        self.assertApproximates(track.audio_level, 117, 2)
        track.muted = True
        self.assertEqual(track.audio_level, 0)
        track.muted = False
        self.assertEqual(track.audio_level, 0)

    def test_close(self) -> None:
        """A client that goes leaves no stream, no subscription and no packet behind."""
        self.alice.publish(camera(ssrcs=((1, 11),)), microphone())
        self.subscribe()
        self.alice.send(*Source(self.alice, 1).frame(key=True))
        track = self.alice.media.tracks["camera"]
        stream = track.streams[""]
        self.alice.media.close()
        self.alice.media.close()
        self.assertEqual((self.alice.media.tracks, track.streams, stream.listeners), ({}, {}, ()))
        self.assertEqual((len(stream.store), track.subscribers, self.bob.media._downlinks), (0, 0, {}))
        self.assertEqual((self.alice.media._uplink._streams, self.alice.media._uplink._repairs), ({}, {}))
        self.bob.media.subscribe(track, downlinked(camera()))
        self.assertEqual(self.bob.media._downlinks, {})


class HostileTests(UplinkTestCase):
    def test_authentic_nonsense(self) -> None:
        """Whatever an authenticated client packs into a packet, nothing raises and its subscribers get RTP."""
        random = Random(5)
        extensions = {MID: 4, RID: 10, REPAIRED_RID: 11, AUDIO_LEVEL: 1, TRANSPORT_CC: 3, DEPENDENCY_DESCRIPTOR: 12}
        everything = {**extensions, "urn:3gpp:video-orientation": 13}
        h264 = Codec(102, "video/H264", 90000, rtx_payload_type=103, feedback=VIDEO_FEEDBACK)
        codecs = (VP8, h264, Codec(45, "video/AV1", 90000), Codec(98, "video/VP9", 90000))
        self.alice.publish(
            Uplinked("camera", "0", "video", codecs, everything, ((1, 11),)),
            Uplinked("microphone", "1", "audio", (OPUS,), everything),
        )
        for number, track in enumerate(self.alice.media.tracks.values()):
            made = camera() if track.kind == "video" else microphone()
            self.bob.media.subscribe(
                track, downlinked(made, 5000 + 10 * number, codecs=track.codecs, extensions=everything, mid="m" * 200)
            )
        for round_ in range(20_000):
            items = tuple(
                (random.choice((1, 3, 4, 10, 11, 12, 13)), random.randbytes(random.choice((0, 1, 2, 3, 20, 255))))
                for _ in range(random.randrange(4))
            )
            packet = RtpPacket(
                random.choice((96, 97, 102, 103, 45, 98, 111)),
                (round_ // 5 + random.choice((0, 0, 1, 30, -30))) & 0xFFFF,
                random.getrandbits(32),
                random.choice((1, 1, 11, 2, 3)),
                random.randbytes(random.randrange(12)),
                extensions=items,
                csrcs=(1,) * random.randrange(3),
                padding=random.choice((0, 0, 1, 40)),
            )
            try:
                protected = self.alice.protect(packet)
            except pylibsrtp.Error:  # a number that it had already
                continue
            self.alice.send_raw([protected])
            if round_ % 100 == 0:
                self.room.wait(0.05)
        self.assertGreater(len(self.bob.rtp), 1000)
        self.assertEqual(len({(each.ssrc, each.sequence_number) for each in self.bob.rtp}), len(self.bob.rtp))

    def test_authentic_rtcp_nonsense(self) -> None:
        """The same for RTCP: malformed is counted, well-formed about nothing is ignored."""
        random = Random(6)
        for _ in range(3000):
            body = random.choice((b"\0\0\0\1", b"\0\0\0\2")) + random.randbytes(4 * random.randrange(1, 12))
            kind = random.choice((200, 201, 202, 203, 204, 205, 206, 207))
            head = bytes((0x80 | random.randrange(32), kind)) + (len(body) // 4).to_bytes(2, "big")
            self.alice.send_raw([self.alice._out.protect_rtcp(head + body)])
        self.assertGreater(self.dropped("malformed_rtcp"), 100)

    def test_before_keys(self) -> None:
        """Nothing is read, sent or kept before DTLS is up."""
        early: Client = self.room.client(secure=False)
        early.publish(camera())
        early.send(*Source(early, 1).frame(key=True))
        self.bob.media.subscribe(early.media.tracks["camera"], downlinked(camera(), 8000))
        self.room.wait(1)
        self.assertEqual((self.dropped("no_keys"), early.rtcp, early.media.tracks["camera"].streams), (3, [], {}))
