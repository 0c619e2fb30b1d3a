"""The signature of an event."""

from __future__ import annotations

import hmac
from hashlib import sha256

from twisted.trial.unittest import SynchronousTestCase

from orama.webhooks.signature import LONGEST, TOLERANCE, BadSignature, sign, verify

SECRET, BODY, NOW = "s" * 32, b'{"id":"ev_1"}', 1_800_000_000.25


class SignatureTests(SynchronousTestCase):
    def refused(self, secret: str, header: str, body: bytes, now: float) -> str:
        return str(self.assertRaises(BadSignature, verify, secret, header, body, now))

    def test_form(self) -> None:
        """``t=…,v1=…``, with the HMAC-SHA256 of the time, a dot and the body under the secret."""
        expected = hmac.digest(SECRET.encode(), b"1800000000." + BODY, sha256).hex()
        self.assertEqual(sign(SECRET, BODY, NOW), f"t=1800000000,v1={expected}")

    def test_good(self) -> None:
        """What was signed is good for five minutes before and after, beside versions and signatures of others."""
        header = sign(SECRET, BODY, NOW)
        moment, _, mine = header.partition(",")
        for now in (NOW, NOW + TOLERANCE - 1, NOW - TOLERANCE):
            verify(SECRET, header, BODY, now)
        verify(SECRET, f"v9=x, {moment}, v1=00, {mine}", BODY, NOW)

    def test_bad(self) -> None:
        """Another body, secret or time is refused, and so is a header that is none."""
        header = sign(SECRET, BODY, NOW)
        for secret, given, body in (
            (SECRET, header, BODY + b" "),
            ("t" * 32, header, BODY),
            (SECRET, header.replace("t=18", "t=19"), BODY),
            (SECRET, "t=1800000000,v1=é", BODY),
        ):
            self.assertIn("not that of this body", self.refused(secret, given, body, NOW))
        for given in ("", "t=1800000000", "v1=00", "t=²,v1=00", "t=-1,v1=00", "x" * LONGEST + header):
            self.assertIn("no t= and v1=", self.refused(SECRET, given, BODY, NOW))
        self.assertIn("300 s off", self.refused(SECRET, header, BODY, NOW + TOLERANCE + 1))
