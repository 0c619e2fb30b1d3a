"""Who is speaking, and how loud."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.speakers import INTERVAL, SILENCE, STAY, THRESHOLD, ActiveSpeakers, AudioLevel


class LevelTests(SynchronousTestCase):
    def test_turned_round(self) -> None:
        """0 dBov is the loudest, 127, and −127 dBov silence; the voice bit does not matter (RFC 6464, 3)."""
        for value, expected in ((0x00, 127), (0x80, 127), (0x7F, 0), (0xFF, 0)):
            level = AudioLevel()
            for _ in range(200):
                level.heard(value, 10.0)
            self.assertEqual(level.value(10.0), expected)

    def test_smoothing(self) -> None:
        """One loud packet does not make a speaker; 100 ms do, and a pause between words does not end it."""
        level = AudioLevel()
        level.heard(20, 10.0)
        self.assertLess(level.value(10.0), THRESHOLD)
        for _ in range(5):
            level.heard(20, 10.0)
        self.assertGreater(level.value(10.0), THRESHOLD)
        for _ in range(2):
            level.heard(127, 10.0)
        self.assertGreater(level.value(10.0), THRESHOLD - 15)

    def test_no_packets_is_silence(self) -> None:
        """A track that stopped is silent."""
        level = AudioLevel()
        for _ in range(50):
            level.heard(10, 10.0)
        self.assertGreater(level.value(10.0 + SILENCE - 0.01), 100)
        self.assertEqual(level.value(10.0 + SILENCE + 0.01), 0)


class SpeakerTests(SynchronousTestCase):
    def test_loudest_first(self) -> None:
        """The list is sorted by level, and who is below the threshold is not in it."""
        speakers = ActiveSpeakers()
        found = speakers.update({"a": 100, "b": 120, "c": 50, "d": 100}, 10.0)
        self.assertEqual(found, (("b", 120), ("a", 100), ("d", 100)))

    def test_only_changes_every_300_ms(self) -> None:
        """Nothing comes sooner than 300 ms, and nothing when all is as it was told."""
        speakers = ActiveSpeakers()
        self.assertIsNone(speakers.update({}, 10.0))
        self.assertIsNone(speakers.update({"a": 120}, 10.2))
        self.assertEqual(speakers.update({"a": 120}, 10.0 + INTERVAL), (("a", 120),))
        self.assertIsNone(speakers.update({"a": 118}, 11.0))
        self.assertEqual(speakers.update({"a": 110}, 12.0), (("a", 110),))
        self.assertEqual(speakers.update({"a": 0}, 13.0), ())
        self.assertIsNone(speakers.update({}, 14.0))

    def test_between_words(self) -> None:
        """A short silence, or a level about the threshold, takes nobody out of the list; a longer one does."""
        speakers = ActiveSpeakers()
        self.assertEqual(speakers.update({"a": THRESHOLD}, 10.0), (("a", THRESHOLD),))
        for step in range(1, 20):
            self.assertIsNone(speakers.update({"a": THRESHOLD - step % 3}, 10.0 + step * (INTERVAL + 0.01)))
        last = 10.0 + 18 * (INTERVAL + 0.01)
        self.assertEqual(speakers.update({"a": 40}, last + STAY - 0.01), (("a", 40),))
        self.assertEqual(speakers.loud, frozenset())
        self.assertEqual(speakers.update({"a": 40}, last + STAY + INTERVAL), ())

    def test_muted(self) -> None:
        """Who is muted, or gone, is out of the list at once."""
        speakers = ActiveSpeakers()
        self.assertEqual(speakers.update({"a": 110, "b": 100}, 10.0), (("a", 110), ("b", 100)))
        self.assertEqual(speakers.update({"b": 100}, 10.0 + INTERVAL), (("b", 100),))
