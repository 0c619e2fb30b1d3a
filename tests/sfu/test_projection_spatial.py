"""Scalable video on its way to one subscriber: VP9 and AV1, by the dependency descriptor and by VP9's own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.downlink import Downlink
from orama.sfu.qualities import Quality
from orama.sfu.values import DEPENDENCY_DESCRIPTOR, MID, Codec, Uplinked
from orama.wire import dependency, vp9
from orama.wire.rtcp import Nack, PictureLoss
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import EXTENSIONS, VIDEO_FEEDBACK, Room, camera, downlinked
from tests.sfu.layered import (
    AV1,
    DESCRIBED,
    DESCRIPTOR_ID,
    VP9,
    LayeredCamera,
    Received,
    descriptors,
    holes,
    plain,
    plain9,
    received,
    structure,
    undecodable,
)


class SpatialTestCase(SynchronousTestCase):
    """Alice publishes three spatial and three temporal layers; Bob gets them under SSRC 5000.

    :cvar values: how the camera is.
    """

    values: dict[str, Any] = {}
    strip: Callable[[bytes], bytes] = staticmethod(plain9)

    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()
        self.make(**self.values)

    def make(self, *, own: bool = True, described: bool = True, **values: Any) -> None:
        codec = VP9 if own else AV1
        extensions = DESCRIBED if described else EXTENSIONS
        self.alice.publish(Uplinked("camera", "0", "video", (codec,), extensions, ((1, 11),)))
        self.source = LayeredCamera(
            self.alice, 1, own=own, described=described, rtx=(11, codec.rtx_payload_type or 0), **values
        )
        theirs = Codec(120, codec.mime, 90000, rtx_payload_type=121, feedback=VIDEO_FEEDBACK)
        known = {MID: 9, DEPENDENCY_DESCRIPTOR: DESCRIPTOR_ID} if described else {MID: 9}
        self.bob.media.subscribe(
            self.alice.media.tracks["camera"], downlinked(camera(), codecs=(theirs,), extensions=known)
        )

    @property
    def downlink(self) -> Downlink:
        return self.bob.media._downlinks["camera"]

    def allow(self, spatial: int, temporal: int = 2) -> None:
        self.downlink.allow(Quality(spatial, temporal, 0.0), self.room.now)

    def play(self, pictures: int) -> list[Received]:
        """Send pictures, a key picture after each PLI; the frames that came meanwhile."""
        before = len(self.frames())
        for _ in range(pictures):
            if self.alice.take(PictureLoss):
                self.source.wanted = True
            self.source.play(1)
        return self.frames()[before:]

    def frames(self) -> list[Received]:
        return received(self.bob.of(5000), type(self).strip)

    @staticmethod
    def layers(frames: list[Received]) -> set[tuple[int, int]]:
        return {frame.layer for frame in frames}

    def assert_whole(self) -> None:
        """No number is missing, all can be decoded, and each picture ends with a marker, and nothing before its end."""
        self.assertEqual(holes(self.bob.of(5000)), [])
        frames = self.frames()
        self.assertEqual(undecodable(frames), [])
        for place, frame in enumerate(frames):
            ends = place + 1 == len(frames) or frames[place + 1].timestamp != frame.timestamp
            marks = [packet.marker for _, packet in sorted(frame.packets.items())]
            self.assertEqual(marks, [False] * (len(marks) - 1) + [ends], frame.first)


class DependentTestCase(SpatialTestCase):
    """What is the same however the layers of L3T3 are known."""

    ALL = {(spatial, temporal) for spatial in range(3) for temporal in range(3)}

    def test_up_at_a_keyframe(self) -> None:
        """A higher layer waits for a keyframe, which is asked for; until then the lower one goes on."""
        self.allow(0, 0)
        self.play(6)
        self.room.wait(1)
        self.alice.rtcp.clear()
        self.allow(2, 2)
        self.source.play(4)
        self.assertEqual({spatial for spatial, _ in self.layers(self.frames())}, {0})
        self.assertEqual(len(self.alice.take(PictureLoss)), 1)
        self.source.wanted = True
        self.source.play(4)
        self.assertEqual(self.layers(self.frames()[-12:]), self.ALL)
        self.room.wait(1)
        self.assertEqual(self.alice.take(PictureLoss), [])
        self.assert_whole()

    def test_within_a_picture(self) -> None:
        """A picture that has begun is sent to its end."""
        self.play(4)
        for spatial in (1, 0):
            made = self.source.picture()
            self.alice.send(*made[:2])
            self.allow(spatial, 2)
            self.alice.send(*made[2:])
            self.play(2)
        self.assert_whole()


class FullTests(DependentTestCase):
    """L3T3 by the dependency descriptor: each layer needs the one below in every picture."""

    def test_everything_by_default(self) -> None:
        """Nobody limits it: the stream goes through as it came, and nothing stands in its way."""
        self.play(8)
        self.assertEqual(self.layers(self.frames()), self.ALL)
        self.assertEqual([packet.payload for packet in self.bob.rtp], [p.payload for p in self.source.history.values()])
        span = self.downlink._span
        assert span is not None
        self.assertIsNone(span.projection)
        self.assert_whole()

    def test_names(self) -> None:
        """The track lists its spatial layers, and what it costs to have each."""
        track = self.alice.media.tracks["camera"]
        self.assertEqual(track.layers, ())
        self.play(60)
        self.assertEqual(track.layers, ("low", "mid", "high"))
        found = {(each.spatial, each.temporal): each.bitrate for each in self.downlink.qualities(self.room.now)}
        self.assertEqual(set(found), self.ALL)
        self.assertApproximates(found[2, 2] / found[2, 0], 4, 0.5)
        self.assertApproximates(sum(found[s, 2] - (found[s - 1, 2] if s else 0) for s in range(3)), found[2, 2], 1)
        self.bob.media.set_layer("camera", "mid")
        self.assertEqual({each.spatial for each in self.downlink.qualities(self.room.now)}, {0, 1})

    def test_down_at_once(self) -> None:
        """A lower layer begins with the next picture; nobody is asked for a keyframe."""
        self.play(4)
        self.room.wait(1)
        self.alice.rtcp.clear()
        for spatial, temporal in ((1, 2), (1, 0), (0, 2), (0, 0)):
            self.allow(spatial, temporal)
            came = self.layers(self.play(12))
            # Layers left out come back upwards at once where a frame says that one may switch.
            self.assertEqual(came, {(s, t) for s in range(spatial + 1) for t in range(temporal + 1)})
        self.assertEqual(self.alice.take(PictureLoss), [])
        self.assert_whole()

    def test_asked_layers(self) -> None:
        """``subscribe.layer`` acts at once, as it does for simulcast."""
        self.play(4)
        for layer, highest in (("low", 0), ("mid", 1), ("high", 2), ("low", 0), ("auto", 2)):
            self.bob.media.set_layer("camera", layer)
            self.play(14)
            self.assertEqual(max(spatial for spatial, _ in self.layers(self.frames()[-3:])), highest, layer)
            self.assertEqual(self.downlink.shown, ("low", "mid", "high")[highest])
        self.assert_whole()

    def test_fewer_frames(self) -> None:
        """Temporal layers go at the next picture and come back where a frame says so, without a keyframe."""
        self.play(4)
        self.room.wait(1)
        self.alice.rtcp.clear()
        self.allow(2, 0)
        self.assertEqual(self.layers(self.play(8)), {(0, 0), (1, 0), (2, 0)})
        self.allow(2, 2)
        self.play(5)
        self.assertEqual(self.layers(self.play(8)), self.ALL)
        self.assertEqual(self.alice.take(PictureLoss), [])
        self.assert_whole()

    def test_overtaken(self) -> None:
        """A key picture whose first packets come last has one marker, at the end of the highest layer."""
        self.allow(1)
        self.play(6)
        self.allow(2)
        self.source.wanted = True
        made = self.source.picture()
        self.alice.send(*made[2:3], *made[4:])
        self.alice.send(*made[:2], made[3])
        marks = {packet.sequence_number: packet.marker for packet in self.bob.of(5000)[-6:]}
        self.assertEqual([marks[number] for number in sorted(marks)], [False] * 5 + [True])

    def test_told_what_is_there(self) -> None:
        """The descriptors name the decode targets that are forwarded, from each change on."""
        self.play(4)
        self.room.wait(1)
        self.alice.rtcp.clear()
        whole = len(self.bob.of(5000))
        self.allow(1, 1)
        self.play(8)
        self.source.wanted = True
        self.play(2)
        found = descriptors(self.bob.of(5000))
        self.assertEqual({descriptor.active for descriptor, _ in found[:whole]}, {None})
        self.assertIsNotNone(found[whole][0].active)
        told = [descriptor.active for descriptor, _ in found if descriptor.active is not None]
        # Of nine targets those of the two lower spatial layers without their highest temporal one.
        self.assertEqual(set(told), {0b000011011})
        for descriptor, _ in found[whole:]:
            if descriptor.structure is not None:
                self.assertEqual(descriptor.active, 0b000011011)

    def test_nack(self) -> None:
        """What was sent is sent again as it was, descriptor and marker too."""
        self.play(4)
        self.allow(1, 1)
        self.play(8)
        self.room.wait(0.2)
        for packet in self.bob.of(5000)[-9:]:
            before = len(self.bob.of(5001))
            self.bob.send_rtcp(Nack(9, 5000, (packet.sequence_number,)))
            (again,) = self.bob.of(5001)[before:]
            self.assertEqual((again.payload[2:], again.marker), (packet.payload, packet.marker))
            self.assertEqual(dict(again.extensions)[DESCRIPTOR_ID], dict(packet.extensions)[DESCRIPTOR_ID])

    def test_any_losses(self) -> None:
        """Whatever is lost, comes late and is allowed, what arrives whole can be decoded and no number is missing."""
        for seed in range(8):
            self.setUp()
            random = Random(seed)
            lost: list[RtpPacket] = []
            for turn in range(100):
                if random.random() < 0.1:
                    self.allow(random.randrange(3), random.randrange(3))
                if self.alice.take(PictureLoss) or turn == 0:
                    self.source.wanted = True
                made = self.source.picture()
                gone = [packet for packet in made if turn and random.random() < 0.05]
                self.alice.send(*(packet for packet in made if packet not in gone))
                lost += gone
                random.shuffle(lost)
                while len(lost) > random.randrange(8):
                    self.alice.send(self.source.again(lost.pop().sequence_number))
                self.room.wait(0.05)
            while lost:
                self.alice.send(self.source.again(lost.pop().sequence_number))
            self.source.play(1)
            with_seed = f"seed {seed}"
            self.assertEqual(holes(self.bob.of(5000)), [], with_seed)
            self.assertEqual(undecodable(self.frames()), [], with_seed)


class HostileTests(SpatialTestCase):
    def test_many_structures(self) -> None:
        """Structures in every packet are read up to a bound, whatever they are; the stream goes on."""
        read = []
        for _ in range(100):
            self.source.wanted = True
            made = self.source.picture()
            self.source.structure = evolve(self.source.structure, offset=(self.source.structure.offset + 13) % 64)
            self.alice.send(*made)
            read.append(self.alice.media.tracks["camera"].streams[""].layering)
        self.assertLess(len({id(each) for each in read}), 25)
        self.assertEqual(holes(self.bob.of(5000)), [])
        self.room.wait(3)
        self.source.wanted = True
        self.alice.send(*self.source.picture())
        self.assertIsNot(self.alice.media.tracks["camera"].streams[""].layering, read[-1])

    def test_anything(self) -> None:
        """Whatever a publisher says of its layers, in whatever order: subscribers stay, and get numbers in order."""
        for seed in (*range(6), 1124):
            self.setUp()
            self.nonsense(Random(seed))
            self.assertFalse(self.downlink.closed, seed)
            self.assertGreater(len(self.bob.of(5000)), 100, seed)
            self.assertEqual(holes(self.bob.of(5000)), [], seed)

    def nonsense(self, random: Random) -> None:
        shapes = [(spatial, temporal) for spatial in (1, 2, 3, 4) for temporal in (1, 2, 3)]
        for turn in range(60):
            force = structure(*random.choice(shapes), random.random() < 0.5, random.randrange(64))
            self.allow(random.randrange(4), random.randrange(4))
            self.room.wait(0.25)
            made = []
            for number in range(12):
                wire = random.randbytes(random.randrange(10))
                if random.random() < 0.8:
                    first, last, template = random.random() < 0.7, random.random() < 0.7, random.randrange(64)
                    found = dependency.Descriptor(first, last, template, random.randrange(1 << 16))
                    found.structure = force if number == 0 or random.random() < 0.1 else None
                    found.active = random.getrandbits(force.targets) if random.random() < 0.1 else None
                    wire = found.serialize(force)
                self.source.timestamp += random.choice((0, 0, 3000))
                payload = random.choice((b"\x08", b"\xac\x05\x23\x09", b"\xb8\x81\xf0\x10\x00")) + random.randbytes(9)
                made.append(self.source.packet(payload, random.random() < 0.3, [(12, wire)]))
            if turn % 2:
                random.shuffle(made)
            self.alice.send(*made)


class KeyTests(SpatialTestCase):
    """L3T3_KEY: layers need each other in key pictures alone."""

    values = {"independent": True}

    def test_the_highest_alone(self) -> None:
        """After the key picture only frames of the highest layer are forwarded, since it needs no others."""
        self.play(12)
        later = [frame for frame in self.frames() if not frame.first.key]
        self.assertEqual({frame.first.spatial for frame in later}, {2})
        self.assertEqual({frame.first.spatial for frame in self.frames() if frame.first.key}, {0, 1, 2})
        self.assert_whole()

    def test_both_ways_at_keyframes(self) -> None:
        """Another spatial layer, up or down, begins with a key picture that is asked for; fewer frames at once."""
        self.play(4)
        for spatial in (0, 2, 1):
            self.allow(spatial, 2)
            self.room.wait(0.5)
            self.play(12)
            self.assertEqual({s for s, _ in self.layers(self.frames()[-4:])}, {spatial})
            self.allow(spatial, 0)
            self.assertEqual(self.layers(self.play(8)), {(spatial, 0)})
        self.assert_whole()

    def test_a_layer_that_ends(self) -> None:
        """When the publisher stops its highest layer the next one is asked for, and the other way round."""
        self.play(4)
        self.source.spatial = 2
        self.play(16)
        self.assertEqual({s for s, _ in self.layers(self.frames()[-4:])}, {1})
        self.source.spatial = 3
        self.source.wanted = True
        self.play(16)
        self.assertEqual({s for s, _ in self.layers(self.frames()[-4:])}, {2})
        self.assert_whole()

    def test_a_layer_that_falls_silent(self) -> None:
        """The same when it stops without a word."""
        self.play(4)
        source = self.source
        for _ in range(30):
            source.wanted = source.wanted or bool(self.alice.take(PictureLoss))
            self.alice.send(*(each for each in source.picture() if each not in self._top(source)))
            self.room.wait(0.05)
        self.assertEqual({s for s, _ in self.layers(self.frames()[-4:])}, {1})

    def test_slow_pictures(self) -> None:
        """With one picture a second no layer has stopped because it is late within a picture."""
        self.play(4)
        self.room.wait(1)
        self.alice.rtcp.clear()
        for _ in range(6):
            made = self.source.picture()
            self.alice.send(*made[:4])
            self.room.wait(0.1)
            self.alice.send(*made[4:])
            self.room.wait(0.9)
        self.assertEqual(self.alice.take(PictureLoss), [])
        self.assertEqual({s for s, _ in self.layers(self.frames()[-6:])}, {2})

    @staticmethod
    def _top(source: LayeredCamera) -> list[RtpPacket]:
        """The packets of the highest layer of the last picture."""
        return list(source.history.values())[-source.parts :]

    def test_cost(self) -> None:
        """What a layer takes is what of the others it needs: nothing but in key pictures."""
        self.play(80)
        found = {(each.spatial, each.temporal): each.bitrate for each in self.downlink.qualities(self.room.now)}
        self.assertLess(found[2, 2], found[0, 2] + 0.6 * found[1, 2])


class OpaqueTests(KeyTests):
    """AV1 under end-to-end encryption: nothing is known but the descriptor, and payloads look like anything."""

    values = {"independent": True, "own": False}
    strip = staticmethod(lambda payload: plain(payload[1:]))

    def setUp(self) -> None:
        super().setUp()
        self.source.opaque = True

    def test_begins_with_a_keyframe(self) -> None:
        """Each payload looks like the start of a coded video sequence; the descriptor alone says which is."""
        carol = self.room.client()
        self.play(3)
        carol.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera(), 6000, codecs=(AV1,)))
        self.source.play(3)
        self.assertEqual(carol.of(6000), [])
        self.source.wanted = True
        self.source.play(1)
        self.assertEqual(undecodable(received(carol.of(6000), type(self).strip)), [])


class OwnDescriptorTests(DependentTestCase):
    """VP9 in L3T3 without the dependency descriptor."""

    values = {"described": False}

    def test_everything_by_default(self) -> None:
        """The stream goes through as it came."""
        self.play(8)
        self.assertEqual([packet.payload for packet in self.bob.rtp], [p.payload for p in self.source.history.values()])
        self.assertEqual(self.alice.media.tracks["camera"].layers, ("low", "mid", "high"))
        self.assert_whole()

    def test_layers(self) -> None:
        """Down with the next picture, up at a keyframe, fewer frames at once and more where U says so."""
        self.play(4)
        for spatial, temporal in ((2, 0), (2, 2), (1, 1), (0, 0), (0, 2), (2, 1), (2, 2)):
            self.allow(spatial, temporal)
            self.play(14)
            came = self.layers(self.play(8))
            self.assertEqual(came, {(s, t) for s in range(spatial + 1) for t in range(temporal + 1)})
        self.assert_whole()

    def test_qualities(self) -> None:
        """What each layer takes, all below it included."""
        self.play(60)
        found = {(each.spatial, each.temporal): each.bitrate for each in self.downlink.qualities(self.room.now)}
        self.assertEqual(set(found), self.ALL)
        self.assertLess(found[1, 2], found[2, 2])

    def test_picture_ids_stay(self) -> None:
        """What is left out leaves picture ids as they are: other frames refer to each other by their differences."""
        self.play(4)
        self.allow(1, 0)
        self.play(12)
        there = {packet.payload for packet in self.source.history.values()}
        self.assertEqual({packet.payload for packet in self.bob.of(5000)} - there, set())


class SwitchTests(SynchronousTestCase):
    """Two simulcast layers of VP9, each with descriptors of its own count."""

    def test_fewer_frames(self) -> None:
        """A bound on the temporal layers of a simulcast layer holds, where the descriptor says which they are."""
        room = Room()
        alice, bob = room.client(), room.client()
        alice.publish(Uplinked("camera", "0", "video", (VP9,), DESCRIBED, rids=("l", "h")))
        cameras = [LayeredCamera(alice, 20 + place, rid=rid, spatial=1) for place, rid in enumerate("lh")]
        theirs = Codec(120, "video/VP9", 90000, rtx_payload_type=121, feedback=VIDEO_FEEDBACK)
        known = {MID: 9, DEPENDENCY_DESCRIPTOR: DESCRIPTOR_ID}
        bob.media.subscribe(alice.media.tracks["camera"], downlinked(camera(), codecs=(theirs,), extensions=known))
        for spatial, temporal in ((0, 2), (1, 1), (1, 2), (0, 0)):
            bob.media._downlinks["camera"].allow(Quality(spatial, temporal, 0.0), room.now)
            for count in range(32):
                if count == 16:
                    before = len(received(bob.of(5000), plain9))
                wanted = {each.media_ssrc for each in alice.take(PictureLoss)}  # type: ignore[union-attr]
                for each in cameras:
                    each.wanted = each.wanted or each.ssrc in wanted
                    alice.send(*each.picture())
                room.wait(0.05)
            came = received(bob.of(5000), plain9)[before:]
            self.assertEqual({frame.first.serial >> 16 for frame in came}, {20 + spatial})
            self.assertEqual({frame.layer for frame in came}, {(0, layer) for layer in range(temporal + 1)})

    def test_numbers_go_on(self) -> None:
        """Picture id, TL0PICIDX and the descriptor's frame number go on over a switch."""
        room = Room()
        alice, bob = room.client(), room.client()
        alice.publish(Uplinked("camera", "0", "video", (VP9,), DESCRIBED, rids=("l", "h")))
        cameras = [LayeredCamera(alice, 20 + place, rid=rid, spatial=1) for place, rid in enumerate("lh")]
        cameras[0].picture_id, cameras[0].frame_number, cameras[0].base = 77, 7777, 3
        theirs = Codec(120, "video/VP9", 90000, rtx_payload_type=121, feedback=VIDEO_FEEDBACK)
        bob.media.subscribe(
            alice.media.tracks["camera"],
            downlinked(camera(), codecs=(theirs,), extensions={MID: 9, DEPENDENCY_DESCRIPTOR: DESCRIPTOR_ID}),
        )
        for layer in ("auto", "low", "high", "low"):
            bob.media.set_layer("camera", layer)
            for _ in range(16):
                wanted = {each.media_ssrc for each in alice.take(PictureLoss)}  # type: ignore[union-attr]
                for each in cameras:
                    each.wanted = each.wanted or each.ssrc in wanted
                    alice.send(*each.picture())
                room.wait(0.05)
        frames = received(bob.of(5000), plain9)
        self.assertEqual({frame.first.serial >> 16 for frame in frames}, {20, 21})
        self.assertEqual((holes(bob.of(5000)), undecodable(frames)), ([], []))
        found = [vp9.parse(frame.packets[0].payload) for frame in frames]
        steps = [((after.picture_id or 0) - (before.picture_id or 0)) & 0x7FFF for before, after in pairwise(found)]
        self.assertEqual(set(steps), {1})
        bases = [
            ((after.base or 0) - (before.base or 0)) & 0xFF == (after.temporal == 0)
            for before, after in pairwise(found)
        ]
        self.assertEqual(set(bases), {True})
        numbers = [descriptor.frame for descriptor, _ in descriptors(bob.of(5000)) if descriptor.first]
        self.assertEqual({(after - before) & 0xFFFF for before, after in pairwise(numbers)}, {1})
        # What is left out leaves differences of picture ids as they were.
        bob.media._downlinks["camera"].allow(Quality(0, 0, 0.0), room.now)
        for _ in range(12):
            alice.send(*cameras[0].picture())
            room.wait(0.05)
        found = [vp9.parse(frame.packets[0].payload) for frame in received(bob.of(5000), plain9)[-2:]]
        self.assertEqual(((found[1].picture_id or 0) - (found[0].picture_id or 0)) & 0x7FFF, 4)
