"""Signed requests between nodes."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import orama
from orama.cluster.keyring import ClusterKey, Keyring
from orama.cluster.signing import NODE, NONCE, SIGNATURE, TIME, TOLERANCE, Verifier, sign
from orama.errors import NotAuthenticated

KEY, OTHER = ClusterKey(0, b"k" * 32), ClusterKey(1, b"o" * 32)
START = 1_700_000_000.0
TARGET = "/v1/internal/report?to=node-1"


class SigningTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        self.keyring = Keyring([KEY])
        self.verifier = Verifier(self.keyring, self.clock)

    def signed(self, now: float | None = None, key: Keyring | bytes = KEY.secret) -> dict[str, str]:
        return sign(key, "POST", TARGET, b"{}", "node-2", self.clock.seconds() if now is None else now)

    def check(self, headers: Mapping[str, str], method: str = "POST", target: str = TARGET, body: bytes = b"{}") -> str:
        return self.verifier.check(method, target, headers, body)

    def refused(self, headers: Mapping[str, str], code: str, **changed: str | bytes) -> str:
        with self.assertRaises(NotAuthenticated) as caught:
            self.check(headers, **changed)  # type: ignore[arg-type]
        self.assertEqual(caught.exception.code, code)
        return caught.exception.message

    def test_form(self) -> None:
        """What is signed: seven lines, by HMAC-SHA256 in lower-case hex."""
        nonce = "0123456789abcdef" * 2
        made = sign(KEY.secret, "POST", TARGET, b"{}", "node-2", START + 0.9, nonce)
        body = hashlib.sha256(b"{}").hexdigest()
        text = f"orama1\nPOST\n{TARGET}\n1700000000\n{nonce}\nnode-2\n{body}"
        expected = hmac.new(b"k" * 32, text.encode(), hashlib.sha256).hexdigest()
        self.assertEqual(made, {NODE: "node-2", TIME: "1700000000", NONCE: nonce, SIGNATURE: expected})

    def test_good(self) -> None:
        """A signed request is its node's, whatever the case of its headers."""
        self.assertEqual(self.check(self.signed()), "node-2")
        self.assertEqual(self.check({name.lower(): value for name, value in self.signed().items()}), "node-2")

    def test_replayed(self) -> None:
        """The same request is taken once, in all the time that it is good for."""
        headers = self.signed()
        self.check(headers)
        for _ in range(TOLERANCE):
            self.refused(headers, "replayed_request")
            self.clock.advance(1)
        self.clock.advance(1)
        self.refused(headers, "stale_request")
        self.clock.advance(1)
        self.check(self.signed())
        self.assertEqual(len(self.verifier), 1)

    def test_altered(self) -> None:
        """Whatever of a request is changed on its way, it is not taken, and the real one still is."""
        headers = self.signed()
        self.refused(headers, "bad_signature", method="GET")
        self.refused(headers, "bad_signature", target=TARGET.replace("node-1", "node-3"))
        self.refused(headers, "bad_signature", body=b"{ }")
        self.refused({**headers, NODE: "node-3"}, "bad_signature")
        self.refused({**headers, TIME: str(int(START) + 1)}, "bad_signature")
        self.refused({**headers, NONCE: "0" * 32}, "bad_signature")
        self.refused({**headers, SIGNATURE: "0" * 64}, "bad_signature")
        for name in headers:
            self.refused({other: value for other, value in headers.items() if other != name}, "bad_signature")
        self.assertEqual(len(self.verifier), 0)
        self.check(headers)

    def test_time(self) -> None:
        """Half a minute either way; beyond it the answer says by how much the clocks differ."""
        now = self.clock.seconds() + 100
        self.clock.advance(100)
        for off in (-TOLERANCE, 0, TOLERANCE):
            self.check(self.signed(now + off))
        self.assertIn("45 s ago", self.refused(self.signed(now - 45), "stale_request"))
        self.assertIn("31 s in the future", self.refused(self.signed(now + 31), "stale_request"))

    def test_keys(self) -> None:
        """Every key of the ring verifies, the first one signs; a forgotten one is no good any more."""
        other = Keyring([OTHER])
        self.refused(self.signed(key=other), "bad_signature")
        self.keyring.accept(OTHER)
        self.check(self.signed(key=other))
        self.check(self.signed())
        self.keyring.use(OTHER)
        self.check(self.signed())
        self.check(sign(self.keyring, "POST", TARGET, b"{}", "node-2", START))
        self.keyring.forget_before(OTHER)
        self.refused(self.signed(), "bad_signature")

    def test_restart(self) -> None:
        """What was signed before a node started is refused: it cannot know whether it has seen it."""
        headers = self.signed()
        self.check(headers)
        self.clock.advance(1)
        self.verifier = Verifier(self.keyring, self.clock)
        self.refused(headers, "stale_request")
        self.check(self.signed())

    def test_clock_put_back(self) -> None:
        """A node that started with a clock far ahead takes requests again as soon as it is put right."""
        ahead = Clock()
        ahead.advance(START + 3600)
        self.verifier = Verifier(self.keyring, ahead)
        self.refused(self.signed(), "stale_request")
        ahead.rightNow = START
        headers = self.signed()
        self.check(headers)
        self.refused(headers, "replayed_request")

    def test_bounded(self) -> None:
        """Memory has an end; a request that may have been forgotten is refused, never taken twice."""
        self.verifier = Verifier(self.keyring, self.clock, capacity=10)
        old = [self.signed() for _ in range(8)]
        for headers in old:
            self.check(headers)
        self.clock.advance(1)
        for _ in range(8):
            self.check(self.signed())
        self.assertEqual(len(self.verifier), 8)
        for headers in old:
            self.refused(headers, "stale_request")

    @given(
        st.dictionaries(
            st.sampled_from((NODE, TIME, NONCE, SIGNATURE, "Host")),
            st.one_of(st.text(max_size=80), st.from_regex(r"[0-9a-f]{64}|[0-9]{1,12}|[0-9a-f]{32}", fullmatch=True)),
        ),
        st.text(max_size=20),
        st.text(max_size=20),
        st.binary(max_size=20),
    )
    def test_total(self, headers: dict[str, str], method: str, target: str, body: bytes) -> None:
        """Whatever comes from whoever has no key is refused, and leaves nothing behind."""
        verifier = Verifier(self.keyring, self.clock)
        with self.assertRaises(NotAuthenticated):
            verifier.check(method, target, headers, body)
        self.assertEqual(len(verifier), 0)

    @given(st.text(), st.binary(max_size=30))
    def test_any_target(self, target: str, body: bytes) -> None:
        """Both sides read any target and any body in the same way."""
        verifier = Verifier(self.keyring, self.clock)
        headers = sign(self.keyring, "GET", target, body, "n", START)
        self.assertEqual(verifier.check("GET", target, headers, body), "n")

    def test_no_reactor(self) -> None:
        """The command line, which has no reactor and no time to load one, can sign."""
        program = "import sys, orama.cluster.signing; sys.exit('twisted' in sys.modules)"
        home = {**os.environ, "PYTHONPATH": str(Path(orama.__file__).parent.parent)}
        self.assertEqual(subprocess.run([sys.executable, "-c", program], check=False, env=home).returncode, 0)


