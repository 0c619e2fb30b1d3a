"""Whose sound is forwarded where many have a microphone."""

from __future__ import annotations

from itertools import pairwise

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.loudest import BEFORE, FADE, MARGIN, PAUSE, Loudest
from orama.sfu.track import Track
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import Room, Source, downlinked, microphone

#: −dBov of talk, of quiet talk, of a room where nobody talks, of digital silence.
TALK, QUIET, NOISE, SILENT = 30, 45, 70, 127


class LoudestTests(SynchronousTestCase):
    """Six publish a microphone each, a listener hears all of them, and two places are there."""

    def setUp(self) -> None:
        self.room = Room()
        self.listener = self.room.client()
        self.changes = 0
        self.loudest = Loudest(2, self.changed)
        self.tracks: list[Track] = []
        self.sources: list[Source] = []
        for number in range(6):
            client = self.room.client()
            uplinked = microphone(f"microphone{number}")
            client.publish(uplinked)
            track = client.media.tracks[uplinked.track_id]
            self.listener.media.subscribe(track, downlinked(uplinked, 7000 + number))
            self.tracks.append(track)
            self.sources.append(Source(client, number + 1, 111, mid="1"))

    def changed(self) -> None:
        self.changes += 1

    def enter(self, count: int = 6) -> None:
        for track in self.tracks[:count]:
            self.loudest.add(track, self.room.now)

    def say(self, seconds: float, **levels: int) -> None:
        """Packets of 20 ms from those named, ``a`` the first, at −dBov; the others are silent and send nothing."""
        for _ in range(round(seconds * 50)):
            for name, level in levels.items():
                source = self.sources[ord(name) - ord("a")]
                source.timestamp += 960
                packet = source.packet(f"{name}{source.sequence}".encode(), extensions=((1, bytes([0x80 | level])),))
                source.client.send(packet)
            self.room.clock.advance(0.02)

    def heard(self, name: str) -> list[RtpPacket]:
        return self.listener.of(7000 + ord(name) - ord("a"))

    def assert_places(self, names: str) -> None:
        self.assertEqual({self.tracks[ord(name) - ord("a")] for name in names}, set(self.loudest.heard()))

    def test_as_many_as_places(self) -> None:
        """While there is a place for everybody nothing stands in the way of a packet."""
        self.enter(2)
        self.assertEqual([track.gate for track in self.tracks], [None] * 6)
        self.say(0.1, a=SILENT, b=NOISE)
        self.assertEqual((len(self.heard("a")), len(self.heard("b"))), (5, 5))

    def test_crossing(self) -> None:
        """With one more the two that are loudest go on; when that one is gone everybody passes again."""
        self.enter(2)
        self.say(1.0, a=TALK, b=NOISE, c=QUIET)
        self.loudest.add(self.tracks[2], self.room.now)
        self.assert_places("ac")
        self.loudest.remove(self.tracks[2])
        self.assert_places("ab")
        self.assertEqual([track.gate for track in self.tracks], [None] * 6)

    def test_zero_is_everybody(self) -> None:
        """Without places nobody is in the running."""
        loudest = Loudest(0, self.changed)
        for track in self.tracks:
            loudest.add(track, self.room.now)
        self.assertEqual(([track.gate for track in self.tracks], loudest.heard()), ([None] * 6, ()))

    def test_word_is_whole(self) -> None:
        """Who begins to speak is heard from the first packet on, with the 80 ms before it, when others are silent."""
        self.enter()
        self.say(1.0, a=TALK, b=TALK, c=NOISE)
        self.say(PAUSE, a=TALK, b=NOISE, c=NOISE)
        self.assertEqual(self.heard("c"), [])
        before = self.sources[2].sequence
        self.say(0.02, a=TALK, b=NOISE, c=TALK)
        early = round(BEFORE / 0.02)
        self.assertEqual(
            [packet.payload for packet in self.heard("c")],
            [f"c{number}".encode() for number in range(before - early, before + 1)],
        )
        self.assert_places("ac")

    def test_numbers_without_a_hole(self) -> None:
        """Who loses the place and gets it again goes on with the next number, at the time that it is then."""
        self.enter()
        for names in ("ab", "ac", "ab"):
            self.say(1.0, **dict.fromkeys(names, TALK))
        for name in "abc":
            packets = self.heard(name)
            numbers = [packet.sequence_number for packet in packets]
            self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
            steps = [(after.timestamp - packet.timestamp) & 0xFFFFFFFF for packet, after in pairwise(packets)]
            self.assertTrue(all(0 < step < 48000 * 2 for step in steps))
        self.assertGreater(len(self.heard("b")), 50 + (1 - PAUSE) * 50)

    def test_between_words(self) -> None:
        """A pause between words costs nobody the place, and a noise in it neither."""
        self.enter()
        for _ in range(5):
            self.say(1.0, a=TALK, b=TALK, c=NOISE)
            self.say(PAUSE - 0.1, a=SILENT, b=SILENT, c=TALK)
        self.assert_places("ab")
        self.assertEqual(self.heard("c"), [])

    def test_clearly_louder(self) -> None:
        """While all places speak somebody gets in by being louder than the quietest of them, and soon."""
        self.enter()
        self.say(1.0, a=TALK, b=QUIET, c=NOISE)
        self.say(1.0, a=TALK, b=QUIET, c=QUIET - MARGIN // 2)
        self.assert_places("ab")
        before = self.sources[2].sequence
        self.say(0.2, a=TALK, b=QUIET, c=TALK)
        self.assert_places("ac")
        self.assertLessEqual(int(self.heard("c")[0].payload[1:]), before)

    def test_click(self) -> None:
        """One loud packet takes the place of nobody who speaks."""
        self.enter()
        self.say(1.0, a=TALK, b=QUIET, c=NOISE)
        self.say(0.02, a=TALK, b=QUIET, c=5)
        self.say(0.1, a=TALK, b=QUIET, c=NOISE)
        self.assert_places("ab")

    def test_whisper(self) -> None:
        """Somebody too soft to count as speaking is heard when those who have the places are silent for long."""
        self.enter()
        self.say(1.0, a=TALK, b=TALK)
        self.say(FADE - 0.1, a=TALK, b=NOISE, c=55)
        self.assert_places("ab")
        self.say(0.5, a=TALK, b=NOISE, c=55)
        self.assert_places("ac")

    def test_two_noisy_rooms(self) -> None:
        """Places do not go to and fro between noises that are alike."""
        self.enter()
        self.say(0.5, a=NOISE, b=NOISE, c=NOISE + 2, d=NOISE - 2)
        self.changes = 0
        self.say(5.0, a=NOISE, b=NOISE, c=NOISE + 2, d=NOISE - 2)
        self.assertEqual(self.changes, 0)

    def test_muted(self) -> None:
        """A muted track gives its place up like a silent one, and comes back when it is unmuted and speaks."""
        self.enter()
        self.say(1.0, a=TALK, b=TALK)
        self.tracks[1].muted = True
        self.say(1.0, a=TALK, b=TALK, c=TALK)
        self.assert_places("ac")
        count = len(self.heard("b"))
        self.tracks[1].muted = False
        self.say(PAUSE + 0.1, a=TALK, b=TALK)
        self.assert_places("ab")
        self.assertGreater(len(self.heard("b")), count)

    def test_leaving(self) -> None:
        """The place of somebody who leaves is free at once."""
        self.enter()
        self.say(1.0, a=TALK, b=TALK)
        self.loudest.remove(self.tracks[1])
        self.say(0.02, a=TALK, c=TALK)
        self.assert_places("ac")

    def test_without_levels(self) -> None:
        """A packet without a level neither takes a place nor loses one."""
        self.enter()
        self.say(1.0, a=TALK, b=TALK, c=NOISE)
        for number in (1, 2):
            source = self.sources[number]
            source.timestamp += 960
            source.client.send(source.packet(b"bare"))
        self.assertEqual((self.heard("b")[-1].payload, self.heard("c")), (b"bare", []))

    def test_never_a_level(self) -> None:
        """Who has agreed on levels and tells none is always forwarded; from the first one on it is judged by them."""
        self.enter()
        self.say(1.0, a=TALK, b=TALK)
        source = self.sources[2]
        for number in range(20):
            source.timestamp += 960
            source.client.send(source.packet(f"bare{number}".encode()))
        self.assertEqual(len(self.heard("c")), 20)
        self.say(0.1, a=TALK, b=TALK, c=NOISE)
        self.assertEqual(len(self.heard("c")), 20)
        self.say(0.5, a=TALK)
        self.say(0.1, a=TALK, c=TALK)
        numbers = [packet.sequence_number for packet in self.heard("c")]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertGreater(len(numbers), 24)

    def test_new_stream(self) -> None:
        """A publisher that goes on under another SSRC keeps its place."""
        self.enter()
        self.say(1.0, a=TALK, b=TALK)
        client = self.sources[0].client
        client.publish(evolve(microphone("microphone0"), ssrcs=((77, None),)))
        self.sources[0] = Source(client, 77, 111, mid="1", sequence=3)
        self.say(1.0, a=TALK, b=TALK, c=NOISE)
        self.assert_places("ab")
        self.assertEqual(len(self.heard("a")), 100)
