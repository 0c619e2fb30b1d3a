"""The shared store and the record of what was sent again."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.packet import Packet
from orama.sfu.retransmission import REMEMBERED, RESENDS, VIDEO_AGE, PacketStore, Resends


def packet(index: int, time: float = 0.0) -> Packet:
    return Packet(index, 0, 0, 96, b"payload", 0, time)


class StoreTests(SynchronousTestCase):
    def test_finds_by_index(self) -> None:
        """A packet is found by its own extended number and by no other that shares its slot."""
        store = PacketStore("video")
        kept = packet(70000)
        store.add(kept)
        self.assertIs(store.get(70000), kept)
        self.assertIsNone(store.get(70000 - store.size))
        self.assertIsNone(store.get(70000 + store.size))
        self.assertFalse(store.seen(70001))

    def test_bounded_in_packets(self) -> None:
        """It never holds more than its size, the newest."""
        for kind in ("audio", "video"):
            store = PacketStore(kind)
            for index in range(3 * store.size):
                store.add(packet(index))
            self.assertEqual(len(store), store.size)
            self.assertIsNotNone(store.get(3 * store.size - 1))
            self.assertIsNone(store.get(2 * store.size - 1))

    def test_bounded_in_time(self) -> None:
        """What is older than two seconds goes, the rest stays; gaps do not stop it."""
        store = PacketStore("video")
        for index in (*range(100, 150), *range(160, 200)):
            store.add(packet(index, time=index / 50))
        store.expire(199, 3.5 + VIDEO_AGE)
        self.assertEqual([index for index in range(90, 210) if store.get(index)], list(range(176, 200)))
        store.expire(199, 100.0)
        self.assertEqual(len(store), 0)

    def test_what_was_let_go_stays_seen(self) -> None:
        """A copy that comes when the first has gone is no new packet; neither is what never came by then."""
        store = PacketStore("video")
        for index in (100, 101, 103):
            store.add(packet(index, 1.0))
        self.assertFalse(store.seen(102))
        store.expire(103, 10.0)
        self.assertEqual([store.seen(index) for index in range(100, 105)], [True] * 4 + [False])

    def test_the_beginning_comes_late(self) -> None:
        """What is from before the first packet of a stream is new when it comes late, and goes with the others."""
        store = PacketStore("video")
        for index in range(105, 110):
            store.add(packet(index, 1.0))
        store.expire(109, 1.1)
        self.assertFalse(store.seen(104))
        store.add(packet(104, 1.2))
        store.expire(109, 1.3)
        self.assertEqual((store.seen(104), store.seen(103)), (True, False))
        store.expire(109, 1.25 + VIDEO_AGE)
        self.assertEqual(len(store), 0)
        self.assertTrue(store.seen(103))

    def test_expiry_after_a_jump(self) -> None:
        """A jump of many numbers leaves nothing behind."""
        store = PacketStore("video")
        store.add(packet(10, 1.0))
        store.expire(10, 1.1)
        store.add(packet(60_000, 1.2))
        store.expire(60_000, 10.0)
        self.assertEqual(len(store), 0)


class ResendTests(SynchronousTestCase):
    def test_at_most_three_times(self) -> None:
        """One packet is sent again three times and no more."""
        resends = Resends()
        self.assertEqual([resends.allows(5, now, None) for now in range(6)], [True] * RESENDS + [False] * 3)
        self.assertTrue(resends.allows(6, 5.0, None))

    def test_not_at_once(self) -> None:
        """Not within 100 ms, or two round trips where those are shorter."""
        resends = Resends()
        self.assertTrue(resends.allows(5, 1.0, None))
        self.assertFalse(resends.allows(5, 1.09, None))
        self.assertFalse(resends.allows(5, 1.09, 0.3))
        self.assertTrue(resends.allows(5, 1.05, 0.02))
        self.assertFalse(resends.allows(5, 1.08, 0.02))

    def test_bounded(self) -> None:
        """The record forgets the oldest."""
        resends = Resends()
        for index in range(3 * REMEMBERED):
            self.assertTrue(resends.allows(index, 1.0, None))
        self.assertEqual(len(resends), REMEMBERED)
