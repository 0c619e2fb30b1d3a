"""User names of the REST form, ``{expiry}:{namespace}``: what a lenient parser would take, and for whom."""

from __future__ import annotations

import os
import time

from tests.attacks.stage import AttackTestCase, probe
from tests.contract import turn
from tests.contract.commands import OTHER, secret
from tests.contract.stage import end, started, toml


class NameTests(AttackTestCase):
    def judged(self, username: str, namespace: str = "default") -> int:
        """The code of the answer to an Allocate whose user name, and everything made from it, is *username*."""
        client = probe(self.node, namespace=namespace)
        client.username = username
        client.password = turn.password(secret(self.node, namespace), username)
        self.addCleanup(client.release)
        return client.known().forged(turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)])

    def test_canonical_names_are_good(self) -> None:
        """What the others are compared with: a decimal number, a colon, a namespace, and perhaps a user."""
        expiry = int(time.time()) + 60
        for name in (f"{expiry}:default", f"{expiry}:default:ann", f"{expiry}:default:a:b", f"{expiry}:default:"):
            self.assertEqual(self.judged(name), 0, name)
        self.assertEqual(self.judged(f"{expiry}:{OTHER}", OTHER), 0)

    def test_expired_names_are_refused(self) -> None:
        """turn-rs took a time of any age: one that is over is 401, by a second or by an epoch."""
        now = int(time.time())
        for expiry in (now, now - 1, now - 86400, 1, 0):
            self.assertEqual(self.judged(f"{expiry}:default"), 401, expiry)

    def test_prefixes_are_no_numbers(self) -> None:
        """Rel took Elixir's Integer.parse, and coturn atol: a number with something behind or before it is 401."""
        expiry = int(time.time()) + 60
        for text in (
            f"{expiry}abc", f"{expiry}.5", f"{expiry}e1", f"{expiry}_000", f"{expiry} ", f" {expiry}", f"\t{expiry}",
            f"{expiry}\n", f"{expiry}\0", f"+{expiry}", f"-{expiry}", "-1", f"0{expiry}", f"0x{expiry:x}",
            "abc", "", "nan", "inf", "1e99", "∞",
        ):  # fmt: skip
            self.assertEqual(self.judged(f"{text}:default"), 401, text)

    def test_digits_of_other_scripts_are_refused(self) -> None:
        """What ``int()`` of Python takes: Arabic, full-width and mathematical digits are 401."""
        expiry = str(int(time.time()) + 60)
        for zero in ("٠", "०", "０", "𝟎", "𝟘"):
            text = "".join(chr(ord(zero) + int(digit)) for digit in expiry)
            self.assertEqual(self.judged(f"{text}:default"), 401, text)
            self.assertEqual(self.judged(f"{expiry[:-1]}{text[-1]}:default"), 401, text)
        self.assertEqual(self.judged(f"{expiry[:-1]}²:default"), 401)

    def test_huge_numbers_are_refused(self) -> None:
        """An overflow of 64 bits would be in the past or the future: 401, and nothing raises."""
        for digits in (17, 20, 22, 100, 500):
            self.assertEqual(self.judged(f"{'9' * digits}:default"), 401, digits)
        for number in (2**63, 2**64 - 1, 2**64 + int(time.time()) + 60):
            self.assertEqual(self.judged(f"{number}:default"), 401, number)

    def test_names_of_nobody_are_refused(self) -> None:
        """A namespace that is empty, not there, or spelled otherwise is 401."""
        expiry = int(time.time()) + 60
        for name in (
            f"{expiry}:", f"{expiry}::", f"{expiry}::ann", ":default", ":", "", "default", f"{expiry}:nobody",
            f"{expiry}:DEFAULT", f"{expiry}:default ", f"{expiry}: default", f"{expiry}:default\0", f"{expiry};default",
            f"{expiry}：default", f"{expiry}:ｄefault", f"default:{expiry}",
        ):  # fmt: skip
            self.assertEqual(self.judged(name), 401, name)

    def test_long_names_are_refused(self) -> None:
        """RFC 8489, 14.3: what is far longer than a user name may be is an error, and nothing is made of it."""
        expiry = int(time.time()) + 60
        for length in (764, 5000, 60000):
            self.assertIn(self.judged(f"{expiry}:default:".ljust(length, "x")), (400, 401), length)

    def test_bytes_that_are_no_text(self) -> None:
        """A user name that is not UTF-8 is 400 or 401 and nothing worse."""
        client = probe(self.node)
        self.addCleanup(client.release)
        client.known()
        for name in (b"\xff" * 20, b"\xc0\x80", b"1\xed\xa0\x80:default", os.urandom(64)):
            attributes = [(turn.USERNAME, name), (turn.REALM, client.realm), (turn.NONCE, client.nonce)]
            answer = client.answer(turn.build(turn.ALLOCATE, attributes=attributes, key=client.key))
            assert answer is not None
            self.assertIn(answer.code, (400, 401), name)

    def test_secret_of_another_namespace(self) -> None:
        """A name of one namespace with a password by another one's secret is 401, in both directions."""
        expiry = int(time.time()) + 60
        for named, made in (("default", OTHER), (OTHER, "default")):
            self.assertEqual(self.judged(f"{expiry}:{named}", made), 401)

    def test_expiry_alone(self) -> None:
        """coturn takes a bare number: here it is the configured default namespace's, and 401 where there is none."""
        expiry = int(time.time()) + 60
        self.assertEqual(self.judged(f"{expiry}"), 0)
        self.assertEqual(self.judged(f"{expiry}", OTHER), 401)
        self.node = started(config=toml(turn='default_namespace = ""'))
        try:
            self.assertEqual(self.judged(f"{expiry}"), 401)
            self.assertEqual(self.judged(f"{expiry}:default"), 0)
            self.check()
        finally:
            self.doCleanups()
            end(self.node)
