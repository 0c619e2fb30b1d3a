"""Pion, WebRTC in Go. ``callers/pion`` is the client; ``etc/lab/build`` compiles it."""

from __future__ import annotations

from tests.browser.stage import certificates
from tests.interop.foreign import ForeignTestCase
from tests.rqlite import find_program


class PionCallTests(ForeignTestCase):
    decodes = encodes = False

    def setUp(self) -> None:
        self.command = [find_program("pion-call")]
        self.more_environment = {"SSL_CERT_FILE": str(certificates().authority)}

    def test_meeting(self) -> None:
        """By UDP, TCP and TLS in one room, with somebody else: sound, pictures and messages pass both ways."""
        self.meet("udp", "tcp", "tls")

    def test_simulcast(self) -> None:
        """Three rids are three layers, of which the others get one."""
        self.call_by_layers()
