"""What Chromium 156 sent with layers, as it came: descriptors, first bytes and sizes; the rest is zeros.

Each line is a packet: sequence number and timestamp from the first one on, marker, size of the payload, its first
bytes, the dependency descriptor, and the rid where there is simulcast.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.qualities import Quality
from orama.sfu.values import DEPENDENCY_DESCRIPTOR, MID, Uplinked
from orama.wire.dependency import Descriptor
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import VP8, Room, camera, downlinked
from tests.sfu.layered import AV1, DESCRIBED, DESCRIPTOR_ID, VP9, descriptors, holes

RECORDED = Path(__file__).parent.parent / "data" / "layers"
#: Of each stream, by rid.
SSRCS = {"": 1, "l": 20, "h": 21}
PAYLOAD_TYPES = {"vp8": 96, "vp9": 98, "av1": 45}
KNOWN = {MID: 9, DEPENDENCY_DESCRIPTOR: DESCRIPTOR_ID}


def recorded(name: str) -> list[RtpPacket]:
    """The packets of a file."""
    found = []
    for line in (RECORDED / name).read_text().splitlines():
        index, timestamp, marker, size, head, descriptor, *rid = line.split(" ")
        ssrc = SSRCS[rid[0] if rid else ""]
        extensions = [(4, b"0"), (12, bytes.fromhex(descriptor)), *((10, each.encode()) for each in rid)]
        payload = bytes.fromhex(head).ljust(int(size), b"\0")
        payload_type = PAYLOAD_TYPES[name[:3]]
        made = RtpPacket(payload_type, int(index), int(timestamp), ssrc, payload, marker == "1", (), tuple(extensions))
        found.append(made)
    return found


class RecordedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob = self.room.client(), self.room.client()

    def publish(self, name: str, rids: tuple[str, ...] = ()) -> None:
        codec = {"vp8": VP8, "vp9": VP9, "av1": AV1}[name[:3]]
        ssrcs = () if rids else ((1, 11),)
        self.alice.publish(Uplinked("camera", "0", "video", (codec,), DESCRIBED, ssrcs, rids))
        track = self.alice.media.tracks["camera"]
        self.bob.media.subscribe(track, downlinked(camera(), codecs=(codec,), extensions=KNOWN))

    def send(self, packets: list[RtpPacket]) -> None:
        """A picture at a time, 33 ms apart."""
        for _, picture in groupby(packets, lambda packet: (packet.ssrc, packet.timestamp)):
            self.alice.send(*picture)
            self.room.wait(0.05)

    def allow(self, spatial: int, temporal: int) -> None:
        self.bob.media._downlinks["camera"].allow(Quality(spatial, temporal, 0.0), self.room.now)

    def frames(self) -> list[tuple[Descriptor, tuple[int, int]]]:
        """The frames that came, each with its layer. All that they refer to has come before them."""
        packets = self.bob.of(5000)
        self.assertEqual(holes(packets), [])
        found, there = [], set[int]()
        for packet, (descriptor, structure) in zip(packets, descriptors(packets), strict=True):
            template = descriptor.resolved(structure)
            for back in template.differences:
                self.assertIn(descriptor.frame - back & 0xFFFF, there)
            if descriptor.last:
                there.add(descriptor.frame)
                found.append((descriptor, (template.spatial, template.temporal)))
            if packet.marker:
                self.assertTrue(descriptor.last)
        # Whatever is forwarded of a picture, a marker ends it. One stands before that only where a layer begins within
        # a picture, when Chromium takes it up without a keyframe.
        early = 0
        for _, picture in groupby(packets, lambda packet: packet.timestamp):
            marks = [packet.marker for packet in picture]
            self.assertTrue(marks[-1])
            early += sum(marks) - 1
        self.assertLessEqual(early, 1)
        return found

    def limited(self, name: str, spatial: int, temporal: int) -> set[tuple[int, int]]:
        """The layers of frames that come when a whole recording is played, limited so from the first packet on."""
        self.setUp()
        self.publish(name)
        self.allow(spatial, temporal)
        self.send(recorded(name))
        return {layer for _, layer in self.frames()}

    def test_any_limit(self) -> None:
        """VP9 and AV1 in L2T3 and L2T3_KEY, under each limit from the start: what is allowed, and all that it needs."""
        for name in ("vp9-l2t3", "vp9-l2t3-key", "av1-l2t3-key"):
            for spatial in range(2):
                for temporal in range(3):
                    came = self.limited(name, spatial, temporal)
                    self.assertEqual(max(came), (spatial, temporal))
                    self.assertLessEqual({layer[1] for layer in came if layer[0] == spatial}, set(range(temporal + 1)))

    def test_any_change(self) -> None:
        """The limit changes every five pictures: what comes can be decoded all the same."""
        for name in ("vp9-l2t3", "vp9-l2t3-key", "av1-l2t3-key"):
            self.setUp()
            self.publish(name)
            packets = recorded(name)
            for turn, at in enumerate(range(0, len(packets), 10)):
                self.allow(turn % 2, turn % 3)
                self.send(packets[at : at + 10])
            self.assertGreater(len(self.frames()), 20)

    def test_simulcast(self) -> None:
        """VP8 with descriptors has no picture ids, and its layers share one count of frames: a switch moves nothing."""
        self.publish("vp8", ("l", "h"))
        packets = recorded("vp8-simulcast")
        self.send(packets[:40])
        self.bob.media.set_layer("camera", "low")
        keys = [packet for packet in packets if packet.ssrc == 20 and len(dict(packet.extensions)[12]) > 9]
        self.assertGreater(len(keys), 1)
        self.send(packets[40:])
        self.assertEqual({layer[0] for _, layer in self.frames()}, {0})
        span = self.bob.media._downlinks["camera"]._span
        assert span is not None
        self.assertIsNone(span.projection)