class OnceOnly(RuleBasedStateMachine):
    """Requests with all kinds of times, sent again and again, while clocks move both ways and memory is short."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.advance(START)
        self.verifier = Verifier(Keyring([KEY]), self.clock, capacity=5)
        self.sent: list[dict[str, str]] = []
        self.taken: set[str] = set()
        self.numbers = count()

    @rule(off=st.integers(-40, 40))
    def send(self, off: int) -> None:
        nonce = f"{next(self.numbers):032x}"
        self.sent.append(sign(KEY.secret, "GET", "/", b"", "n", self.clock.seconds() + off, nonce))
        self.deliver(self.sent[-1])

    @rule(which=st.integers(0, 200))
    def repeat(self, which: int) -> None:
        if self.sent:
            self.deliver(self.sent[which % len(self.sent)])

    @rule(seconds=st.integers(-60, 60))
    def move(self, seconds: int) -> None:
        self.clock.rightNow += seconds

    def deliver(self, headers: dict[str, str]) -> None:
        try:
            self.verifier.check("GET", "/", headers, b"")
        except NotAuthenticated:
            return
        assert headers[NONCE] not in self.taken, "taken twice"
        self.taken.add(headers[NONCE])

    @invariant()
    def bounded(self) -> None:
        assert len(self.verifier) <= 5


class OnceOnlyTests(SynchronousTestCase):
    def test_once_only(self) -> None:
        """No history makes a node take one request twice."""
        OnceOnly.TestCase("runTest").runTest()

    def test_nonces(self) -> None:
        """Nonces are as random as the system can make them."""
        nonces = {sign(secrets.token_bytes(32), "GET", "/", b"", "n", START)[NONCE] for _ in range(1000)}
        self.assertEqual(len(nonces), 1000)
