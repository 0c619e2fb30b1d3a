"""What is held back while too much is under way to a subscriber, and padding that finds out how much may be."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.departures import OVERHEAD, Departures
from orama.sfu.repairs import MOST_PADDING, PADDING
from orama.sfu.shaping import LEAST, bound
from orama.sfu.values import MID, TRANSPORT_CC
from orama.wire.rtcp import Nack, PictureLoss
from orama.wire.rtp import RtpPacket
from orama.wire.transport_cc import TransportFeedback
from tests.sfu.clients import PROFILES, Room, Source, camera, downlinked, microphone

EXTENSIONS = {MID: 9, TRANSPORT_CC: 3}


class BoundTests(SynchronousTestCase):
    def test_bounds(self) -> None:
        """Half a second's worth beside what feedback cannot have named; more where no limit was seen; never nothing."""
        self.assertAlmostEqual(bound(800e3, None, 0.05, True), 100e3 * (0.5 + 0.25 + 0.05))
        self.assertAlmostEqual(bound(800e3, 1600e3, 0.05, False), 200e3 * (1.0 + 0.25 + 0.05))
        self.assertEqual(bound(100e3, 50e3, None, True), LEAST)


class ShapingTestCase(SynchronousTestCase):
    """Alice publishes, Bob gets the camera under SSRC 5000 with RTX under 5001, and the microphone under 7000."""

    profile = PROFILES[0]

    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(self.profile), self.room.client(self.profile)
        self.alice.publish(camera(ssrcs=((1, 11),)), microphone(ssrcs=((2, None),)))
        self.video = Source(self.alice, 1, rtx=(11, 97))
        self.voice = Source(self.alice, 2, 111, mid="1")
        tracks = self.alice.media.tracks
        self.bob.media.subscribe(tracks["camera"], downlinked(camera(), extensions=EXTENSIONS))
        self.bob.media.subscribe(tracks["microphone"], downlinked(microphone(), 7000, mid="8", extensions=EXTENSIONS))
        self.room.wait(0.05)

    @property
    def departures(self) -> Departures:
        found = self.bob.media._outbox.departures
        assert found is not None
        return found

    def crowd(self) -> None:
        """From now on too much is under way, until :meth:`name`."""
        self.departures.most = self.departures.under_way - 1

    def name(self) -> None:
        """Bob says that everything has come."""
        first = self.number(self.bob.rtp[0])
        count = ((self.number(self.bob.rtp[-1]) - first) & 0xFFFF) + 1
        self.bob.send_rtcp(TransportFeedback(1, 2, first, 100, 0, (4,) * count))

    @staticmethod
    def number(packet: RtpPacket) -> int:
        return int.from_bytes(dict(packet.extensions)[3], "big")


