"""The signature of an event."""

from __future__ import annotations

import hmac
import json
import re
import shutil
import subprocess
import time
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

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


class SampleTests(SynchronousTestCase):
    """What the documentation tells receivers to do."""

    def setUp(self) -> None:
        text = (Path(__file__).resolve().parents[2] / "docs" / "webhooks.rst").read_text()
        found = re.findall(r"\.\. code-block:: (\w+)\n\n((?:    .*\n|\n)+)", text)
        self.samples = {language: dedent(code) for language, code in found}
        now = time.time()
        good, old = sign(SECRET, BODY, now), sign(SECRET, BODY, now - TOLERANCE - 60)
        moment, _, mine = good.partition(",")
        self.asked: list[tuple[str, str, bytes]] = [
            (SECRET, good, BODY),
            (SECRET, good + ",v2=x", BODY),
            ("t" * 32, good, BODY),
            (SECRET, good, BODY + b" "),
            (SECRET, old, BODY),
            (SECRET, moment, BODY),
            (SECRET, mine, BODY),
            (SECRET, "", BODY),
            (SECRET, "x", BODY),
        ]
        self.expected = [True, True] + [False] * 7

    def test_python(self) -> None:
        """The sample in Python takes what is ours and fresh, and nothing else."""
        names: dict[str, Any] = {}
        exec(self.samples["python"], names)
        self.assertEqual([names["is_ours"](*each) for each in self.asked], self.expected)

    def test_node(self) -> None:
        """So does the one for Node.js."""
        node = shutil.which("node")
        if node is None:
            raise SkipTest("node is not installed")
        asked = json.dumps([(secret, header, body.decode()) for secret, header, body in self.asked])
        script = self.samples["javascript"] + dedent(
            f"""
            const asked = {asked};
            console.log(JSON.stringify(asked.map(([s, h, b]) => isOurs(s, h, Buffer.from(b)))));
            """
        )
        done = subprocess.run([node, "--input-type=module"], input=script, capture_output=True, text=True, timeout=60)
        self.assertEqual((done.stderr, json.loads(done.stdout or "null")), ("", self.expected))
