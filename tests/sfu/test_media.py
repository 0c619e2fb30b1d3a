"""Whole clients joined through memory: loss on both legs, isolation, long runs, what is left at the end."""

from __future__ import annotations

import gc
import weakref
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.stream import Stream
from orama.wire.rtcp import Nack, PictureLoss, RtcpPacket
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import PROFILES, Client, Room, Source, camera, downlinked, microphone


class Subscriber:
    """A receiver as a browser is one: it notices holes, asks again, undoes RTX, and plays what is whole."""

    def __init__(self, client: Client, ssrc: int = 5000) -> None:
        self.client, self.ssrc = client, ssrc
        self.got: dict[int, bytes] = {}
        self.asked: dict[int, int] = {}
        self.first = self.highest = -1
        self._read = 0

    def work(self) -> None:
        """Take what came, ask for what is missing."""
        for packet in self.client.rtp[self._read :]:
            if packet.ssrc == self.ssrc:
                self._take(packet.sequence_number, packet.payload)
            elif packet.ssrc == self.ssrc + 1:
                self._take(int.from_bytes(packet.payload[:2], "big"), packet.payload[2:])
        self._read = len(self.client.rtp)
        missing = self.missing()
        for number in missing:
            self.asked[number] = self.asked.get(number, 0) + 1
        if missing:
            self.client.send_rtcp(Nack(9, self.ssrc, tuple(number & 0xFFFF for number in missing)))

    def missing(self) -> list[int]:
        return [number for number in range(self.first, self.highest) if number not in self.got]

    def _take(self, number: int, payload: bytes) -> None:
        if self.first < 0:
            self.first = self.highest = number
        number += (self.highest - number + 0x8000) // 0x10000 * 0x10000
        if number in self.got:
            assert self.got[number] == payload, "one number, two contents"
        self.got[number] = payload
        self.highest = max(self.highest, number)


class PathTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.random = Random(11)

    def publisher(self, profile: str = PROFILES[0]) -> tuple[Client, Source]:
        """A publisher that answers NACK with RTX and PLI with a keyframe, as a browser does."""
        client = self.room.client(profile)
        client.publish(camera(ssrcs=((1, 11),)), microphone(ssrcs=((2, None),)))
        source = Source(client, 1, rtx=(11, 97))

        def answer(packet: RtcpPacket) -> None:
            if isinstance(packet, Nack):
                again = [source.again(each) for each in packet.sequence_numbers if each in source.history]
                self.room.clock.callLater(0.02, self.send, client, again)
            elif isinstance(packet, PictureLoss):
                self.room.clock.callLater(0.02, lambda: self.send(client, source.frame(key=True)))

        client.on_rtcp = answer
        return client, source

    def send(self, client: Client, packets: list[RtpPacket], loss: float | None = None) -> None:
        """Some of it, as the way up loses it."""
        rate = self.loss if loss is None else loss
        kept = [packet for packet in packets if self.random.random() >= rate]
        if kept:
            client.send(*kept)

    loss = 0.0

    def run_call(self, client: Client, source: Source, subscribers: list[Subscriber], seconds: float) -> None:
        """30 frames a second of 4 packets, and everybody's timed work."""
        for _ in range(round(seconds * 30)):
            self.send(client, source.frame(4))
            self.room.clock.advance(1 / 30)
            for each in self.room.clients:
                each.media.tick(self.room.now)
            self.room.clock.advance(0)
            for subscriber in subscribers:
                subscriber.work()

    def subscribe(self, publisher: Client, profile: str = PROFILES[0], lossy: float = 0.0) -> Subscriber:
        client = self.room.client(profile)
        client.lossy = lambda packet: self.random.random() < lossy
        client.media.subscribe(publisher.media.tracks["camera"], downlinked(camera()))
        return Subscriber(client)

    def test_every_profile_with_every_other(self) -> None:
        """Each client has its own profile; what one publishes all the others read."""
        for profile in PROFILES:
            self.room = Room()
            alice, source = self.publisher(profile)
            others = [self.subscribe(alice, other) for other in PROFILES]
            self.run_call(alice, source, others, 1)
            self.assertEqual([len(each.got) > 100 for each in others], [True] * 3)
            self.assertEqual([each.missing() for each in others], [[]] * 3)

    def test_three_percent_loss_up(self) -> None:
        """What is lost on the way up is recovered by our NACKs before anybody below misses it for good."""
        alice, source = self.publisher()
        bob = self.subscribe(alice)
        self.loss = 0.03
        self.run_call(alice, source, [bob], 20)
        self.loss = 0.0
        self.run_call(alice, source, [bob], 2)
        self.assertEqual(bob.missing(), [])
        self.assertGreater(self.room.counters.recovered, 50)
        self.assertGreater(len(bob.got), 2400)

    def test_three_percent_loss_down(self) -> None:
        """What is lost on the way down is recovered by RTX; the publisher hears nothing of it."""
        alice, source = self.publisher()
        bob = self.subscribe(alice, lossy=0.03)
        self.run_call(alice, source, [bob], 20)
        bob.client.lossy = lambda packet: False
        self.run_call(alice, source, [bob], 1)
        self.assertEqual(bob.missing(), [])
        self.assertGreater(self.room.counters.retransmitted, 50)
        self.assertEqual(self.room.counters.nacks_sent, 0)

    def test_loss_on_both_legs(self) -> None:
        """3 % up and 3 % down at once: everything arrives, every number once, with what belongs under it."""
        for profile in PROFILES:
            self.room = Room()
            alice, source = self.publisher(profile)
            bob = self.subscribe(alice, profile, lossy=0.03)
            self.loss = 0.03
            self.run_call(alice, source, [bob], 15)
            self.loss = 0.0
            bob.client.lossy = lambda packet: False
            self.run_call(alice, source, [bob], 2)
            self.assertEqual(bob.missing(), [], profile)
            sent = {packet.payload for packet in source.history.values()}
            self.assertTrue(set(bob.got.values()) <= sent)
            self.assertEqual(len(set(bob.got.values())), len(bob.got))

    def test_one_subscribers_loss_is_its_own(self) -> None:
        """A subscriber that loses a third, asks all the time and stays slow changes nothing for another."""
        alice, source = self.publisher()
        bob, carol = self.subscribe(alice, lossy=0.35), self.subscribe(alice)
        self.run_call(alice, source, [bob, carol], 10)
        self.assertEqual(carol.asked, {})
        self.assertEqual(carol.missing(), [])
        self.assertEqual(carol.client.of(5001), [])
        self.assertEqual(self.room.counters.nacks_sent, 0)
        self.assertGreater(self.room.counters.retransmitted, 200)

    def test_reordering(self) -> None:
        """Packets in another order, also across frames and both wraps, are neither lost nor doubled."""
        alice, source = self.publisher()
        alice.on_rtcp = lambda packet: None
        source.sequence = 65_400
        bob = self.subscribe(alice)
        alice.send(*source.frame(key=True))
        made: list[RtpPacket] = []
        for _ in range(200):
            made += source.frame(3)
        for at in range(0, len(made), 12):
            part = made[at : at + 12]
            self.random.shuffle(part)
            alice.send(*part)
        bob.work()
        self.assertEqual((bob.missing(), len(bob.got)), ([], 603))
        self.assertEqual([bob.got[each] for each in sorted(bob.got)], [p.payload for p in source.history.values()])

    def test_over_three_rounds(self) -> None:
        """200,000 packets: the rollover counters of both legs stay right, and memory stays as it was."""
        alice, source = self.publisher()
        alice.on_rtcp = lambda packet: None
        bob = self.subscribe(alice)
        track = alice.media.tracks["camera"]
        stream = track.streams[""]
        alice.send(*source.frame(key=True))
        for number in range(4000):
            alice.send(*source.frame(50, size=10))
            source.history.clear()
            if number % 20 == 0:
                self.room.wait(0.05)
                bob.client.rtcp.clear()
                alice.rtcp.clear()
        numbers = [packet.sequence_number for packet in bob.client.rtp]
        self.assertEqual(numbers, [(numbers[0] + each) & 0xFFFF for each in range(200_003)])
        downlink = bob.client.media._downlinks["camera"]
        self.assertLessEqual(len(stream.store), stream.store.size)
        self.assertEqual((len(stream.missing), len(downlink.repairs.resends)), (0, 0))
        self.room.wait(3)
        self.assertEqual(len(stream.store), 0)

    def test_churn_leaves_nothing(self) -> None:
        """A thousand subscriptions and publications come and go; streams are freed, tables are empty."""
        alice, bob = self.room.client(), self.room.client()
        streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        for number in range(500):
            alice.publish(camera(f"t{number}", ssrcs=((1, 11),)))
            source = Source(alice, 1, sequence=number * 10)
            streams.add(alice.media.tracks[f"t{number}"].streams[""])
            bob.media.subscribe(
                alice.media.tracks[f"t{number}"], downlinked(camera(f"t{number}"), 5000 + 2 * (number % 5))
            )
            alice.send(*source.frame(key=True))
            if number % 2:
                bob.media.unsubscribe(f"t{number}")
            self.room.wait(0.05)
        self.assertEqual(len(bob.rtp), 1500)
        alice.publish()
        alice.media.close()
        bob.media.close()
        del source
        gc.collect()
        self.assertEqual(len(streams), 0)
        for media in (alice.media, bob.media):
            self.assertEqual((media._downlinks, media._by_ssrc, media.tracks), ({}, {}, {}))
        self.assertLessEqual(len(bob.media._used), 10)
        self.assertEqual([call for call in self.room.clock.getDelayedCalls() if call.active()], [])

    def test_counters(self) -> None:
        """What went through is counted once per namespace."""
        alice, source = self.publisher()
        first, second = self.subscribe(alice), self.subscribe(alice)
        alice.send(*source.frame(4, key=True))
        self.assertEqual(self.room.counters.received, 4)
        self.assertEqual(self.room.counters.forwarded, 8)
        self.assertEqual(
            self.room.counters.forwarded_bytes, 2 * sum(len(packet.payload) for packet in first.client.rtp)
        )
        self.assertEqual(second.client.bursts, [4])
        self.assertEqual(self.room.counters.dropped, {})
