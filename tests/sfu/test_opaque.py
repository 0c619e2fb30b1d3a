"""Frames that are encrypted from end to end: headers and extensions say what the SFU has to know."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.values import DEPENDENCY_DESCRIPTOR, Uplinked
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import EXTENSIONS, VP8, Room, Source, downlinked

#: A dependency descriptor's first bytes: start and end of a frame; the same that brings a new structure.
DELTA, KEY = bytes((0xC0, 0, 1)), bytes((0xC0, 0, 1, 0x80, 0, 0))
#: VP8 whose payload descriptor is readable and whose frame is not: by its first byte it is a keyframe, or none.
LIKE_A_KEYFRAME, LIKE_NONE = b"\x10\x00" + bytes(60), b"\x10\xff" + bytes(60)


class OpaqueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.sender, self.receiver = self.room.client(), self.room.client()
        extensions = {**EXTENSIONS, DEPENDENCY_DESCRIPTOR: 12}
        self.sender.publish(Uplinked("camera", "0", "video", (VP8,), extensions))
        self.source = Source(self.sender, 1234)

    def send(self, payload: bytes, descriptor: bytes | None) -> RtpPacket:
        self.source.timestamp += 3000
        more = [] if descriptor is None else [(12, descriptor)]
        packet = self.source.packet(payload, True, more)
        self.sender.send(packet)
        return packet

    def begin(self, ssrc: int) -> None:
        track = self.sender.media.tracks["camera"]
        self.receiver.media.subscribe(track, downlinked(Uplinked("camera", "0", "video", (VP8,), {}), ssrc=ssrc))

    def payloads(self, ssrc: int) -> list[bytes]:
        return [packet.payload for packet in self.receiver.of(ssrc)]

    def test_descriptors_alone(self) -> None:
        """Once a descriptor has named a keyframe only descriptors do: a subscription begins where they say, whatever
        the first byte of an encrypted frame looks like."""
        self.send(LIKE_NONE, KEY)
        self.begin(5000)
        for _ in range(3):
            self.send(LIKE_A_KEYFRAME, DELTA)
        self.assertEqual(self.payloads(5000), [])
        self.send(LIKE_NONE, KEY)
        self.send(LIKE_A_KEYFRAME, DELTA)
        self.assertEqual(self.payloads(5000), [LIKE_NONE, LIKE_A_KEYFRAME])

    def test_without(self) -> None:
        """Without descriptors the first byte says it, and has to be readable."""
        self.send(LIKE_NONE, None)
        self.begin(5000)
        self.send(LIKE_NONE, None)
        self.assertEqual(self.payloads(5000), [])
        self.send(LIKE_A_KEYFRAME, None)
        self.assertEqual(self.payloads(5000), [LIKE_A_KEYFRAME])

    def test_bytes_untouched(self) -> None:
        """What goes out is what came in, to the last byte."""
        self.send(LIKE_NONE, KEY)
        self.begin(5000)
        secret = b"\x10" + bytes(range(256)) * 4
        self.send(LIKE_NONE, KEY)
        self.send(secret, DELTA)
        self.assertEqual(self.payloads(5000)[-1], secret)
