"""What is read of a certificate."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import ConfigurationError
from orama.net.certificate import Certificate
from tests.cluster.pairs import DAY, write_pair

NOW = 1_800_000_000.0


class CertificateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())

    def read(self, *names: str, days: float = 90) -> Certificate:
        return Certificate.read(*write_pair(self.directory, "x", *names, start=NOW, end=NOW + days * DAY))

    def test_names(self) -> None:
        """Exact names and addresses count in any case, a wildcard for one label; a subject alone for nothing."""
        certificate = self.read("turn.ns-a.Example", "*.ns-b.example", "192.0.2.1", "2001:db8::1")
        for host in ("turn.ns-a.example", "TURN.ns-A.example.", "turn.ns-b.example", "192.0.2.1", "2001:DB8:0::1"):
            self.assertTrue(certificate.covers(host), host)
        for host in ("ns-a.example", "ns-b.example", "x.turn.ns-b.example", "192.0.2.2", "*", "", "."):
            self.assertFalse(certificate.covers(host), host)
        self.assertFalse(self.read().covers("x"))
        self.assertEqual(self.read().names, ())

    def test_dates(self) -> None:
        """Outside of its dates a certificate does not fit, and the reason has the date."""
        certificate = self.read("a.example")
        self.assertEqual(certificate.unfit("a.example", NOW), "")
        self.assertEqual(certificate.unfit("b.example", NOW), "is for a.example, not for b.example")
        self.assertEqual(certificate.unfit("a.example", NOW - 1), "is not valid before 2027-01-15 08:00 UTC")
        self.assertEqual(certificate.unfit("a.example", NOW + 90 * DAY), "expired on 2027-04-15 08:00 UTC")

    def test_ends_soon(self) -> None:
        """Three weeks before its end, or in the last quarter of a short life, it should have been renewed."""
        for days, soon in ((90, 21), (6, 1.5), (0.5, 0.125)):
            certificate = self.read("a.example", days=days)
            self.assertFalse(certificate.ends_soon(NOW + (days - soon) * DAY), days)
            self.assertTrue(certificate.ends_soon(NOW + (days - soon) * DAY + 2), days)

    def test_unusable(self) -> None:
        """Files that cannot be used name themselves in one line."""
        good = write_pair(self.directory, "good", "a.example", start=NOW, end=NOW + DAY)
        other = write_pair(self.directory, "other", "a.example", start=NOW, end=NOW + DAY, other_key=True)
        rubbish, missing = self.directory / "rubbish", self.directory / "missing"
        rubbish.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        locked = self.directory / "locked"
        key = ed25519.Ed25519PrivateKey.generate()
        locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
        for pair, culprit in (
            ((missing, good[1]), missing),
            ((good[0], missing), missing),
            ((rubbish, good[1]), rubbish),
            ((good[0], rubbish), rubbish),
            ((good[0], locked), locked),
            (other, other[1]),
            ((self.directory, good[1]), self.directory),
        ):
            error = self.assertRaises(ConfigurationError, Certificate.read, *pair)
            self.assertTrue(error.message.startswith(f"{culprit}: "), error.message)
            self.assertNotIn("\n", error.message)
