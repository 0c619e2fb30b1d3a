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

    @given(st.text())
    def test_total(self, sealed: str) -> None:
        """Any text is a secret or a BrokenSeal."""
        seal = Seal(bytes(32))
        with self.assertRaises(BrokenSeal):
            seal.open(sealed, "tenant")
