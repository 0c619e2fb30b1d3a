"""Redundant audio: negotiated, passed through, stripped, and used to mend losses."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.codecs import payload_types
from orama.sfu.lines import Wanted
from orama.sfu.track import Track
from orama.sfu.values import MID, Codec, Uplinked
from orama.wire import sdp
from orama.wire.red import Block, parse, serialize
from orama.wire.rtcp import ReceiverReport, ReportBlock
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import EXTENSIONS, Client, Room, Source, downlinked
from tests.sfu.negotiators import negotiator, recorded

OPUS = Codec(111, "audio/opus", 48000, 2, "minptime=10;useinbandfec=1")
RED = Codec(63, "audio/red", 48000, 2, "111/111")
MICROPHONE = Uplinked("microphone", "1", "audio", (RED, OPUS), EXTENSIONS, ssrcs=((2, None),))
TAKING = (evolve(RED, payload_type=62, fmtp="111/111"), OPUS)
RENUMBERED = (evolve(RED, fmtp="109/109"), evolve(OPUS, payload_type=109))
STRIPPED = (evolve(OPUS, payload_type=109),)


class Talker(Source):
    """A microphone that sends each frame with a copy of the one before it, as libwebrtc does."""

    def __init__(self, client: Client) -> None:
        super().__init__(client, 2, 63, mid="1", timestamp=0)
        self.frames: list[bytes] = []

    def talk(self, frame: bytes, copies: int = 1) -> RtpPacket:
        self.timestamp += 960
        before = [Block(111, 960 * back, self.frames[-back]) for back in range(min(copies, len(self.frames)), 0, -1)]
        self.frames.append(frame)
        return self.packet(serialize((*before, Block(111, 0, frame))))


class RedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()
        self.alice.publish(MICROPHONE)
        self.talker = Talker(self.alice)

    def subscribe(self, codecs: tuple[Codec, ...], client: Client | None = None) -> None:
        track = self.alice.media.tracks["microphone"]
        (client or self.bob).media.subscribe(track, downlinked(MICROPHONE, 7000, codecs=codecs))

    def heard(self, client: Client | None = None) -> list[tuple[int, bytes]]:
        """Payload type and payload of what came, in the order of its numbers."""
        packets = sorted((client or self.bob).of(7000), key=lambda packet: packet.sequence_number)
        return [(packet.payload_type, packet.payload) for packet in packets]

    def test_passed_through(self) -> None:
        """Who takes RED gets it as it came, under his own payload type."""
        self.subscribe(TAKING)
        sent = [self.talker.talk(frame) for frame in (b"one", b"two")]
        self.alice.send(*sent)
        self.assertEqual(self.heard(), [(62, packet.payload) for packet in sent])

    def test_other_numbers_inside(self) -> None:
        """Where the subscriber's Opus has another payload type, the headers inside say so, and the frames stay."""
        self.subscribe(RENUMBERED)
        self.alice.send(self.talker.talk(b"one"), self.talker.talk(b"two"))
        self.alice.send(evolve(self.talker.packet(b"plain"), payload_type=111))
        (_, first), (number, second), plain = self.heard()
        self.assertEqual((number, parse(first)), (63, (Block(109, 0, b"one"),)))
        self.assertEqual(parse(second), (Block(109, 960, b"one"), Block(109, 0, b"two")))
        self.assertEqual(plain, (109, b"plain"))

    def test_stripped(self) -> None:
        """Who does not take RED gets the frames alone; a packet without RED passes as it is."""
        carol = self.room.client()
        self.subscribe(STRIPPED)
        self.subscribe(STRIPPED, carol)
        self.alice.send(self.talker.talk(b"one"), self.talker.talk(b"two"))
        self.alice.send(evolve(self.talker.packet(b"plain"), payload_type=111))
        for client in (self.bob, carol):
            self.assertEqual(self.heard(client), [(109, b"one"), (109, b"two"), (109, b"plain")])

    def test_padding_keeps_its_place(self) -> None:
        """Packets of padding alone, with which browsers probe, leave no hole."""
        for codecs in (STRIPPED, RENUMBERED):
            self.subscribe(codecs, client := self.room.client())
            self.alice.send(
                self.talker.talk(b"one"), evolve(self.talker.packet(b""), padding=200), self.talker.talk(b"two")
            )
            packets = client.of(7000)
            self.assertEqual([packet.sequence_number - packets[0].sequence_number for packet in packets], [0, 1, 2])
            self.assertEqual(packets[1].payload, b"")

    def test_levels_stay(self) -> None:
        """Stripping leaves marker and audio level where they were."""
        self.subscribe(STRIPPED)
        packet = self.talker.talk(b"one")
        self.alice.send(evolve(packet, marker=True, extensions=((1, b"\x8a"),)))
        (found,) = self.bob.of(7000)
        self.assertEqual((found.marker, dict(found.extensions)[2]), (True, b"\x8a"))

    def test_a_loss_is_mended(self) -> None:
        """A lost packet is found in the next one: the subscriber sees no hole, in numbers or in time."""
        carol = self.room.client()
        self.subscribe(STRIPPED)
        self.subscribe(STRIPPED, carol)
        for number in range(20):
            packet = self.talker.talk(bytes((number,)) * 3)
            if number % 4 != 2:
                self.alice.send(packet)
        for client in (self.bob, carol):
            self.assertEqual([frame for _, frame in self.heard(client)], self.talker.frames)
            packets = client.of(7000)
            numbers = [packet.sequence_number - packets[0].sequence_number for packet in packets]
            times = [(packet.timestamp - packets[0].timestamp) & 0xFFFFFFFF for packet in packets]
            self.assertEqual((numbers, times), (list(range(20)), [960 * each for each in range(20)]))

    def test_two_in_a_row(self) -> None:
        """With two copies two losses in a row are mended; what has no copy stays lost."""
        self.subscribe(STRIPPED)
        packets = [self.talker.talk(b"frame%d" % number, copies=2) for number in range(10)]
        self.alice.send(*packets[:2], packets[4], *packets[8:])
        self.assertEqual(
            [frame for _, frame in self.heard()], [each for each in self.talker.frames if each != b"frame5"]
        )

    def test_never_twice(self) -> None:
        """A packet that comes after all is not sent under the number that its copy had."""
        self.subscribe(STRIPPED)
        self.subscribe(TAKING, carol := self.room.client())
        packets = [self.talker.talk(b"frame%d" % number) for number in range(4)]
        late = evolve(packets[1], payload=packets[1].payload + b"!", marker=True)
        for packet in (packets[0], packets[2], late, packets[3]):
            self.alice.send(packet)
        self.assertEqual([frame for _, frame in self.heard()], self.talker.frames)
        self.assertEqual(len(carol.of(7000)), 4)

    def test_padding_was_lost_too(self) -> None:
        """Copies have no number: where padding was lost behind a packet its copy has the padding's, and counts once."""
        self.subscribe(STRIPPED)
        first, lost = self.talker.talk(b"one"), self.talker.talk(b"two")
        self.talker.packet(b"")
        self.alice.send(first)
        self.alice.send(self.talker.talk(b"three"))
        self.alice.send(lost)
        self.alice.send(self.talker.talk(b"four"))
        self.assertEqual([frame for _, frame in self.heard()], [b"one", b"two", b"three", b"four"])

    def test_the_subscriber_changes_its_mind(self) -> None:
        """One who takes RED from now on goes on at a new number: the late packet has none that was used."""
        self.subscribe(STRIPPED)
        packets = [self.talker.talk(b"frame%d" % number) for number in range(4)]
        self.alice.send(packets[0], packets[2])
        self.subscribe(TAKING)
        self.alice.send(packets[3])
        self.alice.send(packets[1])
        numbers = [packet.sequence_number - self.bob.of(7000)[0].sequence_number for packet in self.bob.of(7000)]
        self.assertEqual(numbers, [0, 1, 2, 3])

    def test_copies_that_lie(self) -> None:
        """A copy that would go back in time, and what is no RED at all, is left out; the stream goes on."""
        self.subscribe(STRIPPED)
        packets = [self.talker.talk(b"frame%d" % number) for number in range(3)]
        lie = serialize((Block(111, 5000, b"old"), Block(111, 0, b"frame2")))
        self.alice.send(packets[0], evolve(packets[2], payload=lie))
        self.alice.send(*(self.talker.packet(payload) for payload in (b"\xff", b"\x60other")))
        self.alice.send(self.talker.talk(b"frame3", copies=0))
        self.assertEqual([frame for _, frame in self.heard()], [b"frame0", b"frame2", b"frame3"])


