"""Video with layers on its way to one subscriber: what is left out, what it is called, whether it can be decoded."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.downlink import Downlink
from orama.sfu.qualities import Quality
from orama.sfu.values import Uplinked
from orama.wire import vp8
from orama.wire.rtcp import Nack, PictureLoss
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import EXTENSIONS, VP8, Room, camera, downlinked
from tests.sfu.layered import Received, TemporalCamera, holes, plain8, received, undecodable


class TemporalTests(SynchronousTestCase):
    """VP8 with three temporal layers; Bob gets it under SSRC 5000."""

    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()
        self.alice.publish(camera(ssrcs=((1, 11),)))
        self.source = TemporalCamera(self.alice, 1, rtx=(11, 97))
        self.bob.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera()))

    @property
    def downlink(self) -> Downlink:
        return self.bob.media._downlinks["camera"]

    def allow(self, temporal: int) -> None:
        self.downlink.allow(Quality(0, temporal, 0.0), self.room.now)

    def frames(self) -> list[Received]:
        return received(self.bob.of(5000), plain8)

    def assert_whole(self) -> None:
        """No number is missing, all can be decoded, and picture ids and TL0PICIDX count without a hole."""
        self.assertEqual(holes(self.bob.of(5000)), [])
        frames = self.frames()
        self.assertEqual(undecodable(frames), [])
        found = [vp8.parse(frame.packets[0].payload) for frame in frames]
        for before, after in pairwise(found):
            assert before.picture_id is not None and after.picture_id is not None
            self.assertEqual((after.picture_id - before.picture_id) & 0x7FFF, 1)
            assert before.base is not None and after.base is not None
            self.assertEqual((after.base - before.base) & 0xFF, int(after.temporal == 0))
        for frame in frames:
            self.assertEqual([packet.marker for _, packet in sorted(frame.packets.items())], [False, True])

    def test_everything_by_default(self) -> None:
        """Nobody limits it: the stream goes through as it came, and nothing stands in its way."""
        self.source.play(8)
        self.assertEqual([packet.payload for packet in self.bob.rtp], [p.payload for p in self.source.history.values()])
        span = self.downlink._span
        assert span is not None
        self.assertIsNone(span.projection)

    def test_qualities(self) -> None:
        """Each temporal layer is a quality with all that it needs."""
        self.source.play(80)
        self.assertEqual(
            [(each.spatial, each.temporal) for each in self.downlink.qualities(self.room.now)], [(0, 0), (0, 1), (0, 2)]
        )
        low, mid, high = (each.bitrate for each in self.downlink.qualities(self.room.now))
        self.assertApproximates(mid / low, 2, 0.15)
        self.assertApproximates(high / low, 4, 0.3)

    def test_fewer(self) -> None:
        """Frames of higher layers are left out from the next frame on."""
        for temporal, expected in ((1, {0, 1}), (0, {0})):
            self.source.play(4)
            self.allow(temporal)
            seen = len(self.frames())
            self.source.play(12)
            self.assertEqual({frame.first.temporal for frame in self.frames()[seen:]}, expected)
        self.assert_whole()

    def test_more_at_a_sync_frame(self) -> None:
        """A layer comes back with a frame that needs the lowest alone, one layer after the other."""
        self.source.play(4)
        self.allow(0)
        self.source.play(9)
        seen = len(self.frames())
        self.allow(2)
        self.source.play(12)
        came = [frame.first.temporal for frame in self.frames()[seen:]]
        self.assertEqual(came, [1, 0, 2, 1, 2, 0, 2, 1, 2, 0])
        self.assert_whole()

    def test_all_at_a_keyframe(self) -> None:
        """A keyframe brings every layer that is allowed."""
        self.source.play(4)
        self.allow(0)
        self.source.play(6)
        self.allow(2)
        self.source.wanted = True
        seen = len(self.frames())
        self.source.play(4)
        self.assertEqual([frame.first.temporal for frame in self.frames()[seen:]], [0, 2, 1, 2])
        self.assert_whole()

    def test_begins_with_less(self) -> None:
        """What was allowed before the subscription begins holds from its first frame on."""
        carol = self.room.client()
        self.source.play(4)
        carol.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera(), 6000))
        carol.media._downlinks["camera"].allow(Quality(0, 1, 0.0), self.room.now)
        self.source.wanted = True
        self.source.play(12)
        frames = received(carol.of(6000), plain8)
        self.assertEqual({frame.first.temporal for frame in frames}, {0, 1})
        self.assertEqual((holes(carol.of(6000)), undecodable(frames)), ([], []))

    def test_late_packets(self) -> None:
        """What comes late has its place; of a layer that is left out an empty packet takes it."""
        self.source.play(4)
        self.allow(0)
        self.source.play(4)
        seen = len(self.frames())
        lowest, high = self.source.picture(), self.source.picture()
        self.alice.send(lowest[0])
        self.alice.send(high[1])
        self.source.play(5)
        self.assertEqual(len(holes(self.bob.of(5000))), 2)
        self.alice.send(self.source.again(lowest[1].sequence_number))
        self.alice.send(self.source.again(high[0].sequence_number))
        self.assertEqual([packet.payload for packet in self.bob.rtp if not packet.payload], [b""])
        self.assertEqual(holes(self.bob.of(5000)), [])
        self.assertEqual(undecodable(self.frames()), [])
        self.assertEqual({frame.first.temporal for frame in self.frames()[seen:]}, {0})

    def test_a_frame_that_comes_late_as_a_whole(self) -> None:
        """Its picture id is the one that was kept for it."""
        self.allow(1)
        self.source.play(4)
        late = self.source.picture()
        self.source.play(6)
        self.alice.send(*(self.source.again(each.sequence_number) for each in late))
        self.assert_whole()

    def test_late_from_before_a_change(self) -> None:
        """What comes late is judged by what was forwarded in its time: others may need it."""
        self.source.play(4)
        self.allow(1)
        self.source.play(6)
        late = self.source.picture()
        self.source.play(1)
        self.allow(0)
        self.source.play(5)
        self.alice.send(*(self.source.again(each.sequence_number) for each in late))
        frame = next(frame for frame in self.frames() if frame.first.serial == self.source.serial - 6)
        self.assertEqual((frame.first.temporal, frame.complete), (1, True))

    def test_nack(self) -> None:
        """A packet is sent again as it was sent, whatever was left out before and is allowed now."""
        self.source.play(3)
        self.allow(0)
        self.source.play(9)
        self.allow(2)
        self.source.play(6)
        for packet in self.bob.of(5000)[1::3]:
            self.room.wait(0.15)
            before = len(self.bob.of(5001))
            self.bob.send_rtcp(Nack(9, 5000, (packet.sequence_number,)))
            (again,) = self.bob.of(5001)[before:]
            self.assertEqual(again.payload[2:], packet.payload)
            self.assertEqual((again.timestamp, again.marker), (packet.timestamp, packet.marker))

    def test_long(self) -> None:
        """With every other packet left out for minutes, across all wraps, nothing grows and nothing is lost."""
        self.source.parts = 1
        self.source.play(4)
        self.allow(1)
        for _ in range(1000):
            self.alice.send(*(packet for _ in range(40) for packet in self.source.picture()))
        self.assertEqual(holes(self.bob.of(5000)), [])
        span = self.downlink._span
        assert span is not None and span.projection is not None
        self.assertLess(len(span.projection._gaps._starts), 600)
        self.assertLess(len(span.projection._frames), 600)

    def test_a_pause(self) -> None:
        """After a pause the same stream goes on as it came: its numbers step forward by themselves."""
        self.source.play(4)
        self.downlink.allow(None, self.room.now)
        self.source.play(4)
        self.allow(2)
        self.source.wanted = True
        self.source.play(4)
        span = self.downlink._span
        assert span is not None
        self.assertIsNone(span.projection)
        there = {packet.payload for packet in self.source.history.values()}
        self.assertEqual(({packet.payload for packet in self.bob.rtp} - there, len(self.bob.rtp)), (set(), 16))

    def test_a_long_pause(self) -> None:
        """After one so long that ids have gone round they go on where they were."""
        self.source.play(4)
        self.downlink.allow(None, self.room.now)
        self.source.picture_id += 0x5000
        self.allow(2)
        self.source.wanted = True
        self.source.play(4)
        self.assert_whole()

    def test_any_losses(self) -> None:
        """Whatever is lost, comes late and is allowed, what arrives whole can be decoded and no number is missing."""
        for seed in range(20):
            self.setUp()
            random = Random(seed)
            lost: list[RtpPacket] = []
            for turn in range(150):
                if random.random() < 0.1:
                    self.allow(random.randrange(3))
                if self.alice.take(PictureLoss):
                    self.source.wanted = True
                made = self.source.picture()
                gone = [packet for packet in made if turn and random.random() < 0.1]
                self.alice.send(*(packet for packet in made if packet not in gone))
                lost += gone
                random.shuffle(lost)
                while len(lost) > random.randrange(8):
                    self.alice.send(self.source.again(lost.pop().sequence_number))
                self.room.wait(0.02)
            while lost:
                self.alice.send(self.source.again(lost.pop().sequence_number))
            self.source.play(1)
            with_seed = f"seed {seed}"
            self.assertEqual(holes(self.bob.of(5000)), [], with_seed)
            self.assertEqual(undecodable(self.frames()), [], with_seed)


class SwitchTests(SynchronousTestCase):
    """Two simulcast layers of VP8 with three temporal layers each, whose numbers begin anywhere."""

    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()
        self.alice.publish(Uplinked("camera", "0", "video", (VP8,), EXTENSIONS, rids=("l", "h")))
        self.layers = [
            TemporalCamera(self.alice, 20 + place, rid=rid, sequence=7000 * place) for place, rid in enumerate("lh")
        ]
        self.layers[0].picture_id, self.layers[0].base = 5, 9
        self.bob.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera()))

    def play(self, pictures: int) -> None:
        for _ in range(pictures):
            wanted = {each.media_ssrc for each in self.alice.take(PictureLoss)}  # type: ignore[union-attr]
            for layer in self.layers:
                layer.wanted = layer.wanted or layer.ssrc in wanted
                self.alice.send(*layer.picture())
            self.room.wait(0.05)

    def assert_whole(self) -> None:
        self.assertEqual(holes(self.bob.of(5000)), [])
        frames = received(self.bob.of(5000), plain8)
        self.assertEqual(undecodable(frames), [])
        found = [vp8.parse(frame.packets[0].payload) for frame in frames]
        for before, after in pairwise(found):
            assert before.picture_id is not None and after.picture_id is not None
            self.assertEqual((after.picture_id - before.picture_id) & 0x7FFF, 1)
            assert before.base is not None and after.base is not None
            self.assertEqual((after.base - before.base) & 0xFF, int(after.temporal == 0))

    def test_ids_go_on(self) -> None:
        """Picture id and TL0PICIDX go on over each switch, in both directions, with layers left out or not."""
        downlink = self.bob.media._downlinks["camera"]
        for spatial, temporal in ((1, 2), (0, 2), (1, 1), (0, 0), (1, 2)):
            downlink.allow(Quality(spatial, temporal, 0.0), self.room.now)
            self.play(16)
            last = received(self.bob.of(5000), plain8)[-4:]
            self.assertEqual({frame.first.serial >> 16 for frame in last}, {20 + spatial})
            self.assertEqual({frame.first.temporal for frame in last}, set(range(temporal + 1)))
        self.assert_whole()

    def test_nack_over_a_switch(self) -> None:
        """What was sent before the switch is sent again as it was."""
        self.play(20)
        for layer in ("low", "high"):
            self.bob.media.set_layer("camera", layer)
            old = self.bob.of(5000)[-1]
            self.play(14)
            self.bob.send_rtcp(Nack(9, 5000, (old.sequence_number,)))
            self.assertEqual(self.bob.of(5001)[-1].payload[2:], old.payload)
        self.assert_whole()

    def test_the_old_layer_does_no_harm(self) -> None:
        """Late packets and padding of the layer before change nothing."""
        self.play(20)
        self.bob.media.set_layer("camera", "low")
        late = self.layers[1].picture()
        self.alice.send(late[0])
        self.play(14)
        count = len(self.bob.rtp)
        self.alice.send(late[1], self.layers[1].packet(b""))
        self.assertEqual(len(self.bob.rtp), count)
        self.alice.send(self.layers[0].packet(b""))
        self.play(4)
        self.assertEqual(holes(self.bob.of(5000)), [])

    def test_a_pause_after_padding(self) -> None:
        """Padding that overtakes the last picture before a pause is not taken for it: numbers go on."""
        self.play(20)
        downlink = self.bob.media._downlinks["camera"]
        self.bob.media.set_layer("camera", "low")
        self.play(14)
        last = self.layers[0].picture()
        self.alice.send(self.layers[0].packet(b""))
        self.alice.send(*last)
        downlink.allow(None, self.room.now)
        self.play(4)
        downlink.allow(Quality(0, 2, 0.0), self.room.now)
        self.play(14)
        packets = sorted(self.bob.of(5000), key=lambda packet: packet.sequence_number)
        found = [vp8.parse(packet.payload).picture_id or 0 for packet in packets if packet.payload and packet.marker]
        self.assertEqual([(after - before) & 0x7FFF for before, after in pairwise(found)], [1] * (len(found) - 1))

    def test_a_pause_after_a_switch(self) -> None:
        """What was moved once goes on after a pause too."""
        self.play(20)
        downlink = self.bob.media._downlinks["camera"]
        downlink.allow(None, self.room.now)
        self.play(20)
        downlink.allow(Quality(1, 2, 0.0), self.room.now)
        self.play(14)
        self.assertEqual(received(self.bob.of(5000), plain8)[-1].first.serial >> 16, 21)
        self.assert_whole()
