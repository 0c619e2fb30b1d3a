"""Time-limited credentials."""

from __future__ import annotations

import base64
import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.credentials import CredentialError, Username, issue, parse_username, password, uris


class IssueTests(SynchronousTestCase):
    def test_form(self) -> None:
        """The name is expiry and namespace; the password is base64 of HMAC-SHA1 keyed with the secret's text."""
        secret = base64.b64encode(bytes(range(32))).decode()
        made = issue(secret, "myapp", 600, 1_740_199_400.7)
        self.assertEqual(made.username, "1740200000:myapp")
        self.assertEqual(made.ttl, 600)
        expected = hmac.new(secret.encode(), b"1740200000:myapp", hashlib.sha1).digest()
        self.assertEqual(made.password, base64.b64encode(expected).decode())
        self.assertEqual(password(secret, made.username), made.password)

    def test_user(self) -> None:
        """A user follows a second colon."""
        self.assertEqual(issue("s", "myapp", 1, 0.0, "ann:b").username, "1:myapp:ann:b")

    def test_password_is_not_shown(self) -> None:
        """The password is not in the representation, which may end up in a log."""
        made = issue("s", "myapp", 1, 0.0)
        self.assertNotIn(made.password, repr(made))

    @given(
        st.text(min_size=1).filter(lambda text: ":" not in text),
        st.text(),
        st.integers(0, 10**6),
        st.integers(0, 10**10),
    )
    def test_round_trip(self, namespace: str, user: str, ttl: int, now: int) -> None:
        """What is issued is read back, and is current until its time is over."""
        parsed = parse_username(issue("s", namespace, ttl, now, user).username)
        self.assertEqual(parsed, Username(now + ttl, namespace, user))
        self.assertEqual(parsed.current(now), ttl > 0)
        self.assertFalse(parsed.current(now + ttl))


class ParseTests(SynchronousTestCase):
    def test_expiry_alone(self) -> None:
        """An expiry alone is the default namespace's; without a default it is refused."""
        self.assertEqual(parse_username("1740200000", "default"), Username(1740200000, "default", ""))
        self.assertRaises(CredentialError, parse_username, "1740200000")

    def test_refused(self) -> None:
        """Only the canonical decimal form of an expiry is taken, and a namespace has to be there."""
        for name in (
            "",
            ":",
            ":ns",
            "abc:ns",
            "-1:ns",
            "+1740200000:ns",
            " 1740200000:ns",
            "1740200000 :ns",
            "01740200000:ns",
            "1_740_200_000:ns",
            "0x10:ns",
            "1e9:ns",
            "1740200000.0:ns",
            "\u0661\u0662\u0663:ns",
            "1234567890123456789012:ns",
            "1740200000:",
            "1740200000::user",
            "1740200000\n:ns",
            "1740200000\n",
        ):
            with self.assertRaises(CredentialError, msg=repr(name)):
                parse_username(name, "default")

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Any text gives a name or a CredentialError."""
        try:
            parsed = parse_username(text, "default")
        except CredentialError:
            return
        self.assertTrue(text.startswith(str(parsed.expiry)))


class UriTests(SynchronousTestCase):
    def test_order(self) -> None:
        """UDP, TCP, TLS; no transport in the last one."""
        self.assertEqual(
            uris("turn.ns-myapp.example.org", 3478, 5349),
            [
                "turn:turn.ns-myapp.example.org:3478?transport=udp",
                "turn:turn.ns-myapp.example.org:3478?transport=tcp",
                "turns:turn.ns-myapp.example.org:5349",
            ],
        )

    def test_ipv6(self) -> None:
        """An IPv6 address stands in brackets (RFC 7065)."""
        self.assertEqual(uris("2001:db8::1", 1, 2)[2], "turns:[2001:db8::1]:2")