class RepeatingTests(SynchronousTestCase):
    """A microphone that names RED and sends Opus, and subscribers on lines that lose."""

    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()
        self.track = self.publish((OPUS, RED))
        self.source = Source(self.alice, 2, 111, mid="1", timestamp=0)

    def publish(self, codecs: tuple[Codec, ...]) -> Track:
        self.alice.publish(evolve(MICROPHONE, codecs=codecs))
        track = self.alice.media.tracks["microphone"]
        track.opaque = False
        return track

    def subscribe(self, codecs: tuple[Codec, ...]) -> None:
        self.bob.media.subscribe(self.track, downlinked(MICROPHONE, 7000, codecs=codecs))

    def lose(self, share: float) -> None:
        """Have the subscriber report so much loss."""
        block = ReportBlock(7000, round(share * 256), 0, 0, 0, 0, 0)
        self.bob.send_rtcp(ReceiverReport(1, (block,)))

    def talk(self, *frames: bytes, samples: int = 960) -> None:
        for frame in frames:
            self.source.timestamp += samples
            self.alice.send(self.source.packet(frame))

    def heard(self) -> list[tuple[int, bytes | tuple[Block, ...]]]:
        """Payload type and payload of what has come since the last time, RED taken apart."""
        packets, self.bob.rtp = self.bob.of(7000), []
        return [
            (each.payload_type, parse(each.payload) if each.payload_type == 63 else each.payload) for each in packets
        ]

    def test_encrypted(self) -> None:
        """What may be encrypted end to end goes as it is, however much is lost."""
        self.track.opaque = True
        self.subscribe(RENUMBERED)
        self.lose(0.05)
        self.talk(b"one", b"two")
        self.assertEqual(self.heard(), [(109, b"one"), (109, b"two")])

    def test_lossy_line(self) -> None:
        """Who reports 2 % or more as lost gets each frame with a copy of the one before, in his own numbers."""
        self.subscribe(RENUMBERED)
        self.talk(b"one")
        self.lose(0.01)
        self.talk(b"two")
        self.assertEqual(self.heard(), [(109, b"one"), (109, b"two")])
        self.lose(0.05)
        self.talk(b"three", b"four")
        copied = (63, (Block(109, 960, b"three"), Block(109, 0, b"four")))
        self.assertEqual(self.heard(), [(109, b"three"), copied])

    def test_until_it_is_calm(self) -> None:
        """It ends when for half a minute no report says so, not with the first good one; numbers go on."""
        self.subscribe(TAKING)
        self.lose(0.1)
        self.talk(b"one", b"two")
        self.room.wait(20)
        self.lose(0.0)
        self.talk(b"three", b"four")
        self.room.wait(15)
        self.lose(0.0)
        self.talk(b"five")
        packets = self.bob.of(7000)
        self.assertEqual([each.payload_type for each in packets], [111, 62, 62, 62, 111])
        numbers = [each.sequence_number - packets[0].sequence_number for each in packets]
        self.assertEqual(numbers, [0, 1, 2, 3, 4])

    def test_later_subscriptions(self) -> None:
        """What is subscribed to on a line that is known to lose is repeated from the start."""
        other = evolve(MICROPHONE, track_id="other", mid="2", codecs=(OPUS,), ssrcs=((3, None),))
        self.alice.publish(evolve(MICROPHONE, codecs=(OPUS, RED)), other)
        self.bob.media.subscribe(self.alice.media.tracks["other"], downlinked(other, 8000, codecs=STRIPPED))
        self.bob.send_rtcp(ReceiverReport(1, (ReportBlock(8000, 25, 0, 0, 0, 0, 0),)))
        self.subscribe(TAKING)
        self.talk(b"one", b"two")
        self.assertEqual([each.payload_type for each in self.bob.of(7000)], [111, 62])

    def test_who_does_not_know_red(self) -> None:
        """Where either end has not named RED frames go alone: encrypted ones must not be put together."""
        self.subscribe(STRIPPED)
        self.lose(0.1)
        self.talk(b"one", b"two")
        self.assertEqual(self.heard(), [(109, b"one"), (109, b"two")])
        self.track = self.publish((OPUS,))
        self.subscribe(TAKING)
        self.talk(b"three", b"four")
        self.assertEqual(self.heard(), [(111, b"three"), (111, b"four")])

    def test_what_is_not_repeated(self) -> None:
        """No copy goes of what the subscriber was not sent, of what is too old for RED, or too long; nor of padding."""
        self.subscribe(RENUMBERED)
        self.lose(0.1)
        self.talk(b"one")
        self.track.muted = True
        self.talk(b"secret")
        self.track.muted = False
        self.talk(b"two")
        self.talk(b"three", samples=0x4000)
        self.alice.send(evolve(self.source.packet(b""), padding=200))
        self.talk(b"long" * 300, b"four")
        self.talk(b"five")
        *plain, (number, last) = self.heard()
        wanted = [b"one", b"two", b"three", b"", b"long" * 300, b"four"]
        self.assertEqual(plain, [(109, payload) for payload in wanted])
        self.assertEqual((number, last), (63, (Block(109, 960, b"four"), Block(109, 0, b"five"))))

    def test_the_publisher_repeats(self) -> None:
        """What comes as RED passes as it is; when it changes to plain frames nothing is lost or copied twice."""
        self.subscribe(TAKING)
        self.lose(0.1)
        self.talk(b"one")
        self.source.payload_type = 63
        self.talk(serialize((Block(111, 960, b"one"), Block(111, 0, b"two"))))
        self.source.payload_type = 111
        self.talk(b"three", b"four")
        payloads = [
            packet.payload if packet.payload_type == 111 else parse(packet.payload) for packet in self.bob.of(7000)
        ]
        red = (Block(111, 960, b"one"), Block(111, 0, b"two"))
        self.assertEqual(payloads, [b"one", red, b"three", (Block(111, 960, b"three"), Block(111, 0, b"four"))])

    def test_late(self) -> None:
        """A packet that comes late goes out once, under its own number, and those after it have the right copies."""
        self.subscribe(RENUMBERED)
        self.lose(0.1)
        packets = []
        for frame in (b"one", b"two", b"three", b"four"):
            self.source.timestamp += 960
            packets.append(self.source.packet(frame))
        self.alice.send(packets[0])
        self.alice.send(packets[2])
        self.alice.send(packets[1])
        self.alice.send(packets[3])
        copied = (63, (Block(109, 960, b"three"), Block(109, 0, b"four")))
        self.assertEqual(self.heard(), [(109, b"one"), (109, b"three"), (109, b"two"), copied])


