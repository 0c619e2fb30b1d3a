"""The media path of whole clients, joined through memory."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.wire.rtcp import PictureLoss
from tests.sfu.clients import PROFILES, Room, Source, camera, downlinked


class ForwardingTests(SynchronousTestCase):
    def test_forwards_in_every_profile(self) -> None:
        """What a publisher sends reaches a subscriber under the subscription's own SSRC, numbers and types."""
        for profile in PROFILES:
            room = Room()
            alice, bob = room.client(profile), room.client(profile)
            alice.publish(camera())
            bob.media.subscribe(alice.media.tracks["camera"], downlinked(camera()))
            source = Source(alice, 1111)
            alice.send(*source.frame())
            self.assertEqual(bob.rtp, [])
            room.wait(0.2)
            self.assertTrue(alice.take(PictureLoss))
            alice.send(*source.frame(key=True))
            alice.send(*source.frame())
            numbers = [packet.sequence_number for packet in bob.rtp]
            self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 6)))
            self.assertEqual({packet.ssrc for packet in bob.rtp}, {5000})
            self.assertEqual({packet.payload_type for packet in bob.rtp}, {120})
            self.assertEqual(
                [packet.payload for packet in bob.rtp], [p.payload for p in list(source.history.values())[3:]]
            )
