"""One subscription that shows the tracks of one publisher after another."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.values import Codec
from orama.wire.rtcp import Nack, PictureLoss, SenderReport
from tests.sfu.clients import VIDEO_FEEDBACK, Client, Room, Source, camera, downlinked

NTP = 1 << 32
H264 = Codec(102, "video/H264", 90000, rtx_payload_type=103, feedback=VIDEO_FEEDBACK)


class ShowingTests(SynchronousTestCase):
    """Bob gets Alice's camera under SSRC 5000, RTX 5001, and Carol's in its place when we say so."""

    def setUp(self) -> None:
        self.room = Room()
        self.alice, self.bob, self.carol = (self.room.client() for _ in range(3))
        for client in (self.alice, self.carol):
            client.publish(camera())
        self.sources = {client: Source(client, 1 + 10 * i) for i, client in enumerate((self.alice, self.carol))}
        self.bob.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera()))

    def show(self, client: Client) -> None:
        self.bob.media.show("camera", client.media.tracks["camera"])

    def send(self, client: Client, key: bool = False) -> None:
        client.send(*self.sources[client].frame(key=key))

    def test_time_goes_on(self) -> None:
        """Time is that of our clock when the publisher is another, however far the publishers' own clocks are apart."""
        for client, ahead in ((self.alice, 0), (self.carol, 3)):
            source = self.sources[client]
            client.send(source.packet(b"\x10\x11first"))
            client.send_rtcp(SenderReport(source.ssrc, (1000 + ahead) * NTP, source.timestamp, 1, 1))
        self.send(self.alice, key=True)
        self.room.wait(1)
        self.send(self.alice)
        self.room.wait(0.1)
        self.show(self.carol)
        self.send(self.carol, key=True)
        before, after = self.bob.rtp[5], self.bob.rtp[6]
        self.assertEqual((after.sequence_number - before.sequence_number) & 0xFFFF, 1)
        self.assertLess(abs(((after.timestamp - before.timestamp) & 0xFFFFFFFF) - 9000), 90)

    def test_from_a_keyframe(self) -> None:
        """The other begins with a keyframe, which is asked for, and nothing of the first comes any more."""
        self.send(self.alice, key=True)
        self.send(self.carol)
        self.room.wait(1)
        self.carol.rtcp.clear()
        self.show(self.carol)
        self.room.wait(0.05)
        self.assertEqual(len(self.carol.take(PictureLoss)), 1)
        self.send(self.alice, key=True)
        self.send(self.carol)
        self.assertEqual(len(self.bob.rtp), 3)
        self.send(self.carol, key=True)
        self.assertEqual(len(self.bob.rtp), 6)
        self.assertEqual({packet.ssrc for packet in self.bob.rtp}, {5000})

    def test_repairs(self) -> None:
        """What was lost of the one is sent again while the other is shown."""
        self.bob.lossy = lambda packet: len(self.bob.rtp) == 1 and packet.ssrc == 5000
        self.send(self.alice, key=True)
        self.bob.lossy = lambda packet: False
        self.show(self.carol)
        missing = (self.bob.rtp[0].sequence_number + 1) & 0xFFFF
        self.bob.send_rtcp(Nack(9, 5000, (missing,)))
        (repair,) = self.bob.of(5001)
        self.assertEqual(int.from_bytes(repair.payload[:2], "big"), missing)

    def test_other_codec(self) -> None:
        """A track in a codec that the client has not accepted on this m-line is not sent, and does no harm."""
        self.carol.publish(evolve(camera(), codecs=(H264,)))
        self.send(self.alice, key=True)
        self.show(self.carol)
        source = Source(self.carol, 77, 102)
        self.carol.send(source.packet(b"\x65keyframe", marker=True))
        self.assertEqual(len(self.bob.rtp), 3)
        self.show(self.alice)
        self.send(self.alice, key=True)
        self.assertEqual(len(self.bob.rtp), 6)

    def test_ended(self) -> None:
        """When the track that was shown before ends, the subscription goes on."""
        self.show(self.carol)
        self.alice.publish()
        self.send(self.carol, key=True)
        self.assertEqual(len(self.bob.rtp), 3)
        self.assertEqual(self.bob.media.subscribed(), {"camera"})
