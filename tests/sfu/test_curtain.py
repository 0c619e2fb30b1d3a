"""What passes of a video that is muted in the middle of a picture."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.curtain import FALL
from orama.wire.rtcp import PictureLoss
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import Room, Source, camera, downlinked


class CurtainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()
        self.alice.publish(camera())
        self.source = Source(self.alice, 1)
        self.track = self.alice.media.tracks["camera"]
        self.bob.media.subscribe(self.track, downlinked(camera()))
        self.alice.send(*self.source.frame(key=True))
        self.frame = self.source.frame(packets=4)

    def assert_got(self, *packets: RtpPacket) -> None:
        """Bob got the first frame and these, under numbers without a hole."""
        payloads = [packet.payload for packet in self.bob.rtp]
        self.assertEqual(payloads[3:], [packet.payload for packet in packets])
        numbers = [packet.sequence_number for packet in self.bob.rtp]
        self.assertEqual(sorted(numbers), list(range(numbers[0], numbers[0] + len(numbers))))

    def test_frame_ends(self) -> None:
        """The frame that is under way goes out to its end, and nothing after it: the last picture is whole."""
        self.alice.send(*self.frame[:2])
        self.track.muted = True
        self.alice.send(*self.frame[2:], *self.source.frame())
        self.assert_got(*self.frame)
        self.assertEqual(self.room.counters.dropped["muted"], 0)
        self.alice.send(*self.source.frame())
        self.assertEqual(self.room.counters.dropped["muted"], 3)

    def test_nothing_under_way(self) -> None:
        """A video that is muted before its first packet shows nothing, whatever its timestamps begin with."""
        for ssrc, timestamp in ((5, 0x10000000), (6, 0x90000000)):
            self.alice.publish(camera("other", ssrcs=((ssrc, None),)))
            track = self.alice.media.tracks["other"]
            carol = self.room.client()
            carol.media.subscribe(track, downlinked(camera("other")))
            track.muted = True
            self.alice.send(*Source(self.alice, ssrc, timestamp=timestamp).frame(key=True))
            self.assertEqual(carol.rtp, [])
            self.alice.publish()

    def test_a_keyframe_that_was_under_way(self) -> None:
        """A keyframe whose beginning comes after the mute may pass; what came behind it, while muted, does not."""
        carol = self.room.client()
        carol.media.subscribe(self.track, downlinked(camera()))
        key = self.source.frame(key=True)
        self.alice.send(*key[1:])
        self.track.muted = True
        self.room.wait(0.05)
        self.alice.send(*self.source.frame())
        self.alice.send(key[0])
        self.assertEqual([packet.payload for packet in carol.rtp], [packet.payload for packet in key])

    def test_late_packet(self) -> None:
        """A packet of that frame that was lost and sent again passes too, but not for ever."""
        self.alice.send(self.frame[0], self.frame[3])
        self.track.muted = True
        self.room.wait(FALL / 2)
        self.alice.send(self.frame[2])
        self.assertEqual(len(self.bob.rtp), 6)
        self.room.wait(FALL)
        self.alice.send(self.frame[1])
        self.assertEqual(len(self.bob.rtp), 6)

    def test_unmuted(self) -> None:
        """What comes after it begins with a keyframe, under the next number; the same when muted for a moment only."""
        for seconds in (0.05, 5.0):
            self.alice.rtcp.clear()
            self.track.muted = True
            self.room.wait(seconds)
            self.track.muted = False
            self.room.wait(0.5)
            self.assertTrue(self.alice.take(PictureLoss))
            before = len(self.bob.rtp)
            self.alice.send(*self.source.frame())
            self.assertEqual(len(self.bob.rtp), before)
            self.alice.send(*self.source.frame(key=True))
            numbers = [packet.sequence_number for packet in self.bob.rtp]
            self.assertEqual(numbers, list(range(numbers[0], numbers[0] + before + 3)))
