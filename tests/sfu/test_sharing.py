"""Whole subscribers behind links of their own: what each gets of a simulcast camera and a microphone."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.departures import OVERHEAD
from orama.sfu.media import PeerMedia
from orama.sfu.values import MID, TRANSPORT_CC
from orama.wire.rtcp import PictureLoss, ReceiverEstimate, ReceiverReport, ReportBlock, RtcpPacket
from orama.wire.rtp import RtpPacket
from orama.wire.transport_cc import TransportFeedback
from tests.sfu.clients import Room, Source, camera, downlinked, microphone
from tests.sfu.links import Link, Receiver

#: Bits a second of the layers, headers included.
RATES = {"q": 150e3, "h": 500e3, "f": 1500e3}
SPATIAL = {"q": 0, "h": 1, "f": 2}
AUDIO, VIDEO, RTX = 7000, 5000, 5001


class Publisher:
    """A browser with a microphone and a camera of three layers at 20 frames a second; PLI makes a keyframe."""

    def __init__(self, room: Room, random: Random) -> None:
        self.client = room.client()
        self.random = random
        self.client.publish(camera(rids=("q", "h", "f")), microphone(ssrcs=((2, None),)))
        self.layers = {rid: Source(self.client, 10 + at, rid=rid) for at, rid in enumerate(RATES)}
        self.voice = Source(self.client, 2, 111, mid="1")
        self.client.on_rtcp = self._asked
        self._wanted = set(RATES)
        self._step = 0

    def _asked(self, packet: RtcpPacket) -> None:
        if isinstance(packet, PictureLoss):
            self._wanted |= {rid for rid, source in self.layers.items() if source.ssrc == packet.media_ssrc}

    def step(self) -> None:
        """10 ms: audio each 20, a frame of each layer each 50."""
        self._step += 1
        if self._step % 2 == 0:
            self.client.send(self.voice.packet(bytes(80)))
        if self._step % 5:
            return
        for rid, source in self.layers.items():
            key = rid in self._wanted
            self._wanted.discard(rid)
            octets = RATES[rid] / 8 / 20 * self.random.uniform(0.8, 1.2) * (3 if key else 1)
            count = int(octets / 1100) + 1
            self.client.send(*source.frame(count, key, max(1, int(octets / count) - OVERHEAD), 4500))


class Subscriber:
    """A browser behind a link: what comes through it, and the feedback about it."""

    def __init__(self, room: Room, publisher: Publisher, link: Link, extensions: dict[str, int] | None = None) -> None:
        self.room, self.link = room, link
        self.client = room.client()
        self.client.lossy = self._came
        self.receiver = Receiver(link, self._feed)
        self.sent: dict[int, int] = {AUDIO: 0, VIDEO: 0, RTX: 0}
        self.lost: dict[int, int] = {AUDIO: 0, VIDEO: 0, RTX: 0}
        #: (time, seconds on the way) of audio packets.
        self.delays: list[tuple[float, float]] = []
        known = {MID: 9, TRANSPORT_CC: 3} if extensions is None else extensions
        tracks = publisher.client.media.tracks
        self.client.media.subscribe(tracks["camera"], downlinked(camera(), VIDEO, rtx_ssrc=RTX, extensions=known))
        self.client.media.subscribe(tracks["microphone"], downlinked(microphone(), AUDIO, mid="8", extensions=known))

    def _came(self, packet: RtpPacket) -> bool:
        """Always lost to the client itself, whose memory need not grow; the link is what counts."""
        now, size = self.room.now, len(packet.payload) + packet.padding + OVERHEAD
        arrival = self.link.send(size, now)
        self.sent[packet.ssrc] += 1
        if arrival is None:
            self.lost[packet.ssrc] += 1
        elif packet.ssrc == AUDIO:
            self.delays.append((now, arrival - now))
        number = dict(packet.extensions).get(3)
        if number is not None:
            self.receiver.came(int.from_bytes(number, "big"), size, arrival)
        return True

    def _feed(self, body: bytes, now: float) -> None:
        self.client.send_rtcp(TransportFeedback.parse(body))

    @property
    def layer(self) -> int | None:
        """The spatial layer that the camera is given, None while it is paused."""
        share = self.client.media.stats().shares["camera"]
        return None if share.quality is None else share.quality.spatial

    @property
    def estimate(self) -> float:
        return self.client.media.stats().estimate or 0.0

    def delay(self, since: float) -> float:
        """The 95th percentile of the seconds that audio took."""
        found = sorted(delay for time, delay in self.delays if time >= since)
        return found[int(len(found) * 0.95)]


class SharingTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.random = Random(5)
        self.publisher = Publisher(self.room, self.random)
        self.subscribers: list[Subscriber] = []
        self.run_for(0.5)

    def subscriber(self, rate: float, delay: float = 0.03, **values: float) -> Subscriber:
        found = Subscriber(self.room, self.publisher, Link(self.random, rate, delay, **values))
        self.subscribers.append(found)
        return found

    def run_for(self, seconds: float) -> None:
        for step in range(round(seconds * 100)):
            self.room.clock.advance(0.01)
            self.publisher.step()
            if step % 5 == 0:
                self.room.fabric.begin()
                for client in self.room.clients:
                    client.media.tick(self.room.now)
                self.room.fabric.end()
            for each in self.subscribers:
                each.receiver.run(self.room.now)
            self.room.clock.advance(0)


class LinkTests(SharingTestCase):
    def test_a_narrow_link_is_nobody_elses(self) -> None:
        """300 kbit/s get the audio whole and the low layer, soon and for good; who has 5 Mbit/s gets the best."""
        narrow, wide = self.subscriber(300e3), self.subscriber(5e6)
        self.run_for(6)
        since = self.room.now
        narrow.lost[AUDIO] = 0
        layers = set()
        for _ in range(20):
            self.run_for(0.5)
            layers.add(narrow.layer)
        self.assertEqual((layers, wide.layer), ({0}, 2))
        self.assertEqual((narrow.lost[AUDIO], wide.lost[AUDIO]), (0, 0))
        self.assertLess(narrow.delay(since), 0.4)
        self.assertLess(wide.delay(0), 0.2)
        self.assertTrue(0.7 * 300e3 < narrow.estimate < 1.2 * 300e3, narrow.estimate)

    def test_asked_for(self) -> None:
        """A better layer that the client asks for comes at once where its link has room for it."""
        bob = self.subscriber(5e6)
        self.run_for(6)
        self.assertEqual(bob.layer, SPATIAL["f"])
        bob.client.media.set_layer("camera", "low")
        self.run_for(5)
        self.assertEqual(bob.layer, SPATIAL["q"])
        bob.client.media.set_layer("camera", "high")
        self.run_for(0.3)
        self.assertEqual(bob.layer, SPATIAL["f"])

    def test_asked_for_too_much(self) -> None:
        """To ask for a better layer makes no link wider: there is no more under way than before, and sound is whole."""
        bob = self.subscriber(300e3)
        self.run_for(10)
        lost = bob.lost[AUDIO]
        for layer in ("low", "high") * 10:
            bob.client.media.set_layer("camera", layer)
            self.run_for(0.5)
        self.assertEqual((bob.layer, bob.lost[AUDIO] - lost), (SPATIAL["q"], 0))

    def test_less_than_the_lowest_layer(self) -> None:
        """A link that takes audio alone gets audio alone: the video pauses, and comes back with the link."""
        poor = self.subscriber(120e3)
        self.run_for(8)
        self.assertIsNone(poor.layer)
        poor.lost[AUDIO] = 0
        since = self.room.now
        self.run_for(10)
        self.assertEqual(poor.lost[AUDIO], 0)
        self.assertLess(poor.delay(since), 0.4)
        poor.link.rate = 5e6
        self.run_for(40)
        self.assertEqual(poor.layer, 2)

    def test_a_link_that_changes(self) -> None:
        """A link that falls from 4 Mbit/s to 400 kbit/s has the low layer within 2 s, and the best again within 20."""
        link = self.subscriber(4e6)
        self.run_for(6)
        self.assertEqual(link.layer, 2)
        link.link.rate = 400e3
        self.run_for(2)
        self.assertEqual(link.layer, 0)
        link.link.rate = 4e6
        self.run_for(20)
        self.assertEqual(link.layer, 2)

    def test_what_is_under_way_is_bounded(self) -> None:
        """On a link that stops, video stops too, after what the bound allows; audio goes on; then it begins anew."""
        link = self.subscriber(2.5e6)
        self.run_for(8)
        link.link.rate = 300e3
        self.run_for(6)
        link.link.rate, link.link.queue = 1.0, 1e9
        before, audio = link.sent[VIDEO], link.sent[AUDIO]
        self.run_for(10)
        self.assertLess((link.sent[VIDEO] - before) * 1000, 120_000)
        self.assertEqual(link.sent[AUDIO] - audio, 500)
        self.assertGreater(self.room.counters.dropped["congested"], 0)
        link.link.rate, link.link.free = 3e6, self.room.now
        stopped = link.sent[VIDEO]
        self.run_for(5)
        self.assertGreater(link.sent[VIDEO], stopped + 20)


class Screen:
    """A screen of one quality: a picture of 200 kB every ten seconds and on PLI, little between them; a microphone."""

    def __init__(self, room: Room) -> None:
        self.client = room.client()
        self.client.publish(camera(ssrcs=((1, 11),)), microphone(ssrcs=((2, None),)))
        self.picture, self.voice = Source(self.client, 1), Source(self.client, 2, 111, mid="1")
        self.client.on_rtcp = self._asked
        self.asked, self._wanted, self._step = 0, True, 0

    def _asked(self, packet: RtcpPacket) -> None:
        if isinstance(packet, PictureLoss):
            self.asked, self._wanted = self.asked + 1, True

    def step(self) -> None:
        """10 ms."""
        self._step += 1
        if self._step % 2 == 0:
            self.client.send(self.voice.packet(bytes(80)))
        if self._step % 10 == 0:
            large = self._wanted or self._step % 1000 == 0
            self.client.send(*self.picture.frame(200 if large else 1, self._wanted, 1000 if large else 300, 9000))
            self._wanted = False


class ScreenTests(SharingTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.publisher = Screen(self.room)  # type: ignore[assignment]

    def test_large_pictures(self) -> None:
        """Pictures that take the link two seconds each are no reason to pause, or to ask for more of them."""
        viewer = self.subscriber(800e3, queue=5.0)
        self.run_for(4)
        asked, sent = self.publisher.asked, viewer.sent[VIDEO]  # type: ignore[attr-defined]
        for _ in range(20):
            self.run_for(1)
            self.assertEqual(viewer.layer, 0)
        self.assertEqual(self.publisher.asked, asked)  # type: ignore[attr-defined]
        self.assertEqual(viewer.sent[VIDEO] - sent, 2 * 200 + 198)
        self.assertEqual(viewer.lost, {AUDIO: 0, VIDEO: 0, RTX: 0})
        self.assertTrue(0.6 * 800e3 < viewer.estimate < 1.2 * 800e3, viewer.estimate)


class WithoutFeedbackTests(SharingTestCase):
    def test_nothing_negotiated(self) -> None:
        """A client that tells nothing gets everything, as without an estimate."""
        link = Link(self.random, 300e3)
        silent = Subscriber(self.room, self.publisher, link, {MID: 9})
        self.run_for(3)
        stats = silent.client.media.stats()
        self.assertEqual((stats.estimate, stats.shares), (None, {}))
        self.assertGreater(silent.sent[VIDEO], 150 * 2.5)
        self.assertEqual(silent.sent[RTX], 0)

    def test_remb(self) -> None:
        """A client that sends REMB gets what it asks for, at once, and no padding."""
        silent = Subscriber(self.room, self.publisher, Link(self.random, 5e6), {MID: 9})
        self.run_for(1)
        silent.client.send_rtcp(ReceiverEstimate(9, 700_000, (VIDEO,)))
        self.run_for(0.2)
        self.assertEqual(silent.layer, 1)
        silent.client.send_rtcp(ReceiverEstimate(9, 3_000_000, (VIDEO,)))
        self.run_for(3)
        self.assertEqual(silent.layer, 2)
        self.assertEqual(silent.sent[RTX], 0)

    def test_numbers_without_feedback(self) -> None:
        """A client that takes transport-wide numbers and says nothing of them is never held back for that."""
        client = self.room.client()
        track = self.publisher.client.media.tracks["camera"]
        client.media.subscribe(track, downlinked(camera(), VIDEO, extensions={MID: 9, TRANSPORT_CC: 3}))
        for _ in range(15):
            self.run_for(1)
            client.send_rtcp(ReceiverEstimate(9, 3_000_000, (VIDEO,)))
            client.send_rtcp(ReceiverReport(9, (ReportBlock(VIDEO, 30),)))
            self.assertGreater(len(client.of(VIDEO)), 120)
            client.rtp.clear()
        self.assertIsNone(client.media._outbox.departures)

    def test_reports_alone(self) -> None:
        """A client that only reports loses quality for much loss, and for a little none."""
        silent = Subscriber(self.room, self.publisher, Link(self.random, 5e6), {MID: 9})
        for lost, layer in ((10, None), (100, 1)):
            for _ in range(3):
                blocks = (ReportBlock(VIDEO, lost), ReportBlock(AUDIO, lost))
                silent.client.send_rtcp(ReceiverReport(9, blocks))
                self.run_for(1)
            stats = silent.client.media.stats()
            if layer is None:
                self.assertEqual((stats.estimate, stats.shares), (None, {}))
            else:
                self.assertLess(silent.layer or 0, 2)
        self.run_for(1)
        for _ in range(60):
            silent.client.send_rtcp(ReceiverReport(9, (ReportBlock(VIDEO, 0), ReportBlock(AUDIO, 0))))
            self.run_for(1)
        self.assertIsNone(silent.client.media.stats().estimate)

    def test_switched_off(self) -> None:
        """Without estimates everything is forwarded whatever the client says, and nothing is noted."""
        client = self.room.client(secure=False)
        later, counters = self.room.fabric.later, self.room.counters
        client.media = PeerMedia(self.room.clock, self.random, client._arrived, later, counters, estimates=False)
        client.secure()
        track = self.publisher.client.media.tracks["camera"]
        client.media.subscribe(track, downlinked(camera(), VIDEO, extensions={MID: 9, TRANSPORT_CC: 3}))
        self.run_for(1)
        client.send_rtcp(ReceiverEstimate(9, 100_000, (VIDEO,)))
        client.send_rtcp(TransportFeedback(1, VIDEO, 1, 0, 0, (4,) * 20))
        client.rtp.clear()
        self.run_for(1)
        self.assertGreater(len(client.of(VIDEO)), 120)
        stats = client.media.stats()
        self.assertEqual((client.media._outbox.departures, stats.estimate, stats.shares), (None, None, {}))

    def test_audio_alone_costs_nothing(self) -> None:
        """Without video nothing is noted, read or estimated."""
        client = self.room.client()
        track = self.publisher.client.media.tracks["microphone"]
        client.media.subscribe(track, downlinked(microphone(), AUDIO, extensions={TRANSPORT_CC: 3}))
        self.run_for(1)
        client.send_rtcp(TransportFeedback(1, AUDIO, 1, 0, 0, (4,) * 20))
        self.assertIsNone(client.media._outbox.departures)
        self.assertIsNone(client.media.stats().estimate)


class HostileTests(SharingTestCase):
    def test_feedback_about_anything(self) -> None:
        """Feedback about numbers and times of no meaning harms nobody else, and the call goes on."""
        liar, honest = self.subscriber(5e6), self.subscriber(5e6)
        random = Random(3)
        for _ in range(100):
            deltas = tuple(random.choice((None, 0, 255, -32768, 32767)) for _ in range(random.randrange(1, 60)))
            base, reference = random.randrange(65536), random.randrange(-0x800000, 0x800000)
            liar.client.send_rtcp(TransportFeedback(1, 2, base, reference, 0, deltas))
            self.run_for(0.05)
        self.run_for(3)
        self.assertEqual(honest.layer, 2)
        self.assertEqual(liar.sent[AUDIO], honest.sent[AUDIO])

    def test_wishes_of_the_estimate_are_bounded(self) -> None:
        """A client that claims to get everything at once makes us pad no more than the limit."""
        self.subscriber(1e12, 0.0)
        self.run_for(5)
        padded = self.room.counters.padding
        self.run_for(10)
        self.assertEqual(self.room.counters.padding, padded)
