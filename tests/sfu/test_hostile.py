"""A client with keys that means harm: what it sends costs little, and costs nobody else anything."""

from __future__ import annotations

from collections.abc import Callable

from orama.net.fabric import Burst
from orama.sfu.media import LONGEST, MOST_NACKED, PeerMedia
from orama.sfu.stream import REPORT_PAUSE
from orama.wire.rtcp import Nack, SenderReport, Unknown
from orama.wire.transport_cc import TransportFeedback
from tests.sfu.clients import Client, camera, downlinked, random_keys
from tests.sfu.test_downlink import DownlinkTestCase


class HostileSubscriberTests(DownlinkTestCase):
    def test_asking_for_everything(self) -> None:
        """Beyond so many a second numbers that are asked for again are not even looked up."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        numbers = tuple(range(MOST_NACKED))
        for _ in range(3):
            self.bob.send_rtcp(Nack(9, 5000, numbers))
        self.assertEqual(self.room.counters.nacks_received, MOST_NACKED)
        self.assertEqual(self.dropped("nack_limit"), 2 * MOST_NACKED)
        self.room.wait(1)
        first = self.bob.of(5000)[0].sequence_number
        self.bob.send_rtcp(Nack(9, 5000, (first,)))
        self.assertEqual(len(self.bob.of(5001)), 1)

    def test_feedback_that_nobody_reads(self) -> None:
        """Transport-wide feedback of thousands of statuses beside a NACK is passed over, the NACK is answered."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        first = self.bob.of(5000)[0].sequence_number
        feedback = TransportFeedback(9, 5000, 0, 0, 0, (None,) * 8000 + (1,) * 4)
        self.bob.send_rtcp(*[feedback] * 3, Unknown(207, 0, b""), Nack(9, 5000, (first,)))
        self.assertEqual(len(self.bob.of(5001)), 1)

    def test_one_that_cannot_be_sent_to(self) -> None:
        """When sending to one subscriber fails its subscription ends; the others go on."""

        def transmit(packets: Burst) -> None:
            raise RuntimeError("a bug")

        later: Callable[[Callable[[], None]], None] = lambda flush: flush()  # noqa: E731
        broken = PeerMedia(self.room.clock, self.bob.media._random, transmit, later, self.room.counters)
        broken.secure(random_keys())
        track = self.alice.media.tracks["camera"]
        broken.subscribe(track, downlinked(camera()))
        self.subscribe()
        for _ in range(2):
            self.alice.send(*self.source.frame(200 // 2, key=True))
            self.alice.send(*self.source.frame(200 // 2))
        self.assertEqual(len(self.bob.rtp), 400)
        self.assertEqual(track.subscribers, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class HostilePublisherTests(DownlinkTestCase):
    def test_sender_reports(self) -> None:
        """Each one is believed, but only a few a second become one for every subscriber."""
        self.subscribe()
        self.alice.send(*self.source.frame(key=True))
        reports = [SenderReport(1, (100 << 32) + number, number, 0, 0) for number in range(40)]
        self.alice.send_rtcp(*reports)
        self.assertEqual(len(self.bob.take(SenderReport)), 1)
        self.room.wait(REPORT_PAUSE + 0.05)
        self.alice.send_rtcp(reports[0])
        self.assertEqual(len(self.bob.take(SenderReport)), 1)

    def test_long_packets(self) -> None:
        """What fits no path is not decrypted."""
        self.alice.send_raw([b"\x80" + bytes(LONGEST), b"\x80\xc8" + bytes(LONGEST)])
        self.assertEqual(self.dropped("too_long"), 2)
        self.assertEqual(self.dropped("not_authentic"), 0)


class LongLifeTests(DownlinkTestCase):
    def test_forgotten_numbers(self) -> None:
        """Of subscriptions that have ended only the SSRCs are kept that negotiation may come back to."""
        client: Client = self.bob
        for number in range(20):
            client.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera(), 6000 + 2 * number))
            self.alice.send(*self.source.frame(key=True))
            client.media.unsubscribe("camera")
            client.media.retain({6000, 6001})
        self.assertEqual(client.media._used.keys(), {6000, 6001})
        before = client.of(6000)[-1].sequence_number
        client.media.subscribe(self.alice.media.tracks["camera"], downlinked(camera(), 6000))
        self.alice.send(*self.source.frame(key=True))
        self.assertEqual(client.of(6000)[-3].sequence_number, before + 1)