class ShedTests(ShapingTestCase):
    def test_what_is_under_way(self) -> None:
        """Every packet counts from its sending to the feedback that names it, whatever it says of it."""
        self.alice.send(*self.video.frame(4, key=True, size=1000), self.voice.packet(b"opus"))
        sizes = sum(len(packet.payload) + OVERHEAD for packet in self.bob.rtp)
        self.assertEqual(self.departures.under_way, sizes)
        self.bob.send_rtcp(TransportFeedback(1, 2, self.number(self.bob.rtp[0]), 100, 0, (4, None, 4)))
        left = sum(len(packet.payload) + OVERHEAD for packet in self.bob.rtp[3:])
        self.assertApproximates(self.departures.under_way, left, 4)
        self.name()
        self.assertEqual(self.departures.under_way, 0)

    def test_a_frame_is_ended(self) -> None:
        """A frame that has begun goes on to its end, and nothing follows it but audio."""
        self.alice.send(*self.video.frame(4, key=True))
        begun, next_one = self.video.frame(6), self.video.frame(3)
        self.alice.send(*begun[:2])
        self.crowd()
        self.alice.send(*begun[2:], *next_one[:1])
        self.alice.send(*next_one[1:], self.voice.packet(b"opus"), *self.video.frame(3, key=True))
        self.assertEqual([len(self.bob.of(5000)), len(self.bob.of(7000))], [10, 1])
        self.assertTrue(self.bob.of(5000)[-1].marker)
        self.assertEqual(self.room.counters.dropped["congested"], 6)

    def test_it_begins_anew(self) -> None:
        """When there is room again the next keyframe is asked for, goes out, and the numbers have no hole."""
        self.alice.send(*self.video.frame(4, key=True))
        self.name()
        self.room.wait(0.05)
        for _ in range(30):
            self.alice.send(*self.video.frame(10, size=1000))
        sent = len(self.bob.of(5000))
        self.assertLess(sent * 1000, self.departures.most + 10_000)
        self.alice.take(PictureLoss)
        self.room.wait(1)
        self.assertEqual(self.alice.take(PictureLoss), [])
        self.name()
        self.room.wait(0.6)
        self.assertGreater(len(self.alice.take(PictureLoss)), 0)
        self.alice.send(*self.video.frame(3), *self.video.frame(2, key=True))
        numbers = [packet.sequence_number for packet in self.bob.of(5000)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + sent + 2)))

    def test_nothing_is_repaired(self) -> None:
        """While too much is under way NACKs add nothing to it; afterwards they are answered."""
        self.alice.send(*self.video.frame(4, key=True))
        number = self.bob.of(5000)[1].sequence_number
        self.crowd()
        self.bob.send_rtcp(Nack(1, 5000, (number,)))
        self.assertEqual(self.bob.of(5001), [])
        self.name()
        self.bob.send_rtcp(Nack(1, 5000, (number,)))
        self.assertEqual(len(self.bob.of(5001)), 1)

    def test_repairs_have_a_budget(self) -> None:
        """Where a limit was seen repairs get a part of it, and no more."""
        self.alice.send(*self.video.frame(4, key=True, size=1000))
        numbers = tuple(packet.sequence_number for packet in self.bob.of(5000))
        self.bob.media._outbox.repairs = 1500
        self.bob.send_rtcp(Nack(1, 5000, numbers))
        self.assertEqual(len(self.bob.of(5001)), 2)
        self.assertEqual(self.room.counters.dropped["resend_budget"], 2)

    def test_a_pause_ends_a_frame(self) -> None:
        """A subscription that has no room any more ends with a whole frame, and comes back with a keyframe."""
        downlink = self.bob.media._downlinks["camera"]
        self.alice.send(*self.video.frame(4, key=True))
        begun = self.video.frame(6)
        self.alice.send(*begun[:2])
        downlink.allow(None, self.room.now)
        self.alice.send(*begun[2:], *self.video.frame(3))
        self.alice.send(*self.video.frame(3, key=True))
        self.assertEqual(len(self.bob.of(5000)), 10)
        self.assertTrue(self.bob.of(5000)[-1].marker)
        self.assertEqual(self.alice.media.tracks["camera"].streams[""].listeners, ())
        downlink.allow(downlink.qualities(self.room.now)[0], self.room.now)
        self.alice.send(*self.video.frame(3), *self.video.frame(2, key=True))
        numbers = [packet.sequence_number for packet in self.bob.of(5000)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 12)))

    def test_others_go_on(self) -> None:
        """What is held back from one subscriber goes to another."""
        carol = self.room.client()
        carol.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera(), extensions=EXTENSIONS))
        self.alice.send(*self.video.frame(4, key=True))
        self.crowd()
        self.alice.send(*self.video.frame(4))
        self.assertEqual((len(self.bob.of(5000)), len(carol.of(5000))), (4, 8))


class PaddingTests(ShapingTestCase):
    def pad(self, octets: int) -> int:
        self.room.fabric.begin()
        sent = self.bob.media._downlinks["camera"].repairs.pad(octets, self.room.now)
        self.room.fabric.end()
        return sent

    def test_what_was_sent_goes_again(self) -> None:
        """Padding is the last packets once more by RTX, newest first, and numbered like all that leaves."""
        self.alice.send(*self.video.frame(4, key=True, size=500))
        last = self.bob.of(5000)[-1]
        self.assertGreaterEqual(self.pad(900), 900)
        again = self.bob.of(5001)
        self.assertEqual(again[0].payload, last.sequence_number.to_bytes(2, "big") + last.payload)
        numbers = [self.number(packet) for packet in self.bob.rtp]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual((self.room.counters.padding, self.room.counters.retransmitted), (len(again), 0))

    def test_padding_alone(self) -> None:
        """Before anything was sent it is RTX packets with nothing in them, which a receiver passes over."""
        self.pad(1000)
        found = self.bob.of(5001)
        self.assertEqual({(packet.payload, packet.padding) for packet in found}, {(b"", len(PADDING))})
        self.assertEqual(len(found), 4)

    def test_bounded(self) -> None:
        """However much is asked for, one tick sends no more than so many packets."""
        self.pad(10_000_000)
        self.assertEqual(len(self.bob.of(5001)), MOST_PADDING)

    def test_not_without_numbers(self) -> None:
        """Without RTX or transport-wide numbers there is no padding."""
        for values in ({"rtx_ssrc": None, "extensions": EXTENSIONS}, {"extensions": {MID: 9}}):
            self.bob.media.unsubscribe("camera")
            self.bob.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera(), **values))  # type: ignore[arg-type]
            self.assertFalse(self.bob.media._downlinks["camera"].repairs.can_pad)
            self.assertEqual((self.pad(1000), self.bob.of(5001)), (0, []))


class CounterModePaddingTests(PaddingTests):
    """The same under AES128_CM_SHA1_80."""

    profile = PROFILES[2]
