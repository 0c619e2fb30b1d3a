"""Publishers that send more than they were asked to."""

from __future__ import annotations

from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.excess import Excess
from tests.sfu.clients import Room, Source, camera


class ExcessTests(SynchronousTestCase):
    def test_only_for_long(self) -> None:
        """Half as much again for five seconds counts, once; a burst does not, nor what is merely above the limit."""
        excess = Excess(1_000_000)
        for second in range(5):
            self.assertEqual(excess.look({"high": 1.6e6, "near": 1.4e6}, float(second)), [])
        self.assertEqual(excess.look({"high": 1.6e6, "near": 1.4e6}, 5.0), ["high"])
        self.assertEqual(excess.look({"high": 1.6e6, "near": 1.4e6}, 11.0), [])
        excess = Excess(1_000_000)
        for second in range(20):
            self.assertEqual(excess.look({"bursts": 2e6 if second % 4 else 0.5e6}, float(second)), [])

    def test_forgotten_with_the_track(self) -> None:
        """What is remembered of a track goes with it: one of the same name later is a new one."""
        excess = Excess(1_000_000)
        for second in (0.0, 6.0):
            found = excess.look({"camera": 2e6}, second)
        self.assertEqual(found, ["camera"])
        excess.look({}, 7.0)
        self.assertEqual([excess.look({"camera": 2e6}, second) for second in (8.0, 14.0)], [[], ["camera"]])

    def test_counted_and_told(self) -> None:
        """A publisher that ignores the limit is counted, and named in one line of the log; its packets go on."""
        room = Room()
        told: list[LogEvent] = []
        globalLogPublisher.addObserver(told.append)
        self.addCleanup(globalLogPublisher.removeObserver, told.append)
        alice = room.client(max_bitrate=100_000)
        alice.publish(camera(ssrcs=((1, 2),)))
        source = Source(alice, 1)
        for second in range(12):
            for _ in range(20):
                alice.send(*source.frame(2, key=second == 0, size=600))
                room.wait(0.05)
        self.assertEqual(room.counters.excessive, 1)
        self.assertEqual([event["track_id"] for event in told if "limit" in event], ["camera"])
        self.assertEqual(room.counters.received, 12 * 40)
