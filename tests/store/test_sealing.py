"""Sealed secrets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.store.sealing import BrokenSeal, Seal, new_key


class SealTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.seal = Seal(new_key())

    def test_round_trip(self) -> None:
        """What was sealed comes out again, and does not show while it is sealed."""
        sealed = self.seal.seal("the secret", "tenant")
        self.assertNotIn("the secret", sealed)
        self.assertEqual(self.seal.open(sealed, "tenant"), "the secret")

    def test_never_the_same(self) -> None:
        """Equal secrets cannot be told from their sealed forms."""
        self.assertNotEqual(self.seal.seal("s", "tenant"), self.seal.seal("s", "tenant"))

    def test_other_purpose(self) -> None:
        """A sealed value that was moved to another namespace does not open."""
        with self.assertRaises(BrokenSeal):
            self.seal.open(self.seal.seal("s", "tenant"), "other")

    def test_other_key(self) -> None:
        """Another node key does not open it."""
        with self.assertRaises(BrokenSeal):
            Seal(new_key()).open(self.seal.seal("s", "tenant"), "tenant")

    def test_short_key(self) -> None:
        """A node key that was cut short is refused."""
        with self.assertRaises(BrokenSeal):
            Seal(b"short")

    def test_several_keys(self) -> None:
        """Any of the keys opens; what another than the first has sealed is to be sealed again."""
        old, new, purpose = new_key(), new_key(), "tenant"
        sealed = Seal(old).seal("s", purpose)
        seal = Seal([new, old])
        self.assertEqual(seal.open(sealed, purpose), "s")
        self.assertTrue(seal.needs_reseal(sealed, purpose))
        again = seal.seal("s", purpose)
        self.assertFalse(seal.needs_reseal(again, purpose))
        self.assertEqual(Seal(new).open(again, purpose), "s")

    def test_adopt(self) -> None:
        """A seal that is given other keys opens with those and no others; bad ones change nothing."""
        old, new = new_key(), new_key()
        seal = Seal(old)
        sealed = seal.seal("s", "tenant")
        for bad in ([], [new, b"short"]):
            with self.assertRaises(BrokenSeal):
                seal.adopt(bad)
        self.assertEqual(seal.open(sealed, "tenant"), "s")
        seal.adopt([new])
        with self.assertRaises(BrokenSeal):
            seal.needs_reseal(sealed, "tenant")

    @given(st.text())
    def test_total(self, sealed: str) -> None:
        """Any text is a secret or a BrokenSeal."""
        seal = Seal(bytes(32))
        with self.assertRaises(BrokenSeal):
            seal.open(sealed, "tenant")
