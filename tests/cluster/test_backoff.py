"""When what has failed is tried again."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.backoff import FIRST, LONGEST, Backoff


class BackoffTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.backoff = Backoff(self.clock)

    def pause(self) -> float:
        """Seconds until the key is due again, to the quarter."""
        waited = 0.0
        while not self.backoff.due("key"):
            self.clock.advance(0.25)
            waited += 0.25
        return waited

    def test_grows(self) -> None:
        """It is due at once; after each failure the pause is twice the last, up to a minute."""
        self.assertTrue(self.backoff.due("key"))
        pauses = []
        for _ in range(9):
            self.backoff.failed("key", "it does not work")
            pauses.append(self.pause())
        self.assertEqual(pauses, [FIRST, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST, LONGEST, LONGEST])

    def test_starts_anew(self) -> None:
        """Success forgets all that was."""
        for _ in range(4):
            self.backoff.failed("key", "it does not work")
        self.assertTrue(self.backoff.succeeded("key"))
        self.assertIsNone(self.backoff.why("key"))
        self.assertFalse(self.backoff.succeeded("key"))
        self.backoff.failed("key", "it does not work")
        self.assertEqual(self.pause(), FIRST)

    def test_worth_telling(self) -> None:
        """The first failure and another reason are worth a line of the log, the same again is not."""
        told = [self.backoff.failed("key", why) for why in ("one", "one", "two", "two", "one")]
        self.assertEqual(told, [True, False, True, False, True])
        self.assertEqual(self.backoff.why("key"), "one")

    def test_keys(self) -> None:
        """What fails keeps nothing else waiting."""
        self.backoff.failed("key", "it does not work")
        self.assertFalse(self.backoff.due("key"))
        self.assertTrue(self.backoff.due("other"))

    def test_retry(self) -> None:
        """Who asks for it gets it tried at once, and a failure then counts as one more."""
        for _ in range(3):
            self.backoff.failed("key", "it does not work")
        self.backoff.retry("key")
        self.backoff.retry("unknown")
        self.assertTrue(self.backoff.due("key"))
        self.assertEqual(self.backoff.why("key"), "it does not work")
        self.backoff.failed("key", "it does not work")
        self.assertEqual(self.pause(), 8.0)
