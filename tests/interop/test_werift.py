"""werift, WebRTC in TypeScript, from npm. ``callers/with_werift.mjs`` is the client."""

from __future__ import annotations

from twisted.trial.unittest import SkipTest

from tests.browser.stage import certificates
from tests.interop.foreign import ForeignTestCase, path_of
from tests.interop.npm import PACKAGES, install


class WeriftTests(ForeignTestCase):
    decodes = encodes = False

    def setUp(self) -> None:
        if reason := install("werift", "0.24"):
            raise SkipTest(reason)
        self.command = ["node", path_of("callers", "with_werift.mjs"), str(PACKAGES)]
        self.more_environment = {"NODE_EXTRA_CA_CERTS": str(certificates().authority)}

    def test_meeting(self) -> None:
        """By UDP, TCP and TLS in one room, with somebody else: sound, pictures and messages pass both ways."""
        self.meet("udp", "tcp", "tls")