class NegotiationTests(SynchronousTestCase):
    def offer(self, first: str) -> str:
        text = recorded("chromium-offer")
        media = next(each for each in sdp.parse(text).media if each.kind == "audio")
        line = f"m=audio {media.port} {media.protocol} "
        rest = [each for each in media.formats if each != first]
        return text.replace(line + " ".join(media.formats), line + " ".join((first, *rest)))

    def test_published(self) -> None:
        """A microphone is answered with RED and Opus, the first of them first; without RED with Opus alone."""
        for first, wanted in (("63", ["audio/red", "audio/opus"]), ("111", ["audio/opus", "audio/red"])):
            table, _ = negotiator()
            answered = table.remote_offer(self.offer(first))
            uplink = answered.agreement.uplinks[0]
            self.assertEqual([codec.mime for codec in uplink.codecs], wanted)
            media = sdp.parse(answered.sdp).media[0]
            self.assertEqual(media.formats[0], first)
            self.assertIn("63 111/111", media.attributes.all("fmtp"))
        table, _ = negotiator()
        answered = table.remote_offer(self.offer("111").replace("a=fmtp:63 111/111\r\n", ""))
        self.assertEqual([codec.mime for codec in answered.agreement.uplinks[0].codecs], ["audio/opus"])

    def test_parameters_pass(self) -> None:
        """In-band FEC, DTX, stereo and a bitrate that a publisher wants stand in its answer and in others' offers."""
        table, _ = negotiator()
        wanted = "minptime=10;useinbandfec=1;usedtx=1;stereo=1;sprop-stereo=1;maxaveragebitrate=128000"
        answered = table.remote_offer(self.offer("111").replace("minptime=10;useinbandfec=1", wanted))
        uplink = answered.agreement.uplinks[0]
        self.assertIn(f"111 {wanted}", sdp.parse(answered.sdp).media[0].attributes.all("fmtp"))
        other, _ = negotiator()
        other.want(Wanted("theirs", "pub", "audio", uplink.codecs, frozenset({MID})))
        proposed = other.propose()
        assert proposed is not None
        self.assertIn(f"111 {wanted}", sdp.parse(proposed.sdp).media[0].attributes.all("fmtp"))

    def test_subscribed(self) -> None:
        """Our offer names Opus and RED, in one numbering; the answer decides which of them are sent."""
        for takes in (True, False):
            table, _ = negotiator()
            published = (evolve(RED, payload_type=120, fmtp="96/96"), evolve(OPUS, payload_type=96))
            table.want(Wanted("theirs", "pub", "audio", published, frozenset({MID})))
            proposed = table.propose()
            assert proposed is not None
            media = sdp.parse(proposed.sdp).media[0]
            self.assertEqual(media.formats, ("111", "63"))
            self.assertIn("63 111/111", media.attributes.all("fmtp"))
            answer = proposed.sdp.replace("actpass", "active").replace("sendonly", "recvonly")
            answer = answer.replace("a=ice-lite\r\n", "")
            if not takes:
                answer = "\r\n".join(
                    line.replace("111 63", "111")
                    for line in answer.split("\r\n")
                    if not line.startswith(("a=rtpmap:63", "a=fmtp:63", "a=rtcp-fb:63"))
                )
            agreement = table.remote_answer(answer)
            assert agreement is not None
            chosen = payload_types(published, agreement.downlinks[0].codecs)
            self.assertEqual(
                {theirs: ours.payload_type for theirs, ours in chosen.items()},
                {96: 111, **({120: 63} if takes else {})},
            )
